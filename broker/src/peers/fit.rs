//! Whether two brokers understand each other: the protocol between them, the cluster's feature level, and where
//! their metadata comes from. Pure.
//!
//! Promise: both ways. Either may be the older one, and either may be the one that asks.

use logd_proto::rpc::v1::{Identity, Lineage};
use std::cmp::Ordering;

/// Why two brokers do not go together. It is read on either side, so it says whose numbers are whose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error(
        "it speaks version {theirs} of the protocol between brokers, version {needed} is needed: start a newer binary \
         there"
    )]
    TheirProtocol { theirs: u32, needed: u32 },
    #[error(
        "it needs version {needed} of the protocol between brokers, and is spoken to in version {ours}: a newer \
         binary is needed on this side"
    )]
    OurProtocol { ours: u32, needed: u32 },
    #[error(
        "its build understands feature level {theirs}, the cluster is at level {level}: a downgrade is not possible; \
         start the newer binary there"
    )]
    TheirBuild { theirs: u32, level: u32 },
    #[error(
        "the build on this side understands feature level {ours}, its cluster is at level {level}: a downgrade is not \
         possible; start the newer binary"
    )]
    OurBuild { ours: u32, level: u32 },
    #[error(
        "its metadata is of generation {theirs}, that of this side of generation {ours}: the metadata group was \
         recovered by force without it; a restart there takes it in again"
    )]
    TheirMetadata { theirs: u32, ours: u32 },
    #[error(
        "its metadata is of generation {theirs}, that of this side of generation {ours}: the metadata group was \
         recovered by force without this side; a restart on this side takes it in again"
    )]
    OurMetadata { theirs: u32, ours: u32 },
    #[error(
        "the metadata group was recovered by force twice, apart from each other, and both are of generation \
         {generation}: they are one cluster no more. Stop the broker whose metadata is to go on, run `logd \
         recover-metadata --accept-data-loss` there while the other one runs, and start it: the other one follows"
    )]
    Apart { generation: u32 },
}

/// # Errors
/// If one of the two is too old for the other. Numbers that are absent are from before they were said: 1.
pub fn fit(us: &Identity, them: &Identity) -> Result<(), Misfit> {
    let said = |number: u32| number.max(1);
    let (theirs, needed) = (said(them.protocol_version), said(us.protocol_version_min));
    if theirs < needed {
        return Err(Misfit::TheirProtocol { theirs, needed });
    }
    let (ours, needed) = (said(us.protocol_version), said(them.protocol_version_min));
    if ours < needed {
        return Err(Misfit::OurProtocol { ours, needed });
    }
    let (theirs, level) = (said(them.feature_version), us.feature_level);
    if theirs < level {
        return Err(Misfit::TheirBuild { theirs, level });
    }
    let (ours, level) = (said(us.feature_version), them.feature_level);
    if ours < level {
        return Err(Misfit::OurBuild { ours, level });
    }
    match us.cluster_id.is_empty() || them.cluster_id.is_empty() {
        // Whoever belongs to no cluster yet has no metadata.
        true => Ok(()),
        false => same_past(&past(us), &past(them)),
    }
}

/// Where a broker's metadata comes from. That is not said where it was never recovered by force.
pub(super) fn past(of: &Identity) -> Lineage {
    of.lineage.unwrap_or_default()
}

