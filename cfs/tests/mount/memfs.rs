//! A filesystem in memory whose every byte can be told in advance.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cfs::mount::{
    Agreed, Attr, Attributes, Data, DirEntry, Directory, DirectoryPlus, Done, Entry, Features,
    Filesystem, Handle, Lookup, NodeId, Piece, Position, ReadRange, Reply, Request, StatFs,
    Statistics, Statx, StatxAttributes, Time, Value, Waits, Whence,
};
use parking_lot::{Condvar, Mutex};
use rustix::fs::FileType;
use rustix::io::Errno;

pub(crate) struct Node {
    pub(crate) attr: Attr,
    pub(crate) content: Content,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) enum Content {
    Dir(BTreeMap<Vec<u8>, u64>),
    Link(Vec<u8>),
    Bytes(Vec<u8>),
    /// [`pattern`], with holes wherever `data` has no range.
    Pattern {
        data: Vec<(u64, u64)>,
    },
    /// Answered only when interrupted or when the server dies.
    Never,
    /// Answered by another thread.
    Later,
    /// The method panics.
    Panics,
    Special,
}

/// The byte at an offset of a pattern file.
pub(crate) fn pattern(offset: u64) -> u8 {
    let word = (offset / 8).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes()[(offset % 8) as usize]
}

pub(crate) struct MemFs {
    pub(crate) nodes: Mutex<HashMap<u64, Node>>,
    pub(crate) ttl: Duration,
    never: Mutex<HashMap<u64, Reply<Data>>>,
    never_changed: Condvar,
    pub(crate) lookups: AtomicU64,
    pub(crate) forgotten: AtomicU64,
    pub(crate) getattrs: AtomicU64,
    /// The CPUs that they were served on.
    pub(crate) served_on: Mutex<Vec<usize>>,
    /// Closing is told, and how often it was.
    pub(crate) wants_flush: bool,
    pub(crate) flushes: AtomicU64,
    /// Done between the kernel's offer and the answer to it.
    pub(crate) at_init: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub(crate) destroyed: AtomicU64,
}

pub(crate) const STATFS: StatFs = StatFs {
    blocks: 1000,
    bfree: 600,
    bavail: 500,
    files: 70,
    ffree: 30,
    bsize: 4096,
    frsize: 1024,
    namelen: 255,
};

impl MemFs {
    pub(crate) fn new(ttl: Duration) -> Self {
        let mut fs = Self {
            nodes: Mutex::default(),
            ttl,
            never: Mutex::default(),
            never_changed: Condvar::new(),
            lookups: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            getattrs: AtomicU64::new(0),
            served_on: Mutex::default(),
            wants_flush: false,
            flushes: AtomicU64::new(0),
            at_init: Mutex::default(),
            destroyed: AtomicU64::new(0),
        };
        fs.insert(1, 0o40755, Content::Dir(BTreeMap::new()));
        fs.fill();
        fs
    }

