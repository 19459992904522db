//! Benchmarks: ours beside what it would otherwise use, in one run.
#![forbid(unsafe_code)]
