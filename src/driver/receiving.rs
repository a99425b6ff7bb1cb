//! What a successor receives: descriptors are checked against the kernel before the application sees them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use log::debug;
use mio::Interest;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Driver, ELDER, Work};
use crate::control;
use crate::error::{Error, Refusal, Result};
use crate::listener::{self, Tell};
use crate::lock::{self, lock_path};
use crate::manifest::Check;
use crate::protocol::message::{Message, Wants};
use crate::protocol::predecessor;
use crate::protocol::successor;
use crate::table::{Descriptor, Held};
use crate::wire::Frame;
use crate::{namespace, sys};

/// Descriptors that a successor keeps free beside those that it receives: its files, its log, its first connections.
const HEADROOM: u64 = 32;
impl Driver {
    /// Something of the predecessor: a message, or descriptors.
    pub(super) fn hear_predecessor(&mut self, message: Message, descriptors: Vec<OwnedFd>) {
        self.hear_of_hold(&message);
        if let Some(link) = self.link
            && self.elder_speaks(link)
            && !matches!(
                message,
                Message::Draining(_)
                    | Message::Bye(_)
                    | Message::Drainer(_)
                    | Message::Held(_)
                    | Message::Descriptors(_)
            )
        {
            return self.owner(predecessor::Input::Message(link, message));
        }
        let input = match message {
            // Only an owner is told of those who drain.
            Message::Drainer(drainer) if self.predecessor.is_some() => return self.drainers.announce(drainer),
            Message::Descriptors(_) if self.drainers.expects_link() => return self.meet_drainer(descriptors),
            Message::Descriptors(_) if self.expects_state() => return self.keep_state(descriptors),
            Message::Descriptors(count) => match self.keep(descriptors) {
                Ok(()) => successor::Input::Arrived(u32::from(count)),
                Err(error) => successor::Input::Lied(self.withdraw_for(error)),
            },
            Message::Draining(draining) => return self.elder_drains(draining),
            Message::History(history) => return self.inherit_history(history),
            Message::Bye(bye) => return self.elder_says_bye(bye),
            message => {
                if let Message::Offer(offer) = &message {
                    self.family.backlog = offer.backlog.unwrap_or(control::BACKLOG);
                    self.family.inode = offer.path_inode;
                }
                if let Message::State(state) = &message {
                    self.state_announced(state);
                }
                successor::Input::Message(message)
            }
        };
        self.work.push_back(Work::Successor(input));
    }

    /// Says to the predecessor why this side withdraws, and keeps the error itself for the application.
    pub(super) fn withdraw_for(&mut self, error: Error) -> Refusal {
        let why = Refusal::new(error.code(), error.to_string());
        self.cause = Some(error);
        why
    }

    /// Checks descriptors against the manifest and keeps them.
    fn keep(&mut self, descriptors: Vec<OwnedFd>) -> Result<()> {
        let mut descriptors = descriptors.into_iter();
        if self.settings.wants != Wants::Rehearsal && self.family.lock.is_none() {
            let (Some(pidfd), Some(lease), Some(lock), Some(control)) =
                (descriptors.next(), descriptors.next(), descriptors.next(), descriptors.next())
            else {
                return Err(Error::Misbehaved("the first batch lacks what belongs to the family".to_owned()));
            };
            self.poller.watch(pidfd.as_fd(), ELDER, Interest::READABLE).map_err(|error| {
                match error.raw_os_error() {
                    // epoll_ctl(2): what cannot be waited for is no pidfd.
                    Some(libc::EPERM) => Error::Misbehaved("the first descriptor is no pidfd".to_owned()),
                    _ => Error::io("watch the predecessor's pidfd", error),
                }
            })?;
            self.elder_pidfd = Some(pidfd);
            self.family.receive(lease, lock, control);
            self.check_family()?;
        }
        for descriptor in descriptors {
            let Some(entry) = self.manifest.pop_front() else {
                return Err(Error::Misbehaved("more descriptors than entries".to_owned()));
            };
            let descriptor = Descriptor::Plain(Arc::new(descriptor));
            debug!("received {:?}", entry.name);
            if self.settings.wants == Wants::Rehearsal {
                // A look shows what is wrong; it takes nothing.
                let checks = listener::examine(&entry, descriptor.as_fd(), self.namespace, Tell::All)
                    .map_err(|error| Error::io(format!("look at {:?}", entry.name), error))?;
                self.checks.insert(entry.name.clone(), checks);
            }
            let mut held = Held::received(entry, descriptor);
            if self.settings.wants == Wants::Hold {
                // No application is to claim it later.
                let failed = listener::examine(&held.entry, held.fd.as_fd(), self.namespace, Tell::Failed)
                    .map_err(|error| Error::io(format!("look at {:?}", held.entry.name), error))?;
                held.blocking = self.judge(&held, failed)?;
                held.checked = true;
            }
            self.table.insert(held);
        }
        Ok(())
    }

