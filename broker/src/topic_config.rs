//! A topic's configuration under Kafka's own names. (Stands in until the table lands.)

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig;

impl TopicConfig {
    pub fn parse(_: &std::collections::BTreeMap<String, String>) -> Result<Self, String> {
        Ok(Self)
    }
    pub fn log_options(&self) -> logd_storage::LogOptions {
        logd_storage::LogOptions::default()
    }
    pub fn retention_policy(&self) -> Option<logd_storage::retention::Policy> {
        None
    }
}
