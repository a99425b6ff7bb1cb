//! What systemd has passed to this process, as a source of entries: after a live predecessor, before a bind.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use log::info;

use super::Driver;
use super::entries::disown_foreign_path;
use crate::listener::{self, Asked};
use crate::manifest::{Entry, Kind};
use crate::systemd::Passed;
use crate::table::{Descriptor, Held, Outcome};

impl Driver {
    /// Everything that a predecessor has is here. What systemd has passed of the same sockets is closed again.
    pub(super) fn weigh_passed(&mut self) {
        self.meet_predecessor();
        let held: Vec<Arc<Entry>> = self.table.iter().map(|held| held.entry.clone()).collect();
        self.supervisor.passed.retain(|passed| {
            let same = raw(passed).is_ok_and(|found| held.iter().any(|entry| is_same(entry, &found)));
            if same {
                info!("closed {:?} of systemd: the predecessor has the same", passed.name);
            }
            !same
        });
    }

    /// What systemd has passed for a claim: first by its name, the store before the activation, then at precisely its
    /// address, whatever it is called, since nobody else could bind that. `Err`: why there is none, where there is
    /// something of that name.
    pub(crate) fn take_passed(
        &mut self,
        asked: &Asked<'_>,
        same: &dyn Fn(&Entry) -> bool,
    ) -> Result<(OwnedFd, Outcome), Option<String>> {
        let mut why = None;
        let mut found = None;
        for (at, passed) in self.supervisor.passed.iter().enumerate() {
            let named = passed.name == asked.name || passed.group == asked.name;
            let Ok(entry) = raw(passed) else { continue };
            let unfit = match listener::differs(&asked.kind, passed.fd.as_fd()) {
                Ok(None) if asked.kind.listens() && is_connected(passed.fd.as_fd()) => Some("a connection".to_owned()),
                Ok(None) if !same(&entry) => Some(entry.address.clone()),
                Ok(None) if asked.path.is_some_and(|path| listener::path_inode(path).is_none()) => {
                    Some(format!("{}, which is not there any more", entry.address))
                }
                Ok(None) => None,
                Ok(Some((_, found))) => Some(found),
                Err(error) => Some(error.to_string()),
            };
            match unfit {
                Some(what) if named && why.is_none() => why = Some(format!("{} has {what}", source(passed))),
                Some(_) => {}
                None if named => {
                    found = Some(at);
                    break;
                }
                // Where several would do the first is taken.
                None if found.is_none() && !passed.stored && is_exactly(asked, &entry) => found = Some(at),
                None => {}
            }
        }
        let Some(at) = found else { return Err(why) };
        let passed = self.supervisor.passed.remove(at);
        let outcome = outcome(&passed);
        Ok((passed.fd, outcome))
    }

    /// Takes in what systemd has passed under a name, whatever its kind, as if it had been inherited.
    pub(crate) fn admit_passed(&mut self, name: &str) -> Option<Outcome> {
        let named = |passed: &Passed| passed.name == name || passed.group == name;
        let at = self.supervisor.passed.iter().position(named)?;
        let passed = self.supervisor.passed.remove(at);
        let (kind, path) = (kind(&passed), listener::bound_path(passed.fd.as_fd()));
        let backlog = kind.listens().then_some(listener::BACKLOG);
        if kind != Kind::Raw {
            listener::set_nonblocking(passed.fd.as_fd()).ok()?;
        }
        let asked = Asked { name, kind, requested: String::new(), path: path.as_deref(), backlog };
        let entry = listener::describe(&asked, passed.fd.as_fd()).ok()?;
        let outcome = outcome(&passed);
        let mut held = Held::new(entry, Descriptor::Plain(Arc::new(passed.fd)));
        disown_foreign_path(&mut held, &outcome);
        self.table.insert(held);
        Some(outcome)
    }

    /// The names of what systemd has passed and nobody has claimed, of one kind. After a crash the store and the activation
    /// may both have one.
    pub(crate) fn passed_of(&self, wanted: &Kind) -> BTreeSet<String> {
        let of_kind = self.supervisor.passed.iter().filter(|passed| kind(passed) == *wanted);
        of_kind.map(|passed| passed.name.clone()).collect()
    }

    /// Lets go of what is in the way of an address that is about to be bound; `true`: there was something, and it takes the
    /// manager a moment to close its own copy.
    pub(crate) fn clear_way(&mut self, in_the_way: &dyn Fn(std::net::SocketAddr) -> bool) -> bool {
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for passed in self.supervisor.passed.drain(..) {
            let local = listener::local_address(passed.fd.as_fd()).ok().and_then(|local| local.parse().ok());
            // What a socket unit listens on it does not give up.
            let way = passed.stored && local.is_some_and(in_the_way);
            if way { gone.push(passed) } else { kept.push(passed) }
        }
        self.supervisor.passed = kept;
        for passed in &gone {
            info!("dropped {:?} of {}: it is in the way of what is bound anew", passed.name, source(passed));
            self.unpark(&passed.name);
        }
        !gone.is_empty()
    }

    /// Closes what nobody has claimed.
    pub(super) fn drop_passed(&mut self) {
        for passed in std::mem::take(&mut self.supervisor.passed) {
            info!("dropped {:?} of {}: nobody claimed it", passed.name, source(&passed));
            let why = format!("{} had it, and nobody claimed it", source(&passed));
            self.table.report.entries.entry(passed.name).or_insert(Outcome::Dropped { why });
        }
    }
}

fn source(passed: &Passed) -> &'static str {
    if passed.stored { "the file descriptor store" } else { "the socket activation" }
}

/// What the kernel says of a passed descriptor, without what an application wants of it.
fn raw(passed: &Passed) -> std::io::Result<Entry> {
    let path = listener::bound_path(passed.fd.as_fd());
    let asked =
        Asked { name: &passed.name, kind: Kind::Raw, requested: String::new(), path: path.as_deref(), backlog: None };
    listener::describe(&asked, passed.fd.as_fd())
}

fn outcome(passed: &Passed) -> Outcome {
    if passed.stored { Outcome::Restored } else { Outcome::Activated { name: passed.group.clone() } }
}

/// Whether a socket is at one end of a connection: a listener is not.
fn is_connected(fd: BorrowedFd<'_>) -> bool {
    socket2::SockRef::from(&fd).peer_addr().is_ok()
}

/// Whether two descriptions are of one socket, or of one file.
fn is_same(one: &Entry, other: &Entry) -> bool {
    match (&one.socket, &other.socket) {
        (Some(one), Some(other)) => one.cookie == other.cookie,
        (None, None) => one.file == other.file,
        _ => false,
    }
}

/// Whether a socket is bound to the very address that is asked for.
fn is_exactly(asked: &Asked<'_>, found: &Entry) -> bool {
    let local = found.socket.as_ref().map_or("", |socket| socket.local.as_str());
    asked.path.is_some() || asked.requested.split(',').any(|wanted| !wanted.is_empty() && wanted == local)
}

/// The kind that a descriptor is of.
fn kind(passed: &Passed) -> Kind {
    let fd = passed.fd.as_fd();
    let kinds = [Kind::TcpListener, Kind::Udp, Kind::UnixListener, Kind::UnixDatagram, Kind::SeqpacketListener];
    let fits = |kind: &Kind| {
        listener::differs(kind, fd).is_ok_and(|difference| difference.is_none())
            && !(kind.listens() && is_connected(fd))
    };
    kinds.into_iter().find(fits).unwrap_or(Kind::Raw)
}
