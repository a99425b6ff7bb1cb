//! A peer that speaks the wire format one frame at a time and need not behave: for a program that tries an owner.
//!
//! [`Handoff`](crate::Handoff) and [`Client`](crate::Client) are for whoever wants something of a service. A [`Peer`]
//! wants to see what the service does with a peer that stops in the middle, speaks out of turn or sends bytes that are
//! no message. It connects as every other peer does and asks who listens; from there on it says what it is told to, and
//! nothing by itself. It takes no lock, and whatever descriptors come are close-on-exec and the caller's to close.
//!
//! What it cannot say well-formed is that it owns the service: that is the one word after which an owner leaves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::connection::{Connection, Incoming};
use crate::control::{self, Connect};
use crate::error::{Error, Refusal, Result};
use crate::fdpass::{self, Receiver};
use crate::guests::Guests;
use crate::protocol::message::{self, Abort, Ack, Ask, Message, Progress, Question, Ready, Room, VERSIONS, Wants};
use crate::status::Status;
use crate::sys;
use crate::wire::{HEADER, Header};

/// The pause before another try where the owner's queue is full: the kernel has no event for that.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// What a successor says first. Every field may hold nonsense.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// The lowest version of the protocol that it speaks.
    pub min_version: u32,
    /// The highest.
    pub max_version: u32,
    /// Names this takeover in the lock file; 0 is not allowed.
    pub nonce: u64,
    /// What it calls itself: the owner's status shows it.
    pub app_version: String,
    /// Whether it wants a look alone.
    pub rehearsal: bool,
}

impl Hello {
    /// One in which nothing is wrong: the versions of this crate and a fresh nonce.
    ///
    /// # Errors
    /// [`Error::Io`] where the kernel has no random bytes.
    pub fn new(app_version: &str) -> Result<Hello> {
        // 0 in the lock file means that nobody is at it.
        let nonce = sys::random().map_err(|error| Error::io("get random bytes", error))?.max(1);
        let (min_version, max_version) = VERSIONS;
        Ok(Hello { min_version, max_version, nonce, app_version: app_version.to_owned(), rehearsal: false })
    }
}

/// What a [`Peer`] can say in the right form, at the right time or not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Say {
    /// It wants to take over, or a rehearsal.
    Hello(Hello),
    /// It has room for so many descriptors.
    Room(u32),
    /// So many descriptors have come, all together.
    Ack(u32),
    /// How far its warm-up is.
    Progress(String),
    /// It could own.
    Ready,
    /// It gives up, with this code.
    Abort(String),
    /// It asks for one status.
    Status,
    /// It asks for a status now and after each change.
    Watch,
}

impl Say {
    fn message(&self) -> Message {
        let ask = |question| Ask::from(question).into();
        match self {
            Say::Hello(hello) => message::Hello {
                min_version: hello.min_version,
                max_version: hello.max_version,
                nonce: hello.nonce,
                pid: std::process::id(),
                app_version: hello.app_version.clone(),
                wants: if hello.rehearsal { Wants::Rehearsal } else { Wants::Takeover },
                network_namespace: None,
                state: false,
                probation_ms: None,
                history: false,
                drain_links: false,
                hold: true,
                replaces: false,
            }
            .into(),
            Say::Room(descriptors) => Room { descriptors: *descriptors }.into(),
            Say::Ack(descriptors) => Ack { descriptors: *descriptors }.into(),
            Say::Progress(text) => Progress { text: text.clone() }.into(),
            Say::Ready => Ready::default().into(),
            Say::Abort(code) => Abort(Refusal::new(code, "")).into(),
            Say::Status => ask(Question::Status),
            Say::Watch => ask(Question::Watch),
        }
    }
}

