//! The commands, a module each: `<Name>Args` and `run`.

pub(crate) mod completions;
pub(crate) mod up;