    fn fill(&mut self) {
        self.add(1, b"small", 0o100_644, Content::Bytes(b"hello\n".to_vec()));
        let whole = Content::Pattern { data: vec![(0, (8 << 20) + 123)] };
        self.add(1, b"large", 0o100_600, whole);
        let holes = Content::Pattern { data: vec![(65_536, 4096), (1 << 30, 10)] };
        self.add(1, b"sparse", 0o100_444, holes);
        self.add(1, b"empty", 0o100_640, Content::Bytes(Vec::new()));
        self.add(1, b"link", 0o120_777, Content::Link(b"small".to_vec()));
        self.add(1, b"longlink", 0o120_777, Content::Link(vec![b'l'; 4000]));
        self.add(1, b"never", 0o100_644, Content::Never);
        self.add(1, b"later", 0o100_644, Content::Later);
        self.add(1, b"panics", 0o100_644, Content::Panics);
        self.add(1, b"fifo", 0o010_644, Content::Special);
        let device = self.add(1, b"device", 0o020_600, Content::Special);
        self.nodes.get_mut().get_mut(&device).unwrap().attr.rdev = (259, 70_000);
        self.add(1, b"\xff\xfe not utf-8", 0o100_644, Content::Bytes(vec![1]));
        self.add(1, &[b'n'; 255], 0o100_644, Content::Bytes(vec![2]));
        let program = std::fs::read("/bin/cat").unwrap();
        self.add(1, b"cat", 0o100_755, Content::Bytes(program));
        let dir = self.add(1, b"dir", 0o040_711, Content::Dir(BTreeMap::new()));
        for n in 0..3000 {
            let name = format!("file-{n:04}-{}", "x".repeat(n % 60));
            self.add(dir, name.as_bytes(), 0o100_644, Content::Bytes(vec![b'a'; n]));
        }
        let nodes = self.nodes.get_mut();
        let large = nodes[&1].child(b"large").unwrap();
        let xattrs = &mut nodes.get_mut(&large).unwrap().xattrs;
        xattrs.insert(b"user.one".to_vec(), b"value".to_vec());
        xattrs.insert(b"user.big".to_vec(), vec![7; 60_000]);
        xattrs.insert(b"user.empty".to_vec(), Vec::new());
    }

    pub(crate) fn add(&mut self, parent: u64, name: &[u8], mode: u32, content: Content) -> u64 {
        let ino = 10 + self.nodes.get_mut().len() as u64;
        self.insert(ino, mode, content);
        let parent = self.nodes.get_mut().get_mut(&parent).unwrap();
        let Content::Dir(names) = &mut parent.content else { panic!("not a directory") };
        names.insert(name.to_vec(), ino);
        if mode & 0o170_000 == 0o040_000 {
            parent.attr.nlink += 1;
        }
        ino
    }

    fn insert(&mut self, ino: u64, mode: u32, content: Content) {
        let size = match &content {
            Content::Bytes(bytes) | Content::Link(bytes) => bytes.len() as u64,
            Content::Pattern { data } => data.iter().map(|(start, len)| start + len).max().unwrap(),
            Content::Never | Content::Later | Content::Panics => 100_000,
            Content::Dir(_) => 4096,
            Content::Special => 0,
        };
        let time = |secs| Time { secs, nanos: 123_456_789 };
        let caller = rustix::process::geteuid().as_raw();
        let attr = Attr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: time(1_000_000_000 + ino as i64),
            mtime: time(-5),
            ctime: time(5_000_000_000),
            mode,
            nlink: 1 + u32::from(mode & 0o170_000 == 0o040_000),
            // An ordinary user who runs these tests must be able to read the files.
            uid: if caller == 0 { 1000 + ino as u32 % 7 } else { caller },
            gid: 2000,
            rdev: (0, 0),
            blksize: 4096,
        };
        self.nodes.get_mut().insert(ino, Node { attr, content, xattrs: BTreeMap::new() });
    }

    /// Waits until so many requests are held.
    pub(crate) fn wait_for_held(&self, count: usize) {
        let mut never = self.never.lock();
        while never.len() != count {
            let timed_out =
                self.never_changed.wait_for(&mut never, Duration::from_secs(20)).timed_out();
            assert!(!timed_out, "{} requests held, not {count}", never.len());
        }
    }

    fn hold(&self, request: &Request, reply: Reply<Data>) {
        self.never.lock().insert(request.unique, reply);
        self.never_changed.notify_all();
    }

    /// Forgets to answer all held requests.
    pub(crate) fn drop_held(&self) {
        self.never.lock().clear();
        self.never_changed.notify_all();
    }

    fn entry(&self, node: &Node) -> Entry {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        Entry {
            node: NodeId(node.attr.ino),
            generation: 1,
            attr: node.attr,
            entry_ttl: self.ttl,
            attr_ttl: self.ttl,
        }
    }

    /// Names from a position on, `.` and `..` included.
    fn list(nodes: &HashMap<u64, Node>, node: NodeId, from: u64) -> Vec<(u64, u64, Vec<u8>)> {
        let Content::Dir(names) = &nodes[&node.0].content else { panic!("not a directory") };
        let dots = [(b".".to_vec(), node.0), (b"..".to_vec(), 1)];
        let names = names.iter().map(|(name, ino)| (name.clone(), *ino));
        let all = dots.into_iter().chain(names).enumerate();
        all.skip(from as usize).map(|(at, (name, ino))| (at as u64 + 1, ino, name)).collect()
    }
}

