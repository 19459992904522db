//! The project's own commands: `cargo xtask tidy|test|bench`.
#![forbid(unsafe_code)]

fn main() {}
