//! Configurations of topics, brokers and groups: shown and changed.
//!
//! Any broker changes all of them, and shows topics and groups. A broker's settings are its own to show, as only it knows what
//! it was started with; what is set for all brokers, which have no name together, any of them shows.
//! Not here: what configurations there are (`topic_config`, `settings`, `group_config`).

mod alter;
mod describe;
mod list;

pub use alter::{AlterConfigsError, incremental, replace};
pub use describe::{DescribeConfigsError, describe};
pub use list::list;

use crate::topic_config::{Described, Kind, Source};
use logd_proto::messages::create_topics_response::CreatableTopicConfigs;
use logd_proto::{StrBytes, message};

/// Kafka's numbers for what can have a configuration.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const GROUP: i8 = 32;

/// A broker's number; `None` for all of them, which is what has no name.
///
/// # Errors
/// The name, if it is neither.
fn broker_named(name: &str) -> Result<Option<i32>, String> {
    match name.parse::<i32>() {
        _ if name.is_empty() => Ok(None),
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(name.to_owned()),
    }
}

fn source_code(source: Source) -> i8 {
    match source {
        Source::Topic => 1,
        Source::BrokerNow => 2,
        Source::AllBrokersNow => 3,
        Source::Broker => 4,
        Source::Default => 5,
        Source::Group => 8,
    }
}

fn kind_code(kind: Kind) -> i8 {
    match kind {
        Kind::Boolean => 1,
        Kind::String => 2,
        Kind::Int => 3,
        Kind::Short => 4,
        Kind::Long => 5,
        Kind::Double => 6,
        Kind::List => 7,
    }
}

/// A configuration in the answer to whoever creates a topic.
pub(super) fn created(described: &Described) -> CreatableTopicConfigs {
    message!(CreatableTopicConfigs {
        name: described.name.as_str().into(),
        value: Some(StrBytes::from(described.value())),
        read_only: described.read_only,
        config_source: source_code(described.source()),
    })
}
