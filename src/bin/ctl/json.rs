//! What `--json` prints. These keys are a contract: scripts rely on them.

use std::time::Duration;

use heirloom::{
    Check, DrainStatus, Entry, Hold, ListenerStatus, PredecessorInfo, ProbationStatus, Side, Status, TakeoverStatus,
    Who,
};
use serde_json::{Value, json};

use crate::time;

/// The whole of a status.
pub(crate) fn status(status: &Status) -> Value {
    json!({
        "generation": status.generation,
        "pid": pid(status.pid),
        "app_version": status.app_version,
        "phase": status.phase.as_str(),
        "since": time::timestamp(status.since),
        "in_flight": status.in_flight,
        "left": milliseconds(status.left_ms),
        "takeover": status.takeover.as_ref().map(takeover),
        "predecessor": status.predecessor.as_ref().map(drain),
        "drainers": status.drainers.iter().map(drain).collect::<Vec<_>>(),
        "probation": status.probation.as_ref().map(probation),
        "hold": status.hold.as_ref().map(hold),
        "keepers": status.keepers.iter().map(keeper).collect::<Vec<_>>(),
        "listeners": status.listeners.iter().map(listener).collect::<Vec<_>>(),
    })
}

/// A process that owns or owned.
pub(crate) fn owner(status: &Status) -> Value {
    json!({"generation": status.generation, "pid": pid(status.pid), "app_version": status.app_version})
}

pub(crate) fn predecessor(predecessor: &PredecessorInfo) -> Value {
    json!({
        "pid": pid(predecessor.pid),
        "app_version": predecessor.app_version,
        "generation": predecessor.generation,
    })
}

/// One entry of a manifest, as far as everybody shows it.
pub(crate) fn entry(entry: &Entry) -> Value {
    json!({"name": entry.name, "kind": entry.kind.as_str(), "address": address(entry)})
}

/// One entry, and what was found when it was received.
pub(crate) fn checked(entry: &Entry, checks: &[Check]) -> Value {
    let mut object = self::entry(entry);
    object["checks"] = checks
        .iter()
        .map(|check| json!({"check": check.check, "ok": check.ok, "expected": check.expected, "found": check.found}))
        .collect();
    object
}

fn keeper(who: &Who) -> Value {
    json!({"pid": pid(who.pid), "app_version": who.app_version})
}

/// A process of a history.
pub(crate) fn side(side: &Side) -> Value {
    json!({"generation": side.generation, "pid": pid(side.pid), "app_version": side.app_version})
}

fn takeover(takeover: &TakeoverStatus) -> Value {
    json!({
        "pid": pid(takeover.who.pid),
        "app_version": takeover.who.app_version,
        "step": takeover.step,
        "progress": takeover.progress,
        "for": time::duration(Duration::from_millis(takeover.since_ms)),
        "step_for": time::duration(Duration::from_millis(takeover.step_since_ms)),
    })
}

/// A probation, as the owner tells it: `pid` is who stands by.
pub(crate) fn probation(probation: &ProbationStatus) -> Value {
    json!({
        "pid": pid(probation.who.pid),
        "app_version": probation.who.app_version,
        "for": time::duration(Duration::from_millis(probation.since_ms)),
        "left": milliseconds(probation.left_ms),
        "overdue": probation.overdue,
    })
}

fn drain(drain: &DrainStatus) -> Value {
    json!({
        "pid": pid(drain.who.pid),
        "app_version": drain.who.app_version,
        "generation": drain.generation,
        "in_flight": drain.in_flight,
        "oldest": milliseconds(drain.oldest_ms),
        "left": milliseconds(drain.left_ms),
    })
}

/// Why takeovers are refused.
pub(crate) fn hold(hold: &Hold) -> Value {
    json!({
        "reason": hold.reason,
        "since": time::timestamp(hold.since),
        "until": hold.left_ms.and_then(time::after),
        "by": {"pid": pid(hold.by.pid), "uid": hold.by.uid},
        "suspended": hold.suspended,
    })
}

fn listener(listener: &ListenerStatus) -> Value {
    json!({
        "name": listener.name,
        "kind": listener.kind,
        "address": Some(&listener.address).filter(|address| !address.is_empty()),
        "accept_queue_length": listener.accept_queue,
        "accept_queue_limit": listener.accept_queue_limit,
        "foreign_network_namespace": listener.foreign_network_namespace,
    })
}

/// `null` for 0, which is no process (pid_namespaces(7)).
pub(crate) fn pid(pid: u32) -> Option<u32> {
    Some(pid).filter(|pid| *pid != 0)
}

/// `null` for what has none, such as a raw descriptor.
fn address(entry: &Entry) -> Option<&str> {
    Some(entry.address.as_str()).filter(|address| !address.is_empty())
}

pub(crate) fn milliseconds(milliseconds: Option<u64>) -> Option<String> {
    milliseconds.map(|milliseconds| time::duration(Duration::from_millis(milliseconds)))
}
