//! The tables of a configuration, one function each, and what must hold between them.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::reader::{Lines, Section};
use super::{
    At, Config, DEFAULT_IMAGE, DEFAULT_MOUNT, DEFAULT_NAME, DEFAULT_OSLETS, DeviceConfig, Kind,
    OsletConfig, Overrides, Problems, RegionConfig, Source, Tmp, VolumeConfig, check_host_name,
    check_name,
};
use crate::limits;
use crate::region::Backing;
use crate::topology::{CpuSet, IdSet, shorten};

/// Directories of an OSlet that no volume may cover.
const RESERVED: [&str; 12] = [
    "/", "/bin", "/dev", "/etc", "/gtmp", "/lib", "/ltmp", "/proc", "/run", "/sys", "/tmp", "/usr",
];

/// Reads a whole text. What it returns is of use only if no problem was added.
pub(super) fn read(
    text: &str,
    file: Option<&Path>,
    overrides: &Overrides,
    problems: &mut Problems,
) -> Config {
    let lines = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map(|span| lines.at(span.start));
        problems.add(line, error.message().lines().collect::<Vec<_>>().join(", "));
    }
    if !errors.is_empty() {
        // What could be made of the rest would be misjudged.
        return read("", file, &Overrides::default(), problems);
    }
    let mut top = Section::new("", None, &lines, document.get_ref());
    let name = cluster_name(&mut top, overrides, problems);
    let tmp = top.string("tmp", problems).map_or(Tmp::Host, |tmp| read_tmp(&top, tmp, problems));
    root(&mut top, problems);
    let region = region(top.table("region", problems), problems);
    let count = count(&mut top, overrides, problems);
    let oslets = oslets(top.tables("oslet", problems), count, tmp, problems);
    let directory = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let device_tables = top.tables("device", problems);
    let volume_tables = top.tables("volume", problems);
    let bare = device_tables.is_empty() && volume_tables.is_empty();
    if let (Some(image), Some(first)) = (&overrides.image, device_tables.first()) {
        let what = format!("--image {} was given too; use one or the other", image.display());
        first.problem(problems, None, what);
    }
    let mut devices = devices(device_tables, directory, &oslets, problems);
    let mut volumes = volumes(volume_tables, &devices, bare || overrides.image.is_some(), problems);
    top.finish(problems);
    if bare || overrides.image.is_some() {
        devices = vec![default_device(overrides, &oslets)];
        if volumes.is_empty() {
            volumes = vec![default_volume()];
        }
    }
    volumes.iter_mut().for_each(|volume| volume.read_only |= overrides.read_only);
    Config { file: file.map(PathBuf::from), name, region, oslets, devices, volumes }
}

fn cluster_name(
    top: &mut Section<'_, '_>,
    overrides: &Overrides,
    problems: &mut Problems,
) -> String {
    let written = top.string("name", problems);
    let name = match &overrides.name {
        Some(name) => At::default(name.clone()),
        None => written.unwrap_or_else(|| At::default(DEFAULT_NAME.into())),
    };
    if let Err(what) = check_host_name(&name.value) {
        top.problem(
            problems,
            name.line,
            format!("cluster name \"{}\" {what}", shorten(&name.value)),
        );
    }
    name.value
}

fn read_tmp(section: &Section<'_, '_>, tmp: At<String>, problems: &mut Problems) -> Tmp {
    match tmp.value.as_str() {
        "host" => Tmp::Host,
        "global" => Tmp::Global,
        "local" => Tmp::Local,
        other => {
            let what = "is not known; use \"host\", \"global\" or \"local\"";
            section.problem(problems, tmp.line, format!("tmp = \"{}\" {what}", shorten(other)));
            Tmp::Host
        }
    }
}

fn root(top: &mut Section<'_, '_>, problems: &mut Problems) {
    let Some(root) = top.string("root", problems) else { return };
    match root.value.as_str() {
        "host" => {}
        "volume" => later(top, problems, root.line, "root = \"volume\"", "\"host\""),
        other => {
            let what = format!("root = \"{}\" is not known; use \"host\"", shorten(other));
            top.problem(problems, root.line, what);
        }
    }
}

