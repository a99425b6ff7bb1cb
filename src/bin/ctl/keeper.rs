//! `ctl handoff --commit`: owns and keeps the listeners, without a program or for one that knows nothing of handoffs.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use heirloom::{Drained, Draining, Entry, Error, Event, Handoff, PredecessorInfo, Reason, Serving, Starting};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::args::{Global, HandoffArgs};
use crate::failure::{FAILED, Failure};
use crate::follow::{self, PATIENCE};
use crate::handoff::{NAME, TIMEOUT};
use crate::json;
use crate::listening::{self, Workload};
use crate::printer::Printer;
use crate::program;
use crate::signals::Signals;
use crate::status::who;
use crate::table::table;

pub(crate) fn run(global: &Global, args: HandoffArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    if let Some(program) = args.command.first() {
        program::check(program)?;
    }
    // The first of a family would be an owner of nothing: that is never what was meant.
    let within = global.timeout_or(TIMEOUT);
    follow::ask(socket, PATIENCE.min(within))?;
    let signals = Signals::take()?;
    let handoff = Handoff::at(socket)
        .app_version(NAME)
        .holding(args.command.is_empty())
        .allow_shared_folder(args.allow_shared_folder)
        .drain_within(args.drain)
        .start_within(within);
    let starting = start(handoff, &signals)?;
    let predecessor = starting.predecessor().cloned();
    let entries: Vec<Entry> = starting.entries().cloned().collect();
    if predecessor.is_none() && entries.is_empty() {
        // It went between the question and the start. Dropping an unused first start removes what it made.
        return Err(Error::Nobody { path: socket.to_owned() }.into());
    }
    keep(starting, args.command, &entries, predecessor.as_ref(), signals, printer)
}

/// Owns everything that has come, and keeps it, for a program where there is one.
pub(crate) fn keep(
    mut starting: Starting,
    command: Vec<OsString>,
    entries: &[Entry],
    predecessor: Option<&PredecessorInfo>,
    signals: Signals,
    printer: Printer,
) -> Result<ExitCode, Failure> {
    let workload = (!command.is_empty()).then_some(command);
    let listeners = claim(&mut starting, entries, workload.is_some())?;
    let serving = commit(starting, &signals)?;
    tell(&serving, predecessor, entries, workload.is_some(), printer);
    let workload = workload.map(|command| Workload::new(command, listeners));
    let code = Keeper { signals, workload, printer }.keep(serving)?;
    Ok(ExitCode::from(code))
}

fn start(handoff: Handoff, signals: &Signals) -> Result<Starting, Failure> {
    let mut joining = handoff.begin()?;
    loop {
        interrupted(signals)?;
        if joining.process()? {
            match joining.started() {
                Ok(starting) => return Ok(starting),
                Err(early) => joining = early,
            }
        }
        wait(signals, &joining)?;
    }
}

/// Claims all entries, so that none is dropped.
fn claim(starting: &mut Starting, entries: &[Entry], to_pass: bool) -> Result<Vec<(String, Arc<OwnedFd>)>, Failure> {
    let mut listeners = Vec::with_capacity(entries.len());
    for entry in entries {
        if to_pass {
            listening::check_name(&entry.name)?;
        }
        if let Some(descriptor) = starting.inherited(&entry.name)? {
            listeners.push((entry.name.clone(), descriptor));
        }
    }
    Ok(listeners)
}

fn commit(starting: Starting, signals: &Signals) -> Result<Serving, Failure> {
    let mut committing = starting.begin_ready()?;
    loop {
        // Dropping it calls the takeover off, wherever it is.
        interrupted(signals)?;
        if committing.process()? {
            match committing.serving() {
                Ok(serving) => return Ok(serving),
                Err(early) => committing = early,
            }
        }
        wait(signals, &committing)?;
    }
}

fn interrupted(signals: &Signals) -> Result<(), Failure> {
    while let Some(caught) = signals.next() {
        if caught.signal != Signal::SIGCHLD {
            let message =
                format!("interrupted by {} before it owned the service; the old one still serves", caught.signal);
            return Err(Failure::new(FAILED, "cancelled", message));
        }
    }
    Ok(())
}

fn wait(signals: &Signals, stage: &impl AsFd) -> Result<(), Error> {
    let reading = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
    follow::wait(&mut [reading(signals.as_fd()), reading(stage.as_fd())], None)
}

