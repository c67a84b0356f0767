//! Kafka's settings for what this broker does not have, which tools set all the same.
//!
//! Promise: what is set is kept and shown, and wherever it is said at all it is said to be without effect. A name stands
//! here only if nobody loses by that: it sizes machinery that is Kafka's alone, or tunes a login that nobody can use.
//! Not here: names that promise something (a limit, a throttle, encryption). They are refused, as unknown ones are.

use crate::topic_config::Kind;

/// For whoever reads about one that was set.
pub const NOTE: &str = "Kept for tools, without effect in logd.";

/// One of them; each is a whole number.
#[derive(Debug, Clone, Copy)]
pub struct Unused {
    pub name: &'static str,
    pub kind: Kind,
    /// What Kafka takes.
    least: i64,
    /// Why there is nothing to set.
    pub meaning: &'static str,
}

const fn unused(name: &'static str, kind: Kind, least: i64, meaning: &'static str) -> Unused {
    Unused {
        name,
        kind,
        least,
        meaning,
    }
}

const NO_POOL: &str = "There is no pool of such threads.";

/// In the order of their names.
const TABLE: &[Unused] = &[
    unused("background.threads", Kind::Int, 1, NO_POOL),
    unused(
        "log.cleaner.threads",
        Kind::Int,
        0,
        "One log is compacted at a time.",
    ),
    unused("num.io.threads", Kind::Int, 1, NO_POOL),
    unused("num.network.threads", Kind::Int, 1, NO_POOL),
    unused("num.recovery.threads.per.data.dir", Kind::Int, 1, NO_POOL),
    unused("num.replica.fetchers", Kind::Int, 1, NO_POOL),
    unused(
        "sasl.kerberos.min.time.before.relogin",
        Kind::Long,
        0,
        "Nobody logs in by Kerberos.",
    ),
];

pub fn unused_of(name: &str) -> Option<&'static Unused> {
    TABLE.iter().find(|one| one.name == name)
}

impl Unused {
    /// The value in the form in which it is kept.
    ///
    /// # Errors
    /// What Kafka would take instead.
    pub fn checked(&self, value: &str) -> Result<String, String> {
        let most = match self.kind {
            Kind::Int => i64::from(i32::MAX),
            _ => i64::MAX,
        };
        let number = value.parse().ok();
        let number = number.filter(|n| (self.least..=most).contains(n));
        let number = number
            .ok_or_else(|| format!("it must be a whole number from {} to {most}", self.least))?;
        Ok(number.to_string())
    }

    pub fn documentation(&self) -> String {
        format!("{} {NOTE}", self.meaning)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;
    use crate::topic_config::names_of_broker;

    #[test]
    fn nothing_that_has_an_effect_is_called_unused() {
        let of_topics = names_of_broker().map(|(name, _)| name);
        let own = table::TABLE.iter().map(|row| row.name);
        for name in of_topics.chain(own) {
            assert!(unused_of(name).is_none(), "{name}");
        }
    }

    #[test]
    fn values_are_those_that_kafka_would_take() {
        let threads = unused_of("num.io.threads").expect("it is there");
        assert_eq!(threads.checked("016"), Ok("16".to_owned()));
        for wrong in ["0", "many", "2147483648", "1.5", ""] {
            let why = threads.checked(wrong).unwrap_err();
            assert!(why.contains("from 1 to 2147483647"), "{wrong}: {why}");
        }
        let pause = unused_of("sasl.kerberos.min.time.before.relogin");
        assert!(pause.is_some_and(|p| p.checked("60000000000").is_ok()));
    }
}
