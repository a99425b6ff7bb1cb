//! A control client: asks an owner, and changes nothing but where it asks for a stop or for a hold.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connection::{Connection, Flush, Incoming};
use crate::control::{self, Connect};
use crate::deadline;
use crate::error::{Error, Result};
use crate::fdpass::Receiver;
use crate::history::TakeoverRecord;
use crate::hold::Hold;
use crate::protocol::message::{Ask, Message, Question, cut};
use crate::status::Status;

/// The pause before another try where the owner's queue is full: the kernel has no event for that.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// The pause before another try where the kernel is short of memory, in milliseconds: it has no event for that either.
const SHORTAGE_PAUSE: u8 = 10;

/// A connection to the control socket of a service.
///
/// An order that the owner has not read when this is dropped, because it is stopped (`SIGSTOP`) or busy, is not followed
/// when it goes on. One that it has read may still be carried out after [`Error::Deadline`].
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    receiver: Receiver,
    timeout: Duration,
    /// A status whose listeners are still coming.
    partial: Option<Status>,
}

impl Client {
    /// Connects. `timeout` bounds this and each later question.
    ///
    /// # Errors
    /// [`Error::Nobody`] where nobody listens; [`Error::Deadline`] where the owner does not accept; [`Error::Path`].
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Client> {
        let path = control::resolve(path.as_ref())?;
        let end = deadline::after(timeout);
        loop {
            match control::connect_now(&path)? {
                Connect::Made(stream) => {
                    let connection = Connection::new(stream, None);
                    return Ok(Client { connection, receiver: Receiver::new(), timeout, partial: None });
                }
                Connect::Unreachable => return Err(Error::Nobody { path }),
                Connect::Full if Instant::now() < end => {
                    // Without descriptors poll(2) only waits.
                    let _ = poll(&mut [], PollTimeout::try_from(FULL_PAUSE).unwrap_or(PollTimeout::ZERO));
                }
                Connect::Full => return Err(Error::Deadline { waiting_for: "the owner to accept", after: timeout }),
            }
        }
    }

    /// Asks for a status.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Deadline`], [`Error::HungUp`], [`Error::Misbehaved`].
    pub fn status(&mut self) -> Result<Status> {
        self.ask(Question::Status)?;
        self.next(Some(self.timeout))?.ok_or(Error::Deadline { waiting_for: "a status", after: self.timeout })
    }

    /// Asks for a status now and after each change; [`next`](Client::next) gives them.
    ///
    /// # Errors
    /// As for [`status`](Client::status).
    pub fn watch(&mut self) -> Result<()> {
        self.ask(Question::Watch)
    }

    /// The next status of a watch; `None` where `within` passed without one. Without a limit it waits.
    ///
    /// # Errors
    /// [`Error::HungUp`] where the process that was watched is gone; otherwise as for [`status`](Client::status).
    pub fn next(&mut self, within: Option<Duration>) -> Result<Option<Status>> {
        let end = within.map(deadline::after);
        loop {
            let message = match self.receive(end) {
                Err(Error::Deadline { .. }) => return Ok(None),
                received => received?,
            };
            match (message, &mut self.partial) {
                (Message::Status(status), _) => self.partial = Some(status),
                (Message::Listeners(list), Some(status)) => status.listeners.extend(list.listeners),
                (Message::Refused(why), _) => return Err(Error::Refused(why)),
                (Message::Done(_) | Message::Unknown(_), _) => {}
                (message, _) => return Err(unexpected(&message)),
            }
            let whole = self.partial.take_if(|status| status.listeners.len() >= status.listener_count as usize);
            if whole.is_some() {
                return Ok(whole);
            }
            // Who talks on and on, and never to the point, has not answered in time.
            if is_past(end) {
                return Ok(None);
            }
        }
    }

