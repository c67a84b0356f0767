//! What happened, line by line, in simulated time: what a seed must give again, byte for byte.
//!
//! Invariant: no line holds anything that is not a function of the seed: no disk id, no address, no
//! real time, nothing that depends on the order of a hash map.

use std::fmt::{Arguments, Write};

#[derive(Debug, Default)]
pub struct Trace {
    pub now: u64,
    text: String,
    echo: bool,
}

impl Trace {
    /// `echo`: also say it as it happens.
    pub fn new(echo: bool) -> Self {
        Self {
            echo,
            ..Self::default()
        }
    }

    pub fn say(&mut self, what: Arguments<'_>) {
        let from = self.text.len();
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:>7} {what}", self.now);
        if self.echo {
            eprint!("{}", &self.text[from..]);
        }
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

/// The last lines, for a report.
pub fn tail(text: &str, lines: usize) -> String {
    let from = text.lines().count().saturating_sub(lines);
    text.lines().skip(from).collect::<Vec<_>>().join("\n")
}
