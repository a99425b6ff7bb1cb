//! A process that serves: [`Serving`], what it is told, and the leases that count what it has in flight.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use crate::ages::Age;
use crate::claim::Claim;
use crate::drain::Draining;
use crate::driver::{Driver, Notice};
use crate::error::{Error, Result};
use crate::handoff::{Stopper, pollable};
use crate::manifest::Entry;
use crate::protocol::predecessor::Reason;
use crate::state::{Snapshot, State};
use crate::status::{DrainStatus, PredecessorEnd, ProbationStatus, Status};
use crate::table::Report;
use crate::wake::Wake;

/// What a process that serves is told. Later versions may have more: what a program does not know asks nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A successor is ready: let go of exclusive work, then call [`Serving::released`]. Only where
    /// [`Handoff::exclusive`](crate::Handoff::exclusive) said so. Go on accepting streams.
    Release,
    /// A successor owns and is on probation: stop accepting, keep everything.
    StandBy,
    /// This process owns again: take everything up again. After [`StandBy`](Event::StandBy) the state is that of the
    /// successor where that gave it back, which [`Serving::take_state`] brings; else it is this process's own, of its
    /// release, and [`Report::state`] says so. A [`Release`](Event::Release) that was not answered is void and
    /// needs no answer any more. Register listeners anew, and accept until it would block: an
    /// edge that was reported before is not reported twice.
    Resume,
    /// Stop accepting, then [`Serving::drain`].
    Leave(Reason),
    /// The process from which this one has taken the service over has ended, and this is how. Nothing is to be done;
    /// what only one process can have at a time, such as a large cache, may be taken now.
    PredecessorGone(PredecessorEnd),
}

/// Something in flight: the drain waits until the last of these is dropped. Cheap to make and to clone.
#[derive(Debug)]
pub struct Lease {
    wake: Arc<Wake>,
    age: Age,
}

impl Lease {
    pub(crate) fn new(wake: Arc<Wake>) -> Lease {
        let age = wake.take_lease();
        Lease { wake, age }
    }

    /// Whether this process has been told to leave: a good moment to say so to the client of a kept-alive connection.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.wake.is_draining()
    }
}

impl Clone for Lease {
    fn clone(&self) -> Lease {
        Lease::new(self.wake.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.wake.drop_lease(self.age);
    }
}

/// The owner of the service.
///
/// Its descriptor becomes readable when there is something to do: then call [`process`](Serving::process) until it
/// gives `None`. An idle owner wakes for nothing.
///
/// A child that was forked without `exec` shares descriptors and lock with its parent, and keeps both alive: it drops
/// this value, which closes its copies and does nothing else. Every call on it in such a child is
/// [`Error::Forked`](crate::Error::Forked).
///
/// Dropping it closes control socket and listeners without a word. [`drain`](Serving::drain) is the end that nobody
/// notices.
#[derive(Debug)]
pub struct Serving {
    pub(crate) driver: Box<Driver>,
    left: Option<Reason>,
    stands_by: bool,
}

impl Serving {
    pub(crate) fn new(driver: Box<Driver>) -> Serving {
        driver.tell_of_notices();
        Serving { driver, left: None, stands_by: false }
    }

    /// The generation that this process owns, or owned last.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.driver.generation()
    }

