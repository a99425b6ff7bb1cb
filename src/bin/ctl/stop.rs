//! `ctl stop`: asks the owner to leave, and waits until it has.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Phase, Status};
use serde_json::{Value, json};

use crate::args::Global;
use crate::failure::{FAILED, Failure, UNKNOWN};
use crate::follow::{self, PAUSE};
use crate::json;
use crate::printer::Printer;
use crate::status::who;
use crate::time;

/// How long each may take where nothing else is said: twice the usual drain deadline.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn run(global: &Global, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    let within = global.timeout_or(TIMEOUT);
    let unknown = |error: Error| Failure::from(error).or_unknown();

    // The first is the owner that is meant; the others drained before it, and found the service without an owner.
    let mut left: Vec<Status> = Vec::new();
    let mut back: Option<Status> = None;
    let mut until = Instant::now() + within;
    let keeper = loop {
        let (mut client, begun) = match reach(socket, until) {
            Ok(reached) => reached,
            // Who came back is gone already.
            Err(Error::Nobody { .. }) if back.is_some() => break None,
            Err(error) => return Err(unknown(error)),
        };
        if let (Some(back), Some(last)) = (&back, left.last())
            && !is_same(back, &begun)
        {
            return Err(overtaken(last, &begun));
        }
        match client.stop() {
            // As in `reach`.
            Err(Error::HungUp) if Instant::now() < until => {
                follow::wait(&mut [], Some(Instant::now() + PAUSE))?;
                continue;
            }
            asked => asked.map_err(unknown)?,
        }
        printer.say(&format!("{} leaves, {} in flight", who(begun.pid, &begun.app_version), begun.in_flight));
        let (last, gone) = leave(&mut client, begun, within, until)?;
        let now = match follow::ask(socket, until.saturating_duration_since(Instant::now())) {
            Err(Error::Nobody { .. }) => None,
            Ok(now) => Some(now),
            Err(Error::Deadline { .. }) if gone => return Err(silent(within, &last)),
            Err(Error::Deadline { .. }) => return Err(still_leaving(within, &last)),
            Err(error) => return Err(unknown(error)),
        };
        match now {
            Some(now) if is_same(&last, &now) => return Err(still_leaving(within, &last)),
            // It has left to somebody.
            Some(now) if last.phase == Phase::Draining => return Err(overtaken(&last, &now)),
            // Who keeps the listeners has found them without an owner.
            None | Some(Status { phase: Phase::Holding, .. }) => {
                left.push(last);
                break now;
            }
            Some(now) => {
                left.push(last);
                if !left.iter().any(|before| drained_before(before, &now)) || !has_resumed(socket, &now, until) {
                    return Err(overtaken(&left[left.len() - 1], &now));
                }
                printer.say(&format!("{}, which drained, has come back", who(now.pid, &now.app_version)));
                back = Some(now);
                until = Instant::now() + within;
            }
        }
    };

    let text = || {
        let names: Vec<String> = left.iter().map(|status| who(status.pid, &status.app_version)).collect();
        let have = if names.len() == 1 { "has" } else { "have" };
        let names = names.join(" and ");
        match &keeper {
            Some(keeper) => {
                let keeper = who(keeper.pid, &keeper.app_version);
                format!("{names} {have} left; {keeper} keeps the listeners, and connections wait for the next start\n")
            }
            None => format!("{names} {have} left, nobody serves any more"),
        }
    };
    let object = || {
        let mut owners = left.iter().map(json::owner);
        let mut object = json!({"stopped": true, "owner": owners.next()});
        let came_back: Vec<Value> = owners.collect();
        if !came_back.is_empty() {
            object["came_back"] = came_back.into();
        }
        if let Some(keeper) = &keeper {
            object["keeper"] = json::owner(keeper);
        }
        object
    };
    printer.print(text, object)?;
    if keeper.is_some() {
        printer.hint("ctl stop again ends that one, too, and the service with it");
    }
    Ok(ExitCode::SUCCESS)
}

/// Watches the owner before he is asked to leave: so nothing that he tells of his leaving is missed.
fn reach(socket: &Path, until: Instant) -> Result<(Client, Status), Error> {
    loop {
        let within = until.saturating_duration_since(Instant::now());
        let watched = Client::connect(socket, within).and_then(|mut client| {
            client.watch()?;
            let silent = Error::Deadline { waiting_for: "an answer of the owner", after: within };
            let status = client.next(Some(within))?.ok_or(silent)?;
            Ok((client, status))
        });
        match watched {
            // It left before it could answer: whoever comes after it is asked, if there is anybody.
            Err(Error::HungUp) if Instant::now() < until => follow::wait(&mut [], Some(Instant::now() + PAUSE))?,
            watched => return watched,
        }
    }
}

/// Waits for the end of who was asked to leave, or for his successor: gives what he told last, and whether he is gone.
fn leave(client: &mut Client, mut last: Status, within: Duration, until: Instant) -> Result<(Status, bool), Failure> {
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match client.next(Some(left)) {
            Ok(Some(status)) => {
                last = status;
                if last.phase == Phase::Draining {
                    break;
                }
            }
            Ok(None) => return Err(still_leaving(within, &last)),
            Err(Error::HungUp) => return Ok((last, true)),
            Err(error) => return Err(Failure::from(error).or_unknown()),
        }
    }
    Ok((last, false))
}

/// In containers each process may be the first of its own pid namespace, and has the same pid as all others.
fn is_same(one: &Status, other: &Status) -> bool {
    (one.pid, one.generation) == (other.pid, other.generation)
}

/// Whether the process that owns now drained when the one before it was asked to leave.
fn drained_before(before: &Status, now: &Status) -> bool {
    before.drainers.iter().any(|it| (it.who.pid, &it.who.app_version) == (now.pid, &now.app_version))
}

/// Whether it owns because it took the service back, as it says: in containers one that was started anew may have the same
/// pid and version as one that drained.
fn has_resumed(socket: &Path, now: &Status, until: Instant) -> bool {
    let within = until.saturating_duration_since(Instant::now());
    let records = Client::connect(socket, within).and_then(|mut client| client.history()).unwrap_or_default();
    let last =
        records.iter().rfind(|record| record.to.as_ref().is_some_and(|to| to.generation == Some(now.generation)));
    last.is_some_and(|record| record.outcome == "resumed")
}

fn still_leaving(within: Duration, last: &Status) -> Failure {
    let message = format!(
        "{} was asked to leave and is still there after {}, phase {}, {} in flight when it last told",
        who(last.pid, &last.app_version),
        time::duration(within),
        last.phase,
        last.in_flight,
    );
    Failure::new(UNKNOWN, "deadline", message)
        .hint("it leaves at its drain deadline at the latest; ctl status tells when")
}

/// Somebody has the control socket open, and does not answer.
fn silent(within: Duration, last: &Status) -> Failure {
    let who = who(last.pid, &last.app_version);
    let message =
        format!("{who} has left, and whoever still has the socket gave no answer for {}", time::duration(within));
    Failure::new(UNKNOWN, "deadline", message)
        .hint("one that drained before it may be stopped: where it goes on it serves again, and ctl stop ends it")
}

fn overtaken(last: &Status, now: &Status) -> Failure {
    let message = format!(
        "{} has left, and {} serves as generation {}",
        who(last.pid, &last.app_version),
        who(now.pid, &now.app_version),
        now.generation
    );
    let owner: Value = json::owner(now);
    Failure::new(FAILED, "overtaken", message).hint("ctl stop again, to end that one, too").key("owner", owner)
}
