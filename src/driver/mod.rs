//! The one place where the protocol meets I/O.
//!
//! The driver owns every descriptor of a handoff and runs the machines: what a connection, the kernel or a deadline
//! says becomes an input, and each output becomes a system call. It knows the clock, and not what a listener is for.
//!
//! `joining` performs the outputs of starter and successor, `receiving` takes what they are sent, and `owning` performs
//! the outputs of the predecessor; `peers` has the connections of all three, `holding` is a third way beside
//! joining and owning, `passed` what systemd has given this process, and `supervised` what it has to know.

mod drain_link;
mod drainers;
mod elder;
mod entries;
mod family;
mod folder;
mod groups;
mod history;
mod hold;
pub(crate) mod holding;
mod inventory;
mod joining;
mod often;
mod owning;
#[cfg(feature = "systemd")]
mod passed;
mod peers;
mod probation;
mod receiving;
#[cfg(feature = "ctl")]
mod rescuing;
mod state;
mod steered;
#[cfg_attr(not(feature = "systemd"), path = "unsupervised.rs")]
mod supervised;
mod telling;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{debug, info};
use mio::Interest;
use nix::sys::inotify::Inotify;

use self::drainers::Drainers;
use self::family::Family;
use self::groups::Group;
use self::history::Journal;
use self::hold::HoldClock;
use self::inventory::Kept;
use self::often::Often;
use self::probation::Probation;
use self::state::Arriving;
use self::steered::Tail;
#[cfg(feature = "systemd")]
use self::supervised::Supervisor;
use crate::connection::Connection;
use crate::error::{Error, Refusal, Result, Who};
use crate::fdpass::Receiver;
use crate::guests::Guests;
use crate::manifest::{Check, Entry, StateKind};
use crate::namespace::own_network_namespace;
use crate::poller::Poller;
use crate::protocol::message::{Message, Wants, cut};
use crate::protocol::predecessor::{self, Peer, Predecessor, Reason};
use crate::protocol::starter::{self, Starter};
use crate::protocol::successor::{self, Successor};
use crate::protocol::{Deadlines, Timer};
use crate::shared::SharedFd;
use crate::spare::Spares;
use crate::status::{DrainStatus, Phase, PredecessorEnd};
use crate::sys;
use crate::table::{Held, Table};
use crate::temporary::Temporary;
use crate::wake::Wake;

/// Tokens of the poller; those of the connections follow, two for each.
const CONTROL: usize = 0;
const WAKE: usize = 1;
const FOLDER: usize = 2;
const ELDER: usize = 3;
// 4 and 5 are those of `supervised`.
const FIRST_PEER: usize = 16;

/// How many frames of one peer are read before the others have their turn.
const FRAMES_IN_A_TURN: usize = 64;
/// How long until a send or a receive is tried again that the kernel had no room for.
const CROWDED_PAUSE: Duration = Duration::from_millis(10);
/// How long until an owner whose control listener could not be registered tries again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// For how long that is tried. The other side, which waits longer, is told then.
const CROWDED_LIMIT: Duration = Duration::from_secs(3);
/// How long until the control listener is accepted from again after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a handoff is to do, and how.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The control socket, absolute.
    pub(crate) path: PathBuf,
    pub(crate) app_version: String,
    pub(crate) exclusive: bool,
    /// What the application's state is written in, where it hands one on.
    pub(crate) state: Option<StateKind>,
    pub(crate) holding: bool,
    /// Whether this process lives on after it has left.
    pub(crate) process_stays: bool,
    /// Where the owner writes its pid, absolute.
    pub(crate) pid_file: Option<PathBuf>,
    /// For how long the predecessor is asked to stand by.
    pub(crate) probation: Option<Duration>,
    /// There is to be no takeover without that.
    pub(crate) demands_probation: bool,
    /// A takeover that comes during a probation confirms it.
    pub(crate) takeover_confirms: bool,
    /// Whether systemd is listened to, and told.
    #[cfg(feature = "systemd")]
    pub(crate) systemd: bool,
    pub(crate) drain_within: Duration,
    /// Who may take part beside this user and root.
    pub(crate) guests: Guests,
    pub(crate) allow_foreign_network_namespace: bool,
    pub(crate) deadlines: Deadlines,
    pub(crate) wants: Wants,
    /// Where all attempts have the same: that of a holder.
    pub(crate) nonce: Option<u64>,
    /// Whether this holder is in place of those before it.
    pub(crate) replaces: bool,
    /// The folder of the path, where it is to go when the driver goes.
    #[expect(dead_code, reason = "kept for its drop")]
    pub(crate) temporary: Option<Arc<Temporary>>,
}

