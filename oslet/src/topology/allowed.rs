//! What affinity masks, cpusets and memory cgroups (versions 1 and 2) leave to this process.

use super::{CpuSet, IdSet, NodeSet, Tree, shorten, warn};

/// Mounts that are looked at.
const MAX_MOUNTS: usize = 10_000;
/// Levels of a cgroup's path.
const MAX_DEPTH: usize = 64;

/// The restrictions; `None` is none.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) cpus: Option<CpuSet>,
    pub(super) nodes: Option<NodeSet>,
    /// Bytes that the memory cgroups still grant.
    pub(super) memory_left: Option<u64>,
    /// The files that restrict, for messages.
    pub(super) origin: String,
}

/// Reads all restrictions of the process whose /proc/self this is.
pub(super) fn read(tree: &dyn Tree, warnings: &mut Vec<String>) -> Limits {
    let mut limits = Limits::default();
    if let Some(status) = tree.read("proc/self/status") {
        for line in status.lines() {
            if let Some(list) = line.strip_prefix("Cpus_allowed_list:") {
                limits.restrict_cpus("proc/self/status", list, warnings);
            } else if let Some(list) = line.strip_prefix("Mems_allowed_list:") {
                limits.restrict_nodes("proc/self/status", list, warnings);
            }
        }
    }
    let membership = Membership::read(tree);
    for mount in mounts(tree) {
        if let Some(kind) = mount.cpuset() {
            for (files, is_cpus) in [(kind.cpus(), true), (kind.nodes(), false)] {
                let below = membership.path(kind.is_v2(), "cpuset");
                let Some((path, list)) = nearest(tree, &mount, below, files) else { continue };
                match is_cpus {
                    true => limits.restrict_cpus(&path, &list, warnings),
                    false => limits.restrict_nodes(&path, &list, warnings),
                }
            }
        }
        if let Some(v2) = mount.memory() {
            let left = memory_left(tree, &mount, membership.path(v2, "memory"), v2);
            limits.memory_left = [limits.memory_left, left].into_iter().flatten().min();
        }
    }
    limits
}

impl Limits {
    fn restrict_cpus(&mut self, path: &str, list: &str, warnings: &mut Vec<String>) {
        restrict(&mut self.cpus, &mut self.origin, path, list, warnings);
    }

    fn restrict_nodes(&mut self, path: &str, list: &str, warnings: &mut Vec<String>) {
        restrict(&mut self.nodes, &mut self.origin, path, list, warnings);
    }
}

fn restrict(
    set: &mut Option<IdSet>,
    origin: &mut String,
    path: &str,
    list: &str,
    warnings: &mut Vec<String>,
) {
    match IdSet::parse_list(list) {
        // A cpuset of version 1 that has not been set up yet.
        Ok(allowed) if allowed.is_empty() => {}
        Ok(allowed) => {
            *set = Some(set.as_ref().map_or_else(|| allowed.clone(), |set| set.and(&allowed)));
            if !origin.split(", ").any(|known| known == path) {
                *origin = if origin.is_empty() { path.into() } else { format!("{origin}, {path}") };
            }
        }
        Err(what) => warn(warnings, format!("{path}: {what}; ignored")),
    }
}

/// In which cgroup of each hierarchy the process is.
struct Membership {
    /// Controllers (comma-separated; empty in version 2) and path.
    groups: Vec<(String, String)>,
    /// The older way to tell the cpuset, of either version.
    cpuset: Option<String>,
}

impl Membership {
    fn read(tree: &dyn Tree) -> Self {
        let text = tree.read("proc/self/cgroup").unwrap_or_default();
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        };
        let cpuset = tree.read("proc/self/cpuset").map(|path| path.trim().to_owned());
        Self {
            groups: text.lines().take(MAX_MOUNTS).filter_map(line).collect(),
            cpuset: cpuset.filter(|path| path.starts_with('/')),
        }
    }

    fn path(&self, v2: bool, controller: &str) -> Option<&str> {
        let is_it = |names: &str| {
            if v2 { names.is_empty() } else { names.split(',').any(|n| n == controller) }
        };
        let group =
            self.groups.iter().find(|(names, _)| is_it(names)).map(|(_, path)| path.as_str());
        group.or(self.cpuset.as_deref().filter(|_| controller == "cpuset"))
    }
}

/// A line of the mount table.
struct Mount {
    /// The directory of the mounted filesystem that is seen at the mount point.
    root: String,
    point: String,
    kind: String,
    /// Options of the mount and of the filesystem.
    options: String,
}

/// How the files of a cpuset are called.
#[derive(Clone, Copy)]
enum CpusetKind {
    /// The filesystem type `cpuset`, and cgroup with `noprefix`.
    Bare,
    V1,
    V2,
}

