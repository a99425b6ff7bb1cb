//! A service, whoever owns it: one status after another, across changes of the owner.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Phase, Status};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// How long one connect or one question may take where nothing else is said.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// The pause before another try where nobody listens: the kernel has no event for listen(2).
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// What there is to know.
#[derive(Debug)]
pub(crate) enum News {
    Status(Status),
    /// Nobody listens at the moment.
    Nobody(Error),
}

/// Watches the owner, and whoever owns after it.
#[derive(Debug)]
pub(crate) struct Follow {
    path: PathBuf,
    client: Option<Client>,
    /// The process that was watched before, while it still lives: it drains, or stands by.
    last: Option<(Teller, Client)>,
    /// As which process the connection of the moment has told of itself.
    heard: Option<Teller>,
    /// Not to be connected to before.
    not_before: Option<Instant>,
}

impl Follow {
    pub(crate) fn new(path: &Path) -> Follow {
        Follow { path: path.to_owned(), client: None, last: None, heard: None, not_before: None }
    }

    /// The next news, without waiting for any; connecting is no wait unless the owner's queue is full.
    pub(crate) fn news(&mut self) -> Result<Option<News>, Error> {
        loop {
            let Some(client) = &mut self.client else {
                if self.not_before.is_some_and(|at| Instant::now() < at) {
                    return Ok(None);
                }
                match Client::connect(&self.path, PATIENCE) {
                    Ok(mut client) => {
                        client.watch()?;
                        (self.client, self.heard) = (Some(client), None);
                        continue;
                    }
                    Err(nobody @ Error::Nobody { .. }) => {
                        self.pause();
                        return Ok(Some(News::Nobody(nobody)));
                    }
                    // The queue is full: somebody is there, and slow.
                    Err(Error::Deadline { .. }) => {
                        self.pause();
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                }
            };
            match client.next(Some(Duration::ZERO)) {
                Ok(Some(status)) => {
                    self.heard = Some(teller(&status));
                    if !owns(&status) {
                        // Somebody else owns, and will answer the next connection.
                        self.last = self.client.take().map(|client| (teller(&status), client));
                    }
                    return Ok(Some(News::Status(status)));
                }
                Ok(None) => return Ok(None),
                // The process is gone, and another may have the service. One that hangs up without a word is no reason
                // to try again at once.
                Err(Error::HungUp | Error::Io { .. }) => {
                    self.client = None;
                    if self.heard.is_none() {
                        self.pause();
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The status of the owner, over a connection for which `peer_pid` is true: made after that owner has answered.
    pub(crate) fn known_owner(&mut self, within: Duration) -> Result<Status, Error> {
        self.owner(within)?;
        self.reconnect();
        self.owner(within)
    }

    /// Connects anew before the next news.
    pub(crate) fn reconnect(&mut self) {
        self.client = None;
    }

    /// Whether there is no connection at the moment, so that the next news are the first of a new one.
    pub(crate) fn is_to_connect(&self) -> bool {
        self.client.is_none()
    }

    fn pause(&mut self) {
        self.not_before = Some(Instant::now() + PAUSE);
    }

    /// Waits for news, for one of `others`, or until the deadline.
    pub(crate) fn wait(&self, others: &[PollFd<'_>], until: Option<Instant>) -> Result<(), Error> {
        let own = self.client.as_ref().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN));
        let retry = if own.is_none() { self.not_before } else { None };
        let mut all: Vec<PollFd<'_>> = others.iter().cloned().chain(own).collect();
        wait(&mut all, until.into_iter().chain(retry).min())
    }

    /// The next status of an owner.
    pub(crate) fn owner(&mut self, within: Duration) -> Result<Status, Error> {
        let end = Instant::now() + within;
        loop {
            match self.news()? {
                Some(News::Status(status)) if owns(&status) => return Ok(status),
                Some(News::Status(_)) => {}
                Some(News::Nobody(error)) => return Err(error),
                None if Instant::now() >= end => {
                    return Err(Error::Deadline { waiting_for: "an answer of the owner", after: within });
                }
                None => self.wait(&[], Some(end))?,
            }
        }
    }

    /// The owner's pid as the kernel tells it, translated to this pid namespace; `None` where it cannot be seen.
    ///
    /// Each owner listens again on the control socket, and the credentials on the connecting side are those of the last
    /// listen(2) before the connection was made: perhaps of an owner before this one.
    pub(crate) fn peer_pid(&self) -> Option<i32> {
        let credentials = getsockopt(self.client.as_ref()?, sockopt::PeerCredentials).ok()?;
        Some(credentials.pid()).filter(|pid| *pid > 0)
    }

    /// Whether the process that once told this status still holds its end of a connection.
    pub(crate) fn is_linked_to(&mut self, status: &Status) -> bool {
        let open = |client: &mut Client| loop {
            match client.next(Some(Duration::ZERO)) {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        };
        let teller = teller(status);
        let now = self.client.as_mut().filter(|_| self.heard == Some(teller));
        let before = self.last.as_mut().filter(|(last, _)| *last == teller).map(|(_, client)| client);
        now.into_iter().chain(before).any(open)
    }
}

/// Who told a status: its pid alone is not enough, because in containers each version is pid 1.
type Teller = (u32, u64);

fn teller(status: &Status) -> Teller {
    (status.pid, status.generation)
}

/// Whether this process answers as the owner: who drains has one after it.
pub(crate) fn owns(status: &Status) -> bool {
    !matches!(status.phase, Phase::Draining | Phase::StandingBy)
}

/// Whether the owner has begun what it is there for.
pub(crate) fn is_ready(status: &Status) -> bool {
    matches!(status.phase, Phase::Serving | Phase::HandingOver | Phase::Holding)
}

/// One status of the owner, whoever that is in the end.
pub(crate) fn ask(path: &Path, within: Duration) -> Result<Status, Error> {
    Follow::new(path).owner(within)
}

/// Waits until one of these has something, or until the deadline. The caller looks what it was.
pub(crate) fn wait(descriptors: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), Error> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // Rounded up, so that the last round does not spin.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(descriptors, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Error::Io { doing: "poll".to_owned(), source: errno.into() }),
    }
}

/// Waits until this can be read, or until the deadline.
pub(crate) fn wait_for(descriptor: &impl AsFd, until: Option<Instant>) -> Result<(), Error> {
    wait(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], until)
}
