use std::process::{Child, Command, Stdio};

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// What every test here needs; says so when it is not there.
fn writable() -> Option<Hierarchies> {
    let hierarchies = Hierarchies::detect().unwrap();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: control groups are root's here");
        return None;
    }
    Some(hierarchies)
}

fn set(members: &[u32]) -> CpuSet {
    members.iter().copied().collect()
}

fn cluster(test: &str) -> String {
    format!("t{}-{test}", std::process::id())
}

/// A shell that joins the groups by itself, says so, and then sleeps with a child.
fn inhabitant(cgroup: &Cgroup, then: &str) -> Child {
    let joins: String = cgroup
        .groups()
        .iter()
        .map(|group| format!("echo 0 > '{}/cgroup.procs' || exit 3; ", group.path.display()))
        .collect();
    let script = format!("{joins} echo in; {then}");
    let mut child =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut word = [0; 3];
    let out = child.stdout.as_mut().unwrap();
    std::io::Read::read_exact(out, &mut word).unwrap();
    child
}

#[test]
fn lists_are_the_kernels() {
    assert_eq!(list(&[3, 0, 1, 2, 8, 8, 10]), "0-3,8,10");
    assert_eq!(list(&[]), "");
    assert_eq!(list(&[u32::MAX]), "4294967295");
}

#[test]
fn names_stay_below_their_parent() {
    for bad in ["", "..", ".x", "-x", "a/b", "a b", "a\n", &"x".repeat(33)] {
        assert!(relative("c", bad).is_err(), "{bad:?}");
        assert!(relative(bad, "o0").is_err(), "{bad:?}");
    }
    assert_eq!(relative("c", "o-0.a_b").unwrap(), Path::new("oslet/c/o-0.a_b"));
}

#[test]
fn hierarchies_are_found_in_mountinfo() {
    let mounts = "22 27 0:21 / /proc rw - proc proc rw\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw shared:4 - cgroup2 cgroup2 rw\n\
        42 31 0:38 / /again rw - cgroup2 cgroup2 rw\n";
    let own = "3:cpuset:/a/b\n2:freezer:/\n0::/user.slice/x:y\n";
    let found = Hierarchies::parse(mounts, own);
    assert_eq!(
        found.cpuset_v1(),
        ["a/b", "", "a"].map(|below| Path::new("/sys/fs/cgroup/cpuset").join(below))
    );
    assert_eq!(found.freezer_v1().last().unwrap(), Path::new("/sys/fs/cgroup/freezer"));
    assert_eq!(found.unified()[0], Path::new("/sys/fs/cgroup/uni fied/user.slice/x:y"));
    assert_eq!(found.unified()[2], Path::new("/sys/fs/cgroup/uni fied/user.slice"));
    assert_eq!(found.unified().len(), 3);
    // In the root of a hierarchy there is nothing between, and nothing above.
    let root = Hierarchies::parse(mounts, "3:cpuset:/\n0::/\n");
    assert_eq!(root.cpuset_v1(), [Path::new("/sys/fs/cgroup/cpuset")]);
    assert_eq!(root.unified(), [Path::new("/sys/fs/cgroup/uni fied")]);
    // In a container the mount shows a part of the hierarchy, and may not show our own group.
    let mounts = "41 31 0:38 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let inside = Hierarchies::parse(mounts, "0::/docker/1/sub\n");
    assert_eq!(inside.unified(), [Path::new("/sys/fs/cgroup/sub"), Path::new("/sys/fs/cgroup")]);
    let outside = Hierarchies::parse(mounts, "0::/../other\n");
    assert_eq!(outside.unified(), [Path::new("/sys/fs/cgroup")]);
    for nonsense in ["", " - ", "a b c - cgroup2", "1 2 3 4 - cgroup2 x y"] {
        assert_eq!(Hierarchies::parse(nonsense, "::"), Hierarchies::none());
    }
}

