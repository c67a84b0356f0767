//! Where words go: data to stdout as a table or as JSON, everything else to stderr.
//!
//! Promise: tables have UPPERCASE headers, no boxes, and `-` for what is absent; no byte of a name can
//! control the terminal. JSON has snake_case names and raw numbers, and only grows.
//!
//! Not here: what the tables say, which each command decides.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::CellAlignment;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::failure::{Exit, Failure};

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// Something that a command shows.
pub trait Shown: Serialize {
    fn table(&self) -> String;
}

/// Both ways out.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub format: Format,
    pub quiet: bool,
}

impl Out {
    /// Data.
    pub fn show(self, shown: &impl Shown) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => shown.table(),
            Format::Json => json(shown)? + "\n",
        };
        self.data(text.as_bytes())
    }

    /// Data that is bytes already.
    pub fn data(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        written.map_err(|error| Failure::io("cannot write to stdout", &error))
    }

    /// What is good to know.
    pub fn note(self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// An error, and how it ends the process.
    pub fn fail(self, failure: &Failure) -> Exit {
        if let Failure::Told { message, hint, .. } = failure {
            say(&format!("error: {message}"));
            if let Some(hint) = hint {
                say(&format!("  hint: {hint}"));
            }
        }
        failure.exit()
    }

    /// Whether somebody watches stderr, for progress.
    pub fn is_watched(self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }
}

/// A stderr that nobody reads is no reason to stop.
fn say(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

/// Indented, for readers; JSON processors do not mind.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write JSON: {error}")))
}

/// Rows under headers. A header that begins with `>` has its column of numbers on the right.
#[derive(Debug)]
pub struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headers: &[&'static str]) -> Table {
        Table {
            headers: headers.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| plain(&cell));
        self.rows.push(cells.collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn render(self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING);
        table.set_header(self.headers.iter().map(|name| name.trim_start_matches('>')));
        table.add_rows(self.rows);
        for (column, header) in table.column_iter_mut().zip(&self.headers) {
            column.set_padding((0, 2));
            if header.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines = table.lines();
        lines
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }
}

/// Names come from strangers: what would move the cursor is written out instead.
fn plain(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    match text {
        "" => "-".to_owned(),
        text => text.chars().map(escaped).collect(),
    }
}

/// What is there, or `-`.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `1 record`, `2 records`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// `[1, 2, 3]` as `1,2,3`.
pub fn joined(numbers: &[i32]) -> String {
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_headers_and_no_boxes() {
        let mut table = Table::new(&["TOPIC", ">PARTITIONS", "NOTE"]);
        table.row(["orders".into(), "3".into(), String::new()]);
        table.row(["a-much-longer-name".into(), "12".into(), "a b".into()]);
        let expected = "\
TOPIC               PARTITIONS  NOTE
orders                       3  -
a-much-longer-name          12  a b
";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn a_table_without_rows_still_says_what_it_would_hold() {
        let table = Table::new(&["GROUP", "STATE"]);
        assert!(table.is_empty());
        assert_eq!(table.render(), "GROUP  STATE\n");
    }

    #[test]
    fn a_name_cannot_control_the_terminal() {
        assert_eq!(plain("\u{1b}[2Jx\ny"), "\\u{1b}[2Jx\\ny");
    }

    #[test]
    fn numbers_and_nouns_agree() {
        assert_eq!(count(1, "record"), "1 record");
        assert_eq!(count(0, "record"), "0 records");
        assert_eq!(joined(&[1, 2]), "1,2");
        assert_eq!(or_dash(None::<i32>), "-");
    }
}
