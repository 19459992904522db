//! Bad input on the real command line: an error that names the thing and its value, status 2, and
//! nothing left running, mounted or locked.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use oslet::region::layout::LAYOUT_VERSION;
use rustix::fs::FlockOperation;
use tests::cluster::{Cluster, said};
use tests::fsdiff::Image;
use tests::kernel::{self, LoopMount};

/// Configurations, and what the message says.
const CONFIGURATIONS: [(&str, &str); 17] = [
    ("colour = 1\n", "bad.toml:1: unknown key \"colour\""),
    ("\n[[oslet]]\nname = \"o0\"\nfoo = 1\n", "bad.toml:4: "),
    ("oslets = 3\n[[oslet]]\n[[oslet]]\n", "bad.toml:1: oslets = 3, but there are 2"),
    ("[[oslet]]\nname = \"a\"\n[[oslet]]\nname = \"a\"\n", "bad.toml:4: "),
    ("[[oslet]]\ncpus = \"0\"\n[[oslet]]\ncpus = \"0\"\n", "bad.toml:4: oslet number 2: cpus: 0"),
    ("[[oslet]]\ncpus = \"0\"\n[[oslet]]\ncpus = \"777\"\n", "bad.toml:4: oslet \"o1\": cpus: 777"),
    ("[[oslet]]\nmem = \"node99\"\n", "bad.toml:2: oslet \"o0\": mem: no node 99"),
    ("[region]\nsize = \"64K\"\n", "bad.toml:2: region: size: 64.0 KiB is too small"),
    ("[region]\nsize = \"9000G\"\n", " TiB is more than the"),
    ("[region]\nsize = \"lots\"\n", "bad.toml:2: "),
    ("[region]\nbacking = \"/no/such/place/x\"\n", "/no/such/place"),
    ("[region]\nbacking = \"shm\"\n", "bad.toml:2: region: backing = \"shm\" is not known"),
    ("oslets = 65\n", "bad.toml:1: oslets = 65: use 1 to 64"),
    ("oslets = 2\noslets = 3\n", "bad.toml:2: duplicate key"),
    (
        "[[device]]\nname = \"r\"\nram = \"64M\"\n[[volume]]\nname = \"v\"\ndevice = \"r\"\n",
        "bad.toml:6: volume \"v\": device \"r\" is a RAM disk",
    ),
    (
        "[[device]]\nname = \"d\"\npath = \"x\"\n[[device]]\nname = \"e\"\npath = \"x\"\n",
        "bad.toml:6: device \"e\": ",
    ),
    (
        "[[device]]\nname = \"hda\"\npath = \"x\"\nowner = \"o7\"\n",
        "bad.toml:4: device \"hda\": owner \"o7\"",
    ),
];

fn is_root() -> bool {
    let missing = kernel::missing();
    if let Some(why) = &missing {
        println!("skipped: {why}");
    }
    missing.is_none()
}

/// Fails unless that is a refusal in these words, after which nothing of the cluster is there.
fn refused(cluster: &Cluster, output: &Output, words: &[&str]) -> Result<()> {
    let text = said(output);
    ensure!(output.status.code() == Some(2), "{words:?}: {text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors.lines().rev().find(|line| words.iter().all(|word| line.contains(word)));
    ensure!(line.is_some(), "no line with {words:?}: {text}");
    ensure!(!text.contains("panicked") && !errors.contains("RUST_BACKTRACE"), "{text}");
    cluster.assert_gone(&[]).with_context(|| text)
}

/// Nobody holds the file.
fn is_free(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("{} is still locked", path.display()))
}

