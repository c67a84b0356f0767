//! How a record is written: kcat's format language, or a JSON object per line. Pure.
//!
//! Promise: bytes of keys and values come out unchanged; in JSON, where that is not possible, as base64
//! and marked so.

use std::io::Write;
use std::str::FromStr;

use logd_client::ConsumedRecord;
use serde::Serialize;

/// What may follow a `%`.
const FIELDS: &str = "%t topic, %p partition, %o offset, %k key, %v or %s value, %h headers, \
                      %T timestamp, %K and %S lengths of key and value, %% a percent sign";

/// A format, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    KeyBytes,
    ValueBytes,
    Headers,
    Timestamp,
}

impl Default for Template {
    /// A value per line.
    fn default() -> Template {
        Template(vec![Piece::Value, Piece::Text(b"\n".to_vec())])
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(format: &str) -> Result<Template, String> {
        let mut template = Template(Vec::new());
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => template.field(chars.next())?,
                '\\' => {
                    let byte = escape(&mut chars)?;
                    template.text(&[byte]);
                }
                c => template.text(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Ok(template)
    }
}

/// What stands behind a backslash.
fn escape(chars: &mut std::str::Chars<'_>) -> Result<u8, String> {
    match chars.next() {
        Some('n') => Ok(b'\n'),
        Some('r') => Ok(b'\r'),
        Some('t') => Ok(b'\t'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let byte = hex.then(|| u8::from_str_radix(&digits, 16).ok()).flatten();
            byte.ok_or_else(|| format!("\\x{digits}: expected two hexadecimal digits"))
        }
        Some(c) => Err(format!(
            "\\{c} means nothing; there are \\n \\r \\t \\0 \\xNN \\\\"
        )),
        None => Err("a backslash at the end".to_owned()),
    }
}

impl Template {
    fn field(&mut self, letter: Option<char>) -> Result<(), String> {
        let piece = match letter {
            Some('t') => Piece::Topic,
            Some('p') => Piece::Partition,
            Some('o') => Piece::Offset,
            Some('k') => Piece::Key,
            Some('v' | 's') => Piece::Value,
            Some('K') => Piece::KeyBytes,
            Some('S') => Piece::ValueBytes,
            Some('h') => Piece::Headers,
            Some('T') => Piece::Timestamp,
            Some('%') => {
                self.text(b"%");
                return Ok(());
            }
            Some(other) => return Err(format!("%{other} means nothing; there are {FIELDS}")),
            None => return Err(format!("a percent sign at the end; there are {FIELDS}")),
        };
        self.0.push(piece);
        Ok(())
    }

    fn text(&mut self, bytes: &[u8]) {
        match self.0.last_mut() {
            Some(Piece::Text(text)) => text.extend_from_slice(bytes),
            _ => self.0.push(Piece::Text(bytes.to_vec())),
        }
    }

    /// Appends a record.
    pub fn write(&self, record: &ConsumedRecord, to: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => to.extend_from_slice(text),
                Piece::Topic => to.extend_from_slice(record.topic.as_bytes()),
                Piece::Partition => number(record.partition.into(), to),
                Piece::Offset => number(record.offset, to),
                Piece::Key => to.extend_from_slice(record.key.as_deref().unwrap_or_default()),
                Piece::Value => to.extend_from_slice(record.value.as_deref().unwrap_or_default()),
                Piece::KeyBytes => number(length(record.key.as_deref()), to),
                Piece::ValueBytes => number(length(record.value.as_deref()), to),
                Piece::Headers => headers(record, to),
                Piece::Timestamp => number(record.timestamp, to),
            }
        }
    }
}

/// -1 for what is absent, as kcat has it.
fn length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX))
}

fn number(number: i64, to: &mut Vec<u8>) {
    // A vector takes everything.
    write!(to, "{number}").ok();
}

/// `a=1,b=2`.
fn headers(record: &ConsumedRecord, to: &mut Vec<u8>) {
    for (at, (name, value)) in record.headers.iter().enumerate() {
        if at > 0 {
            to.push(b',');
        }
        to.extend_from_slice(name.as_bytes());
        to.push(b'=');
        to.extend_from_slice(value.as_deref().unwrap_or(b"NULL"));
    }
}

