//! A stand-in for the crate `base2histogram`, put in its place by `[patch.crates-io]` in the workspace's Cargo.toml.
//!
//! openraft keeps some fifteen histograms per Raft group, which only its feature `runtime-stats` lets anyone read. logd
//! leaves that feature off, but the real crate (0.2.3) still builds look-up tables of 26 MB at the first histogram, more
//! than everything else an idle broker holds, and 2 kB per histogram, which is 30 kB per partition. Here recording does
//! nothing and statistics are zero. Whoever turns the feature on removes the patch first; so does whoever finds a release
//! that builds only the tables it uses. Only what openraft calls is here.

use std::fmt;
use std::marker::PhantomData;

/// Accepts values and forgets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty histogram, which it stays.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }

    /// Does nothing.
    pub fn record(&mut self, _value: u64) {}

    /// Does nothing, however often.
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// Of no samples.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

/// Percentiles by their names in openraft's reports; all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name says which percentile it is")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not recorded")
    }
}

/// An empty chart.
#[derive(Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// A chart without series.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }

    /// Still a chart without series.
    #[must_use]
    pub fn add(self, _name: impl AsRef<str>, _series: Histogram) -> Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
