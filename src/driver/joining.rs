//! The way in: performs what starter and successor want, and turns what comes of it into their inputs.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use mio::Interest;
use nix::sys::resource::{Resource, getrlimit};

use super::hold::HoldClock;
use super::{CONTROL, Driver, Key, LISTEN_PAUSE, Notice, Work};
use crate::control::{self, Connect};
use crate::error::{Error, Result};
use crate::lock::{self, LockDescription, lock_path};
use crate::protocol::Timer;
use crate::protocol::message::{Hello, Wants};
use crate::protocol::predecessor::{self, Predecessor};
use crate::protocol::starter::{self, Lease};
use crate::protocol::successor::{self, Failure, Lock, Successor};
use crate::status::Phase;
use crate::table::{Held, Outcome, index};
use crate::{listener, sys};

/// How much longer or shorter than asked a pause of the starter is, in percent.
const JITTER: u64 = 50;

impl Driver {
    pub(super) fn perform_starter(&mut self, out: Vec<starter::Output>) -> Result<()> {
        for output in out {
            match output {
                starter::Output::Connect => {
                    let input = match control::connect_now(&self.settings.path)? {
                        Connect::Made(stream) => {
                            self.check_peer(&stream)?;
                            self.probe = Some(stream);
                            starter::Input::Connected
                        }
                        Connect::Unreachable => {
                            control::check_path(&self.settings.path, &self.settings.guests)?;
                            if self.settings.wants != Wants::Takeover {
                                return Err(Error::Nobody { path: self.settings.path.clone() });
                            }
                            starter::Input::Unreachable
                        }
                        Connect::Full => starter::Input::Full,
                    };
                    self.answer(Work::Starter(input));
                }
                starter::Output::TakeLease => {
                    let answer = self.take_lease()?;
                    self.answer(Work::Starter(starter::Input::Lease(answer)));
                }
                starter::Output::DropLease => self.family.clear(),
                starter::Output::TakeLock => {
                    let generation = self.family.found(&lock_path(&self.settings.path))?;
                    if let Some(generation) = generation {
                        self.become_owner(generation);
                    }
                    self.answer(Work::Starter(starter::Input::Lock(generation.is_some())));
                }
                starter::Output::Join => self.join()?,
                starter::Output::HangUp => self.probe = None,
                starter::Output::Found => self.found()?,
                starter::Output::Fail(failure) => {
                    let error = self.starter_error(failure);
                    self.notices.push_back(Notice::Failed(error));
                }
                starter::Output::Arm(timer, after) => {
                    let after = if timer == Timer::Retry { jitter(after) } else { after };
                    self.poller.arm(Key::Starter(timer), after);
                }
                starter::Output::Disarm(timer) => self.poller.disarm(Key::Starter(timer)),
            }
        }
        Ok(())
    }

    /// The process that listens must be one of ours: it is about to be trusted with descriptors and with what they say.
    fn check_peer(&self, stream: &std::os::unix::net::UnixStream) -> Result<()> {
        let peer = control::peer_credentials(stream).map_err(|error| Error::io("ask who listens", error))?;
        if self.settings.guests.admit(peer.uid, &peer.groups) { Ok(()) } else { Err(Error::Stranger { uid: peer.uid }) }
    }

    fn take_lease(&mut self) -> Result<Lease> {
        if self.settings.wants != Wants::Takeover {
            // Who takes nothing founds nothing: it waits for the owner to answer.
            return Ok(Lease::Busy { owned: true });
        }
        let path = lock_path(&self.settings.path);
        let doing = |what: &str| format!("{what} {}", path.display());
        let file = lock::open(&path, &self.settings.guests)?;
        if lock::try_lease(&file).map_err(|error| Error::io(doing("lock"), error))? {
            if !lock::is_at(&file, &path).map_err(|error| Error::io(doing("look at"), error))? {
                return Ok(Lease::Replaced);
            }
            self.family.lease = Some(Arc::new(file));
            return Ok(Lease::Taken);
        }
        let owned = LockDescription::new(file)
            .is_held_elsewhere()
            .map_err(|error| Error::io(doing("look at the locks of"), error))?;
        Ok(Lease::Busy { owned })
    }