/// What the owner said.
#[derive(Debug)]
#[non_exhaustive]
pub enum Heard {
    /// It offers a takeover or a rehearsal.
    Offer {
        /// How many entries it will list.
        entries: u32,
        /// How many descriptors it will send.
        descriptors: u32,
        /// The longest that it takes from `ready` to `released`.
        release: Duration,
    },
    /// So many entries of its list.
    Entries(u32),
    /// Descriptors, close-on-exec.
    Descriptors(Vec<OwnedFd>),
    /// The owner lock is free for this takeover.
    Released,
    /// A status, without its listeners: they come in frames of their own.
    Status(Status),
    /// It refused.
    Refused(Refusal),
    /// It called the takeover off.
    Aborted(Refusal),
    /// Something else, by its name in the wire format.
    Other(&'static str),
    /// The connection is at its end.
    End,
}

impl From<Message> for Heard {
    fn from(message: Message) -> Heard {
        match message {
            Message::Offer(offer) => Heard::Offer {
                entries: offer.entries,
                descriptors: offer.descriptors,
                release: Duration::from_millis(offer.release_ms),
            },
            Message::Entries(part) => Heard::Entries(u32::try_from(part.entries.len()).unwrap_or(u32::MAX)),
            Message::Released(_) => Heard::Released,
            Message::Status(status) => Heard::Status(status),
            Message::Refused(why) => Heard::Refused(why),
            Message::Abort(why) => Heard::Aborted(why.0),
            other => Heard::Other(other.word()),
        }
    }
}

/// A connection to the control socket of a service, by which anything can be said.
#[derive(Debug)]
pub struct Peer {
    connection: Connection,
    receiver: Receiver,
    patience: Duration,
    /// The number of the next frame.
    sequence: u32,
}

impl Peer {
    /// Connects, and asks who listens, as a successor does. `patience` bounds this and each later call.
    ///
    /// # Errors
    /// [`Error::Nobody`] where nobody listens; [`Error::Deadline`] where the owner's queue stays full;
    /// [`Error::Stranger`] where neither root nor this process's own user listens; [`Error::Path`].
    pub fn connect(path: impl AsRef<Path>, patience: Duration) -> Result<Peer> {
        let path = control::resolve(path.as_ref())?;
        let end = Instant::now() + patience;
        let stream = loop {
            match control::connect_now(&path)? {
                Connect::Made(stream) => break stream,
                Connect::Unreachable => return Err(Error::Nobody { path }),
                Connect::Full if Instant::now() < end => {
                    // Without descriptors poll(2) only waits.
                    let _ = poll(&mut [], PollTimeout::try_from(FULL_PAUSE).unwrap_or(PollTimeout::ZERO));
                }
                Connect::Full => return Err(Error::Deadline { waiting_for: "the owner to accept", after: patience }),
            }
        };
        let owner = control::peer_credentials(&stream).map_err(|error| Error::io("ask who listens", error))?;
        if !Guests::default().admit(owner.uid, &owner.groups) {
            return Err(Error::Stranger { uid: owner.uid });
        }
        let mut connection = Connection::new(stream, None);
        connection.takes_descriptors = true;
        Ok(Peer { connection, receiver: Receiver::new(), patience, sequence: 0 })
    }

    /// A pidfd of the process that called listen(2) last before this connection was made, which each new owner does:
    /// it becomes readable when that process is dead. `None` where the kernel does not tell (before Linux 6.5).
    #[must_use]
    pub fn listener(&self) -> Option<OwnedFd> {
        sys::peer_pidfd(self.as_fd()).ok()
    }

    /// The bytes of a well-formed frame, which counts as said.
    pub fn frame(&mut self, say: &Say) -> Vec<u8> {
        let message = say.message();
        let body = message.body();
        let mut bytes = self.header(message.kind(), 0, u32::try_from(body.len()).unwrap_or(u32::MAX)).to_vec();
        bytes.extend(body);
        bytes
    }

    /// The bytes of a header for anything at all, with the number that is due.
    pub fn header(&mut self, kind: u8, descriptors: u16, body: u32) -> [u8; HEADER] {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        Header { kind, flags: 0, descriptors, body, sequence }.encode()
    }

    /// Sends a well-formed frame.
    ///
    /// # Errors
    /// As for [`send`](Peer::send).
    pub fn say(&mut self, say: &Say) -> Result<()> {
        let bytes = self.frame(say);
        self.send(&bytes)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// [`Error::HungUp`] where the owner has closed; [`Error::Deadline`] where it does not read; [`Error::Io`].
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        let end = Instant::now() + self.patience;
        while !bytes.is_empty() {
            match fdpass::send_bytes(self.connection.stream(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT, end)?,
                Err(error) => return Err(unsent(error)),
            }
        }
        Ok(())
    }

    /// Sends bytes with descriptors on the first of them. The kernel may refuse it: an owner asks it to, where it can.
    ///
    /// # Errors
    /// As for [`send`](Peer::send).
    pub fn send_descriptors(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let send = || fdpass::send_descriptors(self.connection.stream(), bytes, descriptors);
        sys::without_sigpipe(send).map_err(unsent)
    }

