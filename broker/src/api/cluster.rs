//! DescribeCluster: the brokers as the listener that was asked advertises them.

use super::metadata::brokers;
use super::{Context, Services, errors, operations};
use logd_proto::messages::describe_cluster_response::DescribeClusterBroker;
use logd_proto::messages::{DescribeClusterRequest, DescribeClusterResponse};
use logd_proto::{ErrorCode, message};

/// The kinds of endpoints there are (KIP-919). Here a controller is a broker like any other.
const BROKERS: i8 = 1;
const CONTROLLERS: i8 = 2;

pub fn describe(
    services: &Services,
    context: &Context,
    request: &DescribeClusterRequest,
) -> DescribeClusterResponse {
    let refused = match request.endpoint_type {
        BROKERS => None,
        CONTROLLERS => Some((
            ErrorCode::MismatchedEndpointType,
            "this listener is the brokers', which are controllers too: ask for brokers",
        )),
        _ => Some((
            ErrorCode::UnsupportedEndpointType,
            "there is no such type of endpoint",
        )),
    };
    if let Some((code, why)) = refused {
        return message!(DescribeClusterResponse {
            error_code: errors::told(code),
            error_message: Some(why.into()),
            endpoint_type: request.endpoint_type,
            controller_id: -1,
            cluster_authorized_operations: operations::UNKNOWN,
        });
    }
    let cluster = &services.cluster;
    let brokers = brokers(&cluster.view(), &context.listener);
    let known = brokers.into_iter().map(|b| {
        message!(DescribeClusterBroker {
            broker_id: b.node_id,
            host: b.host,
            port: b.port,
            rack: b.rack,
            is_fenced: !cluster.is_alive(b.node_id),
        })
    });
    message!(DescribeClusterResponse {
        error_message: None,
        endpoint_type: BROKERS,
        cluster_id: cluster.cluster_id().into(),
        controller_id: cluster.controller().unwrap_or(cluster.node_id()),
        brokers: known
            .filter(|b| request.include_fenced_brokers || !b.is_fenced)
            .collect(),
        cluster_authorized_operations: operations::told(
            request.include_cluster_authorized_operations,
            operations::OF_CLUSTER,
        ),
    })
}
