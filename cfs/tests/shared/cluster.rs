//! OSlets in one process, and what their volumes hold.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use cfs::client::{Client, Connect};
use cfs::engine::store::{BlockSource, MemSource};
use cfs::engine::write::{Writer, WriterOptions};
use cfs::engine::{Options, Volume};
use cfs::owner::Owner;
use cfs::service::Volumes;
use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{Backing, ControlPage, OwnSegment, Ownership, Paging, Region, SegmentSpec};
use oslet::rpc::{Channel, Handler, PendingChannel, Replier, Request, Server};

struct Serve(Arc<Volumes>);

impl Handler for Serve {
    fn handle(&self, request: Request, replier: Replier) {
        self.0.handle(request, replier);
    }

    fn broken(&self, peer: ParticipantId, _: Epoch, error: oslet::Error) {
        panic!("{peer:?}: {error}");
    }
}

pub(crate) struct Way {
    pub(crate) local: Option<Arc<Owner>>,
    pub(crate) channel: Option<Arc<Channel>>,
    /// Frames to send from.
    pub(crate) arena: Option<Arc<Arena>>,
}

impl Connect for Way {
    fn local(&self, _: u64) -> Option<Arc<Owner>> {
        self.local.clone()
    }

    fn channel(&self, _: OsletId, _: Epoch) -> oslet::Result<Arc<Channel>> {
        self.channel.clone().ok_or_else(|| oslet::Error::Gone("nobody".into()))
    }

    fn arena(&self) -> Option<&Arc<Arena>> {
        self.arena.as_ref()
    }
}

/// OSlet 0 owns the volumes, OSlet 1 reads them too.
pub(crate) struct Cluster {
    pub(crate) local: Arc<Client>,
    pub(crate) remote: Arc<Client>,
    /// The same, with frames to send data from.
    pub(crate) lending: Arc<Client>,
    /// OSlet 1's ways to the volumes behind the first.
    pub(crate) others: Vec<Arc<Client>>,
    pub(crate) owner: Arc<Owner>,
    pub(crate) arena: Arc<Arena>,
    /// The segment of a third OSlet, which all have mapped.
    pub(crate) neighbour: Arc<OwnSegment>,
    pub(crate) server: Arc<Server>,
}

pub(crate) fn oslet(index: usize) -> OsletId {
    OsletId::new(index).unwrap()
}

/// Threads for a volume's metadata, and as many for its pages.
pub(crate) const WORKERS: usize = 2;

/// A cluster with one volume, of which `budget` frames at most are cached.
pub(crate) fn cluster(image: Vec<u8>, frames: usize, budget: usize) -> Cluster {
    cluster_of(vec![Arc::new(MemSource::new(image))], frames, budget)
}

/// A cluster with a volume on each of these devices.
pub(crate) fn cluster_of(
    devices: Vec<Arc<dyn BlockSource>>,
    frames: usize,
    budget: usize,
) -> Cluster {
    make(devices, frames, |arena, object, volume| {
        Owner::new(arena, object, volume, budget).unwrap()
    })
}

/// A cluster with one volume that is written; OSlet 1 may send data by reference.
pub(crate) fn writing_cluster(image: Vec<u8>, frames: usize, budget: usize) -> Cluster {
    make(vec![Arc::new(MemSource::new(image))], frames, |arena, object, volume| {
        let writer = Writer::open(Arc::new(volume), &WriterOptions::default()).unwrap();
        Owner::writable(arena, object, writer, budget).unwrap()
    })
}

fn make(
    devices: Vec<Arc<dyn BlockSource>>,
    frames: usize,
    serve: impl Fn(&Arc<Arena>, u64, Volume) -> Arc<Owner>,
) -> Cluster {
    let control = ControlPage::create(&Backing::Memfd, "shared", 3).unwrap();
    let join = |index: usize, frames: usize| {
        let spec = SegmentSpec {
            participant: ParticipantId::runtime(oslet(index)),
            epoch: Epoch(1),
            frames,
            space: 8 << 20,
            paging: Paging::default(),
        };
        let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
        let control = ControlPage::open(control.file().try_clone().unwrap()).unwrap();
        Region::new(control, own, Paging::default()).unwrap()
    };
    let (a, b, c) = (join(0, frames), join(1, 1024), join(2, 16));
    let id = |index| ParticipantId::runtime(oslet(index));
    c.map(&a.own().reader().unwrap(), id(0), Epoch(1)).unwrap();
    for region in [&a, &b] {
        region.map(&c.own().reader().unwrap(), id(2), Epoch(1)).unwrap();
    }
    let neighbour = Arc::clone(c.own());
    a.map(&b.own().reader().unwrap(), id(1), Epoch(1)).unwrap();
    b.map(&a.own().reader().unwrap(), id(0), Epoch(1)).unwrap();
    let arena = Arena::new(&a);
    let volumes = Volumes::new(WORKERS);
    for (object, device) in devices.into_iter().enumerate() {
        let volume = Volume::open(device, &Options::default()).unwrap();
        volumes.add(serve(&arena, object as u64, volume)).unwrap();
        let now = a.control().owner(object).unwrap();
        let serving = Ownership { owner: Some((oslet(0), Epoch(1))), ..Ownership::default() };
        a.control().change_owner(object, now, serving).unwrap().unwrap();
    }
    let owner = volumes.owner(0).unwrap();
    let count = volumes.all().len() as u64;
    let server = Server::new(&a, Arc::new(Serve(volumes)));
    let pending = PendingChannel::new(&b, id(0), Epoch(1)).unwrap();
    let answer = server.accept(id(1), Epoch(1), pending.offer()).unwrap();
    let channel = pending.open(answer).unwrap();
    let way = |local, channel, arena| Arc::new(Way { local, channel, arena });
    let local = Client::new(&a, 0, way(Some(Arc::clone(&owner)), None, None)).unwrap();
    let remote = |object, arena| {
        Client::new(&b, object, way(None, Some(Arc::clone(&channel)), arena)).unwrap()
    };
    let others = (1..count).map(|object| remote(object, None)).collect();
    let (remote, lending) = (remote(0, None), remote(0, Some(Arena::new(&b))));
    Cluster { local, remote, lending, others, owner, arena, neighbour, server }
}

/// These files, and two links, made into an image.
pub(crate) fn image(files: &BTreeMap<String, Vec<u8>>, options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for (name, bytes) in files {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::os::unix::fs::symlink("dir 1/file 8", tree.join("link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(200), tree.join("long link")).unwrap();
    let path = dir.path().join("image");
    let status = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .args(options)
        .arg(&path)
        .arg("64M")
        .status()
        .expect("mke2fs (package e2fsprogs) is needed");
    assert!(status.success());
    std::fs::read(path).unwrap()
}

/// Files of many sizes.
pub(crate) fn tree() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for index in 0..60usize {
        let len = index * index * 37;
        let bytes = (0..len).map(|at| (at * 7 + index) as u8).collect();
        files.insert(format!("dir {}/file {index}", index % 7), bytes);
    }
    files.insert(
        "a name of more than forty bytes, to be found among the long ones".into(),
        b"!".into(),
    );
    let mut sparse = vec![0; 300_000];
    sparse[150_000..150_010].copy_from_slice(b"0123456789");
    files.insert("sparse".into(), sparse);
    files
}
