//! The one table from the cluster's errors to gRPC statuses.

use crate::cluster::{
    DutyError, ElectError, MoveError, MoveRefusal, RecoverError, RecoveryRefusal,
};
use tonic::{Code, Status};

pub fn duty(error: &DutyError) -> Status {
    let code = match error {
        DutyError::Unknown(_) => Code::NotFound,
        DutyError::NoRoom { .. } | DutyError::Last(_) => Code::FailedPrecondition,
        DutyError::Unavailable(_) => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

pub fn elect(error: &ElectError) -> Status {
    let code = match error {
        ElectError::UnknownPartition => Code::NotFound,
        ElectError::NotNeeded => Code::AlreadyExists,
        ElectError::NoLeader | ElectError::Away { .. } | ElectError::NotTaken(_) => {
            Code::Unavailable
        }
        ElectError::Unclean | ElectError::UnknownType(_) => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}

pub fn moved(error: &MoveError) -> Status {
    let code = match error {
        MoveError::Refused(MoveRefusal::UnknownPartition) => Code::NotFound,
        MoveError::Refused(MoveRefusal::NotMoving) => Code::FailedPrecondition,
        MoveError::Refused(MoveRefusal::Invalid(_)) | MoveError::OtherWidth { .. } => {
            Code::InvalidArgument
        }
        MoveError::Leaderless | MoveError::Unavailable(_) => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

pub fn recovery(refusal: &RecoveryRefusal) -> Status {
    let code = match refusal {
        RecoveryRefusal::NoReplica(_) => Code::NotFound,
        RecoveryRefusal::Silent(_) => Code::Unavailable,
        RecoveryRefusal::Led(_)
        | RecoveryRefusal::Majority(_)
        | RecoveryRefusal::Damaged { .. }
        | RecoveryRefusal::NothingLeft => Code::FailedPrecondition,
    };
    Status::new(code, refusal.to_string())
}

pub fn recovered(error: &RecoverError) -> Status {
    let code = match error {
        RecoverError::Meanwhile => Code::Aborted,
        RecoverError::NoMetadata { .. } | RecoverError::Unavailable(_) => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// Why a move was not begun; empty if it was.
pub fn refusal(result: &Result<(), MoveError>) -> String {
    let refused = result.as_ref().err();
    refused.map(ToString::to_string).unwrap_or_default()
}
