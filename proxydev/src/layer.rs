//! Wrappers around a device. Each adds one behaviour, is a device itself, and passes the
//! conformance suite; so they stack.

pub mod delay;
pub mod fault;
pub mod record;
pub mod trace;

pub use delay::Delay;
pub use fault::{Fault, Rule, Rules};
pub use record::{Change, Event, Log, Record, What};
pub use trace::{Trace, Traced};

#[cfg(test)]
mod tests;
