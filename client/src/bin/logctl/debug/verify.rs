//! `logctl debug verify`: every finding as it is made, and what was looked at.

use std::io;

use logd_storage::inspect::{Finding, Severity};
use serde::Serialize;

use super::print::{Line, Printer};
use super::{Verdict, VerifyOptions, batch, open};

#[derive(Serialize)]
pub(super) struct FindingLine {
    severity: &'static str,
    file: String,
    position: u64,
    what: String,
}

impl From<&Finding> for FindingLine {
    fn from(finding: &Finding) -> Self {
        Self {
            severity: match finding.severity {
                Severity::Note => "note",
                Severity::Damage => "damage",
            },
            file: finding.path.display().to_string(),
            position: finding.position,
            what: finding.what.clone(),
        }
    }
}

impl Line for FindingLine {
    const KIND: &'static str = "finding";
    const COLUMNS: &'static [(&'static str, usize)] = &[
        ("SEVERITY", 8),
        ("FILE", 40),
        (">POSITION", 10),
        ("WHAT", 0),
    ];

    fn cells(&self) -> Vec<String> {
        let position = self.position.to_string();
        vec![
            self.severity.to_owned(),
            self.file.clone(),
            position,
            self.what.clone(),
        ]
    }
}

#[derive(Serialize)]
struct Summary {
    damage: u64,
    notes: u64,
    logs: u64,
    segments: u64,
    rows: u64,
    payload_bytes: u64,
    groups: u64,
    operations: u64,
}

impl Line for Summary {
    const KIND: &'static str = "summary";
    const COLUMNS: &'static [(&'static str, usize)] = &[
        (">DAMAGE", 6),
        (">NOTES", 6),
        (">LOGS", 6),
        (">SEGMENTS", 8),
        (">ROWS", 10),
        (">PAYLOAD BYTES", 14),
        (">GROUPS", 8),
        (">OPERATIONS", 10),
    ];

    fn cells(&self) -> Vec<String> {
        [
            self.damage,
            self.notes,
            self.logs,
            self.segments,
            self.rows,
            self.payload_bytes,
            self.groups,
            self.operations,
        ]
        .iter()
        .map(u64::to_string)
        .collect()
    }
}

pub(super) fn run(options: &VerifyOptions, printer: &mut Printer<'_>) -> anyhow::Result<Verdict> {
    let directory = open(&options.path, options.running)?;
    let (mut damage, mut notes) = (0, 0);
    let mut printed: io::Result<()> = Ok(());
    let done = directory.verify(
        &mut |payload| {
            if batch::holds_batches(payload.key) {
                batch::complaint(&payload.row, &payload.bytes)
            } else {
                None
            }
        },
        &mut |finding| {
            match finding.severity {
                Severity::Damage => damage += 1,
                Severity::Note => notes += 1,
            }
            if printed.is_ok() {
                printed = printer.line(&FindingLine::from(&finding));
            }
        },
    );
    printed?;
    printer.line(&Summary {
        damage,
        notes,
        logs: done.logs,
        segments: done.segments,
        rows: done.rows,
        payload_bytes: done.payload_bytes,
        groups: done.groups,
        operations: done.operations,
    })?;
    Ok(match damage {
        0 => Verdict::Sound,
        _ => Verdict::Damaged,
    })
}
