//! A hold: for the time of an incident, the owner refuses every takeover with a reason.

use serde::{Deserialize, Serialize};

/// Why takeovers are refused for now, until when, and who said so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hold {
    /// For people; 1,024 bytes at most, without control characters.
    #[serde(default)]
    pub reason: String,
    /// How long it still lasts, in milliseconds; `None`: until it is lifted. It counts in time that passes, so that a
    /// clock that is set does not move its end.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// Since when, Unix time in milliseconds.
    #[serde(default)]
    pub since: u64,
    /// Who set it.
    #[serde(default)]
    pub by: SetBy,
    /// It was set before the service died, and whoever answers only keeps the listeners: a start is no takeover then, and
    /// is let in. With the next owner it holds again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
}

/// The process that set a hold, as the kernel told its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SetBy {
    /// Its pid in the pid namespace of that owner; 0 where that cannot see it. It is gone by now, most likely.
    #[serde(default)]
    pub pid: u32,
    /// Its effective user.
    #[serde(default)]
    pub uid: u32,
}
