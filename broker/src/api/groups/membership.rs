//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use super::super::Context;
use super::super::errors::told;
use super::{code, instance, name, named, outcome, unless_stopped, verdict, wire};
use crate::group::{
    Coordinator, Event, Heartbeat, Join, JoinReply, Joined, Leaving, Millis, Name, Protocol,
    Refusal, Sync, Verdicts,
};
use bytes::Bytes;
use logd_proto::messages::join_group_response::JoinGroupResponseMember;
use logd_proto::messages::leave_group_response::MemberResponse;
use logd_proto::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use logd_proto::{ErrorCode, StrBytes, message};
use std::future::Future;

/// From here on a member says how long a rebalance waits for it.
const REBALANCE_TIMEOUT_SINCE: i16 = 1;
/// From here on a client comes back with the id it is told (KIP-394).
const MEMBER_ID_REQUIRED_SINCE: i16 = 4;
/// From here on a protocol's name may be null.
const NULL_PROTOCOL_SINCE: i16 = 7;
/// From here on a leader may keep its assignment (KIP-814).
const SKIP_ASSIGNMENT_SINCE: i16 = 9;
/// From here on a sync says what protocol it believes in (KIP-559).
const SYNC_PROTOCOL_SINCE: i16 = 5;
/// From here on several leave at once (KIP-345).
const LEAVE_BATCH_SINCE: i16 = 3;

pub(super) async fn join<S: Future<Output = ()>>(
    groups: &Coordinator,
    context: &Context,
    request: JoinGroupRequest,
    stop: S,
) -> impl Future<Output = JoinGroupResponse> + use<S> {
    let version = context.version;
    let submitted = match named(&request.group_id) {
        Ok(group) => {
            let join = join_event(groups, context, &request);
            groups
                .submit(group, |ticket| Event::Join(ticket, join))
                .await
        }
        Err(refusal) => Err(refusal),
    };
    let asked_by = name(&request.member_id);
    async move {
        let reply = match submitted {
            Ok(answer) => unless_stopped(answer.wait(), stop)
                .await
                .unwrap_or_else(JoinReply::Refused),
            Err(refusal) => JoinReply::Refused(refusal),
        };
        match reply {
            JoinReply::Joined(seat) => joined(seat),
            JoinReply::MemberIdRequired(id) => {
                not_joined(version, &id, ErrorCode::MemberIdRequired)
            }
            JoinReply::Refused(refusal) => not_joined(version, &asked_by, code(refusal)),
        }
    }
}

fn join_event(groups: &Coordinator, context: &Context, request: &JoinGroupRequest) -> Join {
    let client_id: Name = context.client_id.as_ref().map(name).unwrap_or_default();
    let instance_id = instance(request.group_instance_id.as_ref());
    let session_timeout = Millis::from(request.session_timeout_ms);
    let rebalance_timeout = if context.version >= REBALANCE_TIMEOUT_SINCE {
        Millis::from(request.rebalance_timeout_ms)
    } else {
        session_timeout
    };
    let protocols = request
        .protocols
        .iter()
        .map(|protocol| Protocol {
            name: name(&protocol.name),
            metadata: Bytes::copy_from_slice(&protocol.metadata),
        })
        .collect();
    Join {
        member_id: name(&request.member_id),
        fresh_member_id: groups.fresh_member_id(instance_id.as_ref().unwrap_or(&client_id)),
        instance_id,
        client_id,
        client_host: format!("/{}", context.peer.ip()).into(),
        session_timeout,
        rebalance_timeout,
        protocol_type: name(&request.protocol_type),
        protocols,
        takes_member_id: context.version >= MEMBER_ID_REQUIRED_SINCE,
        takes_skip: context.version >= SKIP_ASSIGNMENT_SINCE,
        reason: instance(request.reason.as_ref()),
    }
}

fn joined(seat: Joined) -> JoinGroupResponse {
    let members = seat
        .members
        .into_iter()
        .map(|member| {
            message!(JoinGroupResponseMember {
                member_id: wire(&member.member_id),
                group_instance_id: member.instance_id.as_ref().map(wire),
                metadata: member.metadata,
            })
        })
        .collect();
    message!(JoinGroupResponse {
        generation_id: seat.generation,
        protocol_type: Some(wire(&seat.protocol_type)),
        protocol_name: Some(wire(&seat.protocol)),
        leader: wire(&seat.leader),
        skip_assignment: seat.skip_assignment,
        member_id: wire(&seat.member_id),
        members,
    })
}

fn not_joined(version: i16, member_id: &Name, code: ErrorCode) -> JoinGroupResponse {
    let none = (version < NULL_PROTOCOL_SINCE).then(StrBytes::default);
    message!(JoinGroupResponse {
        error_code: told(code),
        generation_id: -1,
        protocol_type: none.clone(),
        protocol_name: none,
        member_id: wire(member_id),
    })
}