    fn starter_error(&self, failure: starter::Failure) -> Error {
        match failure {
            starter::Failure::Refused(why) => Error::Refused(why),
            starter::Failure::Deadline => Error::Deadline {
                waiting_for: "the service to start or to be taken over",
                after: self.settings.deadlines.start,
            },
            starter::Failure::Unresponsive => {
                Error::Unresponsive { pids: self.lock_holders(), after: self.settings.deadlines.start }
            }
            starter::Failure::Occupied => Error::path(&self.settings.path, crate::error::PathProblem::Occupied),
            starter::Failure::Orphaned => Error::Orphaned { pids: self.lock_holders() },
        }
    }

    /// The processes that have the lock file open.
    fn lock_holders(&self) -> Vec<u32> {
        lock::open_existing(&lock_path(&self.settings.path)).map(|file| lock::holders(&file)).unwrap_or_default()
    }

    /// Says `Hello` on the connection that the starter made.
    fn join(&mut self) -> Result<()> {
        let Some(stream) = self.probe.take() else { return Ok(()) };
        let peer = self.add_peer(stream, None)?;
        self.link = Some(peer);
        if let Some(connection) = self.connections.get_mut(&peer) {
            connection.takes_descriptors = true;
        }
        self.manifest.clear();
        let nonce = match self.settings.nonce {
            Some(nonce) => nonce,
            None => nonce()?,
        };
        let hello = Successor::hello(nonce, self.identity(), self.settings.wants, self.namespace);
        let probation_ms = self.settings.probation.map(|span| span.as_millis() as u64);
        let (state, takeover) = (self.settings.state.is_some(), self.settings.wants == Wants::Takeover);
        let replaces = self.settings.replaces;
        let hello = Hello { state, history: takeover, drain_links: takeover, probation_ms, replaces, ..hello };
        let deadlines = self.settings.deadlines;
        self.note_attempt();
        let mut out = Vec::new();
        let mut successor = Successor::new(hello, deadlines.answer(), deadlines.probe, &mut out);
        if self.settings.demands_probation {
            successor.demand_probation();
        }
        self.successor = Some(successor);
        self.perform_successor(out)
    }

