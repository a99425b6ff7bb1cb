//! A process that keeps the entries beside an owner: performs what the holder's machine wants.
//!
//! Each session with an owner is a driver of its own, and so is the time in which this process owns: a whole set of
//! descriptors is only ever replaced by another whole one, and nothing is closed before that.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use mio::Interest;

use super::joining::nonce;
use super::{Driver, Key, Notice, Settings};
use crate::error::{Error, Result};
use crate::poller::Poller;
use crate::protocol::holder::{Holder, Input, Look, Notice as Told, Output};
use crate::protocol::predecessor::{self, Claim, Found, Reason};
use crate::protocol::{Timer, holder};
use crate::status::{Phase, Status};
use crate::sys;
use crate::table::Table;
use crate::wake::Wake;

/// Tokens of the outer poller.
const WAKE: usize = 0;
const FIRST_DRIVER: usize = 1;

/// The longest pause that an owner can ask for, and that after a refusal which does not pass by itself.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

impl Driver {
    /// With the owner lock in hand, and everything of the last owner: writes the generation, and answers as the owner.
    fn go_on_holding(&mut self, generation: u64) {
        if let Err(error) = self.family.record(generation, 0) {
            // Nobody else is left to serve.
            log::error!("cannot write the lock file: {error}");
        }
        if let Some(pidfd) = self.elder_pidfd.take() {
            self.poller.forget(pidfd.as_fd());
        }
        if let Some(link) = self.link.take() {
            self.forget_peer(link);
        }
        self.forget_leaving();
        // What follows is said to others; nothing is heard of that owner any more.
        self.successor = None;
        self.starter = None;
        for held in self.table.iter_mut() {
            held.claimed = true;
        }
        self.set_nonblocking();
        self.become_owner(generation);
        // What does not listen is in the log.
        let _ = self.listen_all();
        self.start_control();
        self.owner(predecessor::Input::Ready);
        self.watch_folder();
        info!("holding: generation {generation}, {} entries; connections wait", self.table.len());
    }
}

impl Driver {
    /// As what this process has owned before, it is forgotten; a hold goes on.
    fn forget_leaving(&mut self) {
        if self.predecessor.is_none() {
            return;
        }
        self.keep_hold_for_next();
        self.draining = false;
        self.finished = None;
        self.wake.set_draining(false);
        self.poller.disarm(Key::Drain);
        if let Some((_, pidfd)) = self.heir_pidfd.take() {
            self.poller.forget(pidfd.as_fd());
        }
        self.wake_drainers();
    }

    /// Whether it drains although its drain deadline has passed, by itself or because somebody has said so: it waits for
    /// what its successor has to give.
    fn is_overdue(&self) -> bool {
        self.phase() == Phase::Draining && !self.draining && self.drain_left().is_none()
    }
}

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Holding {
    /// The process that made it: a forked child must not act.
    pid: u32,
    settings: Settings,
    wake: Arc<Wake>,
    poller: Poller<Timer>,
    next_token: usize,
    machine: Holder,
    /// What is kept: of the owner that is followed, or as the owner.
    kept: Option<Box<Driver>>,
    /// The attempt of the moment.
    attempt: Option<Box<Driver>>,
    /// As what this process has owned, until it has said its last words; it may yet own again.
    leaving: Option<Box<Driver>>,
    /// Why the last attempt came to nothing.
    failure: Option<Error>,
    inputs: VecDeque<Input>,
    notices: VecDeque<Told>,
}

impl Holding {
    /// Begins: everything that needs no waiting is done at once.
    pub(crate) fn begin(mut settings: Settings, wake: Arc<Wake>) -> Result<Holding> {
        let poller = Poller::new().map_err(|error| Error::io("make an epoll instance", error))?;
        poller
            .watch(wake.as_fd(), WAKE, Interest::READABLE)
            .map_err(|error| Error::io("watch the stop handle", error))?;
        settings.nonce = Some(nonce()?);
        let mut out = Vec::new();
        let mut holding = Holding {
            pid: std::process::id(),
            machine: Holder::new(settings.deadlines, &mut out),
            settings,
            wake,
            poller,
            next_token: FIRST_DRIVER,
            kept: None,
            attempt: None,
            leaving: None,
            failure: None,
            inputs: VecDeque::new(),
            notices: VecDeque::new(),
        };
        holding.perform(out)?;
        holding.run()?;
        holding.set_timer()?;
        Ok(holding)
    }

