//! A directory with real batches, dumped, verified, damaged and verified again.

use super::*;
use bytes::Bytes;
use logd_proto::record_batch::{BatchBuilder, Compression};
use logd_storage::{Disk, DiskOptions, Entry, EntryId, Kind, LogOptions, Pump};

const KEY: LogKey = LogKey {
    topic: [0xab; 16],
    partition: 3,
};

fn batch(offset: i64, values: &[&[u8]]) -> Bytes {
    let mut batch = BatchBuilder::new()
        .compression(Compression::Zstd)
        .base_offset(offset);
    for value in values {
        batch.push(77, Some(b"key"), Some(value), &[]).unwrap();
    }
    batch.build().unwrap()
}

fn append(disk: &Disk, payload: impl Fn(i64) -> Bytes) {
    let log = disk.open_log(KEY, LogOptions::default()).unwrap();
    let bounds = log.bounds();
    let entry = Entry {
        id: EntryId {
            term: 1,
            index: bounds.last.map_or(0, |last| last.index + 1),
        },
        kind: Kind::Data,
        base_offset: bounds.end_offset,
        records: 2,
        max_timestamp: 77,
        head: Bytes::new(),
        body: payload(bounds.end_offset),
    };
    log.append(vec![entry], Box::new(|_| {})).unwrap();
}

/// Two batches in a segment, one in the write-ahead log alone.
fn made(dir: &Path) -> Disk {
    let options = DiskOptions {
        pump: Pump::Manual,
        wal_file_bytes: 1 << 20,
        ..DiskOptions::default()
    };
    let disk = Disk::open(super::disk(), dir, options, &|_| {}).unwrap();
    let values: [&[u8]; 2] = [b"first \x1b[2J", b"second"];
    append(&disk, |offset| batch(offset, &values));
    append(&disk, |offset| batch(offset, &values));
    disk.checkpoint().unwrap();
    append(&disk, |offset| batch(offset, &values));
    while disk.pump() {}
    disk
}

fn verify(dir: &Path, format: Format) -> (Verdict, String) {
    let options = VerifyOptions {
        path: dir.to_owned(),
        running: false,
    };
    ran(DebugCommand::Verify(options), format)
}

fn ran(command: DebugCommand, format: Format) -> (Verdict, String) {
    let mut out = Vec::new();
    let verdict = run(command, format, &mut out).unwrap();
    (verdict, String::from_utf8(out).unwrap())
}

fn dump(path: &Path, rows: bool, records: bool, format: Format) -> String {
    let options = DumpOptions {
        path: path.to_owned(),
        log: Some(KEY),
        rows,
        records,
        running: false,
    };
    ran(DebugCommand::Dump(options), format).1
}

fn segment(dir: &Path, extension: &str) -> PathBuf {
    let folder = dir.join("logs").join(KEY.to_string());
    let mut files = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path());
    files.find(|f| f.extension().unwrap() == extension).unwrap()
}

#[test]
fn a_sound_directory_is_sound_and_a_flipped_byte_is_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    let (verdict, text) = verify(dir.path(), Format::Table);
    assert_eq!(verdict, Verdict::Sound, "{text}");
    let log = segment(dir.path(), "log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let (verdict, text) = verify(dir.path(), Format::Json);
    assert_eq!(verdict, Verdict::Damaged);
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["kind"], &first["severity"]),
        (&"finding".into(), &"damage".into())
    );
    assert_eq!(first["file"], log.display().to_string());
}

#[test]
fn an_entry_that_is_no_batch_or_another_one_is_found() {
    type Make = fn(i64) -> Bytes;
    let wrong: [(Make, &str); 3] = [
        (|_| Bytes::from_static(b"not a batch"), "cut short"),
        (|offset| batch(offset + 1, &[b"a", b"b"]), "offsets"),
        (|offset| batch(offset, &[b"a", b"b", b"c"]), "offsets"),
    ];
    for (payload, expected) in wrong {
        let dir = tempfile::tempdir().unwrap();
        let disk = made(dir.path());
        append(&disk, payload);
        disk.close().unwrap();
        let (verdict, text) = verify(dir.path(), Format::Table);
        assert_eq!(verdict, Verdict::Damaged);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_directory_in_use_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let disk = made(dir.path());
    let options = |running| VerifyOptions {
        path: dir.path().to_owned(),
        running,
    };
    let mut out = Vec::new();
    let refused = run(
        DebugCommand::Verify(options(false)),
        Format::Table,
        &mut out,
    );
    assert!(refused.unwrap_err().to_string().contains("--running"));
    let (verdict, text) = ran(DebugCommand::Verify(options(true)), Format::Table);
    assert_eq!(verdict, Verdict::Sound, "{text}");
    assert!(text.contains("running"), "{text}");
    drop(disk);
}

#[test]
fn a_dump_shows_the_directory_its_groups_rows_and_records() {
    let dir = tempfile::tempdir().unwrap();
    drop(made(dir.path()));
    let rows = dump(dir.path(), true, false, Format::Table);
    for expected in [
        "DIRECTORY",
        "CHECKPOINT",
        "WAL FILE",
        "OPERATION",
        "SEGMENT",
        "INDEX",
    ] {
        assert!(rows.contains(expected), "{expected} in {rows}");
    }
    for path in [dir.path().to_owned(), segment(dir.path(), "log")] {
        let records = dump(&path, false, true, Format::Table);
        assert!(records.contains("second"));
        assert!(!records.contains('\x1b'), "no record controls the terminal");
    }
    let lines = dump(&segment(dir.path(), "idx"), true, false, Format::Json);
    let kinds: Vec<String> = lines
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["kind"].to_string())
        .collect();
    assert_eq!(kinds, ["\"segment\"", "\"row\"", "\"row\"", "\"row\""]);
}
