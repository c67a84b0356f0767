//! Lines as they come, in columns or as JSON, one object per line.
//!
//! Promise: nothing is collected, however much there is; no byte of a record can control the terminal.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use crate::output::Format;

/// One sort of line.
pub(super) trait Line: Serialize {
    const KIND: &'static str;
    /// Headers and the widths that most cells keep to; `>` in front puts a column on the right.
    const COLUMNS: &'static [(&'static str, usize)];
    fn cells(&self) -> Vec<String>;
}

#[derive(Serialize)]
struct Tagged<'a, L> {
    kind: &'static str,
    #[serde(flatten)]
    line: &'a L,
}

pub(super) struct Printer<'a> {
    format: Format,
    out: BufWriter<&'a mut dyn Write>,
    section: Option<&'static str>,
}

impl<'a> Printer<'a> {
    pub fn new(format: Format, out: &'a mut impl Write) -> Self {
        Self {
            format,
            out: BufWriter::new(out),
            section: None,
        }
    }

    pub fn line<L: Line>(&mut self, line: &L) -> io::Result<()> {
        match self.format {
            Format::Json => {
                let kind = L::KIND;
                serde_json::to_writer(&mut self.out, &Tagged { kind, line })?;
                self.out.write_all(b"\n")
            }
            Format::Table => self.columns(line),
        }
    }

    fn columns<L: Line>(&mut self, line: &L) -> io::Result<()> {
        if self.section != Some(L::KIND) {
            if self.section.is_some() {
                writeln!(self.out)?;
            }
            self.section = Some(L::KIND);
            let headers = L::COLUMNS
                .iter()
                .map(|(name, _)| name.trim_start_matches('>').to_owned());
            self.cells::<L>(headers.collect())?;
        }
        self.cells::<L>(line.cells())
    }

    fn cells<L: Line>(&mut self, cells: Vec<String>) -> io::Result<()> {
        let mut text = String::new();
        for (cell, (name, width)) in cells.iter().zip(L::COLUMNS) {
            let cell = plain(cell);
            match name.starts_with('>') {
                true => text += &format!("{cell:>width$}  "),
                false => text += &format!("{cell:<width$}  "),
            }
        }
        writeln!(self.out, "{}", text.trim_end())
    }

    pub fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What would move the cursor is written out; nothing is a dash.
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

pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
