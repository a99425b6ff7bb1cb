//! The connections of a process: what it reads from them, what it writes to them, and how they end.

use std::sync::Arc;

use super::kernel::{LinkId, Packet, Pid};
use super::mutations::Mutation;
use super::process::{Key, Op, Work};
use super::world::{Rules, World};
use crate::manifest::{Entry, Kind};
use crate::protocol::message::{Entries, Message, Wants};
use crate::protocol::{predecessor, starter, successor};

impl World {
    pub(super) fn accept(&mut self, pid: Pid) {
        let control = self.process(pid).control;
        let Some(at) = self.kernel.backlog.iter().position(|(id, _)| Some(*id) == control) else { return };
        let (_, link) = self.kernel.backlog.remove(at);
        if let Some(link) = self.kernel.link_mut(link) {
            link.acceptor = Some(pid);
        }
        self.broken.acts |= self.kernel.owner != Some(pid);
        let process = self.process_mut(pid);
        process.peers.insert(link);
        process.timers.arm(Key::Peer(link));
    }

    /// One message, or the end.
    pub(super) fn read(&mut self, pid: Pid, link: LinkId) {
        let end = self.kernel.end(link, pid);
        let packet = self.kernel.link_mut(link).and_then(|link| link.unread[end].pop_front());
        match packet {
            Some(packet) => self.route(pid, link, packet),
            None => self.ended(pid, link),
        }
    }

    fn route(&mut self, pid: Pid, link: LinkId, packet: Packet) {
        if self.process(pid).link == Some(link) {
            return self.hear_predecessor(pid, packet);
        }
        let process = self.process_mut(pid);
        // The state comes back from one that this process stands by for.
        let standing = process.predecessor.as_ref().is_some_and(|owner| owner.is_standing_by_for(u64::from(link)));
        match packet {
            Packet::Descriptors { .. } if standing && process.state == Some(false) => {
                process.state = Some(true);
                return process.owner(predecessor::Input::StateArrived(u64::from(link)));
            }
            Packet::Message(Message::State(_)) if standing => process.state = Some(false),
            Packet::Message(Message::Abort(_)) if standing => process.state = None,
            _ => {}
        }
        let Packet::Message(message) = packet else { return };
        if !process.offered.has(link) {
            process.timers.arm(Key::Peer(link));
        }
        process.owner(predecessor::Input::Message(u64::from(link), message));
    }

    fn hear_predecessor(&mut self, pid: Pid, packet: Packet) {
        let process = self.process_mut(pid);
        if let (Some(link), Some(owner)) = (process.link, &process.predecessor)
            && let Packet::Message(message) = &packet
            && (owner.is_elder(u64::from(link)) || owner.is_heir(u64::from(link)))
            && !matches!(message, Message::Draining(_) | Message::Bye(_))
        {
            let input = predecessor::Input::Message(u64::from(link), message.clone());
            return process.owner(input);
        }
        let input = match packet {
            Packet::Descriptors { .. } if process.state == Some(false) => {
                process.state = Some(true);
                successor::Input::StateArrived
            }
            Packet::Descriptors { count, family, service } => {
                if let Some(batch) = family {
                    process.elder = Some(batch.elder);
                    process.lease = Some(batch.lease);
                    process.control = Some(batch.control);
                    process.lock = true;
                }
                if service.is_some() {
                    process.service = service;
                    process.had = service.filter(|_| process.app.wants == Wants::Takeover);
                }
                successor::Input::Arrived(u32::from(count))
            }
            Packet::Entries(count) => successor::Input::Message(
                Entries { entries: entries(count).into_iter().map(Arc::new).collect() }.into(),
            ),
            Packet::Message(Message::Draining(_) | Message::Bye(_)) => return,
            Packet::Message(message) => {
                if let Message::State(_) = message
                    && process.state.is_none()
                {
                    process.state = Some(false);
                }
                successor::Input::Message(message)
            }
        };
        process.work.push_back(Work::Successor(input));
    }

