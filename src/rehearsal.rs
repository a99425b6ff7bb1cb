//! A takeover that stops before ready: what `ctl handoff` shows.

use crate::manifest::{Check, Entry};
use crate::starting::{PredecessorInfo, Starting};

/// Everything that a successor would get, received and checked. Dropping it ends the rehearsal, and so does the owner
/// after five seconds.
#[derive(Debug)]
pub struct Rehearsal {
    starting: Starting,
}

impl Rehearsal {
    pub(crate) fn new(starting: Starting) -> Rehearsal {
        Rehearsal { starting }
    }

    /// The process that serves.
    #[must_use]
    pub fn predecessor(&self) -> Option<&PredecessorInfo> {
        self.starting.predecessor()
    }

    /// Each entry, with what its checks came to.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, &[Check])> {
        self.starting.entries().map(|entry| (entry, self.starting.checks(&entry.name)))
    }

    /// Whether a successor would take every descriptor.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.entries().all(|(_, checks)| checks.iter().all(|check| check.ok))
    }
}
