//! The end of a process that served: it waits for what is in flight, and takes the service up again where its successor
//! dies meanwhile.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use crate::driver::{Driver, Notice};
use crate::error::Result;
use crate::handoff::pollable;
use crate::serving::Serving;

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The drain deadline passed with something still in flight.
    pub forced: bool,
    /// How many leases were still held.
    pub in_flight: u64,
}

/// What a drain came to.
#[derive(Debug)]
#[must_use = "a service may have come back: accept again"]
pub enum Drained {
    /// Nothing is left to do: exit.
    Done(Summary),
    /// The successor died, and nobody owned the service: this process does again. Accept.
    Resumed(Serving),
}

/// A process that drains.
///
/// It keeps its listeners open, without accepting, until the last moment: should the successor die, what waits in the
/// accept queue is not lost.
#[derive(Debug)]
pub struct Draining {
    driver: Box<Driver>,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Exit,
    Resume,
}

impl Draining {
    pub(crate) fn new(driver: Box<Driver>) -> Draining {
        driver.tell_of_notices();
        Draining { driver, end: None }
    }

    /// How many leases are held.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.driver.wake().leases()
    }

    /// Until the drain deadline; `None` once it has passed.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.driver.drain_left()
    }

    /// Does what can be done without waiting. `true`: it is over, call [`drained`](Draining::drained).
    ///
    /// # Errors
    /// As for [`Serving::process`].
    pub fn process(&mut self) -> Result<bool> {
        self.driver.process()?;
        while self.end.is_none() {
            match self.driver.notice() {
                Some(Notice::Exit) => self.end = Some(End::Exit),
                Some(Notice::Resume) => self.end = Some(End::Resume),
                Some(_) => {}
                None => break,
            }
        }
        Ok(self.end.is_some())
    }

    /// How it ended, or this very value where it is too early.
    ///
    /// # Errors
    /// This very value, to be polled on.
    pub fn drained(self) -> std::result::Result<Drained, Draining> {
        match self.end {
            Some(End::Exit) => {
                let (forced, in_flight) = self.driver.drain_summary();
                Ok(Drained::Done(Summary { forced, in_flight }))
            }
            Some(End::Resume) => Ok(Drained::Resumed(Serving::new(self.driver))),
            None => Err(self),
        }
    }
}

pollable!(Draining);