    /// Does everything that can be done without waiting, and gives the next notice.
    pub(crate) fn process(&mut self) -> Result<Option<Told>> {
        if std::process::id() != self.pid {
            return Err(Error::Forked);
        }
        if let Some(notice) = self.notices.pop_front() {
            return Ok(Some(notice));
        }
        loop {
            // Input before timers, as everywhere: what is ready tells no more than that there is something.
            self.poller.ready().map_err(|error| Error::io("poll", error))?;
            if self.wake.take_stop() {
                self.inputs.push_back(Input::Stop);
            }
            self.hear()?;
            self.run()?;
            let Some(timer) = self.poller.expired() else { break };
            self.inputs.push_back(Input::Expired(timer));
            self.run()?;
        }
        self.set_timer()?;
        Ok(self.notices.pop_front())
    }

    fn set_timer(&mut self) -> Result<()> {
        if !self.notices.is_empty() {
            self.wake.again();
        }
        self.poller.set_timer().map_err(|error| Error::io("set the timer", error))
    }

    fn run(&mut self) -> Result<()> {
        while let Some(input) = self.inputs.pop_front() {
            let mut out = Vec::new();
            self.machine.handle(input, &mut out);
            self.perform(out)?;
        }
        // Of a start that kept nothing there is nobody but the caller to tell.
        match self.failure.take() {
            Some(error) if !self.machine.keeps() && !self.machine.is_over() => Err(error),
            _ => Ok(()),
        }
    }

    /// Lets each driver do what it can, and takes what it tells.
    fn hear(&mut self) -> Result<()> {
        if let Some(kept) = &mut self.kept {
            kept.process()?;
            while let Some(notice) = kept.notice() {
                match notice {
                    Notice::Changed => self.inputs.push_back(Input::Changed),
                    Notice::Ended(why) => self.inputs.push_back(Input::Ended(why)),
                    Notice::Leave(Reason::Successor | Reason::RolledBack) => self.inputs.push_back(Input::Left),
                    Notice::Leave(Reason::Stopped) => kept.begin_drain()?,
                    Notice::Resume => self.inputs.push_back(Input::Resumed),
                    Notice::Replaced => self.inputs.push_back(Input::Replaced),
                    Notice::Exit => self.inputs.push_back(Input::Gone),
                    Notice::StandBy | Notice::PredecessorGone(_) => {}
                    Notice::Started | Notice::Serving | Notice::Release | Notice::Failed(_) => {}
                }
            }
            if kept.is_overdue() {
                self.inputs.push_back(Input::Overdue);
            }
        }
        self.run()?;
        if let Some(attempt) = &mut self.attempt {
            let mut whole = false;
            let mut failure = attempt.process().err();
            let mut later = Vec::new();
            while let Some(notice) = attempt.notice() {
                match notice {
                    Notice::Started => whole = true,
                    Notice::Failed(error) => failure = Some(error),
                    // That of what is kept from now on.
                    Notice::Changed => later.push(Input::Changed),
                    Notice::Ended(why) => later.push(Input::Ended(why)),
                    _ => {}
                }
            }
            if let Some(error) = failure {
                self.failed(error);
            } else if whole {
                self.swap()?;
            }
            self.inputs.extend(later);
        }
        self.run()?;
        let Some(leaving) = &mut self.leaving else { return Ok(()) };
        leaving.process()?;
        let mut resumed = false;
        let mut over = false;
        while let Some(notice) = leaving.notice() {
            resumed |= matches!(notice, Notice::Resume);
            over |= matches!(notice, Notice::Exit);
        }
        if resumed {
            // Its successor died, and with it what was kept of that.
            let again = self.leaving.take();
            let kept = std::mem::replace(&mut self.kept, again);
            self.discard(kept);
            self.inputs.push_back(Input::Resumed);
        } else if over {
            let over = self.leaving.take();
            self.discard(over);
        }
        self.run()
    }

    /// An attempt came to nothing.
    fn failed(&mut self, error: Error) {
        let attempt = self.attempt.take();
        self.discard(attempt);
        let refused = matches!(&error, Error::Refused(why) if why.retry_after_ms.is_none());
        let after = match &error {
            Error::Refused(why) | Error::GaveUp(why) => {
                let after = why.retry_after_ms.map_or(LONGEST_RETRY, Duration::from_millis);
                Some(after.clamp(Duration::from_millis(10), LONGEST_RETRY))
            }
            _ => None,
        };
        if self.machine.keeps() {
            warn!("cannot follow the owner, what is kept stays: {error}");
        }
        self.failure = Some(error);
        self.inputs.push_back(Input::Failed { after, refused });
    }

