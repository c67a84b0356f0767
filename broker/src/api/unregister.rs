//! UnregisterBroker: a broker that holds nothing is forgotten.
//!
//! As in Kafka it moves no partitions. A broker that has some keeps them and is not forgotten: emptying it is
//! what operators have decommissioning for.

use super::{Services, errors};
use crate::cluster::UnregisterError;
use logd_proto::messages::{UnregisterBrokerRequest, UnregisterBrokerResponse};
use logd_proto::{StrBytes, message};
use std::sync::Arc;

pub async fn unregister(
    services: Arc<Services>,
    request: UnregisterBrokerRequest,
) -> UnregisterBrokerResponse {
    let done: Result<(), UnregisterError> = services.cluster.unregister(request.broker_id).await;
    let (code, why) = match done {
        Ok(()) => (0, None),
        Err(error) => (
            errors::told(errors::unregister(&error)),
            Some(StrBytes::from(error.to_string())),
        ),
    };
    message!(UnregisterBrokerResponse {
        error_code: code,
        error_message: why
    })
}
