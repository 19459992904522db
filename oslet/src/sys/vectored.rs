//! Writing one message that is scattered over memory.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use crate::region::{PageGuard, RawSlice};

/// A hole is written from here, however long it is.
static ZEROS: [u8; 65536] = [0; 65536];
/// Pieces of one system call (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// A part of a message.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Piece<'a> {
    /// Memory that nobody else writes.
    Bytes(&'a [u8]),
    /// Memory of the region, which a peer may write meanwhile.
    Shared(Shared<'a>),
    /// So many zeros.
    Zeros(usize),
}

/// A part of a pinned frame, whose guard it keeps borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    bytes: RawSlice,
    guard: PhantomData<&'a PageGuard<'a>>,
}

impl<'a> Piece<'a> {
    /// The bytes `[offset, offset + len)` of a pinned frame; `None` if they are not inside.
    pub fn shared(guard: &'a PageGuard<'_>, offset: usize, len: usize) -> Option<Self> {
        Self::part(guard.bytes(), offset, len)
    }

    /// Bytes of the region that `_keeper` keeps from reuse.
    pub fn kept<K: ?Sized>(_keeper: &'a K, bytes: RawSlice) -> Self {
        Self::Shared(Shared { bytes, guard: PhantomData })
    }

    /// What is left of it without its first bytes.
    pub fn skip(self, count: usize) -> Self {
        let rest = self.len().saturating_sub(count);
        let from = self.len() - rest;
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[from..]),
            Self::Shared(Shared { bytes, guard }) => {
                // It ends where the whole does.
                let bytes = bytes.sub(from, rest).unwrap_or(bytes);
                Self::Shared(Shared { bytes, guard })
            }
            Self::Zeros(_) => Self::Zeros(rest),
        }
    }

    /// Its first bytes, or all of it.
    pub fn first(self, count: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[..count.min(bytes.len())]),
            Self::Shared(Shared { bytes, guard }) => {
                let bytes = bytes.sub(0, count).unwrap_or(bytes);
                Self::Shared(Shared { bytes, guard })
            }
            Self::Zeros(len) => Self::Zeros(len.min(count)),
        }
    }

    fn part(bytes: RawSlice, offset: usize, len: usize) -> Option<Self> {
        let bytes = bytes.sub(offset, len)?;
        Some(Self::Shared(Shared { bytes, guard: PhantomData }))
    }

    /// Bytes of this piece.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Shared(shared) => shared.bytes.len(),
            Self::Zeros(len) => *len,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the whole piece; `to` must be as long.
    pub fn copy_to(&self, to: &mut [u8]) {
        match self {
            Self::Bytes(bytes) => to.copy_from_slice(bytes),
            Self::Shared(shared) => {
                assert_eq!(to.len(), shared.bytes.len(), "a piece is copied whole");
                shared.bytes.copy_to(0, to);
            }
            Self::Zeros(_) => to.fill(0),
        }
    }

    fn push_to(&self, vector: &mut Vec<libc::iovec>) {
        let mut push = |base: *const u8, len: usize| {
            if len > 0 {
                vector.push(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len });
            }
        };
        match *self {
            Self::Bytes(bytes) => push(bytes.as_ptr(), bytes.len()),
            Self::Shared(shared) => push(shared.bytes.as_ptr(), shared.bytes.len()),
            Self::Zeros(mut len) => {
                while len > 0 {
                    let part = len.min(ZEROS.len());
                    push(ZEROS.as_ptr(), part);
                    len -= part;
                }
            }
        }
    }
}

