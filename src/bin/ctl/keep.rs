//! `ctl keep`: keeps the listeners beside the owner, and holds them while there is none.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use heirloom::{Error, Handoff, Holder, HolderEvent};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::args::{Global, KeepArgs};
use crate::failure::Failure;
use crate::follow::{self, Follow, News};
use crate::handoff::{NAME, TIMEOUT};
use crate::printer::Printer;
use crate::signals::Signals;

pub(crate) fn run(global: &Global, args: &KeepArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let signals = Signals::take()?;
    loop {
        if args.wait && !somebody_listens(global.socket()?, &signals, printer)? {
            return Ok(ExitCode::SUCCESS);
        }
        match hold(handoff(global, args)?, &signals, printer) {
            // It went between the one look and the other.
            Err(Error::Nobody { .. }) if args.wait => {}
            held => return Ok(held.map(|()| ExitCode::SUCCESS)?),
        }
    }
}

fn handoff(global: &Global, args: &KeepArgs) -> Result<Handoff, Failure> {
    let handoff = Handoff::at(global.socket()?)
        .app_version(NAME)
        .start_within(global.timeout_or(TIMEOUT))
        .allow_shared_folder(args.allow_shared_folder)
        .replace_holders(args.replace);
    let handoff = args.allow_uid.iter().fold(handoff, |handoff, uid| handoff.allow_uid(*uid));
    Ok(args.allow_gid.iter().fold(handoff, |handoff, gid| handoff.allow_gid(*gid)))
}

/// Waits until somebody listens; not, where this process is told to end.
fn somebody_listens(socket: &Path, signals: &Signals, printer: Printer) -> Result<bool, Failure> {
    let mut follow = Follow::new(socket);
    let mut told = false;
    loop {
        while let Some(caught) = signals.next() {
            if caught.signal != Signal::SIGCHLD {
                return Ok(false);
            }
        }
        match follow.news()? {
            Some(News::Status(_)) => return Ok(true),
            Some(News::Nobody(_)) if told => {}
            Some(News::Nobody(_)) => {
                told = true;
                let _ = printer.print(
                    || "nobody listens yet: waiting for the service\n".to_owned(),
                    || json!({"event": "nobody", "generation": null, "entries": 0, "waiting": null}),
                );
            }
            None => follow.wait(&[PollFd::new(signals.as_fd(), PollFlags::POLLIN)], None)?,
        }
    }
}

/// Keeps everything until it is told to leave.
fn hold(handoff: Handoff, signals: &Signals, printer: Printer) -> Result<(), Error> {
    let mut holder = handoff.begin_hold()?;
    let stopper = holder.stopper();
    loop {
        while let Some(event) = holder.process()? {
            tell(&holder, event, printer);
            if matches!(event, HolderEvent::Stopped | HolderEvent::Replaced) {
                return Ok(());
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
        HolderEvent::Following => ("following", format!("following generation {generation}, entries kept: {entries}")),
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
