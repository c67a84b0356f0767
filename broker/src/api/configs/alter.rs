//! IncrementalAlterConfigs and AlterConfigs.
//!
//! Each resource is changed as a whole or not at all, and answered by itself.

use super::super::{Services, errors};
use super::{BROKER, GROUP, TOPIC, broker_named};
use crate::cluster::{
    AlterBrokerError, AlterGroupError, AlterTopicError, Alteration, ConfigChange,
};
use logd_proto::messages::incremental_alter_configs_request::AlterableConfig;
use logd_proto::messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};
use logd_proto::messages::{alter_configs_response, incremental_alter_configs_response};
use logd_proto::{StrBytes, message};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Kafka's numbers for what is to become of a key.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlterConfigsError {
    #[error(transparent)]
    Topic(#[from] AlterTopicError),
    #[error("each resource may be named once in a request")]
    Twice,
    #[error("{0} is named twice; each key may be changed once in a request")]
    KeyTwice(String),
    #[error("{0} has no value; delete it for its default")]
    NoValue(String),
    #[error("there is no operation of type {0}")]
    UnknownOperation(i8),
    #[error(
        "resources of type {0} have no configurations that can be changed here: topics (2), brokers (4) and groups (32) have"
    )]
    UnknownType(i8),
    #[error(transparent)]
    Broker(#[from] AlterBrokerError),
    #[error(transparent)]
    Group(#[from] AlterGroupError),
    #[error("{0:?} is no broker's number; all brokers have no name")]
    NoBroker(String),
}

/// A change as it was asked for: the key, Kafka's number for the operation, the value.
type Asked = (StrBytes, i8, Option<StrBytes>);

/// What is asked of one resource.
struct Wanted {
    kind: i8,
    name: StrBytes,
    asked: Vec<Asked>,
    /// What is not named goes back to its default.
    replace: bool,
}

type Outcome = (i8, StrBytes, i16, Option<StrBytes>);

pub async fn incremental(
    services: Arc<Services>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let change = |c: AlterableConfig| (c.name, c.config_operation, c.value);
    let wanted = request.resources.into_iter().map(|r| Wanted {
        kind: r.resource_type,
        name: r.resource_name,
        asked: r.configs.into_iter().map(change).collect(),
        replace: false,
    });
    let outcomes = alter_all(&services, wanted.collect(), request.validate_only).await;
    let row = |(resource_type, resource_name, error_code, error_message)| {
        message!(
            incremental_alter_configs_response::AlterConfigsResourceResponse {
                error_code,
                error_message,
                resource_type,
                resource_name,
            }
        )
    };
    message!(IncrementalAlterConfigsResponse {
        responses: outcomes.into_iter().map(row).collect()
    })
}

pub async fn replace(
    services: Arc<Services>,
    request: AlterConfigsRequest,
) -> AlterConfigsResponse {
    let wanted = request.resources.into_iter().map(|r| Wanted {
        kind: r.resource_type,
        name: r.resource_name,
        asked: r
            .configs
            .into_iter()
            .map(|c| (c.name, SET, c.value))
            .collect(),
        replace: true,
    });
    let outcomes = alter_all(&services, wanted.collect(), request.validate_only).await;
    let row = |(resource_type, resource_name, error_code, error_message)| {
        message!(alter_configs_response::AlterConfigsResourceResponse {
            error_code,
            error_message,
            resource_type,
            resource_name,
        })
    };
    message!(AlterConfigsResponse {
        responses: outcomes.into_iter().map(row).collect()
    })
}

async fn alter_all(services: &Services, all: Vec<Wanted>, validate_only: bool) -> Vec<Outcome> {
    let twice = twice(&all);
    let mut outcomes = Vec::with_capacity(all.len());
    for wanted in all {
        let done = if twice.contains(&(wanted.kind, wanted.name.clone())) {
            Err(AlterConfigsError::Twice)
        } else {
            alter(services, &wanted, validate_only).await
        };
        let (code, why) = match done {
            Ok(()) => (0, None),
            Err(error) => (
                errors::told(errors::alter_configs(&error)),
                Some(error.to_string().into()),
            ),
        };
        outcomes.push((wanted.kind, wanted.name, code, why));
    }
    outcomes
}

fn twice(all: &[Wanted]) -> BTreeSet<(i8, StrBytes)> {
    let mut seen = BTreeSet::new();
    let keys = all.iter().map(|w| (w.kind, w.name.clone()));
    keys.filter(|key| !seen.insert(key.clone())).collect()
}

async fn alter(
    services: &Services,
    wanted: &Wanted,
    validate_only: bool,
) -> Result<(), AlterConfigsError> {
    let changes = changes(&wanted.asked)?;
    let alteration = Alteration {
        replace: wanted.replace,
        changes,
    };
    let cluster = &services.cluster;
    match wanted.kind {
        TOPIC => {
            let done = cluster.alter_topic(&wanted.name, alteration, validate_only);
            Ok(done.await?)
        }
        BROKER => {
            let broker = broker_named(&wanted.name).map_err(AlterConfigsError::NoBroker)?;
            let done = cluster.alter_brokers(broker, alteration, validate_only);
            Ok(done.await?)
        }
        GROUP => {
            let done = cluster.alter_group(&wanted.name, alteration, validate_only);
            Ok(done.await?)
        }
        other => Err(AlterConfigsError::UnknownType(other)),
    }
}

fn changes(asked: &[Asked]) -> Result<BTreeMap<String, ConfigChange>, AlterConfigsError> {
    let mut changes = BTreeMap::new();
    for (key, operation, value) in asked {
        let key = key.to_string();
        let value = match value {
            Some(value) => Ok(value.to_string()),
            None => Err(AlterConfigsError::NoValue(key.clone())),
        };
        let change = match *operation {
            SET => ConfigChange::Set(value?),
            DELETE => ConfigChange::Delete,
            APPEND => ConfigChange::Append(value?),
            SUBTRACT => ConfigChange::Subtract(value?),
            other => return Err(AlterConfigsError::UnknownOperation(other)),
        };
        if changes.insert(key.clone(), change).is_some() {
            return Err(AlterConfigsError::KeyTwice(key));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(key: &str, operation: i8, value: Option<&str>) -> Asked {
        (key.into(), operation, value.map(StrBytes::from))
    }

    #[test]
    fn only_a_deletion_needs_no_value() {
        assert!(changes(&[asked("a", DELETE, None)]).is_ok());
        for operation in [SET, APPEND, SUBTRACT] {
            let refused = changes(&[asked("a", operation, None)]);
            assert_eq!(refused, Err(AlterConfigsError::NoValue("a".into())));
        }
    }

    #[test]
    fn a_key_is_changed_once_and_in_a_way_there_is() {
        let twice = [asked("a", SET, Some("1")), asked("a", DELETE, None)];
        assert_eq!(
            changes(&twice),
            Err(AlterConfigsError::KeyTwice("a".into()))
        );
        let unknown = changes(&[asked("a", 4, Some("1"))]);
        assert_eq!(unknown, Err(AlterConfigsError::UnknownOperation(4)));
    }
}
