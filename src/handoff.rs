//! The way into a service: [`Handoff`] says how, [`Joining`] is on its way, [`Starting`] has what was inherited.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::control::{self, Policy};
use crate::driver::{Driver, Notice, Settings};
use crate::error::{Error, NameProblem, Result};
use crate::listener::{self, Asked};
use crate::manifest::{Check, Entry, Kind, check_name};
use crate::protocol::Deadlines;
use crate::protocol::message::Wants;
use crate::serving::Serving;
use crate::status::Status;
use crate::table::{Descriptor, Held, Outcome, Report};
use crate::wake::Wake;

/// How a process takes part in a service: where its control socket is, and on what terms.
///
/// The same program is the first of its family or a successor; it need not know which.
#[derive(Clone, Debug)]
pub struct Handoff {
    path: PathBuf,
    app_version: String,
    exclusive: bool,
    holding: bool,
    drain_within: Duration,
    policy: Policy,
    allow_foreign_network_namespace: bool,
    deadlines: Deadlines,
    wake: Option<Arc<Wake>>,
}

impl Handoff {
    /// A handoff over the control socket at `path`, in a folder that only its owner can write to.
    ///
    /// Beside it lies the lock file, `path` and `.lock`. A relative path is resolved once, at the start.
    #[must_use]
    pub fn at(path: impl AsRef<Path>) -> Handoff {
        Handoff {
            path: path.as_ref().to_owned(),
            app_version: String::new(),
            exclusive: false,
            holding: false,
            drain_within: Duration::from_secs(30),
            policy: Policy::default(),
            allow_foreign_network_namespace: false,
            deadlines: Deadlines::default(),
            wake: None,
        }
    }

    /// What this program calls its version; others see it in refusals and in `ctl status`.
    #[must_use]
    pub fn app_version(mut self, version: impl Into<String>) -> Handoff {
        self.app_version = version.into();
        self
    }

    /// How long this process may drain once it has been told to leave. 30 s unless told otherwise.
    #[must_use]
    pub fn drain_within(mut self, limit: Duration) -> Handoff {
        self.drain_within = limit;
        self
    }

    /// How long [`start`](Handoff::start) may take in all. 60 s unless told otherwise.
    #[must_use]
    pub fn start_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.start = limit;
        self
    }

    /// How long a successor of this process may warm up in all. 10 min unless told otherwise.
    #[must_use]
    pub fn warm_up_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.warm_up = limit;
        self
    }

    /// How long a successor of this process may be silent while it warms up. 60 s unless told otherwise.
    #[must_use]
    pub fn progress_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.stall = limit;
        self
    }

    /// How long this application may take to let go of exclusive work. 10 s unless told otherwise.
    #[must_use]
    pub fn release_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.release = limit;
        self
    }

    /// Says that the application has work that must never run twice: it gets [`Event::Release`](crate::Event::Release)
    /// and answers with [`Serving::released`] before the lock is given to a successor.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Handoff {
        self.exclusive = exclusive;
        self
    }

    /// Says that this process accepts nothing itself: its phase is `holding` where another's is `serving`.
    #[must_use]
    pub fn holding(mut self, holding: bool) -> Handoff {
        self.holding = holding;
        self
    }

    /// Lets another user take over, and be taken over from. Control socket and lock file are then open to all, in their
    /// mode; the credentials of the peer decide, before a byte of his is read.
    #[must_use]
    pub fn allow_uid(mut self, uid: u32) -> Handoff {
        self.policy.uids.push(uid);
        self
    }

    /// Lets a group take over, and be taken over from; see [`allow_uid`](Handoff::allow_uid).
    #[must_use]
    pub fn allow_gid(mut self, gid: u32) -> Handoff {
        self.policy.gids.push(gid);
        self
    }

    /// Allows a folder that others can write to, who could then put a socket of their own there.
    #[must_use]
    pub fn allow_shared_folder(mut self, allow: bool) -> Handoff {
        self.policy.shared_folder = allow;
        self
    }

    /// Takes listeners that live in another network namespace. They go deaf, without any error, when that one ends.
    #[must_use]
    pub fn allow_foreign_network_namespace(mut self, allow: bool) -> Handoff {
        self.allow_foreign_network_namespace = allow;
        self
    }

    /// A handle that cancels the start, and later stops the service, from any thread.
    ///
    /// # Errors
    /// [`Error::Io`] where no eventfd can be made.
    pub fn stopper(&mut self) -> Result<Stopper> {
        Ok(Stopper { wake: self.wake()? })
    }

    fn wake(&mut self) -> Result<Arc<Wake>> {
        match &self.wake {
            Some(wake) => Ok(wake.clone()),
            None => {
                let wake = Arc::new(Wake::new()?);
                self.wake = Some(wake.clone());
                Ok(wake)
            }
        }
    }

    /// Begins to start, without waiting: poll what comes back, and call [`Joining::process`].
    ///
    /// # Errors
    /// [`Error::Path`] where the control path cannot be used; [`Error::Io`].
    pub fn begin(self) -> Result<Joining> {
        self.enter(Wants::Takeover).map(|driver| Joining { driver, started: false })
    }

    /// Begins a rehearsal, without waiting: everything is received and checked, nothing is taken.
    ///
    /// # Errors
    /// As for [`begin`](Handoff::begin), and [`Error::Nobody`] where nobody listens.
    pub fn begin_rehearsal(self) -> Result<Joining> {
        self.enter(Wants::Rehearsal).map(|driver| Joining { driver, started: false })
    }

    fn enter(mut self, wants: Wants) -> Result<Box<Driver>> {
        let path = control::resolve(&self.path)?;
        control::check_folder(&path, &self.policy)?;
        control::check_path(&path, &self.policy)?;
        let wake = self.wake()?;
        let within = self.deadlines.start;
        let settings = Settings {
            path,
            app_version: self.app_version,
            exclusive: self.exclusive,
            holding: self.holding,
            drain_within: self.drain_within,
            policy: self.policy,
            allow_foreign_network_namespace: self.allow_foreign_network_namespace,
            deadlines: self.deadlines,
            wants,
        };
        Driver::begin(settings, within, wake)
    }
}

