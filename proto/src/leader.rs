//! Where the leader is: what Produce and Fetch add to "not here", so that a client can go to the right
//! broker without asking for metadata first.
//!
//! Not here: knowing who leads.

use crate::StrBytes;
use crate::wire::Gather;

/// The leader of a partition as far as this broker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentLeader {
    /// Its broker id, or -1 when there is none.
    pub leader_id: i32,
    /// The epoch it leads in.
    pub leader_epoch: i32,
}

/// How to reach a broker that a response names as leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEndpoint {
    /// The broker's id.
    pub node_id: i32,
    /// Its advertised host, on the listener that was asked.
    pub host: StrBytes,
    /// Its advertised port.
    pub port: i32,
    /// Its rack, if it has one.
    pub rack: Option<StrBytes>,
}

impl CurrentLeader {
    /// As the value of a tagged field.
    pub(crate) fn put(self, out: &mut Gather) {
        out.i32(self.leader_id);
        out.i32(self.leader_epoch);
        out.no_tags(true);
    }
}

/// Closes a response with the endpoints as tagged field 0, or without tagged fields when there are
/// none.
pub(crate) fn put_endpoints_tag(out: &mut Gather, endpoints: &[NodeEndpoint]) {
    if endpoints.is_empty() {
        out.no_tags(true);
        return;
    }
    out.unsigned_varint(1);
    out.tag(0, |out| {
        out.array_length(true, Some(endpoints.len()));
        for endpoint in endpoints {
            out.i32(endpoint.node_id);
            out.string(true, &endpoint.host);
            out.i32(endpoint.port);
            out.nullable_string(true, endpoint.rack.as_deref());
            out.no_tags(true);
        }
    });
}
