//! The filesystem: on-disk format, journal, cache, coherence and mounts.
#![forbid(unsafe_code)]
