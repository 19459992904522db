//! Views of one filesystem, compared: every name, attribute, byte and hole.
//!
//! A view is the kernel's (a mounted directory, whoever serves the mount), the engine's or a
//! client's. All are walked by the same code into listings, and listings are compared.

pub mod client;
pub mod compare;
pub mod engine;
pub mod host;
pub mod image;
pub mod listing;
pub mod matrix;
pub mod populate;

pub use client::ClientView;
pub use engine::{EngineView, ImageFile};
pub use host::HostView;
pub use image::{Image, LoopMount, Scratch, is_root};
pub use listing::{Field, FileInfo, Listing, View, VolumeInfo};
