//! The `oslet` command.
#![forbid(unsafe_code)]

fn main() {}
