//! Consumer groups in Kafka's words: requests become events of [`crate::group`], answers become
//! responses, refusals become codes.
//!
//! Promise: a request's event is in its group's queue when [`take`] returns, so a connection's
//! requests reach their groups in order; the answer comes with the future it returns.
//! Not here: any rule about groups.

mod membership;
mod offsets;
mod overview;
mod removal;

use super::errors::told;
use super::{Answer, Answering, Context, Services, later};
use crate::group::{Name, OFFSETS_TOPIC, Refusal};
use logd_proto::api::Request;
use logd_proto::{ErrorCode, StrBytes};
use std::future::Future;
use std::sync::Arc;

pub async fn take(services: Arc<Services>, context: Context, request: Request) -> Answering {
    let groups = &services.groups;
    match request {
        Request::JoinGroup(r) => {
            later(membership::join(groups, &context, r, services.stop()).await)
        }
        Request::SyncGroup(r) => {
            later(membership::sync(groups, &context, r, services.stop()).await)
        }
        Request::Heartbeat(r) => later(membership::heartbeat(groups, r).await),
        Request::LeaveGroup(r) => later(membership::leave(groups, &context, r).await),
        Request::OffsetCommit(r) => {
            let topics = services.cluster.view();
            later(offsets::commit(groups, &*topics, &context, r).await)
        }
        Request::OffsetFetch(r) => {
            let topics = services.cluster.view();
            let coordinates = services.clone();
            later(offsets::fetch(groups, topics, coordinates, &context, r).await)
        }
        Request::DeleteGroups(r) => later(removal::delete_groups(groups, r).await),
        Request::OffsetDelete(r) => {
            let topics = services.cluster.view();
            later(removal::delete_offsets(groups, &topics, r).await)
        }
        Request::DescribeGroups(r) => later(overview::describe(groups, &context, r).await),
        Request::ListGroups(r) => later(overview::list(groups.clone(), r)),
        // Whatever else the table serves has its own row above; a client that gets here sees its
        // connection end rather than a wrong answer.
        _ => Box::pin(std::future::ready(Answer::Close)),
    }
}

impl offsets::Coordinates for Services {
    async fn is_current(&self, group: &str) -> bool {
        let view = self.cluster.view();
        let Some(topic) = view.topic(OFFSETS_TOPIC) else {
            return false;
        };
        let partitions = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        let index = logd_proto::offsets_topic::partition_of(group, partitions);
        match self.partitions.get(&topic.id, index) {
            Some(partition) => partition.is_current().await,
            None => false,
        }
    }
}

/// The one table from a group's refusals to Kafka's codes.
fn code(refusal: Refusal) -> ErrorCode {
    match refusal {
        Refusal::InvalidGroupId => ErrorCode::InvalidGroupId,
        Refusal::InvalidSessionTimeout => ErrorCode::InvalidSessionTimeout,
        Refusal::UnknownMember => ErrorCode::UnknownMemberId,
        Refusal::IllegalGeneration => ErrorCode::IllegalGeneration,
        Refusal::RebalanceInProgress => ErrorCode::RebalanceInProgress,
        Refusal::FencedInstance => ErrorCode::FencedInstanceId,
        Refusal::InconsistentProtocol => ErrorCode::InconsistentGroupProtocol,
        Refusal::GroupFull => ErrorCode::GroupMaxSizeReached,
        Refusal::MetadataTooLarge => ErrorCode::OffsetMetadataTooLarge,
        Refusal::CommitTooLarge => ErrorCode::InvalidCommitOffsetSize,
        // No code of its own: Kafka says the same when its record outgrows the topic's limit.
        Refusal::GroupTooLarge => ErrorCode::UnknownServerError,
        Refusal::NonEmpty => ErrorCode::NonEmptyGroup,
        Refusal::NotFound => ErrorCode::GroupIdNotFound,
        Refusal::Subscribed => ErrorCode::GroupSubscribedToTopic,
        Refusal::NotAvailable => ErrorCode::CoordinatorNotAvailable,
        Refusal::NotCoordinator => ErrorCode::NotCoordinator,
        Refusal::Loading => ErrorCode::CoordinatorLoadInProgress,
    }
}

/// The number on the wire for a verdict.
fn verdict(outcome: Result<(), Refusal>) -> i16 {
    told(outcome.map_or_else(code, |()| ErrorCode::None))
}

/// Submitted, answered, and neither refused.
async fn outcome<T>(
    submitted: Result<crate::group::Answer<Result<T, Refusal>>, Refusal>,
) -> Result<T, Refusal> {
    submitted?.wait().await?
}

/// The answer, or a refusal that sends the client to look for its coordinator again when the broker stops
/// first: what waits for other members could wait for minutes.
async fn unless_stopped<T>(
    answer: impl Future<Output = Result<T, Refusal>>,
    stop: impl Future<Output = ()>,
) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        answered = answer => answered,
        () = stop => Err(Refusal::NotCoordinator),
    }
}

/// Membership needs a group with a name; offsets, for the sake of very old clients, do not.
fn named(group: &StrBytes) -> Result<&str, Refusal> {
    if group.is_empty() {
        Err(Refusal::InvalidGroupId)
    } else {
        Ok(group.as_str())
    }
}

/// A name of its own: the wire's would pin the request's frame.
fn name(text: &StrBytes) -> Name {
    Name::from(text.as_str())
}

/// Likewise; an empty instance id is none.
fn instance(text: Option<&StrBytes>) -> Option<Name> {
    text.filter(|text| !text.is_empty()).map(name)
}

fn wire(name: &Name) -> StrBytes {
    StrBytes::from(&**name)
}
