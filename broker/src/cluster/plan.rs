//! From what a client asks for to the command that creates it: names, numbers, assignments, configuration.
//!
//! Pure but for the new topic's id, which is random.
//! Not here: the metadata log, and where replicas go if the client does not say (placement).

use super::features::AboveLevel;
use super::placement::{PlacementError, place};
use super::state::{ClusterState, TopicId, TopicRecord};
use crate::topic_config::TopicConfig;
use logd_proto::Uuid;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Partitions of one topic: a typing error must not create a million groups.
pub(super) const PARTITIONS_PER_TOPIC_MAX: i32 = 10_000;

/// Topics that brokers write and clients only read, by name as in Kafka, whoever created them.
const INTERNAL: [&str; 2] = ["__consumer_offsets", "__transaction_state"];

/// A topic to be created, as a client asks for it.
#[derive(Debug, Clone, Default)]
pub struct NewTopic {
    pub name: String,
    /// `None`: the broker's default.
    pub partitions: Option<i32>,
    pub replication: Option<i16>,
    /// Explicit replicas per partition; excludes the two above.
    pub assignments: Vec<(i32, Vec<i32>)>,
    pub config: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CreatedTopic {
    pub id: Uuid,
    pub partitions: i32,
    pub replication: i16,
    pub config: Arc<TopicConfig>,
    pub overrides: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateTopicError {
    #[error("Topic '{0}' already exists.")]
    Exists(String),
    #[error("{0}")]
    InvalidName(String),
    #[error("{0}")]
    InvalidPartitions(String),
    #[error("{0}")]
    InvalidReplication(String),
    #[error("{0}")]
    InvalidAssignment(String),
    #[error("{0}")]
    InvalidConfig(String),
    #[error("{0}")]
    InvalidRequest(String),
    #[error("Excessively large number of partitions per request: at most {0}. Ask in several.")]
    TooMuchAtOnce(i32),
    #[error(transparent)]
    AboveLevel(#[from] AboveLevel),
    #[error("the topic is created, but its partitions do not serve yet")]
    TimedOut,
    #[error("{0}")]
    Unavailable(String),
}

/// Checks a wish against the cluster as it is; says what will be created and the command that does it.
pub(super) fn plan(
    state: &ClusterState,
    topic: NewTopic,
    defaults: (i32, i16),
    alive: &dyn Fn(i32) -> bool,
) -> Result<(TopicRecord, CreatedTopic), CreateTopicError> {
    check_name(&topic.name)?;
    if state.topic(&topic.name).is_some() {
        return Err(CreateTopicError::Exists(topic.name));
    }
    check_collision(state, &topic.name)?;
    let wish = wish(state, &topic);
    let overrides = overrides(topic.config)?;
    let config = TopicConfig::parse(&overrides)
        .map_err(|e| CreateTopicError::InvalidConfig(e.to_string()))?;
    let partitions = if topic.assignments.is_empty() {
        placed(
            state,
            topic.partitions.unwrap_or(defaults.0),
            topic
                .replication
                .unwrap_or_else(|| default_replication(state, defaults.1)),
            alive,
        )?
    } else {
        assigned(
            state,
            topic.assignments,
            topic.partitions,
            topic.replication,
        )?
    };
    let replication = partitions.first().map_or(0, Vec::len) as i16;
    config
        .check_replicas(replication)
        .map_err(|e| CreateTopicError::InvalidConfig(e.to_string()))?;
    let id = Uuid::from_bytes(*uuid::Uuid::new_v4().as_bytes());
    let created = CreatedTopic {
        id,
        partitions: partitions.len() as i32,
        replication,
        config: Arc::new(config),
        overrides: overrides.clone(),
    };
    Ok((
        TopicRecord {
            id: TopicId(id),
            internal: INTERNAL.contains(&topic.name.as_str()),
            name: topic.name,
            disks: disks(state, &partitions),
            moves: BTreeMap::new(),
            moved: BTreeSet::new(),
            grown: BTreeMap::new(),
            recoveries: BTreeMap::new(),
            partitions,
            replication: wish,
            overrides,
        },
        created,
    ))
}

/// How many replicas whoever asks wants for good. Where there was no choice there was no wish: what is
/// created on one broker grows with the cluster.
fn wish(state: &ClusterState, topic: &NewTopic) -> Option<i16> {
    let widths = topic.assignments.first().map(|(_, r)| r.len());
    let width = widths.and_then(|w| i16::try_from(w).ok());
    let wanted = topic.replication.or(width);
    wanted.filter(|_| state.brokers.len() >= USUAL_REPLICATION)
}

/// Three replicas survive the loss of one; two would stop at it.
pub(super) const USUAL_REPLICATION: usize = 3;

fn default_replication(state: &ClusterState, configured: i16) -> i16 {
    match configured {
        0 if state.brokers.len() >= USUAL_REPLICATION => USUAL_REPLICATION as i16,
        0 => 1,
        configured => configured,
    }
}

pub(super) fn disks(state: &ClusterState, partitions: &[Vec<i32>]) -> BTreeMap<i32, u64> {
    let nodes = partitions.iter().flatten();
    nodes
        .filter_map(|node| Some((*node, state.brokers.get(node)?.replica)))
        .collect()
}

/// Kafka's rules for names (`org.apache.kafka.common.internals.Topic`).
fn check_name(name: &str) -> Result<(), CreateTopicError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let wrong = if name.is_empty() {
        "it is empty".to_owned()
    } else if name == "." || name == ".." {
        format!("it is '{name}'")
    } else if name.len() > 249 {
        format!("it has {} characters, at most 249 are allowed", name.len())
    } else if let Some(c) = name.chars().find(|c| !legal(*c)) {
        format!("it contains {c:?}; legal are ASCII letters and digits, '.', '_' and '-'")
    } else {
        return Ok(());
    };
    Err(CreateTopicError::InvalidName(format!(
        "Topic name is invalid: {wrong}."
    )))
}

/// Metrics of topics have '_' where names have '.': in Kafka, and so in what watches Kafka's topics.
fn check_collision(state: &ClusterState, name: &str) -> Result<(), CreateTopicError> {
    let as_metric = |name: &str| name.replace('.', "_");
    let wanted = as_metric(name);
    let may_collide = wanted.contains('_');
    let mut others = state.topics.values().map(|t| t.name.as_str());
    match others.find(|other| may_collide && as_metric(other) == wanted) {
        Some(other) => Err(CreateTopicError::InvalidName(format!(
            "Topic '{name}' collides with existing topic: {other}. '.' and '_' count as the same."
        ))),
        None => Ok(()),
    }
}

fn overrides(
    config: BTreeMap<String, Option<String>>,
) -> Result<BTreeMap<String, String>, CreateTopicError> {
    let given = |(key, value): (String, Option<String>)| match value {
        Some(value) => Ok((key, value)),
        None => Err(CreateTopicError::InvalidConfig(format!(
            "Null value not supported for topic configs: {key}. Leave it out for the default."
        ))),
    };
    config.into_iter().map(given).collect()
}

fn check_partitions(partitions: i64) -> Result<(), CreateTopicError> {
    if (1..=i64::from(PARTITIONS_PER_TOPIC_MAX)).contains(&partitions) {
        return Ok(());
    }
    Err(CreateTopicError::InvalidPartitions(format!(
        "Number of partitions was {partitions}; it must be from 1 to {PARTITIONS_PER_TOPIC_MAX}."
    )))
}

fn placed(
    state: &ClusterState,
    partitions: i32,
    replication: i16,
    alive: &dyn Fn(i32) -> bool,
) -> Result<Vec<Vec<i32>>, CreateTopicError> {
    check_partitions(partitions.into())?;
    if replication < 1 {
        return Err(CreateTopicError::InvalidReplication(format!(
            "Replication factor was {replication}; it must be at least 1."
        )));
    }
    place(state, partitions as usize, replication as usize, alive).map_err(
        |PlacementError::TooFewBrokers { wanted, brokers }| {
            CreateTopicError::InvalidReplication(format!(
                "Replication factor {wanted} is larger than the number of brokers, {brokers}."
            ))
        },
    )
}

fn assigned(
    state: &ClusterState,
    mut assignments: Vec<(i32, Vec<i32>)>,
    partitions: Option<i32>,
    replication: Option<i16>,
) -> Result<Vec<Vec<i32>>, CreateTopicError> {
    let wrong = |why: String| Err(CreateTopicError::InvalidAssignment(why));
    if partitions.is_some() || replication.is_some() {
        return Err(CreateTopicError::InvalidRequest(
            "A manual assignment excludes a number of partitions and a replication factor.".into(),
        ));
    }
    check_partitions(assignments.len() as i64)?;
    assignments.sort_by_key(|(index, _)| *index);
    let width = assignments.first().map_or(0, |(_, r)| r.len());
    for (expected, (index, replicas)) in assignments.iter().enumerate() {
        if *index != expected as i32 {
            return wrong(format!(
                "Partitions must be numbered from 0 without gaps; {expected} is missing."
            ));
        }
        if replicas.is_empty() || replicas.len() != width {
            return wrong(format!(
                "Partition {index} has {} replicas, partition 0 has {width}.",
                replicas.len()
            ));
        }
        if let Some(unknown) = replicas.iter().find(|id| !state.brokers.contains_key(id)) {
            return wrong(format!(
                "Partition {index} names broker {unknown}, which is not registered."
            ));
        }
        if replicas.iter().collect::<HashSet<_>>().len() != width {
            return wrong(format!("Partition {index} names a broker twice."));
        }
    }
    Ok(assignments
        .into_iter()
        .map(|(_, replicas)| replicas)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{BrokerInfo, Command};

    fn one_broker() -> ClusterState {
        let mut s = ClusterState::default();
        s.apply(Command::RegisterBroker(BrokerInfo {
            id: 1,
            replica: 7,
            start: 1,
            rack: None,
            listeners: BTreeMap::new(),
            rpc: String::new(),
            features: crate::cluster::FeatureLevel::FIRST,
        }));
        s
    }

    fn plan(
        state: &ClusterState,
        topic: NewTopic,
        defaults: (i32, i16),
    ) -> Result<(TopicRecord, CreatedTopic), CreateTopicError> {
        super::plan(state, topic, defaults, &|_| true)
    }

    fn named(name: &str) -> NewTopic {
        NewTopic {
            name: name.into(),
            ..NewTopic::default()
        }
    }

    #[test]
    fn defaults_fill_what_the_client_leaves_open() {
        let (record, created) = plan(&one_broker(), named("a"), (4, 1)).unwrap();
        assert_eq!((record.partitions.len(), created.replication), (4, 1));
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(250)] {
            assert!(
                matches!(
                    plan(&one_broker(), named(bad), (1, 1)),
                    Err(CreateTopicError::InvalidName(_))
                ),
                "{bad}"
            );
        }
        assert!(plan(&one_broker(), named("..."), (1, 1)).is_ok());
    }

    #[test]
    fn names_that_metrics_could_not_tell_apart_are_refused() {
        let mut state = one_broker();
        let (record, _) = plan(&state, named("a.b_c"), (1, 1)).unwrap();
        state.apply(Command::CreateTopic(record));
        for bad in ["a_b_c", "a.b.c", "a_b.c"] {
            let refused = plan(&state, named(bad), (1, 1)).unwrap_err();
            assert!(
                matches!(refused, CreateTopicError::InvalidName(_)),
                "{bad}: {refused}"
            );
        }
        assert!(plan(&state, named("a-b_c"), (1, 1)).is_ok());
    }

    #[test]
    fn a_configuration_without_a_value_is_refused_not_ignored() {
        let topic = NewTopic {
            config: BTreeMap::from([("retention.ms".into(), None)]),
            ..named("a")
        };
        let refused = plan(&one_broker(), topic, (1, 1)).unwrap_err();
        assert!(
            matches!(&refused, CreateTopicError::InvalidConfig(why) if why.contains("retention.ms"))
        );
    }

    #[test]
    fn the_brokers_own_topics_are_known_by_their_names() {
        let internal = |name: &str| plan(&one_broker(), named(name), (1, 1)).unwrap().0.internal;
        assert!(internal("__consumer_offsets") && internal("__transaction_state"));
        assert!(!internal("consumer_offsets"));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let with = |partitions, replication| NewTopic {
            partitions: Some(partitions),
            replication: Some(replication),
            ..named("a")
        };
        let refused = |t| plan(&one_broker(), t, (1, 1)).unwrap_err();
        assert!(matches!(
            refused(with(0, 1)),
            CreateTopicError::InvalidPartitions(_)
        ));
        assert!(matches!(
            refused(with(10_001, 1)),
            CreateTopicError::InvalidPartitions(_)
        ));
        assert!(matches!(
            refused(with(1, 0)),
            CreateTopicError::InvalidReplication(_)
        ));
        assert!(matches!(
            refused(with(1, 2)),
            CreateTopicError::InvalidReplication(_)
        ));
    }

    #[test]
    fn a_manual_assignment_must_be_whole_and_possible() {
        let with = |assignments: &[(i32, &[i32])]| NewTopic {
            assignments: assignments.iter().map(|(i, r)| (*i, r.to_vec())).collect(),
            ..named("a")
        };
        let plan = |t| plan(&one_broker(), t, (1, 1));
        assert!(plan(with(&[(1, &[1]), (0, &[1])])).is_ok());
        for bad in [
            with(&[(1, &[1])]),
            with(&[(0, &[2])]),
            with(&[(0, &[1, 1])]),
            with(&[(0, &[])]),
        ] {
            assert!(matches!(
                plan(bad),
                Err(CreateTopicError::InvalidAssignment(_))
            ));
        }
    }
}
