//! What an image that is no ext filesystem looks like, for the error message.

use crate::engine::store::BlockSource;

/// Offset, bytes, name.
const SIGNS: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "it looks like an XFS filesystem"),
    (0x1_0040, b"_BHRfS_M", "it looks like a btrfs filesystem"),
    (0, b"hsqs", "it looks like a squashfs image"),
    (0, b"QFI\xfb", "it looks like a qcow2 image: convert it with qemu-img convert -O raw"),
    (0, b"LUKS\xba\xbe", "it looks like a LUKS volume: open it with cryptsetup first"),
    (512, b"LABELONE", "it looks like an LVM physical volume"),
    (512, b"EFI PART", "it looks like a partitioned disk: name a partition"),
    (0x8001, b"CD001", "it looks like an ISO 9660 image"),
    (1024, b"\xe2\xe1\xf5\xe0", "it looks like an EROFS image"),
    (4086, b"SWAPSPACE2", "it looks like swap space"),
    (3, b"NTFS    ", "it looks like an NTFS filesystem"),
    (0, b"\x1f\x8b", "it looks like gzip data: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "it looks like zstd data: unpack it first"),
    (0, b"\xfd7zXZ\0", "it looks like xz data: unpack it first"),
    (510, b"\x55\xaa", "it looks like a partitioned disk or a FAT filesystem"),
];

/// The first sign that is there.
pub(super) fn guess(source: &dyn BlockSource) -> Option<&'static str> {
    let begins = |offset: u64, sign: &[u8]| {
        let mut bytes = vec![0; sign.len()];
        source.read_at(offset, &mut bytes).is_ok() && bytes == sign
    };
    SIGNS.iter().find(|(offset, sign, _)| begins(*offset, sign)).map(|(_, _, kind)| *kind).or_else(
        || {
            let mut bytes = vec![0; source.size().min(64 << 10) as usize];
            let read = source.read_at(0, &mut bytes).is_ok();
            (read && bytes.iter().all(|byte| *byte == 0)).then_some("it begins with zeros only")
        },
    )
}
