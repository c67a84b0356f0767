//! Lines of a file or a pipe, as they come.
//!
//! Promise: a line that has arrived is handed on at once, and many that have arrived together; a line
//! longer than a record may be is skipped and reported, and never held in memory whole.
//!
//! Not here: what a line means.

use std::io::{self, BufRead};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Chunks read ahead of the producer; each is about one buffer of the reader.
const CHUNKS: usize = 16;

/// Bytes asked of the file at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// A line without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: u64,
    pub text: Result<Bytes, TooLong>,
}

/// The line had so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub usize);

/// Reads on a thread of its own, since a pipe may be silent for ever; the process does not wait for it.
pub fn spawn(
    source: impl io::Read + Send + 'static,
    bytes_max: usize,
) -> mpsc::Receiver<io::Result<Vec<Line>>> {
    let (send, receive) = mpsc::channel(CHUNKS);
    std::thread::spawn(move || {
        let mut lines = Lines::new(io::BufReader::with_capacity(CHUNK_BYTES, source), bytes_max);
        loop {
            let chunk = lines.next_chunk();
            if matches!(&chunk, Ok(lines) if lines.is_empty()) {
                return;
            }
            let failed = chunk.is_err();
            if send.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    receive
}

struct Lines<R> {
    reader: R,
    bytes_max: usize,
    number: u64,
    /// The beginning of a line whose end has not arrived, and how long it is so far.
    begun: Vec<u8>,
    begun_bytes: usize,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R, bytes_max: usize) -> Lines<R> {
        Lines {
            reader,
            bytes_max,
            number: 0,
            begun: Vec::new(),
            begun_bytes: 0,
        }
    }

    /// At least one line; none at the end.
    fn next_chunk(&mut self) -> io::Result<Vec<Line>> {
        loop {
            let arrived = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            let bytes = arrived.len();
            if bytes == 0 {
                let rest = self.begun_bytes > 0;
                return Ok(rest.then(|| self.finish()).into_iter().collect());
            }
            // One copy for all lines of the chunk.
            let arrived = Bytes::copy_from_slice(arrived);
            self.reader.consume(bytes);
            let lines = self.split(&arrived);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    fn split(&mut self, arrived: &Bytes) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut from = 0;
        while let Some(length) = arrived[from..].iter().position(|byte| *byte == b'\n') {
            let text = arrived.slice(from..from + length);
            from += length + 1;
            if self.begun_bytes == 0 && text.len() <= self.bytes_max {
                self.number += 1;
                let (number, text) = (self.number, Ok(text));
                lines.push(Line { number, text });
            } else {
                self.begin(&text);
                lines.push(self.finish());
            }
        }
        self.begin(&arrived[from..]);
        lines
    }

    fn begin(&mut self, part: &[u8]) {
        self.begun_bytes = self.begun_bytes.saturating_add(part.len());
        if self.begun_bytes <= self.bytes_max {
            self.begun.extend_from_slice(part);
        }
    }

    fn finish(&mut self) -> Line {
        self.number += 1;
        let bytes = std::mem::take(&mut self.begun_bytes);
        let text = Bytes::from(std::mem::take(&mut self.begun));
        Line {
            number: self.number,
            text: match bytes <= self.bytes_max {
                true => Ok(text),
                false => Err(TooLong(bytes)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads with a buffer of so many bytes, which is how a pipe's arrivals are cut.
    fn lines(text: &str, buffer: usize, bytes_max: usize) -> Vec<Result<String, usize>> {
        let reader = io::BufReader::with_capacity(buffer, text.as_bytes());
        let mut lines = Lines::new(reader, bytes_max);
        let mut all = Vec::new();
        loop {
            let chunk = lines.next_chunk().unwrap();
            if chunk.is_empty() {
                return all;
            }
            for line in chunk {
                all.push(match line.text {
                    Ok(text) => Ok(String::from_utf8(text.to_vec()).unwrap()),
                    Err(TooLong(bytes)) => Err(bytes),
                });
                assert_eq!(line.number, all.len() as u64);
            }
        }
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = "one\n\nthree\nno end";
        let expected = ["one", "", "three", "no end"].map(|line| Ok(line.to_owned()));
        for buffer in 1..20 {
            assert_eq!(lines(text, buffer, 100), expected, "{buffer} at a time");
        }
        assert!(lines("", 8, 100).is_empty());
        assert_eq!(lines("\n", 8, 100), [Ok(String::new())]);
    }

    #[test]
    fn a_line_longer_than_allowed_is_skipped_and_the_next_one_is_not() {
        for buffer in 1..20 {
            let seen = lines("12345\n123456789\nab", buffer, 5);
            let expected = [Ok("12345".to_owned()), Err(9), Ok("ab".to_owned())];
            assert_eq!(seen, expected, "{buffer} at a time");
        }
    }
}
