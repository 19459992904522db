//! `up`, `ls`, `show`, `down` as a user calls them.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn oslet(directory: &Path, arguments: &[&str]) -> Output {
    let name = format!("test{}", std::process::id());
    Command::new(env!("CARGO_BIN_EXE_oslet"))
        .arg("--dir")
        .arg(directory.join("a run"))
        .args(["--cluster", &name])
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn listing(directory: &Path) -> serde_json::Value {
    serde_json::from_slice(&oslet(directory, &["ls", "--json"]).stdout).unwrap()
}

fn kill(pid: &serde_json::Value) {
    let pid = pid.as_u64().and_then(|pid| i32::try_from(pid).ok());
    let pid = rustix::process::Pid::from_raw(pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Ends a cluster that a failed test has left.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        oslet(self.0, &["down"]);
    }
}

#[test]
fn a_cluster_goes_up_survives_a_kill_and_goes_down() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be sure to have namespaces and control groups");
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let directory = top.path();
    let _down = Down(directory);
    std::fs::write(
        directory.join("oslet.toml"),
        "[region]\nsize = \"64M\"\n[[oslet]]\nname = \"o0\"\nrestart = true\n\
         [[oslet]]\nname = \"o1\"\n",
    )
    .unwrap();
    for command in [&["ls"][..], &["down"], &["show", "o0"], &["ps"], &["ps", "o0"]] {
        assert_eq!(oslet(directory, command).status.code(), Some(1), "{command:?}");
    }
    for (command, json) in [("ls", "[]\n"), ("ps", "[]\n"), ("show", "null\n")] {
        let name = if command == "show" { &["o0"][..] } else { &[] };
        let output = oslet(directory, &[&[command, "--json"], name].concat());
        assert_eq!(String::from_utf8_lossy(&output.stdout), json, "{command}");
        assert!(text(&output).contains("no cluster runs there"), "{command}");
    }
    let up = oslet(directory, &["up", "-d"]);
    assert!(up.status.success(), "{}", text(&up));
    let refused = oslet(directory, &["up", "-d"]);
    assert_eq!(refused.status.code(), Some(2));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("runs already") && refused.stdout.is_empty(), "{}", text(&refused));

    let rows = listing(directory);
    assert_eq!((&rows[0]["state"], &rows[1]["state"]), (&"alive".into(), &"alive".into()));
    for command in ["show", "ps"] {
        let other = oslet(directory, &[command, "o7"]);
        assert_eq!(other.status.code(), Some(1), "{command}");
        assert!(text(&other).contains("not here (o0, o1)"), "{}", text(&other));
    }
    let show = oslet(directory, &["show", "o0"]);
    assert!(text(&show).contains("control group"), "{}", text(&show));
    assert_eq!(text(&oslet(directory, &["run", "o1", "hostname"])), "o1\n");

    kill(&rows[0]["pid"]);
    let start = Instant::now();
    loop {
        let rows = listing(directory);
        if rows[0]["state"] == "alive" && rows[0]["epoch"] == 2 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{rows}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(text(&oslet(directory, &["run", "o0", "hostname"])), "o0\n");
    without_launcher(directory);

    let down = oslet(directory, &["down", "--json"]);
    assert!(down.status.success() && text(&down).contains("\"stopped\""), "{}", text(&down));
    assert!(!directory.join("a run").exists());
    let groups = format!("/sys/fs/cgroup/cpuset/oslet/test{}", std::process::id());
    assert!(!Path::new(&groups).exists());
}

/// The launcher dies: nobody is harmed, and who looks is told.
fn without_launcher(directory: &Path) {
    let tells = |command: &[&str]| {
        let output = oslet(directory, command);
        assert!(output.status.success(), "{}", text(&output));
        text(&output).contains("has ended: who dies is not started again")
    };
    let launcher = listing(directory)[1]["launcher"].clone();
    assert!(!tells(&["ls"]) && !tells(&["show", "o1"]));
    kill(&launcher);
    let start = Instant::now();
    while !listing(directory)[1]["launcher"].is_null() {
        assert!(start.elapsed() < Duration::from_secs(10), "it is dead and shown");
    }
    assert!(tells(&["ls"]) && tells(&["show", "o1"]));
    let show = oslet(directory, &["show", "o1", "--json"]).stdout;
    let show: serde_json::Value = serde_json::from_slice(&show).unwrap();
    assert!(show["launcher"].is_null() && show["state"] == "alive", "{show}");
    assert_eq!(text(&oslet(directory, &["run", "o1", "hostname"])), "o1\n");
}
