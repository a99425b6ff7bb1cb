//! A process that has what its predecessor had, or is the first: [`Starting`] claims and warms up, [`Committing`] waits to
//! own.

use std::net::{TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::Arc;

use crate::claim::Claim;
use crate::driver::{Driver, Notice};
use crate::error::Result;
use crate::group::Group;
use crate::handoff::pollable;
use crate::manifest::{Check, Entry, Kind, StateKind};
use crate::serving::Serving;
use crate::status::Status;
use crate::table::Report;

/// The process that serves while its successor starts.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PredecessorInfo {
    /// Its pid, in its own pid namespace: for people, never a target for a signal.
    pub pid: u32,
    /// What it calls its version.
    pub app_version: String,
    /// The generation that it owns.
    pub generation: u64,
    /// What its state is written in, where it hands one on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateKind>,
}

/// A process that has what its predecessor had, or is the first: it claims names, binds what is new, and warms up.
///
/// The predecessor goes on serving. Dropping this is the abort; the predecessor notices nothing but the end of the
/// attempt. In between, call [`process`](Starting::process) when the descriptor is readable, or let
/// [`wait`](Starting::wait) do it: that is how a first process tells others that it is starting.
#[derive(Debug)]
pub struct Starting {
    driver: Box<Driver>,
    predecessor: Option<PredecessorInfo>,
}

impl Starting {
    pub(crate) fn new(driver: Box<Driver>) -> Starting {
        let predecessor = driver.elder().map(|who| PredecessorInfo {
            pid: who.pid,
            app_version: who.app_version.clone(),
            generation: driver.generation().saturating_sub(1),
            state: driver.state_kind().cloned(),
        });
        Starting { driver, predecessor }
    }

    /// The process that serves now; `None` for the first of its family.
    #[must_use]
    pub fn predecessor(&self) -> Option<&PredecessorInfo> {
        self.predecessor.as_ref()
    }

