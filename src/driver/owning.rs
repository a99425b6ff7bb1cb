//! The owner's side: performs what the predecessor's machine wants, and answers questions.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use log::{debug, error, info, warn};
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, accept4};

use super::{ACCEPT_PAUSE, Driver, Key, Notice, Work};
use crate::connection::Connection;
use crate::error::{Error, Refusal, Who};
use crate::lock::lock_path;
use crate::manifest::Entry;
use crate::protocol::FAMILY_SLOTS;
use crate::protocol::message::{Entries, Held, MAX_PER_FRAME, Message, Wants};
use crate::protocol::predecessor::{self, Output, Peer, Reason};
use crate::shared::SharedFd;
use crate::status::Phase;
use crate::wire::MAX_BODY;
use crate::{control, listener, pid_file, sys};

/// The most control clients at once; when full, the one that was silent longest is closed, never a takeover.
const MAX_CLIENTS: usize = 64;
/// How many connections are taken before the others, and the application, have their turn. Few beside those that may be
/// at once, so that each is there for some turns whatever comes after it.
const ACCEPTS_IN_A_TURN: usize = 16;
/// How many listeners go into one frame, where they fit.
pub(super) const PER_FRAME: usize = 200;
/// What an entry has in bytes beside its texts, at most: the names of its fields, and its numbers.
const ENTRY_FRAME: usize = 256;