impl CpusetKind {
    fn cpus(self) -> &'static [&'static str] {
        match self {
            Self::Bare => &["effective_cpus", "cpus"],
            Self::V1 => &["cpuset.effective_cpus", "cpuset.cpus"],
            Self::V2 => &["cpuset.cpus.effective"],
        }
    }

    fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::Bare => &["effective_mems", "mems"],
            Self::V1 => &["cpuset.effective_mems", "cpuset.mems"],
            Self::V2 => &["cpuset.mems.effective"],
        }
    }

    fn is_v2(self) -> bool {
        matches!(self, Self::V2)
    }
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|known| known == option)
    }

    fn cpuset(&self) -> Option<CpusetKind> {
        match self.kind.as_str() {
            "cpuset" => Some(CpusetKind::Bare),
            "cgroup" if self.has("cpuset") && self.has("noprefix") => Some(CpusetKind::Bare),
            "cgroup" if self.has("cpuset") => Some(CpusetKind::V1),
            "cgroup2" => Some(CpusetKind::V2),
            _ => None,
        }
    }

    /// Whether memory is limited here, and by which version.
    fn memory(&self) -> Option<bool> {
        match self.kind.as_str() {
            "cgroup" if self.has("memory") => Some(false),
            "cgroup2" => Some(true),
            _ => None,
        }
    }

    /// The directories of a cgroup and its ancestors, innermost first, as far as they are visible.
    fn chain(&self, group: Option<&str>) -> Vec<String> {
        let group = group.unwrap_or("/");
        let inner = match group.strip_prefix(self.root.trim_end_matches('/')) {
            Some(inner) if inner.is_empty() || inner.starts_with('/') => inner,
            // The cgroup is outside of what is mounted here; the mount point is its nearest
            // ancestor.
            _ => "",
        };
        let parts: Vec<&str> = inner.split('/').filter(|part| !part.is_empty()).collect();
        let strange =
            parts.len() > MAX_DEPTH || parts.iter().any(|&part| part == ".." || part == ".");
        let parts = if strange { &[][..] } else { &parts[..] };
        let point = self.point.trim_matches('/');
        (0..=parts.len())
            .rev()
            .map(|depth| [&[point][..], &parts[..depth]].concat().join("/"))
            .collect()
    }
}

/// The mounts, from mountinfo or, in older captures, from the plain table.
fn mounts(tree: &dyn Tree) -> Vec<Mount> {
    let from_info = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point, options) = (left.next()?, left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, _, more) = (right.next()?, right.next()?, right.next()?);
        let options = format!("{options},{more}");
        Some(Mount { root: unescape(root), point: unescape(point), kind: kind.into(), options })
    };
    let from_table = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (point, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Mount {
            root: "/".into(),
            point: unescape(point),
            kind: kind.into(),
            options: options.into(),
        })
    };
    if let Some(text) = tree.read("proc/self/mountinfo") {
        return text.lines().take(MAX_MOUNTS).filter_map(from_info).collect();
    }
    let text =
        tree.read("proc/self/mounts").or_else(|| tree.read("proc/mounts")).unwrap_or_default();
    text.lines().take(MAX_MOUNTS).filter_map(from_table).collect()
}

/// Blanks and backslashes are written as \ooo in mount tables.
fn unescape(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"]
        .iter()
        .fold(text.to_owned(), |text, pair| text.replace(&pair[..4], &pair[4..]))
}

/// The first of the files in the innermost cgroup that has one with something in it, with its path.
fn nearest(
    tree: &dyn Tree,
    mount: &Mount,
    group: Option<&str>,
    files: &[&str],
) -> Option<(String, String)> {
    let paths = mount
        .chain(group)
        .into_iter()
        .flat_map(|dir| files.iter().map(move |f| format!("{dir}/{f}")));
    let mut texts = paths.filter_map(|path| tree.read(&path).map(|text| (path, text)));
    texts.find(|(_, text)| !text.trim().is_empty()).map(|(path, text)| (shorten_path(&path), text))
}

fn shorten_path(path: &str) -> String {
    if path.len() <= 120 { format!("/{path}") } else { format!("/{}", shorten(path)) }
}

/// What the tightest of a cgroup and its ancestors leaves: limit - use + page cache that is unused.
fn memory_left(tree: &dyn Tree, mount: &Mount, group: Option<&str>, v2: bool) -> Option<u64> {
    let (limit, used, cache) = match v2 {
        true => ("memory.max", "memory.current", "inactive_file "),
        false => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    };
    let left = |dir: String| {
        let number = |file: &str| tree.read(&format!("{dir}/{file}"))?.trim().parse::<u64>().ok();
        // "max" is no limit, and version 1 writes the largest whole number of pages instead.
        let limit = number(limit).filter(|&limit| limit < 1 << 62)?;
        let stat = tree.read(&format!("{dir}/memory.stat")).unwrap_or_default();
        let cache =
            stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
        let used = number(used).unwrap_or(0).saturating_sub(cache.unwrap_or(0));
        Some(limit.saturating_sub(used))
    };
    mount.chain(group).into_iter().filter_map(left).min()
}
