//! The filesystem: on-disk format, journal, cache, coherence and mounts.
#![forbid(unsafe_code)]

pub mod alloc;
pub mod cache;
mod caller;
pub mod change;
pub mod client;
pub mod disk;
pub mod engine;
mod error;
pub mod guard;
pub mod id;
pub mod journal;
pub mod limits;
pub mod local;
pub mod mmp;
pub mod mount;
pub mod open;
pub mod orphan;
pub mod owner;
pub mod service;
pub mod wire;

pub use caller::Caller;
pub use client::Client;
pub use error::{Error, Result};
