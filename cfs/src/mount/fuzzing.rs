//! The two places where the kernel's bytes enter, for a fuzzer that stands in for the kernel.

use std::sync::mpsc;

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::abi;
use super::dispatch::{Body, dispatch};
use super::negotiate::negotiate;
use super::ops::Filesystem;
use super::reply::Channel;

/// The answers (negative errno or 0, and bytes) to one request: a header and what follows it. With
/// `apart` that many bytes behind the header are the arguments and the rest lies elsewhere, as in
/// io_uring. `max` bounds the bytes of an answer.
pub fn answers(
    fs: &dyn Filesystem,
    request: &[u8],
    apart: Option<usize>,
    max: usize,
) -> Vec<(i32, Vec<u8>)> {
    let Ok((header, body)) = abi::InHeader::read_from_prefix(request) else { return Vec::new() };
    let data = body.get(size_of::<abi::WriteIn>()..).unwrap_or_default();
    let body = match apart.and_then(|len| body.split_at_checked(len)) {
        Some((arguments, rest)) => Body::apart(arguments, rest),
        None => Body::joined(body),
    };
    let body_data = data.to_vec();
    let (kept, answers) = mpsc::channel();
    dispatch(fs, &header, body, || Channel::Kept(kept, body_data), max);
    answers.iter().collect()
}

/// Whether a kernel that begins with these bytes, INIT's arguments, can be served.
pub fn negotiated(fs: &dyn Filesystem, init: &[u8]) -> bool {
    let mut arguments = abi::InitIn::default();
    let known = init.len().min(size_of::<abi::InitIn>());
    arguments.as_mut_bytes()[..known].copy_from_slice(&init[..known]);
    negotiate(&arguments, fs.features(), 1 << 20, 4096).is_ok()
}
