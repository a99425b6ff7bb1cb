#![doc = include_str!("wire.md")]

pub(crate) mod holder;
pub(crate) mod message;
#[cfg(test)]
#[path = "../../integration/model/mod.rs"]
mod model;
mod patience;
pub(crate) mod predecessor;
pub(crate) mod starter;
pub(crate) mod successor;
#[cfg(test)]
mod tests;
mod transfer;

use std::time::Duration;

/// How many descriptors of the family itself come before the entries of a takeover: the predecessor's pidfd, the lease,
/// the lock description and the control listener, in this order.
pub(crate) const FAMILY_SLOTS: u32 = 4;

/// A deadline that a machine asks for by name. The driver holds the clock; the machines have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    /// The next message of the handshake.
    Handshake,
    /// All of them, from the offer to the last descriptor.
    Delivery,
    /// The longest silence of a warm-up.
    Stall,
    /// The whole warm-up.
    WarmUp,
    /// The application's answer to `Release`, or the predecessor's to `Ready`.
    Release,
    /// The commit after `Released`.
    Commit,
    /// The end of a probation, on either side.
    Probation,
    /// The next look at the lock: no kernel event exists for it.
    Probe,
    /// A whole rehearsal.
    Rehearsal,
    /// How long nobody has to own before a holder does.
    Grace,
    /// The next attempt of a starter.
    Retry,
    /// The whole of a start.
    Start,
    /// How long a family may be without an owner and silent before it is called orphaned.
    Orphan,
}

/// How long each side waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Deadlines {
    pub(crate) handshake: Duration,
    pub(crate) stall: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) release: Duration,
    pub(crate) commit: Duration,
    pub(crate) probe: Duration,
    pub(crate) rehearsal: Duration,
    pub(crate) start: Duration,
    pub(crate) orphan: Duration,
    pub(crate) grace: Duration,
}

impl Deadlines {
    /// How long a start waits for an answer: no longer than all of it may take.
    pub(crate) fn answer(&self) -> Duration {
        self.handshake.min(self.start)
    }
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            handshake: Duration::from_secs(5),
            stall: Duration::from_secs(60),
            warm_up: Duration::from_secs(600),
            release: Duration::from_secs(10),
            commit: Duration::from_secs(2),
            probe: Duration::from_secs(1),
            rehearsal: Duration::from_secs(5),
            start: Duration::from_secs(60),
            orphan: Duration::from_secs(5),
            // Longer than those take who are to win: a successor that has everything, and whoever drains and looks each
            // second. Twice as long is still shorter than the handshake of a starter that waits for an answer.
            grace: Duration::from_secs(2),
        }
    }
}

/// The longest release that an offer may announce: whoever announces more is waited for no longer.
pub(crate) const MAX_RELEASE: Duration = Duration::from_secs(600);
/// The longest commit that an offer may announce.
pub(crate) const MAX_COMMIT: Duration = Duration::from_secs(60);

/// How much longer a reader waits than its sender may take, so that it never gives up on an answer on its way.
pub(crate) const READER_GRACE: Duration = Duration::from_secs(5);

/// How long entries and descriptors may be under way in all. A million of them take a part of that; who says a little just
/// before each deadline does not keep the others waiting for longer.
pub(crate) const DELIVERY: Duration = Duration::from_secs(60);

/// The longest probation that an owner grants.
pub(crate) const MAX_PROBATION: Duration = Duration::from_secs(24 * 60 * 60);
