//! What client and owner of a device say to each other.
//!
//! A request's kind says what to do; its inline arguments are, by kind:
//!
//! | kind | 0 | 1 | 2 | body |
//! |---|---|---|---|---|
//! | `INFO` | - | device << 32 | - | |
//! | `READ` | first byte | device << 32, bytes | a loan to end, or 0 | |
//! | `WRITE_ONE` | first byte | page reference | device << 32, fua << 31, place | |
//! | `WRITE` | first byte | device << 32, flags | a loan to end, or 0 | slices |
//! | `FLUSH` | - | device << 32 | - | |
//! | `DISCARD`, `WRITE_ZEROES` | first byte | device << 32, flags | bytes | |
//! | `RELEASE` | - | - | - | loans to end |
//!
//! A slice's *place* is its bytes << 12 and its offset in the frame. A read's reply has: the loan,
//! 0 for none; the slice's page reference; its place. Of several slices only the loan is inline,
//! the body has them.

use std::ops::Range;

use oslet::id::PageRef;
use oslet::rpc;
use rkyv::util::AlignedVec;
use rustix::io::Errno;

use crate::data::Slice;
use crate::device::DeviceInfo;
use crate::{Error, Result, limits};

/// The request kinds of this protocol, for whoever sorts a runtime's requests.
pub const KINDS: Range<u16> = 0x0100..0x0110;

pub(super) const INFO: u16 = 0x0100;
pub(super) const READ: u16 = 0x0101;
pub(super) const WRITE_ONE: u16 = 0x0102;
pub(super) const WRITE: u16 = 0x0103;
pub(super) const FLUSH: u16 = 0x0104;
pub(super) const DISCARD: u16 = 0x0105;
pub(super) const WRITE_ZEROES: u16 = 0x0106;
pub(super) const RELEASE: u16 = 0x0107;

pub(super) const FUA: u32 = 1;
pub(super) const MAY_UNMAP: u32 = 2;
pub(super) const FAST: u32 = 4;
const FLAGS: u32 = FUA | MAY_UNMAP | FAST;

/// A device's number in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceId(pub u32);

/// Device and 32 more bits as one argument.
pub(super) fn pair(device: DeviceId, low: u32) -> u64 {
    u64::from(device.0) << 32 | u64::from(low)
}

/// The inverse of [`pair`].
pub(super) fn unpair(word: u64) -> (DeviceId, u32) {
    (DeviceId((word >> 32) as u32), word as u32)
}

/// Flags, none unknown.
pub(super) fn flags(low: u32) -> Option<u32> {
    (low & !FLAGS == 0).then_some(low)
}

/// The error of a reply, none if it is none. A number that is no errno reads as EIO.
pub(super) fn errno(status: u16) -> Option<Errno> {
    match status {
        0 => None,
        1..4096 => Some(Errno::from_raw_os_error(status.into())),
        _ => Some(Errno::IO),
    }
}

/// A slice's place in its frame, below 2^25.
pub(super) fn place(slice: &Slice) -> u32 {
    u32::from(slice.len) << 12 | u32::from(slice.offset)
}

