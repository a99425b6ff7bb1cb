//! Everything that a handoff waits for, behind one descriptor: an epoll instance of its own, with a timer in it.
//!
//! Whoever holds the handoff polls that descriptor, or registers it with an event loop of his own, and calls `process`
//! when it is readable. Nothing is registered that wakes an idle owner.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::deadline;

/// The timer's own token; callers use all others.
const TIMER: Token = Token(usize::MAX);
/// How many events one look takes.
const EVENTS: usize = 64;

/// One descriptor for many, and deadlines by key.
#[derive(Debug)]
pub(crate) struct Poller<K> {
    poll: Poll,
    events: Events,
    timer: TimerFd,
    deadlines: BTreeMap<K, Instant>,
    /// What the timer is set to, so that it is set only when that changes.
    set: Option<Instant>,
    /// When the last look at what is ready began.
    looked: Instant,
}

impl<K: Ord + Copy> Poller<K> {
    pub(crate) fn new() -> io::Result<Poller<K>> {
        let poll = Poll::new()?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Poller {
            poll,
            events: Events::with_capacity(EVENTS),
            timer,
            deadlines: BTreeMap::new(),
            set: None,
            looked: Instant::now(),
        })
    }

    /// Watches a descriptor, edge-triggered.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: usize, interest: Interest) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), Token(token), interest)
    }

    /// Watches what is watched already for something else. What is true by now is an event (epoll_ctl(2)).
    pub(crate) fn watch_again(&self, fd: BorrowedFd<'_>, token: usize, interest: Interest) -> io::Result<()> {
        self.poll.registry().reregister(&mut SourceFd(&fd.as_raw_fd()), Token(token), interest)
    }

    /// Stops watching. Always before the descriptor is closed: an epoll entry outlives a close where a duplicate lives.
    pub(crate) fn forget(&self, fd: BorrowedFd<'_>) {
        // Fails only where it was not registered, which is what is wanted.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    /// The tokens of what is ready, without waiting, and whether there may be more than one round takes.
    pub(crate) fn ready(&mut self) -> io::Result<(Vec<usize>, bool)> {
        self.looked = Instant::now();
        loop {
            match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let tokens = self.events.iter().map(|event| event.token());
        let ready: Vec<usize> = tokens.filter(|token| *token != TIMER).map(|token| token.0).collect();
        Ok((ready, self.events.iter().count() == EVENTS))
    }

    /// Sets a deadline; an earlier one of the same key is replaced.
    pub(crate) fn arm(&mut self, key: K, after: Duration) {
        self.deadlines.insert(key, deadline::after(after));
    }

    /// Takes a deadline back.
    pub(crate) fn disarm(&mut self, key: K) {
        self.deadlines.remove(&key);
    }

    /// Takes back every deadline for which this says so.
    pub(crate) fn disarm_all(&mut self, of: impl Fn(&K) -> bool) {
        self.deadlines.retain(|key, _| !of(key));
    }

    /// The deadline of a key, where it is armed.
    pub(crate) fn deadline(&self, key: K) -> Option<Instant> {
        self.deadlines.get(&key).copied()
    }

    /// One deadline that has passed; it is disarmed. The earliest first. Those count that had passed when what is ready was
    /// last looked at: a process that is stopped after that look finds all of them passed, and input that it has not seen.
    pub(crate) fn expired(&mut self) -> Option<K> {
        let (key, _) = self.deadlines.iter().filter(|(_, at)| **at <= self.looked).min_by_key(|(_, at)| **at)?;
        let key = *key;
        self.deadlines.remove(&key);
        Some(key)
    }

    /// Sets the timer to the earliest deadline, or off. Called at the end of each round.
    pub(crate) fn set_timer(&mut self) -> io::Result<()> {
        let earliest = self.deadlines.values().min().copied();
        if earliest == self.set && earliest.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        match earliest {
            // Zero would turn the timer off (timerfd_create(2)).
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                self.timer.set(Expiration::OneShot(left.into()), TimerSetTimeFlags::empty())?;
            }
            None => self.timer.unset()?,
        }
        self.set = earliest;
        Ok(())
    }
}

impl<K> AsRawFd for Poller<K> {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}
