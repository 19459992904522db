//! A disk for the kernel whose changes are recorded, or fail by rules: one file in a mount of FUSE,
//! for a loop device or a mount of ours. It is served here, byte by byte as the kernel's
//! `include/uapi/linux/fuse.h` has it, so that it judges nothing by the code that it is to judge.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proxydev::layer::fault::Kind;
use proxydev::layer::{Log, Rules, What};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::kernel;

/// Bytes of the largest write.
const MAX_WRITE: usize = 1 << 20;
const ROOT: u64 = 1;
const FILE: u64 = 2;
const NAME: &[u8] = b"disk\0";

/// A file of so many bytes, kept in memory.
pub struct Disk {
    dir: PathBuf,
    image: Arc<Mutex<Vec<u8>>>,
    log: Arc<Log>,
    rules: Arc<Rules>,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Mounts on `dir` a directory with the one file.
    ///
    /// # Errors
    /// There is no FUSE here, or no right to mount.
    pub fn new(dir: &Path, image: Vec<u8>) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount("recorded", dir, "fuse", flags, Some(options.as_c_str()))
            .with_context(|| format!("{}: mounting a disk", dir.display()))?;
        let (image, log) = (Arc::new(Mutex::new(image)), Log::new());
        let rules = Rules::new();
        let server =
            Server { device, image: image.clone(), log: log.clone(), rules: rules.clone() };
        let server = std::thread::Builder::new().name("disk".into()).spawn(move || server.run())?;
        Ok(Self { dir: dir.to_owned(), image, log, rules, server: Some(server) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// What happened to it.
    #[must_use]
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// By which requests fail.
    #[must_use]
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// What it holds now.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        lock(&self.image).clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a loop device may let its file go a moment later.
        let unmounted = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
        let gone = unmounted.map_err(Into::into).and_then(|()| kernel::detach_copies(&self.dir));
        if let Err(error) = gone {
            eprintln!("{}: {error:#}", self.dir.display());
            return;
        }
        // The server ends with the last user of the file; a panic was told by itself.
        let Some(server) = self.server.take() else { return };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !server.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !server.is_finished() {
            eprintln!("{}: somebody still uses it after 20 s", self.path().display());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Server {
    device: File,
    image: Arc<Mutex<Vec<u8>>>,
    log: Arc<Log>,
    rules: Arc<Rules>,
}

/// A request of the kernel's.
struct Request<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl Request<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.body.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap_or([0; 4])))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}

type Answer = std::result::Result<Vec<u8>, Errno>;

impl Server {
    /// Serves until the mount is gone.
    fn run(mut self) {
        let mut buffer = vec![0; MAX_WRITE + 4096];
        loop {
            let len = match self.device.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => return,
                // A request was taken back.
                Err(error)
                    if matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::NOENT | Errno::INTR | Errno::AGAIN)
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    eprintln!("disk: {error}");
                    return;
                }
            };
            let head = Request { opcode: 0, unique: 0, node: 0, body: &buffer[..len] };
            let request = Request {
                opcode: head.u32(4),
                unique: head.u64(8),
                node: head.u64(16),
                body: buffer.get(40..len).unwrap_or(&[]),
            };
            // FORGET, INTERRUPT and BATCH_FORGET have no answer.
            if matches!(request.opcode, 2 | 36 | 42) {
                continue;
            }
            let (error, body) = match self.answer(&request) {
                Ok(body) => (0, body),
                Err(errno) => (-errno.raw_os_error(), Vec::new()),
            };
            let mut reply = (16 + body.len() as u32).to_le_bytes().to_vec();
            reply.extend_from_slice(&error.to_le_bytes());
            reply.extend_from_slice(&request.unique.to_le_bytes());
            reply.extend_from_slice(&body);
            if let Err(error) = self.device.write(&reply)
                && Errno::from_io_error(&error) != Some(Errno::NOENT)
            {
                eprintln!("disk: a reply: {error}");
                return;
            }
        }
    }

    fn answer(&self, request: &Request<'_>) -> Answer {
        match request.opcode {
            26 => Ok(init(request)),
            // LOOKUP
            1 if request.node == ROOT && request.body == NAME => {
                let mut out = words(&[FILE, 1, 1000, 1000, 0]);
                out.extend_from_slice(&self.attributes(FILE));
                Ok(out)
            }
            1 => Err(Errno::NOENT),
            // GETATTR, and a SETATTR that changes nothing.
            3 | 4 => {
                let mut out = words(&[1000, 0]);
                out.extend_from_slice(&self.attributes(request.node));
                Ok(out)
            }
            // OPEN with FOPEN_DIRECT_IO, and OPENDIR
            14 => Ok(words(&[0, 1])),
            27 => Ok(words(&[0, 0])),
            15 => self.read(request),
            16 => self.write(request),
            // FSYNC
            20 => {
                let submitted = self.log.now();
                self.judge(Kind::Flush, 0, 0)?;
                self.log.flushed(submitted);
                Ok(Vec::new())
            }
            // READDIR: the name is known to whoever looks for it.
            28 => Ok(Vec::new()),
            // RELEASE, RELEASEDIR, FLUSH, DESTROY
            18 | 29 | 25 | 38 => Ok(Vec::new()),
            // STATFS
            17 => Ok(vec![0; 80]),
            _ => Err(Errno::NOSYS),
        }
    }

    fn judge(&self, kind: Kind, offset: u64, len: u64) -> std::result::Result<(), Errno> {
        self.rules.judge(kind, offset, len).map_or(Ok(()), Err)
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let is_file = node == FILE;
        let size = if is_file { lock(&self.image).len() as u64 } else { 0 };
        let mode: u32 = if is_file { 0o100_600 } else { 0o040_700 };
        let mut out = words(&[node, size, size.div_ceil(512), 0, 0, 0]);
        for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    fn read(&self, request: &Request<'_>) -> Answer {
        let (offset, len) = (request.u64(8), u64::from(request.u32(16)));
        self.judge(Kind::Read, offset, len)?;
        let image = lock(&self.image);
        let start = offset.min(image.len() as u64) as usize;
        let end = (offset + len).min(image.len() as u64) as usize;
        Ok(image[start..end].to_vec())
    }

    fn write(&self, request: &Request<'_>) -> Answer {
        let (offset, len) = (request.u64(8), u64::from(request.u32(16)));
        self.judge(Kind::Write, offset, len)?;
        let data = request.body.get(40..40 + len as usize).ok_or(Errno::IO)?;
        let submitted = self.log.now();
        let mut image = lock(&self.image);
        let start = offset as usize;
        let target = image.get_mut(start..start + data.len()).ok_or(Errno::NOSPC)?;
        target.copy_from_slice(data);
        let logged = self.log.change(offset, What::Bytes(data.into()), false, submitted);
        logged.map_err(|_| Errno::NOSPC)?;
        Ok(words(&[len]))
    }
}

/// ABI 7.31 with large writes.
fn init(request: &Request<'_>) -> Vec<u8> {
    const FLAGS: u32 = 1 | 1 << 5 | 1 << 22;
    let mut out = Vec::new();
    for word in [7, 31, request.u32(8), FLAGS] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    // Requests in the background, and of them before it is congested.
    out.extend_from_slice(&(64_u32 | 48 << 16).to_le_bytes());
    for word in [MAX_WRITE as u32, 1, (MAX_WRITE / 4096) as u32] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.resize(64, 0);
    out
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
