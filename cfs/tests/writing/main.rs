//! Contents are changed through the native interface, compared with a model at each step, and with
//! what e2fsck and a later reader find.

#![forbid(unsafe_code)]

mod contents;
mod errors;
mod image;
mod names;
mod sync;
