//! What the service manager is told: for a handoff that was asked to ([`Handoff::systemd`](crate::Handoff::systemd)).
//!
//! The owner speaks. Who has handed over to a process of the same unit says one thing more, the new main pid, and is
//! silent; who has handed over to another unit goes on telling of itself, since its unit ends with it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use log::{info, warn};
use mio::Interest;

use super::{Driver, Key, Notice, monotonic};
use crate::control;
use crate::protocol::predecessor::Predecessor;
use crate::status::Phase;
use crate::systemd::{Notify, Passed, Sent, Variables, in_same_unit, store_name, take};
use crate::table::Outcome;

/// Tokens of the poller, beside those of the driver itself.
const MANAGER: usize = 4;
const BARRIER: usize = 5;

/// How long a process that leaves waits until the manager has read which one is the main process now.
const BARRIER_WITHIN: Duration = Duration::from_secs(5);
/// What a stop may take on top of its drain.
const MARGIN: Duration = Duration::from_secs(5);
/// How often a warm-up asks for more time, at most.
const EXTEND_EACH: Duration = Duration::from_secs(1);

/// The manager, as far as this process has to do with it.
#[derive(Debug, Default)]
pub(super) struct Supervisor {
    notify: Option<Notify>,
    variables: Variables,
    /// Whether the manager's socket is registered: only while its queue is full.
    waiting: bool,
    pub(super) passed: Vec<Passed>,
    /// Names of entries that may be in the store of this unit.
    parked: BTreeSet<String>,
    /// Where the successor of the moment, or the last one, is.
    heir: Heir,
    part: Part,
    /// What was last said in `STATUS`.
    said: String,
    extended: Option<Instant>,
    /// Hangs up when the manager has read all. `Some` between the word of the new main pid and that moment.
    barrier: Option<OwnedFd>,
    /// The end of this process waits for the barrier.
    exiting: bool,
    /// The predecessor was in the same unit.
    is_heir: bool,
}

/// What was last told of this process's part in the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// It serves, or is about to.
    #[default]
    Serves,
    /// It has offered the service to a successor.
    Offers,
    /// It has given it away.
    Gave,
}

/// Where a successor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Heir {
    /// In another unit, or in none.
    #[default]
    Outside,
    /// In the same unit, under this pid.
    Inside(u32),
}

impl Driver {
    /// Reads the environment, once.
    pub(super) fn meet_manager(&mut self) {
        if !self.settings.systemd {
            return;
        }
        let variables = Variables::read();
        self.supervisor.passed = take(&variables, self.pid);
        let stored = self.supervisor.passed.iter().filter(|passed| passed.stored);
        self.supervisor.parked.extend(stored.map(|passed| passed.name.clone()));
        if let Some(address) = &variables.notify_socket {
            match Notify::to(address) {
                Ok(notify) => self.supervisor.notify = Some(notify),
                Err(error) => warn!("cannot reach the service manager at {}: {error}", address.display()),
            }
        }
        self.supervisor.variables = variables;
    }

    /// Whether the predecessor is in the same unit, and its entries in the same store.
    pub(super) fn meet_predecessor(&mut self) {
        if self.supervisor.notify.is_some() {
            self.supervisor.is_heir = self.elder_pidfd.as_ref().and_then(pid_of).is_some_and(in_same_unit);
            // A successor in the unit is told of no store: what its predecessor had is what is parked.
            let names = self.table.iter().map(|held| held.entry.name.clone());
            self.supervisor.parked.extend(names.filter(|_| self.supervisor.is_heir));
        }
    }

    /// The warm-up goes on, and takes the time that it may be silent for.
    pub(super) fn manager_hears_progress(&mut self, text: &str) {
        let now = Instant::now();
        if self.supervisor.extended.is_some_and(|last| now.duration_since(last) < EXTEND_EACH) {
            return;
        }
        self.supervisor.extended = Some(now);
        self.tell_manager(extend(self.settings.deadlines.stall));
        if self.supervisor.is_heir {
            return; // The owner tells, as long as it is one.
        }
        self.say_status(format!("{}: {text}", Phase::Starting));
    }

    /// This process owns and is ready: what was passed and nobody wanted is closed, what it serves is parked, and the
    /// manager is told.
    pub(super) fn manager_hears_serving(&mut self) {
        self.drop_passed();
        self.park_all();
        let main = if self.supervisor.is_heir { format!("\nMAINPID={}", self.pid) } else { String::new() };
        self.tell_manager(format!("READY=1{main}"));
        self.pet_watchdog();
    }

