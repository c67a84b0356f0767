//! What went wrong, as a user reads it and as a script tests it.
//!
//! Promise: one line that says what and where, with Kafka's code kept by name and number; a hint that
//! says what to do where we know; one exit code per kind of failure.
//!
//! Not here: printing ([`crate::output`]).

use std::io;

use logd_client::ErrorCode;
use logd_client::error::{AdminError, ConsumeError, MetadataError, RequestError, SendError};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// Failed, or a part of it did.
    Failed,
    Usage,
    NotFound,
    /// Nobody answered, or not in time.
    Unreachable,
    /// What was checked is damaged.
    CheckFailed,
    /// SIGINT.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Unreachable => 5,
            Exit::CheckFailed => 6,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }
}

/// Why a command, or one item of it, did not do what it should.
#[derive(Clone, Debug)]
pub enum Failure {
    Told {
        exit: Exit,
        message: String,
        hint: Option<String>,
        code: Option<ErrorCode>,
    },
    /// Whoever read our output has seen enough.
    ClosedPipe,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure::Told {
            exit,
            message: message.into(),
            hint: None,
            code: None,
        }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(Exit::NotFound, message)
    }

    /// What to do about it. Replaces an earlier hint: the caller knows more.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Failure {
        if let Failure::Told { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    pub fn exit(&self) -> Exit {
        match self {
            Failure::Told { exit, .. } => *exit,
            Failure::ClosedPipe => Exit::Done,
        }
    }

    /// Something on this machine, such as a file.
    pub fn io(what: &str, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            io::ErrorKind::NotFound => Failure::not_found(format!("{what}: {error}")),
            _ => Failure::new(Exit::Failed, format!("{what}: {error}")),
        }
    }

    fn of(message: String, code: Option<ErrorCode>, request: Option<&RequestError>) -> Failure {
        let unreachable = request.is_some_and(RequestError::is_unreachable);
        let exit = match code {
            _ if unreachable => Exit::Unreachable,
            Some(code) => exit_of(code),
            None => Exit::Failed,
        };
        let hint = match request {
            Some(RequestError::Closed { .. }) => {
                Some("does a broker listen there with Kafka's protocol, without TLS?")
            }
            Some(RequestError::Timeout { .. }) => Some("--timeout waits longer"),
            Some(_) if unreachable => {
                Some("is the broker up? --brokers or LOGCTL_BROKERS says where it is")
            }
            _ => code.and_then(hint_of),
        };
        Failure::Told {
            exit,
            message,
            hint: hint.map(str::to_owned),
            code,
        }
    }
}

fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::UnknownTopicOrPartition | ErrorCode::GroupIdNotFound => Exit::NotFound,
        ErrorCode::RequestTimedOut => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

fn hint_of(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::TopicAlreadyExists => "--if-not-exists is content with a topic that is there",
        ErrorCode::InvalidReplicationFactor => "a topic has at most one replica per broker",
        ErrorCode::InvalidTopic => {
            "a name has up to 249 letters, digits, dots, underscores and hyphens"
        }
        ErrorCode::OffsetOutOfRange => {
            "`logctl topic describe` shows where partitions begin and end"
        }
        ErrorCode::RequestTimedOut => "--timeout waits longer",
        _ => return None,
    })
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        Failure::of(error.to_string(), error.kafka_code(), Some(&error))
    }
}

impl From<MetadataError> for Failure {
    fn from(error: MetadataError) -> Failure {
        let request = match &error {
            MetadataError::Request(request) => Some(request),
            _ => None,
        };
        let failure = Failure::of(error.to_string(), error.kafka_code(), request);
        match error {
            MetadataError::UnknownPartition { .. } => Failure::not_found(error.to_string())
                .hint("`logctl topic describe` lists a topic's partitions"),
            _ => failure,
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Failure {
        match error {
            AdminError::Request(error) => error.into(),
            AdminError::Metadata(error) => error.into(),
            _ => Failure::of(error.to_string(), error.kafka_code(), None),
        }
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Failure {
        match error {
            ConsumeError::Request(error) => error.into(),
            ConsumeError::Metadata(error) => error.into(),
            _ => Failure::of(error.to_string(), error.kafka_code(), None),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Failure {
        match error {
            SendError::Metadata(error) => error.into(),
            _ => Failure::of(error.to_string(), error.kafka_code(), None),
        }
    }
}

/// The way out of a command that treats several names.
#[derive(Debug, Default)]
pub struct Tally {
    done: usize,
    failed: Vec<Exit>,
}

impl Tally {
    pub fn done(&mut self) {
        self.done += 1;
    }

    pub fn failed(&mut self, exit: Exit) {
        self.failed.push(exit);
    }

    /// The kind of failure if there was only one, plain failure otherwise.
    pub fn exit(&self) -> Exit {
        match self.failed.split_first() {
            None => Exit::Done,
            Some((first, rest)) if self.done == 0 && rest.iter().all(|exit| exit == first) => {
                *first
            }
            Some(_) => Exit::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_told_apart_from_a_refusal() {
        let tried = vec!["a".to_owned()];
        let failure = Failure::from(RequestError::NoBroker { tried });
        assert_eq!(failure.exit(), Exit::Unreachable);
        let (subject, code) = ("topic \"t\"".to_owned(), ErrorCode::TopicAlreadyExists);
        let failure = Failure::from(AdminError::Refused {
            subject,
            code,
            message: None,
        });
        assert_eq!(failure.exit(), Exit::Failed);
        let Failure::Told { message, hint, .. } = failure else {
            panic!("it is told");
        };
        assert_eq!(message, "topic \"t\": TOPIC_ALREADY_EXISTS (36)");
        assert!(hint.unwrap().contains("--if-not-exists"));
    }

    #[test]
    fn several_names_end_with_what_they_have_in_common() {
        let mut tally = Tally::default();
        assert_eq!(tally.exit(), Exit::Done);
        tally.failed(Exit::NotFound);
        tally.failed(Exit::NotFound);
        assert_eq!(tally.exit(), Exit::NotFound);
        tally.done();
        assert_eq!(tally.exit(), Exit::Failed, "partly failed");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = Failure::io("stdout", &io::ErrorKind::BrokenPipe.into());
        assert_eq!(gone.exit(), Exit::Done);
    }
}