    /// The attempt has everything: it is what is kept from here on, and what was kept before is closed.
    fn swap(&mut self) -> Result<()> {
        let Some(attempt) = self.attempt.take() else { return Ok(()) };
        // Only once: two that were both started in place of the others would take turns.
        self.settings.replaces = false;
        let generation = attempt.generation().saturating_sub(1);
        let mut before = self.kept.replace(attempt);
        if self.machine.has_owned()
            && let Some(last) = &mut before
        {
            // Its last look at the lock, and its last words.
            last.begin_drain()?;
            let older = std::mem::replace(&mut self.leaving, before);
            self.discard(older);
        } else {
            self.discard(before);
        }
        self.inputs.push_back(Input::Whole { generation });
        Ok(())
    }

    fn discard(&mut self, driver: Option<Box<Driver>>) {
        if let Some(driver) = driver {
            self.poller.forget(driver.as_fd());
        }
    }

    fn perform(&mut self, out: Vec<Output>) -> Result<()> {
        for output in out {
            match output {
                Output::Ask => match self.ask() {
                    Ok(attempt) => self.attempt = Some(attempt),
                    Err(error) => self.failed(error),
                },
                Output::CallOff => {
                    let attempt = self.attempt.take();
                    self.discard(attempt);
                }
                Output::Look => {
                    let look = self.kept.as_ref().map_or(Ok(Look::Unknown), |kept| kept.family.look());
                    let look = look.unwrap_or_else(|error| {
                        warn!("cannot look at the owner lock: {error}");
                        Look::Unknown
                    });
                    self.inputs.push_front(Input::Looked(look));
                }
                Output::Claim(claim) => {
                    let found = self.claim(claim);
                    self.inputs.push_front(Input::Claimed(found));
                }
                Output::Own { generation } => {
                    if let Some(kept) = &mut self.kept {
                        kept.go_on_holding(generation);
                        kept.leave()?;
                    }
                }
                Output::Leave => {
                    if let Some(kept) = &mut self.kept {
                        kept.stop()?;
                    }
                }
                Output::Drain => {
                    if let Some(kept) = &mut self.kept {
                        info!("the next owner gives this process nothing: what it has it keeps on its own account");
                        kept.begin_drain()?;
                    }
                }
                Output::Tells(notice) => {
                    if let holder::Notice::Over(_) = notice {
                        for driver in [self.attempt.take(), self.leaving.take()] {
                            self.discard(driver);
                        }
                    }
                    self.notices.push_back(notice);
                }
                Output::Arm(timer, after) => self.poller.arm(timer, after),
                Output::Disarm(timer) => self.poller.disarm(timer),
            }
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<Box<Driver>> {
        let within = self.settings.deadlines.start;
        let driver = Driver::begin(self.settings.clone(), within, Arc::new(Wake::new()?))?;
        let token = self.next_token;
        self.next_token += 1;
        self.poller
            .watch(driver.as_fd(), token, Interest::READABLE)
            .map_err(|error| Error::io("watch a session", error))?;
        Ok(driver)
    }

    fn claim(&self, claim: Claim) -> Found {
        let Some(kept) = &self.kept else { return Found::Unknown };
        kept.family.reclaim(claim, 0).unwrap_or_else(|error| {
            warn!("cannot take the owner lock: {error}");
            Found::Unknown
        })
    }

    /// What this process tells about itself while it owns.
    pub(crate) fn status(&self) -> Option<Status> {
        self.kept.as_ref().map(|kept| kept.status())
    }

    /// What is kept.
    pub(crate) fn table(&self) -> Option<&Table> {
        self.kept.as_ref().map(|kept| &kept.table)
    }

    /// Whether this process owns.
    pub(crate) fn has_owned(&self) -> bool {
        self.machine.has_owned()
    }

    /// The generation that is followed, or owned.
    pub(crate) fn generation(&self) -> u64 {
        let Some(kept) = &self.kept else { return 0 };
        // A session has that of the owner's successor.
        let next = if kept.predecessor.is_some() { 0 } else { 1 };
        kept.generation().saturating_sub(next)
    }

    /// The handle that wakes this process.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }
}

impl AsRawFd for Holding {
    fn as_raw_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }
}

impl AsFd for Holding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.poller)
    }
}
