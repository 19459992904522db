//! Partitions, shared region, rings and membership: knows nothing of blocks or files.
//!
//! The words used here are those of docs/ARCHITECTURE.md. `unsafe` lives in `sys` (system calls)
//! and `region` (shared memory access) and nowhere else. Under `--cfg loom` only the lock-free
//! protocols are compiled, on loom's atomics, for their models.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the region needs a 64-bit address space");

#[cfg(not(loom))]
pub mod arena;
#[cfg(not(loom))]
pub mod cgroup;
#[cfg(not(loom))]
pub mod client;
#[cfg(not(loom))]
pub mod config;
#[cfg(not(loom))]
pub mod container;
#[cfg(not(loom))]
pub mod control_socket;
pub mod error;
pub mod hazard;
pub mod id;
#[cfg(not(loom))]
pub mod launcher;
pub mod limits;
pub mod member;
#[cfg(not(loom))]
pub mod partition;
#[cfg(not(loom))]
pub mod plan;
#[cfg(not(loom))]
pub mod procfs;
pub mod publish;
#[cfg(not(loom))]
pub mod region;
pub mod ring;
#[cfg(not(loom))]
pub mod rpc;
#[cfg(not(loom))]
pub mod runtime;
#[cfg(not(loom))]
pub mod state;
pub mod sync;
#[cfg(not(loom))]
pub mod sys;
#[cfg(not(loom))]
pub mod topology;
#[cfg(not(loom))]
pub mod wire;
pub mod words;

pub use error::{Error, Result};
