//! FUSE mounts: the door to the filesystem for every program that does not use the native
//! interface.
//!
//! A [`Session`] serves one connection: it takes requests from the kernel, calls a [`Filesystem`],
//! and hands the answers back. [`mountpoint`] makes and ends the mounts themselves; that may happen
//! in another process and mount namespace than the serving.
//!
//! # Two transports behind one trait
//!
//! What a request costs is decided by where it is served: on the caller's own CPU it is a few times
//! cheaper than across CPUs. FUSE over io_uring (Linux 6.14) keeps a queue for each CPU and gives a
//! request to the queue of its own, so one bound thread a queue serves it there. Where the kernel
//! does not have it switched on, threads read /dev/fuse, and any of them may get any request: they
//! go where their callers run.
//!
//! The transports are our own, over the `io-uring` crate. `fuser` has no io_uring transport and
//! ends at ABI 7.40; `fractal-fuse` has nothing else, and brings a runtime with it. Neither sends
//! data from memory of which there may be no Rust reference: an answer here is a list of pieces
//! ([`Piece`]), copied once, by the kernel or into its buffer.
//!
//! io_uring is never switched on here: that is the machine's administrator's choice.
//! [`Session::transport`] says which transport is used, why, and how to have the better one.
//!
//! # Rules for a filesystem
//!
//! - Answering is an obligation: [`Reply`] is consumed by its answer, and one dropped answers EIO.
//! - A method that blocks holds up its CPU's requests: what may wait is given to [`Waits`].
//! - Nothing in `/proc` of a caller is read where requests are served: execve(2) holds locks of its
//!   process while it waits for the answer to FLUSH.
//! - Notifications ([`Notifier`]) may wait until the kernel has had other requests answered: never
//!   send them from a thread that answers requests.
//! - Whoever holds a descriptor of the connection keeps it alive after the server's death, and its
//!   callers unkillable: the process that mounts closes its copy, and a fence aborts the connection
//!   ([`oslet::sys::fusectl::abort`]).

mod abi;
mod dev;
mod dispatch;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod mountpoint;
mod negotiate;
mod notify;
mod ops;
mod place;
mod reply;
mod session;
mod uring;
mod volume;
mod waits;

pub use notify::{Invalidate, Notifier};
pub use ops::{
    Agreed, Allocation, Attr, Changes, CopyRange, DirEntry, Entry, Features, FileFlags, Filesystem,
    Handle, NewFlags, NewNode, NodeId, Opening, ReadRange, RenameFlags, Request, SetTime, StatFs,
    Statx, Time, TrimRange, Whence, WriteRange, XattrFlags,
};
pub use reply::{
    Attributes, Controlled, Created, Data, Directory, DirectoryPlus, Done, FlagsReply, Listing,
    Lookup, OpenCache, Opened, Piece, Position, Reply, Statistics, StatxAttributes, Trimmed, Value,
    Written,
};
pub use session::{Choice, Config, Session, Transport};
pub use volume::{Sharing, Times, VolumeFs};
pub use waits::{Held, Waits};