    /// Asks for the last takeovers, the newest last: those of the owner, and what it was told of those before it. 32 at
    /// most, of which 8 may have been refused and 8 have failed.
    ///
    /// They are kept in memory and go from generation to generation: where a service ends, or all of its processes die,
    /// they end with it.
    ///
    /// # Errors
    /// As for [`status`](Client::status); [`Error::Refused`] with `unsupported` by an owner that keeps none.
    pub fn history(&mut self) -> Result<Vec<TakeoverRecord>> {
        self.ask(Question::History)?;
        let end = deadline::after(self.timeout);
        loop {
            match self.receive(Some(end))? {
                Message::History(history) => return Ok(history.takeovers),
                Message::Refused(why) => return Err(Error::Refused(why)),
                Message::Status(_) | Message::Listeners(_) | Message::Unknown(_) => {}
                message => return Err(unexpected(&message)),
            }
            if is_past(Some(end)) {
                return Err(Error::Deadline { waiting_for: "the history", after: self.timeout });
            }
        }
    }

    /// Asks the owner to leave without a successor. It answers when it has begun; watch it to see it go.
    ///
    /// # Errors
    /// As for [`status`](Client::status).
    pub fn stop(&mut self) -> Result<()> {
        self.order(Question::Stop)
    }

    /// Ends the probation of the owner, forwards: it stays, and the predecessor that stands by drains.
    ///
    /// # Errors
    /// As for [`status`](Client::status); refused with `no-probation` where there is none.
    pub fn confirm(&mut self) -> Result<()> {
        self.order(Question::Confirm)
    }

    /// Ends the probation of the owner, backwards, and waits until the predecessor that stands by owns. `reason` is for
    /// people.
    ///
    /// # Errors
    /// As for [`status`](Client::status). Refused with `no-probation` where there is none, with `link-lost` where the
    /// predecessor cannot be told, and with `release`, `deadline` or `commit` where it came to nothing: the owner serves
    /// on.
    pub fn roll_back(&mut self, reason: &str) -> Result<()> {
        self.order(Ask { reason: cut(reason.to_owned()), ..Ask::from(Question::Rollback) })
    }

    /// Asks the owner to stand by for so long after its next takeover, whether or not the successor asks for it. Holds as
    /// long as this client is connected.
    ///
    /// # Errors
    /// As for [`status`](Client::status).
    pub fn want_probation(&mut self, time: Duration) -> Result<()> {
        let probation_ms = Some(time.as_millis() as u64);
        self.order(Ask { probation_ms, ..Ask::from(Question::Probation) })
    }

    /// Has the owner refuse takeovers, with this reason, until [`lift`](Client::lift) or until so much time has passed;
    /// in the place of an earlier hold, if there is one.
    ///
    /// A takeover that is under way is called off (its successor is told `held`, and why), unless its successor has
    /// said that it is ready: then it is finished, and the new owner goes on with the hold. Rehearsals are not refused,
    /// and neither is the way back from a probation. The hold is kept in memory and goes from owner to owner, by way of
    /// a holder as well; it ends with the last process of the service.
    ///
    /// Of the reason 1,024 bytes are kept, without control characters; of the time whole milliseconds.
    ///
    /// # Errors
    /// As for [`status`](Client::status): [`Error::Refused`] with `draining` by a process that is no longer the owner,
    /// with `stopping` by one that is about to leave, with `unsupported` by one that knows no hold.
    pub fn hold(&mut self, reason: &str, within: Option<Duration>) -> Result<()> {
        let left_ms = within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        let hold = Some(Hold { reason: cut(reason.to_owned()), left_ms, ..Hold::default() });
        self.order(Ask { hold, ..Question::Hold.into() })
    }

    /// Has the owner refuse takeovers no longer. Where there is no hold this changes nothing.
    ///
    /// # Errors
    /// As for [`hold`](Client::hold).
    pub fn lift(&mut self) -> Result<()> {
        self.order(Question::Lift)
    }

