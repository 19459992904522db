//! Power that fails at every moment of workloads: what was promised is there.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxydev::layer::Event;
use tests::crash::check::{Checker, Counts, Effort, kept_image, tree};
use tests::crash::promise::History;
use tests::crash::workload::{count, setup, workload};
use tests::crash::{Recording, dirty_image, record};
use tests::kernel::{self, LoopMount};
use tests::opfuzz::dir::Ways;
use tests::opfuzz::generate::Random;
use tests::opfuzz::model::Traits;
use tests::opfuzz::op::Op;
use tests::opfuzz::volumes::Mounter;
use tests::program::ours;
use tests::world::World;

/// Kinds of volumes: arguments of mke2fs, bytes of a block, mebibytes.
const KINDS: [(&str, u64, usize); 2] =
    [("-t ext4 -b 1024 -J size=1", 1024, 8), ("-t ext4 -b 4096 -J size=4", 4096, 16)];

/// Options of kernel ext4. Without the last one it puts data into extents that count as unwritten
/// until a later transaction: what replaces a file by renaming may be zeros after a crash.
const STRICT: &str = "noatime,nodioread_nolock";

fn ext4(options: &'static str) -> Mounter {
    std::rc::Rc::new(move |image, dir| Ok(Box::new(LoopMount::new(image, dir, options)?)))
}

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("crash-").tempdir_in("/dev/shm")?)
}

fn full() -> bool {
    std::env::var_os("OSLET_FULL").is_some()
}

/// Workloads: all of one operation, and samples of two and three.
fn chosen(few: [usize; 3], many: [usize; 3], seed: u64) -> Vec<(u32, u64)> {
    let mut random = Random::new(seed);
    let mut all = Vec::new();
    for (length, wanted) in (1..).zip(if full() { many } else { few }) {
        let count = count(length);
        if wanted as u64 >= count {
            all.extend((0..count).map(|index| (length, index)));
        } else {
            all.extend((0..wanted).map(|_| (length, random.below(count))));
        }
    }
    all
}

/// Records a workload and checks all crashes.
fn check(
    top: &Path,
    base: &[u8],
    block: u64,
    (mounter, ways, strict): (&Mounter, Ways, bool),
    ops: &[Op],
    change: impl Fn(&mut Recording),
) -> Result<Counts> {
    let mut recording = record(top, base.to_vec(), (mounter, ways), ops)?;
    change(&mut recording);
    let history = History::new(ops, Traits::ext4(block));
    let history = if strict { history.strict() } else { history };
    let checker = Checker::new(&recording, &history, top, Effort::usual(), 1);
    checker.run(setup().len())
}

fn shown(ops: &[Op]) -> String {
    let ops = ops.iter().skip(setup().len()).map(|op| format!("  {op}\n"));
    ops.collect()
}

#[test]
fn kernel_ext4_keeps_its_promises() -> Result<()> {
    promises("kernel ext4", &ext4(STRICT), Ways::default(), false)
}

/// The program's own mounts, on a disk that is recorded.
#[test]
fn our_mounts_keep_their_promises() -> Result<()> {
    // Through FUSE nobody hears of syncfs(2).
    promises("a mount of ours", &ours("cache=32M,noatime"), FUSE, false)
}

/// With `data=journal` contents are as they were between two operations as well.
#[test]
fn journaled_contents_keep_the_order_of_all_else() -> Result<()> {
    let mounter = ours("cache=32M,noatime,data=journal");
    promises("a mount of ours with data=journal", &mounter, FUSE, true)
}

const FUSE: Ways = Ways { ticks: true, sync_each: true };

fn promises(name: &str, mounter: &Mounter, ways: Ways, strict: bool) -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for (kind, block, megabytes) in KINDS {
        let dir = scratch()?;
        let base = dirty_image(&dir.path().join("base.img"), megabytes, kind)?;
        let mut sum = Counts::default();
        let all = chosen([3, 6, 3], [104, 150, 150], block);
        for (length, index) in &all {
            let ops = workload(*length, *index);
            let counts = check(dir.path(), &base, block, (mounter, ways, strict), &ops, |_| ())
                .with_context(|| format!("{kind}, workload {length}/{index}:\n{}", shown(&ops)))?;
            sum.states += counts.states;
            sum.images += counts.images;
            sum.compared += counts.compared;
        }
        println!("{kind}: {sum:?}");
        println!("ran: {} crashes in {} workloads on {name}", sum.states, all.len());
    }
    Ok(())
}

/// Files that are replaced at a time: more than go to a disk while the last one is closed.
const REPLACED: usize = 48;