/// The slice of a page reference and a place, if there is such a slice.
pub(super) fn slice(page: u64, place: u32) -> Option<Slice> {
    let page = PageRef::from_word(page).filter(|found| found.to_word() == page)?;
    Slice::new(page, (place & 0xfff) as usize, (place >> 12) as usize)
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct WireSlice {
    page: u64,
    place: u32,
}

pub(super) fn encode_slices(slices: &[Slice]) -> Result<AlignedVec> {
    let wire: Vec<_> = slices
        .iter()
        .map(|slice| WireSlice { page: slice.page.to_word(), place: place(slice) })
        .collect();
    Ok(rpc::encode(&wire)?)
}

/// The slices of a body, each checked by itself.
pub(super) fn decode_slices(body: &[u8], peer: &str) -> Result<Vec<Slice>> {
    let wire = rpc::access::<rkyv::Archived<Vec<WireSlice>>>(body, peer)?;
    if wire.len() > limits::MAX_SLICES {
        return Err(corrupt(peer, format!("{} slices", wire.len())));
    }
    let slices = wire.iter().map(|wire| {
        let (page, place) = (wire.page.to_native(), wire.place.to_native());
        slice(page, place).ok_or_else(|| corrupt(peer, format!("slice {page:#x}, {place:#x}")))
    });
    slices.collect()
}

pub(super) fn encode_loans(loans: &[u64]) -> Result<AlignedVec> {
    Ok(rpc::encode(&loans.to_vec())?)
}

pub(super) fn decode_loans(body: &[u8], peer: &str) -> Result<Vec<u64>> {
    let wire = rpc::access::<rkyv::Archived<Vec<u64>>>(body, peer)?;
    Ok(wire.iter().map(|loan| loan.to_native()).collect())
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct WireInfo {
    size: u64,
    block_size: u32,
    optimal_size: u32,
    memory_alignment: u32,
    max_transfer: u32,
    read_only: bool,
    discard: bool,
}

pub(super) fn encode_info(info: &DeviceInfo) -> Result<AlignedVec> {
    let DeviceInfo {
        size,
        block_size,
        optimal_size,
        memory_alignment,
        max_transfer,
        read_only,
        discard,
    } = *info;
    Ok(rpc::encode(&WireInfo {
        size,
        block_size,
        optimal_size,
        memory_alignment,
        max_transfer,
        read_only,
        discard,
    })?)
}

/// The geometry in a body, if it is one that a device can have.
pub(super) fn decode_info(body: &[u8], peer: &str) -> Result<DeviceInfo> {
    let wire = rpc::access::<ArchivedWireInfo>(body, peer)?;
    let info = DeviceInfo {
        size: wire.size.to_native(),
        block_size: wire.block_size.to_native(),
        optimal_size: wire.optimal_size.to_native(),
        memory_alignment: wire.memory_alignment.to_native(),
        max_transfer: wire.max_transfer.to_native(),
        read_only: wire.read_only,
        discard: wire.discard,
    };
    let blocks = info.block_size.is_power_of_two()
        && (limits::MIN_BLOCK_SIZE..=limits::MAX_TRANSFER).contains(&info.block_size)
        && info.size.is_multiple_of(info.block_size.into());
    let transfer = (info.block_size..=limits::MAX_TRANSFER).contains(&info.max_transfer);
    let memory = info.memory_alignment.is_power_of_two();
    if !blocks || !transfer || !memory || info.optimal_size < info.block_size {
        return Err(corrupt(peer, format!("{info:?}")));
    }
    Ok(info)
}

pub(super) fn corrupt(peer: &str, what: String) -> Error {
    Error::Region(oslet::Error::Corrupt { peer: peer.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use oslet::region::layout::LAYOUT_VERSION;
    use oslet::rpc::golden::Golden;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_slice_survives_its_words(page: u64, place: u32) {
            if let Some(found) = slice(page, place) {
                prop_assert_eq!((found.page.to_word(), super::place(&found)), (page, place));
                prop_assert!(usize::from(found.offset) + usize::from(found.len) <= 4096);
            }
        }

        #[test]
        fn slices_survive_their_body(
            parts in proptest::collection::vec((1u64..1 << 60, 0usize..4096, 1usize..4097), 0..514)
        ) {
            let slices: Vec<_> = parts
                .into_iter()
                .filter_map(|(page, offset, len)| {
                    Slice::new(PageRef::from_word(page)?, offset, len.min(4096 - offset))
                })
                .collect();
            let body = encode_slices(&slices).unwrap();
            prop_assert!(body.len() <= oslet::limits::MAX_BODY);
            prop_assert_eq!(decode_slices(&body, "o1").unwrap(), slices);
        }

        #[test]
        fn noise_is_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut body = AlignedVec::<16>::new();
            body.extend_from_slice(&bytes);
            // Whatever the answer, it is one.
            let _ = (decode_slices(&body, "o1"), decode_loans(&body, "o1"));
            let _ = decode_info(&body, "o1");
        }
    }

    #[test]
    fn a_geometry_that_no_device_has_is_refused() {
        let good = DeviceInfo {
            size: 1 << 20,
            block_size: 512,
            optimal_size: 4096,
            memory_alignment: 512,
            max_transfer: 1 << 20,
            read_only: true,
            discard: false,
        };
        let sent = |info: &DeviceInfo| decode_info(&encode_info(info).unwrap(), "o1");
        assert_eq!(sent(&good).unwrap(), good);
        for bad in [
            DeviceInfo { block_size: 0, ..good },
            DeviceInfo { block_size: 513, ..good },
            DeviceInfo { size: 1000, ..good },
            DeviceInfo { max_transfer: u32::MAX, ..good },
            DeviceInfo { memory_alignment: 0, ..good },
            DeviceInfo { optimal_size: 0, ..good },
        ] {
            assert!(sent(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_are_as_recorded() {
        let mut golden = Golden::new(LAYOUT_VERSION, &[include_str!("wire.rs")]);
        let slices = [(1, 2, 3), (4, 5, 6)].map(|(page, offset, len)| {
            Slice::new(PageRef::from_word(page).unwrap(), offset, len).unwrap()
        });
        golden.body("WireSlice", &encode_slices(&slices).unwrap());
        golden.body("loans", &encode_loans(&[1, 2]).unwrap());
        let info = DeviceInfo {
            size: 1,
            block_size: 2,
            optimal_size: 3,
            memory_alignment: 4,
            max_transfer: 5,
            read_only: true,
            discard: false,
        };
        golden.body("WireInfo", &encode_info(&info).unwrap());
        golden.check("proxydev/testdata/wire.txt", include_str!("../../testdata/wire.txt"));
    }

    #[test]
    fn any_status_is_an_answer() {
        assert_eq!(errno(0), None);
        assert_eq!(errno(5), Some(Errno::IO));
        assert_eq!(errno(28), Some(Errno::NOSPC));
        (1..=u16::MAX).for_each(|status| assert!(errno(status).is_some()));
    }

    #[test]
    fn the_longest_body_fits() {
        let page = PageRef::from_word(1).unwrap();
        let slices = vec![Slice::new(page, 0, 4096).unwrap(); limits::MAX_SLICES];
        assert!(encode_slices(&slices).unwrap().len() <= oslet::limits::MAX_BODY);
    }
}