impl Node {
    pub(crate) fn child(&self, name: &[u8]) -> Option<u64> {
        match &self.content {
            Content::Dir(names) => names.get(name).copied(),
            _ => None,
        }
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.attr.mode)
    }
}

impl Filesystem for MemFs {
    fn features(&self) -> Features {
        Features { readdirplus: true, posix_acl: true, ..Features::default() }
    }

    fn init(&self, agreed: &Agreed, _: &Arc<Waits>) {
        assert!(agreed.max_read >= 65_536 && agreed.kernel_minor >= 31);
        if let Some(at_init) = self.at_init.lock().take() {
            at_init();
        }
    }

    fn destroy(&self) {
        self.destroyed.fetch_add(1, Ordering::Relaxed);
    }

    fn lookup(&self, _: &Request, parent: NodeId, name: &[u8], reply: Reply<Lookup>) {
        let nodes = self.nodes.lock();
        match nodes[&parent.0].child(name) {
            Some(ino) => reply.entry(&self.entry(&nodes[&ino])),
            None => reply.absent(self.ttl),
        }
    }

    fn forget(&self, _: NodeId, count: u64) {
        self.forgotten.fetch_add(count, Ordering::Relaxed);
    }

    fn getattr(&self, _: &Request, node: NodeId, reply: Reply<Attributes>) {
        self.getattrs.fetch_add(1, Ordering::Relaxed);
        self.served_on.lock().push(rustix::thread::sched_getcpu());
        match self.nodes.lock().get(&node.0) {
            Some(node) => reply.attributes(&node.attr, self.ttl),
            None => reply.error(Errno::STALE),
        }
    }

    fn flush(&self, _: &Request, _: NodeId, _: Handle, reply: Reply<Done>) {
        if !self.wants_flush {
            return reply.unsupported();
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        reply.done();
    }

    fn statx(&self, _: &Request, node: NodeId, reply: Reply<StatxAttributes>) {
        let attr = self.nodes.lock()[&node.0].attr;
        let btime = Some(Time { secs: 77, nanos: 88 });
        reply.attributes(&Statx { attr, btime, ..Default::default() }, self.ttl);
    }

    fn readlink(&self, request: &Request, node: NodeId, reply: Reply<Data>) {
        match &self.nodes.lock()[&node.0].content {
            Content::Never => self.hold(request, reply),
            Content::Link(target) => reply.data(&[Piece::Bytes(target)]),
            _ => reply.error(Errno::INVAL),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: NodeId,
        _: Handle,
        range: ReadRange,
        reply: Reply<Data>,
    ) {
        let nodes = self.nodes.lock();
        let node = &nodes[&node.0];
        let end = node.attr.size.min(range.offset + u64::from(range.size));
        let start = range.offset.min(end);
        match &node.content {
            Content::Bytes(bytes) => {
                reply.data(&[Piece::Bytes(&bytes[start as usize..end as usize])]);
            }
            Content::Pattern { data } => {
                let made = pieces(data, start, end);
                drop(nodes);
                let pieces: Vec<_> = made
                    .iter()
                    .map(|(len, bytes)| match bytes {
                        Some(bytes) => Piece::Bytes(bytes),
                        None => Piece::Zeros(*len),
                    })
                    .collect();
                reply.data(&pieces);
            }
            Content::Never => self.hold(request, reply),
            Content::Later => {
                drop(nodes);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    let bytes: Vec<u8> = (start..end).map(pattern).collect();
                    reply.data(&[Piece::Bytes(&bytes)]);
                });
            }
            Content::Panics => {
                drop(nodes);
                panic!("this file's reading panics");
            }
            _ => reply.error(Errno::ISDIR),
        }
    }

