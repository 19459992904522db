//! The commands, a module each: `<Name>Args` and `run`.

pub(crate) mod awake;
pub(crate) mod bench;
pub(crate) mod client;
pub(crate) mod completions;
pub(crate) mod down;
pub(crate) mod kill;
pub(crate) mod ls;
pub(crate) mod mount;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod runtime;
pub(crate) mod shell;
pub(crate) mod show;
pub(crate) mod up;
