//! What a benchmark found: settings, rates, percentiles. Pure.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::output::{Shown, Table, or_dash};

/// Latencies beyond a minute are counted as a minute.
const LATENCY_MAX_US: u64 = 60_000_000;

/// Three digits are more than any two runs agree on.
const DIGITS: u8 = 3;

/// An empty histogram of microseconds.
pub fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot count latencies: {error}")))
}

/// Percentiles in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// `intended_send`, `send` or `wait`: from when on.
    from: &'static str,
    /// Whether it may be held against another run's.
    comparable: bool,
    p50_us: u64,
    p95_us: u64,
    p99_us: u64,
    p99_9_us: u64,
    max_us: u64,
}

impl Latency {
    /// Nothing was measured when nothing was counted.
    pub fn of(histogram: &Histogram<u64>, from: &'static str, comparable: bool) -> Option<Latency> {
        (!histogram.is_empty()).then(|| Latency {
            from,
            comparable,
            p50_us: histogram.value_at_quantile(0.5),
            p95_us: histogram.value_at_quantile(0.95),
            p99_us: histogram.value_at_quantile(0.99),
            p99_9_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        })
    }
}

/// One run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `produce` or `consume`.
    pub bench: &'static str,
    pub topic: String,
    pub partitions: usize,
    /// Only of produced records: "all" is the only way this client has.
    pub acks: Option<&'static str>,
    pub codec: Option<&'static str>,
    pub record_bytes: Option<u64>,
    pub linger_ms: Option<u64>,
    /// Records per second asked for; none as fast as possible.
    pub target_rate: Option<f64>,
    pub records: u64,
    pub failed: u64,
    /// Of keys and values, before compression.
    pub bytes: u64,
    pub seconds: f64,
    pub records_per_second: f64,
    pub bytes_per_second: f64,
    pub latency: Option<Latency>,
    /// Client and brokers share this machine's CPUs.
    pub loopback: bool,
}

/// Amount per second, also over no time at all.
pub fn rate(amount: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        amount as f64 / seconds
    } else {
        0.0
    }
}

impl Report {
    /// The conditions in words, one remark per line.
    fn conditions(&self) -> Vec<String> {
        let mut settings = vec![
            format!("topic {}", self.topic),
            format!("partitions {}", self.partitions),
        ];
        settings.extend(self.acks.map(|acks| format!("acks {acks}")));
        settings.extend(self.record_bytes.map(|bytes| format!("record {bytes} B")));
        settings.extend(self.linger_ms.map(|ms| format!("linger {ms} ms")));
        settings.extend(self.codec.map(|codec| format!("codec {codec}")));
        let mut conditions = vec![settings.join(", ")];
        conditions.push(match (self.bench, self.target_rate) {
            ("consume", _) => {
                "saturation; latency is the wait for the next records, not comparable".to_owned()
            }
            (_, None) => "saturation, latency not comparable".to_owned(),
            (_, Some(target)) => format!(
                "open loop at {target} records/s, of which {:.1} % was achieved; \
                 latency counts from the intended send time",
                100.0 * self.records_per_second / target
            ),
        });
        if self.loopback {
            conditions.push("loopback: client and brokers share this machine's CPUs".to_owned());
        }
        conditions
    }
}

impl Shown for Report {
    fn table(&self) -> String {
        let headers = [
            ">RECORDS",
            ">FAILED",
            ">SECONDS",
            ">RECORDS/S",
            ">MB/S",
            ">P50 MS",
            ">P95 MS",
            ">P99 MS",
            ">P99.9 MS",
            ">MAX MS",
        ];
        let of = |pick: fn(&Latency) -> u64| {
            let us = self.latency.as_ref().map(pick);
            or_dash(us.map(|us| format!("{:.3}", us as f64 / 1e3)))
        };
        let mut table = Table::new(&headers);
        table.row([
            self.records.to_string(),
            self.failed.to_string(),
            format!("{:.2}", self.seconds),
            format!("{:.0}", self.records_per_second),
            format!("{:.2}", self.bytes_per_second / 1e6),
            of(|latency| latency.p50_us),
            of(|latency| latency.p95_us),
            of(|latency| latency.p99_us),
            of(|latency| latency.p99_9_us),
            of(|latency| latency.max_us),
        ]);
        let conditions = self.conditions().join("\n");
        format!("{conditions}\n\n{}", table.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    fn report() -> Report {
        let mut latencies = histogram().unwrap();
        for us in 1..=1000 {
            latencies.record(us).unwrap();
        }
        Report {
            bench: "produce",
            topic: "t".into(),
            partitions: 2,
            acks: Some("all"),
            codec: Some("none"),
            record_bytes: Some(100),
            linger_ms: Some(5),
            target_rate: Some(1000.0),
            records: 1000,
            failed: 0,
            bytes: 100_000,
            seconds: 1.0,
            records_per_second: 1000.0,
            bytes_per_second: 100_000.0,
            latency: Latency::of(&latencies, "intended_send", true),
            loopback: true,
        }
    }

    #[test]
    fn figures_come_with_their_conditions() {
        let expected = "\
topic t, partitions 2, acks all, record 100 B, linger 5 ms, codec none
open loop at 1000 records/s, of which 100.0 % was achieved; latency counts from the intended send time
loopback: client and brokers share this machine's CPUs

RECORDS  FAILED  SECONDS  RECORDS/S  MB/S  P50 MS  P95 MS  P99 MS  P99.9 MS  MAX MS
   1000       0     1.00       1000  0.10   0.500   0.950   0.990     0.999   1.000
";
        assert_eq!(report().table(), expected);
    }

    #[test]
    fn without_a_schedule_latency_is_not_comparable_and_says_so() {
        let report = Report {
            target_rate: None,
            ..report()
        };
        assert!(
            report
                .table()
                .contains("saturation, latency not comparable")
        );
    }

    #[test]
    fn nothing_measured_is_absent_and_no_division_by_zero() {
        assert!(Latency::of(&histogram().unwrap(), "send", false).is_none());
        assert_eq!(rate(5, 0.0), 0.0);
        let report = Report {
            latency: None,
            ..report()
        };
        assert!(
            report.table().trim_end().ends_with('-'),
            "{}",
            report.table()
        );
    }

    #[test]
    fn json_has_raw_numbers() {
        let value: serde_json::Value = serde_json::from_str(&json(&report()).unwrap()).unwrap();
        assert_eq!(value["latency"]["p99_us"], 990);
        assert_eq!(value["latency"]["from"], "intended_send");
        assert_eq!(value["bytes_per_second"], 100_000.0);
        assert_eq!(value["loopback"], true);
    }
}
