//! Where to begin: `start`, `end`, `N`, `-N` or `@TIME`. Pure.

use std::str::FromStr;

use logd_client::{OffsetAt, StartAt};

/// A beginning as somebody writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    Start,
    End,
    /// This offset.
    At(i64),
    /// So many records before the end.
    Last(i64),
    /// The first record that is not older, in milliseconds since 1970.
    Time(i64),
}

impl FromStr for Begin {
    type Err = String;

    fn from_str(text: &str) -> Result<Begin, String> {
        const EXPECTED: &str = "expected start, end, an offset, -N for the last N records, \
                                or @MILLISECONDS since 1970";
        let number = |digits: &str| match digits.parse::<i64>() {
            Ok(number) if number >= 0 && !digits.starts_with('+') => Ok(number),
            _ => Err(EXPECTED.to_owned()),
        };
        match text {
            "start" | "beginning" => Ok(Begin::Start),
            "end" => Ok(Begin::End),
            _ => match (text.strip_prefix('-'), text.strip_prefix('@')) {
                (Some(digits), _) => number(digits).map(Begin::Last),
                (_, Some(digits)) => number(digits).map(Begin::Time),
                _ => number(text).map(Begin::At),
            },
        }
    }
}

impl Begin {
    /// As a group may be told, which begins in all its partitions alike.
    pub fn of_group(self) -> Option<OffsetAt> {
        match self {
            Begin::Start => Some(OffsetAt::Start),
            Begin::End => Some(OffsetAt::End),
            Begin::Time(at) => Some(OffsetAt::Timestamp(at)),
            Begin::At(_) | Begin::Last(_) => None,
        }
    }

    /// In a partition that holds `start..end`, of which `at_time` is the first offset not older than
    /// the time asked for.
    ///
    /// # Errors
    /// When an offset lies outside of it: what is not there should not be skipped unnoticed.
    pub fn within(self, start: i64, end: i64, at_time: Option<i64>) -> Result<StartAt, String> {
        let offset = match self {
            Begin::Start => start,
            Begin::End => end,
            Begin::Last(count) => end.saturating_sub(count).max(start),
            Begin::Time(_) => at_time.unwrap_or(end),
            Begin::At(offset) if (start..=end).contains(&offset) => offset,
            Begin::At(offset) => {
                return Err(format!(
                    "offset {offset} is outside of the log, which begins at {start} and ends at {end}"
                ));
            }
        };
        Ok(StartAt::Offset(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_it() {
        let seen = |text: &str| text.parse::<Begin>().unwrap();
        assert_eq!(seen("start"), Begin::Start);
        assert_eq!(seen("end"), Begin::End);
        assert_eq!(seen("42"), Begin::At(42));
        assert_eq!(seen("-5"), Begin::Last(5));
        assert_eq!(seen("@1700000000000"), Begin::Time(1_700_000_000_000));
        for wrong in [
            "",
            "-",
            "@",
            "--5",
            "@-1",
            "+1",
            "1e3",
            "yesterday",
            "99999999999999999999",
        ] {
            assert!(wrong.parse::<Begin>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_beginning_is_found_in_what_the_partition_holds() {
        let seen = |begin: Begin| begin.within(10, 20, Some(15));
        assert_eq!(seen(Begin::Start), Ok(StartAt::Offset(10)));
        assert_eq!(seen(Begin::End), Ok(StartAt::Offset(20)));
        assert_eq!(seen(Begin::Last(3)), Ok(StartAt::Offset(17)));
        assert_eq!(seen(Begin::Last(100)), Ok(StartAt::Offset(10)));
        assert_eq!(seen(Begin::Time(0)), Ok(StartAt::Offset(15)));
        assert_eq!(Begin::Time(0).within(10, 20, None), Ok(StartAt::Offset(20)));
        assert_eq!(seen(Begin::At(20)), Ok(StartAt::Offset(20)));
        assert!(seen(Begin::At(21)).unwrap_err().contains("ends at 20"));
        assert!(seen(Begin::At(9)).is_err());
    }

    #[test]
    fn a_group_begins_everywhere_alike() {
        assert_eq!(Begin::Start.of_group(), Some(OffsetAt::Start));
        assert_eq!(Begin::At(3).of_group(), None);
        assert_eq!(Begin::Last(3).of_group(), None);
    }
}
