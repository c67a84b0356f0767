//! ApiVersions: what we serve (KIP-35, KIP-511).

use super::errors;
use logd_proto::api::advertised_versions;
use logd_proto::messages::{ApiVersionsRequest, ApiVersionsResponse};
use logd_proto::{ErrorCode, message};

/// From this version on a client names its software.
const NAMES_SOFTWARE: i16 = 3;

pub fn answer(request: &ApiVersionsRequest, version: i16) -> ApiVersionsResponse {
    if version >= NAMES_SOFTWARE
        && !(is_name(&request.client_software_name) && is_name(&request.client_software_version))
    {
        return message!(ApiVersionsResponse {
            error_code: errors::told(ErrorCode::InvalidRequest)
        });
    }
    message!(ApiVersionsResponse {
        api_keys: advertised_versions()
    })
}

/// Letters, digits, dots and hyphens, not at the ends (KIP-511).
fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let outer = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(outer) && text.ends_with(outer) && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_by(name: &str, version: i16) -> i16 {
        let request = message!(ApiVersionsRequest {
            client_software_name: name.into(),
            client_software_version: "4.3.1".into()
        });
        answer(&request, version).error_code
    }

    #[test]
    fn software_without_a_proper_name_is_refused_from_version_3_on() {
        assert_eq!(asked_by("apache-kafka-java", 3), 0);
        assert_eq!(asked_by("-kafka", 3), ErrorCode::InvalidRequest.code());
        assert_eq!(asked_by("", 2), 0);
    }

    #[test]
    fn trap_03_produce_is_announced_from_version_0() {
        let response = answer(&ApiVersionsRequest::default(), 0);
        let produce = response.api_keys.iter().find(|k| k.api_key == 0).unwrap();
        assert_eq!(produce.min_version, 0);
    }

    #[test]
    fn trap_04_no_feature_is_announced_that_would_make_clients_rely_on_it() {
        // `transaction.version` 2 tells clients that brokers fence stray writes themselves.
        let response = answer(&ApiVersionsRequest::default(), 0);
        assert!(response.supported_features.is_empty());
        assert!(response.finalized_features.is_empty());
        assert_eq!(response.finalized_features_epoch, -1);
    }
}
