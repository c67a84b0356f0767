//! The one table from our errors to Kafka's codes. Every match is exhaustive: a new error has to say here
//! what a client is told.

use super::configs::{AlterConfigsError, DescribeConfigsError};
use crate::cluster::{
    AlterBrokerError, AlterGroupError, AlterTopicError, CreatePartitionsError, CreateTopicError,
    DeleteTopicError, DutyError, ElectError, MoveError, MoveRefusal, UnregisterError,
};
use crate::metrics;
use crate::partition::{AppendError, DeleteRecordsError, ReadError};
use logd_proto::ErrorCode;

/// A code as it goes into an answer: counted, if it is an error.
pub fn told(code: ErrorCode) -> i16 {
    if !code.is_none() {
        metrics::error_answered(code);
    }
    code.code()
}

pub fn append(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::NotLeader { .. } => ErrorCode::NotLeaderOrFollower,
        AppendError::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
        AppendError::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
        // Of the codes by which clients send a batch again, the one that says that it is not in the log.
        AppendError::Behind { .. } => ErrorCode::NotEnoughReplicas,
        // Retriable, and what Kafka's own log layer answers when a disk refuses a write.
        AppendError::DiskFull | AppendError::Stopped(_) => ErrorCode::KafkaStorageError,
        AppendError::Overloaded | AppendError::Unknown => ErrorCode::RequestTimedOut,
    }
}

pub fn read(error: &ReadError) -> ErrorCode {
    match error {
        ReadError::NotLeader { .. } => ErrorCode::NotLeaderOrFollower,
        ReadError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::FencedLeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
        ReadError::UnknownLeaderEpoch { .. } => ErrorCode::UnknownLeaderEpoch,
        ReadError::Storage(_) => ErrorCode::KafkaStorageError,
    }
}

pub fn create_topic(error: &CreateTopicError) -> ErrorCode {
    match error {
        CreateTopicError::Exists(_) => ErrorCode::TopicAlreadyExists,
        CreateTopicError::InvalidName(_) => ErrorCode::InvalidTopic,
        CreateTopicError::InvalidPartitions(_) => ErrorCode::InvalidPartitions,
        CreateTopicError::InvalidReplication(_) => ErrorCode::InvalidReplicationFactor,
        CreateTopicError::InvalidAssignment(_) => ErrorCode::InvalidReplicaAssignment,
        CreateTopicError::InvalidConfig(_) => ErrorCode::InvalidConfig,
        CreateTopicError::InvalidRequest(_) => ErrorCode::InvalidRequest,
        CreateTopicError::TooMuchAtOnce(_) => ErrorCode::PolicyViolation,
        CreateTopicError::AboveLevel(_) => ErrorCode::UnsupportedVersion,
        CreateTopicError::TimedOut => ErrorCode::RequestTimedOut,
        CreateTopicError::Unavailable(_) => ErrorCode::NotController,
    }
}

pub fn delete_topic(error: &DeleteTopicError) -> ErrorCode {
    match error {
        DeleteTopicError::Unknown => ErrorCode::UnknownTopicOrPartition,
        DeleteTopicError::Unavailable(_) => ErrorCode::NotController,
    }
}

pub fn reassign(error: &MoveError) -> ErrorCode {
    match error {
        MoveError::Refused(MoveRefusal::UnknownPartition) => ErrorCode::UnknownTopicOrPartition,
        MoveError::Refused(MoveRefusal::NotMoving) => ErrorCode::NoReassignmentInProgress,
        MoveError::Refused(MoveRefusal::Invalid(_)) => ErrorCode::InvalidReplicaAssignment,
        MoveError::OtherWidth { .. } => ErrorCode::InvalidReplicationFactor,
        MoveError::Leaderless => ErrorCode::LeaderNotAvailable,
        MoveError::Unavailable(_) => ErrorCode::NotController,
    }
}

pub fn elect(error: &ElectError) -> ErrorCode {
    match error {
        ElectError::UnknownPartition => ErrorCode::UnknownTopicOrPartition,
        ElectError::NotNeeded => ErrorCode::ElectionNotNeeded,
        ElectError::NoLeader | ElectError::Away { .. } | ElectError::NotTaken(_) => {
            ErrorCode::PreferredLeaderNotAvailable
        }
        ElectError::Unclean => ErrorCode::EligibleLeadersNotAvailable,
        ElectError::UnknownType(_) => ErrorCode::InvalidRequest,
    }
}

pub fn describe_configs(error: &DescribeConfigsError) -> ErrorCode {
    match error {
        DescribeConfigsError::UnknownTopic => ErrorCode::UnknownTopicOrPartition,
        DescribeConfigsError::InvalidTopic => ErrorCode::InvalidTopic,
        DescribeConfigsError::OtherBroker { .. }
        | DescribeConfigsError::UnknownType(_)
        | DescribeConfigsError::NoGroup => ErrorCode::InvalidRequest,
    }
}