impl Driver {
    /// Takes the connections that wait on the control socket, and hears what each has said already.
    pub(super) fn accept(&mut self) {
        self.unaccepted = false;
        let mut taken = 0;
        while self.family.accepting {
            if taken == ACCEPTS_IN_A_TURN {
                self.unaccepted = true;
                return;
            }
            let Some(listener) = self.family.control.clone() else { return };
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(&*listener, flags) {
                Ok(stream) => {
                    taken += 1;
                    if let Some(peer) = self.admit(UnixStream::from(stream)) {
                        // Now, and not when its event comes: by then a crowd that came after it may have pushed it out.
                        self.talk(peer);
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                // A takeover is the way out of such a shortage, so it must not need what is short.
                Err(Errno::EMFILE | Errno::ENFILE) if self.spares.free(2) || self.close_longest_silent() => {}
                Err(errno) => {
                    // The edge is gone and the connection still waits: only a timer brings us back.
                    warn!("cannot accept on the control socket: {errno}");
                    self.poller.arm(Key::Accept, ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Decides who may speak, before a byte of his is read. `None` for who may not.
    fn admit(&mut self, stream: UnixStream) -> Option<Peer> {
        let who = control::peer_credentials(&stream).ok()?;
        if !self.settings.guests.admit(who.uid, &who.groups) {
            if let Some(unsaid) = self.strangers.say(Instant::now()) {
                let pid = who.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                warn!("refused uid {}, groups {:?} (pid {pid}) on the control socket{unsaid}", who.uid, who.groups);
            }
            // Never registered, so never read from, and in nobody's place. In a new socket there is room for this.
            let mut stranger = Connection::new(stream, None);
            let why = Refusal::new("stranger", format!("uid {} is not allowed", who.uid));
            self.note_refusal(&Who { pid: who.pid.unwrap_or_default(), app_version: String::new() }, &why);
            stranger.send(&Message::Refused(why));
            stranger.flush();
            return None;
        }
        // Of a connection that was made before this owner listened.
        let _ = sys::refuse_descriptors(stream.as_fd());
        let pidfd = sys::peer_pidfd(stream.as_fd()).ok();
        while self.connections.len() >= MAX_CLIENTS {
            if !self.close_longest_silent() {
                return None;
            }
        }
        match self.add_peer(stream, pidfd) {
            Ok(peer) => {
                self.poller.arm(Key::Peer(peer), self.settings.deadlines.handshake);
                Some(peer)
            }
            Err(error) => {
                warn!("{error}");
                None
            }
        }
    }

    fn close_longest_silent(&mut self) -> bool {
        let silent = self
            .connections
            .iter()
            .filter(|(peer, _)| {
                Some(**peer) != self.link
                    && !self.predecessor.as_ref().is_some_and(|owner| owner.is_heir(**peer) || owner.is_holder(**peer))
            })
            .min_by_key(|(_, connection)| connection.heard)
            .map(|(peer, _)| *peer);
        let Some(peer) = silent else { return false };
        debug!("too many control clients: the longest silent one is closed");
        self.forget_peer(peer);
        self.owner(predecessor::Input::Gone(peer));
        true
    }

    pub(super) fn perform_predecessor(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(peer, Message::TakeBack(back)) => {
                    let back = self.name_lost(back);
                    self.send(peer, &back.into());
                }
                // With what is left of its time.
                Output::Send(peer, Message::Held(_)) => self.send_latest(peer, &Held { hold: self.hold() }.into()),
                Output::Send(peer, message) => {
                    let stops = self.predecessor.as_ref().is_some_and(predecessor::Predecessor::is_to_stop);
                    if matches!(message, Message::Done(_)) && stops {
                        // Who asked for a stop sees it by the end of his connection, whenever that is.
                        self.poller.disarm(Key::Peer(peer));
                    }
                    if let (Message::Abort(_), Some(connection)) = (&message, self.connections.get_mut(&peer)) {
                        // What it has not been sent yet is not for it any more.
                        connection.discard_unsent();
                    }
                    if let Message::Released(_) = message {
                        self.tell_heir_history(peer, true);
                    }
                    if let Message::Bye(bye) = &message {
                        self.say_bye_by_tail(bye);
                    }
                    self.send(peer, &message);
                }
                Output::Refuse(peer, why) => self.refuse(peer, why),
                Output::SendManifest(peer) => {
                    // From here on the machine's own deadlines hold.
                    self.poller.disarm(Key::Peer(peer));
                    self.tell_heir_history(peer, false);
                    self.send_manifest(peer);
                }
                Output::SendDescriptors { peer, count, .. } => self.send_descriptors(peer, count),
                Output::SendState(peer, state) => self.send_state(peer, state),
                Output::Tell { peer, watch } => {
                    if let Some(connection) = self.connections.get_mut(&peer) {
                        connection.watch |= watch;
                        self.tell(peer);
                    }
                }
                Output::Await(peer) => self.poller.disarm(Key::Peer(peer)),
                Output::EndProbation => {
                    self.probation_ends();
                    self.remove_dropped();
                }
                Output::TellHistory(peer) => {
                    let history = self.history();
                    self.send(peer, &history);
                }
                Output::Steer(peer, ask) => self.steer(peer, &ask),
                Output::Close(peer) => self.close_after_writing(peer),
                Output::JoinTakeover => {
                    if self.phase() == Phase::StandingBy {
                        // Its part in a takeover that was offered long ago: the successor has byte 1 all the time.
                        self.join_takeover();
                        continue;
                    }
                    self.family.founder = false;
                    // Where somebody was stopped with it in hand: he will find the nonce in the file changed.
                    self.join_takeover();
                    self.manager_hears_offer();
                    self.may_be_given_back();
                }
                Output::LeaveTakeover => {
                    if let Err(error) = self.family.leave_takeover() {
                        warn!("cannot leave the takeover lock: {error}");
                    }
                    if self.owns() {
                        self.owns_again();
                    }
                    self.prepare();
                }
                Output::Record { generation, nonce } => self.record(generation, nonce),
                Output::StopControl => self.stop_control(),
                Output::StartControl => {
                    // This process owns again, so it does not matter any more whether that successor lives.
                    if let Some((_, pidfd)) = self.heir_pidfd.take() {
                        self.poller.forget(pidfd.as_fd());
                    }
                    self.start_control();
                    // What does not listen is in the log and in the report.
                    let _ = self.listen_all();
                    self.prepare();
                }
                Output::Unlock => {
                    if let Err(error) = self.family.unlock() {
                        error!("cannot give the owner lock back: {error}");
                    }
                }
                Output::Hold(hold) => self.keep_hold(hold),
                Output::Claim(claim) => {
                    let found = self.family.reclaim(claim, self.generation()).unwrap_or_else(|error| {
                        warn!("cannot take the owner lock back: {error}");
                        predecessor::Found::Unknown
                    });
                    self.weigh_return(found);
                    self.answer(Work::Predecessor(predecessor::Input::Claimed(found)));
                }
                Output::Tells(notice) => self.predecessor_tells(notice),
                Output::Arm(timer, after) => self.poller.arm(Key::Predecessor(timer), after),
                Output::Disarm(timer) => self.poller.disarm(Key::Predecessor(timer)),
                Output::ArmHolder(peer, after) => self.poller.arm(Key::Holder(peer), after),
                Output::ArmHolding(peer, after) => self.poller.arm(Key::Holding(peer), after),
                Output::DisarmHolder(peer) => {
                    self.poller.disarm(Key::Holder(peer));
                    self.poller.disarm(Key::Holding(peer));
                }
            }
        }
    }

    /// Takes byte 1 shared, where that is to be had.
    pub(super) fn join_takeover(&mut self) {
        match self.family.join_takeover() {
            Ok(true) => {}
            Ok(false) => warn!("the takeover lock is held exclusively by a process that does not let go"),
            Err(error) => warn!("cannot join the takeover lock: {error}"),
        }
    }

    fn record(&mut self, generation: u64, nonce: u64) {
        if let Err(error) = self.family.record(generation, nonce) {
            error!("cannot write the lock file: {error}");
            if nonce != 0 {
                // Without it in the file a successor that was stopped could win a later gap.
                self.unable("write the lock file", &error);
            }
        }
    }

    /// This side cannot go on with the takeover of the moment, and says why.
    fn unable(&mut self, doing: &str, error: &std::io::Error) {
        self.owner(predecessor::Input::Unable(inability(doing, error)));
    }

    pub(super) fn stop_control(&mut self) {
        if let Some(control) = &self.family.control
            && self.family.accepting
        {
            self.poller.forget((**control).as_fd());
        }
        self.family.accepting = false;
        self.unaccepted = false;
        self.poller.disarm(Key::Accept);
    }

    pub(super) fn refuse(&mut self, peer: Peer, mut why: Refusal) {
        if why.code == "probation" {
            let (since, left) = self.probation_times();
            why.since_ms = since.map(|since| since.as_millis() as u64);
            why.retry_after_ms = left.map(|left| left.as_millis() as u64);
        } else if why.who.is_some() {
            why.since_ms = self.takeover_times().map(|(since, _)| since);
        }
        self.date_refusal(&mut why);
        info!("refused a peer: {why}");
        self.send(peer, &Message::Refused(why));
        self.close_after_writing(peer);
    }

    /// Sends all entries and lines up their descriptors. The family's come first, but not for a rehearsal.
    fn send_manifest(&mut self, peer: Peer) {
        let takeover = self.predecessor.as_ref().is_some_and(|predecessor| predecessor.is_heir(peer));
        let holder = self.predecessor.as_ref().is_some_and(|predecessor| predecessor.is_holder(peer));
        let mut descriptors: VecDeque<SharedFd> = VecDeque::with_capacity(self.table.len() + FAMILY_SLOTS as usize);
        if holder {
            match self.family.holders_batch(&lock_path(&self.settings.path)) {
                Ok(family) => descriptors.extend(family),
                Err(error) => {
                    let why = inability("prepare its descriptors", &error);
                    warn!("cannot give a holder what it is to keep: {why}");
                    return self.owner(predecessor::Input::CannotKeep(peer, why));
                }
            }
        }
        if takeover {
            match self.family_descriptors() {
                Ok(family) => descriptors.extend(family),
                Err(error) => {
                    error!("cannot offer a takeover: {error}");
                    return self.unable("prepare its descriptors", &error);
                }
            }
        }
        self.retire();
        descriptors.extend(self.table.iter().map(|held| held.fd.share()));
        self.offered.insert(peer, descriptors);
        let entries: Vec<_> = self.table.iter().map(|held| held.entry.clone()).collect();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(fitting(rest));
            rest = after;
            self.send_part(peer, part, &|part| Entries { entries: part.to_vec() }.into());
            // The other side reads the first of them while the next are put into bytes.
            self.flush(peer);
        }
    }

    /// The first batch: this process's pidfd, the lease, a lock description made for the successor, the control listener.
    fn family_descriptors(&mut self) -> std::io::Result<[SharedFd; 4]> {
        self.spares.free_all();
        self.family.prepare(&lock_path(&self.settings.path))?;
        self.family.first_batch().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Sends a list in one frame, or in two halves where it is too long for one.
    pub(super) fn send_part<T>(&mut self, peer: Peer, part: &[T], message: &dyn Fn(&[T]) -> Message) {
        let whole = message(part);
        let body = whole.body();
        if part.len() > 1 && body.len() > MAX_BODY {
            let (front, back) = part.split_at(part.len() / 2);
            self.send_part(peer, front, message);
            self.send_part(peer, back, message);
        } else {
            self.send_body(peer, whole.kind(), whole.word(), &body);
        }
    }

    fn send_descriptors(&mut self, peer: Peer, count: u16) {
        let Some(offered) = self.offered.get_mut(&peer) else { return };
        // Taken out as they are sent: this process keeps no copy of the successor's lock description.
        let batch: Vec<SharedFd> = offered.drain(..usize::from(count).min(offered.len())).collect();
        if let Some(connection) = self.connections.get_mut(&peer) {
            debug!("{} descriptors to peer {peer}", batch.len());
            connection.send_descriptors(batch);
        }
    }

    fn predecessor_tells(&mut self, notice: predecessor::Notice) {
        let notice = match notice {
            predecessor::Notice::Release => {
                debug!("releasing: the application lets go of its exclusive work");
                Notice::Release
            }
            predecessor::Notice::Resume => {
                self.draining = false;
                self.wake.set_draining(false);
                self.poller.disarm(Key::Drain);
                self.drop_tail();
                self.wake_drainers();
                self.owns_again();
                self.comes_back();
                Notice::Resume
            }
            predecessor::Notice::StandBy => {
                self.stands_by();
                self.hand_on_drainers();
                Notice::StandBy
            }
            predecessor::Notice::Leave(reason) => {
                self.stands_by_no_more(reason);
                match reason {
                    Reason::Successor => {
                        self.manager_hears_leaving();
                    }
                    Reason::RolledBack => {
                        info!("draining: the predecessor owns again");
                        self.manager_hears_leaving();
                    }
                    Reason::Stopped => {
                        self.note_stop();
                        self.manager_hears_stopping();
                    }
                }
                self.wake.set_draining(true);
                self.poller.arm(Key::Drain, self.settings.drain_within);
                match reason {
                    Reason::Successor => {
                        self.hand_on_own_drain();
                        self.hand_on_drainers();
                    }
                    // It has them, and reads on.
                    Reason::RolledBack => self.rest_drainers(),
                    Reason::Stopped => {}
                }
                Notice::Leave(reason)
            }
            predecessor::Notice::Replaced => Notice::Replaced,
            predecessor::Notice::Cancelled => Notice::Failed(Error::Cancelled),
            predecessor::Notice::Exit => {
                self.end();
                return self.exit_when_heard();
            }
        };
        self.notices.push_back(notice);
    }

    /// A takeover came to nothing, or its successor has died: what tells others who owns says so again.
    fn owns_again(&mut self) {
        if let Err(error) = self.write_pid_file() {
            warn!("{error}");
        }
        // The successor may have made a group ready for more members than there are now.
        self.steer_groups();
        self.manager_hears_again();
    }

    /// Only ever by the owner.
    pub(super) fn write_pid_file(&mut self) -> crate::Result<()> {
        let Some(path) = self.settings.pid_file.as_ref().filter(|path| !pid_file::names(path, self.pid)) else {
            return Ok(());
        };
        pid_file::write(path, self.pid).map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// The application has stopped accepting: from here on the end of its last lease ends the drain.
    pub(crate) fn begin_drain(&mut self) -> crate::Result<()> {
        self.enter()?;
        // Not where the service has come back in the meantime: its notice is on the way.
        self.draining = !self.notices.iter().any(|notice| matches!(notice, Notice::Resume));
        self.finish_drain();
        self.run()?;
        self.report_drain();
        self.leave()
    }

    /// Ends the drain where nothing is in flight any more, or where its deadline has passed.
    pub(super) fn finish_drain(&mut self) {
        // A drain that was begun during a takeover waits for its end.
        if !self.draining || !matches!(self.phase(), Phase::Draining | Phase::Stopping) {
            return;
        }
        let in_flight = self.wake.leases();
        let forced = self.poller.deadline(Key::Drain).is_none();
        if in_flight == 0 || forced {
            self.finished = Some((forced && in_flight > 0, in_flight));
            self.owner(predecessor::Input::Finish { forced: forced && in_flight > 0, in_flight });
        }
    }

    pub(super) fn report_drain(&mut self) {
        let in_flight = self.wake.leases();
        let left = self.drain_left();
        self.owner(predecessor::Input::InFlight { in_flight, left });
        self.report_by_tail(false);
    }

    /// Until the drain deadline; `None` where there is none.
    pub(crate) fn drain_left(&self) -> Option<std::time::Duration> {
        let at = self.poller.deadline(Key::Drain)?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// The application has let go of its exclusive work.
    pub(crate) fn released(&mut self) -> crate::Result<()> {
        self.enter()?;
        self.owner(predecessor::Input::AppReleased);
        self.leave()
    }

    /// The application has been told that it serves again: it owes no answer to an earlier release.
    pub(crate) fn resumed(&mut self) -> crate::Result<()> {
        self.enter()?;
        self.owner(predecessor::Input::AppResumed);
        self.leave()
    }

    /// The application wants to leave.
    pub(crate) fn stop(&mut self) -> crate::Result<()> {
        self.enter()?;
        self.owner(predecessor::Input::Stop);
        self.leave()
    }

    /// How the drain ended: whether its deadline did it, and with how many leases held.
    pub(crate) fn drain_summary(&self) -> (bool, u64) {
        self.finished.unwrap_or_default()
    }

    /// The phase at this very moment.
    pub(super) fn phase(&self) -> Phase {
        self.predecessor.as_ref().map_or(Phase::Starting, predecessor::Predecessor::phase)
    }

    /// The last act of a process that leaves: closes what it holds, and where it is the last of its family removes the
    /// paths that the family bound.
    fn end(&mut self) {
        self.flush_all();
        self.stop_control();
        // The last phase of which the log knows: an end is none.
        let stopping = self.logged == Phase::Stopping;
        let paths = if stopping { self.table.paths() } else { Vec::new() };
        let pid_file = self.settings.pid_file.as_ref().filter(|_| stopping);
        if (!paths.is_empty() || pid_file.is_some())
            && let Some(lease) = self.family.is_last(&lock_path(&self.settings.path))
        {
            // While the sockets are still open: nobody else's file can have their inodes.
            for (path, inode) in paths {
                listener::remove(&path, inode);
            }
            if let Some(path) = pid_file {
                pid_file::remove(path, self.pid);
            }
            drop(lease);
        }
        if self.settings.wants == Wants::Hold && !stopping {
            // What it keeps it keeps, whoever owns; and nobody steers it any more.
            self.draining = false;
            return self.drop_tail();
        }
        self.table.clear();
    }

    /// Makes ready for the next takeover, and looks whether the control path is still there: nobody looked while the last
    /// one was under way.
    fn prepare(&mut self) {
        if !self.owns() {
            return;
        }
        if let Err(error) = self.family.prepare(&lock_path(&self.settings.path)) {
            warn!("cannot prepare the next takeover: {error}");
        }
        self.mend_path();
    }
}

impl Driver {
    /// Removes the paths that this process bound and nobody else was ever given: those of an attempt that is over.
    pub(super) fn remove_own_paths(&self) {
        for (path, inode) in self.table.own_paths() {
            listener::remove(&path, inode);
        }
    }
}

impl Drop for Driver {
    /// Closing is all that a drop may do: a forked child drops this too, and shares locks and epoll with its parent. The
    /// one exception is an attempt that was given up before it owned, or before it had offered anything to anybody: it
    /// removes the paths that it made.
    fn drop(&mut self) {
        if std::process::id() != self.pid {
            return;
        }
        let founder = self.family.founder && self.family.lease.is_some();
        if founder || self.predecessor.is_none() {
            self.remove_own_paths();
        }
        if founder && let Some(inode) = self.family.inode {
            listener::remove(&self.settings.path, inode);
        }
    }
}

/// Why this side cannot do its part, for the other one.
fn inability(doing: &str, error: &std::io::Error) -> Refusal {
    let code = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE) => "shortage",
        _ => "io",
    };
    Refusal::new(code, format!("the owner cannot {doing}: {error}"))
}

/// How many of the first entries fit one frame, at least one: by their texts, without putting them into bytes.
fn fitting(entries: &[Arc<Entry>]) -> usize {
    let mut bytes = 0;
    let fits = entries.iter().take(MAX_PER_FRAME).take_while(|entry| {
        let local = entry.socket.as_ref().map_or(0, |socket| socket.local.len());
        let path = entry.path.as_ref().map_or(0, Vec::len);
        bytes += ENTRY_FRAME + entry.name.len() + entry.address.len() + entry.requested.len() + local + path;
        bytes <= MAX_BODY
    });
    fits.count().max(1)
}
