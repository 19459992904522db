use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> std::result::Result<Config, String> {
    let file = Path::new("oslet.toml");
    Config::parse(text, Some(file), &Overrides::default()).map_err(|problems| problems.to_string())
}

/// Configurations, each with every line of the message: `text ---- message ====`.
const BAD: &str = include_str!("../../testdata/config/bad.txt");

fn bad() -> impl Iterator<Item = (&'static str, &'static str)> {
    let cases = BAD.split("\n====\n").filter(|case| !case.is_empty());
    cases.map(|case| case.split_once("\n----\n").expect("a text and a message"))
}

#[test]
fn every_bad_configuration_is_refused_by_line_and_name() {
    assert!(bad().count() > 40);
    let mut wrong = String::new();
    for (text, expected) in bad() {
        let message = parse(text).map_or_else(|message| message, |_| "accepted".into());
        if message != expected {
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
[[device]]
name = "hdb"
path = "/dev/sdz"
[[volume]]
name = "root"
device = "hda"
[[volume]]
name = "v_2"
device = "hdb"
mount = "/data/two"
read_only = true
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
    assert_eq!([false, true], [config.volumes[0].read_only, config.volumes[1].read_only]);
    let all = Overrides { read_only: true, ..overrides };
    let config = Config::parse(text, None, &all).unwrap();
    assert!(config.volumes.iter().all(|volume| volume.read_only));
}

#[test]
fn the_command_line_goes_first() {
    let overrides = Overrides {
        oslets: Some(3),
        image: Some("x.img".into()),
        name: Some("other".into()),
        read_only: false,
    };
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

#[test]
fn sizes_for_people() {
    let shown = [0, 1023, 1024, (5 << 30) / 2, u64::MAX].map(show_size);
    assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "2.5 GiB", "16777215.9 TiB"]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(\\PC|\n){0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_damage_is_read_or_refused(at in 0usize..200, byte in "\\PC|\n", which in 0usize..1000) {
        let (text, _) = bad().nth(which % bad().count()).unwrap();
        let mut text = text.to_owned();
        let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.insert_str(at, &byte);
        let _ = parse(&text);
    }
}