    /// The first of its family: replaces what is stale at the path and answers there that it is starting.
    fn found(&mut self) -> Result<()> {
        let control = control::found(&self.settings.path, &self.settings.guests)?;
        self.family.inode = listener::path_inode(&self.settings.path);
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.set_path_inode(self.family.inode);
        }
        self.family.control = Some(Arc::new(control));
        self.family.founder = true;
        self.start_control();
        self.weigh_passed();
        self.note_cold_start();
        let (path, generation) = (self.settings.path.display(), self.generation());
        info!("{}: first at {path}, generation {generation}", Phase::Starting);
        self.notices.push_back(Notice::Started);
        Ok(())
    }

    /// This process holds byte 0: from here on it is the owner's machine that decides.
    pub(super) fn become_owner(&mut self, generation: u64) {
        let mut predecessor = Predecessor::new(
            generation,
            self.table.len() as u32,
            self.settings.exclusive,
            self.settings.deadlines,
            self.identity(),
            self.family.backlog,
        );
        predecessor.set_path_inode(self.family.inode);
        predecessor.set_window(window());
        predecessor.set_state(self.settings.state.clone());
        // A holder follows the next owner.
        predecessor.set_stays(self.settings.process_stays || self.settings.wants == Wants::Hold);
        // A rescuer without a program is one, too. Whoever took over from a service that lived goes on with its hold.
        let rescues = self.settings.holding && self.successor.is_none();
        predecessor.set_keeps(self.settings.wants == Wants::Hold || rescues);
        self.predecessor = Some(predecessor);
        self.meet_probation();
        self.go_on_with_hold();
        // Also a process that is not ready yet may come to need a rescue.
        self.inventory.is_stale();
        if let Err(error) = self.family.prepare(&lock_path(&self.settings.path)) {
            warn!("cannot prepare the next takeover: {error}");
        }
    }

    pub(super) fn perform_successor(&mut self, out: Vec<successor::Output>) -> Result<()> {
        for output in out {
            match output {
                successor::Output::Send(message) => {
                    if let Some(link) = self.link {
                        self.send(link, &message);
                    }
                }
                successor::Output::Keep(entries) => {
                    self.manifest.extend(entries);
                }
                successor::Output::Reserve(count) => {
                    let room = self.check_names().and_then(|()| self.reserve(count));
                    let room = room.map_err(|error| self.withdraw_for(error));
                    self.answer(Work::Successor(successor::Input::Reserved(room)));
                }
                successor::Output::JoinTakeover => self.join_takeover(),
                successor::Output::LeaveTakeover => {
                    if let Err(error) = self.family.leave_takeover() {
                        warn!("cannot leave the takeover lock: {error}");
                    }
                }
                successor::Output::TakeLock { generation, nonce, bare } => self.take_lock(generation, nonce, bare),
                // What the file is to say was written with the commit.
                successor::Output::Record { generation } => self.become_owner(generation),
                successor::Output::Close => {
                    if let Some(link) = self.link {
                        self.close_after_writing(link);
                    }
                }
                successor::Output::Tells(notice) => self.successor_tells(notice),
                successor::Output::Arm(timer, after) => self.poller.arm(Key::Successor(timer), after),
                successor::Output::Disarm(timer) => self.poller.disarm(Key::Successor(timer)),
            }
        }
        Ok(())
    }

    /// The commit: the lock, and the next generation in the file. Where that cannot be written, a predecessor that is
    /// still there owns on, and this side says why.
    fn take_lock(&mut self, generation: u64, nonce: u64, bare: bool) {
        let linked = self.link.is_some();
        let taken = self.family.commit(generation, nonce, bare).and_then(|lock| {
            if let Lock::Taken { generation } = lock
                && let Err(error) = self.family.record(generation + 1, 0)
            {
                if linked {
                    self.family.unlock()?;
                    return Err(error);
                }
                // Nobody else may be left to serve.
                log::error!("cannot write the lock file: {error}");
            }
            Ok(lock)
        });
        let input = match taken {
            Ok(lock) => successor::Input::Lock(lock),
            Err(error) if linked => {
                let doing = format!("take the owner lock on {}", lock_path(&self.settings.path).display());
                successor::Input::Lied(self.withdraw_for(Error::io(doing, error)))
            }
            Err(error) => {
                warn!("cannot take the owner lock: {error}");
                successor::Input::Lock(Lock::Busy)
            }
        };
        self.answer(Work::Successor(input));
    }

    fn successor_tells(&mut self, notice: successor::Notice) {
        match notice {
            successor::Notice::Received { whole } => {
                let mut out = Vec::new();
                if let Some(starter) = &mut self.starter {
                    starter.joined(&mut out);
                }
                // Only timers are left to take back.
                let _ = self.perform_starter(out);
                self.report_missing(whole);
                self.weigh_passed();
                if self.settings.wants == Wants::Hold {
                    info!("keeping {} entries beside the owner", self.table.len());
                } else {
                    let from = self.successor.as_ref().map(|successor| successor.predecessor().to_string());
                    let (from, entries) = (from.unwrap_or_default(), self.table.len());
                    info!("{}: {entries} entries of {from}, generation {} is next", Phase::Starting, self.generation());
                }
                self.notices.push_back(Notice::Started);
            }
            successor::Notice::Changed => self.notices.push_back(Notice::Changed),
            successor::Notice::Ended(why) => self.notices.push_back(Notice::Ended(why)),
            successor::Notice::Owner { cold } => {
                self.start_control();
                if cold {
                    let generation = self.generation();
                    info!(
                        "{}: the predecessor died, owner of generation {generation} before it is ready",
                        Phase::Starting
                    );
                } else {
                    self.serve();
                }
            }
            successor::Notice::Failed(failure) => self.failed(failure),
        }
    }

    /// What a predecessor that died too early had announced and not sent.
    fn report_missing(&mut self, whole: bool) {
        if whole {
            return;
        }
        for entry in &self.manifest {
            let why = "the predecessor died before it was sent".to_owned();
            self.table.report.entries.insert(entry.name.clone(), Outcome::Missing { why });
        }
    }

    /// An attempt is over. Before anything was received the start goes on; afterwards the application is told.
    fn failed(&mut self, failure: Failure) {
        let starting = self.starter.as_ref().is_some_and(|starter| !starter.is_over());
        let again = match &failure {
            Failure::Refused(why) if starting => Some(starter::Input::Refused(why.clone())),
            Failure::NotServed | Failure::Superseded if starting => Some(starter::Input::NotServed),
            Failure::Deadline(..) if starting && self.manifest.is_empty() => Some(starter::Input::Silent),
            _ => None,
        };
        let cause = self.cause.take();
        if again == Some(starter::Input::Silent) {
            warn!("the owner did not answer for {:?}: trying on", self.settings.deadlines.answer());
        }
        // Nothing of this attempt may stay: not a lock, not a listener.
        self.drop_attempt();
        if let Some(input) = again {
            return self.work.push_back(Work::Starter(input));
        }
        let error = match failure {
            Failure::Refused(why) => Error::Refused(why),
            Failure::GaveUp(why) => Error::GaveUp(why),
            Failure::Withdrew(why) => match why.code.as_str() {
                "cancelled" => Error::Cancelled,
                "no-probation" => Error::Refused(why),
                _ => cause.unwrap_or(Error::Misbehaved(why.message)),
            },
            Failure::NotServed | Failure::LinkLost => Error::LinkLost,
            Failure::Deadline(waiting_for, after) => Error::Deadline { waiting_for, after },
            Failure::Superseded => Error::Superseded,
        };
        self.notices.push_back(Notice::Failed(error));
    }

    /// Closes everything that came in an attempt that is over.
    fn drop_attempt(&mut self) {
        self.remove_own_paths();
        self.poller.disarm_all(|key| matches!(key, Key::Successor(_)));
        if let Some(pidfd) = self.elder_pidfd.take() {
            self.poller.forget(pidfd.as_fd());
        }
        // The link is closed once its last words are written; nothing that it says counts any more.
        if let Some(link) = self.link.take() {
            self.close_after_writing(link);
            self.flush(link);
        }
        self.forget_attempt();
        self.successor = None;
        self.family.clear();
        self.table.clear();
        self.manifest.clear();
        self.checks.clear();
        self.arriving = None;
        self.hold_clock = HoldClock::default();
    }

    /// Tells the predecessor that the warm-up goes on.
    pub(crate) fn progress(&mut self, text: &str) -> Result<()> {
        self.enter()?;
        self.manager_hears_progress(text);
        self.work.push_back(Work::Successor(successor::Input::Progress(text.to_owned())));
        self.leave()
    }

    /// The application is ready: asks for ownership, or begins to serve where this process owns already.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.enter()?;
        if self.owns() {
            self.serve();
        } else {
            let report = &self.table.report;
            let unclaimed = self.table.iter().filter(|held| !held.claimed).map(|held| held.entry.name.clone());
            let ready = crate::protocol::message::Ready {
                adopted: report.adopted() as u32,
                bound: report.names(Outcome::is_new),
                dropped: unclaimed.collect(),
                missing: report.names(|outcome| matches!(outcome, Outcome::Missing { .. })),
            };
            self.work.push_back(Work::Successor(successor::Input::Ready(ready)));
        }
        self.leave()
    }

    /// The commit is done and the application is ready: what it bound listens, what it dropped is closed.
    fn serve(&mut self) {
        self.dropped = self.table.drop_unclaimed();
        self.report_state();
        self.set_nonblocking();
        for begin in [Driver::listen_all, Driver::write_pid_file] {
            let Err(error) = begin(self) else { continue };
            if self.successor.is_none() {
                // Nothing was inherited, so nothing is lost by saying it aloud.
                return self.notices.push_back(Notice::Failed(error));
            }
            warn!("{error}");
        }
        self.meet_elder();
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.set_entries(self.table.len() as u32);
        }
        self.inventory.is_stale();
        self.family.founder = false;
        self.owner(predecessor::Input::Ready);
        self.watch_folder();
        self.remove_dropped();
        self.steer_groups();
        self.manager_hears_serving();
        self.note_later_step("serving");
        info!("{}: generation {}; {}", self.shown(Phase::Serving), self.generation(), self.table.report);
        self.notices.push_back(Notice::Serving);
    }

    /// Sets what came in blocking mode to non-blocking: at the commit and not before, since the mode is shared with the
    /// predecessor, and never back.
    pub(super) fn set_nonblocking(&mut self) {
        for held in self.table.iter_mut().filter(|held| held.blocking) {
            held.blocking = false;
            if let Err(error) = listener::set_nonblocking(held.fd.as_fd()) {
                log::error!("cannot make {:?} non-blocking: {error}", held.entry.name);
            }
        }
    }

    /// listen(2) on what is new, and again on what is Unix, so that its clients see this process as their peer.
    ///
    /// # Errors
    /// The first that does not listen; the others do, and it is in the report.
    pub(super) fn listen_all(&mut self) -> Result<()> {
        let mut failed = Ok(());
        let mut missing = Vec::new();
        let mut listeners: Vec<&mut Held> = self.table.iter_mut().filter(|held| held.entry.kind.listens()).collect();
        // Those of a group join it in this order, and by it they are told apart.
        listeners.sort_by_key(|held| index(&held.entry.name));
        for held in listeners {
            let unix = held.entry.path.is_some();
            if !held.silent && !unix {
                continue;
            }
            match listener::listen_on(Arc::make_mut(&mut held.entry), held.fd.as_fd()) {
                Ok(()) => held.silent = false,
                Err(error) => {
                    log::error!("cannot listen on {:?}: {error}", held.entry.name);
                    missing.push((held.entry.name.clone(), format!("listen: {error}")));
                    if failed.is_ok() {
                        failed = Err(Error::io(format!("listen on {:?}", held.entry.name), error));
                    }
                }
            }
        }
        for (name, why) in missing {
            self.table.report.entries.insert(name, Outcome::Missing { why });
        }
        failed
    }

    /// Removes the paths of what nobody claimed, once the predecessor cannot come back for them.
    pub(super) fn remove_dropped(&mut self) {
        if self.elder.is_some() {
            return;
        }
        for held in std::mem::take(&mut self.dropped) {
            if let Some((path, inode)) = held.path()
                && listener::remove(&path, inode)
            {
                info!("removed {}: nobody claimed it", path.display());
            }
        }
    }

    /// Listens (again) on the control socket and registers it: only an owner does.
    pub(super) fn start_control(&mut self) {
        let Some(control) = self.family.control.clone() else { return };
        if self.family.accepting {
            return;
        }
        let watched = control::listen_again(&*control, self.family.backlog)
            .and_then(|()| self.poller.watch((*control).as_fd(), CONTROL, Interest::READABLE));
        match watched {
            Ok(()) => self.family.accepting = true,
            Err(error) => {
                // Without it there is no next takeover, and nothing else would bring us back.
                log::error!("cannot listen on the control socket: {error}");
                self.poller.arm(Key::Accept, LISTEN_PAUSE);
            }
        }
        self.let_guests_in();
    }

    /// Opens control socket and lock file to the guests of this owner, and to those of no other.
    fn let_guests_in(&self) {
        let (path, guests) = (&self.settings.path, &self.settings.guests);
        if let Some(inode) = self.family.inode
            && let Err(error) = control::open_to(path, inode, guests)
        {
            warn!("cannot let others in at {}: {error}", path.display());
        }
        if let Some(lease) = &self.family.lease
            && let Err(error) = lock::open_to(lease, guests)
        {
            warn!("cannot let others in at {}: {error}", lock_path(path).display());
        }
    }
}

/// A number that names a takeover, or a holder.
pub(super) fn nonce() -> Result<u64> {
    loop {
        let nonce = sys::random().map_err(|error| Error::io("get random bytes", error))?;
        // 0 in the lock file means that nobody is at it.
        if nonce != 0 {
            return Ok(nonce);
        }
    }
}

/// Spreads the attempts of several starters.
fn jitter(pause: Duration) -> Duration {
    let spread = pause.as_micros() as u64 * JITTER / 100;
    let random = sys::random().unwrap_or(0) % spread.max(1);
    pause - Duration::from_micros(spread / 2) + Duration::from_micros(random)
}

/// How many descriptors may be under way to a successor at once. The kernel holds those of one user against the sender's
/// soft limit (unix(7)); half of it is left to the others.
fn window() -> u32 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    u32::try_from(soft / 2).unwrap_or(u32::MAX)
}
