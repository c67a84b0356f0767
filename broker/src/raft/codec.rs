//! The small payloads that Raft keeps through storage: votes, memberships, a group's captured state.
//!
//! Fixed layouts for what has a fixed size, JSON for memberships (rare, and readable in a dump).
//! Not here: entries' data, which storage keeps as it is.

use super::types::{LeaderId, LogId, Membership, RaftVote, StoredMembership, log_id};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::impls::BasicNode;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Raft's own bytes did not decode: the files were damaged past their checksums, or are of another version.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{what} has {found} bytes, expected {expected}")]
    Length {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("membership does not decode: {0}")]
    Membership(#[from] serde_json::Error),
    #[error("membership is not one that Raft allows: {0}")]
    Illegal(String),
}

impl From<CodecError> for std::io::Error {
    fn from(e: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, e)
    }
}

const VOTE_BYTES: usize = 17;

/// `term u64 | voted_for u64 | committed u8`, big endian.
pub(super) fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut out = BytesMut::with_capacity(VOTE_BYTES);
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
    out.freeze()
}

pub(super) fn decode_vote(mut bytes: Bytes) -> Result<RaftVote, CodecError> {
    expect("vote", bytes.len(), VOTE_BYTES)?;
    let leader_id = LeaderId::new(bytes.get_u64(), bytes.get_u64());
    Ok(RaftVote {
        leader_id,
        committed: bytes.get_u8() != 0,
    })
}

#[derive(Serialize, Deserialize)]
struct WireMembership {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, String>,
}

pub(super) fn encode_membership(membership: &Membership) -> Result<Bytes, CodecError> {
    let wire = WireMembership {
        configs: membership.get_joint_config().clone(),
        nodes: membership
            .nodes()
            .map(|(id, node)| (*id, node.addr.clone()))
            .collect(),
    };
    Ok(Bytes::from(serde_json::to_vec(&wire)?))
}

pub(super) fn decode_membership(bytes: &[u8]) -> Result<Membership, CodecError> {
    let wire: WireMembership = serde_json::from_slice(bytes)?;
    let nodes: BTreeMap<u64, BasicNode> = wire
        .nodes
        .into_iter()
        .map(|(id, addr)| (id, BasicNode::new(addr)))
        .collect();
    if wire.configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(wire.configs, nodes).map_err(|e| CodecError::Illegal(e.to_string()))
}

/// What a state machine is besides its owner's state. Kept in the disk's checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// As of the last snapshot's point.
    pub below: StoredMembership,
    pub owner: Bytes,
}

/// Of a membership's length: another one, that of the snapshot's point, follows. Older versions wrote one alone.
const ANOTHER: u32 = 1 << 31;

/// `applied | one or two memberships | owner's state`. A membership is `its id | length u32 | bytes`, an id is
/// `present u8, term u64, index u64`.
pub(super) fn encode_image(image: &Image) -> Result<Bytes, CodecError> {
    let mut out = BytesMut::with_capacity(512 + image.owner.len());
    put_id(&mut out, image.applied.as_ref());
    put_membership(&mut out, &image.membership, ANOTHER)?;
    put_membership(&mut out, &image.below, 0)?;
    out.put_slice(&image.owner);
    Ok(out.freeze())
}

fn put_membership(
    out: &mut BytesMut,
    stored: &StoredMembership,
    mark: u32,
) -> Result<(), CodecError> {
    let membership = encode_membership(stored.membership())?;
    put_id(out, stored.log_id().as_ref());
    out.put_u32(membership.len() as u32 | mark);
    out.put_slice(&membership);
    Ok(())
}

/// A membership, and whether another one follows.
fn get_membership(bytes: &mut Bytes) -> Result<(StoredMembership, bool), CodecError> {
    let id = get_id(bytes)?;
    at_least("captured state", bytes.len(), 4)?;
    let marked = bytes.get_u32();
    let length = (marked & !ANOTHER) as usize;
    at_least("captured membership", bytes.len(), length)?;
    let membership = decode_membership(&bytes.split_to(length))?;
    Ok((StoredMembership::new(id, membership), marked & ANOTHER != 0))
}

pub(super) fn decode_image(mut bytes: Bytes) -> Result<Image, CodecError> {
    let applied = get_id(&mut bytes)?;
    let (membership, another) = get_membership(&mut bytes)?;
    let below = match another {
        true => get_membership(&mut bytes)?.0,
        false => StoredMembership::default(),
    };
    Ok(Image {
        applied,
        membership,
        below,
        owner: bytes,
    })
}

fn put_id(out: &mut BytesMut, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    out.put_u64(id.map_or(0, |id| id.committed_leader_id().term));
    out.put_u64(id.map_or(0, |id| id.index()));
}

fn get_id(bytes: &mut Bytes) -> Result<Option<LogId>, CodecError> {
    at_least("log id", bytes.len(), 17)?;
    let present = bytes.get_u8() != 0;
    let (term, index) = (bytes.get_u64(), bytes.get_u64());
    Ok(present.then(|| log_id(term, index)))
}

fn expect(what: &'static str, found: usize, expected: usize) -> Result<(), CodecError> {
    if found == expected {
        Ok(())
    } else {
        Err(CodecError::Length {
            what,
            found,
            expected,
        })
    }
}

fn at_least(what: &'static str, found: usize, expected: usize) -> Result<(), CodecError> {
    if found >= expected {
        Ok(())
    } else {
        Err(CodecError::Length {
            what,
            found,
            expected,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_comes_back_as_it_was() {
        let vote = RaftVote {
            leader_id: LeaderId::new(7, 42),
            committed: true,
        };
        assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
    }

    #[test]
    fn an_image_comes_back_as_it_was() {
        let members = Membership::new(
            vec![BTreeSet::from([1, 2])],
            BTreeMap::from([(1, BasicNode::new("a:1")), (2, BasicNode::new("b:2"))]),
        )
        .unwrap();
        let image = Image {
            applied: Some(log_id(3, 9)),
            membership: StoredMembership::new(Some(log_id(1, 5)), members.clone()),
            below: StoredMembership::new(Some(log_id(1, 0)), members),
            owner: Bytes::from_static(b"mine"),
        };
        let back = decode_image(encode_image(&image).unwrap()).unwrap();
        assert_eq!(
            (back.applied, back.membership, back.below, back.owner),
            (image.applied, image.membership, image.below, image.owner)
        );
    }

    #[test]
    fn a_cut_image_is_an_error_not_a_panic() {
        let image = Image {
            applied: None,
            membership: StoredMembership::default(),
            below: StoredMembership::default(),
            owner: Bytes::new(),
        };
        let whole = encode_image(&image).unwrap();
        for cut in 0..whole.len() {
            assert!(decode_image(whole.slice(..cut)).is_err(), "cut at {cut}");
        }
    }
}