/// Cancels a start, or stops a service, from any thread.
///
/// Before this process owns, [`stop`](Stopper::stop) makes whatever waits return [`Error::Cancelled`]; afterwards it
/// asks the process to leave without a successor.
#[derive(Clone, Debug)]
pub struct Stopper {
    wake: Arc<Wake>,
}

impl Stopper {
    pub(crate) fn new(wake: Arc<Wake>) -> Stopper {
        Stopper { wake }
    }

    /// Asks. Writes to an eventfd and does nothing else, so a signal handler may call it.
    pub fn stop(&self) {
        self.wake.stop();
    }
}

/// A process on its way in. Dropping it is the abort: nothing of it stays.
#[derive(Debug)]
pub struct Joining {
    driver: Box<Driver>,
    started: bool,
}

impl Joining {
    /// Does what can be done without waiting. `true`: everything is here, call [`started`](Joining::started).
    ///
    /// # Errors
    /// Every reason for which this process cannot become a successor or the first: see [`Error`].
    pub fn process(&mut self) -> Result<bool> {
        self.driver.process()?;
        while let Some(notice) = self.driver.notice() {
            match notice {
                Notice::Started => self.started = true,
                Notice::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Ok(self.started)
    }

    /// Goes on, or gives itself back where it is too early.
    ///
    /// # Errors
    /// This very value, to be polled on.
    pub fn started(self) -> std::result::Result<Starting, Joining> {
        if !self.started {
            return Err(self);
        }
        let predecessor = self.driver.elder().map(|who| PredecessorInfo {
            pid: who.pid,
            app_version: who.app_version.clone(),
            generation: self.driver.generation().saturating_sub(1),
        });
        Ok(Starting { driver: self.driver, predecessor })
    }
}

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
    pub fn abort(self) -> std::result::Result<(), LastHolder> {
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
        self.claim(&asked, same, || {
            let mut refused = Error::io(
                format!("bind {name:?}"),
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "no address"),
            );
            for address in &addresses {
                match listener::bind_inet(&kind, *address) {
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
        self.claim(&asked, same, || {
            listener::bind_unix(&kind, &path)
                .map_err(|error| Error::io(format!("bind {name:?} to {}", path.display()), error))
        })
    }

    /// An address that another name has, or that one of the two covers by a wildcard, is refused before anything is
    /// bound: the error names both.
    fn check_overlap(&self, name: &str, kind: &Kind, addresses: &[SocketAddr]) -> Result<()> {
        for held in self.driver.table.iter().filter(|held| held.entry.kind == *kind) {
            let local = held.entry.socket.as_ref().and_then(|socket| socket.local.parse().ok());
            let Some(local) = local else { continue };
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
        let silent = asked.kind.listens();
        self.driver.table.insert(Held { entry, fd: Descriptor::Claimed(fd.clone().into()), claimed: true, silent });
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

macro_rules! pollable {
    ($($name:ident),*) => {$(
        impl AsRawFd for $name {
            /// An epoll instance: poll it for reading, never read from it.
            fn as_raw_fd(&self) -> RawFd {
                self.driver.as_raw_fd()
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.driver.as_fd()
            }
        }
    )*};
}
pub(crate) use pollable;

pollable!(Joining, Starting, Committing);