#[test]
fn processes_are_bound_and_killed_and_nothing_is_left() {
    let Some(hierarchies) = writable() else { return };
    let cluster = cluster("bound");
    let cpu = *crate::sys::numa::affinity().unwrap().last().unwrap();
    let created = Cgroup::create(&hierarchies, &cluster, "o0", &set(&[cpu]), &set(&[0])).unwrap();
    let cgroup = created.cgroup;
    if !created.bound {
        println!("not tried: binding: {:?}", created.warnings);
    }
    // A nested group and a child of a child must fall too.
    let nested = cgroup.groups().last().unwrap().path.join("nested");
    fs::create_dir(&nested).unwrap();
    let mut child = inhabitant(&cgroup, "(sleep 1000 & sleep 1000) & sleep 1000");
    assert!(!cgroup.processes().is_empty());
    if created.bound {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
        };
        assert_eq!(line("Cpus_allowed_list:"), cpu.to_string());
        assert_eq!(line("Mems_allowed_list:"), "0");
    }
    // While it lives there, no other cluster gets the name.
    let again = Cgroup::create(&hierarchies, &cluster, "o0", &set(&[cpu]), &set(&[0])).unwrap_err();
    assert!(again.to_string().contains("earlier cluster"), "{again}");
    assert!(cgroup.remove(Duration::ZERO).is_err());
    let found = leftovers(&hierarchies, &cluster).unwrap();
    let [(name, left)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(name, "o0");
    left.kill(LIMIT).unwrap();
    child.wait().unwrap();
    left.remove(LIMIT).unwrap();
    for group in cgroup.groups() {
        assert!(!group.path.exists(), "{group:?}");
        assert!(!group.path.parent().unwrap().exists(), "{group:?}");
    }
    assert!(leftovers(&hierarchies, &cluster).unwrap().is_empty());
}

#[test]
fn a_group_dies_by_its_descriptor_alone() {
    let Some(hierarchies) = writable() else { return };
    let created =
        Cgroup::create(&hierarchies, &cluster("fd"), "o0", &set(&[0]), &set(&[0])).unwrap();
    let cgroup = created.cgroup;
    let Some(descriptor) = cgroup.kill_descriptor().unwrap() else {
        println!("skipped: no version 2 hierarchy with cgroup.kill");
        cgroup.remove(LIMIT).unwrap();
        return;
    };
    let mut child = inhabitant(&cgroup, "sleep 1000 & sleep 1000");
    kill_by(descriptor.as_fd()).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    cgroup.kill(LIMIT).unwrap();
    cgroup.remove(LIMIT).unwrap();
    kill_by(descriptor.as_fd()).unwrap();
}

#[test]
fn without_version_2_the_freezer_serves() {
    let Some(hierarchies) = writable() else { return };
    let v1 = hierarchies.without_unified();
    let created = Cgroup::create(&v1, &cluster("v1"), "o0", &set(&[0]), &set(&[0])).unwrap();
    let cgroup = created.cgroup;
    if cgroup.groups().is_empty() {
        println!("skipped: no version 1 hierarchy");
        return;
    }
    assert!(cgroup.kill_descriptor().unwrap().is_none());
    // It forks all the time: a list of numbers is out of date when it is read.
    let mut child = inhabitant(&cgroup, "while :; do sleep 0.01 & done");
    std::thread::sleep(Duration::from_millis(50));
    let end = Instant::now() + LIMIT;
    cgroup.kill(LIMIT).unwrap();
    assert!(Instant::now() < end);
    child.wait().unwrap();
    cgroup.remove(LIMIT).unwrap();
}

#[test]
fn what_cannot_be_bound_is_said_or_refused() {
    let none =
        Cgroup::create(&Hierarchies::none(), &cluster("none"), "o0", &set(&[0, 1, 2]), &set(&[0]))
            .unwrap();
    assert!(!none.bound && none.cgroup.groups().is_empty());
    let [warning] = &none.warnings[..] else { panic!("{:?}", none.warnings) };
    assert!(warning.contains("CPUs 0-2 and memory nodes 0"), "{warning}");
    none.cgroup.kill(LIMIT).unwrap();
    let Some(hierarchies) = writable() else { return };
    let cluster = cluster("refused");
    match Cgroup::create(&hierarchies, &cluster, "o0", &set(&[8000]), &set(&[0])) {
        Err(error) => assert!(error.to_string().contains("8000"), "{error}"),
        Ok(created) => assert!(!created.bound),
    }
    let left = leftovers(&hierarchies, &cluster).unwrap();
    assert!(left.iter().all(|(_, cgroup)| cgroup.groups().is_empty()), "{left:?}");
}