    /// Whether this process holds the owner lock at this moment.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.driver.owns()
    }

    /// Why this process has been told to leave; `None` while it serves.
    #[must_use]
    pub fn left(&self) -> Option<Reason> {
        self.left
    }

    /// Whether this process stands by for a successor on probation: it accepts nothing, and keeps everything.
    #[must_use]
    pub fn stands_by(&self) -> bool {
        self.stands_by
    }

    /// The probation that this process, or its successor, is on.
    #[must_use]
    pub fn probation(&self) -> Option<ProbationStatus> {
        self.driver.probation_status()
    }

    /// Ends the probation of this process: it stays, and the predecessor that stands by drains.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused): `no-probation`, or `busy` where the service is on its way back.
    pub fn confirm(&mut self) -> Result<()> {
        self.driver.confirm()
    }

    /// Ends the probation of this process: the predecessor that stands by serves again. As in a takeover, an application
    /// with exclusive work gets [`Event::Release`] and answers with [`released`](Serving::released) or
    /// [`released_with`](Serving::released_with); then [`Event::Leave`] with [`Reason::RolledBack`] follows. Where the
    /// predecessor does not take the service in time this process owns on, and an application that has let go gets
    /// [`Event::Resume`].
    ///
    /// Entries that this process has bound are lost to the service: descriptors do not travel backwards.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused): `no-probation`; `busy`; `link-lost` where the predecessor cannot be
    /// told, and has the service once this process ends.
    pub fn give_back(&mut self, reason: &str) -> Result<()> {
        self.driver.give_back(reason)
    }

    /// What became of each name at the start.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.driver.table.report
    }

    /// What this process tells about itself, as in `ctl status`.
    #[must_use]
    pub fn status(&self) -> Status {
        self.driver.status()
    }

    /// The process from which this one has taken the service over, as long as it drains: how much it has in flight and
    /// how long it may go on, as it last told, which it does about once a second. `None` where there is none any more.
    #[must_use]
    pub fn predecessor(&self) -> Option<&DrainStatus> {
        self.driver.drainer()
    }

    /// How the process ended from which this one has taken the service over; `None` as long as it is there.
    ///
    /// The kernel says that it has ended, by its pidfd, and its own last word says how: so a process that is stopped, or
    /// that has drained and not yet exited, is still there. After this process has [resumed](Event::Resume) it is still
    /// that process which is meant, and not the successor that died.
    #[must_use]
    pub fn predecessor_end(&self) -> Option<PredecessorEnd> {
        self.driver.elder_end()
    }

    /// Every entry that the next successor is offered, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.driver.table.iter().map(|held| &*held.entry)
    }

    /// Adds an entry while this process serves: bound and listening at once, and part of the next takeover.
    ///
    /// As long as a predecessor drains it could take the service back, and would not have it: a descriptor that was added
    /// has the promise that nothing is lost once that process is gone.
    ///
    /// # Errors
    /// Each way to make one is refused with [`Error::Frozen`](crate::Error::Frozen) from the offer of a takeover to its
    /// end: whatever is added without an error is inherited.
    pub fn claim<'a>(&'a mut self, name: &'a str) -> Claim<'a> {
        Claim::new(&mut self.driver, name)
    }

    /// Removes an entry: the next successor does not get it. `false`: there is none of that name.
    ///
    /// A listener is closed, and what waits in its queue reset, once the application drops its share: so accept until it
    /// would block, then drop it. The path of a Unix socket is removed once no predecessor can come back for it, if it
    /// still leads to the socket. To replace an entry, remove it and claim its name again: no takeover comes in between.
    ///
    /// # Errors
    /// [`Error::Frozen`](crate::Error::Frozen), as for [`claim`](Serving::claim).
    pub fn remove(&mut self, name: &str) -> Result<bool> {
        self.driver.remove(name)
    }

    /// Counts as in flight until it is dropped.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease::new(self.driver.wake().clone())
    }

    /// A handle that asks this process to leave, from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(self.driver.wake().clone())
    }

    /// Does what can be done without waiting, and gives the next event.
    ///
    /// # Errors
    /// [`Error::Forked`](crate::Error::Forked) in a child of the process that started; [`Error::Io`](crate::Error::Io)
    /// where the kernel refuses what it never should.
    pub fn process(&mut self) -> Result<Option<Event>> {
        if let Some(event) = self.event()? {
            return Ok(Some(event));
        }
        self.driver.process()?;
        self.event()
    }

    fn event(&mut self) -> Result<Option<Event>> {
        while let Some(notice) = self.driver.notice() {
            match notice {
                Notice::Release => return Ok(Some(Event::Release)),
                Notice::StandBy => {
                    self.stands_by = true;
                    return Ok(Some(Event::StandBy));
                }
                Notice::Resume => {
                    self.left = None;
                    self.stands_by = false;
                    // Whoever is told this knows that an earlier release is void: nobody waits for his answer any more.
                    self.driver.resumed()?;
                    return Ok(Some(Event::Resume));
                }
                Notice::Leave(reason) => {
                    self.left = Some(reason);
                    self.stands_by = false;
                    return Ok(Some(Event::Leave(reason)));
                }
                Notice::PredecessorGone(end) => return Ok(Some(Event::PredecessorGone(end))),
                // Of the time before this one, or of a drain, which has a type of its own.
                Notice::Started | Notice::Serving | Notice::Failed(_) | Notice::Exit => {}
                // For a holder alone.
                Notice::Changed | Notice::Ended(_) | Notice::Replaced => {}
            }
        }
        Ok(None)
    }

    /// Says that exclusive work has ended: the answer to each [`Event::Release`]. The successor owns a moment later.
    /// Where the release has been called off in the meantime ([`Event::Resume`] follows), this changes nothing. Until one
    /// of the two has happened, other successors are told to come back later.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn released(&mut self) -> Result<()> {
        self.driver.released()
    }

    /// A new snapshot for the successor: write the state into it, then give it to
    /// [`released_with`](Serving::released_with).
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where there is no descriptor or no memory: then say
    /// [`cannot_release`](Serving::cannot_release), or release without a state.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::new().map_err(|error| Error::io("make a memfd for the state", error))
    }

    /// Says that exclusive work has ended, like [`released`](Serving::released), and hands on the state in which it
    /// ended. The successor has it before it owns: the lock is given back when it has arrived. A successor whose version
    /// of the program takes no state owns without.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where it cannot be sealed, as while somebody has it mapped for writing; nothing is
    /// released then.
    pub fn released_with(&mut self, snapshot: Snapshot) -> Result<()> {
        self.driver.released_with(snapshot)
    }

    /// Says that exclusive work cannot end now: the takeover is called off with this reason, and
    /// [`Event::Resume`] follows. The successor is told.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn cannot_release(&mut self, why: &str) -> Result<()> {
        self.driver.keeps(why)
    }

    /// The state that the predecessor left, where it is written in `schema` and one of these versions, and whole. Once:
    /// a second call gives `None`.
    ///
    /// `None`: start cold. [`Report::state`] says why there is nothing to go on with.
    pub fn take_state(&mut self, schema: &str, versions: RangeInclusive<u32>) -> Option<State> {
        self.driver.take_state(schema, versions)
    }

    /// Notes in the report that this process starts cold although it has its predecessor's state.
    pub fn starts_cold(&mut self, why: &str) {
        self.driver.starts_cold(why);
    }

    /// Asks this process to leave without a successor; [`Event::Leave`] follows. A takeover that is past its `Ready` is
    /// finished first.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn stop(&mut self) -> Result<()> {
        self.driver.stop()
    }

    /// Begins to drain, without waiting: poll what comes back, and call [`Draining::process`]. A process that was not
    /// told to leave stops.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn begin_drain(mut self) -> Result<Draining> {
        if self.left.is_none() {
            self.driver.stop()?;
        }
        self.driver.begin_drain()?;
        Ok(Draining::new(self.driver))
    }
}

pollable!(Serving);
