//! A process that has what its predecessor had, or is the first: [`Starting`] claims and warms up, [`Committing`] waits to
//! own.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::Arc;

use crate::control;
use crate::driver::{Driver, Notice};
use crate::error::{Error, NameProblem, Result};
use crate::handoff::pollable;
use crate::listener::{self, Asked};
use crate::manifest::{Check, Entry, Kind, check_name};
use crate::serving::Serving;
use crate::status::Status;
use crate::table::{Descriptor, Held, Outcome, Report};

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
        self.driver.table.iter().map(|held| &held.entry)
    }

    /// What the checks of a received descriptor came to, by the name of its entry.
    #[must_use]
    pub fn checks(&self, name: &str) -> &[Check] {
        self.driver.checks.get(name).map_or(&[], Vec::as_slice)
    }

    /// The TCP listener of that name: inherited where the predecessor has it at this address, else bound. It is
    /// non-blocking, shared with the handoff (one descriptor), and listens at the latest when this process owns.
    ///
    /// # Errors
    /// [`Error::Name`] for a bad name, one claimed twice, or an address that overlaps another name's; [`Error::Io`]
    /// where it cannot be bound.
    pub fn tcp_listener(&mut self, name: &str, address: impl ToSocketAddrs) -> Result<Arc<TcpListener>> {
        self.inet(name, Kind::TcpListener, address)
    }

    /// The UDP socket of that name, by the same rules. Read it as the owner only: its queue has one reader.
    ///
    /// # Errors
    /// As for [`tcp_listener`](Starting::tcp_listener).
    pub fn udp_socket(&mut self, name: &str, address: impl ToSocketAddrs) -> Result<Arc<UdpSocket>> {
        self.inet(name, Kind::Udp, address)
    }

    /// The Unix stream listener of that name, by the same rules. Its path is removed by the last of the family alone.
    ///
    /// # Errors
    /// As for [`tcp_listener`](Starting::tcp_listener), and [`Error::Path`].
    pub fn unix_listener(&mut self, name: &str, path: impl AsRef<Path>) -> Result<Arc<UnixListener>> {
        self.unix(name, Kind::UnixListener, path.as_ref())
    }

    /// The Unix datagram socket of that name, by the same rules. Read it as the owner only.
    ///
    /// # Errors
    /// As for [`unix_listener`](Starting::unix_listener).
    pub fn unix_datagram(&mut self, name: &str, path: impl AsRef<Path>) -> Result<Arc<UnixDatagram>> {
        self.unix(name, Kind::UnixDatagram, path.as_ref())
    }

    /// The listener of type `SOCK_SEQPACKET` of that name, by the same rules. std has no type for it.
    ///
    /// # Errors
    /// As for [`unix_listener`](Starting::unix_listener).
    pub fn seqpacket_listener(&mut self, name: &str, path: impl AsRef<Path>) -> Result<Arc<OwnedFd>> {
        self.unix(name, Kind::SeqpacketListener, path.as_ref())
    }

    /// Any descriptor of that name, such as a memfd or a pipe: inherited, or made by `make`. Its mode is kept.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Io`] where `make` fails.
    pub fn raw(&mut self, name: &str, make: impl FnOnce() -> std::io::Result<OwnedFd>) -> Result<Arc<OwnedFd>> {
        self.check_claim(name)?;
        let asked = Asked { name, kind: Kind::Raw, requested: String::new(), path: None, backlog: None };
        self.claim(&asked, |_| true, || make().map_err(|error| Error::io(format!("make {name:?}"), error)))
    }

    /// The inherited descriptor of that name, whatever its kind; nothing is made where there is none.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn inherited(&mut self, name: &str) -> Result<Option<Arc<OwnedFd>>> {
        self.check_claim(name)?;
        self.driver.table.adopt(name).map_err(|error| Error::io(format!("duplicate {name:?}"), error))
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
    /// [`Error::Io`]. That the predecessor is gone is no error here.
    pub fn progress(&mut self, text: &str) -> Result<()> {
        self.driver.progress(text)
    }

    /// Answers the control socket and hears the predecessor, without waiting.
    ///
    /// # Errors
    /// The end of the attempt: [`Error::GaveUp`], [`Error::Cancelled`], ...
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

    fn check_claim(&self, name: &str) -> Result<()> {
        check_name(name)?;
        match self.driver.table.get(name) {
            Some(held) if held.claimed => Err(Error::name(name, NameProblem::Twice)),
            _ => Ok(()),
        }
    }

    fn inet<T>(&mut self, name: &str, kind: Kind, address: impl ToSocketAddrs) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        self.check_claim(name)?;
        let addresses: Vec<SocketAddr> = address
            .to_socket_addrs()
            .map_err(|error| Error::io(format!("find the address of {name:?}"), error))?
            .collect();
        let requested = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let backlog = kind.listens().then_some(listener::BACKLOG);
        let asked = Asked { name, kind: kind.clone(), requested: requested.clone(), path: None, backlog };
        let same = |entry: &Entry| {
            let actual = entry.socket.as_ref().and_then(|socket| socket.local.parse::<SocketAddr>().ok());
            entry.requested == requested
                || actual.is_some_and(|actual| {
                    addresses
                        .iter()
                        .any(|wanted| *wanted == actual || (wanted.port() == 0 && wanted.ip() == actual.ip()))
                })
        };
        if !self.is_inherited(&asked, &same) {
            self.check_overlap(name, &kind, &addresses)?;
        }
        let after_others = self.after_others();
        self.claim(&asked, same, || {
            let mut refused = Error::io(
                format!("bind {name:?}"),
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "no address"),
            );
            for address in &addresses {
                let bind = || listener::bind_inet(&kind, *address);
                match if after_others { listener::bind_when_free(bind) } else { bind() } {
                    Ok(fd) => return Ok(fd),
                    Err(error) => refused = Error::io(format!("bind {name:?} to {address}"), error),
                }
            }
            Err(refused)
        })
    }

    fn unix<T>(&mut self, name: &str, kind: Kind, path: &Path) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        self.check_claim(name)?;
        let path = control::resolve(path)?;
        let backlog = kind.listens().then_some(listener::BACKLOG);
        let requested = path.display().to_string();
        let asked = Asked { name, kind: kind.clone(), requested, path: Some(&path), backlog };
        let same = |entry: &Entry| {
            use std::os::unix::ffi::OsStrExt;
            entry.path.as_deref() == Some(path.as_os_str().as_bytes())
        };
        if !self.is_inherited(&asked, &same)
            && let Some(other) = self.driver.table.iter().find(|held| same(&held.entry))
        {
            let other = other.entry.name.clone();
            return Err(Error::name(name, NameProblem::Overlaps { other }));
        }
        let after_others = self.after_others();
        self.claim(&asked, same, || {
            let bind = || listener::bind_unix(&kind, &path);
            if after_others { listener::bind_when_free(bind) } else { bind() }
                .map_err(|error| Error::io(format!("bind {name:?} to {}", path.display()), error))
        })
    }

    /// Whether this process is the first after a family that has ended, maybe just now.
    fn after_others(&self) -> bool {
        self.predecessor.is_none() && self.generation() > 1
    }

    /// An address that another name has, or that one of the two covers by a wildcard, is refused before anything is
    /// bound: the error names both.
    fn check_overlap(&self, name: &str, kind: &Kind, addresses: &[SocketAddr]) -> Result<()> {
        for held in self.driver.table.iter().filter(|held| held.entry.kind == *kind) {
            let Some(local) = held.inet else { continue };
            if addresses.iter().any(|wanted| listener::overlap(*wanted, local)) {
                return Err(Error::name(name, NameProblem::Overlaps { other: held.entry.name.clone() }));
            }
        }
        Ok(())
    }

    fn is_inherited(&self, asked: &Asked<'_>, same: &impl Fn(&Entry) -> bool) -> bool {
        self.driver.table.get(asked.name).is_some_and(|held| held.entry.kind == asked.kind && same(&held.entry))
    }

    /// Adopts the inherited entry of that name if it is the same, else makes a new one and says why.
    fn claim<T>(
        &mut self,
        asked: &Asked<'_>,
        same: impl Fn(&Entry) -> bool,
        make: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        if self.is_inherited(asked, &same) {
            let adopted = self.driver.table.adopt(asked.name);
            let adopted = adopted.map_err(|error| Error::io(format!("duplicate {:?}", asked.name), error))?;
            if let Some(fd) = adopted {
                return Ok(fd);
            }
        }
        let why = match self.driver.table.get(asked.name) {
            Some(held) if held.entry.kind != asked.kind => {
                format!("the predecessor has it as {}", held.entry.kind)
            }
            Some(held) => format!("the predecessor has it at {}", held.entry.address),
            None if self.predecessor.is_some() => "the predecessor does not have it".to_owned(),
            None => "first of its family".to_owned(),
        };
        let fd = Arc::new(T::from(make()?));
        let describing = |error| Error::io(format!("describe {:?}", asked.name), error);
        let entry = listener::describe(asked, (*fd).as_fd()).map_err(describing)?;
        self.driver.table.insert(Held::new(entry, Descriptor::Claimed(fd.clone().into())));
        self.driver.table.report.entries.insert(asked.name.to_owned(), Outcome::Bound { why });
        Ok(fd)
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