    /// Moves the drain deadline of those who drain, or of the one that owned this generation: a predecessor of the owner,
    /// those before it that the owner still knows, and an owner that was asked to stop. It answers when they have obeyed.
    ///
    /// # Errors
    /// As for [`status`](Client::status); [`Error::Refused`] with `no-drain` where nobody drains, with `deadline` where
    /// one that drains has not obeyed within 3 s (it may be stopped, and obeys when it goes on), and with `unsupported`
    /// by an owner, or for a predecessor, of a version that cannot do it.
    pub fn extend_drain(&mut self, by: Duration, generation: Option<u64>) -> Result<()> {
        let by_ms = Some(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        self.order(Ask { by_ms, generation, ..Question::ExtendDrain.into() })
    }

    /// Ends the drain of those who drain, or of the one that owned this generation, as if its deadline had passed. It
    /// answers when they have begun to end, or have ended.
    ///
    /// # Errors
    /// As for [`extend_drain`](Client::extend_drain).
    pub fn finish_drain(&mut self, generation: Option<u64>) -> Result<()> {
        self.order(Ask { generation, ..Question::FinishDrain.into() })
    }

    /// Asks for something to be done, and waits until it is.
    fn order(&mut self, ask: impl Into<Ask>) -> Result<()> {
        self.ask(ask)?;
        let end = deadline::after(self.timeout);
        loop {
            match self.receive(Some(end))? {
                Message::Done(_) => return Ok(()),
                Message::Refused(why) => return Err(Error::Refused(why)),
                Message::Status(_) | Message::Listeners(_) | Message::Unknown(_) => {}
                message => return Err(unexpected(&message)),
            }
            if is_past(Some(end)) {
                return Err(Error::Deadline { waiting_for: "the owner", after: self.timeout });
            }
        }
    }

    fn ask(&mut self, ask: impl Into<Ask>) -> Result<()> {
        self.connection.send(&ask.into().into());
        let end = deadline::after(self.timeout);
        loop {
            match self.connection.flush() {
                Flush::Empty => return Ok(()),
                // It may have said why before it hung up.
                Flush::Broken => return Ok(()),
                Flush::Blocked => self.wait(PollFlags::POLLOUT, Some(end))?,
                Flush::Crowded => self.wait_for_room(PollFlags::POLLOUT, Some(end))?,
            }
        }
    }

    fn receive(&mut self, end: Option<Instant>) -> Result<Message> {
        loop {
            match self.connection.read(&mut self.receiver) {
                Incoming::Frame(frame, _) => {
                    return Message::decode(&frame).map_err(|fault| Error::Misbehaved(fault.to_string()));
                }
                Incoming::Blocked => self.wait(PollFlags::POLLIN, end)?,
                Incoming::Crowded => self.wait_for_room(PollFlags::POLLIN, end)?,
                Incoming::End => return Err(Error::HungUp),
                Incoming::Fault(what) => return Err(Error::Misbehaved(what)),
                Incoming::NoRoom(_) => return Err(Error::Misbehaved("descriptors where none belong".to_owned())),
            }
        }
    }

    /// The kernel is short of something; the socket itself would be ready.
    fn wait_for_room(&self, flags: PollFlags, end: Option<Instant>) -> Result<()> {
        // Without descriptors poll(2) only waits.
        let _ = poll(&mut [], SHORTAGE_PAUSE);
        self.wait(flags, end)
    }

    fn wait(&self, flags: PollFlags, end: Option<Instant>) -> Result<()> {
        let timeout = match end {
            None => PollTimeout::NONE,
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::Deadline { waiting_for: "the owner", after: self.timeout });
                }
                // Rounded up, so that the last round does not spin.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(self.as_fd(), flags)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::io("wait for the owner", errno)),
        }
    }
}

impl AsFd for Client {
    /// Readable when the owner has said something. Never read from it: it has frames of its own.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.stream().as_fd()
    }
}

fn is_past(end: Option<Instant>) -> bool {
    end.is_some_and(|end| Instant::now() >= end)
}

fn unexpected(message: &Message) -> Error {
    Error::Misbehaved(format!("{} as an answer", message.word()))
}
