//! One thread that serves queues of a FUSE connection over io_uring.
//!
//! Protocol (`fs/fuse/dev_uring.c`, documentation `filesystems/fuse/fuse-io-uring.rst`): each
//! entry of a queue is registered with two buffers, headers and payload. A completion says that a
//! request has been copied there; `COMMIT_AND_FETCH` hands the answer back in the same buffers and
//! asks for the next request.
//!
//! Who may touch an entry's buffers: the kernel from the submission of `REGISTER` or
//! `COMMIT_AND_FETCH` to its completion, and then the one [`Slot`] made from that completion, until
//! it commits. The kernel copies only in the context of the submitting thread, so once that thread
//! has been joined nothing is written any more, and only then is the memory unmapped.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle, ThreadId};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::CpuSet;

use crate::{Error, Result};

/// Bytes of the kernel's header and of an operation's fixed arguments.
pub const HEADER_LEN: usize = 128;
/// Queues of one connection, entries of one queue, bytes of one payload: bounds on memory.
const MAX_ENTRIES: usize = 16384;
const MAX_PAYLOAD: usize = 16 << 20;

const CMD_REGISTER: u32 = 1;
const CMD_COMMIT_AND_FETCH: u32 = 2;

// Places in an entry's first page. The kernel's part is `struct fuse_uring_req_header`: header,
// arguments, then flags, commit id (u64), payload size (u32).
const OP_IN: usize = HEADER_LEN;
const COMMIT_ID: usize = 2 * HEADER_LEN + 8;
const PAYLOAD_SIZE: usize = 2 * HEADER_LEN + 16;
const KERNEL_HEADER_LEN: usize = 2 * HEADER_LEN + 32;
/// Ours: the two vectors that `REGISTER` names.
const VECTORS: usize = 512;
const HEADER_PAGE: usize = 4096;

const _: () = {
    assert!(KERNEL_HEADER_LEN <= VECTORS);
    assert!(VECTORS + 2 * size_of::<libc::iovec>() <= HEADER_PAGE);
    assert!(size_of::<Entry128>() == 128);
};

/// The completion of the poll on the wake-up descriptor.
const WAKE: u64 = u64::MAX;

/// What one thread serves.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// The thread's name.
    pub name: String,
    /// The CPU it is bound to.
    pub cpu: Option<usize>,
    /// Queues, which are CPU numbers.
    pub queues: Vec<u16>,
    /// Requests that one queue can have in hand at a time.
    pub entries_per_queue: usize,
    /// Bytes of a payload: at least the connection's largest read and write, and 8192.
    pub payload_len: usize,
}

/// The thread; it waits for [`Self::register`], and then for [`Self::start`].
pub struct RingThread {
    /// Kept until the thread has been joined (see the module's text), else leaked.
    shared: ManuallyDrop<Arc<Shared>>,
    go: Option<mpsc::Sender<()>>,
    report: Mutex<mpsc::Receiver<io::Result<()>>>,
    thread: JoinHandle<io::Result<()>>,
}

impl RingThread {
    /// Makes ring, memory and thread, and returns when the thread is bound and its ring is there;
    /// nothing is registered yet. `handler` is called on the thread with each request.
    pub fn spawn(
        config: RingConfig,
        device: Arc<OwnedFd>,
        handler: impl FnMut(Slot) + Send + 'static,
    ) -> Result<Self> {
        let what = config.name.clone();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::io(format!("{what}: eventfd")))?;
        let memory =
            Memory::map(&config).map_err(Error::io(format!("{what}: memory of io_uring queue")))?;
        let shared = Arc::new(Shared {
            memory,
            wake,
            finished: Mutex::new(Vec::new()),
            thread: OnceLock::new(),
            stopping: AtomicBool::new(false),
        });
        let (go, gate) = mpsc::channel();
        let (reporter, report) = mpsc::channel();
        let in_thread = shared.clone();
        let thread = thread::Builder::new()
            .name(what.clone())
            .spawn(move || {
                let _ = in_thread.thread.set(thread::current().id());
                run(Ring::new(&config, device, &in_thread), &gate, &reporter, handler)
            })
            .map_err(Error::io(format!("{what}: thread")))?;
        let (shared, report) = (ManuallyDrop::new(shared), Mutex::new(report));
        let ring = Self { shared, go: Some(go), report, thread };
        match ring.reported() {
            Ok(()) => Ok(ring),
            Err(error) => {
                let _ = ring.join();
                Err(Error::io(format!("{what}: io_uring"))(error))
            }
        }
    }

    /// Registers the entries: the connection must have been initialised. EOPNOTSUPP: the kernel
    /// has not agreed to io_uring on this connection, and has none of them.
    pub fn register(&self) -> io::Result<()> {
        self.start();
        self.reported()
    }

    fn reported(&self) -> io::Result<()> {
        let report = self.report.lock().recv();
        report.unwrap_or_else(|_| Err(io::Error::other("the thread has ended")))
    }

    /// Serves, once it has registered.
    pub fn start(&self) {
        if let Some(go) = &self.go {
            // A thread that has ended says why in `join`.
            let _ = go.send(());
        }
    }

    /// Ends the thread from anywhere.
    pub fn stopper(&self) -> RingStopper {
        RingStopper(Arc::clone(&self.shared))
    }

    /// Waits for its end (stop it first, or unmount) and frees the buffers. An error is one that
    /// ended the service while the connection was alive.
    pub fn join(mut self) -> io::Result<()> {
        drop(self.go.take());
        let result =
            self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        drop(ManuallyDrop::into_inner(self.shared));
        result
    }
}

