use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> std::result::Result<Config, String> {
    let file = Path::new("oslet.toml");
    Config::parse(text, Some(file), &Overrides::default()).map_err(|problems| problems.to_string())
}

/// (configuration, every line of the message).
const BAD: &[(&str, &str)] = &[
    ("name = ", "oslet.toml:1: string values must be quoted, expected literal string"),
    ("a = 1\na = 2\n", "oslet.toml:2: duplicate key"),
    ("oslet = 1", "oslet.toml:1: oslet: expected tables [[oslet]], found integer"),
    ("[oslet]\nname = \"a\"", "oslet.toml:1: oslet: expected tables [[oslet]], found table"),
    ("[[region]]\nsize = 1", "oslet.toml:1: region: expected a table [region], found array"),
    ("oslets = \"two\"", "oslet.toml:1: oslets: expected a whole number, found string"),
    ("oslets = 0", "oslet.toml:1: oslets = 0: use 1 to 64"),
    ("oslets = 65", "oslet.toml:1: oslets = 65: use 1 to 64"),
    (
        "oslets = 3\n[[oslet]]\n[[oslet]]",
        "oslet.toml:1: oslets = 3, but there are 2 [[oslet]] tables; give one or the other",
    ),
    ("name = \"a b\"", "oslet.toml:1: cluster name \"a b\" may only have letters, digits and '-'"),
    (
        "tmp = \"shared\"",
        "oslet.toml:1: tmp = \"shared\" is not known; use \"host\", \"global\" or \"local\"",
    ),
    (
        "root = \"volume\"",
        "oslet.toml:1: root = \"volume\" is not available in this version; use \"host\"",
    ),
    ("root = \"none\"", "oslet.toml:1: root = \"none\" is not known; use \"host\""),
    (
        "[region]\nsize = \"4Q\"",
        "oslet.toml:2: region: size: \"4Q\" is not a size; write one like \"512M\" or \"4G\"",
    ),
    (
        "[region]\nsize = \"99999999T\"",
        "oslet.toml:2: region: size: \"99999999T\" is larger than any memory",
    ),
    (
        "[region]\nsize = 0",
        "oslet.toml:2: region: size: a size of zero; write one like \"512M\" or \"4G\"",
    ),
    (
        "[region]\nsize = true",
        "oslet.toml:2: region: size: expected a size such as \"4G\", found boolean",
    ),
    (
        "[region]\nhuge = \"yes\"",
        "oslet.toml:2: region: huge: expected true or false, found string",
    ),
    (
        "[region]\nbacking = \"hugetlb\"\nhuge = false",
        "oslet.toml:3: region: huge = false contradicts backing = \"hugetlb\"; leave one of them out",
    ),
    (
        "[region]\nbacking = \"/dev/dax0.0\"",
        "oslet.toml:2: region: backing = \"/dev/dax0.0\" is not available in this version; use \"memfd\", \"hugetlb\" or the path of a file such as \"/dev/shm/x\"",
    ),
    (
        "[region]\nbacking = \"ivshmem:/x\"",
        "oslet.toml:2: region: backing = \"ivshmem:/x\" is not available in this version; use \"memfd\", \"hugetlb\" or the path of a file such as \"/dev/shm/x\"",
    ),
    (
        "[region]\nbacking = \"shm\"",
        "oslet.toml:2: region: backing = \"shm\" is not known; use \"memfd\", \"hugetlb\" or the path of a file such as \"/dev/shm/x\"",
    ),
    (
        "[region]\nsizes = 1",
        "oslet.toml:2: region: unknown key \"sizes\"; known are backing, huge, prefault, size",
    ),
    (
        "[[oslet]]\nname = \"a\"\n[[oslet]]\nname = \"a\"",
        "oslet.toml:4: oslet \"a\": another has the same name (line 2); choose a different one",
    ),
    (
        "[[oslet]]\nname = \"a/b\"",
        "oslet.toml:2: oslet \"a/b\": the name may only have letters, digits and '-'",
    ),
    (
        "[[oslet]]\nname = \"-a\"",
        "oslet.toml:2: oslet \"-a\": the name must start with a letter or a digit",
    ),
    (
        "[[oslet]]\nname = \"abcdefghijklmnopqrstuvwxyz0123456\"",
        "oslet.toml:2: oslet \"abcdefghijklmnopqrstuvwxyz0123456\": the name is 33 bytes long; at most 32 are allowed",
    ),
    (
        "[[oslet]]\nname = \"a\"\nkind = \"vm\"",
        "oslet.toml:3: oslet \"a\": kind = \"vm\" is not available in this version; use \"namespace\"",
    ),
    (
        "[[oslet]]\nkind = \"jail\"",
        "oslet.toml:2: oslet number 1: kind = \"jail\" is not known; use \"namespace\"",
    ),
    (
        "[[oslet]]\ncpus = \"3-1\"",
        "oslet.toml:2: oslet number 1: cpus: \"3-1\" runs backwards; write a list such as \"0-3,8\"",
    ),
    (
        "[[oslet]]\ncpus = \"\"",
        "oslet.toml:2: oslet number 1: cpus: is empty; write a list such as \"0-3,8\", or leave it out",
    ),
    (
        "[[oslet]]\nmem = \"far\"",
        "oslet.toml:2: oslet number 1: mem: \"far\" is not a number or a range such as 0-3; write \"node0\" or \"node0,node1\"",
    ),
    (
        "[[oslet]]\nname = \"a\"\ncpus = \"0-3\"\n[[oslet]]\nname = \"b\"\ncpus = \"3,5\"",
        "oslet.toml:6: oslet \"b\": cpus: 3 are those of \"a\" too (line 3); give each CPU to one OSlet",
    ),
    (
        "[[device]]\nname = \"hda\"\nram = \"1G\"\nowner = \"o7\"",
        "oslet.toml:4: device \"hda\": owner \"o7\" is no OSlet here (o0, o1)",
    ),
    (
        "[[device]]\nname = \"hda\"\nram = \"1G\"\nstandby = [\"o0\", \"o9\", \"o1\", \"o1\"]",
        "oslet.toml:4: device \"hda\": standby \"o0\" is the owner already; leave it out\noslet.toml:4: device \"hda\": standby \"o9\" is no OSlet here (o0, o1)\noslet.toml:4: device \"hda\": standby \"o1\" is there twice; leave one out",
    ),
    (
        "[[device]]\nname = \"hda\"",
        "oslet.toml:1: device \"hda\": has no path and no ram; give one",
    ),
    (
        "[[device]]\nname = \"hda\"\nram = \"1G\"\npath = \"x\"",
        "oslet.toml:1: device \"hda\": has both path and ram; give one",
    ),
    (
        "[[device]]\nram = \"1G\"",
        "oslet.toml:1: device number 1: has no name; write name = \"...\"",
    ),
    (
        "[[device]]\nname = \"../x\"\nram = \"4K\"",
        "oslet.toml:2: device \"../x\": the name may only have letters, digits, '-', '_' and '.'",
    ),
    (
        "[[device]]\nname = \"a\"\nram = 4097",
        "oslet.toml:3: device \"a\": ram: 4097 bytes are no multiple of 4096",
    ),
    (
        "[[device]]\nname = \"a\"\nnbd = \"nbd://h/e\"",
        "oslet.toml:3: device \"a\": nbd is not available in this version; use path or ram",
    ),
    (
        "[[device]]\nname = \"a\"\nmirror = [\"b\"]",
        "oslet.toml:3: device \"a\": mirror is not available in this version; use path or ram",
    ),
    (
        "[[device]]\nname = \"a\"\npath = \"x\"\n[[device]]\nname = \"a\"\npath = \"x\"",
        "oslet.toml:5: device \"a\": another has the same name (line 2); choose a different one\noslet.toml:6: device \"a\": another has the same path (line 3); choose a different one",
    ),
    (
        "[[volume]]\nname = \"v\"\ndevice = \"hdb\"",
        "oslet.toml:3: volume \"v\": device \"hdb\" is no device here (there is none)",
    ),
    (
        "[[device]]\nname = \"a\"\npath = \"x\"\n[[volume]]\nname = \"v\"\ndevice = \"hda\"",
        "oslet.toml:6: volume \"v\": device \"hda\" is no device here (a)",
    ),
    (
        "[[device]]\nname = \"a\"\nram = \"1M\"\n[[volume]]\nname = \"v\"\ndevice = \"a\"\n[[volume]]\nname = \"w\"\ndevice = \"a\"\nmount = \"/global\"",
        "oslet.toml:9: volume \"w\": another has the same device (line 6); choose a different one\noslet.toml:10: volume \"w\": another has the same mount (line 5); choose a different one",
    ),
    (
        "[[device]]\nname = \"a\"\nram = \"1M\"\n[[volume]]\nname = \"v\"\ndevice = \"a\"\nmount = \"x\"",
        "oslet.toml:7: volume \"v\": mount = \"x\" is not an absolute path; write one such as \"/global\"",
    ),
    (
        "[[device]]\nname = \"a\"\nram = \"1M\"\n[[volume]]\nname = \"v\"\ndevice = \"a\"\nmount = \"/a/../b\"",
        "oslet.toml:7: volume \"v\": mount = \"/a/../b\" is not a plain path; write one without \"..\", \"//\" or a slash at the end",
    ),
    (
        "[[device]]\nname = \"a\"\nram = \"1M\"\n[[volume]]\nname = \"v\"\ndevice = \"a\"\nmount = \"/gtmp\"",
        "oslet.toml:7: volume \"v\": mount = \"/gtmp\" is in use by the OSlet itself; choose another such as \"/global\"",
    ),
    (
        "[[volume]]\nname = \"v\"",
        "oslet.toml:1: volume \"v\": has no device; write device = \"...\"",
    ),
];

