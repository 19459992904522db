//! The view of a client, by what the volume's owner has published and by asking the owner.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cfs::Error;
use cfs::client::Client;
use cfs::id::Ino;
use cfs::local::LocalVolume;
use cfs::open::OpenOptions;

use super::engine::{info_of, mode_of, volume_of};
use super::listing::{FileInfo, View, VolumeInfo};

/// Bytes of pages that are kept: fewer than most trees have, so that pages are evicted too.
const CACHE: u64 = 8 << 20;

/// A volume as a client of its owner reads it.
pub struct ClientView {
    client: Arc<Client>,
    /// What the client reads, where that is in this process.
    _volume: Option<LocalVolume>,
}

impl ClientView {
    /// Opens an image read-only.
    pub fn open(path: &Path) -> Result<Self> {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let mut tries = 1200;
        loop {
            match LocalVolume::open(path, CACHE, &options) {
                // A mount namespace made meanwhile keeps a copy of the last mount for a moment.
                Err(Error::Busy(_)) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                opened => {
                    let volume = opened?;
                    let client = Arc::clone(volume.client());
                    return Ok(Self { client, _volume: Some(volume) });
                }
            }
        }
    }

    /// The volume that a client reads, of a running cluster.
    #[must_use]
    pub fn of(client: Arc<Client>) -> Self {
        Self { client, _volume: None }
    }
}

impl View for ClientView {
    type Node = Ino;

    fn root(&self) -> Result<Ino> {
        Ok(Ino::ROOT)
    }

    fn info(&self, node: &Ino) -> Result<FileInfo> {
        Ok(info_of(&self.client.stat(*node)?))
    }

    fn names(&self, dir: &Ino) -> Result<Vec<(Vec<u8>, u64, u32)>> {
        let mut names = Vec::new();
        let mut from = 0;
        loop {
            let (entries, end) = self.client.readdir(*dir, from)?;
            for entry in entries {
                from = entry.next;
                if entry.name != b"." && entry.name != b".." {
                    names.push((entry.name, entry.ino.0.into(), entry.kind.map_or(0, mode_of)));
                }
            }
            if end {
                return Ok(names);
            }
        }
    }

    fn child(&self, dir: &Ino, name: &[u8]) -> Result<Ino> {
        Ok(self.client.lookup(*dir, name)?.attr.ino)
    }

    fn xattrs(&self, node: &Ino) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let client = &self.client;
        let names = client.listxattr(*node)?;
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| Ok((name.to_vec(), client.getxattr(*node, name)?))).collect()
    }

    fn readlink(&self, node: &Ino) -> Result<Vec<u8>> {
        Ok(self.client.readlink(*node)?)
    }

    fn read(&self, node: &Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(self.client.file(*node).read(offset, buf)?)
    }

    fn seek(&self, node: &Ino, offset: u64, data: bool) -> Result<Option<u64>> {
        match self.client.seek(*node, offset, data) {
            Ok(at) => Ok(Some(at)),
            Err(Error::NoSuchOffset) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn volume(&self) -> Result<VolumeInfo> {
        Ok(volume_of(&self.client.statfs()?))
    }
}
