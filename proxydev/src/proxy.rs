//! An owner's devices in every other OSlet, by page reference.
//!
//! A write names frames that the owner pins while they are in use. A read returns frames that the
//! owner *loans*: it keeps them from reuse until the client has pinned them and said so, or for
//! [`crate::limits::LOAN_MS`], or until others' loans push them out. A loan only saves the client
//! from asking again: what it pins is checked against the frame's generation, so a loan that ended
//! too early is noticed and costs another round.

mod client;
mod server;
mod wire;

pub use client::{ProxyDevice, ProxyOptions};
pub use server::Exports;
pub use wire::{DeviceId, KINDS};

#[cfg(test)]
mod tests;
