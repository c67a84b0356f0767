//! The traps that re-implementations of Kafka's protocol fall into, and that each has a test that is called
//! `trap_NN_...` after it.
//!
//! A trap whose last test is renamed or deleted fails here. What is not built yet is owed, by name, so that
//! nobody takes its absence for an oversight; once a test comes, the debt has to be struck off.

#![allow(
    clippy::panic,
    reason = "a helper of tests says what it expects by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const TRAPS: &[(u8, &str)] = &[
    (
        1,
        "ApiVersions of an unknown version is answered in version 0",
    ),
    (2, "any other unknown API or version ends the connection"),
    (3, "Produce is announced from version 0"),
    (4, "announced features drive what clients rely on"),
    (5, "flexible headers keep a classic client id"),
    (6, "topic ids: a topic made again is another one"),
    (7, "when a topic is created by itself"),
    (8, "a fetch gives the whole batch that holds the offset"),
    (9, "limits of a fetch, and which batch may exceed them"),
    (10, "when a fetch waits and when it must not"),
    (11, "fetch sessions"),
    (12, "read_committed and aborted transactions"),
    (13, "high watermarks never go back"),
    (14, "leader epochs, and who leads instead"),
    (15, "where an epoch ends"),
    (16, "offsets by time, and special times"),
    (17, "what is checked in a batch"),
    (18, "what is rewritten in a batch"),
    (19, "idempotent producers"),
    (20, "requests of a connection are answered in order"),
    (21, "acks"),
    (22, "the largest batch"),
    (23, "joining a group"),
    (24, "rebalances"),
    (25, "static members"),
    (26, "committed offsets"),
    (27, "transactions"),
    (28, "offsets without gaps"),
    (29, "compaction"),
    (30, "the log's start moves"),
    (31, "frames that are none"),
    (32, "SASL"),
    (33, "advertised listeners"),
    (34, "the throttle field in every version"),
    (35, "administration"),
    (36, "the new group protocol"),
];

/// To be tested with what is not built yet.
const OWED: &[u8] = &[12, 27, 32, 36];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Tests by the number in their names.
fn tests() -> BTreeMap<u8, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().expect("the workspace");
    let mut files = Vec::new();
    for folder in ["broker/src", "broker/tests", "proto/src", "storage/src"] {
        rust_files(&root.join(folder), &mut files);
    }
    let mut tests: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("UTF-8");
        let declared = concat!("fn ", "trap_");
        for rest in text.split(declared).skip(1) {
            let (number, name) = rest.split_once('_').expect("a number and a name");
            let number = number
                .parse()
                .unwrap_or_else(|_| panic!("{}: {declared}{number} has no number", file.display()));
            let name = name.split('(').next().unwrap_or(name);
            tests.entry(number).or_default().push(name.to_owned());
        }
    }
    tests
}

#[test]
fn every_trap_has_a_test_of_its_name_or_is_owed_one() {
    let tests = tests();
    let known: BTreeSet<u8> = TRAPS.iter().map(|(number, _)| *number).collect();
    assert!(
        known.iter().copied().eq(1..=36),
        "each trap stands in the table once"
    );
    let strange: Vec<_> = tests.keys().filter(|n| !known.contains(n)).collect();
    assert!(strange.is_empty(), "no such traps: {strange:?}");
    for (number, what) in TRAPS {
        match (tests.get(number), OWED.contains(number)) {
            (None, false) => panic!("trap {number} ({what}) has no test"),
            (Some(tests), true) => panic!("trap {number} ({what}) is owed no more: {tests:?}"),
            _ => {}
        }
    }
}