/// What the driver tells those above it.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Everything that a predecessor had is here, or there is none: the application may claim and warm up.
    Started,
    /// This process owns, and its application is ready.
    Serving,
    /// This process will not own.
    Failed(Error),
    Release,
    StandBy,
    Resume,
    Leave(Reason),
    /// The process that this one followed has ended.
    PredecessorGone(PredecessorEnd),
    Exit,
    /// To a holder: the owner has other entries by now.
    Changed,
    /// To a holder: the link to the owner is at its end, or the owner is.
    Ended(Option<Refusal>),
    /// To an owner that only keeps the entries: another holder was started in its place.
    Replaced,
}

/// A deadline, by who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Starter(Timer),
    Successor(Timer),
    Predecessor(Timer),
    /// A client's next word, his reading on, or the last words to a connection that is being closed.
    Peer(Peer),
    /// A send or a receive that the kernel refused for the moment.
    Crowded(Peer),
    /// The next word of a holder that does not have everything yet.
    Holder(Peer),
    /// All that a holder is to have.
    Holding(Peer),
    Accept,
    Drain,
    /// How long the application waits for the end of the predecessor.
    Elder,
    /// How long a client waits until those who drain have obeyed.
    Relay(Peer),
    /// Time to write down a long list for a rescuer.
    Inventory,
    /// Time to show systemd that this process lives.
    #[cfg(feature = "systemd")]
    Watchdog,
    /// How long the end of this process waits for systemd.
    #[cfg(feature = "systemd")]
    Barrier,
}

/// An input on its way to its machine.
#[derive(Debug)]
enum Work {
    Starter(starter::Input),
    Successor(successor::Input),
    Predecessor(predecessor::Input),
}

/// A handoff, whatever its stage.
#[derive(Debug)]
pub(crate) struct Driver {
    settings: Settings,
    /// The process that made it: a forked child must not act.
    pid: u32,
    wake: Arc<Wake>,
    poller: Poller<Key>,
    spares: Spares,
    receiver: Receiver,
    namespace: Option<u64>,
    family: Family,
    pub(crate) table: Table,
    /// Entries that a predecessor announced and whose descriptors are still to come, in their order.
    manifest: VecDeque<Arc<Entry>>,
    /// What the checks of each received descriptor came to.
    pub(crate) checks: BTreeMap<String, Vec<Check>>,
    connections: BTreeMap<Peer, Connection>,
    next_peer: Peer,
    /// A connection of the starter, before anything was said on it.
    probe: Option<UnixStream>,
    /// The connection to the predecessor.
    link: Option<Peer>,
    /// The predecessor's pidfd: its true exit.
    elder_pidfd: Option<OwnedFd>,
    /// The predecessor, while it drains.
    elder: Option<DrainStatus>,
    /// Its last word: whether its drain was forced.
    elder_bye: Option<bool>,
    /// How it ended.
    elder_end: Option<PredecessorEnd>,
    /// The drain links of those before this process.
    drainers: Drainers,
    /// This process's own, while it drains.
    tail: Option<Tail>,
    /// What there is to remember of a probation.
    probation: Probation,
    /// The pidfd of a successor whose connection is gone.
    heir_pidfd: Option<(Peer, OwnedFd)>,
    /// The application's state on its way to the successor.
    departing: Option<SharedFd>,
    /// The predecessor's state, as far as it has come.
    arriving: Option<Arriving>,
    /// Descriptors of an offer, in order, those that are sent taken out.
    offered: BTreeMap<Peer, VecDeque<SharedFd>>,
    starter: Option<Starter>,
    successor: Option<Successor>,
    predecessor: Option<Predecessor>,
    work: VecDeque<Work>,
    notices: VecDeque<Notice>,
    /// What has become of the last takeovers.
    journal: Journal,
    /// When the phase of the moment began, for people and for `since`.
    phase: Phase,
    phase_since: u64,
    /// The phase that the log was last told of.
    logged: Phase,
    /// Since when this process had served when the takeover of the moment began, and as which generation.
    served: Option<(u64, u64)>,
    /// What the watchers were last told of, in short.
    told: String,
    draining: bool,
    /// When a hold ends, and what was said of it before this process owned.
    hold_clock: HoldClock,
    /// What a rescuer would need of this process.
    inventory: Kept,
    /// How the drain ended: whether its deadline did it, and with how many leases held.
    finished: Option<(bool, u64)>,
    /// What nobody claimed and has a path. A predecessor that comes back needs the path; and as long as the socket is
    /// open, nobody else's file can have its inode.
    dropped: Vec<Held>,
    groups: Vec<Group>,
    /// Something happened that those who watch may want to know.
    changed: bool,
    /// Why this side withdrew from an attempt, for the application.
    cause: Option<Error>,
    /// The service manager, where this handoff has to do with it.
    #[cfg(feature = "systemd")]
    supervisor: Supervisor,
    /// Peers with frames left to read, of which no event will tell.
    unread: BTreeSet<Peer>,
    /// Connections may wait on the control socket, of which no event will tell.
    unaccepted: bool,
    /// When the log was last told of a stranger.
    strangers: Often,
    /// Tells when the folder of the control socket changes. The last field, so closed last: the close of an inotify
    /// descriptor waits for the kernel's reaper, which can take seconds on a busy machine.
    folder: Option<Inotify>,
}

