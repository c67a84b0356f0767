//! Bugs that a simulation can plant, to see that it would find them: none without the feature `mutants`.

#[cfg(feature = "mutants")]
use std::cell::Cell;

#[cfg(feature = "mutants")]
thread_local! {
    static RESTORE_LEADERS: Cell<bool> = const { Cell::new(false) };
}

/// From now on, groups opened on this thread let a restarted leader go on in its old term.
#[cfg(feature = "mutants")]
pub fn restore_leaders(on: bool) {
    RESTORE_LEADERS.set(on);
}

/// A restarted leader that went on in its old term could give an index two entries (raft.md).
pub(super) fn restores_leaders() -> bool {
    #[cfg(feature = "mutants")]
    return RESTORE_LEADERS.get();
    #[cfg(not(feature = "mutants"))]
    false
}
