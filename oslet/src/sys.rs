//! System calls, wrapped so that safe code cannot misuse them.

pub mod disk;
pub mod enter;
pub mod filemap;
pub mod fusectl;
pub mod interrupt;
pub mod loopdev;
pub mod namespace;
pub mod numa;
pub mod pidfd;
pub mod process;
pub mod tty;
pub mod uring;
pub mod uring_io;
pub mod vectored;
