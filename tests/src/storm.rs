//! Work that changes a mounted tree in all the ways that a journal must know.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use rustix::fs::XattrFlags;

/// Threads that work in one directory each, until dropped.
pub struct Storm {
    stop: Arc<AtomicBool>,
    /// Held for writing while nobody may work.
    pause: Arc<RwLock<()>>,
    done: Arc<AtomicU64>,
    workers: Vec<JoinHandle<io::Result<()>>>,
}

impl Storm {
    /// Starts `workers` threads below `root`. The same seed makes the same work.
    pub fn start(root: &Path, workers: u64, seed: u64) -> io::Result<Self> {
        Self::with_values(root, workers, seed, 900)
    }

    /// As [`Self::start`], with attribute values of up to so many bytes.
    pub fn with_values(root: &Path, workers: u64, seed: u64, values: u64) -> io::Result<Self> {
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(RwLock::new(())));
        let done = Arc::new(AtomicU64::new(0));
        let mut storm = Self { stop, pause, done, workers: Vec::new() };
        for number in 0..workers {
            let dir = root.join(format!("storm{number}"));
            fs::create_dir_all(&dir)?;
            let mut worker = Worker::new(dir, seed.wrapping_mul(1000).wrapping_add(number), values);
            let (stop, pause) = (storm.stop.clone(), storm.pause.clone());
            let done = storm.done.clone();
            storm.workers.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _working = pause.read().unwrap_or_else(|poisoned| poisoned.into_inner());
                    worker.step()?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(storm)
    }

    /// Runs `work` while all threads wait between two steps.
    pub fn paused<T>(&self, work: impl FnOnce() -> T) -> T {
        let _nobody = self.pause.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        work()
    }

    /// Steps done so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the work and says how it went.
    pub fn finish(mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| io::Error::other("a worker panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

struct Worker {
    dir: PathBuf,
    state: u64,
    /// Removed, but held open: the volume has orphans.
    open: Vec<File>,
    /// Bytes of the largest attribute value.
    values: u64,
}

impl Worker {
    fn new(dir: PathBuf, seed: u64, values: u64) -> Self {
        Self { dir, state: seed | 1, open: Vec::new(), values }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    fn name(&mut self) -> PathBuf {
        let number = self.random(60);
        self.dir.join(format!("{number:0width$}", width = 1 + number as usize * 2))
    }

    /// One operation. A name that is not there, or there already, or a full volume are part of it.
    fn step(&mut self) -> io::Result<()> {
        match self.operation() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.open.clear();
                fs::remove_dir_all(&self.dir)?;
                fs::create_dir(&self.dir)
            }
            Err(error) if expected(&error) => Ok(()),
            done => done,
        }
    }

    fn operation(&mut self) -> io::Result<()> {
        let (a, b) = (self.name(), self.name());
        match self.random(16) {
            0..4 => {
                let mut file = File::create(&a)?;
                let most = if self.random(4) == 0 { 200 } else { 60_000 };
                let len = self.random(most) as usize;
                // Blocks that begin with the journal's magic number must be escaped in it.
                let word: [u8; 4] = match self.random(4) {
                    0 => 0xc03b_3998_u32.to_be_bytes(),
                    other => (other as u32).to_le_bytes(),
                };
                file.write_all(&word.repeat(len / 4))?;
                if self.random(2) == 0 { file.sync_all() } else { Ok(()) }
            }
            4 => {
                let mut file = OpenOptions::new().append(true).open(&a)?;
                file.write_all(&[b'a'; 5000])?;
                file.sync_data()
            }
            5 | 6 => fs::rename(a, b),
            7 => fs::remove_file(a),
            8 => {
                let file = File::open(&a)?;
                fs::remove_file(&a)?;
                self.open.push(file);
                if self.open.len() > 6 {
                    self.open.remove(0);
                }
                Ok(())
            }
            9 => {
                let file = OpenOptions::new().write(true).open(&a)?;
                let len = self.random(80_000);
                file.set_len(len)?;
                if self.random(3) == 0 { file.sync_all() } else { Ok(()) }
            }
            10 => self.many_names(),
            11 => fs::hard_link(a, b),
            12 => {
                let len = self.random(200) as usize;
                symlink("t".repeat(1 + len), a)
            }
            13 => {
                let most = if self.random(2) == 0 { 900 } else { self.values };
                let len = self.random(most) as usize;
                let value = vec![b'v'; len];
                Ok(rustix::fs::setxattr(&a, "user.storm", &value, XattrFlags::empty())?)
            }
            14 => self.sparse(&a),
            _ => File::open(&self.dir)?.sync_all(),
        }
    }

    /// A directory that grows over many blocks, and goes.
    fn many_names(&mut self) -> io::Result<()> {
        let dir = self.dir.join("many");
        if dir.exists() && self.random(4) == 0 {
            return fs::remove_dir_all(dir);
        }
        fs::create_dir_all(&dir)?;
        for _ in 0..30 {
            let number = self.random(2000);
            File::create(dir.join(format!("{number:0100}")))?;
        }
        Ok(())
    }

    fn sparse(&mut self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        for _ in 0..8 {
            let offset = self.random(3000) * 1024;
            file.write_all_at(&[b's'; 1024], offset)?;
        }
        file.sync_all()
    }
}

fn expected(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let kinds = [
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::IsADirectory,
        Kind::InvalidInput,
        Kind::InvalidFilename,
        Kind::TooManyLinks,
    ];
    kinds.contains(&error.kind())
        || error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
}
