//! A process that keeps the listeners beside an owner, so that connections wait while the service is down.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::driver::holding::Holding;
use crate::error::Result;
use crate::handoff::Stopper;
use crate::manifest::Entry;
use crate::protocol::holder::{End, Notice};
use crate::status::Status;
use crate::sys;

/// What a holder is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HolderEvent {
    /// It has everything that the owner has: at first, after each change of the entries, and after each change of the
    /// owner.
    Following,
    /// Nobody else owns, so this process does, in the phase `holding`: connections wait, and the next start takes over.
    Holding,
    /// It was asked to leave, by its [`Stopper`] or, while it owned, by `ctl stop`. What it kept is closed once it is
    /// dropped.
    Stopped,
    /// Another holder was started in its place, and has everything.
    Replaced,
}

/// A process that keeps what an owner has, and accepts nothing.
///
/// It gets every entry, the family lease and the control listener beside a living owner, and follows changes of both. The
/// owner serves as if it were not there, and a takeover waits for none. When no process owns any more (it died, or left
/// without a successor), and 2 s have passed in which somebody who drains or warms up could have taken the service, the
/// holder owns: it answers the control socket, and the next process that starts is its successor, with the same
/// listeners and with every connection that has waited in their queues. Afterwards it follows that one.
///
/// Its descriptor becomes readable when there is something to do: then call [`process`](Holder::process) until it gives
/// `None`. One that follows an idle owner wakes for nothing.
///
/// Dropping it closes its copies. While an owner lives nobody notices; while this process owns, connections that wait
/// are reset with the listeners.
#[derive(Debug)]
pub struct Holder {
    holding: Holding,
}

impl Holder {
    pub(crate) fn new(holding: Holding) -> Holder {
        Holder { holding }
    }

    /// Does what can be done without waiting, and gives the next event.
    ///
    /// # Errors
    /// Before the first [`HolderEvent::Following`] every reason for which the owner gives nothing:
    /// [`Error::Refused`](crate::Error::Refused) with the code `unsupported` by an owner whose version knows no holders,
    /// with `holders` where enough keep the listeners already. Afterwards what is kept stays whatever an owner says, and
    /// an error is one of this process: [`Error::Io`](crate::Error::Io), [`Error::Forked`](crate::Error::Forked).
    pub fn process(&mut self) -> Result<Option<HolderEvent>> {
        Ok(self.holding.process()?.map(|notice| match notice {
            Notice::Following => HolderEvent::Following,
            Notice::Holding => HolderEvent::Holding,
            Notice::Over(End::Stopped) => HolderEvent::Stopped,
            Notice::Over(End::Replaced) => HolderEvent::Replaced,
        }))
    }

    /// Whether this process owns: nobody serves, and connections wait.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.holding.has_owned()
    }

    /// The generation of the owner that is followed, or that of this process while it owns.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.holding.generation()
    }

    /// What is kept, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.holding.table().into_iter().flat_map(|table| table.iter().map(|held| &*held.entry))
    }

    /// What this process tells about itself, as in `ctl status`; `None` before it keeps anything. Its phase is that of an
    /// owner only while it is one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.holding.status()
    }

    /// Gives memory back that the kernel can bring again by itself: the pages of its program that this process does not use
    /// at the moment. For a process that is a holder and nothing else, after each event; others would run slower for
    /// a moment.
    pub fn trim(&self) {
        sys::drop_file_pages();
    }

    /// A handle that asks this process to leave, from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(self.holding.wake().clone())
    }
}

impl AsRawFd for Holder {
    /// An epoll instance: poll it for reading, never read from it.
    fn as_raw_fd(&self) -> RawFd {
        self.holding.as_raw_fd()
    }
}

impl AsFd for Holder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.holding.as_fd()
    }
}
