//! Small images that have a bit of everything, made by e2fsprogs alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::tool;

/// How an image is made.
struct Recipe {
    /// `volume-` or `journal-`, and what is special. The order of names is the order of images.
    name: &'static str,
    mke2fs: &'static str,
    size: &'static str,
    /// More for debugfs to do, after the files.
    more: &'static [&'static str],
}

const RECIPES: [Recipe; 13] = [
    volume("volume-0-ext2", "-t ext2 -b 1024 -I 128 -O ^resize_inode,^dir_index", "512k"),
    volume("volume-1-ext4", "-b 1024 -I 256 -O ^metadata_csum,^has_journal,^resize_inode", "512k"),
    volume("volume-2-csum", "-b 1024 -I 256 -O ^has_journal,^resize_inode,large_dir", "512k"),
    volume(
        "volume-3-inline",
        "-b 1024 -I 256 -O ^metadata_csum,^has_journal,^resize_inode,inline_data,ea_inode",
        "512k",
    ),
    volume(
        "volume-4-bigalloc",
        "-b 1024 -C 4096 -I 256 -O ^metadata_csum,^has_journal,^resize_inode,bigalloc",
        "1m",
    ),
    volume("volume-5-mmp", "-b 4096 -I 512 -O ^has_journal,^resize_inode,meta_bg,mmp", "2m"),
    volume(
        "volume-6-groups",
        "-b 1024 -g 256 -I 128 -O ^metadata_csum,uninit_bg,^has_journal,^resize_inode,^flex_bg",
        "1m",
    ),
    volume("volume-7-super2", "-t ext2 -b 1024 -g 256 -I 256 -O sparse_super2,^resize_inode", "1m"),
    Recipe {
        more: &["jo", "jw -b 5,6,300 BLOCKS", "jw -b 6,301 BLOCKS", "jc"],
        ..volume("journal-0-ext3", "-t ext3 -b 1024 -I 128 -J size=1 -O ^resize_inode", "4m")
    },
    Recipe {
        more: &["jo -c -v 3", "jw -b 300,301,302 BLOCKS", "jw -r 301", "jw -b 303 BLOCKS", "jc"],
        ..volume("journal-1-csum", "-b 1024 -I 256 -J size=1 -O ^resize_inode,orphan_file", "4m")
    },
    Recipe {
        more: &[
            "set_inode_field /sparse links_count 0",
            "set_super_value last_orphan 13",
            "jo",
            "jw -b 400 BLOCKS",
            "jc",
        ],
        ..volume(
            "journal-2-orphan",
            "-b 1024 -I 256 -J size=1 -O ^resize_inode,^metadata_csum",
            "4m",
        )
    },
    Recipe {
        more: ORPHANS,
        ..volume(
            "journal-3-quota",
            "-b 1024 -I 256 -J size=1 -O ^resize_inode,^metadata_csum,quota,ea_inode",
            "4m",
        )
    },
    Recipe {
        more: ORPHANS,
        ..volume(
            "journal-4-clusters",
            "-b 1024 -C 4096 -I 256 -J size=1 -O ^resize_inode,bigalloc,inline_data,ea_inode,quota",
            "4m",
        )
    },
];

/// One file to be removed, and one to be cut: those that are first to be written.
const ORPHANS: &[&str] = &[
    "set_inode_field <12> links_count 0",
    "set_inode_field <12> dtime @13",
    "set_inode_field <13> size 13000",
    "set_super_value last_orphan 12",
    "jo",
    "jw -b 3000 BLOCKS",
    "jc",
];

const fn volume(name: &'static str, mke2fs: &'static str, size: &'static str) -> Recipe {
    Recipe { name, mke2fs, size, more: &[] }
}

