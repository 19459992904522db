//! The image that a cluster without a configuration has: made, filled with a small tree that
//! explains itself, and never overwritten.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use oslet::config::Source;
use oslet::plan::Plan;

use crate::volumes::GTMP;

/// Size of the image that is made.
const SIZE: &str = "64M";

/// What it is filled with: (path, contents).
const TREE: [(&str, &str); 4] = [
    (
        "README",
        "This is the global filesystem of an OSlet cluster: one ext4 image, read and written\n\
         from every OSlet at /global. What one has written all others see at once. Its cached\n\
         pages lie in memory that all OSlets share.\n\n\
         oslet run o0 cat /global/README    and the same from o1: these very bytes\n\
         oslet run o1 sh -c 'date > /global/when'; oslet run o0 cat /global/when\n\
         oslet show o0                      who owns the volume, and how much of it is cached\n\
         oslet down                         stops the cluster; the image stays, with all that was\n\
         \x20                                  written, and the kernel can mount it\n\n\
         Put your own image in its place: oslet up --image disk.img (--read-only: it is never\n\
         written)\n",
    ),
    (
        "docs/where-am-i",
        "Inside an OSlet:\n\
         /global  this filesystem, the same in all of them\n\
         /gtmp    a directory of it for temporary files of all (/global/.gtmp)\n\
         /ltmp    memory of this OSlet alone, on its own NUMA nodes\n\
         /tmp     the host's, unless the configuration says otherwise\n",
    ),
    ("docs/oslets", "Each OSlet has its own CPUs, memory, processes, mounts and host name.\n"),
    (".gtmp/README", "Temporary files of all OSlets, for every user.\n"),
];

/// Makes the default images of a plan that are not there yet. Returns a line for each.
pub(super) fn make(plan: &Plan) -> Result<Vec<String>> {
    let mut made = Vec::new();
    for device in &plan.devices {
        if let Source::Path { path, create: true } = &device.source
            && !path.try_exists().with_context(|| path.display().to_string())?
        {
            fill(path).with_context(|| {
                let path = path.display();
                format!("{path}: cannot be made (go to a directory of yours, or use --image)")
            })?;
            made.push(format!("made {} ({SIZE}, ext4)", path.display()));
        }
    }
    Ok(made)
}

/// Makes the image beside its place and moves it there whole, unless somebody else was faster.
fn fill(path: &Path) -> Result<()> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.{suffix}", std::process::id()));
        PathBuf::from(name)
    };
    let (tree, image) = (beside("tree"), beside("new"));
    let result = mke2fs(&tree, &image).and_then(|()| {
        // A link, not a rename: it fails if the name is taken.
        fs::hard_link(&image, path).with_context(|| format!("{}: make", path.display()))
    });
    // What was not made cannot be removed.
    let _ = fs::remove_dir_all(&tree);
    let _ = fs::remove_file(&image);
    result
}

fn mke2fs(tree: &Path, image: &Path) -> Result<()> {
    for (name, contents) in TREE {
        let file = tree.join(name);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::write(&file, contents).with_context(|| file.display().to_string())?;
    }
    let gtmp = tree.join(GTMP);
    fs::set_permissions(&gtmp, fs::Permissions::from_mode(0o1777))
        .with_context(|| gtmp.display().to_string())?;
    // Else the root would be the superuser's, and an ordinary user could make nothing in it.
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let owner = format!("root_owner={}:{}", user.as_raw(), group.as_raw());
    let output = ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"].iter().find_map(|program| {
        let mut command = Command::new(program);
        command.args(["-q", "-F", "-t", "ext4", "-L", "global", "-E", &owner, "-d"]);
        match command.arg(tree).arg(image).arg(SIZE).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            other => Some(other),
        }
    });
    let Some(output) = output else {
        bail!("mke2fs is not here to make an image: install e2fsprogs, or name one by --image");
    };
    let output = output.context("mke2fs")?;
    if !output.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
