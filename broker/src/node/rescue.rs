//! `logd recover-metadata`: opens the disk of a broker that is stopped, and has its metadata go on.
//!
//! Not here: whether it may be done, and what is done (`cluster`).

use super::disk_options;
use crate::cluster::{Card, Lineage, Rescue, RescueError};
use crate::config::Config;
use logd_storage::vfs::RealFs;
use logd_storage::{CheckpointError, Disk, OpenError};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("{0} is in use: its broker is still running. Stop it first")]
    Running(PathBuf),
    #[error("the data directory {path} cannot be used: {source}")]
    Disk {
        path: PathBuf,
        source: Box<OpenError>,
    },
    #[error("the disk was not closed in order: {0}")]
    Unclosed(#[from] CheckpointError),
    #[error("opening the disk ended badly: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Rescue(#[from] RescueError),
}

/// Looks at what the disk has, tells it, and carries it out if that is accepted: then it comes back with what the
/// metadata is from now on.
///
/// # Errors
/// If the broker runs, there is no metadata here that could go on, or it would be refused.
pub async fn recover_metadata(
    config: &Config,
    accepted: bool,
    tell: impl FnOnce(&str),
) -> Result<Option<Lineage>, RecoverError> {
    let data_dir = config.node.data_dir.clone();
    // Before the disk: a directory that is none of a broker's stays as it is.
    let card = Card::read(&data_dir).map_err(RescueError::from)?;
    if card.is_none() {
        return Err(RescueError::NoCard(data_dir.display().to_string()).into());
    }
    let (path, options) = (data_dir.clone(), disk_options(&config.storage));
    let opening =
        tokio::task::spawn_blocking(move || Disk::open(Arc::new(RealFs), &path, options, &|_| {}));
    let disk = opening.await?.map_err(|source| {
        let path = data_dir.clone();
        match source {
            OpenError::Locked { .. } => RecoverError::Running(path),
            other => RecoverError::Disk {
                path,
                source: Box::new(other),
            },
        }
    })?;
    let rescue = Rescue::plan(&data_dir, &disk, &config.node.seeds).await?;
    tell(&rescue.show().to_string());
    let done = match (accepted, rescue.show().refusal()) {
        (false, Some(refusal)) => Err(RescueError::Refused(refusal.clone())),
        (false, None) => Ok(None),
        (true, _) => rescue.carry_out(&data_dir).await.map(Some),
    };
    let closed = tokio::task::spawn_blocking(move || disk.close()).await?;
    let done = done?;
    closed?;
    Ok(done)
}
