//! What `-o` says: each option is honoured, is what the mount does anyway, or is refused by name.

use std::time::Duration;

use anyhow::{Result, bail};
use cfs::engine::write::{AccessTimes, DataMode, OnError, WriterOptions};
use cfs::journal::JournalOptions;
use cfs::mount::{Choice, Times};

/// Bytes of page cache where no option says how many.
const DEFAULT_CACHE: u64 = 256 << 20;
/// Seconds that a change may wait for its commit at most.
const MAX_COMMIT: u32 = 300;

/// Everything that the options say.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) read_only: bool,
    pub(super) writer: WriterOptions,
    pub(super) times: Times,
    pub(super) cache: u64,
    pub(super) choice: Choice,
    pub(super) allow_other: Option<bool>,
    pub(super) nosuid: Option<bool>,
    pub(super) nodev: Option<bool>,
    pub(super) noexec: bool,
}

/// What mount(8) and fstab(5) pass along and what ext4's options call what is done here anyway.
const ANYWAY: [&str; 28] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "default_permissions",
    "user_xattr",
    "acl",
    "barrier",
    "barrier=1",
    "delalloc",
    "auto_da_alloc",
    "auto_da_alloc=1",
    "block_validity",
    "noquota",
    "nodiscard",
    "nouid32=0",
    "data_err=abort",
    "bsddf",
    "nogrpid",
    "sysvgroups",
    "noinit_itable",
    "nolazytime",
];

/// What ext4 takes and this mount does not, and why.
const REFUSED: [(&[&str], &str); 11] = [
    (&["errors=panic"], "a server cannot stop the kernel; use errors=remount-ro"),
    (
        &["nobarrier", "barrier=0"],
        "what was promised to be durable would not be; leave the option away",
    ),
    (&["noload", "norecovery"], "use ro: it replays the journal in memory and writes nothing"),
    (&["nouser_xattr", "noacl"], "attributes and ACLs are always served; leave the option away"),
    (
        &["quota", "usrquota", "grpquota", "prjquota", "usrjquota", "grpjquota", "jqfmt"],
        "quotas are not kept",
    ),
    (
        &["resuid", "resgid"],
        "who may use reserved blocks is said by the superblock: tune2fs -u, tune2fs -g",
    ),
    (&["nodelalloc", "noauto_da_alloc", "auto_da_alloc=0"], "contents are always allocated late"),
    (&["data_err=ignore"], "an error of contents is told by fsync, always"),
    (&["grpid", "bsdgroups"], "set the set-group-ID bit of directories"),
    (
        &["journal_dev", "journal_path", "journal_async_commit", "journal_checksum"],
        "the journal is kept as the volume has it",
    ),
    (&["remount"], "a mount cannot be changed; unmount it and mount it again"),
];

impl Settings {
    fn new() -> Self {
        Self {
            read_only: false,
            writer: WriterOptions::default(),
            times: Times::default(),
            cache: DEFAULT_CACHE,
            choice: Choice::Auto,
            allow_other: None,
            nosuid: None,
            nodev: None,
            noexec: false,
        }
    }

    /// Reads a list of options.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut settings = Self::new();
        for option in options.iter().filter(|option| !option.is_empty()) {
            settings.take(option)?;
        }
        settings.writer.access_times = settings.times.access;
        settings.writer.no_dir_times = settings.times.not_of_directories;
        Ok(settings)
    }

    fn take(&mut self, option: &str) -> Result<()> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match (name, value) {
            ("ro" | "rw", "") => self.read_only = name == "ro",
            ("commit", seconds) => self.writer.journal.commit_interval = commit_interval(seconds)?,
            ("data", mode) => self.writer.data = data_mode(mode)?,
            ("cache", size) => {
                self.cache = oslet::config::parse_size(size)
                    .map_err(|why| anyhow::anyhow!("-o cache={size}: {why}"))?;
            }
            ("transport", "dev") => self.choice = Choice::Device,
            ("transport", "auto") => self.choice = Choice::Auto,
            ("allow_other", "") => self.allow_other = Some(true),
            ("suid" | "nosuid", "") => self.nosuid = Some(name == "nosuid"),
            ("dev" | "nodev", "") => self.nodev = Some(name == "nodev"),
            ("exec" | "noexec", "") => self.noexec = name == "noexec",
            ("sync" | "async", "") => self.writer.sync = name == "sync",
            ("dirsync", "") => self.writer.dir_sync = true,
            ("errors", "continue") => self.writer.on_error = Some(OnError::Continue),
            ("errors", "remount-ro") => self.writer.on_error = Some(OnError::ReadOnly),
            ("discard", "") => self.writer.discard = true,
            ("noatime", "") => self.times.access = AccessTimes::Never,
            ("relatime" | "atime", "") => self.times.access = AccessTimes::Relative,
            ("strictatime", "") => self.times.access = AccessTimes::Strict,
            ("nodiratime" | "diratime", "") => {
                self.times.not_of_directories = name == "nodiratime";
            }
            _ if ANYWAY.contains(&option) => {}
            (name, _) if name.starts_with("x-") || name == "comment" => {}
            _ => return refuse(option, name),
        }
        Ok(())
    }
}

fn refuse(option: &str, name: &str) -> Result<()> {
    let known = |names: &&[&str]| names.contains(&option) || names.contains(&name);
    if let Some((_, why)) = REFUSED.iter().find(|(names, _)| known(names)) {
        bail!("-o {option}: not here: {why}");
    }
    bail!(
        "-o {option}: unknown; known are ro, commit=SECONDS, data=ordered|journal|writeback, \
         cache=SIZE, errors=continue|remount-ro, transport=dev|auto, sync, dirsync, discard, \
         noatime, relatime, strictatime, nodiratime, allow_other, suid, nosuid, dev, nodev, exec, \
         noexec"
    )
}

/// As ext4 takes it: 0 is the default.
fn commit_interval(seconds: &str) -> Result<Duration> {
    match seconds.parse::<u32>() {
        Ok(0) => Ok(JournalOptions::default().commit_interval),
        Ok(seconds @ 1..=MAX_COMMIT) => Ok(Duration::from_secs(seconds.into())),
        _ => bail!("-o commit={seconds}: seconds from 0 to {MAX_COMMIT} are needed"),
    }
}

fn data_mode(mode: &str) -> Result<DataMode> {
    match mode {
        "ordered" => Ok(DataMode::Ordered),
        "journal" => Ok(DataMode::Journal),
        "writeback" => Ok(DataMode::Writeback),
        _ => bail!("-o data={mode}: ordered, journal or writeback is needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> Result<Settings> {
        Settings::parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_option_counts() {
        let settings = parsed("defaults,ro,rw,data=journal,noatime,sync,async,commit=7").unwrap();
        assert!(!settings.read_only && !settings.writer.sync);
        assert_eq!(settings.writer.data, DataMode::Journal);
        assert_eq!(settings.writer.access_times, AccessTimes::Never);
        assert_eq!(settings.writer.journal.commit_interval, Duration::from_secs(7));
    }

    #[test]
    fn what_ext4_takes_is_refused_by_name_with_a_reason() {
        for (names, why) in REFUSED {
            for name in names {
                let error = parsed(name).unwrap_err().to_string();
                assert!(error.contains(&format!("-o {name}: ")) && error.contains(why), "{error}");
            }
        }
        for option in ["resuid=5", "usrjquota=aquota.user", "stripe=4", "data=x", "data", "dax"] {
            let error = parsed(option).unwrap_err().to_string();
            assert!(error.contains(&format!("-o {option}")), "{error}");
        }
    }
}
