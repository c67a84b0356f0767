//! ACLs, quotas and users, of which there are none yet: said the way Kafka says it, so that tools that look
//! for them go on.
//!
//! As in a Kafka without an authorizer nothing about ACLs can be asked or changed, and that is a refusal;
//! that no quota and no user is set is an answer. Changing quotas or users is not announced at all.
//! Not here: what whoever asks may do ([`super::operations`]).

use super::errors;
use logd_proto::messages::create_acls_response::AclCreationResult;
use logd_proto::messages::delete_acls_response::DeleteAclsFilterResult;
use logd_proto::messages::describe_user_scram_credentials_response::DescribeUserScramCredentialsResult;
use logd_proto::messages::{
    CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse,
    DescribeAclsResponse, DescribeClientQuotasResponse, DescribeUserScramCredentialsRequest,
    DescribeUserScramCredentialsResponse,
};
use logd_proto::{ErrorCode, StrBytes, message};

const NO_AUTHORIZER: &str = "this cluster has no authorizer: everybody may do everything";

fn no_authorizer() -> (i16, Option<StrBytes>) {
    let code = errors::told(ErrorCode::SecurityDisabled);
    (code, Some(NO_AUTHORIZER.into()))
}

pub fn describe_acls() -> DescribeAclsResponse {
    let (error_code, error_message) = no_authorizer();
    message!(DescribeAclsResponse {
        error_code,
        error_message,
    })
}

/// One refusal for each that was wanted.
pub fn create_acls(request: &CreateAclsRequest) -> CreateAclsResponse {
    let refused = request.creations.iter().map(|_| {
        let (error_code, error_message) = no_authorizer();
        message!(AclCreationResult {
            error_code,
            error_message,
        })
    });
    message!(CreateAclsResponse {
        results: refused.collect(),
    })
}

/// One refusal for each filter.
pub fn delete_acls(request: &DeleteAclsRequest) -> DeleteAclsResponse {
    let refused = request.filters.iter().map(|_| {
        let (error_code, error_message) = no_authorizer();
        message!(DeleteAclsFilterResult {
            error_code,
            error_message,
        })
    });
    message!(DeleteAclsResponse {
        filter_results: refused.collect(),
    })
}

pub fn describe_quotas() -> DescribeClientQuotasResponse {
    message!(DescribeClientQuotasResponse {
        error_message: None,
        entries: Some(Vec::new()),
    })
}

/// Whoever asks for all users gets none; whoever asks for some is told of each that there is no such user.
pub fn describe_users(
    request: &DescribeUserScramCredentialsRequest,
) -> DescribeUserScramCredentialsResponse {
    let unknown = request.users.iter().flatten().map(|user| {
        message!(DescribeUserScramCredentialsResult {
            user: user.name.clone(),
            error_code: errors::told(ErrorCode::ResourceNotFound),
            error_message: Some("there is no such user: this cluster has none".into()),
        })
    });
    message!(DescribeUserScramCredentialsResponse {
        error_message: None,
        results: unknown.collect(),
    })
}
