//! Atomics for words that cross a process, so that `loom` can stand in for them in a model.
//!
//! Each release/acquire pair has one name, written `// SYNC POINT: name` at both ends;
//! docs/memory-model.md lists them all.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// A full fence behind a locked read-modify-write: on x86-64 the `lock` prefix already is one, so
/// only the compiler must be held back.
#[inline(always)]
pub fn fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    fence(Ordering::SeqCst);
}

/// Between two looks at a word that another thread is about to change.
#[inline(always)]
pub fn spin_loop() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