/// Writes `head` and all pieces with one system call, as /dev/fuse needs it. Pieces beyond the
/// kernel's limit on vectors are gathered first.
pub fn write(fd: impl AsFd, head: &[u8], pieces: &[Piece<'_>]) -> io::Result<usize> {
    let mut vector = Vec::with_capacity(pieces.len() + 1);
    Piece::Bytes(head).push_to(&mut vector);
    for piece in pieces {
        piece.push_to(&mut vector);
    }
    if vector.len() > MAX_PIECES {
        return write(fd, &gather(head, pieces), &[]);
    }
    // SAFETY: each vector covers memory that `head` and `pieces` keep borrowed until the call
    // returns - region memory stays mapped as long as its region - and the kernel only reads it.
    let written = unsafe {
        libc::writev(fd.as_fd().as_raw_fd(), vector.as_ptr(), vector.len() as libc::c_int)
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Sends as much of all pieces over a socket as it takes now, by one system call; at most the
/// first thousand or so. Bytes that lie together go as one range.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when it takes nothing.
pub fn send(socket: impl AsFd, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let mut vector: Vec<libc::iovec> = Vec::with_capacity(pieces.len().min(MAX_PIECES));
    for piece in pieces {
        if vector.len() >= MAX_PIECES - 16 {
            break;
        }
        let from = vector.len();
        piece.push_to(&mut vector);
        if from > 0 && vector.len() > from {
            let (last, next) = (vector[from - 1], vector[from]);
            if last.iov_base.addr() + last.iov_len == next.iov_base.addr() {
                vector[from - 1].iov_len += next.iov_len;
                vector.remove(from);
            }
        }
    }
    let count = vector.len().min(MAX_PIECES);
    // SAFETY: all zero is a message without name, vectors and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.as_mut_ptr();
    message.msg_iovlen = count as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as in `write`; joined ranges are of memory that is mapped as a whole.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn gather(head: &[u8], pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut all = head.to_vec();
    for piece in pieces {
        let start = all.len();
        all.resize(start + piece.len(), 0);
        piece.copy_to(&mut all[start..]);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use super::*;
    use crate::region::Mapping;

    fn written(pieces: &[Piece<'_>]) -> Vec<u8> {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
        let len: usize = pieces.iter().map(Piece::len).sum();
        assert_eq!(write(&writer, b"head", pieces).unwrap(), 4 + len);
        drop(writer);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn pieces_arrive_in_order_and_holes_as_zeros() {
        let all = written(&[Piece::Bytes(b"ab"), Piece::Zeros(70_000), Piece::Bytes(b"c")]);
        assert_eq!(&all[..6], b"headab");
        assert_eq!(all.len(), 4 + 2 + 70_000 + 1);
        assert!(all[6..70_006].iter().all(|byte| *byte == 0));
        assert_eq!(all[70_006], b'c');
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_still_go_in_one_message() {
        let bytes: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let pieces: Vec<_> = bytes.chunks(1).map(Piece::Bytes).collect();
        assert_eq!(written(&pieces)[4..], bytes);
    }

    #[test]
    fn a_socket_takes_what_it_has_room_for_and_the_rest_later() {
        let (sender, mut receiver) = std::os::unix::net::UnixStream::pair().unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n ^ n >> 9) as u8).collect();
        // Neighbours in memory, zeros, and more pieces than one call takes.
        let all: Vec<_> =
            bytes.chunks(500).map(Piece::Bytes).chain([Piece::Zeros(70_000)]).collect();
        let total = bytes.len() + 70_000;
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            receiver.read_to_end(&mut received).unwrap();
            received
        });
        let (mut at, mut full) = (0, false);
        while at < total {
            let mut skip = at;
            let rest = all.iter().filter_map(|piece| {
                let cut = skip.min(piece.len());
                skip -= cut;
                Some(piece.skip(cut)).filter(|piece| !piece.is_empty())
            });
            match send(&sender, &rest.collect::<Vec<_>>()) {
                Ok(sent) => at += sent,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    full = true;
                    std::thread::yield_now();
                }
            }
        }
        drop(sender);
        let received = reading.join().unwrap();
        assert!(full && received.len() == total && received[..bytes.len()] == bytes);
        assert!(received[bytes.len()..].iter().all(|byte| *byte == 0));
        let piece = Piece::Bytes(b"abcdef");
        assert!(matches!(piece.skip(2).first(3), Piece::Bytes(b"cde")));
        assert!(piece.skip(9).is_empty() && piece.first(9).len() == 6);
    }

    #[test]
    fn shared_memory_is_written_from_where_it_is() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[[1; 4096], [2; 4096]].concat()).unwrap();
        let map = Arc::new(Mapping::new(&file, 8192, false, "test").unwrap());
        let bytes = map.slice(0, 8192).unwrap();
        assert!(Piece::part(bytes, 4096, 4097).is_none());
        let piece = Piece::part(bytes, 4095, 3).unwrap();
        assert_eq!(written(&[piece, Piece::Bytes(b"x")])[4..], [1, 2, 2, b'x']);
        let mut copy = [0; 3];
        piece.copy_to(&mut copy);
        assert_eq!(copy, [1, 2, 2]);
    }
}