/// Replaces the contents of a file, in one of the ways that programs have.
fn replace(path: &Path, way: usize, contents: &[u8]) -> Result<()> {
    let mut writing = OpenOptions::new();
    writing.write(true);
    match way % 4 {
        0 => std::fs::write(path, contents)?,
        // With more than one descriptor: the last one counts, whichever that is.
        1 => {
            let mut file = File::create(path)?;
            let mut other = file.try_clone()?;
            drop(file.try_clone()?);
            file.write_all(&contents[..1000])?;
            drop(file);
            other.write_all(&contents[1000..])?;
        }
        2 => {
            let file = writing.open(path)?;
            file.set_len(0)?;
            (&file).write_all(contents)?;
        }
        // A shell opens the file and another program writes.
        _ => {
            let pipe = std::process::Stdio::piped();
            let mut shell = Command::new("sh");
            let command = shell.args(["-c", "cat > \"$0\"", tests::kernel::arg(path)]).stdin(pipe);
            let mut cat = command.spawn()?;
            cat.stdin.take().context("no pipe")?.write_all(contents)?;
            ensure!(cat.wait()?.success(), "cat");
        }
    }
    Ok(())
}

/// Contents that replace others are there as soon as anything later is that somebody waits for.
#[test]
fn closed_is_before_all_that_follows() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    for (ours, options) in [(true, "commit=300"), (false, "commit=300,nodioread_nolock")] {
        let mut world = World::new(ours, &["-t", "ext4"], options)?;
        let name = |index: usize| format!("file-{index}");
        let contents = |index: usize, round: u8| vec![round + 1; 3000 + 500 * index];
        for index in 0..REPLACED {
            let mut file = File::create(world.path(&name(index)))?;
            file.write_all(&contents(index, 0))?;
            file.sync_all()?;
        }
        let other = File::create(world.path("other"))?;
        for round in 1..4 {
            for index in 0..REPLACED {
                replace(&world.path(&name(index)), index, &contents(index, round))?;
            }
            other.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(
                0o600 + u32::from(round),
            ))?;
            other.sync_all()?;
            let found = tree(std::fs::read(world.recovered()?)?)?;
            for index in 0..REPLACED {
                let bytes = &found.get(&name(index)).context("it has gone")?.bytes;
                let whole = *bytes == contents(index, round);
                let way = index % 4;
                ensure!(whole, "ours: {ours}, round {round}, way {way}: {} bytes", bytes.len());
            }
        }
        drop(other);
        world.unmount()?;
        kernel::assert_clean(&world.image)?;
    }
    println!("ran: {REPLACED} files replaced three times");
    Ok(())
}

/// The checker sees what it is there for: writes that are not flushed in time, by a kernel that is
/// told not to and in a record that is changed; and a write that is lost.
#[test]
fn broken_orders_are_caught() -> Result<()> {
    if let Some(why) = kernel::missing() {
        println!("skipped: {why}");
        return Ok(());
    }
    let dir = scratch()?;
    let (kind, block, megabytes) = KINDS[0];
    let base = dirty_image(&dir.path().join("base.img"), megabytes, kind)?;
    let (sound, lazy) = (ext4(STRICT), ext4("noatime,nodioread_nolock,nobarrier"));
    // A new file and its fsync; a replacement by renaming and its fsync.
    for index in [26, 26 + 5] {
        let ops = workload(1, index);
        let run = |mounter: &Mounter, change: &dyn Fn(&mut Recording)| {
            check(dir.path(), &base, block, (mounter, Ways::default(), false), &ops, change)
        };
        run(&sound, &|_| ()).with_context(|| shown(&ops))?;
        let error = run(&lazy, &|_| ()).err().context("a kernel without flushes passed")?;
        println!("without flushes: {error:#}");
        let error = run(&sound, &|recording| {
            for event in &mut recording.events {
                if let Event::Flush { covers } = event {
                    *covers = 0;
                }
                if let Event::Change(change) = event {
                    change.fua = false;
                }
            }
        });
        let error = error.err().context("a record without flushes passed")?;
        println!("flushes that cover nothing: {error:#}");
        let error = run(&sound, &|recording| {
            // The last data of the workload's pattern: the first byte of each write is never 0.
            let is_data = |event: &Event| match event {
                Event::Change(change) => matches!(
                    &change.what,
                    proxydev::layer::What::Bytes(bytes) if bytes.starts_with(&PATTERN)
                ),
                _ => false,
            };
            if let Some(at) = recording.events.iter().rposition(is_data) {
                recording.events[at] = Event::Flush { covers: 0 };
            }
        });
        let error = error.err().context("a lost write passed")?;
        println!("a lost write: {error:#}");
    }
    // These failures were wanted: nobody looks into them.
    Ok(std::fs::remove_file(kept_image())?)
}

/// What a write with the first workload's seed begins with.
const PATTERN: [u8; 4] = [11, 12, 13, 14];