#[test]
fn configurations_are_refused_by_file_and_line() -> Result<()> {
    let cluster = Cluster::new()?;
    for (text, expected) in CONFIGURATIONS {
        fs::write(cluster.path("bad.toml"), text)?;
        let output = cluster.output(&["up", "-d", "-c", "bad.toml"])?;
        refused(&cluster, &output, &[expected]).with_context(|| text)?;
    }
    let output = cluster.output(&["up", "-d", "-c", "none.toml"])?;
    refused(&cluster, &output, &["none.toml", "No such file"])?;
    println!("ran: {} bad configurations", CONFIGURATIONS.len() + 1);
    Ok(())
}

/// Images, by what is wrong with them, and what the message says.
fn images(cluster: &Cluster) -> Result<Vec<(&'static str, Vec<&'static str>)>> {
    let good = cluster.path("good.img");
    Image::make(&good, 32, "-t ext4", None)?;
    let copy = |name: &str| -> Result<File> {
        fs::copy(&good, cluster.path(name))?;
        Ok(File::options().write(true).open(cluster.path(name))?)
    };
    File::create(cluster.path("empty.img"))?;
    fs::write(cluster.path("text.img"), "no filesystem at all\n".repeat(10_000))?;
    fs::write(cluster.path("short.img"), "short")?;
    copy("truncated.img")?.set_len(10 << 20)?;
    copy("corrupt.img")?.write_all_at(&[0xff; 4], 1024 + 24)?;
    // The first group's descriptor, for blocks of 1 KiB and of 4 KiB.
    let rootless = copy("rootless.img")?;
    rootless.write_all_at(&[0xff; 64], 2048)?;
    rootless.write_all_at(&[0xff; 64], 4096)?;
    copy("feature.img")?.write_all_at(&[0xff; 4], 1024 + 96)?;
    fs::create_dir(cluster.path("directory.img"))?;
    Ok(vec![
        ("missing.img", vec!["No such file or directory"]),
        ("empty.img", vec!["empty"]),
        ("text.img", vec!["no ext2, ext3 or ext4"]),
        ("short.img", vec![]),
        ("truncated.img", vec!["truncated", "33554432", "10485760"]),
        ("corrupt.img", vec!["superblock"]),
        ("rootless.img", vec!["descriptor of group 0"]),
        ("feature.img", vec![]),
        ("directory.img", vec!["a directory"]),
    ])
}

#[test]
fn images_are_refused_by_name() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    fs::create_dir(cluster.path("here"))?;
    let cases = images(&cluster)?;
    for (name, words) in &cases {
        let words: Vec<&str> = [&[*name][..], words].concat();
        for arguments in [&["up", "-d", "--image", name][..], &["mount", name, "here"]] {
            let output = cluster.output(arguments)?;
            refused(&cluster, &output, &words).with_context(|| format!("{arguments:?}"))?;
        }
        if cluster.path(name).is_file() {
            is_free(&cluster.path(name))?;
        }
    }
    println!("ran: {} bad images, by up and by mount", cases.len());
    Ok(())
}

