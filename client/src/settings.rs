//! Brokers' settings while they run: shown, set and taken back.
//!
//! Promise: a broker is asked for its own settings, as only it knows what it was started with.
//!
//! Not here: what settings there are, which brokers say.

use std::collections::BTreeMap;

use logd_proto::message;
use logd_proto::messages::describe_configs_request::DescribeConfigsResource;
use logd_proto::messages::describe_configs_response::DescribeConfigsResourceResult;
use logd_proto::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use logd_proto::messages::{DescribeConfigsRequest, IncrementalAlterConfigsRequest};

use crate::admin::Admin;
use crate::cluster::{Purpose, cap};
use crate::error::AdminError;

/// Kafka's number for brokers among what has configurations.
const BROKER: i8 = 4;
/// Kafka's numbers for what is to become of one.
const SET: i8 = 0;
const DELETE: i8 = 1;

/// Where a value comes from. What comes first beats what comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingSource {
    /// Set for this broker while it ran.
    Node,
    /// Set for all brokers while they ran.
    Cluster,
    /// The broker was started with it.
    Start,
    /// Nobody says anything.
    Default,
    /// Kafka has more.
    Other(i8),
}

impl SettingSource {
    fn of(code: i8) -> SettingSource {
        match code {
            2 => SettingSource::Node,
            3 => SettingSource::Cluster,
            4 => SettingSource::Start,
            5 => SettingSource::Default,
            other => SettingSource::Other(other),
        }
    }
}

/// When another value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingApplies {
    /// While brokers run.
    AtOnce,
    /// When a broker is started with it.
    AtRestart,
    /// There is no other value.
    Never,
}

/// How a broker of logd ends the documentation of what has no other value. Kafka's protocol knows read-only alone.
const FIXED: &str = "Cannot be changed.";

/// One setting of a broker, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSetting {
    /// Kafka's name for it, or logd's own behind `logd.`.
    pub name: String,
    /// What holds; `None` if the broker keeps that to itself.
    pub value: Option<String>,
    /// Where that comes from.
    pub source: SettingSource,
    /// When another value would take effect.
    pub applies: SettingApplies,
    /// What it does.
    pub documentation: Option<String>,
}

impl BrokerSetting {
    fn of(told: DescribeConfigsResourceResult) -> BrokerSetting {
        let documentation = told.documentation.map(|text| text.into_string());
        let fixed = documentation.as_ref().is_some_and(|d| d.ends_with(FIXED));
        BrokerSetting {
            name: told.name.into_string(),
            value: told.value.map(|value| value.into_string()),
            source: SettingSource::of(told.config_source),
            applies: match (told.read_only, fixed) {
                (false, _) => SettingApplies::AtOnce,
                (true, false) => SettingApplies::AtRestart,
                (true, true) => SettingApplies::Never,
            },
            documentation,
        }
    }
}

fn subject(node: Option<i32>) -> String {
    node.map_or_else(|| "all brokers".to_owned(), |id| format!("broker {id}"))
}

/// All brokers have no name.
fn name(node: Option<i32>) -> String {
    node.map_or_else(String::new, |id| id.to_string())
}

impl Admin {
    /// Every setting of a broker, by name; without one, what was set for all brokers while they ran.
    ///
    /// # Errors
    /// If the broker does not answer, or with its code and reason.
    pub async fn broker_settings(
        &self,
        node: Option<i32>,
    ) -> Result<Vec<BrokerSetting>, AdminError> {
        self.describe_cluster().await?;
        let describe = || self.broker_settings_once(node);
        self.cluster.retrying(describe).await
    }

    async fn broker_settings_once(
        &self,
        node: Option<i32>,
    ) -> Result<Vec<BrokerSetting>, AdminError> {
        let resource = message!(DescribeConfigsResource {
            resource_type: BROKER,
            resource_name: name(node).into(),
            configuration_keys: None,
        });
        let request = message!(DescribeConfigsRequest {
            resources: vec![resource],
            include_documentation: true,
        });
        let mut response = match node {
            None => self.cluster.ask_any(&request, cap::NEWEST).await?,
            Some(id) => {
                let connection = self.cluster.connection(id, Purpose::General).await?;
                let timeout = self.cluster.settings.request_timeout;
                connection.call(&request, cap::NEWEST, timeout).await?
            }
        };
        let subject = subject(node);
        let Some(result) = response.results.pop() else {
            return Err(AdminError::Missing { subject });
        };
        AdminError::check(&subject, result.error_code, result.error_message.as_deref())?;
        let mut all: Vec<_> = result.configs.into_iter().map(BrokerSetting::of).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Sets what has a value and takes back what has none, for one broker or for all: everything, or nothing.
    /// `validate_only`: only asks whether it could be done.
    ///
    /// # Errors
    /// With the broker's code and reason.
    pub async fn alter_broker_settings(
        &self,
        node: Option<i32>,
        changes: &BTreeMap<String, Option<String>>,
        validate_only: bool,
    ) -> Result<(), AdminError> {
        let configs = changes.iter().map(|(name, value)| {
            message!(AlterableConfig {
                name: name.as_str().into(),
                config_operation: if value.is_some() { SET } else { DELETE },
                value: value.as_deref().map(Into::into),
            })
        });
        let resource = message!(AlterConfigsResource {
            resource_type: BROKER,
            resource_name: name(node).into(),
            configs: configs.collect(),
        });
        let request = message!(IncrementalAlterConfigsRequest {
            resources: vec![resource],
            validate_only,
        });
        let alter = || async {
            let response = self.cluster.ask_any(&request, cap::NEWEST).await?;
            let subject = format!("settings of {}", subject(node));
            let Some(result) = response.responses.first() else {
                return Err(AdminError::Missing { subject });
            };
            AdminError::check(&subject, result.error_code, result.error_message.as_deref())
        };
        self.cluster.retrying(alter).await
    }
}