#[derive(Debug, Serialize)]
struct JsonRecord<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp_ms: i64,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<JsonHeader<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct JsonHeader<'a> {
    name: &'a str,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<&'static str>,
}

/// Appends a record as one line of JSON.
pub fn write_json(record: &ConsumedRecord, to: &mut Vec<u8>) -> serde_json::Result<()> {
    let (key, key_encoding) = text(record.key.as_deref());
    let (value, value_encoding) = text(record.value.as_deref());
    let headers = record.headers.iter().map(|(name, value)| {
        let (value, value_encoding) = text(value.as_deref());
        JsonHeader {
            name,
            value,
            value_encoding,
        }
    });
    let shown = JsonRecord {
        topic: &record.topic,
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp,
        key,
        value,
        headers: headers.collect(),
        key_encoding,
        value_encoding,
    };
    serde_json::to_writer(&mut *to, &shown)?;
    to.push(b'\n');
    Ok(())
}

/// Bytes as a JSON string, and how it is to be read if not as it is.
fn text(bytes: Option<&[u8]>) -> (Option<String>, Option<&'static str>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(text.to_owned()), None),
        Some((bytes, Err(_))) => (Some(base64(bytes)), Some("base64")),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            match digit <= group.len() {
                true => text.push(char::from(DIGITS[index as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn order() -> ConsumedRecord {
        ConsumedRecord {
            topic: "orders".into(),
            partition: 2,
            offset: 41,
            timestamp: 1_700_000_000_123,
            key: Some(Bytes::from_static(b"order-7")),
            value: Some(Bytes::from_static(b"42 cents")),
            headers: vec![
                ("source".into(), Some(Bytes::from_static(b"shop"))),
                ("trace".into(), None),
            ],
        }
    }

    fn written(format: &str, record: &ConsumedRecord) -> String {
        let mut bytes = Vec::new();
        let template: Template = format.parse().unwrap();
        template.write(record, &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_field_has_a_letter() {
        let record = order();
        let format = r"%t/%p@%o %T %k(%K)=%s(%S) [%h] 100%%\t\x41\n";
        let expected = "orders/2@41 1700000000123 order-7(7)=42 cents(8) [source=shop,trace=NULL] \
                        100%\tA\n";
        assert_eq!(written(format, &record), expected);
        assert_eq!(written("%v%s", &record), "42 cents42 cents");
        assert_eq!(written("é", &record), "é");
    }

    #[test]
    fn what_is_absent_is_empty_and_its_length_says_so() {
        let record = ConsumedRecord {
            key: None,
            value: None,
            headers: vec![],
            ..order()
        };
        assert_eq!(written("%k|%v|%K|%S|%h", &record), "||-1|-1|");
    }

    #[test]
    fn a_format_that_means_nothing_is_refused_with_what_there_is() {
        for wrong in ["%", "%q", "\\", "\\q", "\\x4", "\\x4g"] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong}");
        }
        let error = "%q".parse::<Template>().unwrap_err();
        assert!(error.contains("%t topic"), "{error}");
    }

    #[test]
    fn the_default_is_a_value_per_line() {
        assert_eq!("%v\\n".parse(), Ok(Template::default()));
    }

    #[test]
    fn a_json_line_has_everything() {
        let mut line = Vec::new();
        write_json(&order(), &mut line).unwrap();
        let expected = concat!(
            r#"{"topic":"orders","partition":2,"offset":41,"timestamp_ms":1700000000123,"#,
            r#""key":"order-7","value":"42 cents","headers":[{"name":"source","value":"shop"},"#,
            r#"{"name":"trace","value":null}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn what_is_not_text_is_base64_and_marked() {
        let mut line = Vec::new();
        let record = ConsumedRecord {
            value: Some(Bytes::from_static(&[0xff, 0x00])),
            headers: vec![],
            ..order()
        };
        write_json(&record, &mut line).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(r#""value":"/wA=""#), "{line}");
        assert!(line.contains(r#""value_encoding":"base64""#), "{line}");
        assert!(!line.contains("key_encoding"), "{line}");
    }

    #[test]
    fn base64_is_as_the_standard_has_it() {
        let known = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (length, expected) in known.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *expected);
        }
    }
}
