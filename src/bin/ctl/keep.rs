//! `ctl keep`: keeps the listeners beside the owner, and holds them while there is none.

use std::os::fd::AsFd;
use std::process::ExitCode;

use heirloom::{Handoff, Holder, HolderEvent};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::args::{Global, KeepArgs};
use crate::failure::Failure;
use crate::follow;
use crate::handoff::{NAME, TIMEOUT};
use crate::printer::Printer;
use crate::signals::Signals;

pub(crate) fn run(global: &Global, args: &KeepArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let signals = Signals::take()?;
    let mut handoff = Handoff::at(global.socket()?)
        .app_version(NAME)
        .start_within(global.timeout_or(TIMEOUT))
        .replace_holders(args.replace);
    for uid in &args.allow_uid {
        handoff = handoff.allow_uid(*uid);
    }
    for gid in &args.allow_gid {
        handoff = handoff.allow_gid(*gid);
    }
    let mut holder = handoff.begin_hold()?;
    let stopper = holder.stopper();
    loop {
        while let Some(event) = holder.process()? {
            tell(&holder, event, printer);
            if matches!(event, HolderEvent::Stopped | HolderEvent::Replaced) {
                return Ok(ExitCode::SUCCESS);
            }
            // What the start took of the program, and a change, is not needed again for long.
            holder.trim();
        }
        while let Some(caught) = signals.next() {
            if caught.signal != Signal::SIGCHLD {
                warn_of_loss(&holder, printer);
                stopper.stop();
            }
        }
        let reading = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        follow::wait(&mut [reading(signals.as_fd()), reading(holder.as_fd())], None)?;
    }
}

/// A closed stdout is no reason to end: there may be listeners to lose.
fn tell(holder: &Holder, event: HolderEvent, printer: Printer) {
    let (generation, entries) = (holder.generation(), holder.entries().count());
    let (word, text) = match event {
        HolderEvent::Following => ("following", format!("following generation {generation}: {entries} entries kept")),
        HolderEvent::Holding => {
            let rest = "connections wait until the next process takes over";
            ("holding", format!("nobody serves: holding {entries} entries as generation {generation}; {rest}"))
        }
        HolderEvent::Stopped => ("stopped", "told to leave".to_owned()),
        HolderEvent::Replaced => ("replaced", "another keeper has everything: leaving".to_owned()),
        _ => return,
    };
    let _ = printer.print(
        || format!("{text}\n"),
        || json!({"event": word, "generation": generation, "entries": entries, "waiting": waiting(holder)}),
    );
}

/// How many connections wait, while this process owns.
fn waiting(holder: &Holder) -> Option<u32> {
    let status = holder.status().filter(|_| holder.is_owner())?;
    Some(status.listeners.iter().filter_map(|listener| listener.accept_queue).sum())
}

/// Whoever ends a process by a signal means it, and ends it otherwise if that does not help: it is told what it costs.
fn warn_of_loss(holder: &Holder, printer: Printer) {
    if let Some(waiting) = waiting(holder)
        && holder.status().is_some_and(|status| status.keepers.is_empty())
    {
        printer.say(&format!(
            "leaving while nobody serves: {waiting} connections that wait are lost, and so are the listeners"
        ));
    }
}
