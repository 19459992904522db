//! The command line. Each command is a module of [`crate::cmd`] that brings its own arguments and
//! `run(args, &global)`.

use std::env;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand};
use oslet::config;

use crate::cmd;

const EXAMPLES: &str = "\
Examples:
  oslet up                            two OSlets on this machine, until Ctrl-C
  oslet ls                            what runs
  oslet down                          stop it
  oslet up --dry-run                  show how this machine would be divided
  oslet up --dry-run --oslets 4       among four OSlets
  oslet up --image disk.img           with a filesystem of your own
  oslet run o0 hostname               run a command inside an OSlet
  oslet shell o1                      a shell there
  oslet mount disk.img /mnt           one image, without a cluster
  oslet completions bash              print a completion script

Exit status: 0 success, 1 a negative answer, 2 an error.";

/// Partition a machine into OSlets that share memory, devices and one filesystem
#[derive(Debug, Parser)]
#[command(name = "oslet", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The heading of what every command takes.
const EVERYWHERE: &str = "Options of every command";

/// What every command takes.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct Global {
    /// Directory of the cluster's runtime files [default: /run/oslet/NAME for root,
    /// $XDG_RUNTIME_DIR/oslet/NAME for others, or /tmp/oslet-UID/NAME without that variable]
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub(crate) dir: Option<PathBuf>,
    /// The cluster [default: the configuration's name, or main]
    #[arg(long, global = true, value_name = "NAME", value_parser = cluster_name)]
    #[arg(help_heading = EVERYWHERE)]
    pub(crate) cluster: Option<String>,
}

impl Global {
    /// The directory of the runtime files of the cluster with that name. It may not be there yet;
    /// who makes it makes it accessible to its owner alone, and checks that it is the owner.
    pub(crate) fn directory(&self, cluster: &str) -> PathBuf {
        if let Some(dir) = &self.dir {
            return dir.clone();
        }
        let user = rustix::process::geteuid();
        let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
        let base = match (user.is_root(), runtime) {
            (true, _) => PathBuf::from("/run/oslet"),
            (false, Some(dir)) => Path::new(&dir).join("oslet"),
            (false, None) => env::temp_dir().join(format!("oslet-{}", user.as_raw())),
        };
        base.join(cluster)
    }

    /// The directory of the cluster that a command without a configuration means.
    pub(crate) fn running(&self) -> PathBuf {
        self.directory(self.cluster.as_deref().unwrap_or(config::DEFAULT_NAME))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(cmd::up::UpArgs),
    Down(cmd::down::DownArgs),
    Ls(cmd::ls::LsArgs),
    Show(cmd::show::ShowArgs),
    Run(cmd::run::RunArgs),
    Shell(cmd::shell::ShellArgs),
    Ps(cmd::ps::PsArgs),
    Kill(cmd::kill::KillArgs),
    Mount(cmd::mount::MountArgs),
    Bench(cmd::bench::BenchArgs),
    Completions(cmd::completions::CompletionsArgs),
}

fn cluster_name(name: &str) -> Result<String, String> {
    oslet::config::check_host_name(name).map(|()| name.to_owned())
}
