//! Harness and scenarios that run the whole system.
#![forbid(unsafe_code)]

pub mod kernel;
pub mod storm;
