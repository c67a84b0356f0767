//! `logd-bench`: measures brokers side by side, in one run, on one machine, and prints Markdown.
//!
//! Absolute figures move with the machine; the ratio of two brokers that took turns does not. So every command takes any
//! number of brokers, interleaves their rounds and reports medians with their spread. The client is a real one
//! (librdkafka), because a client of our own would measure how well two halves of one house agree.
//! Not here: `logctl bench`, which users point at one cluster.

mod broker;
mod catch_up;
mod compaction;
mod failover;
mod latency;
mod lifecycle;
mod load;
mod page_cache;
mod processes;
mod report;
mod scale;
mod throughput;

use broker::Target;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    name = "logd-bench",
    version,
    about = "Compare brokers that speak the Kafka protocol",
    max_term_width = 100
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Produce and consume with librdkafka's rdkafka_performance: MB/s, broker CPU seconds per GB, memory
    Throughput(throughput::Options),
    /// Single records on an open-loop schedule, timed from the intended send to the consumer
    Latency(latency::Options),
    /// Kill, stop or pause one broker of a cluster under load: the gap in each partition's acknowledgements
    Failover(failover::Options),
    /// Many partitions: how long they take to make, what they cost at rest, how soon they are led again
    Scale(scale::Options),
    /// Empty one broker's disk under load: how fast it is filled again, and what clients notice
    CatchUp(catch_up::Options),
    /// Fill a compacted topic, let compaction begin, and watch its size; what another producer notices
    Compaction(compaction::Options),
    /// Start a logd on an empty directory and time its first answer
    Start(lifecycle::StartOptions),
    /// Fill partitions, SIGKILL the broker, and time its first answer with the right end offsets
    Recovery(lifecycle::RecoveryOptions),
}

/// The brokers to compare; the last one is what the ratios refer to.
#[derive(clap::Args)]
struct Brokers {
    /// A broker as NAME=HOST:PORT/PID (the PID's CPU time and memory are charged to it), a cluster as
    /// NAME=HOST:PORT,HOST:PORT/PID,PID; repeat for each
    #[arg(long = "broker", value_name = "NAME=HOST:PORT/PID", required = true)]
    targets: Vec<Target>,
    /// Replicas of every topic
    #[arg(long, default_value_t = 1)]
    replicas: i32,
}

/// Where the C client is.
#[derive(clap::Args)]
struct Client {
    /// librdkafka's rdkafka_performance
    #[arg(long, value_name = "FILE", env = "RDKAFKA_PERFORMANCE")]
    client: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Throughput(options) => throughput::run(&options).await,
        Command::Latency(options) => latency::run(&options).await,
        Command::Failover(options) => failover::run(&options).await,
        Command::Scale(options) => scale::run(&options).await,
        Command::CatchUp(options) => catch_up::run(&options).await,
        Command::Compaction(options) => compaction::run(&options).await,
        Command::Start(options) => lifecycle::start(&options),
        Command::Recovery(options) => lifecycle::recovery(&options).await,
    }
}
