//! Small notes about single replicas beside their logs: one JSON file each, in a folder per kind.
//!
//! Promise: a note that was written is there after a power loss, whole or as it was before.
//! Not here: what a note says (`heal`, `generations`).

use logd_storage::LogKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a kind of notes has the one about a replica.
pub(super) fn path_of(data_dir: &Path, folder: &str, key: LogKey) -> PathBuf {
    let topic: String = key.topic.iter().map(|b| format!("{b:02x}")).collect();
    data_dir
        .join(folder)
        .join(format!("{topic}-{}.json", key.partition))
}

/// # Errors
/// If there is one and it cannot be read.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(io::Error::from),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Durable on return.
///
/// # Errors
/// If it cannot be written: then the one before is still there.
pub(super) fn write(path: &Path, note: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.exists() {
        fs::create_dir_all(folder)?;
        // The folder's own name is in its parent.
        File::open(folder.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    }
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(note)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

/// True if there was one.
///
/// # Errors
/// If there is one and it stays.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
