//! `oslet mount`, also as `mount.cfs` and `mount.fuse.cfs`: one image, mounted here, without a
//! cluster.

mod options;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cfs::engine::write::AccessTimes;
use cfs::local::LocalVolume;
use cfs::mount::mountpoint::{self, MountOptions, Mounted};
use cfs::mount::{Config, Session, Sharing, VolumeFs};
use cfs::open::OpenOptions;
use oslet::sys::process::{self, SignalFd, SignalSet};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::args::Global;
use options::Settings;

/// The argument by which the program knows that it serves a mount behind its parent's back.
pub(crate) const SERVE: &str = "__mount";
/// What the serving process says when the mount can be used.
const READY: &str = "ready\n";
const FAILED: u8 = 2;
/// How long the server of a mount that has just ended may take to let its image go.
const LET_GO_LIMIT: Duration = Duration::from_secs(1);
/// How long threads may take to end behind the unmount.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Mount an ext2, ext3 or ext4 image or block device here, without a cluster.
///
/// A journal that needs recovery is replayed first: in place, or in memory with `-o ro`. A volume
/// with features that only allow reading is mounted read-only, and says which. Ends with umount(8).
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  oslet mount disk.img /mnt              until `umount /mnt`
  oslet mount -f disk.img /mnt           in the foreground, until Ctrl-C
  oslet mount -o ro,cache=1G disk.img /mnt
  mount -t cfs disk.img /mnt             with a link /sbin/mount.cfs to oslet

Options for -o:
  ro             never write to the image: replay its journal in memory
  commit=SECONDS changes are durable after so many at the latest [default: 5]
  data=MODE      contents of files: ordered (before what leads to them), journal (through the
                 journal, in the order of all changes), writeback (as ordered) [default: ordered]
  noatime, relatime, strictatime, nodiratime   when reading changes times [default: relatime]
  sync, dirsync  changes are durable when they are answered: all; those of directories
  discard        the storage is told of blocks that are freed; without it by fstrim(8)
  errors=continue, errors=remount-ro   when metadata are corrupt: noted in the superblock, or then
                 nothing is changed any more [default: as the superblock says]
  cache=SIZE     memory for cached pages [default: 256M]
  transport=dev  serve over /dev/fuse even where FUSE over io_uring is on
  allow_other    other users may use the mount [default for root]
  suid, dev, noexec   as in mount(8) [default: nosuid, nodev for others than root]")]
pub(crate) struct MountArgs {
    /// Options, separated by commas
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// The image or block device
    pub(crate) source: PathBuf,
    /// The directory to mount it on
    // Its own id: --dir, which every command takes, has the field's name.
    #[arg(id = "mountpoint", value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// `oslet mount`.
pub(crate) fn run(args: MountArgs, _: &Global) -> Result<ExitCode> {
    // Judged here, so that a wrong option is an error before anything starts.
    Settings::parse(&args.options)?;
    if args.foreground {
        return serve(&args, |_| Ok(()));
    }
    in_background(&args)
}

/// What `mount.cfs SOURCE DIR [-sfnvw] [-o OPTIONS] [-t TYPE] [-N NAMESPACE]` was asked.
pub(crate) fn helper(words: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let mut args = MountArgs {
        options: Vec::new(),
        foreground: false,
        source: PathBuf::new(),
        dir: PathBuf::new(),
    };
    let mut places = Vec::new();
    let mut fake = false;
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        match &*text {
            "-o" => {
                let list = words.next().context("-o: the options are missing")?;
                let list = list.to_string_lossy().into_owned();
                args.options.extend(list.split(',').map(str::to_owned));
            }
            "-t" => drop(words.next()),
            "-N" => bail!("-N: entering another namespace is not supported; use nsenter(1)"),
            "-r" => args.options.push("ro".into()),
            _ if text.starts_with('-') && text.len() > 1 => {
                for letter in text.chars().skip(1) {
                    match letter {
                        'f' => fake = true,
                        'r' => args.options.push("ro".into()),
                        's' | 'n' | 'v' | 'w' => {}
                        other => bail!("-{other}: unknown option; see mount(8)"),
                    }
                }
            }
            _ => places.push(PathBuf::from(word)),
        }
    }
    let [source, dir] = &places[..] else {
        bail!("mount.cfs: needs a source and a directory: mount.cfs SOURCE DIR [-o OPTIONS]");
    };
    (args.source, args.dir) = (source.clone(), dir.clone());
    Settings::parse(&args.options)?;
    if fake {
        return Ok(ExitCode::SUCCESS);
    }
    in_background(&args)
}

/// Starts a process that serves the mount and returns when it can be used.
fn in_background(args: &MountArgs) -> Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe().context("own program")?);
    command.arg(SERVE).arg("-o").arg(args.options.join(","));
    for place in [&args.source, &args.dir] {
        command.arg(std::path::absolute(place).with_context(|| place.display().to_string())?);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start the serving process")?;
    let mut said = String::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(&mut said).context("the serving process")?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let mut why = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(&mut why).context("the serving process")?;
    }
    let status = child.wait().context("the serving process")?;
    if why.is_empty() {
        bail!("{}: the serving process has ended: {status}", args.source.display());
    }
    eprint!("{why}");
    Ok(ExitCode::from(FAILED))
}