/// What the thread does. A sender that is dropped means that this ring is not wanted after all.
fn run(
    ring: io::Result<Ring>,
    gate: &mpsc::Receiver<()>,
    reporter: &mpsc::Sender<io::Result<()>>,
    handler: impl FnMut(Slot),
) -> io::Result<()> {
    // Whoever asked waits for the report.
    let report = |result| reporter.send(result).is_ok();
    let mut ring = match ring {
        Ok(ring) => ring,
        Err(error) => {
            report(Err(error));
            return Ok(());
        }
    };
    report(Ok(()));
    if gate.recv().is_err() {
        return Ok(());
    }
    let registered = ring.register_all();
    let refused = registered.is_err();
    report(registered);
    if refused || gate.recv().is_err() { Ok(()) } else { ring.serve(handler) }
}

/// Asks a [`RingThread`] to end.
pub struct RingStopper(Arc<Shared>);

impl RingStopper {
    /// It ends after what it is doing; requests in hand fail when the connection ends.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// A request in an entry's buffers. It goes back to the kernel by [`Self::commit`], from any
/// thread; dropped unanswered it is answered with EIO.
pub struct Slot {
    shared: Arc<Shared>,
    index: u32,
    committed: bool,
}

impl Slot {
    /// The request's header.
    pub fn header(&self) -> [u8; HEADER_LEN] {
        self.read(0)
    }

    /// The operation's fixed arguments; what the operation does not use is garbage.
    pub fn arguments(&self) -> [u8; HEADER_LEN] {
        self.read(OP_IN)
    }

    /// The rest of the request: names, data.
    pub fn payload(&self) -> &[u8] {
        let len = u32::from_ne_bytes(self.read(PAYLOAD_SIZE)) as usize;
        let memory = &self.shared.memory;
        let len = len.min(memory.payload_len);
        // SAFETY: the slot owns the entry's buffers (module text), the pages were mapped readable
        // and zeroed, and the length is within the payload.
        unsafe { std::slice::from_raw_parts(memory.payload(self.index).as_ptr(), len) }
    }

    /// The whole payload buffer, for the answer.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let memory = &self.shared.memory;
        let payload = memory.payload(self.index).as_ptr();
        // SAFETY: the slot owns the entry's buffers (module text) and is borrowed mutably; the
        // pages were mapped writable and zeroed.
        unsafe { std::slice::from_raw_parts_mut(payload, memory.payload_len) }
    }

    /// Answers with a header (`struct fuse_out_header`) and that many bytes of the payload.
    pub fn commit(mut self, header: &[u8; 16], payload_len: usize) {
        self.finish(header, payload_len.min(self.shared.memory.payload_len));
    }

    fn finish(&mut self, header: &[u8; 16], payload_len: usize) {
        self.write(0, header);
        self.write(PAYLOAD_SIZE, &(payload_len as u32).to_ne_bytes());
        self.committed = true;
        self.shared.finished.lock().push(self.index);
        if self.shared.thread.get() != Some(&thread::current().id()) {
            self.shared.wake();
        }
    }

    fn read<const N: usize>(&self, place: usize) -> [u8; N] {
        assert!(place + N <= KERNEL_HEADER_LEN);
        let from = self.shared.memory.header(self.index);
        // SAFETY: within the entry's header page by the assertion above.
        let from = unsafe { from.add(place) };
        // SAFETY: the slot owns the entry's buffers (module text); bytes have no alignment.
        unsafe { from.cast::<[u8; N]>().read() }
    }

