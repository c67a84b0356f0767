//! `logctl cluster config`: settings of brokers while they run.
//!
//! Promise: a change is made as a whole or not at all; what needs a restart is told from what does not.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use logd_client::{BrokerSetting, SettingApplies, SettingSource};
use serde::Serialize;

use crate::args;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Shown, Table, count, or_dash};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show the settings of a broker, or what was set for all of them
    Describe(Whose),
    /// Set what needs no restart; the cluster keeps it
    Set(Set),
    /// Take back what was set
    Unset(Unset),
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Whose {
    /// Of this broker alone [default: of all of them]
    #[arg(long, value_name = "ID")]
    node: Option<i32>,
}

#[derive(Debug, Args)]
pub struct Set {
    /// Kafka's name or the one in the file, such as num.partitions=6 or topics.default_partitions=6
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = args::key_value)]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    whose: Whose,
    /// Only ask whether it could be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Unset {
    /// As `describe` shows them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Debug, Serialize)]
struct Setting {
    name: String,
    value: Option<String>,
    /// `node`, `cluster`, `start`, `default` or `other`.
    source: &'static str,
    /// When another value takes effect: `at_once`, `at_restart` or `never`.
    applies: &'static str,
    documentation: Option<String>,
}

impl From<BrokerSetting> for Setting {
    fn from(told: BrokerSetting) -> Setting {
        Setting {
            name: told.name,
            value: told.value,
            source: match told.source {
                SettingSource::Node => "node",
                SettingSource::Cluster => "cluster",
                SettingSource::Start => "start",
                SettingSource::Default => "default",
                SettingSource::Other(_) => "other",
            },
            applies: match told.applies {
                SettingApplies::AtOnce => "at_once",
                SettingApplies::AtRestart => "at_restart",
                SettingApplies::Never => "never",
            },
            documentation: told.documentation,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Settings(Vec<Setting>);

impl Shown for Settings {
    fn table(&self) -> String {
        let mut table = Table::new(&["NAME", "VALUE", "SOURCE", "APPLIES"]);
        for setting in &self.0 {
            table.row([
                setting.name.clone(),
                or_dash(setting.value.as_ref()),
                setting.source.to_owned(),
                setting.applies.replace('_', " "),
            ]);
        }
        table.render()
    }
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Exit, Failure> {
    match action {
        Action::Describe(whose) => describe(context, whose).await,
        Action::Set(set) => {
            let changes: BTreeMap<_, _> = set
                .settings
                .into_iter()
                .map(|(name, value)| (name, Some(value)))
                .collect();
            alter(context, set.whose, &changes, set.dry_run).await
        }
        Action::Unset(unset) => {
            let changes = unset.names.into_iter().map(|name| (name, None)).collect();
            alter(context, unset.whose, &changes, false).await
        }
    }
}

async fn describe(context: &Context, whose: Whose) -> Result<Exit, Failure> {
    let admin = context.connect().await?.admin();
    let all = admin.broker_settings(whose.node).await?;
    let nothing = all.is_empty();
    context
        .out
        .show(&Settings(all.into_iter().map(Setting::from).collect()))?;
    if nothing {
        context
            .out
            .note("nothing is set for all brokers; --node ID shows what one goes by");
    }
    Ok(Exit::Done)
}

async fn alter(
    context: &Context,
    whose: Whose,
    changes: &BTreeMap<String, Option<String>>,
    dry_run: bool,
) -> Result<Exit, Failure> {
    let admin = context.connect().await?.admin();
    admin
        .alter_broker_settings(whose.node, changes, dry_run)
        .await?;
    let (of, settings) = (
        whose
            .node
            .map_or_else(|| "all brokers".to_owned(), |id| format!("broker {id}")),
        count(changes.len() as u64, "setting"),
    );
    context.out.note(&match dry_run {
        true => format!("{settings} of {of} could be changed so; nothing was"),
        false => format!("{settings} of {of} changed, without a restart"),
    });
    Ok(Exit::Done)
}
