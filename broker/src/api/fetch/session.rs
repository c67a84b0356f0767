//! One fetch session (KIP-227): which partitions its client wants, and what the client knows of each.
//!
//! Promise: a client that applies every answer knows what a whole answer would tell it: an answer leaves a
//! partition out only if it has neither records nor news. Partitions that gave records go to the end, so
//! that none starves while an answer has no room for all. Pure: no clock, no lock, no reading.
//! Not here: how many sessions there may be (`cache`).

use logd_proto::fetch::{
    FetchPartition, FetchPartitionResponse, FetchRequest, FetchTopicResponse, ForgottenTopic,
};
use logd_proto::{ErrorCode, StrBytes, Uuid};
use std::collections::{BTreeMap, HashMap};

/// How a client names topics. A session keeps to one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    Names,
    Ids,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    Name(StrBytes),
    Id(Uuid),
}

impl Topic {
    fn of(naming: Naming, name: &StrBytes, id: Uuid) -> Self {
        match naming {
            Naming::Names => Topic::Name(name.clone()),
            Naming::Ids => Topic::Id(id),
        }
    }

    /// The same, in memory of its own: a name in a request is a piece of its frame.
    fn kept(&self) -> Self {
        match self {
            Topic::Name(name) => Topic::Name(StrBytes::from(&**name)),
            Topic::Id(id) => Topic::Id(*id),
        }
    }
}

/// A partition to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub topic: Topic,
    pub partition: FetchPartition,
}

/// What was found in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub topic: Topic,
    pub partition: FetchPartitionResponse,
}

/// The request's partitions, one by one.
pub fn wanted(request: &FetchRequest, naming: Naming) -> Vec<Wanted> {
    let topics = request.topics.iter();
    let each = topics.flat_map(|topic| {
        let name = Topic::of(naming, &topic.name, topic.topic_id);
        topic.partitions.iter().map(move |partition| Wanted {
            topic: name.clone(),
            partition: partition.clone(),
        })
    });
    each.collect()
}

/// As an answer has it: neighbours of one topic are named once.
pub fn by_topic(found: Vec<Found>) -> Vec<FetchTopicResponse> {
    let mut last = None;
    let mut topics: Vec<FetchTopicResponse> = Vec::new();
    for Found { topic, partition } in found {
        match topics.last_mut() {
            Some(same) if last.as_ref() == Some(&topic) => same.partitions.push(partition),
            _ => {
                let (name, topic_id) = match &topic {
                    Topic::Name(name) => (name.clone(), Uuid::ZERO),
                    Topic::Id(id) => (StrBytes::default(), *id),
                };
                topics.push(FetchTopicResponse {
                    name,
                    topic_id,
                    partitions: vec![partition],
                });
                last = Some(topic);
            }
        }
    }
    topics
}

/// What the client was told of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    high_watermark: i64,
    log_start: i64,
}

impl Told {
    /// Nothing: no partition has these, so the next answer is news.
    const NOTHING: Told = Told {
        high_watermark: -1,
        log_start: -1,
    };

    /// What is left to be told once this answer is.
    fn by(answer: &FetchPartitionResponse) -> Self {
        if answer.error.is_none() && answer.diverging_epoch.is_none() {
            Told {
                high_watermark: answer.high_watermark,
                log_start: answer.log_start_offset,
            }
        } else {
            // The client takes a partition that is left out for one without a fault: the end of this one is news.
            Told::NOTHING
        }
    }

    /// Whether an answer has anything that the client does not know.
    fn lacks(self, answer: &FetchPartitionResponse) -> bool {
        answer.record_bytes() > 0
            || !answer.error.is_none()
            || answer.diverging_epoch.is_some()
            || answer.preferred_read_replica >= 0
            || answer.high_watermark != self.high_watermark
            || answer.log_start_offset != self.log_start
    }
}

#[derive(Debug)]
struct Member {
    wanted: Wanted,
    told: Told,
}