    fn readdir(&self, _: &Request, node: NodeId, _: Handle, from: u64, reply: Reply<Directory>) {
        let nodes = self.nodes.lock();
        let mut listing = reply.listing();
        for (next, ino, name) in Self::list(&nodes, node, from) {
            let kind = nodes[&ino].kind();
            if !listing.push(&DirEntry { ino, next, kind, name: &name }) {
                break;
            }
        }
        listing.finish();
    }

    fn readdirplus(
        &self,
        _: &Request,
        node: NodeId,
        _: Handle,
        from: u64,
        reply: Reply<DirectoryPlus>,
    ) {
        let nodes = self.nodes.lock();
        let mut listing = reply.listing();
        for (next, ino, name) in Self::list(&nodes, node, from) {
            let kind = nodes[&ino].kind();
            let entry = self.entry(&nodes[&ino]);
            let looked_up = Some(&entry).filter(|_| name != b"." && name != b"..");
            if !listing.push(&DirEntry { ino, next, kind, name: &name }, looked_up) {
                break;
            }
        }
        listing.finish();
    }

    fn getxattr(&self, _: &Request, node: NodeId, name: &[u8], reply: Reply<Value>) {
        match self.nodes.lock()[&node.0].xattrs.get(name) {
            Some(value) => reply.bytes(value),
            None => reply.error(Errno::NODATA),
        }
    }

    fn listxattr(&self, _: &Request, node: NodeId, reply: Reply<Value>) {
        let nodes = self.nodes.lock();
        let names: Vec<_> = nodes[&node.0].xattrs.keys().flat_map(|n| [&n[..], b"\0"]).collect();
        reply.bytes(&names.concat());
    }

    fn statfs(&self, _: &Request, _: NodeId, reply: Reply<Statistics>) {
        reply.statistics(&STATFS);
    }

    fn lseek(
        &self,
        _: &Request,
        node: NodeId,
        _: Handle,
        offset: u64,
        whence: Whence,
        reply: Reply<Position>,
    ) {
        let nodes = self.nodes.lock();
        let node = &nodes[&node.0];
        let Content::Pattern { data } = &node.content else { return reply.unsupported() };
        if offset >= node.attr.size {
            return reply.error(Errno::NXIO);
        }
        let inside = data.iter().find(|(start, len)| (*start..start + len).contains(&offset));
        let next = data.iter().map(|(start, _)| *start).find(|start| *start > offset);
        match (whence, inside) {
            (Whence::Data, Some(_)) | (Whence::Hole, None) => reply.position(offset),
            (Whence::Data, None) => reply.position(next.unwrap()),
            (Whence::Hole, Some((start, len))) => reply.position(start + len),
        }
    }

    fn fsync(&self, _: &Request, _: NodeId, _: Handle, _: bool, reply: Reply<Done>) {
        reply.done();
    }

    fn interrupt(&self, unique: u64) {
        if let Some(reply) = self.never.lock().remove(&unique) {
            reply.error(Errno::INTR);
        }
        self.never_changed.notify_all();
    }
}

/// Lengths, and the bytes of those that are no holes, in pages as a cache has them.
fn pieces(data: &[(u64, u64)], start: u64, end: u64) -> Vec<(usize, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut at = start;
    while at < end {
        let page_end = ((at / 4096 + 1) * 4096).min(end);
        let has_data =
            |at: u64| data.iter().any(|(start, len)| (*start..start + len).contains(&at));
        let bytes = (has_data(at) || has_data(page_end - 1))
            .then(|| (at..page_end).map(|at| if has_data(at) { pattern(at) } else { 0 }).collect());
        all.push(((page_end - at) as usize, bytes));
        at = page_end;
    }
    all
}
