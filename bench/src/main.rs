//! Benchmarks of the peers alone.
#![forbid(unsafe_code)]

fn main() {}
