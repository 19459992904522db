//! The table of what `cargo xtask test` does, in order.

use std::time::Duration;

/// One thing to check.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// What would go unnoticed without it.
    pub(crate) why: &'static str,
    /// Each is a command line without quoting; `cargo` is the cargo that runs this, and `HOST` the
    /// target of this machine.
    pub(crate) commands: &'static [&'static str],
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// A build directory of its own, below the common one, for flags that change every crate.
    pub(crate) own_target: Option<&'static str>,
    /// A tool of cargo that is installed when missing; the step is skipped when it cannot be.
    pub(crate) tool: Option<&'static str>,
    /// How often the commands run: by default and with `--full`. 0: not at all.
    pub(crate) rounds: (u32, u32),
    /// How long one command may take: by default and with `--full`.
    pub(crate) limit_s: (u64, u64),
    /// The command builds test programs, which then run side by side with these arguments.
    pub(crate) side_by_side: Option<&'static [&'static str]>,
    /// The commands are test programs, and this many tests at least must have run.
    pub(crate) tests_at_least: usize,
    /// Text in the output of a failed command by which the step counts as skipped, and why.
    pub(crate) skipped_if: Option<(&'static str, &'static str)>,
}

const CHECK: Step = Step {
    name: "",
    why: "",
    commands: &[],
    environment: &[],
    own_target: None,
    tool: None,
    rounds: (1, 1),
    limit_s: (600, 1800),
    side_by_side: None,
    tests_at_least: 0,
    skipped_if: None,
};

const VALGRIND: &str = "valgrind --quiet --error-exitcode=99";

/// All steps, the quick ones first.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        why: "one layout of the code",
        commands: &["cargo fmt --all --check"],
        ..CHECK
    },
    Step {
        name: "tidy",
        why: "layers, unsafe, sizes, links, sync points",
        commands: &["cargo xtask tidy"],
        ..CHECK
    },
    Step {
        name: "clippy",
        why: "warnings are errors",
        commands: &["cargo clippy --workspace --all-targets -- -D warnings"],
        ..CHECK
    },
    Step {
        name: "deny",
        why: "banned crates, licences, sources",
        commands: &["cargo deny --all-features check bans licenses sources"],
        tool: Some("cargo-deny"),
        ..CHECK
    },
    Step {
        name: "advisories",
        why: "dependencies with known holes",
        commands: &["cargo deny --all-features check advisories"],
        tool: Some("cargo-deny"),
        skipped_if: Some((
            "failed to fetch advisory database",
            "the advisory database cannot be reached from here",
        )),
        ..CHECK
    },
    Step {
        name: "doc",
        why: "documentation without broken links",
        // The binary `oslet` and the library `oslet` would write to the same place: the library,
        // last, stays.
        commands: &[
            "cargo doc --package tools --no-deps --document-private-items",
            "cargo doc --workspace --exclude tools --no-deps --document-private-items",
        ],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        ..CHECK
    },
    Step {
        name: "build",
        why: "the binary that the scenarios run, as users build it",
        commands: &["cargo build --release --package tools"],
        ..CHECK
    },
    Step {
        name: "test",
        why: "units and scenarios",
        commands: &["cargo test --workspace --lib --bins --tests"],
        side_by_side: Some(&["--show-output"]),
        // A first run builds all of it as well.
        limit_s: (1800, 7200),
        tests_at_least: 1,
        ..CHECK
    },
    Step {
        name: "doctest",
        why: "the examples in the documentation",
        commands: &["cargo test --workspace --doc --no-fail-fast -- --show-output"],
        ..CHECK
    },
    Step {
        name: "loom",
        why: "models of what processes do to shared words at once",
        // By convention the models of a module are its submodule `model`.
        commands: &["cargo test --package oslet --lib -- --show-output model::"],
        // Every dependency is built once more for this flag: without debug information, faster.
        environment: &[("RUSTFLAGS", "--cfg loom"), ("CARGO_PROFILE_TEST_DEBUG", "0")],
        own_target: Some("loom"),
        tests_at_least: 1,
        ..CHECK
    },
    Step {
        name: "memcheck",
        why: "memory errors in the region's code, which Miri cannot run",
        // The programs of the step `test`, so that nothing is built once more. Rings between
        // threads are left out: valgrind runs one thread at a time, and they wait for each other.
        commands: &[
            "cargo test --package oslet --lib -- region:: arena:: hazard:: ring:: publish::",
        ],
        environment: &[
            ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", VALGRIND),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", VALGRIND),
        ],
        limit_s: (300, 600),
        tests_at_least: 15,
        ..CHECK
    },
    Step {
        name: "asan",
        why: "memory errors in the region's code, its threads running at once",
        commands: &["cargo test --package oslet --lib --target HOST -- --show-output \
             region:: arena:: hazard:: ring:: publish:: rpc::"],
        // A stable compiler has sanitizers too, and asks for this word. With a target named, build
        // scripts and macros are built without.
        environment: &[
            ("RUSTC_BOOTSTRAP", "1"),
            ("RUSTFLAGS", "-Zsanitizer=address"),
            ("CARGO_PROFILE_TEST_DEBUG", "0"),
        ],
        own_target: Some("asan"),
        tests_at_least: 20,
        ..CHECK
    },
    Step {
        name: "kernel",
        why: "partitions on several memory nodes, under a kernel that is not this one",
        commands: &[
            "cargo xtask kernel",
            "cargo test --package tests --test other_kernel -- --show-output",
        ],
        environment: &[("OSLET_GUEST", "1")],
        rounds: (0, 1),
        tests_at_least: 1,
        ..CHECK
    },
    Step {
        name: "fuzz",
        why: "input that makes a parser panic, hang or take too much memory",
        commands: &["cargo xtask fuzz"],
        limit_s: (600, 4 * 3600),
        ..CHECK
    },
];

impl Step {
    /// How often the step runs.
    pub(crate) fn rounds(&self, full: bool) -> u32 {
        if full { self.rounds.1 } else { self.rounds.0 }
    }

    /// How long one of its commands may take.
    pub(crate) fn limit(&self, full: bool) -> Duration {
        Duration::from_secs(if full { self.limit_s.1 } else { self.limit_s.0 })
    }
}
