//! The house's own rules, held by a test: which room may use which, who names openraft, where `unsafe`
//! may stand, and how long a file may grow.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines a hand-written file may have. Lower it when the longest one shrinks; do not raise it.
const LINES_MAX: usize = 700;

/// `room: what it may use`. A room may always use itself.
const EDGES: &[(&str, &[&str])] = &[
    (
        "main",
        &[
            "admin",
            "banner",
            "cli",
            "config",
            "healthcheck",
            "logging",
            "metrics",
            "node",
            "open_files",
            "topic_config",
        ],
    ),
    (
        "node",
        &[
            "admin",
            "api",
            "cluster",
            "config",
            "control",
            "group",
            "logging",
            "metrics",
            "partition",
            "peers",
            "raft",
            "server",
            "settings",
            "topic_config",
        ],
    ),
    ("open_files", &["config"]),
    ("banner", &["config", "node"]),
    ("cli", &["config", "settings", "topic_config"]),
    ("logging", &["config"]),
    ("admin", &["metrics"]),
    ("server", &["api", "metrics"]),
    (
        "api",
        &[
            "cluster",
            "group",
            "group_config",
            "metrics",
            "partition",
            "settings",
            "topic_config",
        ],
    ),
    ("control", &["cluster", "partition"]),
    ("group", &["metrics", "partition"]),
    (
        "cluster",
        &[
            "group_config",
            "metrics",
            "partition",
            "peers",
            "raft",
            "settings",
            "topic_config",
        ],
    ),
    ("peers", &["metrics", "raft"]),
    ("partition", &["metrics", "raft", "topic_config"]),
    ("raft", &["metrics"]),
    ("settings", &["config", "topic_config"]),
    ("config", &[]),
    ("healthcheck", &[]),
    ("group_config", &["topic_config"]),
    ("topic_config", &[]),
    ("metrics", &[]),
    ("lib", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if path.is_dir() && !matches!(name, "target" | ".git" | "node_modules") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&root().join(under), &mut files);
    files
        .into_iter()
        .map(|p| {
            let text = fs::read_to_string(&p).expect("UTF-8");
            (p, text)
        })
        .collect()
}

fn room_of(path: &Path) -> String {
    let inside = path
        .strip_prefix(root().join("broker/src"))
        .expect("a broker file");
    let first = inside
        .components()
        .next()
        .expect("a name")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Rooms named after `crate::` in code that is not a comment.
fn uses(text: &str) -> BTreeSet<String> {
    let code = text
        .lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let after = code.split("crate::").skip(1);
    after
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        })
        .filter(|n: &String| !n.is_empty())
        .collect()
}

#[test]
fn rooms_use_only_what_lies_below_them() {
    let rooms: BTreeSet<&str> = EDGES.iter().map(|(room, _)| *room).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("broker/src") {
        let room = room_of(&path);
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!(
                "{}: room `{room}` is not in the table",
                path.display()
            ));
            continue;
        };
        for used in uses(&text) {
            if used != room && rooms.contains(used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: `{room}` uses `{used}`", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "edges that ARCHITECTURE.md does not have:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn only_the_raft_room_names_openraft() {
    let named: Vec<_> = sources("broker/src")
        .into_iter()
        .filter(|(p, text)| {
            room_of(p) != "raft"
                && text
                    .lines()
                    .any(|l| !l.trim_start().starts_with("//") && l.contains("openraft::"))
        })
        .collect();
    assert!(
        named.is_empty(),
        "openraft is named in {:?}",
        named.iter().map(|(p, _)| p).collect::<Vec<_>>()
    );
}

#[test]
fn unsafe_stands_in_one_file_and_says_why() {
    for krate in ["proto", "storage", "broker", "client", "benches"] {
        for (path, text) in sources(krate) {
            let blocks = text
                .lines()
                .filter(|l| {
                    !l.trim_start().starts_with("//")
                        && (l.contains("unsafe {")
                            || l.contains("unsafe impl")
                            || l.contains("unsafe fn"))
                })
                .count();
            if path.ends_with("storage/src/mmap.rs") {
                assert!(
                    text.matches("// SAFETY:").count() >= blocks,
                    "every unsafe block in mmap.rs says why it is sound"
                );
            } else if !path.ends_with("tests/tidy.rs") {
                assert_eq!(blocks, 0, "unsafe in {}", path.display());
            }
        }
    }
}

#[test]
fn no_file_grows_past_what_a_head_can_hold() {
    let mut long = Vec::new();
    for krate in ["proto", "storage", "broker", "client", "benches"] {
        for (path, text) in sources(krate) {
            if text.lines().count() > LINES_MAX {
                long.push(format!(
                    "{} has {} lines",
                    path.display(),
                    text.lines().count()
                ));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn no_test_is_switched_off() {
    for krate in ["proto", "storage", "broker", "client", "benches"] {
        for (path, text) in sources(krate) {
            let switch = concat!("#[ig", "nore");
            assert!(
                !text.contains(switch),
                "{} has a test that never runs",
                path.display()
            );
        }
    }
}