/// Shows what is kept. From here on there is an owner to lose: a closed stdout is no reason to end.
fn tell(
    serving: &Serving,
    predecessor: Option<&PredecessorInfo>,
    entries: &[Entry],
    for_program: bool,
    printer: Printer,
) {
    let after = predecessor.map(|old| format!(", after {}", who(old.pid, &old.app_version))).unwrap_or_default();
    let owner = format!("generation {}, {}{after}", serving.generation(), who(std::process::id(), NAME));
    let text = || {
        let rows = entries.iter().map(|entry| [entry.name.clone(), entry.kind.to_string(), entry.address.clone()]);
        let table = table(["NAME", "KIND", "ADDRESS"], rows);
        format!("{owner}\n\n{}", if table.is_empty() { "no entries\n" } else { &table })
    };
    if for_program && !printer.is_json() {
        // stdout is the program's.
        return printer.say(&format!("{owner}: {} entries for the program", entries.len()));
    }
    let _ = printer.print(text, || {
        json!({
            "owner": {"generation": serving.generation(), "pid": std::process::id(), "app_version": NAME},
            "predecessor": predecessor.map(json::predecessor),
            "entries": entries.iter().map(json::entry).collect::<Vec<_>>(),
        })
    });
    if !for_program {
        printer.say("nothing is accepted: connections wait until a successor takes over; Ctrl-C ends the service");
    }
}

/// An owner that accepts nothing itself.
#[derive(Debug)]
struct Keeper {
    signals: Signals,
    workload: Option<Workload>,
    printer: Printer,
}

impl Keeper {
    /// Owns until a successor does, or until it is told to leave; gives the exit code.
    fn keep(mut self, mut serving: Serving) -> Result<u8, Failure> {
        self.start_program(&serving);
        loop {
            let draining = self.serve(serving)?;
            match self.drain(draining)? {
                Some(again) => {
                    self.printer.say("the successor died: the service is kept again");
                    serving = again;
                    self.start_program(&serving);
                }
                None => return Ok(self.workload.map_or(0, Workload::finish)),
            }
        }
    }

    fn start_program(&mut self, serving: &Serving) {
        if let Some(workload) = &mut self.workload
            && let Err(error) = workload.start(serving.lease())
        {
            self.printer.say(&format!("cannot start the program: {error}"));
        }
    }

    fn serve(&mut self, mut serving: Serving) -> Result<Draining, Failure> {
        let mut stopping = false;
        loop {
            if self.signalled() && !stopping {
                stopping = true;
                serving.stop()?;
            }
            while let Some(event) = serving.process()? {
                match event {
                    Event::Release => serving.released()?,
                    // Nothing else makes a program stop accepting.
                    Event::StandBy => self.workload.iter_mut().for_each(Workload::leave),
                    Event::Resume => self.start_program(&serving),
                    _ => {}
                }
            }
            if let Some(reason) = serving.left() {
                match reason {
                    Reason::Successor => self.printer.say("a successor serves"),
                    Reason::RolledBack => self.printer.say("the predecessor serves again"),
                    _ => self.printer.say("leaving, without a successor"),
                }
                if let Some(workload) = &mut self.workload {
                    workload.leave();
                }
                return Ok(serving.begin_drain()?);
            }
            // A successor that is on its way will serve who waits in the queues; else there is nobody to wait for.
            let ended = self.workload.as_ref().is_some_and(|workload| workload.ended().is_some());
            if ended && !stopping && !serving.stands_by() && serving.status().takeover.is_none() {
                self.printer.say("the program has ended");
                stopping = true;
                serving.stop()?;
                continue;
            }
            wait(&self.signals, &serving)?;
        }
    }

    fn drain(&mut self, mut draining: Draining) -> Result<Option<Serving>, Failure> {
        loop {
            self.signalled();
            if draining.process()? {
                match draining.drained() {
                    Ok(Drained::Resumed(serving)) => return Ok(Some(serving)),
                    Ok(Drained::Done(summary)) => {
                        if summary.forced {
                            self.printer.say("the program did not finish before the drain deadline: ending it");
                        }
                        return Ok(None);
                    }
                    Err(early) => draining = early,
                }
            }
            wait(&self.signals, &draining)?;
        }
    }

    /// Deals with signals; `true`: this process is to leave.
    fn signalled(&mut self) -> bool {
        let mut leave = false;
        while let Some(caught) = self.signals.next() {
            match &mut self.workload {
                Some(workload) if caught.signal == Signal::SIGCHLD => workload.reap(),
                None if caught.signal == Signal::SIGCHLD => {}
                // It ends by that, and then this process does, or it knows better.
                Some(workload) if workload.is_running() => {
                    if !caught.to_group {
                        workload.forward(caught.signal);
                    }
                }
                _ => leave = true,
            }
        }
        leave
    }
}
