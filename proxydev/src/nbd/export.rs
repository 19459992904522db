//! What a server offers: devices by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

use super::wire::{ExportFlags, Mode};
use crate::{BlockDevice, Error, Result, limits};

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// The name, at most [`limits::NBD_MAX_STRING`] bytes of UTF-8 without NUL.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// The device; all connections to the export share it.
    pub device: Arc<dyn BlockDevice>,
    /// Refuse every change, whatever the device allows.
    pub read_only: bool,
}

impl Export {
    /// A device, writable if it is, under its own name.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        let name = device.name().to_owned();
        Self { name, description: String::new(), device, read_only: false }
    }

    /// What requests have to fit.
    pub fn geometry(&self, mode: Mode) -> Geometry {
        let info = self.device.info();
        let read_only = self.read_only || info.read_only;
        let mut flags = ExportFlags::HAS_FLAGS
            | ExportFlags::SEND_FLUSH
            | ExportFlags::SEND_FUA
            | ExportFlags::SEND_CACHE
            // One device serves all connections, and its flush covers every write that it has
            // completed, whoever asked for it.
            | ExportFlags::CAN_MULTI_CONN;
        flags.set(ExportFlags::SEND_DF, mode != Mode::Simple);
        flags.set(ExportFlags::READ_ONLY, read_only);
        if !read_only {
            flags |= ExportFlags::SEND_WRITE_ZEROES | ExportFlags::SEND_FAST_ZERO;
            flags.set(ExportFlags::SEND_TRIM, info.discard);
        }
        Geometry { size: info.size, block: info.block_size, best: info.optimal_size, flags }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What requests to an export have to fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes.
    pub size: u64,
    /// Requests are of whole blocks of so many bytes.
    pub block: u32,
    /// Multiples of so many bytes cost least.
    pub best: u32,
    /// What it can do.
    pub flags: ExportFlags,
}

/// Where a server looks names up, for each connection anew.
pub trait Exports: Send + Sync {
    /// The names and descriptions that everybody may see.
    fn list(&self) -> Vec<(String, String)>;

    /// The export of that name. The empty name is the default export, if there is one.
    fn open(&self, name: &str) -> Option<Export>;
}

/// A table of exports that can be changed while it is served. If there is exactly one, it is the
/// default export as well.
#[derive(Default)]
pub struct ExportTable {
    exports: RwLock<BTreeMap<String, Export>>,
}

impl ExportTable {
    /// Nothing is exported.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Exports a device from now on.
    ///
    /// # Errors
    /// When the name is taken, or is none.
    pub fn add(&self, export: Export) -> Result<()> {
        let Export { name, description, .. } = &export;
        let fits = name.len() <= limits::NBD_MAX_STRING && !name.contains('\0');
        if !fits || description.len() > limits::NBD_MAX_STRING || description.contains('\0') {
            return Err(Error::Invalid(format!(
                "{name:?}: names and descriptions of exports have no NUL and {} bytes at most",
                limits::NBD_MAX_STRING
            )));
        }
        let mut exports = self.exports.write();
        if exports.contains_key(name) {
            return Err(Error::Invalid(format!("{name:?}: an export has that name already")));
        }
        exports.insert(name.clone(), export);
        Ok(())
    }

    /// Exports it no longer to new connections; those that there are keep it.
    pub fn remove(&self, name: &str) -> Option<Export> {
        self.exports.write().remove(name)
    }
}

impl Exports for ExportTable {
    fn list(&self) -> Vec<(String, String)> {
        let exports = self.exports.read();
        exports.values().map(|e| (e.name.clone(), e.description.clone())).collect()
    }

    fn open(&self, name: &str) -> Option<Export> {
        let exports = self.exports.read();
        let only = exports.values().next().filter(|_| name.is_empty() && exports.len() == 1);
        exports.get(name).or(only).cloned()
    }
}