    /// The stream is at its end, and everything in it has been read.
    fn ended(&mut self, pid: Pid, link: LinkId) {
        let own = self.process(pid).link == Some(link);
        self.forget(pid, link);
        let process = self.process_mut(pid);
        if own {
            process.work.push_back(Work::Successor(successor::Input::LinkLost));
            if process.predecessor.is_some() {
                process.owner(predecessor::Input::Gone(u64::from(link)));
            }
        } else {
            process.owner(predecessor::Input::Gone(u64::from(link)));
        }
    }

    /// Closes a connection now. The pidfd of a successor is kept: its death matters as long as this process drains.
    fn forget(&mut self, pid: Pid, link: LinkId) {
        let end = self.kernel.end(link, pid);
        let process = self.process_mut(pid);
        process.timers.disarm(Key::Peer(link));
        process.closing.remove(link);
        process.offered.remove(link);
        process.outgoing.retain(|(at, _)| *at != link);
        if process.link == Some(link) {
            process.link = None;
        }
        let accepted = process.peers.remove(link) && end == 1;
        if accepted && process.predecessor.as_ref().is_some_and(|owner| owner.is_leaving_to(u64::from(link))) {
            process.heir = Some(link);
        }
        let lost = self.kernel.close_end(link, end);
        // What has left a process that died since, and is thrown away unread by one that goes on, is nobody's any more.
        let service = lost.iter().any(|packet| matches!(packet, Packet::Descriptors { service: Some(_), .. }));
        let goes_on = self.process(pid).successor.is_some() && !self.process(pid).asked;
        self.broken.listens |= service && goes_on && !self.stays_elsewhere(pid);
        self.collect();
    }

    pub(super) fn expire(&mut self, pid: Pid, key: Key) {
        self.process_mut(pid).timers.disarm(key);
        let process = self.process_mut(pid);
        match key {
            Key::Starter(timer) => process.work.push_back(Work::Starter(starter::Input::Expired(timer))),
            Key::Successor(timer) => process.work.push_back(Work::Successor(successor::Input::Expired(timer))),
            Key::Predecessor(timer) => process.owner(predecessor::Input::Expired(timer)),
            Key::Peer(link) => {
                self.forget(pid, link);
                self.process_mut(pid).owner(predecessor::Input::Gone(u64::from(link)));
            }
        }
    }

    /// Writes one chunk; after the last one, a connection that is to be closed is closed.
    pub(super) fn flush(&mut self, rules: &Rules, pid: Pid, link: LinkId) {
        let process = self.process_mut(pid);
        if process.link != Some(link) && !process.peers.has(link) {
            process.outgoing.retain(|(at, _)| *at != link);
            process.closing.remove(link);
            return;
        }
        let Some(chunk) = process.next_chunk(link) else {
            if process.closing.has(link) {
                self.forget(pid, link);
            }
            return;
        };
        if self.kernel.write(link, pid, chunk.into_iter()) {
            let process = self.process_mut(pid);
            if process.is_writing(link) || process.closing.has(link) {
                process.first([Op::Flush(link)]);
            }
            return;
        }
        let process = self.process_mut(pid);
        process.outgoing.retain(|(at, _)| *at != link);
        if process.closing.has(link) && process.link != Some(link) {
            return self.forget(pid, link);
        }
        // What the peer had said before it broke is still to be read.
        let end = self.kernel.end(link, pid);
        while rules.off != Some(Mutation::JudgedAtTheWrite)
            && let Some(packet) = self.kernel.link_mut(link).and_then(|link| link.unread[end].pop_front())
        {
            self.route(pid, link, packet);
        }
        self.ended(pid, link);
    }
}

/// A part of the manifest.
fn entries(count: u32) -> Vec<Entry> {
    let entry = |name: u32| Entry {
        name: name.to_string(),
        kind: Kind::Raw,
        address: String::new(),
        requested: String::new(),
        path: None,
        path_inode: None,
        backlog: None,
        file: None,
        socket: None,
        retired: false,
    };
    (0..count).map(entry).collect()
}