/// Reports something that is designed and not made yet.
fn later(
    section: &Section<'_, '_>,
    problems: &mut Problems,
    line: Option<u32>,
    what: &str,
    instead: &str,
) {
    let message = format!("{what} is not available in this version; use {instead}");
    section.problem(problems, line, message);
}

fn region(section: Option<Section<'_, '_>>, problems: &mut Problems) -> RegionConfig {
    let mut config = RegionConfig {
        size: None,
        backing: At::default(Backing::Memfd),
        huge: At::default(false),
        prefault: false,
    };
    let Some(mut section) = section else { return config };
    config.size = section.size("size", problems);
    if let Some(backing) = section.string("backing", problems) {
        let line = backing.line;
        config.backing = At { line, value: read_backing(&section, backing, problems) };
    }
    if let Some(huge) = section.flag("huge", problems) {
        config.huge = huge;
    }
    config.prefault = section.flag("prefault", problems).is_some_and(|prefault| prefault.value);
    if config.backing.value == Backing::Hugetlb && config.huge.line.is_some() && !config.huge.value
    {
        let what = "huge = false contradicts backing = \"hugetlb\"; leave one of them out";
        section.problem(problems, config.huge.line, what);
    }
    section.finish(problems);
    config
}

fn read_backing(section: &Section<'_, '_>, text: At<String>, problems: &mut Problems) -> Backing {
    let instead = "\"memfd\", \"hugetlb\" or the path of a file such as \"/dev/shm/x\"";
    let quoted = format!("backing = \"{}\"", shorten(&text.value));
    match text.value.as_str() {
        "memfd" => return Backing::Memfd,
        "hugetlb" => return Backing::Hugetlb,
        path if path.starts_with("/dev/dax") || path.starts_with("ivshmem") => {
            later(section, problems, text.line, &quoted, instead);
        }
        path if path.starts_with('/') && !path.contains('\0') && !path.ends_with('/') => {
            return Backing::File(path.into());
        }
        _ => section.problem(problems, text.line, format!("{quoted} is not known; use {instead}")),
    }
    Backing::Memfd
}

/// How many OSlets somebody asked for outside of their tables.
fn count(
    top: &mut Section<'_, '_>,
    overrides: &Overrides,
    problems: &mut Problems,
) -> Option<At<usize>> {
    let written = top.number("oslets", problems);
    let (count, what) = match (overrides.oslets, written) {
        (Some(count), _) => (At::default(i64::try_from(count).unwrap_or(i64::MAX)), "--oslets "),
        (None, Some(count)) => (count, "oslets = "),
        (None, None) => return None,
    };
    match usize::try_from(count.value) {
        Ok(value) if (1..=limits::MAX_OSLETS).contains(&value) => {
            Some(At { line: count.line, value })
        }
        _ => {
            let most = limits::MAX_OSLETS;
            top.problem(problems, count.line, format!("{what}{}: use 1 to {most}", count.value));
            None
        }
    }
}

fn oslets(
    sections: Vec<Section<'_, '_>>,
    count: Option<At<usize>>,
    tmp: Tmp,
    problems: &mut Problems,
) -> Vec<OsletConfig> {
    if sections.is_empty() {
        let names = (0..count.map_or(DEFAULT_OSLETS, |count| count.value)).map(|i| format!("o{i}"));
        return names.map(|name| plain_oslet(At::default(name), tmp)).collect();
    }
    let tables = sections.len();
    if let Some(count) = count.filter(|count| count.value != tables) {
        let what = match count.line {
            Some(_) => format!("oslets = {}, but there are {tables} [[oslet]] tables", count.value),
            None => format!("--oslets {}, but there are {tables} [[oslet]] tables", count.value),
        };
        problems.add(count.line, format!("{what}; give one or the other"));
    }
    if tables > limits::MAX_OSLETS {
        let what = format!("{tables} tables; at most {} OSlets make a cluster", limits::MAX_OSLETS);
        problems.add(sections[0].line, format!("oslet: {what}"));
    }
    let mut oslets: Vec<OsletConfig> = Vec::new();
    for (index, mut section) in sections.into_iter().enumerate().take(limits::MAX_OSLETS) {
        let oslet = oslet(&mut section, index, tmp, problems);
        let same = |other: &&OsletConfig| other.name.value == oslet.name.value;
        if let Some(other) = oslets.iter().find(same) {
            section.problem(problems, oslet.name.line, twice("name", other.name.line));
        }
        for other in &oslets {
            overlap(&section, &oslet, other, problems);
        }
        section.finish(problems);
        oslets.push(oslet);
    }
    oslets
}

