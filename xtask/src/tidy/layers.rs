//! Dependencies point down only, and every crate is under the common lints.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{File, Finding};
use crate::tree;

/// Which crates of the workspace a crate may use: tools over cfs over proxydev over oslet.
const LAYERS: [(&str, &[&str]); 7] = [
    ("oslet", &[]),
    ("proxydev", &["oslet"]),
    ("cfs", &["oslet", "proxydev"]),
    ("bench", &["oslet", "proxydev", "cfs"]),
    ("tools", &["oslet", "proxydev", "cfs", "bench"]),
    ("tests", &["oslet", "proxydev", "cfs", "bench", "tools"]),
    ("xtask", &[]),
];

/// Outside crates that only one of ours may use, and why.
const RESERVED: [(&str, &str, &str); 1] =
    [("iceoryx2", "bench", "it is a peer to measure against, not something to build on")];

const FORBID: &str = "#![forbid(unsafe_code)]";

/// What cargo knows about the workspace's own packages.
pub(crate) fn metadata(root: &Path) -> anyhow::Result<Value> {
    let output = Command::new(tree::cargo())
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata")
}

/// Checks the packages' dependencies, lints and crate roots.
pub(crate) fn check(root: &Path, metadata: &Value, files: &[File]) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = text(&package["name"]);
        let manifest = relative(root, text(&package["manifest_path"]));
        found.extend(dependencies(package, name, &manifest, metadata, files));
        found.extend(lints(&manifest, files));
        for target in list(&package["targets"]) {
            let library = list(&target["kind"]).iter().any(|kind| kind == "lib");
            let source = relative(root, text(&target["src_path"]));
            found.extend(crate_root(&source, name == "oslet" && library, files));
        }
    }
    found
}

fn dependencies(
    package: &Value,
    name: &str,
    manifest: &str,
    metadata: &Value,
    files: &[File],
) -> Vec<Finding> {
    let ours = |other: &str| list(&metadata["packages"]).iter().any(|p| p["name"] == other);
    let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
        let remedy = "give it its place in LAYERS of xtask/src/tidy/layers.rs";
        return vec![Finding::new(manifest, 0, format!("crate `{name}` has no layer"), remedy)];
    };
    let mut found = Vec::new();
    for dependency in list(&package["dependencies"]).iter().map(|d| text(&d["name"])) {
        let line = line_of(files, manifest, dependency);
        // A crate may name itself to switch on a feature for its own tests.
        if ours(dependency) && dependency != name && !allowed.contains(&dependency) {
            let what = format!("`{name}` depends on `{dependency}`, which lies above or beside it");
            let remedy = "move the shared part down to a crate that both may use";
            found.push(Finding::new(manifest, line, what, remedy));
        }
        for (crate_name, user, why) in RESERVED {
            let family = dependency == crate_name || dependency.starts_with("iceoryx2-");
            if family && name != user {
                let what = format!("`{name}` depends on `{dependency}`: {why}");
                found.push(Finding::new(manifest, line, what, "use it in the bench crate only"));
            }
        }
    }
    found
}

fn lints(manifest: &str, files: &[File]) -> Option<Finding> {
    let file = files.iter().find(|file| file.path == manifest)?;
    let squeezed: String = file.text.split_whitespace().collect();
    let inherits = squeezed.contains("[lints]workspace=true");
    let remedy = "add `[lints]` with `workspace = true`";
    (!inherits).then(|| Finding::new(manifest, 0, "the workspace's lints are not on", remedy))
}

fn crate_root(source: &str, may_be_unsafe: bool, files: &[File]) -> Option<Finding> {
    let file = files.iter().find(|file| file.path == source)?;
    let forbids = file.lines.iter().any(|line| line.code.trim() == FORBID);
    let remedy = "add it below the crate's documentation";
    (!may_be_unsafe && !forbids)
        .then(|| Finding::new(source, 1, format!("crate root without `{FORBID}`"), remedy))
}

fn line_of(files: &[File], manifest: &str, dependency: &str) -> usize {
    let file = files.iter().find(|file| file.path == manifest);
    let line = file.and_then(|file| {
        file.text.lines().position(|line| {
            let rest = line.trim_start().strip_prefix(dependency);
            rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
        })
    });
    line.map_or(0, |line| line + 1)
}

fn relative(root: &Path, path: &str) -> String {
    let path = Path::new(path);
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let dependencies: Vec<_> =
            dependencies.iter().map(|name| json!({ "name": name })).collect();
        let source = format!("/r/{name}/src/lib.rs");
        json!({
            "name": name,
            "manifest_path": format!("/r/{name}/Cargo.toml"),
            "dependencies": dependencies,
            "targets": [{ "kind": ["lib"], "src_path": source }],
        })
    }

    fn found(packages: &[Value], files: &[File]) -> Vec<(String, usize)> {
        let metadata = json!({ "packages": packages });
        let found = check(Path::new("/r"), &metadata, files);
        found.into_iter().map(|finding| (finding.file, finding.line)).collect()
    }

    #[test]
    fn dependencies_point_down() {
        let manifest = File::new(
            "proxydev/Cargo.toml",
            "[lints]\nworkspace = true\n[dependencies]\noslet.workspace = true\n\
             cfs.workspace = true\n",
        );
        let packages = [
            package("oslet", &["libc"]),
            package("proxydev", &["oslet", "cfs"]),
            package("cfs", &[]),
        ];
        assert_eq!(found(&packages, &[manifest]), [("proxydev/Cargo.toml".to_owned(), 5)]);
        assert_eq!(found(&[package("cfs", &["cfs"])], &[]), []);
    }

    #[test]
    fn peers_and_unknown_crates_are_kept_out() {
        assert_eq!(found(&[package("bench", &["iceoryx2"])], &[]), []);
        assert_eq!(found(&[package("cfs", &["iceoryx2"])], &[]).len(), 1);
        assert_eq!(found(&[package("new", &[])], &[]).len(), 1);
    }

    #[test]
    fn crate_roots_forbid_unsafe_but_one() {
        let bare = |name: &str| File::new(&format!("{name}/src/lib.rs"), "//! Words.\n");
        assert_eq!(found(&[package("cfs", &[])], &[bare("cfs")]).len(), 1);
        assert_eq!(found(&[package("oslet", &[])], &[bare("oslet")]), []);
        let good = File::new("cfs/src/lib.rs", "//! Words.\n#![forbid(unsafe_code)]\n");
        assert_eq!(found(&[package("cfs", &[])], &[good]), []);
    }
}
