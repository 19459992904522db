//! Devices that store: files and raw disks, memory.

pub mod engine;
pub mod file;
pub mod ram;
