//! One eventfd through which other threads reach a handoff: to stop it, and to say that the last lease is gone.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ages::{Age, Ages};
use crate::error::{Error, Result};

/// What the threads of a process share with its handoff.
#[derive(Debug)]
pub(crate) struct Wake {
    event: EventFd,
    stop: AtomicBool,
    leases: AtomicU64,
    ages: Ages,
    draining: AtomicBool,
}

impl Wake {
    pub(crate) fn new() -> Result<Wake> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags).map_err(|errno| Error::io("make an eventfd", errno))?;
        Ok(Wake {
            event,
            stop: AtomicBool::new(false),
            leases: AtomicU64::new(0),
            ages: Ages::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Asks for a stop; writes to the eventfd and does nothing else, so a signal handler may call it (eventfd(2)).
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.again();
    }

    /// Makes the handoff's descriptor readable.
    pub(crate) fn again(&self) {
        // Fails only where the counter is full, and then it is readable anyway.
        let _ = self.event.write(1);
    }

    /// Whether a stop was asked for since the last look.
    pub(crate) fn take_stop(&self) -> bool {
        // Edge-triggered: each write is an event of its own, and the counter needs no reading before it is full.
        let _ = self.event.read();
        self.stop.swap(false, Ordering::SeqCst)
    }

    /// How many leases are held.
    pub(crate) fn leases(&self) -> u64 {
        self.leases.load(Ordering::SeqCst)
    }

    /// For how long the oldest lease has been held, to the second.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.ages.oldest()
    }

    pub(crate) fn take_lease(&self) -> Age {
        self.leases.fetch_add(1, Ordering::SeqCst);
        self.ages.take()
    }

    pub(crate) fn drop_lease(&self, age: Age) {
        self.ages.give_back(age);
        if self.leases.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_draining() {
            self.again();
        }
    }

    /// Whether this process has been told to leave.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