fn plain_oslet(name: At<String>, tmp: Tmp) -> OsletConfig {
    OsletConfig { name, cpus: None, mem: None, kind: Kind::Namespace, restart: false, tmp }
}

fn oslet(
    section: &mut Section<'_, '_>,
    index: usize,
    tmp: Tmp,
    problems: &mut Problems,
) -> OsletConfig {
    let name = section.string("name", problems);
    let name = name.unwrap_or_else(|| At { line: section.line, value: format!("o{index}") });
    let mut oslet = plain_oslet(name, tmp);
    if let Err(what) = check_host_name(&oslet.name.value) {
        section.problem(problems, oslet.name.line, format!("the name {what}"));
    }
    oslet.cpus = section
        .string("cpus", problems)
        .and_then(|text| read_set(section, "cpus", text, "a list such as \"0-3,8\"", problems));
    oslet.mem = section.string("mem", problems).and_then(|text| {
        let value = text.value.split(',').map(|item| item.trim().trim_start_matches("node"));
        let text = At { line: text.line, value: value.collect::<Vec<_>>().join(",") };
        read_set(section, "mem", text, "\"node0\" or \"node0,node1\"", problems)
    });
    if let Some(kind) = section.string("kind", problems) {
        match kind.value.as_str() {
            "namespace" => {}
            "vm" => later(section, problems, kind.line, "kind = \"vm\"", "\"namespace\""),
            other => {
                let what = format!("kind = \"{}\" is not known; use \"namespace\"", shorten(other));
                section.problem(problems, kind.line, what);
            }
        }
    }
    oslet.restart = section.flag("restart", problems).is_some_and(|restart| restart.value);
    if let Some(tmp) = section.string("tmp", problems) {
        oslet.tmp = read_tmp(section, tmp, problems);
    }
    oslet
}

fn read_set(
    section: &Section<'_, '_>,
    key: &str,
    text: At<String>,
    example: &str,
    problems: &mut Problems,
) -> Option<At<IdSet>> {
    let what = match IdSet::parse_list(&text.value) {
        Ok(value) if !value.is_empty() => return Some(At { line: text.line, value }),
        Ok(_) => format!("{key}: is empty; write {example}, or leave it out"),
        Err(what) => format!("{key}: {what}; write {example}"),
    };
    section.problem(problems, text.line, what);
    None
}

fn overlap(
    section: &Section<'_, '_>,
    oslet: &OsletConfig,
    other: &OsletConfig,
    problems: &mut Problems,
) {
    let (Some(mine), Some(theirs)) = (&oslet.cpus, &other.cpus) else { return };
    let both: CpuSet = mine.value.and(&theirs.value);
    if !both.is_empty() {
        let (name, line) = (shorten(&other.name.value), theirs.line.unwrap_or(0));
        let what = format!(
            "cpus: {both} are those of \"{name}\" too (line {line}); give each CPU to one OSlet"
        );
        section.problem(problems, mine.line, what);
    }
}

fn twice(what: &str, line: Option<u32>) -> String {
    let line = line.map_or(String::new(), |line| format!(" (line {line})"));
    format!("another has the same {what}{line}; choose a different one")
}