    fn write<const N: usize>(&mut self, place: usize, bytes: &[u8; N]) {
        assert!(place + N <= KERNEL_HEADER_LEN);
        let to = self.shared.memory.header(self.index);
        // SAFETY: within the entry's header page by the assertion above.
        let to = unsafe { to.add(place) };
        // SAFETY: the slot owns the entry's buffers (module text); bytes have no alignment.
        unsafe { to.cast::<[u8; N]>().write(*bytes) };
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.committed {
            let unique: [u8; 8] = self.read(8);
            let mut header = [0; 16];
            header[..4].copy_from_slice(&16u32.to_ne_bytes());
            header[4..8].copy_from_slice(&(-Errno::IO.raw_os_error()).to_ne_bytes());
            header[8..].copy_from_slice(&unique);
            self.finish(&header, 0);
        }
    }
}

struct Shared {
    memory: Memory,
    /// Readable when `finished` or `stopping` has news from another thread.
    wake: OwnedFd,
    finished: Mutex<Vec<u32>>,
    thread: OnceLock<ThreadId>,
    stopping: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        // EAGAIN means that the counter is at its limit: readable all the same.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// All entries' buffers in one mapping.
struct Memory {
    base: NonNull<u8>,
    len: usize,
    stride: usize,
    entries: usize,
    payload_len: usize,
}

// SAFETY: a mapping may be used and unmapped from any thread; who touches which part when is the
// module's protocol.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(config: &RingConfig) -> io::Result<Self> {
        let entries = config.queues.len().saturating_mul(config.entries_per_queue);
        let payload_len = config.payload_len;
        if entries == 0 || entries > MAX_ENTRIES || payload_len > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let stride = HEADER_PAGE + payload_len.next_multiple_of(HEADER_PAGE);
        let len = stride * entries;
        // Touched only as far as requests need it: a foreign CPU's queue costs a page or two.
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no other.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, stride, entries, payload_len })
    }

    fn header(&self, index: u32) -> NonNull<u8> {
        assert!((index as usize) < self.entries);
        // SAFETY: below `len` by the assertion above.
        unsafe { self.base.add(self.stride * index as usize) }
    }

    fn payload(&self, index: u32) -> NonNull<u8> {
        // SAFETY: `stride` is a header page and the payload.
        unsafe { self.header(index).add(HEADER_PAGE) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this very mapping, and by the module's protocol nobody uses it any more.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok());
    }
}

struct Ring {
    ring: IoUring<Entry128>,
    shared: Arc<Shared>,
    device: Arc<OwnedFd>,
    /// The queue of each entry.
    queue_of: Vec<u16>,
    /// Completions to be looked at.
    ready: Vec<cqueue::Entry>,
}