impl Driver {
    /// Begins a start, or a rehearsal: everything that needs no waiting is done at once.
    pub(crate) fn begin(settings: Settings, within: Duration, wake: Arc<Wake>) -> Result<Box<Driver>> {
        let mut driver = Driver::new(settings, wake)?;
        driver.meet_manager();
        let mut out = Vec::new();
        driver.starter = Some(Starter::new(within, driver.settings.deadlines.orphan, &mut out));
        driver.perform_starter(out)?;
        driver.leave()?;
        Ok(driver)
    }

    fn new(settings: Settings, wake: Arc<Wake>) -> Result<Box<Driver>> {
        let poller = Poller::new().map_err(|error| Error::io("make an epoll instance", error))?;
        poller
            .watch(wake.as_fd(), WAKE, Interest::READABLE)
            .map_err(|error| Error::io("watch the stop handle", error))?;
        Ok(Box::new(Driver {
            pid: std::process::id(),
            namespace: own_network_namespace(),
            family: Family::default(),
            table: Table::default(),
            manifest: VecDeque::new(),
            dropped: Vec::new(),
            groups: Vec::new(),
            finished: None,
            hold_clock: HoldClock::default(),
            inventory: Kept::default(),
            checks: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_peer: 0,
            probe: None,
            link: None,
            elder_pidfd: None,
            elder: None,
            elder_bye: None,
            elder_end: None,
            drainers: Drainers::default(),
            tail: None,
            probation: Probation::default(),
            heir_pidfd: None,
            departing: None,
            arriving: None,
            offered: BTreeMap::new(),
            starter: None,
            successor: None,
            predecessor: None,
            work: VecDeque::new(),
            notices: VecDeque::new(),
            journal: Journal::default(),
            phase: Phase::Starting,
            phase_since: unix_ms(),
            logged: Phase::Starting,
            served: None,
            told: String::new(),
            draining: false,
            changed: false,
            cause: None,
            #[cfg(feature = "systemd")]
            supervisor: Supervisor::default(),
            unread: BTreeSet::new(),
            unaccepted: false,
            strangers: Often::default(),
            receiver: Receiver::new(),
            spares: Spares::default(),
            folder: None,
            settings,
            wake,
            poller,
        }))
    }

    /// What every call from outside begins with: a forked child shares lock and epoll with its parent, and must not act.
    fn enter(&self) -> Result<()> {
        if std::process::id() == self.pid { Ok(()) } else { Err(Error::Forked) }
    }

