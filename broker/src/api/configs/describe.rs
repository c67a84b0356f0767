//! DescribeConfigs: every configuration of a topic, of this broker or of a group, with what would hold without it.

use super::super::metadata::is_legal;
use super::super::{Context, Services, errors};
use super::{BROKER, GROUP, TOPIC, broker_named, kind_code, source_code};
use crate::group_config;
use crate::topic_config::{Described, Layer};
use logd_proto::messages::describe_configs_request::DescribeConfigsResource;
use logd_proto::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use logd_proto::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use logd_proto::{StrBytes, message};
use std::collections::BTreeMap;

/// Kinds and documentation have a place from here on.
const SAYS_KIND: i16 = 3;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescribeConfigsError {
    #[error("there is no such topic")]
    UnknownTopic,
    #[error("a topic cannot have this name")]
    InvalidTopic,
    #[error("this is broker {me}, which shows its own settings only, not those of {asked:?}")]
    OtherBroker { asked: String, me: i32 },
    #[error(
        "resources of type {0} have no configurations here: topics (2), brokers (4) and groups (32) have"
    )]
    UnknownType(i8),
    #[error("the group has no name")]
    NoGroup,
}

/// How much of each configuration is wanted.
#[derive(Clone, Copy)]
struct Detail {
    synonyms: bool,
    documentation: bool,
}

pub fn describe(
    services: &Services,
    context: &Context,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let detail = Detail {
        synonyms: request.include_synonyms,
        documentation: request.include_documentation && context.version >= SAYS_KIND,
    };
    let results = request.resources.iter().map(|resource| {
        let found = find(services, resource.resource_type, &resource.resource_name);
        result(resource, found, detail)
    });
    message!(DescribeConfigsResponse {
        results: results.collect()
    })
}

fn find(services: &Services, kind: i8, name: &str) -> Result<Vec<Described>, DescribeConfigsError> {
    let me = services.cluster.node_id();
    match kind {
        TOPIC if !is_legal(name) => Err(DescribeConfigsError::InvalidTopic),
        TOPIC => {
            let view = services.cluster.view();
            let topic = view.topic(name);
            let topic = topic.ok_or(DescribeConfigsError::UnknownTopic)?;
            let here = topic.config.over(&services.settings.now().topics);
            Ok(here.described())
        }
        BROKER => match broker_named(name) {
            Ok(None) => Ok(services.settings.now().described_for_all()),
            Ok(Some(id)) if id == me => {
                let now = services.settings.now();
                Ok(now.described(&services.identity.described))
            }
            Ok(Some(_)) | Err(_) => Err(DescribeConfigsError::OtherBroker {
                asked: name.to_owned(),
                me,
            }),
        },
        GROUP if name.is_empty() => Err(DescribeConfigsError::NoGroup),
        // Also of one that there is not: it can have settings before it has members.
        GROUP => {
            let view = services.cluster.view();
            let nothing = BTreeMap::new();
            let set = view.groups.get(name).unwrap_or(&nothing);
            Ok(group_config::described(set))
        }
        other => Err(DescribeConfigsError::UnknownType(other)),
    }
}

fn result(
    resource: &DescribeConfigsResource,
    found: Result<Vec<Described>, DescribeConfigsError>,
    detail: Detail,
) -> DescribeConfigsResult {
    let (code, why, configs) = match found {
        Ok(all) => {
            let wanted = all.iter().filter(|d| is_wanted(resource, &d.name));
            let shown = wanted.map(|d| shown(d, detail)).collect();
            (0, None, shown)
        }
        Err(error) => {
            let code = errors::told(errors::describe_configs(&error));
            (code, Some(error.to_string().into()), Vec::new())
        }
    };
    message!(DescribeConfigsResult {
        error_code: code,
        error_message: why,
        resource_type: resource.resource_type,
        resource_name: resource.resource_name.clone(),
        configs,
    })
}

/// Who names none wants all.
fn is_wanted(resource: &DescribeConfigsResource, name: &str) -> bool {
    match &resource.configuration_keys {
        None => true,
        Some(keys) => keys.is_empty() || keys.iter().any(|key| key.as_str() == name),
    }
}

fn shown(described: &Described, detail: Detail) -> DescribeConfigsResourceResult {
    let layers = described.layers.iter().filter(|_| detail.synonyms);
    message!(DescribeConfigsResourceResult {
        name: described.name.as_str().into(),
        value: Some(described.value().into()),
        read_only: described.read_only,
        config_source: source_code(described.source()),
        synonyms: layers.map(synonym).collect(),
        config_type: kind_code(described.kind),
        documentation: detail
            .documentation
            .then(|| StrBytes::from(described.documentation.as_str())),
    })
}

fn synonym(layer: &Layer) -> DescribeConfigsSynonym {
    message!(DescribeConfigsSynonym {
        name: layer.name.as_str().into(),
        value: Some(layer.value.as_str().into()),
        source: source_code(layer.source),
    })
}
