//! POSIX ACLs: on disk without ids where none are needed, in the kernel's attribute always with.

pub mod edit;

/// Version of the format on disk.
const DISK_VERSION: u32 = 1;
/// Version of the format that getxattr(2) returns (`linux/posix_acl_xattr.h`).
const ATTRIBUTE_VERSION: u32 = 2;
const UNDEFINED_ID: u32 = u32::MAX;

/// The value of `system.posix_acl_access` or `_default` as getxattr(2) returns it, from its bytes
/// on disk. The error says what is wrong.
pub fn to_attribute(disk: &[u8]) -> Result<Vec<u8>, String> {
    let (version, mut rest) = take(disk)?;
    if u32::from_le_bytes(version) != DISK_VERSION {
        return Err(format!("acl of version {}", u32::from_le_bytes(version)));
    }
    let mut value = Vec::with_capacity(disk.len() * 2);
    value.extend(ATTRIBUTE_VERSION.to_le_bytes());
    while !rest.is_empty() {
        let (entry, after): ([u8; 4], _) = take(rest)?;
        rest = after;
        value.extend(entry);
        match u16::from_le_bytes([entry[0], entry[1]]) {
            // The owner, the owning group, the mask, others.
            0x01 | 0x04 | 0x10 | 0x20 => value.extend(UNDEFINED_ID.to_le_bytes()),
            // A named user, a named group.
            0x02 | 0x08 => {
                let (id, after): ([u8; 4], _) = take(rest)?;
                rest = after;
                value.extend(id);
            }
            tag => return Err(format!("acl entry of type {tag:#x}")),
        }
    }
    Ok(value)
}

fn take(bytes: &[u8]) -> Result<([u8; 4], &[u8]), String> {
    let (word, rest) = bytes.split_first_chunk().ok_or("acl that ends in an entry")?;
    Ok((*word, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_filled_in() {
        let disk = [
            &1u32.to_le_bytes()[..],
            &[1, 0, 7, 0],
            &[2, 0, 5, 0, 0xe8, 3, 0, 0],
            &[0x20, 0, 4, 0],
        ];
        let value = [
            &2u32.to_le_bytes()[..],
            &[1, 0, 7, 0, 255, 255, 255, 255],
            &[2, 0, 5, 0, 0xe8, 3, 0, 0],
            &[0x20, 0, 4, 0, 255, 255, 255, 255],
        ];
        assert_eq!(to_attribute(&disk.concat()).unwrap(), value.concat());
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for disk in [&[][..], &[2, 0, 0, 0], &[1, 0, 0, 0, 1, 0], &[1, 0, 0, 0, 2, 0, 7, 0, 1]] {
            assert!(to_attribute(disk).is_err(), "{disk:?}");
        }
        assert!(to_attribute(&[1, 0, 0, 0, 3, 0, 7, 0]).is_err(), "an unknown type");
    }
}