fn same_past(us: &Lineage, them: &Lineage) -> Result<(), Misfit> {
    let (ours, theirs) = (us.generation, them.generation);
    match theirs.cmp(&ours) {
        Ordering::Less => Err(Misfit::TheirMetadata { theirs, ours }),
        Ordering::Greater => Err(Misfit::OurMetadata { theirs, ours }),
        Ordering::Equal if us != them => Err(Misfit::Apart { generation: ours }),
        Ordering::Equal => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Speaks these versions, understands features up to `build`, and its cluster is at `level`.
    fn broker(speaks: std::ops::RangeInclusive<u32>, build: u32, level: u32) -> Identity {
        Identity {
            protocol_version: *speaks.end(),
            protocol_version_min: *speaks.start(),
            feature_version: build,
            feature_level: level,
            ..Identity::default()
        }
    }

    #[test]
    fn one_that_no_longer_speaks_the_others_protocol_is_told_from_either_side() {
        let (old, new, newest) = (
            broker(1..=1, 1, 0),
            broker(1..=2, 1, 0),
            broker(2..=3, 1, 0),
        );
        assert_eq!(fit(&old, &new), Ok(()));
        assert_eq!(fit(&newest, &new), Ok(()));
        let (theirs, ours, needed) = (1, 1, 2);
        let said = Err(Misfit::TheirProtocol { theirs, needed });
        assert_eq!(fit(&newest, &old), said);
        assert_eq!(
            fit(&old, &newest),
            Err(Misfit::OurProtocol { ours, needed })
        );
    }

    #[test]
    fn a_build_below_the_clusters_level_is_told_from_either_side() {
        let (member, old) = (broker(1..=1, 3, 2), broker(1..=1, 1, 0));
        let (theirs, ours, level) = (1, 1, 2);
        let said = Err(Misfit::TheirBuild { theirs, level });
        assert_eq!(fit(&member, &old), said);
        assert_eq!(fit(&old, &member), Err(Misfit::OurBuild { ours, level }));
        assert_eq!(
            fit(&broker(1..=1, 2, 0), &member),
            Ok(()),
            "a newer level is not in use"
        );
    }

    fn with_metadata(generation: u32, survivor: u64) -> Identity {
        Identity {
            cluster_id: "c".into(),
            lineage: Some(Lineage {
                generation,
                survivor,
                term: 1_000,
            }),
            ..Identity::default()
        }
    }

    #[test]
    fn metadata_from_before_a_forced_recovery_is_told_from_either_side() {
        let first = Identity {
            cluster_id: "c".into(),
            ..Identity::default()
        };
        let (once, twice) = (with_metadata(1, 7), with_metadata(2, 8));
        assert_eq!(fit(&first, &first), Ok(()));
        assert_eq!(fit(&twice, &twice), Ok(()));
        for (older, newer, numbers) in [(&first, &once, (0, 1)), (&once, &twice, (1, 2))] {
            let (theirs, ours) = numbers;
            let said = Err(Misfit::TheirMetadata { theirs, ours });
            assert_eq!(fit(newer, older), said);
            let (ours, theirs) = numbers;
            assert_eq!(fit(older, newer), Err(Misfit::OurMetadata { theirs, ours }));
        }
        let empty = Identity::default();
        assert_eq!(fit(&once, &empty), Ok(()), "it has no metadata yet");
    }

    #[test]
    fn two_that_were_recovered_apart_from_each_other_are_told_so() {
        let apart = Err(Misfit::Apart { generation: 1 });
        let (one, other) = (with_metadata(1, 7), with_metadata(1, 8));
        assert_eq!(fit(&one, &other), apart);
        assert_eq!(fit(&other, &one), apart);
    }

    #[test]
    fn whoever_says_nothing_is_of_the_first() {
        let silent = Identity::default();
        assert_eq!(fit(&silent, &broker(1..=1, 2, 1)), Ok(()));
        assert_eq!(fit(&broker(1..=1, 2, 1), &silent), Ok(()));
        assert!(fit(&broker(1..=1, 2, 2), &silent).is_err());
    }

    #[test]
    fn a_refusal_says_both_numbers_and_what_to_do() {
        let why = fit(&broker(1..=1, 3, 3), &broker(1..=1, 2, 2)).unwrap_err();
        assert_eq!(
            why.to_string(),
            "its build understands feature level 2, the cluster is at level 3: a downgrade is not possible; start the \
             newer binary there"
        );
    }
}
