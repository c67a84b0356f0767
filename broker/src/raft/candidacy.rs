//! Whether a replica may take part in elections, with its vote or as a candidate.
//!
//! Promise: a disk that may have lost what it acknowledged elects nobody and is elected by nobody. Raft takes
//! for granted that a voter has what it said it had; an older copy of a disk, or a replica that is written
//! again after damage, has not, nor have those that begin anew after a forced recovery: up to the entry by which the
//! survivor is alone, its log names them as voters. Not here: how that is found out (`cluster::vetting`, `cluster::heal`).

use super::exchange::Vetted;
use super::group::RoleCell;
use logd_storage::Log;
use std::sync::Arc;

#[derive(Clone)]
pub(super) struct Candidacy {
    pub vetted: Vetted,
    pub role: Arc<RoleCell>,
    pub log: Log,
}

impl Candidacy {
    /// Why this replica takes no part now.
    pub fn obstacle(&self) -> Option<&'static str> {
        if !(self.vetted)() {
            Some("this broker has just started, and waits for what others know of its disk")
        } else if self.is_whole() {
            None
        } else {
            Some(
                "this replica does not hold yet what it had before it was damaged, or its group was recovered by force",
            )
        }
    }

    fn is_whole(&self) -> bool {
        let last = self.log.bounds().last;
        self.role
            .may_vote(last.map_or((0, 0), |id| (id.term, id.index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logd_storage::vfs::SimFs;
    use logd_storage::{Disk, DiskOptions, LogKey, LogOptions};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_disk_that_may_have_lost_what_it_had_takes_no_part() {
        let (root, options) = (std::path::Path::new("/data"), DiskOptions::default());
        let disk = Disk::open(Arc::new(SimFs::new(1)), root, options, &|_| {}).unwrap();
        let key = LogKey {
            topic: [7; 16],
            partition: 0,
        };
        let vetted = Arc::new(AtomicBool::new(false));
        let looked = vetted.clone();
        let role = Arc::new(RoleCell::new(1, 3, 0, Arc::new(|_| {})));
        let mut candidacy = Candidacy {
            vetted: Arc::new(move || looked.load(Ordering::Relaxed)),
            role,
            log: disk.open_log(key, LogOptions::default()).unwrap(),
        };
        assert!(candidacy.obstacle().unwrap().contains("just started"));
        vetted.store(true, Ordering::Relaxed);
        // It had acknowledged index 3, and the log is empty.
        assert!(candidacy.obstacle().unwrap().contains("damaged"));
        candidacy.role = Arc::new(RoleCell::new(1, 0, 0, Arc::new(|_| {})));
        assert_eq!(candidacy.obstacle(), None);
    }

    #[test]
    fn who_does_not_hold_where_its_generation_began_votes_for_nobody() {
        let role = RoleCell::new(1, 0, 1_007, Arc::new(|_| {}));
        assert!(!role.may_vote((0, 0)), "nothing has come yet");
        assert!(!role.may_vote((7, 500)), "what the survivor had before");
        assert!(role.may_vote((1_007, 501)), "it is alone");
    }
}
