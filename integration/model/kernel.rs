//! The kernel as far as a takeover sees it: the lock file, connections with descriptors in flight, accept queues.
//!
//! Everything is small and finite: a set of processes is a byte, an object is named by the process that made it, and
//! nothing counts what nobody asks for.

use std::collections::VecDeque;

use crate::protocol::message::Message;

/// A process, by its place in the world.
pub(super) type Pid = u8;
/// A control connection, by a number that no other attempt of any process has: see [`link_of`].
pub(super) type LinkId = u8;

/// How many connections one process can make.
pub(super) const LINKS_EACH: u8 = 6;

/// The nth connection of a process.
pub(super) fn link_of(pid: Pid, nth: u8) -> LinkId {
    pid * LINKS_EACH + nth
}

/// The nonce of the takeover on this connection: unlike in life it is not random, but as there it comes once.
pub(super) fn nonce_of(link: LinkId) -> u64 {
    u64::from(link) + 1
}

/// A set of small numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Set(u32);

impl Set {
    pub(super) fn has(self, item: u8) -> bool {
        self.0 & (1 << item) != 0
    }

    pub(super) fn insert(&mut self, item: u8) {
        self.0 |= 1 << item;
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, item: u8) -> bool {
        let had = self.has(item);
        self.0 &= !(1 << item);
        had
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether something other than this one is in it.
    pub(super) fn has_others(self, item: u8) -> bool {
        self.0 & !(1 << item) != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..32).filter(move |item| self.has(*item))
    }
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The family's part of the first batch. The lock description rides along: it holds no lock yet, and its sender keeps no
/// copy, so nothing of it needs a place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    pub(super) elder: Pid,
    pub(super) lease: Pid,
    pub(super) control: Pid,
}

/// A frame, with what rides on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Packet {
    Message(Message),
    /// A part of the manifest: so many entries. The list itself is made when it is read.
    Entries(u32),
    Descriptors {
        count: u16,
        family: Option<Batch>,
        /// The service's listener is among them.
        service: Option<Pid>,
    },
}

/// One connection on the control socket. End 0 connected, end 1 accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) connector: Pid,
    pub(super) acceptor: Option<Pid>,
    /// What waits to be read at each end.
    pub(super) unread: [VecDeque<Packet>; 2],
    pub(super) open: [bool; 2],
    /// It broke, and both ends are told.
    pub(super) cut: bool,
}

/// One who wants to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// Has not connected yet.
    Away,
    /// In the accept queue of the listener that this process bound.
    Waiting(Pid),
    Served,
    Refused,
    Reset,
}

/// What belongs to no process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Kernel {
    /// The content of the lock file.
    pub(super) generation: u64,
    pub(super) nonce: u64,
    /// Byte 0. A lock belongs to an open file description; each process has one of its own, so its pid names it.
    pub(super) owner: Option<Pid>,
    /// Byte 1, held shared.
    pub(super) parties: Set,
    /// Byte 1, held exclusively.
    pub(super) bar: Option<Pid>,
    /// The open of the lock file that holds the family lease, by its maker. Any number of copies; free when the last is
    /// closed.
    pub(super) lease: Option<Pid>,
    /// The control listener that the path leads to, by its maker.
    pub(super) path: Option<Pid>,
    pub(super) links: Vec<Link>,
    /// Connections that wait to be accepted, with their listener.
    pub(super) backlog: Vec<(Pid, LinkId)>,
    pub(super) clients: Vec<Client>,
}

impl Kernel {
    /// Whether another process holds byte 1, shared or not.
    pub(super) fn is_party_elsewhere(&self, pid: Pid) -> bool {
        self.parties.has_others(pid) || self.bar.is_some_and(|bar| bar != pid)
    }

    pub(super) fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.id == id)
    }

    pub(super) fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// The end of a connection that this process has.
    pub(super) fn end(&self, id: LinkId, pid: Pid) -> usize {
        usize::from(self.link(id).is_some_and(|link| link.connector != pid))
    }

    /// A write: everything of it arrives together. `false`: the connection is broken.
    pub(super) fn write(&mut self, id: LinkId, pid: Pid, packets: impl Iterator<Item = Packet>) -> bool {
        let end = self.end(id, pid);
        match self.link_mut(id) {
            Some(link) if link.open[1 - end] && !link.cut => {
                link.unread[1 - end].extend(packets);
                true
            }
            _ => false,
        }
    }

    /// Closes one end. What was not read there is gone, and the descriptors in it with it.
    pub(super) fn close_end(&mut self, id: LinkId, end: usize) -> VecDeque<Packet> {
        let Some(link) = self.link_mut(id) else { return VecDeque::new() };
        link.open[end] = false;
        let lost = std::mem::take(&mut link.unread[end]);
        if link.open == [false, false] {
            self.links.retain(|link| link.id != id);
        }
        lost
    }

    /// The content of the lock file: generation and nonce.
    pub(super) fn file(&self) -> (u64, u64) {
        (self.generation, self.nonce)
    }

    /// Byte 0.
    pub(super) fn take_owner(&mut self, pid: Pid) -> bool {
        let free = self.owner.is_none_or(|owner| owner == pid);
        if free {
            self.owner = Some(pid);
        }
        free
    }

    /// Byte 1 exclusively; a shared lock of the same description becomes the exclusive one.
    pub(super) fn bar(&mut self, pid: Pid) -> bool {
        let free = self.bar.is_none_or(|bar| bar == pid) && !self.parties.has_others(pid);
        if free {
            self.parties.remove(pid);
            self.bar = Some(pid);
        }
        free
    }

    /// Byte 1 shared; an exclusive lock of the same description becomes the shared one.
    pub(super) fn join(&mut self, pid: Pid) {
        self.leave(pid);
        self.parties.insert(pid);
    }

    /// Gives byte 1 back.
    pub(super) fn leave(&mut self, pid: Pid) {
        self.parties.remove(pid);
        if self.bar == Some(pid) {
            self.bar = None;
        }
    }

    /// Closes a lock description: its locks go with it.
    pub(super) fn close_lock(&mut self, pid: Pid) {
        self.leave(pid);
        if self.owner == Some(pid) {
            self.owner = None;
        }
    }
}
