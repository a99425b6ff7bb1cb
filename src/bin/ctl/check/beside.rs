//! Questions to the owner beside whatever else goes on: whether it answers, after how long, and what is true of it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use heirloom::probe::{Heard, Peer, Say};
use heirloom::{Error, Status};

use crate::follow::PAUSE;

/// How long an owner may take for an answer, that of connecting included.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long nobody may listen: an owner makes a path again that was removed.
const NOBODY: Duration = Duration::from_millis(500);
/// The pause between two questions.
const INTERVAL: Duration = Duration::from_millis(50);

/// One question after the other, each on a connection of its own as another program would ask it.
#[derive(Debug)]
pub(crate) struct Beside {
    /// The question that is under way, and since when.
    asked: Option<Instant>,
    peer: Option<Peer>,
    /// Not to be connected to, or asked, before.
    not_before: Instant,
    /// Why the last attempt to ask came to nothing.
    trouble: Option<Error>,
    /// The longest that an answer has taken, where there was one.
    pub(crate) slowest: Option<Duration>,
}

impl Beside {
    pub(crate) fn new() -> Beside {
        Beside { asked: None, peer: None, not_before: Instant::now(), trouble: None, slowest: None }
    }

    /// The next question is a new one, and is asked at once. One that is under way has taken this long already.
    pub(crate) fn ask_now(&mut self) {
        self.slowest = self.slowest.max(self.asked.map(|asked| asked.elapsed()));
        (self.asked, self.peer, self.trouble) = (None, None, None);
        self.not_before = Instant::now();
    }

    /// Goes on without waiting; gives an answer, or that there was none for too long.
    pub(crate) fn turn(&mut self, socket: &Path) -> Option<Result<Status, Error>> {
        if Instant::now() < self.not_before {
            return None;
        }
        let asked = *self.asked.get_or_insert_with(Instant::now);
        match self.hear(socket) {
            Ok(Some(status)) => {
                self.slowest = self.slowest.max(Some(asked.elapsed()));
                self.rest();
                return Some(Ok(status));
            }
            Ok(None) => {}
            // Another connection may fare better: a crowd drives out whoever has been silent.
            Err(error) => {
                (self.peer, self.trouble) = (None, Some(error));
                self.not_before = Instant::now() + PAUSE;
            }
        }
        let nobody = matches!(self.trouble, Some(Error::Nobody { .. }));
        if asked.elapsed() < if nobody { NOBODY } else { PATIENCE } {
            return None;
        }
        self.slowest = self.slowest.max(Some(asked.elapsed()));
        let silent = Error::Deadline { waiting_for: "an answer of the owner", after: PATIENCE };
        let trouble = self.trouble.take().unwrap_or(silent);
        self.rest();
        Some(Err(trouble))
    }

    fn hear(&mut self, socket: &Path) -> Result<Option<Status>, Error> {
        let peer = match &mut self.peer {
            Some(peer) => peer,
            None => {
                let mut peer = Peer::connect(socket, Duration::ZERO)?;
                peer.say(&Say::Status)?;
                self.peer.insert(peer)
            }
        };
        match peer.hear()? {
            Some(Heard::Status(status)) => Ok(Some(status)),
            Some(Heard::End) => Err(Error::HungUp),
            Some(Heard::Refused(why)) => Err(Error::Refused(why)),
            _ => Ok(None),
        }
    }

    fn rest(&mut self) {
        (self.asked, self.peer) = (None, None);
        self.not_before = Instant::now() + INTERVAL;
    }

    /// What an answer comes from.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.peer.as_ref().map(AsFd::as_fd)
    }

    /// When there is something to do without an answer.
    pub(crate) fn due(&self) -> Instant {
        match self.asked {
            // Given up then, or tried again before.
            Some(asked) if self.peer.is_some() => asked + PATIENCE,
            _ => self.not_before,
        }
    }
}
