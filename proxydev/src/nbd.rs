//! Network block devices: what leaves an OSlet for programs that know nothing of it, and what comes
//! in from elsewhere. See docs/devices.md.

pub mod client;
pub mod export;
pub mod handshake;
mod inbox;
mod link;
pub mod server;
mod stream;
pub mod tls;
pub mod transmission;
pub mod uri;
pub mod wire;

pub use client::{ClientOptions, NbdDevice};
pub use export::{Export, ExportTable, Exports};
pub use server::{Server, ServerOptions, TlsMode};
