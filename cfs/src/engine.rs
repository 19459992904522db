//! The owner's engine: what the on-disk structures of a volume mean.

pub mod store;