/// The serving process: `oslet __mount -o OPTIONS SOURCE DIR`.
pub(crate) fn main(mut words: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let (_, options) = (words.next(), words.next());
    let (source, dir) = (words.next(), words.next());
    let (Some(options), Some(source), Some(dir)) = (options, source, dir) else {
        bail!("{SERVE} is for oslet mount alone");
    };
    let options = options.to_string_lossy().into_owned();
    let options = options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
    // A session of its own: the terminal's signals are not meant for it.
    rustix::process::setsid().context("setsid")?;
    std::env::set_current_dir("/").context("change to /")?;
    let args = MountArgs { options, foreground: true, source: source.into(), dir: dir.into() };
    serve(&args, |_| {
        std::io::stdout().write_all(READY.as_bytes())?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    })
}

fn serve(args: &MountArgs, ready: impl FnOnce(&Session) -> Result<()>) -> Result<ExitCode> {
    let settings = Settings::parse(&args.options)?;
    let ending =
        SignalSet::of(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()]);
    // Before any thread starts, so that all of them have the signals blocked.
    process::block(&ending).context("block signals")?;
    let signals = SignalFd::new(&ending).context("signalfd")?;
    let dir = std::fs::canonicalize(&args.dir).with_context(|| args.dir.display().to_string())?;
    let holder = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut writer = settings.writer.clone();
    writer.journal.mount_point = Some(dir.display().to_string());
    let options = OpenOptions {
        read_only: settings.read_only,
        holder,
        writer: (!settings.read_only).then_some(writer),
        ..OpenOptions::default()
    };
    let volume = open(&args.source, settings.cache, &options)?;
    let mut mount_options = MountOptions::new(args.source.display().to_string());
    mount_options.noexec = settings.noexec;
    mount_options.noatime = settings.times.access == AccessTimes::Never;
    let sharing = if volume.is_writable() { Sharing::Alone } else { Sharing::ReadOnly };
    mount_options.read_only = sharing == Sharing::ReadOnly;
    for (wanted, option) in [
        (settings.allow_other, &mut mount_options.allow_other),
        (settings.nosuid, &mut mount_options.nosuid),
        (settings.nodev, &mut mount_options.nodev),
    ] {
        if let Some(wanted) = wanted {
            *option = wanted;
        }
    }
    let (device, mounted) = mountpoint::open_and_mount(&dir, &mount_options)?;
    let client = std::sync::Arc::clone(volume.client());
    let fs = VolumeFs::with(client, sharing, settings.times);
    let config = Config { choice: settings.choice, ..Config::default() };
    let session = match Session::start(device, fs, config) {
        Ok(session) => session,
        Err(error) => {
            // The first error is the one to report.
            let _ = mounted.unmount(&dir);
            return Err(error.into());
        }
    };
    let outcome = say(args, &volume, &session)
        .and_then(|()| ready(&session))
        .and_then(|()| wait(&session, signals.as_fd()));
    let ended = end(session, mounted, &dir);
    volume.close()?;
    outcome?;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// Opens the image. umount(8) returns before a mount's server has let it go, so one that is in use
/// may be free a moment later.
fn open(image: &Path, cache: u64, options: &OpenOptions) -> cfs::Result<LocalVolume> {
    let until = Instant::now() + LET_GO_LIMIT;
    loop {
        match LocalVolume::open(image, cache, options) {
            Err(cfs::Error::Busy(_)) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

fn say(args: &MountArgs, volume: &LocalVolume, session: &Session) -> Result<()> {
    if !args.foreground {
        return Ok(());
    }
    let mut err = std::io::stderr();
    if let Some(report) = volume.image().and_then(|image| image.report()) {
        writeln!(
            err,
            "{}: journal replayed: {} transactions, {} blocks",
            args.source.display(),
            report.transactions,
            report.blocks
        )?;
    }
    for warning in volume.warnings() {
        writeln!(err, "{warning}")?;
    }
    writeln!(err, "{} on {}: {}", args.source.display(), args.dir.display(), session.transport())?;
    Ok(())
}

/// Waits until the mount is gone or a signal asks to end it.
fn wait(session: &Session, signals: impl AsFd) -> Result<()> {
    let (ended, signals) = (session.ended(), signals.as_fd());
    loop {
        let mut polled = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

fn end(session: Session, mounted: Mounted, dir: &Path) -> Result<()> {
    if !session.wait(Duration::ZERO) {
        mounted.unmount(dir)?;
        if !session.wait(STOP_LIMIT) {
            bail!("{}: in use; its users get errors from now on", dir.display());
        }
    }
    Ok(session.stop(STOP_LIMIT)?)
}

/// Whether the program was called as a helper of mount(8).
pub(crate) fn is_helper(program: &OsStr) -> bool {
    Path::new(program)
        .file_name()
        .is_some_and(|name| name == "mount.cfs" || name == "mount.fuse.cfs")
}