    /// What every call from outside ends with. Notices that it left behind make the descriptor readable: whoever waits
    /// for it must not miss them.
    fn leave(&mut self) -> Result<()> {
        self.run()?;
        self.leave_inventory();
        if !self.notices.is_empty() || self.has_more() {
            self.wake.again();
        }
        self.set_timer()
    }

    /// At a change of stage: what the stage before has left belongs to this one, which may wait before it looks.
    pub(crate) fn tell_of_notices(&self) {
        if !self.notices.is_empty() {
            self.wake.again();
        }
    }

    /// Does everything that can be done without waiting. To be called whenever the descriptor is readable.
    pub(crate) fn process(&mut self) -> Result<()> {
        self.enter()?;
        loop {
            // Input before timers: after a stop of this process everything is due at once, and an `Owning` that waits to
            // be read must win against the deadline that waited with it. So there is a look before each of them.
            self.read_on()?;
            let Some(key) = self.poller.expired() else { break };
            self.expired(key);
            self.run()?;
        }
        self.finish_drain();
        self.run()?;
        self.leave_inventory();
        if self.has_more() {
            // More waits than one turn may take: come back at once, after whoever polls us had his turn.
            self.wake.again();
        }
        self.refill();
        self.set_timer()
    }

    /// Takes what waits to be read.
    fn read_on(&mut self) -> Result<()> {
        for peer in std::mem::take(&mut self.unread) {
            self.hear(peer);
            self.run()?;
        }
        if self.unaccepted {
            self.accept();
            self.run()?;
        }
        // One round and no more: clients that talk all the time must not keep the deadlines waiting, nor the application.
        // What comes meanwhile makes the descriptor readable again.
        let (ready, more) = self.poller.ready().map_err(|error| Error::io("poll", error))?;
        if more {
            self.wake.again();
        }
        for token in ready {
            match token {
                CONTROL => self.accept(),
                WAKE => self.woken(),
                FOLDER => self.folder_changed(),
                ELDER => self.elder_died(),
                token if token < FIRST_PEER => self.manager_answers(token),
                token => {
                    let peer = ((token - FIRST_PEER) / 2) as Peer;
                    if token % 2 == FIRST_PEER % 2 { self.hear(peer) } else { self.died(peer) }
                }
            }
            self.run()?;
        }
        Ok(())
    }

    /// Something can be read, from a connection or a drain link.
    fn hear(&mut self, peer: Peer) {
        if self.drainers.has(peer) {
            self.hear_drainer(peer);
        } else if self.tail.as_ref().is_some_and(|tail| tail.id == peer) {
            self.hear_steering();
        } else {
            self.talk(peer);
        }
    }

    fn died(&mut self, peer: Peer) {
        if self.drainers.has(peer) { self.drainer_died(peer) } else { self.peer_died(peer) }
    }

    /// Whether something is left to do of which no event will tell.
    fn has_more(&self) -> bool {
        !self.unread.is_empty() || self.unaccepted
    }

    /// Makes ready for the next takeover what it needs of descriptors, while there are some.
    fn refill(&mut self) {
        if self.owns() && self.phase != Phase::HandingOver {
            self.spares.refill(&self.wake.as_fd());
        }
    }

    /// The next notice.
    pub(crate) fn notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    fn set_timer(&mut self) -> Result<()> {
        self.poller.set_timer().map_err(|error| Error::io("set the timer", error))
    }

    /// Feeds the machines until nothing is left to do, then tells those who watch.
    fn run(&mut self) -> Result<()> {
        loop {
            self.run_machines()?;
            if !std::mem::take(&mut self.changed) {
                return Ok(());
            }
            self.tell_watchers();
            // A connection that breaks at a write is news again.
            self.flush_all();
        }
    }

