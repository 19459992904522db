//! `oslet up --dry-run` as a user runs it, on captured machines.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Unpacks a captured machine and returns its root.
fn unpack(machine: &str, into: &Path) -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oslet/testdata/topologies");
    let archives = std::env::var_os("OSLET_TOPOLOGIES").map_or(beside, PathBuf::from);
    let path = archives.join(format!("{machine}.tar.bz2"));
    let packed = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    tar::Archive::new(bzip2_rs::DecoderReader::new(packed)).unpack(into).unwrap();
    let mut roots = std::fs::read_dir(into).unwrap();
    roots.next().expect("a directory in the archive").unwrap().path()
}

/// Runs the command in a directory of its own, so that no configuration lies around.
fn oslet(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oslet")).args(args).current_dir(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_plan_of_a_captured_machine() {
    let dir = tempfile::Builder::new().prefix("with blanks ").tempdir().unwrap();
    let root = unpack("16amd64-8n2c", dir.path());
    let expected = "\
Cluster  main, files in /x
Machine  16 CPUs on 16 cores, 8 nodes; 61.5 GiB of 63.9 GiB free
Region   3.8 GiB in memfd: 1.9 GiB for each OSlet

OSLET  CPUS  CORES  NODES  MEMORY    KIND       TMP   RESTART
o0     0-7   8      0-3    31.9 GiB  namespace  host  no
o1     8-15  8      4-7    32.0 GiB  namespace  host  no

DEVICE  OWNER  STANDBY  SOURCE
hda     o0     -        oslet.img (made if it is not there)

VOLUME  DEVICE  MOUNT    ACCESS
root    hda     /global  read-write
";
    for sysfs in [root.clone(), root.join("sys")] {
        let sysfs = sysfs.to_str().unwrap();
        let output = oslet(dir.path(), &["up", "--dry-run", "--sysfs", sysfs, "--dir", "/x"]);
        assert_eq!(text(&output.stderr), "");
        assert_eq!(text(&output.stdout), expected, "{sysfs}");
        assert_eq!(output.status.code(), Some(0));
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "a dry run made something: {left:?}");
}

#[test]
fn the_plan_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let root = unpack("32amd64-4s2n4c-cgroup2", dir.path());
    let root = root.to_str().unwrap();
    let output = oslet(dir.path(), &["up", "--dry-run", "--json", "--sysfs", root]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["machine"]["allowed"], "0-5");
    assert_eq!(plan["oslets"][0]["cpus"], "0-3");
    assert_eq!(plan["oslets"][1]["nodes"], "1");
    assert_eq!(plan["oslets"][1]["memory_only"], "3,5");
    assert_eq!(plan["devices"][0]["source"]["path"]["path"], "oslet.img");
}

#[test]
fn this_machine_has_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    for count in ["1", "2", "64"] {
        let output = oslet(dir.path(), &["up", "--dry-run", "--oslets", count]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
}

#[test]
fn errors_are_lines_on_standard_error_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let bad = "oslets = 2\n[[device]]\nname = \"hda\"\nram = \"1G\"\nowner = \"o7\"\nx = 1\n";
    std::fs::write(dir.path().join("oslet.toml"), bad).unwrap();
    let output = oslet(dir.path(), &["up", "--dry-run"]);
    assert_eq!(
        text(&output.stderr),
        "oslet.toml:5: device \"hda\": owner \"o7\" is no OSlet here (o0, o1)\n\
         oslet.toml:6: device \"hda\": unknown key \"x\"; known are linear, mirror, name, nbd, \
         owner, path, ram, standby, stripe\n"
    );
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
    for args in [
        &["up", "--dry-run", "-c", "none.toml"][..],
        &["up", "--dry-run", "--sysfs", "none"],
        &["up", "--dry-run", "--oslets", "65"],
        &["up", "--dry-run", "--cluster", "a/b"],
        &["up", "--bogus"],
        &["completions", "tcl"],
        &[],
    ] {
        let output = oslet(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_name_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = oslet(dir.path(), &["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("dry-run"), "{shell}");
    }
}
