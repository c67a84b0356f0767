//! The card a broker keeps of its membership: which cluster, which number, and where the others were.
//!
//! It is what a start knows before its metadata log is known to be committed. Written whole, by rename;
//! a card that cannot be read is an error, never an empty one: an empty broker might found a cluster.
//! Invariant: once the metadata group was recovered by force the card is one that builds from before that was
//! possible do not read. They would take part with what is left of the group before, and forget the difference.
//! Not here: anything the metadata log decides.

use super::lineage::Lineage;
use crate::raft::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Of the metadata log beside it.
    #[serde(default, skip_serializing_if = "Lineage::is_first")]
    pub lineage: Lineage,
    /// What has begun with the metadata log and is to be done again, as nobody knows how far it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Unfinished>,
}

/// What a crash may have interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfinished {
    /// This disk becomes the metadata group's only voter. Who voted before: of both halves while they change.
    Recovery { voters: Vec<BTreeSet<ReplicaId>> },
    /// The metadata log is of an earlier lineage than the card, and goes to the trash.
    Adoption,
}

/// A card that older builds do not read, for the lack of a cluster's id.
#[derive(Serialize, Deserialize)]
struct Recovered {
    recovered: Card,
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
        decode(&text).map(Some).map_err(|e| CardError::Damaged {
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
        let text = self.encode().map_err(|e| CardError::Damaged {
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

    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        if self.lineage.is_first() && self.unfinished.is_none() {
            return serde_json::to_vec_pretty(self);
        }
        serde_json::to_vec_pretty(&Recovered {
            recovered: self.clone(),
        })
    }
}

fn decode(text: &[u8]) -> serde_json::Result<Card> {
    let card: serde_json::Value = serde_json::from_slice(text)?;
    if card.get("recovered").is_some() {
        return serde_json::from_value(card).map(|r: Recovered| r.recovered);
    }
    serde_json::from_value(card)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            cluster_id: "c".into(),
            node_id: 2,
            peers: BTreeMap::from([(7, (1, "a:1".into()))]),
            lineage: Lineage::default(),
            unfinished: None,
        }
    }

    #[test]
    fn a_card_comes_back_as_it_was_and_a_damaged_one_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Card::read(dir.path()).unwrap(), None);
        let recovered = Lineage {
            generation: 1,
            survivor: 7,
            term: 1_003,
        };
        let voters = vec![BTreeSet::from([7, 8, 9])];
        let begun = Some(Unfinished::Recovery { voters });
        for (lineage, unfinished) in [
            (Lineage::default(), None),
            (Lineage::default(), begun),
            (recovered, Some(Unfinished::Adoption)),
            (recovered, None),
        ] {
            let card = Card {
                lineage,
                unfinished,
                ..card()
            };
            card.write(dir.path()).unwrap();
            assert_eq!(Card::read(dir.path()).unwrap(), Some(card));
        }
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(
            Card::read(dir.path()),
            Err(CardError::Damaged { .. })
        ));
    }

    /// As builds knew it that could not recover metadata.
    #[derive(Debug, Deserialize)]
    struct Before {
        cluster_id: String,
    }

    #[test]
    fn an_older_build_reads_a_card_only_of_metadata_that_was_never_recovered() {
        let written = "{\"cluster_id\": \"c\", \"node_id\": 2, \"peers\": {\"7\": [1, \"a:1\"]}}";
        assert_eq!(decode(written.as_bytes()).unwrap(), card());
        let read = |card: &Card| serde_json::from_slice::<Before>(&card.encode().unwrap());
        assert_eq!(read(&card()).unwrap().cluster_id, "c");
        let lineage = Lineage {
            generation: 1,
            ..Lineage::default()
        };
        let recovered = Card { lineage, ..card() };
        assert!(read(&recovered).is_err());
        let unfinished = Some(Unfinished::Recovery { voters: Vec::new() });
        let begun = Card {
            unfinished,
            ..card()
        };
        assert!(read(&begun).is_err());
    }
}
