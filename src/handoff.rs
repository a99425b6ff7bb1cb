//! The way into a service: [`Handoff`] says how, [`Joining`] is on its way to [`Starting`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::control;
use crate::deadline::LONGEST;
use crate::driver::holding::Holding;
use crate::driver::{Driver, Notice, Settings};
use crate::error::{Error, Result};
use crate::folder;
use crate::guests::Guests;
use crate::holder::Holder;
use crate::manifest::{StateKind, check_name};
use crate::protocol::message::Wants;
use crate::protocol::{Deadlines, MAX_RELEASE};
use crate::starting::Starting;
use crate::temporary::Temporary;
use crate::wake::Wake;

/// How a process takes part in a service: where its control socket is, and on what terms.
///
/// The same program is the first of its family or a successor; it need not know which.
#[derive(Debug)]
pub struct Handoff {
    path: PathBuf,
    app_version: String,
    exclusive: bool,
    state: Option<StateKind>,
    holding: bool,
    process_stays: bool,
    pid_file: Option<PathBuf>,
    #[cfg(feature = "systemd")]
    systemd: bool,
    drain_within: Duration,
    probation: Option<Duration>,
    demands_probation: bool,
    takeover_confirms: bool,
    guests: Guests,
    shared_folder: bool,
    allow_foreign_network_namespace: bool,
    deadlines: Deadlines,
    replaces: bool,
    wake: Option<Arc<Wake>>,
    temporary: Option<Temporary>,
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
            state: None,
            holding: false,
            process_stays: false,
            pid_file: None,
            #[cfg(feature = "systemd")]
            systemd: false,
            drain_within: Duration::from_secs(30),
            probation: None,
            demands_probation: false,
            takeover_confirms: false,
            guests: Guests::default(),
            shared_folder: false,
            allow_foreign_network_namespace: false,
            deadlines: Deadlines::default(),
            replaces: false,
            wake: None,
            temporary: None,
        }
    }

    /// A handoff in a folder that goes when it does.
    pub(crate) fn within(folder: Temporary) -> Handoff {
        let handoff = Handoff::at(folder.path().join("handoff.sock"));
        Handoff { temporary: Some(folder), ..handoff }
    }

    /// What this program calls its version; others see it in refusals and in `ctl status`.
    #[must_use]
    pub fn app_version(mut self, version: impl Into<String>) -> Handoff {
        self.app_version = version.into();
        self
    }

    /// How long this process may drain once it has been told to leave. 30 s unless told otherwise; 366 days at most, as
    /// for every limit here that says no other.
    #[must_use]
    pub fn drain_within(mut self, limit: Duration) -> Handoff {
        self.drain_within = limit.min(LONGEST);
        self
    }

    /// Asks the predecessor to stand by for so long once this process owns, 24 h at most: it keeps its listeners, its
    /// connections and its state, and accepts nothing. Should this process die, it serves again at once. Until the time has
    /// passed, or [`Serving::confirm`](crate::Serving::confirm) is called, the service can go back on purpose, with the
    /// state as it is then: [`Serving::give_back`](crate::Serving::give_back). None unless told otherwise.
    ///
    /// A first process has nobody to go back to, and neither has one whose predecessor died, or is too old to know of this:
    /// they serve without; [`Serving::probation`](crate::Serving::probation) tells. An operator may have asked the
    /// predecessor for another time, which then counts.
    #[must_use]
    pub fn probation(mut self, time: Duration) -> Handoff {
        self.probation = Some(time).filter(|time| !time.is_zero());
        self
    }

    /// Gives up where the predecessor does not grant a [`probation`](Handoff::probation): the start ends with
    /// [`Error::Refused`](crate::Error::Refused), code `no-probation`, and the predecessor serves on.
    #[must_use]
    pub fn demand_probation(mut self, demand: bool) -> Handoff {
        self.demands_probation = demand;
        self
    }

    /// Whether a takeover that comes while this process is on probation confirms it. Unless told so it is refused, with the
    /// code `probation` and the time after which it can come again.
    #[must_use]
    pub fn takeover_confirms(mut self, confirms: bool) -> Handoff {
        self.takeover_confirms = confirms;
        self
    }

    /// How long [`start`](Handoff::start) may take in all. 60 s unless told otherwise.
    #[must_use]
    pub fn start_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.start = limit.min(LONGEST);
        self
    }

    /// How long a successor of this process may warm up in all. 10 min unless told otherwise.
    #[must_use]
    pub fn warm_up_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.warm_up = limit.min(LONGEST);
        self
    }

    /// How long a successor of this process may be silent while it warms up. 60 s unless told otherwise.
    #[must_use]
    pub fn progress_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.stall = limit.min(LONGEST);
        self
    }

    /// How long this application may take to let go of exclusive work. 10 s unless told otherwise, 10 min at most: its
    /// successor waits no longer.
    #[must_use]
    pub fn release_within(mut self, limit: Duration) -> Handoff {
        self.deadlines.release = limit.min(MAX_RELEASE);
        self
    }

    /// Says that the application has work that must never run twice: it gets [`Event::Release`](crate::Event::Release)
    /// and answers with [`Serving::released`](crate::Serving::released) before the lock is given to a successor.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Handoff {
        self.exclusive = exclusive;
        self
    }

    /// Says that the application hands its state on, and takes that of its predecessor: what its own is written in. The
    /// state is exclusive: the application gets [`Event::Release`](crate::Event::Release) and answers with
    /// [`Serving::released_with`](crate::Serving::released_with).
    #[must_use]
    pub fn state(mut self, schema: impl Into<String>, version: u32) -> Handoff {
        self.state = Some(StateKind { schema: schema.into(), version });
        self
    }

    /// Says that this process accepts nothing itself: its phase is `holding` where another's is `serving`.
    #[must_use]
    pub fn holding(mut self, holding: bool) -> Handoff {
        self.holding = holding;
        self
    }

    /// Says that this process lives on once it has drained, as where an orchestrator starts again whatever ends: its
    /// successor counts the drain as over then. Unless told otherwise it is over when the process has ended, for `ctl
    /// status` and `ctl wait --drained` as well. [`Serving`](crate::Serving) and all that came from it must be gone by then.
    #[must_use]
    pub fn process_stays(mut self, stays: bool) -> Handoff {
        self.process_stays = stays;
        self
    }

    /// A file that holds the pid of the owner, as `PIDFile=` of systemd.service(5) and others want it: written, whole or
    /// not at all, by each process that comes to own the service, before anybody is told that it does, and removed by the
    /// last of its family. Others may read it. Its folder should be one that only this user can write to.
    #[must_use]
    pub fn pid_file(mut self, path: impl AsRef<Path>) -> Handoff {
        self.pid_file = Some(path.as_ref().to_owned());
        self
    }

    /// Works with systemd, where that has started this process: takes in what it passes, and tells it how things stand.
    /// The environment is read once, when the start begins; without this, nothing of it is.
    ///
    /// In: a name that the predecessor does not have is looked for in the unit's file descriptor store, then among the
    /// descriptors of socket activation (`LISTEN_FDS`; by name, then by address), and bound only then. What fits neither
    /// by kind nor by address is bound anew; the [`Report`](crate::Report) says so. Of two descriptors that are both
    /// called `web` the second is also `web#1`. All of `LISTEN_FDS` is taken: nothing else in this process may use it.
    ///
    /// Out, to `NOTIFY_SOCKET` (sd_notify(3)): `READY` once this process serves, `MAINPID` where it follows another
    /// process of its unit, which also says so before it leaves; `STATUS` in the words of `ctl status`; `RELOADING` while a
    /// successor in the same unit takes over; `EXTEND_TIMEOUT_USEC` in a warm-up that calls
    /// [`progress`](crate::Starting::progress) and in a stop; `STOPPING` where nobody follows. `WATCHDOG=1` by
    /// `WATCHDOG_USEC`, as long as the application lets the handoff process what is due.
    ///
    /// The owner parks its entries in the store as `heirloom.NAME`: should it die without a successor, they come back to
    /// the process that systemd starts next, with the connections that waited in between. That needs
    /// `FileDescriptorStoreMax=` to be as many as there are entries, since systemd tells nobody that it has refused one.
    ///
    /// A child inherits the variables: see [`SYSTEMD_VARIABLES`](crate::SYSTEMD_VARIABLES).
    #[cfg(feature = "systemd")]
    #[must_use]
    pub fn systemd(mut self, on: bool) -> Handoff {
        self.systemd = on;
        self
    }

    /// Lets another user take over, and be taken over from.
    ///
    /// An access list (acl(5)) opens the control socket and the lock file to him. The credentials of the peer decide all
    /// the same, before a byte of his is read. See [Security](crate#security) for what a guest can do.
    #[must_use]
    pub fn allow_uid(mut self, uid: u32) -> Handoff {
        self.guests.uids.push(uid);
        self
    }

    /// Lets a group take over, and be taken over from; see [`allow_uid`](Handoff::allow_uid). A process is in its effective
    /// group and in its supplementary ones, as they were when it connected.
    #[must_use]
    pub fn allow_gid(mut self, gid: u32) -> Handoff {
        self.guests.gids.push(gid);
        self
    }

    /// Allows a folder that others can write to, or put another in place of: they could put a socket of their own there.
    #[must_use]
    pub fn allow_shared_folder(mut self, allow: bool) -> Handoff {
        self.shared_folder = allow;
        self
    }

    /// Takes listeners that live in another network namespace. They go deaf, without any error, when that one ends.
    #[must_use]
    pub fn allow_foreign_network_namespace(mut self, allow: bool) -> Handoff {
        self.allow_foreign_network_namespace = allow;
        self
    }

    /// Says that this [`Holder`](crate::Holder) is in place of those before it: once it has everything, they are told to
    /// leave.
    #[must_use]
    pub fn replace_holders(mut self, replace: bool) -> Handoff {
        self.replaces = replace;
        self
    }

    /// A handle that cancels the start, and later stops the service, from any thread.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where no eventfd can be made.
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
    /// [`Error::Path`](crate::Error::Path) where the control path cannot be used; [`Error::Name`](crate::Error::Name) for
    /// the name of a state's layout; [`Error::Io`](crate::Error::Io).
    pub fn begin(self) -> Result<Joining> {
        self.enter(Wants::Takeover).map(|driver| Joining { driver, started: false })
    }

    /// Begins a rehearsal, without waiting: everything is received and checked, nothing is taken.
    ///
    /// # Errors
    /// As for [`begin`](Handoff::begin), and [`Error::Nobody`](crate::Error::Nobody) where nobody listens.
    pub fn begin_rehearsal(self) -> Result<Joining> {
        self.enter(Wants::Rehearsal).map(|driver| Joining { driver, started: false })
    }

    /// Ends the owner from which these copies were taken, and owns in its place. Where nobody owned, nobody is ended.
    ///
    /// The next generation begins with it. Everybody who connects meanwhile waits in the queues. Warm up, then say
    /// [`ready`](Starting::ready), as after any start. From here on this process holds the only copies: dropping what
    /// comes back closes them.
    ///
    /// # Errors
    /// [`Error::Superseded`](crate::Error::Superseded) where a successor of the old owner took over first;
    /// [`Error::Io`](crate::Error::Io) where it cannot be ended. Once it is, these are the last copies: this waits for its
    /// death, and for the lock, as long as it takes.
    #[cfg(all(feature = "ctl", target_os = "linux"))]
    pub fn rescue(self, wreck: crate::rescue::Wreck) -> Result<Starting> {
        let (settings, wake) = self.settings(Wants::Takeover)?;
        Driver::rescue(settings, wake, wreck).map(Starting::new)
    }

    /// Begins to keep what the owner has, without waiting: poll what comes back, and call
    /// [`Holder::process`](crate::Holder::process).
    ///
    /// # Errors
    /// As for [`begin_rehearsal`](Handoff::begin_rehearsal).
    pub fn begin_hold(self) -> Result<Holder> {
        let (settings, wake) = self.settings(Wants::Hold)?;
        Holding::begin(settings, wake).map(Holder::new)
    }

    fn enter(self, wants: Wants) -> Result<Box<Driver>> {
        let within = self.deadlines.start;
        let (settings, wake) = self.settings(wants)?;
        Driver::begin(settings, within, wake)
    }

    /// Checks the path, and everything else that can be.
    fn settings(mut self, wants: Wants) -> Result<(Settings, Arc<Wake>)> {
        let path = control::resolve(&self.path)?;
        if let Some(state) = &self.state {
            check_name(&state.schema)?;
        }
        if self.shared_folder {
            folder::exists(&path)?;
        } else {
            folder::check(&path, &self.guests)?;
        }
        control::check_path(&path, &self.guests)?;
        let pid_file = self.pid_file.take().map(std::path::absolute).transpose();
        let pid_file = pid_file.map_err(|error| Error::io("find the current folder", error))?;
        let wake = self.wake()?;
        let settings = Settings {
            path,
            app_version: self.app_version,
            exclusive: self.exclusive || self.state.is_some(),
            state: self.state,
            holding: self.holding || wants == Wants::Hold,
            process_stays: self.process_stays,
            pid_file,
            #[cfg(feature = "systemd")]
            systemd: self.systemd && wants == Wants::Takeover,
            probation: self.probation,
            demands_probation: self.demands_probation,
            takeover_confirms: self.takeover_confirms,
            drain_within: self.drain_within,
            guests: self.guests,
            allow_foreign_network_namespace: self.allow_foreign_network_namespace,
            deadlines: self.deadlines,
            wants,
            nonce: None,
            replaces: self.replaces,
            temporary: self.temporary.map(Arc::new),
        };
        Ok((settings, wake))
    }
}

/// Cancels a start, or stops a service, from any thread.
///
/// Before this process owns, [`stop`](Stopper::stop) makes whatever waits return
/// [`Error::Cancelled`](crate::Error::Cancelled); afterwards it asks the process to leave without a successor.
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
    /// Every reason for which this process cannot become a successor or the first: see [`Error`](crate::Error).
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
        Ok(Starting::new(self.driver))
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

pollable!(Joining);
