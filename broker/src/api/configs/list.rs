//! ListConfigResources: what has a configuration (KIP-1142).

use super::super::{Context, Services, errors};
use super::{BROKER, GROUP, TOPIC};
use logd_proto::messages::list_config_resources_response::ConfigResource;
use logd_proto::messages::{ListConfigResourcesRequest, ListConfigResourcesResponse};
use logd_proto::{ErrorCode, StrBytes, message};

/// Types that are listed.
const OURS: [i8; 3] = [TOPIC, BROKER, GROUP];

/// Types that Kafka has and nothing here is of: loggers, client metrics.
const OTHERS: [i8; 2] = [8, 16];

/// Before it, client metrics alone could be asked for.
const SAYS_TYPES: i16 = 1;

pub fn list(
    services: &Services,
    context: &Context,
    request: &ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    let types = &request.resource_types;
    let known = |kind: &i8| OURS.contains(kind) || OTHERS.contains(kind);
    if !types.iter().all(known) {
        return message!(ListConfigResourcesResponse {
            error_code: errors::told(ErrorCode::UnsupportedVersion)
        });
    }
    // Who names none wants all.
    let wanted =
        |kind: i8| context.version >= SAYS_TYPES && (types.is_empty() || types.contains(&kind));
    let view = services.cluster.view();
    let topics = view.topics.values().filter(|_| wanted(TOPIC));
    let mut names: Vec<&str> = topics.map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    let topics = names.into_iter().map(|name| resource(TOPIC, name.into()));
    let brokers = view.brokers.keys().filter(|_| wanted(BROKER));
    let brokers = brokers.map(|id| resource(BROKER, id.to_string().into()));
    // Those that have something set, as in Kafka.
    let groups = view.groups.keys().filter(|_| wanted(GROUP));
    let groups = groups.map(|name| resource(GROUP, name.as_str().into()));
    message!(ListConfigResourcesResponse {
        config_resources: topics.chain(brokers).chain(groups).collect()
    })
}

fn resource(resource_type: i8, resource_name: StrBytes) -> ConfigResource {
    message!(ConfigResource {
        resource_name,
        resource_type
    })
}
