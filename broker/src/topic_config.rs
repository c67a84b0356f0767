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
impl TopicConfig {
    pub fn max_message_bytes(&self) -> usize {
        1_048_588
    }
    pub fn timestamp_max(&self, now: i64) -> i64 {
        now + 3_600_000
    }
    pub fn timestamp_min(&self, _now: i64) -> i64 {
        i64::MIN
    }
    pub fn refuses_records(&self, _: &bytes::Bytes) -> Option<&'static str> {
        None
    }
    pub fn log_append_time(&self) -> bool {
        false
    }
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