fn devices(
    sections: Vec<Section<'_, '_>>,
    directory: &Path,
    oslets: &[OsletConfig],
    problems: &mut Problems,
) -> Vec<DeviceConfig> {
    let mut devices: Vec<(DeviceConfig, Option<u32>)> = Vec::new();
    for mut section in too_many(sections, problems) {
        let (name, source) =
            (own_name(&mut section, problems), source(&mut section, directory, problems));
        let owner = section.string("owner", problems);
        let standby = section.strings("standby", problems);
        let owner = owner.unwrap_or_else(|| At::default(first_name(oslets)));
        known_oslet(&section, "owner", &owner.value, owner.line, oslets, problems);
        let standby = standby.unwrap_or_else(|| At::default(Vec::new()));
        for (index, name) in standby.value.iter().enumerate() {
            known_oslet(&section, "standby", name, standby.line, oslets, problems);
            if *name == owner.value {
                let what =
                    format!("standby \"{}\" is the owner already; leave it out", shorten(name));
                section.problem(problems, standby.line, what);
            } else if standby.value[..index].contains(name) {
                let what = format!("standby \"{}\" is there twice; leave one out", shorten(name));
                section.problem(problems, standby.line, what);
            }
        }
        if let (Some(name), Some(source)) = (name, source) {
            for (other, line) in &devices {
                if other.name.value == name.value {
                    section.problem(problems, name.line, twice("name", other.name.line));
                }
                if matches!(source.value, Source::Path { .. }) && other.source == source.value {
                    section.problem(problems, source.line, twice("path", *line));
                }
            }
            let device = DeviceConfig {
                name,
                source: source.value,
                owner: owner.value,
                standby: standby.value,
            };
            devices.push((device, source.line));
        }
        section.finish(problems);
    }
    devices.into_iter().map(|(device, _)| device).collect()
}

/// Reports more tables than there can be objects, and leaves the rest out.
fn too_many<'a, 'i>(
    mut sections: Vec<Section<'a, 'i>>,
    problems: &mut Problems,
) -> Vec<Section<'a, 'i>> {
    let most = limits::MAX_OWNED_OBJECTS / 2;
    if sections.len() > most {
        sections[most].problem(
            problems,
            None,
            format!("{} tables; at most {most} are allowed", sections.len()),
        );
        sections.truncate(most);
    }
    sections
}

fn own_name(section: &mut Section<'_, '_>, problems: &mut Problems) -> Option<At<String>> {
    if section.value("name").is_none() {
        section.problem(problems, None, "has no name; write name = \"...\"");
    }
    let name = section.string("name", problems)?;
    if let Err(what) = check_name(&name.value) {
        section.problem(problems, name.line, format!("the name {what}"));
    }
    Some(name)
}

fn source(
    section: &mut Section<'_, '_>,
    directory: &Path,
    problems: &mut Problems,
) -> Option<At<Source>> {
    for key in ["nbd", "mirror", "stripe", "linear"] {
        if let Some((line, _)) = section.value(key) {
            later(section, problems, Some(line), key, "path or ram");
            return None;
        }
    }
    let (has_path, has_ram) = (section.value("path").is_some(), section.value("ram").is_some());
    if has_path == has_ram {
        let what = if has_path {
            "has both path and ram; give one"
        } else {
            "has no path and no ram; give one"
        };
        section.problem(problems, None, what);
    }
    if let Some(path) = section.string("path", problems) {
        if path.value.is_empty() || path.value.contains('\0') {
            section.problem(problems, path.line, "path: names no file");
        }
        let value = Source::Path { path: directory.join(path.value), create: false };
        return Some(At { line: path.line, value });
    }
    let bytes = section.size("ram", problems)?;
    if bytes.value % limits::FRAME_SIZE as u64 != 0 {
        let what = format!("ram: {} bytes are no multiple of {}", bytes.value, limits::FRAME_SIZE);
        section.problem(problems, bytes.line, what);
    }
    Some(At { line: bytes.line, value: Source::Ram { bytes: bytes.value } })
}

fn first_name(oslets: &[OsletConfig]) -> String {
    oslets.first().map_or_else(String::new, |oslet| oslet.name.value.clone())
}

fn known_oslet(
    section: &Section<'_, '_>,
    key: &str,
    name: &str,
    line: Option<u32>,
    oslets: &[OsletConfig],
    problems: &mut Problems,
) {
    if oslets.iter().any(|oslet| oslet.name.value == name) {
        return;
    }
    let known: Vec<&str> = oslets.iter().take(8).map(|oslet| oslet.name.value.as_str()).collect();
    let more = if oslets.len() > known.len() { ", ..." } else { "" };
    let (name, known) = (shorten(name), known.join(", "));
    section.problem(problems, line, format!("{key} \"{name}\" is no OSlet here ({known}{more})"));
}