/// The session as the broker keeps it.
#[derive(Debug)]
pub struct Session {
    naming: Naming,
    /// The number of the request that is to come next.
    epoch: i32,
    /// In the order of reading.
    order: BTreeMap<u64, Member>,
    places: HashMap<(Topic, i32), u64>,
    last_place: u64,
}

/// The numbers of requests go from 1 to the largest, and then from 1 again: 0 opens a session.
fn after(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

impl Session {
    /// Opened by a whole request, with what it was answered.
    pub fn open(naming: Naming, wanted: &[Wanted], answers: &[Found]) -> Self {
        let mut session = Self {
            naming,
            epoch: after(0),
            order: BTreeMap::new(),
            places: HashMap::new(),
            last_place: 0,
        };
        session.want(wanted);
        for found in answers {
            if let Some(member) = session.member(found) {
                member.told = Told::by(&found.partition);
            }
        }
        session
    }

    #[cfg(test)]
    pub fn set_epoch(&mut self, epoch: i32) {
        self.epoch = epoch;
    }

    /// Partitions it holds.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Takes the session's next request in; what is to be read for it, in order. To be answered by
    /// [`Session::answer`] with the same epoch.
    ///
    /// # Errors
    /// A request that is not the next one, or names topics in another way.
    pub fn advance(
        &mut self,
        epoch: i32,
        naming: Naming,
        request: &FetchRequest,
    ) -> Result<Vec<Wanted>, ErrorCode> {
        if epoch != self.epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if naming != self.naming {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        self.want(&wanted(request, naming));
        self.forget(&request.forgotten_topics);
        self.epoch = after(epoch);
        Ok(self.order.values().map(|m| m.wanted.clone()).collect())
    }

    fn want(&mut self, wanted: &[Wanted]) {
        // Partitions of one topic stand together and share the memory of its name.
        let mut name: Option<(&Topic, Topic)> = None;
        for Wanted { topic, partition } in wanted {
            let kept = match &name {
                Some((of, kept)) if *of == topic => kept.clone(),
                _ => name.insert((topic, topic.kept())).1.clone(),
            };
            let key = (kept.clone(), partition.partition);
            if let Some(member) = self.places.get(&key).and_then(|p| self.order.get_mut(p)) {
                member.wanted.partition = partition.clone();
                continue;
            }
            self.last_place += 1;
            self.places.insert(key, self.last_place);
            let wanted = Wanted {
                topic: kept,
                partition: partition.clone(),
            };
            let told = Told::NOTHING;
            self.order.insert(self.last_place, Member { wanted, told });
        }
    }

    fn forget(&mut self, topics: &[ForgottenTopic]) {
        for topic in topics {
            let name = Topic::of(self.naming, &topic.name, topic.topic_id);
            for index in &topic.partitions {
                if let Some(place) = self.places.remove(&(name.clone(), *index)) {
                    self.order.remove(&place);
                }
            }
        }
    }

    fn member(&mut self, found: &Found) -> Option<&mut Member> {
        let key = (found.topic.clone(), found.partition.partition);
        self.order.get_mut(self.places.get(&key)?)
    }

    /// Of what was found for the request `epoch`, what its client does not know; from now on it is known.
    ///
    /// # Errors
    /// If another request of the session has come meanwhile.
    pub fn answer(&mut self, epoch: i32, found: Vec<Found>) -> Result<Vec<Found>, ErrorCode> {
        if after(epoch) != self.epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        let mut news = Vec::new();
        for found in found {
            let Some(member) = self.member(&found) else {
                continue;
            };
            if !member.told.lacks(&found.partition) {
                continue;
            }
            member.told = Told::by(&found.partition);
            if found.partition.record_bytes() > 0 {
                self.move_to_the_end(&found);
            }
            news.push(found);
        }
        Ok(news)
    }

    fn move_to_the_end(&mut self, found: &Found) {
        let key = (found.topic.clone(), found.partition.partition);
        let Some(place) = self.places.get_mut(&key) else {
            return;
        };
        if let Some(member) = self.order.remove(place) {
            self.last_place += 1;
            *place = self.last_place;
            self.order.insert(self.last_place, member);
        }
    }
}