#[test]
fn what_is_in_use_is_refused() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (first, second) = (Cluster::new()?, Cluster::new()?);
    let image = first.path("disk.img");
    Image::make(&image, 32, "-t ext4", None)?;
    let image_text = kernel::arg(&image);

    let mount = LoopMount::new(&image, &first.path("mounted"), "")?;
    let output = second.output(&["up", "-d", "--image", image_text])?;
    let place = mount.dir().to_string_lossy().into_owned();
    refused(&second, &output, &["disk.img", "mounted by the kernel", &place])?;
    mount.unmount()?;

    let region = format!("/dev/shm/{}", first.name());
    let configuration = |image: &str| {
        format!(
            "[region]\nsize = \"32M\"\nbacking = \"{region}\"\n[[oslet]]\n[[oslet]]\n\
             [[device]]\nname = \"hda\"\npath = \"{image}\"\n\
             [[volume]]\nname = \"root\"\ndevice = \"hda\"\nmount = \"/global\"\n"
        )
    };
    fs::write(first.path("oslet.toml"), configuration("disk.img"))?;
    first.ok(&["up", "-d"])?;
    // The image, by another cluster, by a mount, and by the kernel's tools' rules.
    let output = second.output(&["up", "-d", "--image", image_text])?;
    refused(&second, &output, &["disk.img", "in use by process"])?;
    fs::create_dir(second.path("here"))?;
    let output = second.output(&["mount", image_text, "here"])?;
    refused(&second, &output, &["disk.img", "in use by process"])?;
    // The region.
    Image::make(&second.path("other.img"), 32, "-t ext4", None)?;
    fs::write(second.path("oslet.toml"), configuration("other.img"))?;
    let output = second.output(&["up", "-d"])?;
    refused(&second, &output, &[&region, "in use by another cluster"])?;
    // The name.
    let again = first.output(&["up", "-d"])?;
    ensure!(again.status.code() == Some(2), "{}", said(&again));
    ensure!(said(&again).contains("runs already"), "{}", said(&again));
    // The one that was there first noticed nothing.
    first.ok(&["run", "o1", "--", "ls", "/global/lost+found"])?;
    first.ok(&["down"])?;
    first.assert_gone(&[])?;
    ensure!(!Path::new(&region).exists(), "{region} is left");

    // A region of another layout version, and a file that is none.
    let mut old = b"OSLETCTL".to_vec();
    let other = LAYOUT_VERSION + 1;
    old.extend_from_slice(&other.to_ne_bytes());
    old.extend_from_slice(&4096_u32.to_ne_bytes());
    old.resize(4096, 0);
    let words = format!("layout version {other}");
    for (contents, words) in [(old, &words[..]), (vec![7; 4096], "not a region file")] {
        fs::write(&region, &contents)?;
        let output = first.output(&["up", "-d"])?;
        let checked = refused(&first, &output, &[&region, words]);
        let kept = fs::read(&region);
        fs::remove_file(&region)?;
        checked?;
        ensure!(kept? == contents, "{region} was changed");
    }
    is_free(&image)?;
    kernel::assert_clean(&image)
}

#[test]
fn block_devices_that_the_kernel_uses_are_refused() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let image = cluster.path("disk.img");
    Image::make(&image, 32, "-t ext4", None)?;
    fs::create_dir(cluster.path("here"))?;
    let mount = LoopMount::new(&image, &cluster.path("mounted"), "")?;
    let device = format!("/dev/{}", mount.device());
    let place = mount.dir().to_string_lossy().into_owned();
    for arguments in [&["up", "-d", "--image", &device][..], &["mount", &device, "here"]] {
        let output = cluster.output(arguments)?;
        let text = said(&output);
        // The test's own mount is still there: what is left is looked at afterwards.
        ensure!(output.status.code() == Some(2), "{text}");
        ensure!(text.contains(&format!("{device}: mounted on {place}")), "{text}");
    }
    mount.unmount()?;
    cluster.assert_gone(&[])?;
    let device = kernel::run("losetup", &["--find", "--show", kernel::arg(&image)])?;
    let device = device.trim();
    let checked = (|| {
        // The file has the device for a user; the device itself is free.
        let output = cluster.output(&["up", "-d", "--image", "disk.img"])?;
        let text = said(&output);
        ensure!(output.status.code() == Some(2), "{text}");
        ensure!(text.contains(&format!("disk.img: in use by the kernel as {device}")), "{text}");
        cluster.ok(&["up", "-d", "--image", device])?;
        let second = Cluster::new()?;
        let output = second.output(&["up", "-d", "--image", device])?;
        refused(&second, &output, &[device, "in use by process"])?;
        cluster.ok(&["run", "o1", "--", "ls", "/global/lost+found"])?;
        cluster.ok(&["down"]).map(drop)
    })();
    kernel::run("losetup", &["-d", device])?;
    checked?;
    cluster.assert_gone(&[])
}