#[test]
fn every_bad_configuration_is_refused_by_line_and_name() {
    let mut wrong = String::new();
    for (text, expected) in BAD {
        let message = parse(text).map_or_else(|message| message, |_| "accepted".into());
        if message != *expected {
            wrong += &format!("\n--- {text}\nexpected: {expected}\nfound:    {message}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn all_problems_are_told_at_once_by_line() {
    let text = "tmp = 1\n[region]\nsize = \"x\"\n[[oslet]]\nname = \"a\"\nfoo = 1\ncpus = 3\n";
    let message = parse(text).unwrap_err();
    let lines: Vec<&str> = message.lines().map(|l| l.split(": ").next().unwrap()).collect();
    assert_eq!(
        lines,
        ["oslet.toml:1", "oslet.toml:3", "oslet.toml:6", "oslet.toml:7"],
        "{message}"
    );
}

#[test]
fn nothing_is_two_oslets_and_an_image() {
    let config = Config::embedded(&Overrides::default()).unwrap();
    let names: Vec<&str> = config.oslets.iter().map(|oslet| oslet.name.value.as_str()).collect();
    assert_eq!((config.name.as_str(), names), ("main", vec!["o0", "o1"]));
    assert_eq!(config.region.backing.value, Backing::Memfd);
    let device = &config.devices[0];
    assert_eq!((device.name.value.as_str(), device.owner.as_str()), ("hda", "o0"));
    assert_eq!(device.source, Source::Path { path: "oslet.img".into(), create: true });
    let volume = &config.volumes[0];
    assert_eq!((volume.name.value.as_str(), volume.mount.as_str()), ("root", "/global"));
}

#[test]
fn everything_that_can_be_written_is_read() {
    let text = r#"
name = "lab-1"
tmp = "global"
root = "host"
[region]
size = "4GiB"
backing = "/dev/shm/x"
huge = true
prefault = true
[[oslet]]
name = "left"
cpus = "0-3, 8"
mem = "node0,node2-3"
kind = "namespace"
restart = true
tmp = "local"
[[oslet]]
[[device]]
name = "hda"
path = "disk.img"
owner = "o1"
standby = ["left"]
[[device]]
name = "ram0"
ram = "256M"
[[volume]]
name = "root"
device = "hda"
[[volume]]
name = "v_2"
device = "ram0"
mount = "/data/two"
"#;
    let overrides = Overrides::default();
    let config = Config::parse(text, Some(Path::new("/etc/o/oslet.toml")), &overrides).unwrap();
    assert_eq!(config.region.size, Some(At { line: Some(6), value: 4 << 30 }));
    assert_eq!(config.region.backing.value, Backing::File("/dev/shm/x".into()));
    assert!(config.region.huge.value && config.region.prefault);
    let [left, second] = &config.oslets[..] else { panic!("{:?}", config.oslets) };
    assert_eq!(left.cpus.as_ref().unwrap().value.to_string(), "0-3,8");
    assert_eq!(left.mem.as_ref().unwrap().value.to_string(), "0,2-3");
    assert_eq!((left.restart, left.tmp), (true, Tmp::Local));
    assert_eq!((second.name.value.as_str(), second.tmp), ("o1", Tmp::Global));
    let path = PathBuf::from("/etc/o/disk.img");
    assert_eq!(config.devices[0].source, Source::Path { path, create: false });
    assert_eq!(
        (config.devices[0].owner.as_str(), &config.devices[0].standby[..]),
        ("o1", &["left".to_owned()][..])
    );
    assert_eq!(config.devices[1].source, Source::Ram { bytes: 256 << 20 });
    assert_eq!(config.devices[1].owner, "left");
    assert_eq!(config.volumes[1].mount, "/data/two");
}

#[test]
fn the_command_line_goes_first() {
    let overrides =
        Overrides { oslets: Some(3), image: Some("x.img".into()), name: Some("other".into()) };
    let config = Config::parse("name = \"main\"\noslets = 2", None, &overrides).unwrap();
    assert_eq!((config.name.as_str(), config.oslets.len()), ("other", 3));
    assert_eq!(config.devices[0].source, Source::Path { path: "x.img".into(), create: false });
    let conflict = "[[oslet]]\n[[device]]\nname = \"a\"\nram = \"1M\"";
    let message = Config::parse(conflict, None, &overrides).unwrap_err().to_string();
    assert!(message.contains("--oslets 3, but there are 1 [[oslet]] tables"), "{message}");
    assert!(message.contains("device \"a\": --image x.img was given too"), "{message}");
}

#[test]
fn files_that_are_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("oslet.toml");
    let load = || Config::load(&path, &Overrides::default()).unwrap_err().to_string();
    assert!(load().contains("open configuration"), "{}", load());
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(load().contains("not UTF-8"), "{}", load());
    std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
    assert!(load().contains("longer than 1 MiB"), "{}", load());
    std::fs::write(&path, "oslets = 9999\n").unwrap();
    assert_eq!(load(), format!("{}:1: oslets = 9999: use 1 to 64", path.display()));
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("1", 1),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("3MiB", 3 << 20),
        ("2GB", 2 << 30),
        ("1T", 1 << 40),
    ] {
        assert_eq!(parse_size(text), Ok(bytes));
    }
    for bad in ["", "G", "-1", "1.5G", "4 G", "4iB", "18446744073709551616", "0K", "1GG"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\PC|\n){0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_damage_is_read_or_refused(at in 0usize..200, byte in "\\PC|\n", which in 0..BAD.len()) {
        let mut text = BAD[which].0.to_owned();
        let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.insert_str(at, &byte);
        let _ = parse(&text);
    }
}
