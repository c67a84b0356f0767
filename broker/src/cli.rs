//! The command line: flags become overrides of settings, and `logd config` looks at them.

use crate::config::{Config, Loaded, Origin, Overrides, load};
use crate::settings::{Applies, TABLE};
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A partitioned, replicated log broker that speaks the Kafka protocol.
///
/// Without a command it runs. Settings: defaults, then --config FILE, then LOGD_SECTION__KEY, then flags.
#[derive(Debug, Parser)]
#[command(name = "logd", version)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Flags,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at the settings without running.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Ask the broker that has the same settings whether it is ready; ends with 1 if not.
    Healthcheck,
    /// When most of the metadata group's voters are gone for good: have this broker's metadata go on, without them.
    ///
    /// Run it on a broker that is stopped, with that broker's settings. It shows what there is and who answers, and
    /// changes nothing without --accept-data-loss. The broker leads the metadata when it is started again; those that
    /// come back later give up the metadata they have and keep their partitions.
    RecoverMetadata {
        /// What only the others had of the metadata is lost, and that is accepted
        #[arg(long)]
        accept_data_loss: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Print every setting; with --effective also where each value comes from, and whether it needs a restart.
    Print {
        #[arg(long)]
        effective: bool,
    },
    /// Say what is wrong with the settings, or that nothing is.
    Check,
}

#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Settings in TOML.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Where data is kept (node.data_dir).
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<String>,
    /// Kafka's port (kafka.addr); port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub kafka_addr: Option<String>,
    /// HTTP: health and metrics (admin.addr).
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub admin_addr: Option<String>,
    /// Broker to broker (rpc.addr).
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub rpc_addr: Option<String>,
    /// What other brokers are told to connect to, if not the address that is bound (rpc.advertise).
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub rpc_advertise: Option<String>,
    /// What clients are told to connect to (kafka.advertise).
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub advertise: Option<String>,
    /// Broker-to-broker addresses of the cluster's first brokers, this one's among them, separated by
    /// commas or given one by one; the same on each (node.seeds).
    #[arg(long, value_name = "HOST:PORT,...", global = true)]
    pub seed: Vec<String>,
    /// Listen beyond loopback although nobody who connects is asked who they are (node.insecure).
    #[arg(long, global = true)]
    pub insecure: bool,
}

impl Flags {
    fn overrides(&self) -> Overrides {
        let insecure = self.insecure.then(|| "true".to_owned());
        let seeds = (!self.seed.is_empty()).then(|| self.seed.join(","));
        let given = [
            ("node.data_dir", "--data-dir", &self.data_dir),
            ("kafka.addr", "--kafka-addr", &self.kafka_addr),
            ("admin.addr", "--admin-addr", &self.admin_addr),
            ("rpc.addr", "--rpc-addr", &self.rpc_addr),
            ("rpc.advertise", "--rpc-advertise", &self.rpc_advertise),
            ("kafka.advertise", "--advertise", &self.advertise),
            ("node.seeds", "--seed", &seeds),
            ("node.insecure", "--insecure", &insecure),
        ];
        given
            .into_iter()
            .filter_map(|(key, flag, value)| Some((key, flag, value.clone()?)))
            .collect()
    }

    /// # Errors
    /// What is wrong with the settings, where, and what to do.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        load(self.config.as_deref(), std::env::vars(), self.overrides())
            .context("the settings cannot be used")
    }

    /// # Errors
    /// As [`Flags::load`], and what does not work together.
    pub fn resolve(&self) -> anyhow::Result<Config> {
        Config::try_from(self.load()?.raw).context("the settings cannot be used")
    }
}

/// The settings as TOML, each with its origin, and whether a change of it needs a restart, if `effective`.
///
/// # Errors
/// Never in practice: settings encode.
pub fn print(loaded: &Loaded, effective: bool) -> anyhow::Result<String> {
    let text = toml::to_string(&loaded.raw)?;
    if !effective {
        return Ok(text);
    }
    let mut section = String::new();
    let with_origin = |line: &str| {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        }
        let key = line
            .split_once(" = ")
            .map(|(key, _)| format!("{section}.{key}"));
        let Some((key, origin)) = key.and_then(|k| loaded.origins.get_key_value(&k)) else {
            return format!("{line}\n");
        };
        let row = TABLE.iter().find(|row| row.key == key);
        let applies = row.map_or("", |row| match row.applies {
            Applies::AtOnce => "; can be set while it runs",
            Applies::AtRestart => "; needs a restart",
        });
        format!("{line:<48} # {origin}{applies}\n")
    };
    Ok(text.lines().map(with_origin).collect())
}

/// What `config check` says.
///
/// # Errors
/// What is wrong.
pub fn check(flags: &Flags) -> anyhow::Result<String> {
    let loaded = flags.load()?;
    let changed = loaded
        .origins
        .values()
        .filter(|o| **o != Origin::Default)
        .count();
    let config = Config::try_from(loaded.raw).context("the settings cannot be used")?;
    let mut said: String = config
        .warnings
        .iter()
        .map(|w| format!("warning: {w}\n"))
        .collect();
    said.push_str(&format!(
        "the settings are fine ({changed} not at their default)\n"
    ));
    Ok(said)
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
    fn seeds_come_one_by_one_or_separated_by_commas() {
        let one_by_one = ["logd", "--seed", "a:1", "--seed", "b:1", "--seed", "c:1"];
        for line in [&one_by_one[..], &["logd", "--seed", "a:1,b:1,c:1"]] {
            let given = Cli::parse_from(line).settings.overrides();
            let loaded = load(None, std::iter::empty(), given).unwrap();
            assert_eq!(loaded.raw.node.seeds, ["a:1", "b:1", "c:1"], "{line:?}");
        }
    }

    #[test]
    fn effective_settings_say_where_each_value_comes_from() {
        let cli = Cli::parse_from([
            "logd",
            "config",
            "print",
            "--effective",
            "--kafka-addr",
            "127.0.0.1:1",
        ]);
        let loaded = load(None, std::iter::empty(), cli.settings.overrides()).unwrap();
        let text = print(&loaded, true).unwrap();
        let line = text
            .lines()
            .find(|l| l.starts_with("addr = \"127.0.0.1:1\""))
            .unwrap();
        assert!(
            line.ends_with("# flag --kafka-addr; needs a restart"),
            "{line}"
        );
        assert!(text.contains("# default; can be set while it runs"));
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let loaded = load(None, std::iter::empty(), vec![]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), print(&loaded, true).unwrap()).unwrap();
        assert_eq!(
            load(Some(file.path()), std::iter::empty(), vec![])
                .unwrap()
                .raw,
            loaded.raw
        );
    }
}
