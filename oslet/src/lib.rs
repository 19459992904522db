//! Partitions, shared region, rings and membership: knows nothing of blocks or files.
//!
//! The words used here are those of docs/ARCHITECTURE.md. `unsafe` lives in [`sys`] (system calls)
//! and [`region`] (shared memory access) and nowhere else.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the region needs a 64-bit address space");

#[cfg(not(loom))]
pub mod arena;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod error;
pub mod id;
pub mod limits;
pub mod partition;
pub mod plan;
pub mod procfs;
#[cfg(not(loom))]
pub mod region;
pub mod ring;
#[cfg(not(loom))]
pub mod rpc;
pub mod state;
pub mod sync;
pub mod sys;
pub mod topology;

pub use error::{Error, Result};
