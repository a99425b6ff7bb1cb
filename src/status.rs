//! What an owner tells about itself: the answer to `ctl status`, on the wire and as JSON.

use serde::{Deserialize, Serialize};

use crate::error::Who;
use crate::hold::Hold;
use crate::words::words;

words! {
    /// Where a process is in its life.
    #[derive(Default)]
    pub enum Phase {
        /// It owns and is not ready yet: the first of its family, or one whose predecessor died during the warm-up.
        Starting = "starting",
        /// It serves.
        #[default]
        Serving = "serving",
        /// It serves, and a successor is at it.
        HandingOver = "handing-over",
        /// A successor owns and is on probation.
        StandingBy = "standing-by",
        /// A successor owns; what was in flight is being finished.
        Draining = "draining",
        /// It owns and keeps the listeners, and accepts nothing.
        Holding = "holding",
        /// It was asked to leave, without a successor.
        Stopping = "stopping",
    }
}

words! {
    /// How the process ended from which this one has taken the service over.
    pub enum PredecessorEnd {
        /// There was none: this process was the first.
        Absent = "absent",
        /// It had nothing in flight any more, and left.
        Clean = "clean",
        /// Its drain was ended with something still in flight: by its drain deadline, or by an operator.
        Forced = "forced",
        /// It ended without a last word: by a signal, by a crash, or by an exit in the middle of its drain.
        Killed = "killed",
    }
}

/// A takeover that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TakeoverStatus {
    /// Who takes over.
    pub who: Who,
    /// How far it is: `offered`, `sending`, `warming-up`, `releasing`, `released`, `silent`.
    pub step: String,
    /// What the successor last said of its warm-up.
    #[serde(default)]
    pub progress: String,
    /// For how long it has been going on, in milliseconds.
    #[serde(default)]
    pub since_ms: u64,
    /// For how long it has been at this step, in milliseconds.
    #[serde(default)]
    pub step_since_ms: u64,
}

/// A predecessor that still drains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DrainStatus {
    /// Who drains.
    pub who: Who,
    /// The generation that it owned, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How much it still has in flight, as it last said.
    #[serde(default)]
    pub in_flight: Option<u64>,
    /// Until its drain deadline, in milliseconds, as it last said.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// For how long the oldest of what it has in flight has been going on, in milliseconds, as it last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
}

/// A probation that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProbationStatus {
    /// The other side: who stands by, in the status of an owner; who is on probation, in that of the process that stands
    /// by for it.
    pub who: Who,
    /// For how long it has been going on, in milliseconds.
    #[serde(default)]
    pub since_ms: u64,
    /// How long it will go on yet, in milliseconds; then it is confirmed.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// The time has passed, the one on probation has said nothing, and it still holds the lock.
    #[serde(default)]
    pub overdue: bool,
}

/// One listener of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Its kind: `tcp-listener`, `unix-listener`, ...
    pub kind: String,
    /// Where it listens or is bound.
    #[serde(default)]
    pub address: String,
    /// How many connections wait to be accepted; `None` where the kernel does not tell.
    #[serde(default)]
    pub accept_queue: Option<u32>,
    /// How many may wait.
    #[serde(default)]
    pub accept_queue_limit: Option<u32>,
    /// The cookie of the network namespace that it lives in (`SO_NETNS_COOKIE`), where the owner lives in another: it
    /// goes deaf, without any error, when that one ends.
    #[serde(default)]
    pub foreign_network_namespace: Option<u64>,
}

/// What a process tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The generation of the answering process: grows by one at each change of owner.
    pub generation: u64,
    /// The answering process, in its own pid namespace.
    pub pid: u32,
    /// What the application calls its version.
    #[serde(default)]
    pub app_version: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when it has been in that phase, Unix time in milliseconds. A takeover that came to nothing does not count: who
    /// serves on has served all the time.
    #[serde(default)]
    pub since: u64,
    /// How many leases are held.
    #[serde(default)]
    pub in_flight: u64,
    /// Until the drain deadline, in milliseconds, while it drains.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// The takeover that is under way.
    #[serde(default)]
    pub takeover: Option<TakeoverStatus>,
    /// The predecessor, while it still drains.
    #[serde(default)]
    pub predecessor: Option<DrainStatus>,
    /// All processes that drain and are known to this one: its predecessor first, then those before it. 16 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drainers: Vec<DrainStatus>,
    /// The probation that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation: Option<ProbationStatus>,
    /// Why takeovers are refused for now, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// The processes that keep the listeners beside the owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keepers: Vec<Who>,
    /// How many listeners follow in frames of their own.
    #[serde(default)]
    pub listener_count: u32,
    /// All entries. On the wire these come apart; a client gets them whole.
    #[serde(default, skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerStatus>,
}
