//! Finds what a user names, and says what they may have meant instead.

use logd_client::error::{AdminError, MetadataError};
use logd_client::{Admin, TopicInfo};

use crate::failure::Failure;

/// Below it two names have too little in common to be a slip of the finger.
const ALIKE_MIN: f64 = 0.8;

/// A topic that must be there.
pub async fn topic(admin: &Admin, name: &str) -> Result<TopicInfo, Failure> {
    match admin.describe_topic(name).await {
        Err(AdminError::Metadata(error @ MetadataError::UnknownTopic { .. })) => {
            let failure = Failure::from(error);
            Err(failure.hint(topic_hint(admin, name).await))
        }
        result => Ok(result?),
    }
}

/// What to say about a topic that is not there.
pub async fn topic_hint(admin: &Admin, name: &str) -> String {
    // Without a list the general advice is still true.
    let topics = admin.list_topics().await.unwrap_or_default();
    match nearest(name, topics.iter().map(|topic| topic.name.as_str())) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => {
            "`logctl topic list` shows what there is, `logctl topic create` adds to it".to_owned()
        }
    }
}

/// The name most like `name`, if any is.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = known.map(|other| (strsim::jaro_winkler(name, other), other));
    let best = alike.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= ALIKE_MIN).then_some(best.1)
}

/// Whether a topic has a partition.
pub fn partition(topic: &TopicInfo, partition: i32) -> Result<(), Failure> {
    if topic
        .partitions
        .iter()
        .any(|known| known.index == partition)
    {
        return Ok(());
    }
    let topic = topic.name.clone();
    Err(MetadataError::UnknownPartition { topic, partition }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_a_different_word_is_not() {
        let known = ["orders", "payments", "__consumer_offsets"];
        assert_eq!(nearest("oders", known.into_iter()), Some("orders"));
        assert_eq!(nearest("payment", known.into_iter()), Some("payments"));
        assert_eq!(nearest("weather", known.into_iter()), None);
        assert_eq!(nearest("x", std::iter::empty()), None);
    }
}