#[test]
fn an_image_that_another_machine_uses_is_refused() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (first, second) = (Cluster::new()?, Cluster::new()?);
    let (image, copy) = (first.path("disk.img"), second.path("disk.img"));
    Image::make(&image, 32, "-t ext4 -b 4096 -O mmp -E mmp_update_interval=1", None)?;
    first.ok(&["up", "-d", "--image", "disk.img"])?;
    // The same disk by another way, as another machine has it: whatever the first cluster writes to
    // the block of multi-mount protection is there too.
    fs::copy(&image, &copy)?;
    let text = kernel::run("debugfs", &["-c", "-R", "dump_mmp", kernel::arg(&copy)])?;
    let block = text.lines().find_map(|line| line.strip_prefix("block_number: "));
    let block: u64 = block.context("no block_number")?.trim().parse()?;
    let (from, to) = (File::open(&image)?, File::options().write(true).open(&copy)?);
    let done = std::sync::atomic::AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let mirror = scope.spawn(|| -> std::io::Result<()> {
            let mut bytes = [0; 4096];
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                from.read_exact_at(&mut bytes, block * 4096)?;
                to.write_all_at(&bytes, block * 4096)?;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            Ok(())
        });
        let output = second.output(&["up", "-d", "--image", "disk.img"]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        mirror.join().map_err(|_| anyhow::anyhow!("the mirror has panicked"))??;
        output
    })?;
    let who = format!("oslet {}", first.name());
    refused(&second, &output, &["disk.img: mmp: ", &who])?;
    is_free(&copy)?;
    first.ok(&["down"])?;
    first.assert_gone(&[])
}

#[test]
fn a_damaged_object_is_an_error_of_its_own() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let tree = cluster.path("tree");
    for dir in ["good", "bad-dir"] {
        fs::create_dir_all(tree.join(dir))?;
        fs::write(tree.join(dir).join("file"), dir)?;
    }
    fs::write(tree.join("bad-inode"), "lost")?;
    let path = cluster.path("disk.img");
    let image = Image::make(&path, 32, "-t ext4 -b 4096", Some(&tree))?;
    let ask = |command: &str| kernel::run("debugfs", &["-R", command, kernel::arg(&image.path)]);
    let number = |text: &str| text.trim().parse::<u64>().context(text.to_owned());
    let block = number(ask("bmap /bad-dir 0")?.trim())?;
    let place = ask("imap /bad-inode")?;
    // "Inode 14 is part of block group 0\n\tlocated at block 38, offset 0x0d00"
    let place = place.split("located at block ").nth(1).context("imap")?.to_owned();
    let (table, offset) = place.trim().split_once(", offset 0x").context("imap")?;
    let inode = number(table)? * 4096 + u64::from_str_radix(offset, 16)?;
    let file = File::options().write(true).open(&path)?;
    file.write_all_at(&[0x5a; 64], block * 4096 + 24)?;
    file.write_all_at(&[0x5a; 64], inode + 4)?;
    drop(file);

    cluster.ok(&["up", "-d", "--image", "disk.img"])?;
    for oslet in 0..2 {
        let global = cluster.inside(oslet, "/global")?;
        ensure!(fs::read_to_string(global.join("good/file"))? == "good");
        for name in ["bad-dir", "bad-inode"] {
            let read_names = |dir| fs::read_dir(dir)?.try_for_each(|entry| entry.map(drop));
            let error = match name {
                "bad-dir" => read_names(global.join(name)).err(),
                _ => fs::read(global.join(name)).err(),
            };
            let code = error.as_ref().and_then(std::io::Error::raw_os_error);
            // EUCLEAN, EIO
            ensure!(matches!(code, Some(117 | 5)), "o{oslet}: {name}: {error:?}");
        }
        let absent = fs::metadata(global.join("absent")).map_err(|error| error.kind());
        ensure!(absent.err() == Some(ErrorKind::NotFound));
        ensure!(fs::read_to_string(global.join("good/file"))? == "good");
    }
    cluster.ok(&["down"])?;
    cluster.assert_gone(&[])
}
