//! The kernel's view of a directory: a mount of ext4, of ours, or any tree.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::listing::{FileInfo, View, VolumeInfo};

/// A tree that the kernel shows.
pub struct HostView {
    root: PathBuf,
}

impl HostView {
    /// The tree below a directory.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
}

/// An object: its path, and an open file if it is one.
pub struct HostNode {
    path: PathBuf,
    file: Option<File>,
}

impl HostNode {
    fn open(path: PathBuf) -> Result<Self> {
        let is_file = path.symlink_metadata()?.is_file();
        let file = if is_file { Some(File::open(&path)?) } else { None };
        Ok(Self { path, file })
    }

    fn file(&self) -> Result<&File> {
        self.file.as_ref().context("no file")
    }
}

impl View for HostView {
    type Node = HostNode;

    fn root(&self) -> Result<HostNode> {
        HostNode::open(self.root.clone())
    }

    fn info(&self, node: &HostNode) -> Result<FileInfo> {
        let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(CWD, &node.path, AtFlags::SYMLINK_NOFOLLOW, flags)?;
        let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Ok(FileInfo {
            ino: stat.stx_ino,
            mode: stat.stx_mode.into(),
            links: stat.stx_nlink,
            owner: (stat.stx_uid, stat.stx_gid),
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            block_size: stat.stx_blksize,
            atime: time(stat.stx_atime),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            btime: known.then(|| time(stat.stx_btime)),
            attributes: stat.stx_attributes.bits() & COMPARED_ATTRIBUTES,
        })
    }

    fn names(&self, dir: &HostNode) -> Result<Vec<(Vec<u8>, u64, u32)>> {
        let fd = rustix::fs::open(&dir.path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let kind = match entry.file_type() {
                    FileType::Unknown => 0,
                    kind => kind.as_raw_mode(),
                };
                names.push((name.to_vec(), entry.ino(), kind));
            }
        }
        Ok(names)
    }

    fn child(&self, dir: &HostNode, name: &[u8]) -> Result<HostNode> {
        HostNode::open(dir.path.join(OsStr::from_bytes(name)))
    }

    fn xattrs(&self, node: &HostNode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut names = vec![0; 65536];
        let len = rustix::fs::llistxattr(&node.path, &mut names[..])?;
        let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
        let mut buf = vec![0; 65536];
        names
            .map(|name| {
                let key = OsString::from_vec(name.to_vec());
                let len = rustix::fs::lgetxattr(&node.path, &key, &mut buf[..])
                    .with_context(|| format!("{key:?}"))?;
                Ok((name.to_vec(), buf[..len].to_vec()))
            })
            .collect()
    }

    fn readlink(&self, node: &HostNode) -> Result<Vec<u8>> {
        Ok(std::fs::read_link(&node.path)?.into_os_string().into_vec())
    }

    fn read(&self, node: &HostNode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = node.file()?;
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn seek(&self, node: &HostNode, offset: u64, data: bool) -> Result<Option<u64>> {
        let to = if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        match rustix::fs::seek(node.file()?, to) {
            Ok(at) => Ok(Some(at)),
            // ext4 says ENOENT where inline contents end.
            Err(Errno::NXIO | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn volume(&self) -> Result<VolumeInfo> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(VolumeInfo {
            block_size: stat.f_bsize,
            blocks: [stat.f_blocks, stat.f_bfree, stat.f_bavail],
            inodes: [stat.f_files, stat.f_ffree],
            id: stat.f_fsid,
            name_max: stat.f_namemax,
        })
    }
}

/// Compressed, immutable, append, nodump, encrypted, as `STATX_ATTR_*`.
const COMPARED_ATTRIBUTES: u64 = 0x4 | 0x10 | 0x20 | 0x40 | 0x800;