/// Makes all images in `dir`; `scratch` is for what debugfs reads. Their paths, by name.
pub(super) fn make(dir: &Path, scratch: &Path) -> anyhow::Result<Vec<PathBuf>> {
    for path in [dir, scratch] {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    }
    sources(scratch)?;
    let mut paths = Vec::new();
    for recipe in &RECIPES {
        let path = scratch.join(recipe.name);
        one(recipe, &path, scratch).with_context(|| recipe.name.to_owned())?;
        // Whole or not at all: runs of other targets read it.
        let place = dir.join(recipe.name);
        fs::rename(&path, &place).with_context(|| place.display().to_string())?;
        paths.push(place);
    }
    paths.sort();
    Ok(paths)
}

/// The files that debugfs copies in.
fn sources(scratch: &Path) -> anyhow::Result<()> {
    let mut sparse = Vec::new();
    // Islands of data: more than an inode's four extents.
    for island in 0..9u8 {
        sparse.extend([b'a' + island; 1500]);
        sparse.resize((usize::from(island) + 1) * 12 * 1024, 0);
    }
    let acl: [u8; 28] = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 0x20, 0, 4, 0,
        255, 255, 255, 255,
    ];
    let files: [(&str, &[u8]); 5] = [
        ("SMALL", b"a small file"),
        ("SPARSE", &sparse),
        ("VALUE", &[b'v'; 3000]),
        ("ACL", &acl),
        ("BLOCKS", &[0x5a; 3 * 1024]),
    ];
    for (name, bytes) in files {
        let path = scratch.join(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn one(recipe: &Recipe, path: &Path, scratch: &Path) -> anyhow::Result<()> {
    let image = path.to_str().context("the build directory's name is not UTF-8")?;
    let identity = "hash_seed=01020304-0506-0708-090a-0b0c0d0e0f10,root_owner=0:0";
    let mut make = vec!["-q", "-F", "-N", "64", "-m", "0", "-E", identity];
    make.extend(["-U", "11121314-1516-1718-191a-1b1c1d1e1f20"]);
    if !recipe.mke2fs.contains("-t ") {
        make.extend(["-t", "ext4"]);
    }
    make.extend(recipe.mke2fs.split(' '));
    make.extend([image, recipe.size]);
    let _ = fs::remove_file(path);
    tool("mke2fs", &make)?;

    // In this order their numbers are 12 and up.
    let mut script = String::from("write SMALL small\nwrite SPARSE sparse\nmkdir many\n");
    script += "symlink short small\n";
    script += &format!("symlink long {}\n", "long/".repeat(25));
    script += "mknod pipe p\nmknod char c 5 1\nmknod block b 259 70000\n";
    script += "ea_set small user.a first\nea_set small user.long-name second\n";
    script += "ea_set sparse security.x third\nea_set -f ACL small system.posix_acl_access\n";
    // Too large for most of them.
    script += "ea_set -f VALUE small user.large\n";
    script += &"expand_dir many\n".repeat(3);
    script += "cd many\n";
    for number in 0..50 {
        let name = format!("{number:02}{}", "name-".repeat(number % 12));
        script += &format!("ln /small {name}\n");
    }
    script += "cd /\nset_inode_field small links_count 51\n";
    debugfs(image, &script, scratch)?;
    tool("e2fsck", &["-fyD", image])?;
    if !recipe.more.is_empty() {
        debugfs(image, &recipe.more.join("\n"), scratch)?;
    }
    let end = fs::read(path)?;
    let used = end.iter().rev().take_while(|byte| **byte == 0).count();
    ensure!(used >= 8 * 4096, "{image}: its last blocks are in use, and should be free");
    Ok(())
}

/// Lets debugfs follow a script, leaving out what this image cannot have; names in
/// capitals are files of `scratch`.
pub(super) fn debugfs(image: &str, script: &str, scratch: &Path) -> anyhow::Result<String> {
    let mut text = script.to_owned();
    for name in ["SMALL", "SPARSE", "VALUE", "ACL", "BLOCKS"] {
        // A path may have spaces.
        text = text.replace(name, &format!("\"{}\"", scratch.join(name).display()));
    }
    let path = scratch.join("script");
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    let script = path.to_str().context("the build directory's name is not UTF-8")?;
    tool("debugfs", &["-w", "-f", script, image])
}
