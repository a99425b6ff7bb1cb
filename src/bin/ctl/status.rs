//! `ctl status`: who serves, what it holds, and what is going on.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{DrainStatus, Error, Hold, ProbationStatus, Status, TakeoverStatus};
use nix::poll::{PollFd, PollFlags, poll};

use crate::args::{Global, StatusArgs};
use crate::failure::Failure;
use crate::follow::{self, Follow, News, owns};
use crate::json;
use crate::printer::Printer;
use crate::table::{clean, table};
use crate::time;

/// How long the owner may take to answer where nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(global: &Global, args: &StatusArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    if args.watch {
        return watch(Follow::new(socket), global.timeout(), printer);
    }
    let status = follow::ask(socket, global.timeout_or(TIMEOUT)).map_err(|error| Failure::from(error).or_unknown())?;
    printer.print(|| text(&status), || json::status(&status))?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each change, whoever owns.
fn watch(mut follow: Follow, within: Option<Duration>, printer: Printer) -> Result<ExitCode, Failure> {
    let until = within.map(|within| Instant::now() + within);
    let stdout = io::stdout();
    let mut seen = false;
    loop {
        match follow.news()? {
            Some(News::Status(status)) => {
                seen = true;
                printer.print(|| format!("{} {}", time::now(), brief(&status)), || json::status(&status))?;
            }
            Some(News::Nobody(error)) => return Err(error.into()),
            None if until.is_some_and(|until| Instant::now() >= until) => {
                if seen {
                    return Ok(ExitCode::SUCCESS);
                }
                let after = within.unwrap_or_default();
                let silent = Error::Deadline { waiting_for: "an answer of the owner", after };
                return Err(Failure::from(silent).or_unknown());
            }
            None => {
                // Without any event asked for, poll(2) tells of an error alone: that nobody reads any more.
                let closed = PollFd::new(stdout.as_fd(), PollFlags::empty());
                follow.wait(&[closed], until)?;
                if is_closed(&stdout) {
                    return Err(Failure::BrokenPipe);
                }
            }
        }
    }
}

fn is_closed(stdout: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut asked, 0u8).is_ok_and(|_| asked[0].revents().is_some_and(|events| !events.is_empty()))
}

/// A process by its number, and what it calls its version.
pub(crate) fn who(pid: u32, app_version: &str) -> String {
    // 0 is no process: this pid namespace cannot see the one that is meant.
    let pid = if pid == 0 { "unknown".to_owned() } else { pid.to_string() };
    if app_version.is_empty() { format!("pid {pid}") } else { format!("pid {pid} (version {})", clean(app_version)) }
}

/// The whole of a status, for a person.
pub(crate) fn text(status: &Status) -> String {
    let mut text = format!("generation {}, {}\n", status.generation, who(status.pid, &status.app_version));
    let mut row = |name: &str, value: String| text.push_str(&format!("{name:<11} {value}\n"));
    let since = time::timestamp(status.since)
        .map(|at| format!(" since {at} ({})", time::rough(time::since(status.since))))
        .unwrap_or_default();
    row("phase", format!("{}{since}", status.phase));
    let left = status.left_ms.map(|left| format!(", {} left", milliseconds(left))).unwrap_or_default();
    row("in flight", format!("{}{left}", status.in_flight));
    if let Some(takeover) = &status.takeover {
        row("takeover", self::takeover(takeover));
    }
    for drainer in drainers(status) {
        row("draining", drain(drainer));
    }
    if let Some(probation) = &status.probation {
        row("probation", self::probation(probation, owns(status)));
    }
    if let Some(hold) = &status.hold {
        row("hold", held(hold));
    }
    for keeper in &status.keepers {
        row("kept by", who(keeper.pid, &keeper.app_version));
    }
    let rows = status.listeners.iter().map(|listener| {
        let queue = match (listener.accept_queue, listener.accept_queue_limit) {
            (Some(length), Some(limit)) => format!("{length}/{limit}"),
            _ => String::new(),
        };
        [listener.name.clone(), listener.kind.clone(), listener.address.clone(), queue]
    });
    let listeners = table(["NAME", "KIND", "ADDRESS", "QUEUE"], rows);
    if !listeners.is_empty() {
        text.push('\n');
        text.push_str(&listeners);
    }
    for listener in &status.listeners {
        if let Some(cookie) = listener.foreign_network_namespace {
            let name = clean(&listener.name);
            text.push_str(&format!(
                "\n{name} lives in another network namespace than its owner, the one with cookie {cookie}: it goes deaf, \
                 without any error, when that one ends\n"
            ));
        }
    }
    text
}

/// A status on one line.
pub(crate) fn brief(status: &Status) -> String {
    let mut line = format!(
        "generation {}, {}: {}, {} in flight",
        status.generation,
        who(status.pid, &status.app_version),
        status.phase,
        status.in_flight
    );
    if let Some(takeover) = &status.takeover {
        line.push_str(&format!("; takeover by {}", self::takeover(takeover)));
    }
    for drainer in drainers(status) {
        line.push_str(&format!("; draining: {}", drain(drainer)));
    }
    if let Some(probation) = &status.probation {
        line.push_str(&format!("; probation: {}", self::probation(probation, owns(status))));
    }
    if let Some(hold) = &status.hold {
        line.push_str(&format!("; hold: {}", held(hold)));
    }
    for keeper in &status.keepers {
        line.push_str(&format!("; kept by {}", who(keeper.pid, &keeper.app_version)));
    }
    line
}

/// All that drain; an owner of an older version tells of its predecessor alone.
pub(crate) fn drainers(status: &Status) -> &[DrainStatus] {
    if status.drainers.is_empty() { status.predecessor.as_slice() } else { &status.drainers }
}

fn takeover(takeover: &TakeoverStatus) -> String {
    let progress = match takeover.progress.as_str() {
        "" => String::new(),
        progress => format!(": {}", clean(progress)),
    };
    format!(
        "{}, {} for {}, {} in all{progress}",
        who(takeover.who.pid, &takeover.who.app_version),
        clean(&takeover.step),
        milliseconds(takeover.step_since_ms),
        milliseconds(takeover.since_ms)
    )
}

fn probation(probation: &ProbationStatus, owner: bool) -> String {
    let other = who(probation.who.pid, &probation.who.app_version);
    let mut text = if owner { format!("{other} stands by") } else { format!("{other} serves") };
    match probation.left_ms {
        _ if probation.overdue => text.push_str(", overdue"),
        Some(left) => text.push_str(&format!(", {} left", milliseconds(left))),
        None => {}
    }
    text
}

fn drain(drain: &DrainStatus) -> String {
    let mut text = who(drain.who.pid, &drain.who.app_version);
    if let Some(in_flight) = drain.in_flight {
        text.push_str(&format!(", {in_flight} in flight"));
    }
    if let Some(left) = drain.left_ms {
        text.push_str(&format!(", {} left", milliseconds(left)));
    }
    text
}

/// Why takeovers are refused, and until when.
pub(crate) fn held(hold: &Hold) -> String {
    let mut text = clean(&hold.reason);
    if let Some(since) = time::timestamp(hold.since) {
        text.push_str(&format!(", since {since}"));
    }
    match hold.left_ms {
        Some(left) => text.push_str(&format!(", {} left", milliseconds(left))),
        None => text.push_str(", until it is lifted"),
    }
    if hold.suspended {
        text.push_str("; the next start is let in, and holds again");
    }
    text
}

fn milliseconds(milliseconds: u64) -> String {
    time::rough(Duration::from_millis(milliseconds))
}
