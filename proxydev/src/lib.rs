//! Block devices: backends, stacking and proxying by page reference.
#![forbid(unsafe_code)]
