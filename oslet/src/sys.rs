//! System calls, wrapped so that safe code cannot misuse them.

pub mod enter;
pub mod namespace;
pub mod numa;
pub mod pidfd;
pub mod process;
pub mod tty;
