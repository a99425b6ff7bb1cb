//! The blocking face: each wait is one poll(2), without a thread of its own and without a period.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::deadline;
use crate::drain::Drained;
use crate::error::{Error, Result};
use crate::handoff::Handoff;
use crate::holder::{Holder, HolderEvent};
use crate::protocol::predecessor::Reason;
use crate::rehearsal::Rehearsal;
use crate::serving::{Event, Serving};
use crate::starting::Starting;
use crate::status::PredecessorEnd;

impl Handoff {
    /// Starts, and waits until everything is here: as the successor of the process that serves, or as the first.
    ///
    /// # Errors
    /// Every reason for which this process can be neither; see [`Error`]. A predecessor goes on serving.
    pub fn start(self) -> Result<Starting> {
        let mut joining = self.begin()?;
        loop {
            if joining.process()? {
                match joining.started() {
                    Ok(starting) => return Ok(starting),
                    Err(early) => joining = early,
                }
            }
            wait(&[joining.as_fd()], None)?;
        }
    }

    /// Rehearses a takeover, and waits for it: everything is received and checked, and nothing taken. The owner does
    /// not notice.
    ///
    /// # Errors
    /// As for [`start`](Handoff::start), and [`Error::Nobody`].
    pub fn rehearse(self) -> Result<Rehearsal> {
        let mut joining = self.begin_rehearsal()?;
        loop {
            if joining.process()? {
                match joining.started() {
                    Ok(starting) => return Ok(Rehearsal::new(starting)),
                    Err(early) => joining = early,
                }
            }
            wait(&[joining.as_fd()], None)?;
        }
    }
}

impl Handoff {
    /// Keeps what the owner has beside it, and waits until everything is here; see [`Holder`].
    ///
    /// # Errors
    /// As for [`begin_hold`](Handoff::begin_hold), and every reason for which the owner gives nothing.
    pub fn hold(self) -> Result<Holder> {
        let mut holder = self.begin_hold()?;
        // The first event that there can be.
        holder.wait()?;
        Ok(holder)
    }
}

impl Holder {
    /// Waits for the next event.
    ///
    /// # Errors
    /// As for [`process`](Holder::process).
    pub fn wait(&mut self) -> Result<HolderEvent> {
        loop {
            if let Some(event) = self.process()? {
                return Ok(event);
            }
            wait(&[self.as_fd()], None)?;
        }
    }
}

impl Starting {
    /// Waits for that long, while the control socket is answered and the predecessor is heard.
    ///
    /// # Errors
    /// As for [`process`](Starting::process).
    pub fn wait(&mut self, duration: Duration) -> Result<()> {
        let end = deadline::after(duration);
        loop {
            self.process()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            wait(&[self.as_fd()], Some(left))?;
        }
    }

    /// Says that this process is ready, and waits until it owns.
    ///
    /// # Errors
    /// The end of the attempt; then this process never owns by it, and a predecessor goes on serving.
    pub fn ready(self) -> Result<Serving> {
        let mut committing = self.begin_ready()?;
        loop {
            if committing.process()? {
                match committing.serving() {
                    Ok(serving) => return Ok(serving),
                    Err(early) => committing = early,
                }
            }
            wait(&[committing.as_fd()], None)?;
        }
    }
}

/// A listener that [`Serving::accept`] knows how to accept from.
pub trait Accept: AsFd {
    /// What an accepted connection is.
    type Stream;
    /// Where it comes from.
    type Address;

    /// accept(2), without waiting.
    ///
    /// # Errors
    /// `WouldBlock` where nothing waits; whatever accept(2) says.
    fn accept_now(&self) -> std::io::Result<(Self::Stream, Self::Address)>;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Address = SocketAddr;