pub(super) async fn sync<S: Future<Output = ()>>(
    groups: &Coordinator,
    context: &Context,
    request: SyncGroupRequest,
    stop: S,
) -> impl Future<Output = SyncGroupResponse> + use<S> {
    let submitted = match check_sync(context, &request) {
        Ok(group) => {
            let sync = sync_event(&request);
            groups
                .submit(group, |ticket| Event::Sync(ticket, sync))
                .await
        }
        Err(refusal) => Err(refusal),
    };
    async move {
        match unless_stopped(outcome(submitted), stop).await {
            Ok(share) => message!(SyncGroupResponse {
                protocol_type: Some(wire(&share.protocol_type)),
                protocol_name: Some(wire(&share.protocol)),
                assignment: share.assignment,
            }),
            Err(refusal) => message!(SyncGroupResponse {
                error_code: told(code(refusal)),
                protocol_type: None,
                protocol_name: None,
            }),
        }
    }
}

fn check_sync<'a>(context: &Context, request: &'a SyncGroupRequest) -> Result<&'a str, Refusal> {
    let told = request.protocol_type.is_some() && request.protocol_name.is_some();
    if context.version >= SYNC_PROTOCOL_SINCE && !told {
        return Err(Refusal::InconsistentProtocol);
    }
    named(&request.group_id)
}

fn sync_event(request: &SyncGroupRequest) -> Sync {
    Sync {
        member_id: name(&request.member_id),
        generation: request.generation_id,
        instance_id: instance(request.group_instance_id.as_ref()),
        protocol_type: request.protocol_type.as_ref().map(name),
        protocol: request.protocol_name.as_ref().map(name),
        assignments: request
            .assignments
            .iter()
            .map(|share| {
                let assignment = Bytes::copy_from_slice(&share.assignment);
                (name(&share.member_id), assignment)
            })
            .collect(),
    }
}

pub(super) async fn heartbeat(
    groups: &Coordinator,
    request: HeartbeatRequest,
) -> impl Future<Output = HeartbeatResponse> + use<> {
    let heartbeat = Heartbeat {
        member_id: name(&request.member_id),
        generation: request.generation_id,
        instance_id: instance(request.group_instance_id.as_ref()),
    };
    let submitted = match named(&request.group_id) {
        Ok(group) => {
            let event = |ticket| Event::Heartbeat(ticket, heartbeat);
            groups.submit(group, event).await
        }
        Err(refusal) => Err(refusal),
    };
    async move {
        message!(HeartbeatResponse {
            error_code: verdict(outcome(submitted).await)
        })
    }
}

pub(super) async fn leave(
    groups: &Coordinator,
    context: &Context,
    request: LeaveGroupRequest,
) -> impl Future<Output = LeaveGroupResponse> + use<> {
    let batch = context.version >= LEAVE_BATCH_SINCE;
    let leaving = leaving(&request, batch);
    let submitted = match named(&request.group_id) {
        Ok(group) => {
            let leaving = leaving.clone();
            groups
                .submit(group, |ticket| Event::Leave(ticket, leaving))
                .await
        }
        Err(refusal) => Err(refusal),
    };
    async move { left(leaving, outcome(submitted).await, batch) }
}

fn leaving(request: &LeaveGroupRequest, batch: bool) -> Vec<Leaving> {
    if !batch {
        return vec![Leaving {
            member_id: name(&request.member_id),
            instance_id: None,
            reason: None,
        }];
    }
    request
        .members
        .iter()
        .map(|member| Leaving {
            member_id: name(&member.member_id),
            instance_id: instance(member.group_instance_id.as_ref()),
            reason: instance(member.reason.as_ref()),
        })
        .collect()
}

fn left(leaving: Vec<Leaving>, verdicts: Verdicts, batch: bool) -> LeaveGroupResponse {
    match verdicts {
        Err(refusal) => message!(LeaveGroupResponse {
            error_code: told(code(refusal))
        }),
        // Old versions have one member, and one place for its error.
        Ok(verdicts) if !batch => message!(LeaveGroupResponse {
            error_code: verdicts.into_iter().map(verdict).next().unwrap_or(0)
        }),
        Ok(verdicts) => {
            let members = leaving
                .into_iter()
                .zip(verdicts)
                .map(|(leaving, outcome)| {
                    message!(MemberResponse {
                        member_id: wire(&leaving.member_id),
                        group_instance_id: leaving.instance_id.as_ref().map(wire),
                        error_code: verdict(outcome),
                    })
                })
                .collect();
            message!(LeaveGroupResponse { members })
        }
    }
}
