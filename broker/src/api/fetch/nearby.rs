//! Which replica a consumer is better served by (KIP-392): one in its own rack.
//!
//! Promise: only a follower is named that keeps up, has heard this leader a moment ago and holds the
//! offset wanted, so that whoever goes there is served and not sent back. Pure.
//! Not here: who keeps up (`cluster::claims`), and what a follower serves (`partition`).

/// A follower as its leader knows it.
#[derive(Debug, Clone, Copy)]
pub struct Follower<'a> {
    pub node: i32,
    pub rack: Option<&'a str>,
    /// It votes, keeps up, and was heard a moment ago.
    pub in_sync: bool,
    /// The end of its log.
    pub end_offset: i64,
    /// Entries that it is behind.
    pub lag: u64,
}

/// The follower that is furthest on, of those in the consumer's rack; none if the leader is there itself.
pub fn choose<'a>(
    rack: &str,
    own_rack: Option<&str>,
    offset: i64,
    followers: impl Iterator<Item = Follower<'a>>,
) -> Option<i32> {
    if own_rack == Some(rack) {
        return None;
    }
    let fit = |f: &Follower<'_>| f.rack == Some(rack) && f.in_sync && f.end_offset >= offset;
    let best = followers.filter(fit).min_by_key(|f| (f.lag, f.node));
    best.map(|f| f.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Follower<'static> = Follower {
        node: 2,
        rack: Some("a"),
        in_sync: true,
        end_offset: 100,
        lag: 5,
    };

    fn of(followers: &[Follower<'static>]) -> Option<i32> {
        choose("a", Some("z"), 100, followers.iter().copied())
    }

    #[test]
    fn a_follower_in_the_consumers_rack_is_chosen_and_of_several_the_furthest() {
        assert_eq!(of(&[A]), Some(2));
        let further = Follower {
            node: 3,
            lag: 1,
            ..A
        };
        assert_eq!(of(&[A, further]), Some(3));
    }

    #[test]
    fn nobody_is_sent_to_a_follower_that_lags_or_stands_elsewhere() {
        let late = Follower {
            in_sync: false,
            ..A
        };
        let short = Follower {
            end_offset: 99,
            ..A
        };
        let elsewhere = Follower {
            rack: Some("b"),
            ..A
        };
        let nowhere = Follower { rack: None, ..A };
        assert_eq!(of(&[late, short, elsewhere, nowhere]), None);
    }

    #[test]
    fn a_leader_in_the_consumers_rack_serves_it_itself() {
        assert_eq!(choose("a", Some("a"), 0, [A].into_iter()), None);
    }
}