    /// The generation that this process will own, or owns already.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.driver.generation()
    }

    /// Every entry that was inherited, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.driver.table.iter().map(|held| &*held.entry)
    }

    /// What the checks of a received descriptor came to, by the name of its entry, where this is a rehearsal. In a
    /// takeover each one is checked when it is claimed, and one that fails is the error of that claim.
    #[must_use]
    pub fn checks(&self, name: &str) -> &[Check] {
        self.driver.checks.get(name).map_or(&[], Vec::as_slice)
    }

    /// Asks for a name with options: how its socket is made where the predecessor does not have it.
    pub fn claim<'a>(&'a mut self, name: &'a str) -> Claim<'a> {
        Claim::new(&mut self.driver, name)
    }

    /// The TCP listener of that name: inherited where the predecessor has it at this address, else bound; see
    /// [`Claim::tcp`].
    ///
    /// # Errors
    /// As there.
    pub fn tcp_listener(&mut self, name: &str, address: impl ToSocketAddrs) -> Result<Arc<TcpListener>> {
        self.claim(name).tcp(address)
    }

    /// So many TCP listeners at one address; see [`Claim::tcp_group`].
    ///
    /// # Errors
    /// As there.
    pub fn tcp_group(&mut self, name: &str, address: impl ToSocketAddrs, size: usize) -> Result<Group<TcpListener>> {
        self.claim(name).tcp_group(address, size)
    }

    /// So many UDP sockets at one address; see [`Claim::udp_group`].
    ///
    /// # Errors
    /// As there.
    pub fn udp_group(&mut self, name: &str, address: impl ToSocketAddrs, size: usize) -> Result<Group<UdpSocket>> {
        self.claim(name).udp_group(address, size)
    }

    /// The UDP socket of that name; see [`Claim::udp`].
    ///
    /// # Errors
    /// As there.
    pub fn udp_socket(&mut self, name: &str, address: impl ToSocketAddrs) -> Result<Arc<UdpSocket>> {
        self.claim(name).udp(address)
    }

    /// The Unix stream listener of that name; see [`Claim::unix`].
    ///
    /// # Errors
    /// As there.
    pub fn unix_listener(&mut self, name: &str, path: impl AsRef<Path>) -> Result<Arc<UnixListener>> {
        self.claim(name).unix(path)
    }

    /// The Unix datagram socket of that name; see [`Claim::unix_datagram`].
    ///
    /// # Errors
    /// As there.
    pub fn unix_datagram(&mut self, name: &str, path: impl AsRef<Path>) -> Result<Arc<UnixDatagram>> {
        self.claim(name).unix_datagram(path)
    }

    /// The listener of type `SOCK_SEQPACKET` of that name; see [`Claim::seqpacket`].
    ///
    /// # Errors
    /// As there.
    pub fn seqpacket_listener(&mut self, name: &str, path: impl AsRef<Path>) -> Result<Arc<OwnedFd>> {
        self.claim(name).seqpacket(path)
    }

    /// Any descriptor of that name; see [`Claim::raw`].
    ///
    /// # Errors
    /// As there.
    pub fn raw(&mut self, name: &str, make: impl FnOnce() -> std::io::Result<OwnedFd>) -> Result<Arc<OwnedFd>> {
        self.claim(name).raw(make)
    }

    /// The inherited descriptor of that name, whatever its kind; nothing is made where there is none.
    ///
    /// # Errors
    /// As for [`Claim::inherited`].
    pub fn inherited(&mut self, name: &str) -> Result<Option<Arc<OwnedFd>>> {
        self.claim(name).inherited()
    }

    /// All that was inherited of one kind and is not claimed yet, by name.
    ///
    /// # Errors
    /// As for [`Claim::inherited`].
    pub fn inherited_of(&mut self, kind: &Kind) -> Result<Vec<(String, Arc<OwnedFd>)>> {
        let held = self.driver.table.iter().filter(|held| held.entry.kind == *kind && !held.claimed);
        let mut names: Vec<String> = held.map(|held| held.entry.name.clone()).collect();
        names.extend(self.driver.passed_of(kind).into_iter().filter(|name| self.driver.table.get(name).is_none()));
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            if let Some(fd) = self.inherited(&name)? {
                found.push((name, fd));
            }
        }
        Ok(found)
    }

    /// What became of each name so far; complete once this process serves.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.driver.table.report
    }

    /// Tells the predecessor, and whoever watches, how the warm-up goes. It also shows that this process is not stuck:
    /// the predecessor gives up after 60 s without a word.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io). That the predecessor is gone is no error here.
    pub fn progress(&mut self, text: &str) -> Result<()> {
        self.driver.progress(text)
    }

    /// Answers the control socket and hears the predecessor, without waiting.
    ///
    /// # Errors
    /// The end of the attempt: [`Error::GaveUp`](crate::Error::GaveUp), [`Error::Cancelled`](crate::Error::Cancelled), ...
    pub fn process(&mut self) -> Result<()> {
        self.driver.process()?;
        while let Some(notice) = self.driver.notice() {
            if let Notice::Failed(error) = notice {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives the attempt up, on purpose.
    ///
    /// # Errors
    /// [`LastHolder`] where the predecessor has died: to drop this would close the last copies of its listeners. Keep
    /// it, and be ready; or drop it all the same.
    pub fn abort(mut self) -> std::result::Result<(), LastHolder> {
        // The predecessor may have died without anybody having looked.
        if self.process().is_err() {
            return Ok(());
        }
        if self.driver.is_last_holder() { Err(LastHolder(Box::new(self))) } else { Ok(()) }
    }

    /// Asks for ownership, without waiting: poll what comes back, and call [`Committing::process`].
    ///
    /// # Errors
    /// The end of the attempt.
    pub fn begin_ready(mut self) -> Result<Committing> {
        self.process()?;
        self.driver.ready()?;
        Ok(Committing { driver: self.driver, serving: false })
    }

    /// What this process tells about itself at the moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.driver.status()
    }
}

/// The predecessor is dead, and this process has the last copies of its listeners.
#[derive(Debug)]
pub struct LastHolder(pub Box<Starting>);

impl std::fmt::Display for LastHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the predecessor has died: giving up now would close the last copies of its listeners")
    }
}

impl std::error::Error for LastHolder {}

/// A process that has said that it is ready and waits to own. Dropping it is the abort.
#[derive(Debug)]
pub struct Committing {
    driver: Box<Driver>,
    serving: bool,
}

impl Committing {
    /// Does what can be done without waiting. `true`: this process owns, call [`serving`](Committing::serving).
    ///
    /// # Errors
    /// The end of the attempt; then this process never owns by it.
    pub fn process(&mut self) -> Result<bool> {
        self.driver.process()?;
        while let Some(notice) = self.driver.notice() {
            match notice {
                Notice::Serving => {
                    self.serving = true;
                    // What comes after it belongs to the time in which this process serves.
                    break;
                }
                Notice::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Ok(self.serving)
    }

    /// Goes on, or gives itself back where it is too early.
    ///
    /// # Errors
    /// This very value, to be polled on.
    pub fn serving(self) -> std::result::Result<Serving, Committing> {
        if self.serving { Ok(Serving::new(self.driver)) } else { Err(self) }
    }
}

pollable!(Starting, Committing);