    /// Parks all entries, and takes out of the store what is not one, or not the same any more.
    fn park_all(&mut self) {
        if self.supervisor.notify.is_none() {
            return;
        }
        for name in std::mem::take(&mut self.supervisor.parked) {
            // What is bound anew is another socket; all else is known to systemd, who keeps one copy.
            let same = !matches!(self.table.report.entries.get(&name), Some(Outcome::Bound { .. }));
            if self.table.get(&name).is_some() && same {
                self.supervisor.parked.insert(name);
            } else {
                self.unpark(&name);
            }
        }
        let names: Vec<String> = self.table.iter().map(|held| held.entry.name.clone()).collect();
        for name in names {
            self.park(&name);
        }
    }

    /// Parks one entry.
    pub(super) fn park(&mut self, name: &str) {
        let (Some(held), Some(notify)) = (self.table.get(name), &mut self.supervisor.notify) else { return };
        let Some(stored) = store_name(name) else {
            return warn!("{name:?} is not parked: its name is too long for the file descriptor store");
        };
        let sent = notify.park(&stored, held.fd.share());
        if sent != Sent::Dropped {
            self.supervisor.parked.insert(name.to_owned());
        }
        self.await_manager(sent);
    }

    /// Takes one entry out of the store.
    pub(super) fn unpark(&mut self, name: &str) {
        self.supervisor.parked.remove(name);
        let (Some(stored), Some(notify)) = (store_name(name), &mut self.supervisor.notify) else { return };
        let sent = notify.unpark(&stored);
        self.await_manager(sent);
    }

