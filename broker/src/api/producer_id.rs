//! InitProducerId for idempotent producers (KIP-98, KIP-360).

use super::{Services, errors};
use logd_proto::messages::{InitProducerIdRequest, InitProducerIdResponse};
use logd_proto::{ErrorCode, message};
use std::sync::Arc;

pub async fn answer(
    services: Arc<Services>,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let failed = |code: ErrorCode| {
        message!(InitProducerIdResponse {
            error_code: errors::told(code),
            producer_id: -1,
            producer_epoch: -1
        })
    };
    match request.transactional_id {
        Some(id) if id.is_empty() => return failed(ErrorCode::InvalidRequest),
        Some(_) => return failed(ErrorCode::TransactionalIdAuthorizationFailed),
        None => {}
    }
    // A producer that lost its footing asks again with its old id; it gets a new one, so nothing of the
    // old one's sequence can be mistaken for it.
    match services.cluster.next_producer_id().await {
        Ok(producer_id) => message!(InitProducerIdResponse {
            producer_id,
            producer_epoch: 0
        }),
        Err(error) => {
            tracing::warn!(%error, "no producer id");
            failed(ErrorCode::CoordinatorNotAvailable)
        }
    }
}
