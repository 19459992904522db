//! Changes through the mounts of a cluster: by a process in the OSlet that owns the volume, and by
//! one in another.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::{Change, Environment, Side};

use super::partner::{Ask, COMMAND, Partner, Told, unexpected};
use super::up::Up;

/// Room beside two files that are written in sequence.
const ROOM: u64 = 512 << 20;

/// One cluster for all of this, made when it is needed first.
#[derive(Default)]
pub(super) struct Cluster {
    up: RefCell<Option<std::result::Result<Rc<Up>, String>>>,
    directories: RefCell<u64>,
}

/// What a side needs; dropped in this order.
struct Inside {
    partner: Partner,
    _up: Rc<Up>,
}

impl Cluster {
    fn get(&self, environment: &Environment) -> Result<std::result::Result<Rc<Up>, String>> {
        if let Some(up) = &*self.up.borrow() {
            return Ok(up.clone());
        }
        let image =
            environment.scratch.image_to_write(2 * environment.sizes.stream + ROOM, true)?;
        let configuration = format!(
            "[region]\nsize = \"768M\"\n[[oslet]]\nname = \"o0\"\n[[oslet]]\nname = \"o1\"\n\
             [[device]]\nname = \"hda\"\npath = \"{}\"\nowner = \"o0\"\n\
             [[volume]]\nname = \"root\"\ndevice = \"hda\"\nmount = \"/global\"\n",
            image.display()
        );
        let up = Up::start(environment, &configuration)?.map(Rc::new);
        *self.up.borrow_mut() = Some(up.clone());
        Ok(up)
    }

    /// A directory that nobody else uses.
    fn directory(&self) -> PathBuf {
        let mut count = self.directories.borrow_mut();
        *count += 1;
        PathBuf::from(format!("/global/bench{count}"))
    }
}

pub(super) fn side(
    environment: &Environment,
    cluster: &Cluster,
    oslet: &str,
    change: Change,
) -> Result<Side> {
    let up = match cluster.get(environment)? {
        Ok(up) => up,
        Err(why) => return Ok(Side::absent(why)),
    };
    let mut command = up.command(&["run", oslet, "--"])?;
    command.arg(std::env::current_exe().context("own program")?).arg(COMMAND);
    let mut inside = Inside { partner: Partner::of(command)?, _up: up };
    let (directory, sizes) = (cluster.directory(), environment.sizes);
    match inside.partner.ask(&Ask::Change { directory, change, sizes })? {
        Told::Absent(why) => Ok(Side::absent(format!("{oslet}: {why}"))),
        Told::Batches => Ok(Side::batch(move |operations| {
            let Inside { partner, .. } = { &mut inside };
            match partner.ask(&Ask::Batch { operations })? {
                Told::Took(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
                told => Err(unexpected(&told)),
            }
        })),
        Told::Probes => Ok(Side::probe(move || {
            let Inside { partner, .. } = { &mut inside };
            match partner.ask(&Ask::Probe)? {
                Told::Figure(figure) => Ok(figure),
                told => Err(unexpected(&told)),
            }
        })),
        told => Err(unexpected(&told)),
    }
}
