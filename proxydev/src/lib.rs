//! Block devices: backends, stacking and proxying by page reference.
//!
//! A [`BlockDevice`] takes [`Request`]s whose [`Data`] are references to frames of the shared
//! region, and completes them asynchronously.
#![forbid(unsafe_code)]

pub mod backend;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod data;
pub mod device;
pub mod error;
pub mod layer;
pub mod limits;
pub mod nbd;
pub mod proxy;
pub mod sync;

pub use data::{Data, Slice};
pub use device::{BlockDevice, Completion, DeviceInfo, Extent, Operation, Request};
pub use error::{Error, Result};

#[cfg(test)]
mod testing;
