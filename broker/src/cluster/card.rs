//! The card a broker keeps of its membership: which cluster, which number, and where the others were.
//!
//! It is what a start knows before its metadata log is known to be committed. Written whole, by rename;
//! a card that cannot be read is an error, never an empty one: an empty broker might found a cluster.
//! Not here: anything the metadata log decides.

use crate::raft::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "cluster.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub cluster_id: String,
    pub node_id: i32,
    /// Others' disks, and where they were last.
    pub peers: BTreeMap<ReplicaId, (i32, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum CardError {
    #[error("{path} cannot be {what}: {source}")]
    Io {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
    #[error(
        "{path} does not decode ({why}); it says which cluster this broker belongs to, so nothing is started \
         without it: restore it, or move the data directory away and let the broker join as a new one"
    )]
    Damaged { path: PathBuf, why: String },
}

impl Card {
    /// # Errors
    /// If there is a card that cannot be read.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, CardError> {
        let path = data_dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let what = "read";
                return Err(CardError::Io { path, what, source });
            }
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| CardError::Damaged {
                path,
                why: e.to_string(),
            })
    }

    /// Durable on return.
    ///
    /// # Errors
    /// The old card stays.
    pub fn write(&self, data_dir: &Path) -> Result<(), CardError> {
        let (path, new) = (data_dir.join(FILE), data_dir.join("cluster.json.new"));
        let text = serde_json::to_vec_pretty(self).map_err(|e| CardError::Damaged {
            path: path.clone(),
            why: e.to_string(),
        })?;
        let written = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(data_dir)?.sync_all()
        };
        written().map_err(|source| CardError::Io {
            path: path.clone(),
            what: "written",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_comes_back_as_it_was_and_a_damaged_one_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Card::read(dir.path()).unwrap(), None);
        let card = Card {
            cluster_id: "c".into(),
            node_id: 2,
            peers: BTreeMap::from([(7, (1, "a:1".into()))]),
        };
        card.write(dir.path()).unwrap();
        assert_eq!(Card::read(dir.path()).unwrap(), Some(card));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(
            Card::read(dir.path()),
            Err(CardError::Damaged { .. })
        ));
    }
}
