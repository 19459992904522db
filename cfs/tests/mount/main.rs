//! Real mounts of a filesystem in memory, over each transport.
//!
//! They need the right to mount: root, or `fusermount3`. FUSE over io_uring is switched on by root
//! for the moment in which a session starts, and put back.

#![forbid(unsafe_code)]

mod basic;
mod fixture;
#[path = "../gate/mod.rs"]
mod gate;
mod memfs;
mod slow;
mod trouble;
