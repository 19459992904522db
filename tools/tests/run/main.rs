//! `oslet run`, `shell`, `ps` and `kill` against an OSlet that this test keeps up.

#![forbid(unsafe_code)]

mod pty;
mod world;

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pty::Pty;
use world::{LIMIT, World};

#[test]
fn the_exit_status_is_the_commands() {
    let Some(world) = World::new() else { return };
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -9 $$", 137),
    ] {
        let output = world.oslet(&["run", "o0", "sh", "-c", script]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    let not_found = world.oslet(&["run", "o0", "no-such-command"]).output().unwrap();
    assert_eq!(not_found.status.code(), Some(127));
    let said = String::from_utf8_lossy(&not_found.stderr).into_owned();
    assert_eq!(said, "oslet: no-such-command: command not found in OSlet o0\n");
    let denied = world.oslet(&["run", "o0", "/etc/passwd"]).output().unwrap();
    assert_eq!(denied.status.code(), Some(126), "{denied:?}");
    let directory = world.oslet(&["run", "o0", "/etc"]).output().unwrap();
    assert_eq!(directory.status.code(), Some(126), "{directory:?}");
    let unknown = world.oslet(&["run", "o7", "true"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&unknown.stderr), "OSlet \"o7\": not here (o0)\n");
    for bad in [&["run", "o0"][..], &["run", "--no-such", "o0", "true"], &["run"]] {
        assert_eq!(world.oslet(bad).output().unwrap().status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn a_script_without_a_first_line_is_the_shells() {
    let Some(world) = World::new() else { return };
    let script = world.directory().join("a script");
    fs::write(&script, "echo \"$1\" $#").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut run = world.oslet(&["run", "o0"]);
    let output = run.arg(&script).args(["a b", "-c"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a b 2\n", "{output:?}");
}

#[test]
fn standard_streams_pass_untouched() {
    let Some(world) = World::new() else { return };
    // Every byte, more than a pipe holds, and no line end at the end.
    let bytes: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = world
        .oslet(&["run", "o0", "sh", "-c", "cat; echo error >&2; exit 3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == bytes);
    assert_eq!(output.stderr, b"error\n");
    assert_eq!(output.status.code(), Some(3));
    // The very file, offset and all, and descriptors beyond the third.
    let file = world.directory().join("file");
    let script = format!(
        "'{}' --dir '{}' run o0 sh -c 'echo one; echo three >&5' \
         >'{file}' 5>&1; echo two >>'{file}'",
        env!("CARGO_BIN_EXE_oslet"),
        world.directory().display(),
        file = file.display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(fs::read_to_string(file).unwrap(), "one\nthree\ntwo\n");
}

#[test]
fn the_environment_is_ours_but_for_what_is_said() {
    let Some(world) = World::new() else { return };
    let output = world
        .oslet(&["run", "-e", "A=1=2", "-e", "KEPT", "--env=GONE=", "o0", "--"])
        .args(["sh", "-c", "echo $A $KEPT \"[$GONE]\" $OSLET $OSLET_CLUSTER"])
        .env("KEPT", "kept")
        .env("GONE", "gone")
        .output()
        .unwrap();
    let cluster = world.cluster();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("1=2 kept [] o0 {cluster}\n"));
    // A name is looked for where the command's own PATH says.
    let output = world.oslet(&["run", "-e", "PATH=/nowhere", "o0", "ls"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    // A directory that may not be searched has nothing; a file that may not be executed is there.
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("plain"), "").unwrap();
    let path = format!("PATH={}:/usr/bin", directory.path().display());
    for (mode, code) in [(0o700, 127), (0o755, 126)] {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(directory.path(), permissions).unwrap();
        let mut run = world.oslet(&["run", "-u", "nobody", "-e", &path, "o0", "plain"]);
        assert_eq!(run.output().unwrap().status.code(), Some(code), "mode {mode:o}");
    }
    let odd = std::ffi::OsStr::from_bytes(b"ODD=\xff\xfe");
    let output =
        world.oslet(&["run", "-e"]).arg(odd).args(["o0", "printenv", "ODD"]).output().unwrap();
    assert_eq!(output.stdout, b"\xff\xfe\n");
}

#[test]
fn the_directory_is_kept_or_chosen() {
    let Some(world) = World::new() else { return };
    let said = |command: &mut Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let there = said(world.oslet(&["run", "o0", "pwd"]).current_dir("/usr/bin"));
    assert_eq!(there, (Some(0), "/usr/bin\n".to_owned()));
    // /dev/shm/... is the OSlet's own inside.
    let hidden = tempfile::tempdir_in("/dev/shm").unwrap();
    let elsewhere = said(world.oslet(&["run", "o0", "pwd"]).current_dir(hidden.path()));
    assert_eq!(elsewhere, (Some(0), "/\n".to_owned()));
    let chosen = said(&mut world.oslet(&["run", "-w", "/ltmp", "o0", "pwd"]));
    assert_eq!(chosen, (Some(0), "/ltmp\n".to_owned()));
    let missing = world.oslet(&["run", "-w", "/no/such", "o0", "pwd"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("working directory /no/such"));
}

#[test]
fn another_user_may_be_had() {
    let Some(world) = World::new() else { return };
    let output =
        world.oslet(&["run", "-u", "nobody", "o0", "sh", "-c", "id -un; id -G; echo $HOME"]);
    let output = { output }.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("nobody\n65534\n/"), "{output:?}");
    let output = world.oslet(&["run", "-u", "1234:5", "o0", "id", "-u"]).output().unwrap();
    assert_eq!(output.stdout, b"1234\n");
    let output = world.oslet(&["run", "-u", "no-such", "o0", "id"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn signals_are_passed_on() {
    let Some(world) = World::new() else { return };
    for signal in ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH", "ALRM", "RTMIN+3"] {
        let script =
            format!("trap 'echo got; exit 7' {signal}; echo up; while :; do sleep 0.01; done");
        let mut child = world
            .oslet(&["run", "o0", "bash", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        assert_eq!(world::line(&mut out), "up\n");
        let pid = child.id().to_string();
        assert!(
            Command::new("bash")
                .args(["-c", &format!("kill -{signal} {pid}")])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(world::line(&mut out), "got\n", "{signal}");
        assert_eq!(child.wait().unwrap().code(), Some(7), "{signal}");
    }
}

#[test]
fn the_command_dies_with_us_and_with_the_oslet() {
    let Some(mut world) = World::new() else { return };
    let start = |script: &str| {
        let mut child = world
            .oslet(&["run", "o0", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        assert_eq!(world::line(&mut out), "up\n");
        child
    };
    let mut killed = start("echo up; exec sleep 985");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let end = Instant::now() + LIMIT;
    let listed = |world: &World| {
        let output = world.oslet(&["ps", "o0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let orphan = start("echo up; exec sleep 984");
    while listed(&world).contains("sleep 985") {
        assert!(Instant::now() < end, "{}", listed(&world));
        sleep(Duration::from_millis(5));
    }
    assert!(listed(&world).contains("sleep 984"));
    world.end();
    let output = orphan.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, "oslet: OSlet o0 died; the command was killed\n");
    let after = world.oslet(&["run", "o0", "true"]).output().unwrap();
    assert_eq!(after.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&after.stderr), "OSlet o0 is gone\n");
    assert!(!listed(&world).contains("sleep"));
}

#[test]
fn a_stop_stops_us_and_a_continue_continues() {
    let Some(world) = World::new() else { return };
    let script = "echo up; kill -STOP $$; echo on; exit 4";
    let mut child =
        world.oslet(&["run", "o0", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    assert_eq!(world::line(&mut out), "up\n");
    world::until(|| world::state(child.id()) == 'T');
    assert!(
        Command::new("kill").args(["-CONT", &child.id().to_string()]).status().unwrap().success()
    );
    assert_eq!(world::line(&mut out), "on\n");
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn the_end_of_what_is_stopped_is_our_end() {
    let Some(world) = World::new() else { return };
    let mut child = world.oslet(&["run", "o0", "sh", "-c", "kill -STOP $$"]).spawn().unwrap();
    world::until(|| world::state(child.id()) == 'T');
    let of_run = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let words = stat.rsplit_once(") ").map_or("", |(_, words)| words);
        words.starts_with(&format!("T {} ", child.id()))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let stopped: Vec<u32> = pids.filter(of_run).collect();
    let [program] = stopped[..] else { panic!("{stopped:?}") };
    let kill = Command::new("kill").args(["-KILL", &program.to_string()]).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 9));
}

#[test]
fn a_terminal_is_as_for_a_direct_child() {
    let Some(world) = World::new() else { return };
    let oslet =
        format!("'{}' --dir '{}'", env!("CARGO_BIN_EXE_oslet"), world.directory().display());
    let mut pty = Pty::shell();
    // Window size, and that a change of it is told.
    pty.resize(33, 101);
    pty.say(&format!(
        "{oslet} run o0 bash -c 'stty size; trap \"stty size; exit\" WINCH; echo r''eady; \
         while :; do sleep 0.02; done'"
    ));
    pty.expect("33 101");
    pty.expect("ready");
    pty.resize(44, 102);
    pty.expect("44 102");
    pty.prompt();
    // Ctrl-C reaches the command, once; the shell sees its status.
    pty.say(&format!(
        "{oslet} run o0 bash -c 'n=0; trap \"n=\\$((n+1))\" INT; echo r''eady; \
         while [ $n = 0 ]; do sleep 0.02; done; sleep 0.1; echo n=$n.; exit 5'"
    ));
    pty.expect("ready");
    pty.key(3);
    pty.expect("n=1.");
    pty.prompt();
    pty.say("echo status=$?.");
    pty.expect("status=5.");
    pty.prompt();
    pty.say(&format!("{oslet} run o0 sh -c 'echo r''eady; sleep 100'"));
    pty.expect("ready");
    // A key in the middle of the shell's vfork is lost, without an OSlet too.
    sleep(Duration::from_millis(300));
    pty.key(3);
    pty.prompt();
    pty.say("echo status=$?.");
    pty.expect("status=130.");
    pty.prompt();
    // Ctrl-Z stops the job; it can be continued in the foreground.
    pty.say(&format!("{oslet} run o0 sh -c 'echo r''eady; read line; echo line=$line.; exit 6'"));
    pty.expect("ready");
    pty.key(26);
    pty.expect("Stopped");
    pty.prompt();
    pty.say("fg");
    pty.expect("exit 6'\r\n");
    pty.say("hello");
    pty.expect("line=hello.");
    pty.prompt();
    pty.say("echo status=$?.");
    pty.expect("status=6.");
    pty.prompt();
    // In the background it stops when it reads from the terminal.
    pty.say(&format!("{oslet} run o0 sh -c 'read line; echo line=$line.' &"));
    pty.prompt();
    world::until(|| {
        pty.say("jobs");
        pty.collect(Duration::from_millis(200)).contains("Stopped")
    });
    pty.say("fg");
    pty.expect("echo line=$line.'\r\n");
    pty.say("again");
    pty.expect("line=again.");
    pty.prompt();
    // From the background to the foreground.
    pty.say(&format!("{oslet} run o0 sh -c 'echo r''eady; sleep 100; exit 7'"));
    pty.expect("ready");
    sleep(Duration::from_millis(300));
    pty.key(26);
    pty.expect("Stopped");
    pty.prompt();
    pty.say("bg");
    pty.expect("exit 7' &\r\n");
    pty.prompt();
    pty.say("fg");
    pty.expect("exit 7'\r\n");
    sleep(Duration::from_millis(300));
    pty.key(3);
    pty.prompt();
    pty.say("echo status=$?.");
    pty.expect("status=130.");
    pty.prompt();
    // In a pipeline all are one group.
    pty.say(&format!(
        "{oslet} run o0 sh -c 'echo r''eady; read line; echo l''ine=$line.; exit 3' | cat"
    ));
    pty.expect("ready");
    pty.key(26);
    pty.expect("Stopped");
    pty.prompt();
    pty.say("fg");
    pty.expect("| cat\r\n");
    pty.say("hello");
    pty.expect("line=hello.");
    pty.prompt();
    // It leaves the terminal to the others there.
    pty.say(&format!("{oslet} run o0 echo piped | (read x; read y </dev/tty; echo $x-$y.)"));
    sleep(Duration::from_millis(200));
    pty.say("typed");
    pty.expect("piped-typed.");
    pty.prompt();
}

#[test]
fn a_shell_inside_controls_its_own_jobs() {
    let Some(mut world) = World::new() else { return };
    let oslet =
        format!("'{}' --dir '{}'", env!("CARGO_BIN_EXE_oslet"), world.directory().display());
    for shell in ["/bin/bash", "/bin/sh", "/no/such/shell"] {
        let mut pty = Pty::shell();
        pty.say(&format!("SHELL={shell} PS1='in''side> ' {oslet} shell -e HOME=/ltmp o0"));
        pty.collect(Duration::from_millis(300));
        pty.say("PS1='in''side> '; set -m; echo $0 $(cat /proc/sys/kernel/hostname) $$.");
        pty.expect(if shell == "/bin/bash" { "-bash o0 " } else { "-sh o0 " });
        pty.expect("inside> ");
        pty.say("sleep 100");
        sleep(Duration::from_millis(100));
        pty.key(26);
        pty.expect("Stopped");
        pty.expect("inside> ");
        pty.say("fg");
        sleep(Duration::from_millis(100));
        pty.key(3);
        pty.expect("inside> ");
        pty.say("echo st=$?.");
        pty.expect("st=130.");
        pty.say("exit 9");
        // The terminal is the outer shell's again.
        pty.prompt();
        pty.say("echo status=$?.");
        pty.expect("status=9.");
        pty.prompt();
    }
    // The OSlet dies under a program that has changed the terminal's modes.
    let mut pty = Pty::shell();
    pty.say(&format!("{oslet} run o0 sh -c 'stty raw -echo; echo r''eady; sleep 100'"));
    pty.expect("ready");
    world.end();
    pty.expect("died");
    pty.prompt();
    pty.say("stty -a | grep -c -e ' -icanon' -e ' -echo '; echo status=$?.");
    pty.expect("0");
    pty.expect("status=1.");
}

#[test]
fn processes_are_listed_and_signalled() {
    let Some(world) = World::new() else { return };
    let mut child = world.oslet(&["run", "-u", "nobody", "o0", "sleep", "983"]).spawn().unwrap();
    let mut row = String::new();
    world::until(|| {
        let output = world.oslet(&["ps"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text.lines().find(|line| line.ends_with("sleep 983"));
        row = found.unwrap_or_default().to_owned();
        !row.is_empty()
    });
    let fields: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((fields[0], fields[3]), ("o0", "nobody"), "{row}");
    let output = world.oslet(&["ps", "o0", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!((rows[0]["inner_pid"].as_u64(), rows[0]["oslet"].as_str()), (Some(1), Some("o0")));
    let sleeper = rows.iter().find(|row| row["command"] == "sleep 983").unwrap();
    assert_eq!(sleeper["inner_pid"].to_string(), fields[1]);
    assert_eq!(sleeper["pid"].to_string(), fields[2]);
    let missing = world.oslet(&["kill", "o0", "99999"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let bad = world.oslet(&["kill", "-s", "NOSUCH", "o0", "1"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(world.oslet(&["kill", "-s", "0", "o0", fields[1]]).status().unwrap().success());
    assert!(world.oslet(&["kill", "-s", "KILL", "o0", fields[1]]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(137));
    assert_eq!(child.wait().unwrap().signal(), None);
}