    /// The family's descriptors must be what they are called: a lock file that is the one at the path, and a socket
    /// that listens.
    fn check_family(&self) -> Result<()> {
        let lie = |what: &str| Err(Error::Misbehaved(what.to_owned()));
        let (Some(lease), Some(control)) = (&self.family.lease, &self.family.control) else {
            return lie("the family's descriptors are missing");
        };
        // Where this process cannot see the path, in another mount namespace, only the descriptor is true.
        let path = lock_path(&self.settings.path);
        if path.exists() && !lock::is_at(lease, &path).unwrap_or(false) {
            return lie("the lease is not the lock file at the path");
        }
        match sys::socket_facts(control.as_fd()) {
            Ok(facts) if facts.listening && facts.domain == libc::AF_UNIX => Ok(()),
            _ => lie("the control listener does not listen"),
        }
    }

    /// Holds a received entry against the kernel, once, before the application gets it. Not when it arrives: a service
    /// with ten thousand listeners is handed over without a system call for each of them. `true`: it came in blocking mode.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::ForeignNamespace`], and then the takeover is called off: nothing that such an owner
    /// says is to be relied upon.
    pub(crate) fn check_entry(&mut self, name: &str) -> Result<bool> {
        let Some(held) = self.table.get(name) else { return Ok(false) };
        if held.checked {
            return Ok(held.blocking);
        }
        let admitted = listener::examine(&held.entry, held.fd.as_fd(), self.namespace, Tell::Failed)
            .map_err(|error| Error::io(format!("look at {name:?}"), error))
            .and_then(|failed| self.judge(held, failed));
        match admitted {
            Ok(blocking) => Ok(blocking),
            Err(error) => {
                let why = Refusal::new(error.code(), error.to_string());
                self.work.push_back(Work::Successor(successor::Input::Lied(why)));
                // What comes of it is this error, and the application has it.
                let _ = self.run();
                Err(error)
            }
        }
    }

    /// Whether a descriptor is let in with these checks failed; `true` where it is in blocking mode. That is set at the
    /// commit, so a predecessor that forgot it is no reason to stop.
    fn judge(&self, held: &Held, failed: Vec<Check>) -> Result<bool> {
        let name = &held.entry.name;
        let mut blocking = false;
        for check in failed {
            match check.check {
                "non-blocking" => blocking = true,
                "network-namespace" if self.settings.allow_foreign_network_namespace => {}
                // A holder accepts nothing, and may live elsewhere: whoever has it from there is asked again.
                "network-namespace" if self.settings.wants == Wants::Hold => {}
                "network-namespace" => {
                    let (ours, theirs) = (check.expected.parse(), check.found.parse());
                    let ours = namespace::ours(ours.unwrap_or_default());
                    let theirs = namespace::of(held.fd.as_fd(), theirs.unwrap_or_default());
                    return Err(Error::ForeignNamespace { name: name.clone(), theirs, ours });
                }
                _ => {
                    let Check { check, expected, found, .. } = check;
                    return Err(Error::Mismatch { name: name.clone(), check, expected, found });
                }
            }
        }
        Ok(blocking)
    }

    /// The cookie of another network namespace than this process's own, where such a socket lives in one.
    pub(crate) fn foreign_namespace(&self, held: &Held) -> Option<u64> {
        held.inet?;
        let theirs = sys::network_namespace_cookie(held.fd.as_fd()).ok()?;
        self.namespace.is_some_and(|ours| ours != theirs).then_some(theirs)
    }

    /// Each name of the manifest comes once.
    pub(super) fn check_names(&self) -> Result<()> {
        let mut names: Vec<&str> = self.manifest.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(Error::Misbehaved(format!("the manifest has {:?} twice", twice[0]))),
            None => Ok(()),
        }
    }

    /// Raises the soft limit on open files to the hard one, and says whether so many more fit.
    pub(super) fn reserve(&self, count: u32) -> Result<()> {
        let (mut soft, hard) =
            getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| Error::io("ask for the limit on open files", errno))?;
        let open = open_descriptors();
        let needed = u64::from(count) + HEADROOM;
        if soft.saturating_sub(open) < needed && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
            soft = hard;
        }
        let room = soft.saturating_sub(open);
        if room >= needed {
            return Ok(());
        }
        Err(Error::Room { needed, room })
    }

    /// Descriptors came, and were lost.
    pub(super) fn no_room(&mut self, peer: super::Peer, frame: &Frame) {
        let what = "the limit on open files was reached while descriptors came";
        let known = matches!(Message::decode(frame), Ok(Message::Descriptors(_)));
        if Some(peer) == self.link && self.drainers.expects_link() && known {
            // This process owns, and may need the connection for a way back: nothing that it serves with is lost.
            self.lose_drainer();
        } else if Some(peer) == self.link {
            let room = Errno::EMFILE;
            let why = self.withdraw_for(Error::io("receive the descriptors of the predecessor", room));
            self.work.push_back(Work::Successor(successor::Input::Lied(why)));
        } else {
            self.owner(predecessor::Input::Fault(peer, what.to_owned()));
        }
    }
}

/// How many descriptors this process has open; without /proc, the lowest free number is a fair guess.
fn open_descriptors() -> u64 {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(descriptors) => descriptors.count() as u64,
        Err(_) => 64,
    }
}