impl Ring {
    /// Called on the thread that will serve: the kernel accepts submissions from it alone.
    fn new(config: &RingConfig, device: Arc<OwnedFd>, shared: &Arc<Shared>) -> io::Result<Self> {
        if let Some(cpu) = config.cpu {
            if cpu >= CpuSet::MAX_CPU {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut set = CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set)?;
        }
        let entries = shared.memory.entries as u32 + 1;
        let ring = IoUring::<Entry128>::builder()
            .setup_cqsize(entries.next_power_of_two() * 2)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)?;
        let per_queue = config.entries_per_queue;
        let queue_of =
            config.queues.iter().flat_map(|queue| std::iter::repeat_n(*queue, per_queue)).collect();
        Ok(Self { ring, shared: shared.clone(), device, queue_of, ready: Vec::new() })
    }

    /// Registers all entries. What is refused completes at once, all else when a request comes.
    fn register_all(&mut self) -> io::Result<()> {
        let entries = self.queue_of.len();
        for index in 0..entries as u32 {
            let sqe = self.register(index);
            self.push(sqe)?;
        }
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.ready.extend(self.ring.completion());
        let refused = self.ready.iter().filter(|completion| completion.result() < 0);
        let (count, first) = (refused.clone().count(), refused.map(cqueue::Entry::result).next());
        match first.map(|result| io::Error::from_raw_os_error(-result)) {
            None => Ok(()),
            Some(error) if count == entries => Err(error),
            Some(error) => {
                Err(io::Error::other(format!("{count} of {entries} entries were refused: {error}")))
            }
        }
    }

    fn serve(mut self, mut handler: impl FnMut(Slot)) -> io::Result<()> {
        self.push_poll()?;
        let mut live = self.queue_of.len();
        while live > 0 && !self.shared.stopping.load(Ordering::Acquire) {
            let wanted = usize::from(self.ready.is_empty());
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => {}
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
            self.ready.extend(self.ring.completion());
            for completion in std::mem::take(&mut self.ready) {
                match completion.user_data() {
                    WAKE => self.woken(&completion)?,
                    _ if completion.result() < 0 => {
                        live -= 1;
                        expect_end(completion.result())?;
                    }
                    index => handler(Slot {
                        shared: self.shared.clone(),
                        index: index as u32,
                        committed: false,
                    }),
                }
            }
            let finished = std::mem::take(&mut *self.shared.finished.lock());
            for index in finished {
                let sqe = self.commit(index);
                self.push(sqe)?;
            }
        }
        Ok(())
    }

    fn woken(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let mut count = [0; 8];
        match rustix::io::read(&self.shared.wake, &mut count) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
        if cqueue::more(completion.flags()) { Ok(()) } else { self.push_poll() }
    }

    fn push_poll(&mut self) -> io::Result<()> {
        let wake = types::Fd(self.shared.wake.as_raw_fd());
        let poll = opcode::PollAdd::new(wake, libc::POLLIN as u32).multi(true).build();
        self.push(Entry128::from(poll.user_data(WAKE)))
    }

    fn register(&self, index: u32) -> Entry128 {
        let memory = &self.shared.memory;
        let vectors = [
            libc::iovec {
                iov_base: memory.header(index).as_ptr().cast(),
                iov_len: KERNEL_HEADER_LEN,
            },
            libc::iovec {
                iov_base: memory.payload(index).as_ptr().cast(),
                iov_len: memory.payload_len,
            },
        ];
        // SAFETY: within the entry's header page (asserted at compile time).
        let place = unsafe { memory.header(index).add(VECTORS) }.cast::<[libc::iovec; 2]>();
        // SAFETY: this part of the page is never given to the kernel to write, nor to a slot; 512
        // bytes into a page it is aligned.
        unsafe { place.write(vectors) };
        let mut sqe = self.command(CMD_REGISTER, index, 0, Some(place.as_ptr() as u64));
        // The crate has no setter for the number of vectors. `len` is the word at 24 of an entry.
        // SAFETY: `Entry128` is repr(C) over the kernel's `struct io_uring_sqe` of 64 bytes.
        let len = unsafe { (&raw mut sqe).cast::<u32>().add(6) };
        // SAFETY: as above; the entry is aligned to 8.
        unsafe { len.write(2) };
        sqe
    }

    fn commit(&self, index: u32) -> Entry128 {
        let place = self.shared.memory.header(index);
        // SAFETY: within the entry's header page (asserted at compile time).
        let place = unsafe { place.add(COMMIT_ID) }.cast::<u64>();
        // SAFETY: the slot has been committed and the kernel does not have the entry yet; nobody
        // else touches it. 264 bytes into a page it is aligned.
        let commit_id = unsafe { place.read() };
        self.command(CMD_COMMIT_AND_FETCH, index, commit_id, None)
    }

    fn command(&self, op: u32, index: u32, commit_id: u64, addr: Option<u64>) -> Entry128 {
        // struct fuse_uring_cmd_req: flags, commit id, queue.
        let mut cmd = [0; 80];
        cmd[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        cmd[16..18].copy_from_slice(&self.queue_of[index as usize].to_ne_bytes());
        let device = types::Fd(self.device.as_fd().as_raw_fd());
        opcode::UringCmd80::new(device, op).cmd(cmd).addr(addr).build().user_data(u64::from(index))
    }

    fn push(&mut self, sqe: Entry128) -> io::Result<()> {
        // SAFETY: the memory that an entry names - buffers, vectors - is mapped until this thread
        // has been joined, and the descriptors are open as long as `self`.
        if unsafe { self.ring.submission().push(&sqe) }.is_ok() {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(_) => {}
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&sqe) }
            .map_err(|_| io::Error::other("io_uring: submission queue is full"))
    }
}

fn again(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
}

/// An entry is lost: right at the end of the connection, wrong before.
fn expect_end(result: i32) -> io::Result<()> {
    match Errno::from_raw_os_error(-result) {
        Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED | Errno::NODEV => Ok(()),
        errno => Err(errno.into()),
    }
}