fn volumes(
    sections: Vec<Section<'_, '_>>,
    devices: &[DeviceConfig],
    default_device: bool,
    problems: &mut Problems,
) -> Vec<VolumeConfig> {
    let mut volumes: Vec<(VolumeConfig, [Option<u32>; 2])> = Vec::new();
    for mut section in too_many(sections, problems) {
        let (name, device) = (own_name(&mut section, problems), section.string("device", problems));
        let mount =
            section.string("mount", problems).unwrap_or_else(|| At::default(DEFAULT_MOUNT.into()));
        let read_only = section.flag("read_only", problems).is_some_and(|flag| flag.value);
        if section.value("device").is_none() {
            section.problem(problems, None, "has no device; write device = \"...\"");
        }
        if let Err(what) = check_mount(&mount.value) {
            section.problem(
                problems,
                mount.line,
                format!("mount = \"{}\" {what}", shorten(&mount.value)),
            );
        }
        if let Some(device) = &device {
            let mut known: Vec<&str> =
                devices.iter().map(|device| device.name.value.as_str()).collect();
            if default_device {
                known = vec!["hda"];
            }
            if !known.contains(&device.value.as_str()) {
                let (name, known) = (shorten(&device.value), known.join(", "));
                let known = if known.is_empty() { "there is none" } else { &known };
                section.problem(
                    problems,
                    device.line,
                    format!("device \"{name}\" is no device here ({known})"),
                );
            }
            let of = devices.iter().find(|known| known.name.value == device.value);
            if of.is_some_and(|of| matches!(of.source, Source::Ram { .. })) {
                let what = "is a RAM disk, which holds no filesystem in this version";
                let name = shorten(&device.value);
                section.problem(problems, device.line, format!("device \"{name}\" {what}"));
            }
        }
        if let (Some(name), Some(device)) = (name, device) {
            for (other, lines) in &volumes {
                if other.name.value == name.value {
                    section.problem(problems, name.line, twice("name", other.name.line));
                }
                if other.mount == mount.value {
                    section.problem(problems, mount.line, twice("mount", lines[0]));
                }
                if other.device == device.value {
                    section.problem(problems, device.line, twice("device", lines[1]));
                }
            }
            let lines = [mount.line.or(name.line), device.line];
            let (device, mount) = (device.value, mount.value);
            volumes.push((VolumeConfig { name, device, mount, read_only }, lines));
        }
        section.finish(problems);
    }
    volumes.into_iter().map(|(volume, _)| volume).collect()
}

fn check_mount(mount: &str) -> Result<(), &'static str> {
    /// Linux' own bound on a path.
    const MAX_PATH: usize = 4096;
    let Some(inner) = mount.strip_prefix('/') else {
        return Err("is not an absolute path; write one such as \"/global\"");
    };
    let parts = || inner.split('/');
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if RESERVED.contains(&mount) {
        return Err("is in use by the OSlet itself; choose another such as \"/global\"");
    }
    if mount.len() >= MAX_PATH || mount.contains(|c: char| c.is_control()) || !parts().all(plain) {
        return Err("is not a plain path; write one without \"..\", \"//\" or a slash at the end");
    }
    if matches!(parts().next(), Some("proc" | "sys" | "dev" | "gtmp" | "ltmp")) {
        return Err("is below a directory of the OSlet itself; choose another such as \"/global\"");
    }
    Ok(())
}

fn default_device(overrides: &Overrides, oslets: &[OsletConfig]) -> DeviceConfig {
    let (path, create) = match &overrides.image {
        Some(image) => (image.clone(), false),
        None => (DEFAULT_IMAGE.into(), true),
    };
    DeviceConfig {
        name: At::default("hda".into()),
        source: Source::Path { path, create },
        owner: first_name(oslets),
        standby: Vec::new(),
    }
}

fn default_volume() -> VolumeConfig {
    VolumeConfig {
        name: At::default("root".into()),
        device: "hda".into(),
        mount: DEFAULT_MOUNT.into(),
        read_only: false,
    }
}
