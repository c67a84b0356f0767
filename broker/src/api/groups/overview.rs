//! ListGroups and DescribeGroups.

use super::super::Context;
use super::super::errors::told;
use super::super::operations;
use super::{code, outcome, wire};
use crate::group::{Coordinator, Description, Event, Listed, Refusal};
use futures_util::future::join_all;
use logd_proto::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use logd_proto::messages::list_groups_response::ListedGroup;
use logd_proto::messages::{
    DescribeGroupsRequest, DescribeGroupsResponse, ListGroupsRequest, ListGroupsResponse,
};
use logd_proto::{ErrorCode, StrBytes, message};
use std::future::Future;
use std::sync::Arc;

/// The only type of group there is yet.
const CLASSIC: &str = "classic";

/// From here on a group that does not exist is an error; before, it is a dead one.
const NOT_FOUND_SINCE: i16 = 6;

pub(super) async fn list(
    groups: Arc<Coordinator>,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    match groups.list().await {
        Ok(mut listed) => {
            listed.retain(|group| is_wanted(&request, group));
            listed.sort_by(|a, b| a.id.cmp(&b.id));
            let groups = listed.iter().map(row).collect();
            message!(ListGroupsResponse { groups })
        }
        Err(refusal) => message!(ListGroupsResponse {
            error_code: told(code(refusal))
        }),
    }
}

/// An empty filter lets everything through.
fn is_wanted(request: &ListGroupsRequest, group: &Listed) -> bool {
    let passes = |filter: &[StrBytes], value: &str| {
        filter.is_empty()
            || filter
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    passes(&request.states_filter, group.state) && passes(&request.types_filter, CLASSIC)
}

fn row(group: &Listed) -> ListedGroup {
    message!(ListedGroup {
        group_id: wire(&group.id),
        protocol_type: wire(&group.protocol_type),
        group_state: group.state.into(),
        group_type: CLASSIC.into(),
    })
}

pub(super) async fn describe(
    groups: &Coordinator,
    context: &Context,
    request: DescribeGroupsRequest,
) -> impl Future<Output = DescribeGroupsResponse> + use<> {
    let version = context.version;
    let asked = request.include_authorized_operations;
    let mut underway = Vec::with_capacity(request.groups.len());
    for group in request.groups {
        let submitted = groups.submit(&group, Event::Describe).await;
        underway.push(async move { (group, outcome(submitted).await) });
    }
    async move {
        let groups = join_all(underway)
            .await
            .into_iter()
            .map(|(group, found)| described(version, asked, group, found))
            .collect();
        message!(DescribeGroupsResponse { groups })
    }
}

fn described(
    version: i16,
    asked: bool,
    group_id: StrBytes,
    found: Result<Description, Refusal>,
) -> DescribedGroup {
    let mut group = match found {
        Ok(description) => present(group_id, description),
        Err(Refusal::NotFound) => absent(version, group_id),
        Err(refusal) => message!(DescribedGroup {
            group_id,
            error_code: told(code(refusal))
        }),
    };
    if group.error_code == 0 {
        group.authorized_operations = operations::told(asked, operations::OF_GROUP);
    }
    group
}

fn absent(version: i16, group_id: StrBytes) -> DescribedGroup {
    let mut group = message!(DescribedGroup {
        group_state: "Dead".into()
    });
    if version >= NOT_FOUND_SINCE {
        group.error_code = told(ErrorCode::GroupIdNotFound);
        group.error_message = Some(format!("Group {} not found.", group_id.as_str()).into());
    }
    group.group_id = group_id;
    group
}

fn present(group_id: StrBytes, found: Description) -> DescribedGroup {
    let members = found
        .members
        .into_iter()
        .map(|member| {
            message!(DescribedGroupMember {
                member_id: wire(&member.member_id),
                group_instance_id: member.instance_id.as_ref().map(wire),
                client_id: wire(&member.client_id),
                client_host: wire(&member.client_host),
                member_metadata: member.metadata,
                member_assignment: member.assignment,
            })
        })
        .collect();
    message!(DescribedGroup {
        group_id,
        group_state: found.state.into(),
        protocol_type: wire(&found.protocol_type),
        protocol_data: wire(&found.protocol),
        members,
    })
}
