//! Where records come from: partitions of one's own choice, or a share in a group.
//!
//! Promise: at most as many records as asked for count as read, so that a group goes on exactly behind
//! what was printed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use logd_client::error::ConsumeError;
use logd_client::{Admin, Client, ConsumedRecord, Consumer, GroupConsumer, OffsetAt, TopicInfo};

use super::Options;
use super::offset::Begin;
use crate::failure::Failure;
use crate::lookup;

/// A member commits what it has printed so often.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked at whether everything is read, when nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

type Key = (String, i32);

#[allow(
    clippy::large_enum_variant,
    reason = "one per process: boxing the larger one would only add a word to read"
)]
pub enum Source {
    Alone(Consumer),
    Member(GroupConsumer),
}

impl Source {
    pub async fn open(
        client: &Client,
        topics: &[TopicInfo],
        options: &Options,
    ) -> Result<Source, Failure> {
        let Some(group) = &options.group else {
            return alone(client, topics, options).await;
        };
        let Some(start) = options.offset.of_group() else {
            let failure = Failure::usage("a group begins at start, at end or at a time");
            return Err(failure.hint("leave --group out to read from an offset"));
        };
        let member = client
            .group_consumer(group)
            .subscribe(&options.topics)
            .start_at(start)
            .auto_commit(COMMIT_INTERVAL);
        Ok(Source::Member(member.build().await?))
    }

    /// Becomes a member, which takes as long as the group takes to come together.
    pub async fn join(&mut self) -> Result<(), ConsumeError> {
        match self {
            Source::Alone(_) => Ok(()),
            Source::Member(member) => member.join().await,
        }
    }

    /// At most `limit` records; none when nothing came for a while.
    ///
    /// # Cancel safety
    /// Safe, as the consumers are.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<ConsumedRecord>, ConsumeError> {
        let next = async {
            match self {
                Source::Alone(consumer) => consumer.next_batch_of(limit).await,
                Source::Member(member) => member.next_batch_of(limit).await,
            }
        };
        let next = tokio::time::timeout(LOOK_INTERVAL, next);
        next.await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    /// Whether everything below `ends` is read, of what is ours to read.
    pub fn is_behind(&self, ends: &BTreeMap<Key, i64>) -> bool {
        self.assignment().iter().all(|key| {
            let end = ends.get(key).copied().unwrap_or(0);
            end == 0 || self.position(key).is_some_and(|at| at >= end)
        })
    }

    fn assignment(&self) -> Vec<Key> {
        match self {
            Source::Alone(consumer) => consumer.assignment(),
            Source::Member(member) => member.assignment(),
        }
    }

    fn position(&self, key: &Key) -> Option<i64> {
        match self {
            Source::Alone(consumer) => consumer.position(&key.0, key.1),
            Source::Member(member) => member.position(&key.0, key.1),
        }
    }

    /// Leaves a group: with a commit, unless what was read last did not arrive where it should.
    pub async fn close(self, arrived: bool) -> Result<(), ConsumeError> {
        match self {
            Source::Alone(_) => Ok(()),
            Source::Member(member) if arrived => member.close().await,
            Source::Member(member) => member.leave().await,
        }
    }
}

async fn alone(
    client: &Client,
    topics: &[TopicInfo],
    options: &Options,
) -> Result<Source, Failure> {
    let wanted = wanted(topics, &options.partitions)?;
    let admin = client.admin();
    let starts = offsets(&admin, &wanted, OffsetAt::Start).await?;
    let ends = offsets(&admin, &wanted, OffsetAt::End).await?;
    let at_time = match options.offset {
        Begin::Time(at) => offsets(&admin, &wanted, OffsetAt::Timestamp(at)).await?,
        _ => BTreeMap::new(),
    };
    let mut consumer = client.consumer().build();
    for key in &wanted {
        let (start, end) = (starts.get(key).copied(), ends.get(key).copied());
        let begin = options.offset.within(
            start.unwrap_or(0),
            end.unwrap_or(0),
            at_time.get(key).copied(),
        );
        let begin = begin.map_err(|why| Failure::not_found(format!("{}/{}: {why}", key.0, key.1)));
        consumer.assign(&key.0, key.1, begin?);
    }
    Ok(Source::Alone(consumer))
}

/// All partitions of the topics, or those chosen.
fn wanted(topics: &[TopicInfo], chosen: &[i32]) -> Result<BTreeSet<Key>, Failure> {
    let mut wanted = BTreeSet::new();
    for topic in topics {
        for partition in chosen {
            lookup::partition(topic, *partition)?;
        }
        let all = topic.partitions.iter().map(|place| place.index);
        let mine = all.filter(|index| chosen.is_empty() || chosen.contains(index));
        wanted.extend(mine.map(|index| (topic.name.clone(), index)));
    }
    Ok(wanted)
}

async fn offsets(
    admin: &Admin,
    wanted: &BTreeSet<Key>,
    at: OffsetAt,
) -> Result<BTreeMap<Key, i64>, ConsumeError> {
    let wanted: Vec<Key> = wanted.iter().cloned().collect();
    let found = admin.offsets(&wanted, at).await?.into_iter();
    let found = found.filter_map(|at| Some(((at.topic, at.partition), at.offset?)));
    Ok(found.collect())
}

/// Where all partitions of the topics end now.
pub async fn ends(client: &Client, topics: &[TopicInfo]) -> Result<BTreeMap<Key, i64>, Failure> {
    let wanted = wanted(topics, &[])?;
    Ok(offsets(&client.admin(), &wanted, OffsetAt::End).await?)
}
