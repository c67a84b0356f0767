//! Values of options, from text. Pure; every refusal says what would have been accepted.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use logd_client::Compression;

/// Kafka's usual port.
const PORT: u16 = 9092;

/// Where brokers speak to each other, and to operators.
const RPC_PORT: u16 = 9645;

/// Where a broker serves clients: `host`, `host:port`, `1.2.3.4:port`, `[::1]:port`.
pub fn broker(text: &str) -> Result<String, String> {
    address(text, PORT)
}

/// Where a broker serves operators.
pub fn rpc(text: &str) -> Result<String, String> {
    address(text, RPC_PORT)
}

fn address(text: &str, usual: u16) -> Result<String, String> {
    let text = text.trim();
    let is_bare_v6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !is_bare_v6 && !text.ends_with(']') => {
            let port = port.parse::<u16>();
            (
                host,
                port.map_err(|_| "the port is not a number below 65536")?,
            )
        }
        _ => (text, usual),
    };
    match host {
        "" => Err("expected HOST:PORT".to_owned()),
        v6 if is_bare_v6 => Ok(format!("[{v6}]:{port}")),
        _ => Ok(format!("{host}:{port}")),
    }
}

/// `500ms`, `10s`, `2m`, `1h`; a number alone counts seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time such as 500ms, 10s or 2m, longer than nothing";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(EXPECTED.to_owned()),
    };
    let count: f64 = digits.parse().map_err(|_| EXPECTED)?;
    let duration = Duration::try_from_secs_f64(count * seconds).map_err(|_| EXPECTED)?;
    match duration.is_zero() {
        true => Err(EXPECTED.to_owned()),
        false => Ok(duration),
    }
}

/// `key=value`; the value may be empty and may contain further `=`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// `topic/partition`, as logctl prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionName {
    pub topic: String,
    pub partition: i32,
}

impl fmt::Display for PartitionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A name of a topic has no slash.
pub fn partition(text: &str) -> Result<PartitionName, String> {
    const EXPECTED: &str = "expected TOPIC/PARTITION, such as orders/0";
    let (topic, number) = text.split_once('/').ok_or(EXPECTED)?;
    let partition = number.parse().ok().filter(|number| *number >= 0);
    match (topic, partition) {
        ("", _) | (_, None) => Err(EXPECTED.to_owned()),
        (topic, Some(partition)) => Ok(PartitionName {
            topic: topic.to_owned(),
            partition,
        }),
    }
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Codec {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Compression {
        match codec {
            Codec::None => Compression::None,
            Codec::Gzip => Compression::Gzip,
            Codec::Snappy => Compression::Snappy,
            Codec::Lz4 => Compression::Lz4,
            Codec::Zstd => Compression::Zstd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_get_kafkas_port_unless_they_name_one() {
        let seen = |text| broker(text).unwrap();
        assert_eq!(seen("kafka-1"), "kafka-1:9092");
        assert_eq!(seen(" kafka-1:19092"), "kafka-1:19092");
        assert_eq!(seen("::1"), "[::1]:9092");
        assert_eq!(seen("[::1]"), "[::1]:9092");
        assert_eq!(seen("[::1]:1"), "[::1]:1");
        for wrong in ["", ":9092", "kafka-1:", "kafka-1:99999", "http://kafka-1"] {
            assert!(broker(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn operators_are_served_on_a_port_of_its_own() {
        assert_eq!(rpc("logd-1").unwrap(), "logd-1:9645");
        assert_eq!(rpc("logd-1:1").unwrap(), "logd-1:1");
    }

    #[test]
    fn a_partition_is_a_topic_and_a_number() {
        let name = partition("orders/12").unwrap();
        assert_eq!((name.topic.as_str(), name.partition), ("orders", 12));
        assert_eq!(name.to_string(), "orders/12");
        for wrong in ["orders", "/0", "orders/", "orders/-1", "orders/x", "a/b/0"] {
            assert!(partition(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_have_units() {
        let seen = |text| duration(text).unwrap().as_millis();
        assert_eq!(seen("500ms"), 500);
        assert_eq!(seen("1.5s"), 1500);
        assert_eq!(seen("3"), 3000);
        assert_eq!(seen("2m"), 120_000);
        for wrong in ["", "s", "0s", "-1s", "10 parsecs", "1d", "inf", "1e300h"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn settings_are_split_at_the_first_equals_sign() {
        let seen = |text| key_value(text).unwrap();
        assert_eq!(seen("a=b=c"), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(seen("a="), ("a".to_owned(), String::new()));
        assert!(key_value("retention.ms").is_err());
        assert!(key_value("=1").is_err());
    }

    #[test]
    fn codecs_are_written_as_they_are_named() {
        for codec in Codec::value_variants() {
            assert_eq!(Codec::from_str(codec.name(), false), Ok(*codec));
        }
    }
}
