//! Whether two brokers understand each other: the protocol between them, and the cluster's feature level. Pure.
//!
//! Promise: both ways. Either may be the older one, and either may be the one that asks.

use logd_proto::rpc::v1::Identity;

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
    Ok(())
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