/// Where a topic's configuration is invalid, a broker's makes the request invalid, in Kafka.
fn alter_brokers(error: &AlterBrokerError) -> ErrorCode {
    match error {
        AlterBrokerError::UnknownBroker(_)
        | AlterBrokerError::Setting(_)
        | AlterBrokerError::OfAllOnly
        | AlterBrokerError::TopicCannot { .. } => ErrorCode::InvalidRequest,
        AlterBrokerError::AboveLevel(_) => ErrorCode::UnsupportedVersion,
        AlterBrokerError::Unavailable(_) => ErrorCode::NotController,
    }
}

fn alter_group(error: &AlterGroupError) -> ErrorCode {
    match error {
        AlterGroupError::NoName => ErrorCode::InvalidRequest,
        AlterGroupError::Config(_) => ErrorCode::InvalidConfig,
        AlterGroupError::NameTooLong(_) | AlterGroupError::TooManyGroups => {
            ErrorCode::PolicyViolation
        }
        AlterGroupError::AboveLevel(_) => ErrorCode::UnsupportedVersion,
        AlterGroupError::Unavailable(_) => ErrorCode::NotController,
    }
}

pub fn alter_configs(error: &AlterConfigsError) -> ErrorCode {
    match error {
        AlterConfigsError::Topic(AlterTopicError::UnknownTopic) => {
            ErrorCode::UnknownTopicOrPartition
        }
        AlterConfigsError::Topic(
            AlterTopicError::InvalidConfig(_) | AlterTopicError::NotAList(_),
        ) => ErrorCode::InvalidConfig,
        AlterConfigsError::Topic(AlterTopicError::AboveLevel(_)) => ErrorCode::UnsupportedVersion,
        AlterConfigsError::Topic(AlterTopicError::Unavailable(_)) => ErrorCode::NotController,
        AlterConfigsError::Twice
        | AlterConfigsError::KeyTwice(_)
        | AlterConfigsError::NoValue(_)
        | AlterConfigsError::UnknownOperation(_)
        | AlterConfigsError::UnknownType(_)
        | AlterConfigsError::NoBroker(_) => ErrorCode::InvalidRequest,
        AlterConfigsError::Broker(error) => alter_brokers(error),
        AlterConfigsError::Group(error) => alter_group(error),
    }
}

pub fn create_partitions(error: &CreatePartitionsError) -> ErrorCode {
    match error {
        CreatePartitionsError::UnknownTopic => ErrorCode::UnknownTopicOrPartition,
        CreatePartitionsError::InvalidPartitions(_) => ErrorCode::InvalidPartitions,
        CreatePartitionsError::InvalidAssignment(_) => ErrorCode::InvalidReplicaAssignment,
        CreatePartitionsError::InvalidReplication(_) => ErrorCode::InvalidReplicationFactor,
        CreatePartitionsError::Twice(_) => ErrorCode::InvalidRequest,
        CreatePartitionsError::TooMuchAtOnce(_) => ErrorCode::PolicyViolation,
        CreatePartitionsError::TimedOut => ErrorCode::RequestTimedOut,
        CreatePartitionsError::Unavailable(_) => ErrorCode::NotController,
    }
}

pub fn delete_records(error: &DeleteRecordsError) -> ErrorCode {
    match error {
        DeleteRecordsError::NotLeader { .. } => ErrorCode::NotLeaderOrFollower,
        DeleteRecordsError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        DeleteRecordsError::KeptByPolicy => ErrorCode::PolicyViolation,
        DeleteRecordsError::Unknown => ErrorCode::RequestTimedOut,
        DeleteRecordsError::Stopped(_) => ErrorCode::KafkaStorageError,
    }
}

pub fn unregister(error: &UnregisterError) -> ErrorCode {
    match error {
        UnregisterError::Unknown(_) | UnregisterError::Duty(DutyError::Unknown(_)) => {
            ErrorCode::BrokerIdNotRegistered
        }
        UnregisterError::StillNeeded { .. }
        | UnregisterError::Duty(DutyError::NoRoom { .. } | DutyError::Last(_)) => {
            ErrorCode::PolicyViolation
        }
        UnregisterError::Duty(DutyError::Unavailable(_)) => ErrorCode::NotController,
        UnregisterError::NotYet(_) => ErrorCode::RequestTimedOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{AboveLevel, BUILD, FeatureLevel};
    use std::collections::BTreeMap;

    #[test]
    fn what_some_broker_would_not_understand_is_a_version_that_is_not_supported() {
        let why = || AboveLevel {
            needed: BUILD,
            level: FeatureLevel::FIRST,
            older: BTreeMap::from([(2, FeatureLevel::FIRST)]),
        };
        let told = [
            create_topic(&why().into()),
            alter_configs(&AlterConfigsError::Topic(why().into())),
            alter_configs(&AlterConfigsError::Broker(why().into())),
            alter_configs(&AlterConfigsError::Group(why().into())),
        ];
        assert_eq!(told, [ErrorCode::UnsupportedVersion; 4]);
    }
}
