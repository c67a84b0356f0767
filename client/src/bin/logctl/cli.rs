//! The command line's trunk: options that every command has, and the families of commands.
//!
//! Not here: a family's own options, which stand beside its code.

use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::operator::Rpc;
use crate::output::Format;
use crate::{args, bench, cluster, consume, debug, dev, group, node, partition, produce, topic};

/// Topics, records and groups of a cluster that speaks Kafka's protocol.
///
/// Exit codes: 0 done, 1 failed or partly failed, 2 wrong usage, 3 not found, 5 unreachable or timed
/// out, 6 a check found damage or an unhealthy cluster, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "logctl", version)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands, before or behind its name.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Brokers to ask, separated by commas; one that answers is enough
    #[arg(
        long,
        value_name = "HOST:PORT,..",
        env = "LOGCTL_BROKERS",
        global = true
    )]
    #[arg(value_delimiter = ',', value_parser = args::broker, default_value = "127.0.0.1:9092")]
    pub brokers: Vec<String>,
    /// How to print data
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Format,
    /// How long to wait for brokers, such as 500ms, 10s or 2m [default: 10s; 2m for records to be stored]
    #[arg(long, value_name = "TIME", value_parser = args::duration, global = true)]
    pub timeout: Option<Duration>,
    /// Say what happens underneath; twice says more
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Say nothing but data and errors
    #[arg(short, long, conflicts_with = "verbose", global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list, describe and delete topics
    #[command(visible_alias = "t")]
    Topic {
        #[command(subcommand)]
        action: topic::Action,
    },
    /// Store lines as records
    #[command(visible_alias = "p")]
    Produce(produce::Options),
    /// Print records
    #[command(visible_alias = "c")]
    Consume(consume::Options),
    /// List and describe consumer groups
    #[command(visible_alias = "g")]
    Group {
        #[command(subcommand)]
        action: group::Action,
    },
    /// Ask how the cluster is, and level it
    Cluster {
        #[command(flatten)]
        rpc: Rpc,
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// List, drain, resume and decommission brokers
    Node {
        #[command(flatten)]
        rpc: Rpc,
        #[command(subcommand)]
        action: node::Action,
    },
    /// List partitions, and say who leads them and where they are
    Partition {
        #[command(flatten)]
        rpc: Rpc,
        #[command(subcommand)]
        action: partition::Action,
    },
    /// Measure producing and consuming
    Bench {
        #[command(subcommand)]
        action: bench::Action,
    },
    /// Look into a data directory without a broker
    Debug {
        #[command(subcommand)]
        action: debug::DebugCommand,
    },
    /// Run a cluster on this machine
    Dev {
        #[command(subcommand)]
        action: dev::Action,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_on_either_side_of_the_command() {
        for line in [
            ["logctl", "-o", "json", "topic", "list"],
            ["logctl", "topic", "list", "-o", "json"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.global.output, Format::Json);
        }
    }

    #[test]
    fn a_misspelt_flag_is_answered_with_the_right_one() {
        let line = ["logctl", "topic", "create", "orders", "--partition", "3"];
        let error = Cli::try_parse_from(line).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--partitions"), "{error}");
    }

    #[test]
    fn a_list_of_brokers_is_split_and_gets_its_ports() {
        let line = ["logctl", "--brokers", "a:1,b", "topic", "list"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(cli.global.brokers, ["a:1", "b:9092"]);
    }
}