    fn accept_now(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        self.accept()
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    type Address = std::os::unix::net::SocketAddr;

    fn accept_now(&self) -> std::io::Result<(UnixStream, std::os::unix::net::SocketAddr)> {
        self.accept()
    }
}

impl<T: Accept> Accept for Arc<T> {
    type Stream = T::Stream;
    type Address = T::Address;

    fn accept_now(&self) -> std::io::Result<(T::Stream, T::Address)> {
        (**self).accept_now()
    }
}

impl Serving {
    /// The next connection, in blocking mode; `None` when somebody else serves now, or a stop was asked for: then
    /// [`drain`](Serving::drain).
    ///
    /// Standing by and resuming are dealt with in here. So is [`Event::Release`], which is answered at once: a program
    /// with exclusive work uses [`wait`](Serving::wait) or [`process`](Serving::process) and sees it.
    ///
    /// # Errors
    /// As for [`process`](Serving::process), and whatever accept(2) says but for errors of the one connection. `EMFILE`
    /// comes back to the caller: end something, then accept again. `EINVAL` is what a new listener says that another program
    /// was faster with after the commit: the [report](Serving::report) has it as missing, and all others serve.
    pub fn accept<L: Accept>(&mut self, listener: &L) -> Result<Option<(L::Stream, L::Address)>> {
        loop {
            while let Some(event) = self.process()? {
                if event == Event::Release {
                    self.released()?;
                }
            }
            if self.left().is_some_and(Reason::is_served) {
                return Ok(None);
            }
            if self.stands_by() {
                wait(&[self.as_fd()], None)?;
                continue;
            }
            match listener.accept_now() {
                Ok(accepted) => return Ok(Some(accepted)),
                Err(error) => match error.kind() {
                    // Nobody comes after this process: what waits in the queue is served before it closes.
                    std::io::ErrorKind::WouldBlock if self.left().is_some() => return Ok(None),
                    std::io::ErrorKind::WouldBlock => wait(&[self.as_fd(), listener.as_fd()], None)?,
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(Error::io("accept a connection", error)),
                },
            }
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// As for [`process`](Serving::process).
    pub fn wait(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.process()? {
                return Ok(event);
            }
            wait(&[self.as_fd()], None)?;
        }
    }

    /// Waits until the process has ended from which this one has taken the service over, for so long at most.
    /// [`PredecessorEnd::Absent`] where there was none. `None`: it is still there, because the time is over, or because
    /// something has happened that cannot wait; the next [`process`](Serving::process) says what that is.
    ///
    /// The control socket is answered meanwhile, and nothing is accepted. A program that serves meanwhile learns of the end
    /// by [`Event::PredecessorGone`], which follows in any case.
    ///
    /// # Errors
    /// As for [`process`](Serving::process).
    pub fn wait_for_predecessor(&mut self, within: Duration) -> Result<Option<PredecessorEnd>> {
        self.driver.await_elder(within)?;
        loop {
            if let Some(end) = self.driver.look_for_elder()? {
                return Ok(end);
            }
            wait(&[self.as_fd()], None)?;
        }
    }

    /// Waits until nothing is in flight any more, or until the drain deadline, and ends this process's part. A process
    /// that was not told to leave stops.
    ///
    /// # Errors
    /// As for [`process`](Serving::process).
    pub fn drain(self) -> Result<Drained> {
        let mut draining = self.begin_drain()?;
        loop {
            if draining.process()? {
                match draining.drained() {
                    Ok(drained) => return Ok(drained),
                    Err(early) => draining = early,
                }
            }
            wait(&[draining.as_fd()], None)?;
        }
    }
}

/// Waits until one of these is readable, or for that long. Signals interrupt it, and the caller looks again.
fn wait(descriptors: &[BorrowedFd<'_>], within: Option<Duration>) -> Result<()> {
    let mut waiting: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    // Rounded up, so that the last round does not spin.
    let timeout = within.map_or(PollTimeout::NONE, |within| {
        PollTimeout::try_from(within + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut waiting, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Error::io("poll", errno)),
    }
}
