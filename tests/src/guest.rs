//! A machine under another kernel: qemu boots one with an initramfs that holds the program, what it
//! needs, and a script. Without KVM that takes a few seconds.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const QEMU: &str = "qemu-system-x86_64";

/// Two CPUs, the threads of one core, in each of four nodes; a fifth with memory alone. All CPUs
/// are one thread of qemu's: with several, a kernel that patches its own code (as it does for the
/// first cpuset) trips over its break points now and then.
const MACHINE: &str = "-machine pc -accel tcg,thread=single -cpu max,vendor=GenuineIntel \
    -m 2048 -smp 8,sockets=4,cores=1,threads=2 \
    -object memory-backend-ram,id=m0,size=448M -numa node,nodeid=0,cpus=0-1,memdev=m0 \
    -object memory-backend-ram,id=m1,size=448M -numa node,nodeid=1,cpus=2-3,memdev=m1 \
    -object memory-backend-ram,id=m2,size=448M -numa node,nodeid=2,cpus=4-5,memdev=m2 \
    -object memory-backend-ram,id=m3,size=448M -numa node,nodeid=3,cpus=6-7,memdev=m3 \
    -object memory-backend-ram,id=m4,size=256M -numa node,nodeid=4,memdev=m4 \
    -display none -serial stdio -monitor none -nic none -no-reboot";
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 hugepages=64";

/// The initramfs is no filesystem that can be pivoted away from: all moves to a tmpfs first.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t tmpfs -o size=70% root /new
/bin/busybox cp -a /bin /etc /lib /lib64 /root /sbin /usr /new/
exec /bin/busybox switch_root /new /bin/busybox sh /etc/main
";
const MAIN: &str = "/bin/busybox mkdir -p /proc /sys /dev /run /tmp /home
# What is here under its own name, in /sbin, comes before.
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
chmod 1777 /tmp /dev/shm; mount -t tmpfs run /run; mount -t cgroup2 cgroup /sys/fs/cgroup
sh /etc/script 2>&1
poweroff -f
";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
const GROUP: &str = "root:x:0:\nann:x:1000:\n";

/// A kernel to boot and the programs to boot it with.
pub struct Guest {
    kernel: PathBuf,
    busybox: PathBuf,
}

impl Guest {
    /// What this machine has; else what is missing. The kernel is `OSLET_KERNEL`, or what
    /// `cargo xtask kernel` has put into the build directory.
    ///
    /// # Errors
    /// A sentence for the reader of the tests.
    pub fn find() -> std::result::Result<Self, String> {
        if Command::new(QEMU).arg("--version").output().is_err() {
            return Err(format!("needs {QEMU} (package qemu-system-x86)"));
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
        let busybox = busybox.into_iter().find(|path| path.is_file() && libraries(path).is_empty());
        let busybox = busybox.ok_or("needs a static busybox (package busybox-static)")?;
        let kernel = std::env::var_os("OSLET_KERNEL").map(PathBuf::from).or_else(fetched);
        let kernel = kernel.ok_or("needs a kernel: cargo xtask kernel, or OSLET_KERNEL=FILE")?;
        Ok(Self { kernel, busybox })
    }

    /// Boots and runs a shell script in which these programs can be called by name. All that was
    /// written to the console.
    ///
    /// # Errors
    /// When the machine cannot be made or takes longer than the limit.
    pub fn run(&self, script: &str, programs: &[&Path], limit: Duration) -> Result<String> {
        let directory = tempfile::Builder::new().prefix("oslet-guest").tempdir()?;
        let initrd = directory.path().join("initrd");
        fs::write(&initrd, self.archive(script, programs)?)?;
        let mut command = Command::new(QEMU);
        command.args(MACHINE.split_whitespace()).arg("-kernel").arg(&self.kernel);
        command.arg("-initrd").arg(&initrd).args(["-append", KERNEL_ARGUMENTS]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context(QEMU)?;
        let mut console = child.stdout.take().context("no console")?;
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = console.read_to_end(&mut text);
            (read, text)
        });
        let deadline = Instant::now() + limit;
        let late = loop {
            if child.try_wait()?.is_some() {
                break false;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                break true;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let (read, text) = reader.join().ok().context("the console's reader has panicked")?;
        read?;
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        ensure!(!late, "no end in {} s; so far:\n{text}", limit.as_secs());
        Ok(text)
    }

    fn archive(&self, script: &str, programs: &[&Path]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["dev", "etc", "lib", "lib64", "new", "root", "sbin", "usr", "bin"] {
            archive.directory(directory);
        }
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("bin/busybox", 0o755, &fs::read(&self.busybox)?);
        // The kernel opens it before anything can mount /dev.
        archive.entry("dev/console", 0o20600, (5, 1), &[]);
        let texts = [("main", MAIN), ("script", script), ("passwd", PASSWD), ("group", GROUP)];
        for (name, text) in texts {
            archive.file(&format!("etc/{name}"), 0o644, text.as_bytes());
        }
        let mut needed = BTreeSet::new();
        for program in programs {
            let name = program.file_name().context("a program without a name")?;
            let bytes = fs::read(program).with_context(|| program.display().to_string())?;
            archive.file(&format!("sbin/{}", name.display()), 0o755, &bytes);
            needed.extend(libraries(program));
        }
        for library in needed {
            let bytes = fs::read(&library).with_context(|| library.display().to_string())?;
            let path = library.to_string_lossy();
            archive.file(path.trim_start_matches('/'), 0o755, &bytes);
        }
        Ok(archive.finish())
    }
}

/// TARGET/kernel, seen from TARGET/PROFILE/deps/TEST.
fn fetched() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let kernels = test.ancestors().nth(3)?.join("kernel");
    let found = fs::read_dir(kernels).ok()?.flatten().map(|entry| entry.path());
    let mut found: Vec<_> =
        found.filter(|path| path.to_string_lossy().contains("vmlinuz")).collect();
    found.sort();
    found.pop()
}

/// What the dynamic linker loads for a program: absolute paths. None for a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words =
        text.lines().filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    words.filter(|word| !word.ends_with(':')).map(PathBuf::from).collect()
}

/// A cpio archive in the "newc" format: the kernel's initramfs buffer format.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    count: u32,
}

impl Archive {
    fn directory(&mut self, path: &str) {
        if self.directories.insert(path.to_owned()) {
            self.entry(path, 0o40755, (0, 0), &[]);
        }
    }

    /// A file, with the directories above it.
    fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        let parents = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        for parent in parents.collect::<Vec<_>>() {
            self.directory(&parent);
        }
        self.entry(path, 0o100_000 | mode, (0, 0), contents);
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.count += 1;
        let size = contents.len() as u32;
        let name = path.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, user, group, links, time, size, device, number of a node, name, checksum
        let fields = [self.count, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}