    /// A successor was made an offer.
    pub(super) fn manager_hears_offer(&mut self) {
        if self.supervisor.notify.is_none() {
            return;
        }
        let heir = self.predecessor.as_ref().and_then(|predecessor| {
            let (_, connection) = self.connections.iter().find(|(peer, _)| predecessor.is_heir(**peer))?;
            let pid = control::peer_credentials(connection.stream()).ok()?.pid?;
            in_same_unit(pid).then_some(pid)
        });
        self.supervisor.heir = heir.map_or(Heir::Outside, Heir::Inside);
        self.supervisor.part = Part::Offers;
        if heir.is_some() {
            self.tell_manager(format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros()));
        }
    }

    /// This process serves on, or again. Does nothing where that is no news.
    pub(super) fn manager_hears_again(&mut self) {
        let part = std::mem::take(&mut self.supervisor.part);
        if part == Part::Serves {
            return;
        }
        self.supervisor.barrier = None;
        let inside = std::mem::take(&mut self.supervisor.heir) != Heir::Outside;
        if inside {
            self.tell_manager(format!("READY=1\nMAINPID={}", self.pid));
        }
        if inside && part == Part::Gave {
            // The successor may have changed what is in the store, which is this process's as well.
            for name in self.supervisor.parked.clone() {
                self.unpark(&name);
            }
            self.park_all();
            self.pet_watchdog();
        }
    }

    /// A successor owns.
    pub(super) fn manager_hears_leaving(&mut self) {
        self.supervisor.part = Part::Gave;
        let Heir::Inside(pid) = self.supervisor.heir else {
            if self.supervisor.notify.is_some() {
                info!("the successor is in another unit: this one ends with this process");
            }
            return;
        };
        self.poller.disarm(Key::Watchdog);
        // It says so itself, where the unit lets it. As long as nobody has followed it in turn, this process does so, too:
        // the word of a main process always counts.
        let owned = self.family.lock.as_ref().and_then(|lock| lock.read().ok());
        if owned.is_none_or(|owned| owned.generation != self.generation() + 1) {
            return;
        }
        self.tell_manager(format!("READY=1\nMAINPID={pid}"));
        let Some(notify) = &mut self.supervisor.notify else { return };
        match notify.barrier() {
            Ok((barrier, sent)) => {
                if self.poller.watch(barrier.as_fd(), BARRIER, Interest::READABLE).is_ok() {
                    self.supervisor.barrier = Some(barrier);
                }
                self.await_manager(sent);
            }
            Err(error) => warn!("cannot ask the service manager for an answer: {error}"),
        }
    }

    /// The service ends: nobody comes after this process. The store keeps what it has. For a unit that stays stopped
    /// systemd empties it by itself, and one that starts again serves who came in between.
    pub(super) fn manager_hears_stopping(&mut self) {
        let time = extend(self.settings.drain_within + MARGIN);
        self.tell_manager(format!("STOPPING=1\n{time}"));
    }

    /// A stop was asked for while this process drains: the unit may be stopping, and waits for all of its processes.
    pub(super) fn manager_hears_drain(&mut self) {
        if self.phase() == Phase::Draining
            && let Some(left) = self.drain_left()
        {
            self.tell_manager(extend(left + MARGIN));
        }
    }

    /// Tells the phase, with the words of `ctl status`.
    pub(super) fn manager_hears_phase(&mut self) {
        let Some(predecessor) = self.predecessor.as_ref().filter(|_| self.supervisor.notify.is_some()) else { return };
        let draining = predecessor.phase() == Phase::Draining && self.supervisor.heir == Heir::Outside;
        if !predecessor.owns() && !draining {
            return;
        }
        let status = self.status_line(predecessor);
        self.say_status(status);
    }

    fn status_line(&self, predecessor: &Predecessor) -> String {
        let phase = self.shown(predecessor.phase());
        let mut line = format!("{phase}: generation {}", predecessor.generation());
        if !self.settings.app_version.is_empty() {
            line.push_str(&format!(", version {}", self.settings.app_version));
        }
        if let Some((who, step, progress)) = predecessor.takeover() {
            line.push_str(&format!("; {step}, to pid {}", who.pid));
            if !progress.is_empty() {
                line.push_str(&format!(", {progress}"));
            }
        }
        line
    }

    fn say_status(&mut self, status: String) {
        // A version or a progress is the application's own text: a line of it is not to be another assignment.
        let status: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if status != self.supervisor.said {
            self.tell_manager(format!("STATUS={status}"));
            self.supervisor.said = status;
        }
    }

    /// Shows that this process lives, where that is wanted, and will do so again in time. At once where it has just become
    /// the main process: systemd counts from the last word of the one before.
    pub(super) fn pet_watchdog(&mut self) {
        let interval = self.supervisor.variables.watchdog_interval(self.pid, self.supervisor.is_heir);
        if let Some(interval) = interval.filter(|_| self.supervisor.notify.is_some()) {
            self.tell_manager("WATCHDOG=1".to_owned());
            self.poller.arm(Key::Watchdog, interval);
        }
    }

    fn tell_manager(&mut self, text: String) {
        let Some(notify) = &mut self.supervisor.notify else { return };
        log::debug!("to the service manager: {:?}", text);
        let sent = notify.send(text);
        self.await_manager(sent);
    }

    /// Watches the manager's socket while its queue is full, and no longer: each datagram that it reads is an event.
    fn await_manager(&mut self, sent: Sent) {
        let Some(notify) = &self.supervisor.notify else { return };
        if std::mem::take(&mut self.supervisor.waiting) {
            self.poller.forget(notify.as_fd());
        }
        if sent != Sent::All {
            self.supervisor.waiting = self.poller.watch(notify.as_fd(), MANAGER, Interest::WRITABLE).is_ok();
        }
    }

    /// The manager reads on, or has read all.
    pub(super) fn manager_answers(&mut self, token: usize) {
        if token == MANAGER
            && let Some(notify) = &mut self.supervisor.notify
        {
            let sent = notify.flush();
            self.await_manager(sent);
        }
        if token == BARRIER
            && let Some(barrier) = self.supervisor.barrier.take()
        {
            self.poller.forget(barrier.as_fd());
            self.end_barrier();
        }
    }

    /// Ends the process, or lets it wait until the manager knows the new main pid: it would take the end of the old one
    /// for the end of the service.
    pub(super) fn exit_when_heard(&mut self) {
        if self.supervisor.barrier.is_some() {
            self.supervisor.exiting = true;
            self.poller.arm(Key::Barrier, BARRIER_WITHIN);
        } else {
            self.notices.push_back(Notice::Exit);
        }
    }

    /// The manager has answered, or did not in time.
    pub(super) fn end_barrier(&mut self) {
        self.poller.disarm(Key::Barrier);
        if std::mem::take(&mut self.supervisor.exiting) {
            self.supervisor.barrier = None;
            self.notices.push_back(Notice::Exit);
        }
    }
}

/// `EXTEND_TIMEOUT_USEC`.
fn extend(by: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", by.as_micros())
}

/// The process that a pidfd stands for, in this pid namespace.
fn pid_of(pidfd: &OwnedFd) -> Option<u32> {
    use std::os::fd::AsRawFd;
    let number = BorrowedFd::as_raw_fd(&pidfd.as_fd());
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}