    /// What the owner has said, without waiting; `None` where nothing more is here.
    ///
    /// # Errors
    /// [`Error::Misbehaved`] where that is no message, or descriptors were lost for want of room.
    pub fn hear(&mut self) -> Result<Option<Heard>> {
        match self.connection.read(&mut self.receiver) {
            Incoming::Frame(frame, descriptors) if !descriptors.is_empty() => {
                Message::decode(&frame).map_err(|fault| Error::Misbehaved(fault.to_string()))?;
                Ok(Some(Heard::Descriptors(descriptors)))
            }
            Incoming::Frame(frame, _) => match Message::decode(&frame) {
                Ok(message) => Ok(Some(message.into())),
                Err(fault) => Err(Error::Misbehaved(fault.to_string())),
            },
            Incoming::Blocked => Ok(None),
            Incoming::Crowded => {
                // The kernel is short of something: the bytes stay where they are, and no event will tell.
                let _ = poll(&mut [], PollTimeout::try_from(FULL_PAUSE).unwrap_or(PollTimeout::ZERO));
                Ok(None)
            }
            Incoming::End => Ok(Some(Heard::End)),
            Incoming::Fault(what) => Err(Error::Misbehaved(what)),
            Incoming::NoRoom(_) => Err(Error::Misbehaved("more descriptors than there was room for".to_owned())),
        }
    }

    /// Waits until the owner has said something, or until this much of time has passed. [`hear`](Peer::hear) tells what.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Io`].
    pub fn listen(&self, within: Duration) -> Result<()> {
        self.wait(PollFlags::POLLIN, Instant::now() + within)
    }

    fn wait(&self, flags: PollFlags, end: Instant) -> Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Deadline { waiting_for: "the owner", after: self.patience });
        }
        // Rounded up, so that the last round does not spin.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.as_fd(), flags)], timeout) {
            Ok(0) => Err(Error::Deadline { waiting_for: "the owner", after: self.patience }),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::io("wait for the owner", errno)),
        }
    }
}

impl AsFd for Peer {
    /// Readable when the owner has said something. Never read from it: [`hear`](Peer::hear) does.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.stream().as_fd()
    }
}

/// A connection that the other side has closed is no error of the kernel's.
fn unsent(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::HungUp,
        _ => Error::io("write to the owner", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Assembler;

    #[test]
    fn what_a_peer_says_is_well_formed_and_numbered() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let patience = Duration::from_secs(1);
        let mut peer =
            Peer { connection: Connection::new(stream, None), receiver: Receiver::new(), patience, sequence: 0 };
        let hello = Hello { rehearsal: true, ..Hello::new("a test").unwrap() };
        let all = [
            (Say::Hello(hello.clone()), "hello"),
            (Say::Room(7), "room"),
            (Say::Ack(7), "ack"),
            (Say::Progress("half".to_owned()), "progress"),
            (Say::Ready, "ready"),
            (Say::Abort("cancelled".to_owned()), "abort"),
            (Say::Status, "ask"),
            (Say::Watch, "ask"),
        ];
        let mut assembler = Assembler::default();
        for (say, word) in all {
            let mut bytes = peer.frame(&say).into_iter();
            let frame = loop {
                let space = assembler.space();
                let count = space.len();
                space.fill_with(|| bytes.next().unwrap());
                if let Some(frame) = assembler.advance(count).unwrap() {
                    break frame;
                }
            };
            assert!(bytes.next().is_none());
            let message = Message::decode(&frame).unwrap();
            assert_eq!(message.word(), word);
            if let Message::Hello(said) = message {
                assert_eq!(
                    (said.nonce, said.wants, said.app_version),
                    (hello.nonce, Wants::Rehearsal, "a test".into())
                );
            }
        }
    }

    #[test]
    fn who_has_hung_up_is_told_from_who_does_not_read() {
        let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let patience = Duration::from_millis(20);
        let mut peer =
            Peer { connection: Connection::new(stream, None), receiver: Receiver::new(), patience, sequence: 0 };
        assert!(matches!(peer.hear(), Ok(None)));
        assert!(matches!(peer.listen(patience), Err(Error::Deadline { .. })));
        assert!(matches!(peer.send(&[0; 4 << 20]), Err(Error::Deadline { .. })));
        drop(other);
        assert!(matches!(peer.send(&[0]), Err(Error::HungUp)));
        assert!(matches!(peer.hear(), Ok(Some(Heard::End))));
    }
}
