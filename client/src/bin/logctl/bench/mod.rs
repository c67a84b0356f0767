//! `logctl bench`: how fast one client produces and consumes, and how long it waits.
//!
//! Promise: every figure comes with the settings it was measured under. With a rate, the schedule does
//! not wait for answers, and latency counts from the *intended* send time: a broker that stalls is
//! charged for what should have been sent meanwhile. Without, latency is labelled as not comparable.
//!
//! Not here: comparing brokers, which the harness in `benches/` does.

mod consume;
mod payload;
mod produce;
mod report;

use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use logd_client::Client;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::Out;

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Store records of random letters, at a fixed rate or as fast as possible
    Produce(produce::Options),
    /// Read what a topic holds, as fast as possible
    Consume(consume::Options),
}

pub async fn run(context: &Context, action: Action) -> Result<Exit, Failure> {
    match action {
        Action::Produce(options) => produce::run(context, options).await,
        Action::Consume(options) => consume::run(context, options).await,
    }
}

/// Whether client and brokers share a machine, and so its CPUs.
async fn is_loopback(client: &Client) -> Result<bool, Failure> {
    let brokers = client.admin().describe_cluster().await?.brokers;
    Ok(brokers.iter().any(|broker| is_local(&broker.addr)))
}

fn is_local(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// A bar on stderr while somebody watches.
fn progress(out: Out, total: Option<u64>) -> ProgressBar {
    let target = match out.is_watched() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(total, target);
    let template = match total {
        Some(_) => "{wide_bar} {human_pos}/{human_len} records, {per_sec}",
        None => "{spinner} {human_pos} records, {per_sec}, {elapsed}",
    };
    // A template of ours that does not parse costs no more than its looks.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_recognised() {
        assert!(is_local("127.0.0.1:9092") && is_local("[::1]:9092") && is_local("localhost:1"));
        assert!(!is_local("kafka-1:9092") && !is_local("10.0.0.1:9092"));
    }
}
