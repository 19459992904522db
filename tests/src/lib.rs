//! Harness and scenarios that run the whole system.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod crash;
pub mod cut;
pub mod fsdiff;
pub mod guest;
pub mod kernel;
pub mod load;
pub mod namediff;
pub mod opfuzz;
pub mod ours;
pub mod power;
pub mod program;
pub mod storm;
pub mod suites;
pub mod uring;
pub mod world;