    fn run_machines(&mut self) -> Result<()> {
        while let Some(work) = self.work.pop_front() {
            self.changed = true;
            match work {
                Work::Starter(input) => {
                    let mut out = Vec::new();
                    if let Some(starter) = &mut self.starter {
                        starter.handle(input, &mut out);
                    }
                    self.perform_starter(out)?;
                }
                Work::Successor(input) => {
                    let mut out = Vec::new();
                    self.note_successor_input(&input);
                    if let Some(successor) = &mut self.successor {
                        successor.handle(input, &mut out);
                    }
                    self.note_successor_outputs(&out);
                    self.perform_successor(out)?;
                }
                Work::Predecessor(input) => {
                    let mut out = Vec::new();
                    self.note_owner_input(&input);
                    let hello = match &input {
                        predecessor::Input::Message(_, Message::Hello(hello)) => Some(hello.clone()),
                        _ => None,
                    };
                    if let Some(predecessor) = &mut self.predecessor {
                        predecessor.handle(input, &mut out);
                    }
                    self.note_phase();
                    self.note_owner_outputs(hello.as_ref(), &out);
                    self.perform_predecessor(out);
                }
            }
        }
        Ok(())
    }

    /// The answer to what a machine asked for comes before whatever else waits for it: between the question and the answer
    /// it must learn nothing, or it would act on an answer that is old.
    fn answer(&mut self, work: Work) {
        self.work.push_front(work);
    }

    /// Hands an input to the owner's machine.
    fn owner(&mut self, input: predecessor::Input) {
        self.work.push_back(Work::Predecessor(input));
    }

    fn expired(&mut self, key: Key) {
        match key {
            Key::Starter(timer) => self.work.push_back(Work::Starter(starter::Input::Expired(timer))),
            Key::Successor(timer) => self.work.push_back(Work::Successor(successor::Input::Expired(timer))),
            Key::Predecessor(timer) => {
                if timer == Timer::Probe {
                    self.report_drain();
                }
                self.owner(predecessor::Input::Expired(timer));
            }
            Key::Peer(peer) => {
                debug!("a control client was silent for too long");
                self.forget_peer(peer);
                self.owner(predecessor::Input::Gone(peer));
            }
            Key::Crowded(peer) => self.talk(peer),
            Key::Holder(peer) | Key::Holding(peer) => self.owner(predecessor::Input::HolderExpired(peer)),
            Key::Accept if self.family.accepting => self.accept(),
            Key::Accept if self.owns() => self.start_control(),
            Key::Accept => {}
            // The drain itself looks at whether its deadline is still armed, and so does who waits for the predecessor.
            Key::Drain | Key::Elder => {}
            Key::Relay(client) => self.relay_expired(client),
            Key::Inventory => self.leave_inventory_now(),
            #[cfg(feature = "systemd")]
            Key::Watchdog => self.pet_watchdog(),
            #[cfg(feature = "systemd")]
            Key::Barrier => self.end_barrier(),
        }
    }

    /// Somebody wrote to the stop handle, or the last lease of a drain is gone.
    fn woken(&mut self) {
        if !self.wake.take_stop() {
            return;
        }
        match &self.predecessor {
            Some(_) => {
                info!("asked to stop");
                self.manager_hears_drain();
                self.owner(predecessor::Input::Stop);
            }
            None => {
                let why = Refusal::new("cancelled", "the successor was cancelled");
                self.work.push_back(Work::Successor(successor::Input::Cancel(why)));
                self.notices.push_back(Notice::Failed(Error::Cancelled));
            }
        }
    }

    /// How this process names itself.
    fn identity(&self) -> Who {
        Who { pid: self.pid, app_version: cut(self.settings.app_version.clone()) }
    }

    /// Whether this process is the owner.
    pub(crate) fn owns(&self) -> bool {
        self.predecessor.as_ref().is_some_and(Predecessor::owns)
    }

    /// The generation that this process owns, owned last, or will own.
    pub(crate) fn generation(&self) -> u64 {
        match (&self.predecessor, &self.successor) {
            (Some(predecessor), _) => predecessor.generation(),
            (None, Some(successor)) => successor.generation(),
            (None, None) => 0,
        }
    }

    /// The handle that wakes this driver.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }
}

impl AsRawFd for Driver {
    fn as_raw_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.poller)
    }
}

/// By which the poller knows the connection of a peer; the next token is that of its pidfd.
fn token(peer: Peer) -> usize {
    FIRST_PEER + 2 * peer as usize
}

/// The time of `CLOCK_MONOTONIC`, for those who compare it with another process's.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Unix time in milliseconds.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
