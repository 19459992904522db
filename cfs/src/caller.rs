//! In whose name an operation is done.

/// Who asks for an operation: whose files the new ones are, and whose rights count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether the rights of files and reserved blocks do not hold the caller back.
    pub privileged: bool,
}

impl Caller {
    /// The superuser, and the volume's own needs.
    pub const ROOT: Self = Self { uid: 0, gid: 0, privileged: true };
}
