//! topic_config
