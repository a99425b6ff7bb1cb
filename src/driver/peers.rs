//! The connections of a handoff: who is at the other end, what he says, and what still waits to be written to him.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use log::{debug, info};
use mio::Interest;

use super::{CROWDED_LIMIT, CROWDED_PAUSE, Driver, FRAMES_IN_A_TURN, Key, Work, token};
use crate::connection::{Connection, Flush, Incoming};
use crate::error::{Error, Refusal, Result};
use crate::protocol::Timer;
use crate::protocol::message::Message;
use crate::protocol::predecessor::{self, Peer};
use crate::protocol::successor;

impl Driver {
    /// Takes a connection in: registers it and gives it a number.
    pub(super) fn add_peer(&mut self, stream: UnixStream, pidfd: Option<OwnedFd>) -> Result<Peer> {
        let peer = self.next_peer;
        self.next_peer += 1;
        let token = token(peer);
        let watch = |error| Error::io("watch a control connection", error);
        self.poller.watch(stream.as_fd(), token, Interest::READABLE).map_err(watch)?;
        if let Some(pidfd) = &pidfd {
            self.poller.watch(pidfd.as_fd(), token + 1, Interest::READABLE).map_err(watch)?;
        }
        self.connections.insert(peer, Connection::new(stream, pidfd));
        Ok(peer)
    }

    /// Closes a connection now. The pidfd of a successor is kept: its death matters as long as this process drains.
    pub(super) fn forget_peer(&mut self, peer: Peer) {
        self.poller.disarm(Key::Peer(peer));
        self.poller.disarm(Key::Crowded(peer));
        self.poller.disarm(Key::Holder(peer));
        self.poller.disarm(Key::Holding(peer));
        self.poller.disarm(Key::Relay(peer));
        self.drainers.forget_client(peer);
        self.offered.remove(&peer);
        self.giver_gone(peer);
        let Some(mut connection) = self.connections.remove(&peer) else { return };
        self.poller.forget(connection.stream().as_fd());
        let Some(pidfd) = connection.pidfd.take() else { return };
        if self.predecessor.as_ref().is_some_and(|predecessor| predecessor.is_leaving_to(peer)) {
            self.heir_pidfd = Some((peer, pidfd));
        } else {
            self.poller.forget(pidfd.as_fd());
        }
    }

    /// Reads and routes what a peer has sent, and writes what waits for it.
    pub(super) fn talk(&mut self, peer: Peer) {
        self.flush(peer);
        for _ in 0..FRAMES_IN_A_TURN {
            let Some(connection) = self.connections.get_mut(&peer) else { return };
            if connection.closing && Some(peer) != self.link {
                return;
            }
            if connection.is_writing() && self.is_client(peer) {
                // One answer at a time: who asks and does not read must not fill the memory. What he has sent waits in
                // his socket, and the end of the writing brings us back.
                if let Some(connection) = self.connections.get_mut(&peer) {
                    connection.waits_its_turn = true;
                }
                return;
            }
            let Some(connection) = self.connections.get_mut(&peer) else { return };
            match connection.read(&mut self.receiver) {
                Incoming::Frame(frame, descriptors) => match Message::decode(&frame) {
                    Ok(message) => {
                        debug!("{} from peer {peer}", message.word());
                        self.route(peer, message, descriptors);
                    }
                    Err(fault) => self.fault(peer, fault.to_string()),
                },
                Incoming::Blocked => return,
                Incoming::Crowded => return self.poller.arm(Key::Crowded(peer), CROWDED_PAUSE),
                Incoming::End => return self.ended(peer),
                Incoming::Fault(what) => return self.fault(peer, what),
                Incoming::NoRoom(frame) => self.no_room(peer, &frame),
            }
            // Each message is acted on before the next is read: an offer decides what the next one means.
            if self.run().is_err() {
                return;
            }
        }
        self.unread.insert(peer);
    }

    fn route(&mut self, peer: Peer, message: Message, descriptors: Vec<OwnedFd>) {
        if Some(peer) == self.link {
            return self.hear_predecessor(message, descriptors);
        }
        if self.hear_return(peer, &message, descriptors) {
            return;
        }
        if let Message::Descriptors(_) = message {
            return self.fault(peer, "descriptors where none belong".to_owned());
        }
        let wanted = match &message {
            Message::Hello(hello) => Some(hello.wants.as_str()),
            Message::Ask(ask) if ask.question.is_order() => Some(ask.question.as_str()),
            _ => None,
        };
        if let Some(wanted) = wanted
            && self.connections.get(&peer).is_none_or(Connection::is_hung_up)
        {
            // His time was up while this process was stopped, and he has told people so.
            return info!("somebody wanted {wanted:?} and has hung up: nothing is done");
        }
        if let (Message::Hello(hello), Some(connection)) = (&message, self.connections.get_mut(&peer)) {
            connection.takes_drain_links = hello.drain_links;
        }
        // A client that says nothing more is closed. Who takes over has the machine's deadlines, and may be silent for as
        // long as they let him; who watches is exempted when his status is sent.
        if self.is_client(peer) {
            self.poller.arm(Key::Peer(peer), self.settings.deadlines.handshake);
        }
        let mut message = message;
        self.end_hold_in_time();
        if let Message::Ask(ask) = &mut message {
            self.sign_hold(peer, ask);
        }
        self.owner(predecessor::Input::Message(peer, message));
    }

    fn fault(&mut self, peer: Peer, what: String) {
        if Some(peer) == self.link {
            self.work.push_back(Work::Successor(successor::Input::Fault(what.clone())));
            if self.elder_speaks(peer) {
                self.owner(predecessor::Input::Fault(peer, what));
            }
        } else {
            info!("a control client broke the protocol: {what}");
            self.owner(predecessor::Input::Fault(peer, what));
        }
    }

    /// The stream is at its end, and everything in it has been read.
    fn ended(&mut self, peer: Peer) {
        self.forget_peer(peer);
        if Some(peer) == self.link {
            self.link = None;
            self.work.push_back(Work::Successor(successor::Input::LinkLost));
            self.owner_hears_of_elder(predecessor::Input::Gone);
        } else {
            self.owner(predecessor::Input::Gone(peer));
        }
    }

    /// A pidfd became readable: its process is dead. What it had sent is read first.
    pub(super) fn peer_died(&mut self, peer: Peer) {
        if self.connections.contains_key(&peer) {
            self.talk(peer);
            let _ = self.run();
        }
        if let Some((_, pidfd)) = self.heir_pidfd.take_if(|(heir, _)| *heir == peer) {
            self.poller.forget(pidfd.as_fd());
        }
        self.owner(predecessor::Input::Died(peer));
    }

    /// Queues a message, if that connection is still there.
    pub(super) fn send(&mut self, peer: Peer, message: &Message) {
        self.send_body(peer, message.kind(), message.word(), &message.body());
    }

    /// The same, in the place of one of this kind that waits to be written.
    pub(super) fn send_latest(&mut self, peer: Peer, message: &Message) {
        if let Some(connection) = self.connections.get_mut(&peer)
            && !connection.closing
        {
            debug!("{} to peer {peer}", message.word());
            connection.send_latest(message);
        }
    }

    /// Queues a message that is bytes already.
    pub(super) fn send_body(&mut self, peer: Peer, kind: u8, word: &str, body: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&peer)
            && !connection.closing
        {
            debug!("{word} to peer {peer}");
            connection.send_body(kind, body);
        }
    }

    /// Closes a connection once everything that was said is written.
    pub(super) fn close_after_writing(&mut self, peer: Peer) {
        if let Some(connection) = self.connections.get_mut(&peer) {
            connection.closing = true;
            // It may read nothing; then it is closed all the same.
            self.poller.arm(Key::Peer(peer), self.settings.deadlines.handshake);
        }
    }

    pub(super) fn flush_all(&mut self) {
        let waiting: Vec<Peer> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_writing() || connection.closing || connection.stale)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in waiting {
            self.flush(peer);
        }
    }

    pub(super) fn flush(&mut self, peer: Peer) {
        let client = self.is_client(peer);
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        let before = connection.unwritten();
        let flushed = connection.flush();
        let progress = connection.unwritten() < before;
        if flushed == Flush::Empty && std::mem::take(&mut connection.waits_its_turn) {
            self.unread.insert(peer);
        }
        self.watch_room(peer, flushed == Flush::Blocked);
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        match flushed {
            Flush::Empty if connection.closing => {
                let link = Some(peer) == self.link;
                self.forget_peer(peer);
                if link {
                    self.link = None;
                }
            }
            Flush::Empty if std::mem::take(&mut connection.stale) => {
                self.tell(peer);
                // Nothing else would: there is no event for an empty queue.
                self.flush(peer);
            }
            Flush::Empty => {
                if connection.watch {
                    // Who watches may be silent for ever, as long as he reads.
                    self.poller.disarm(Key::Peer(peer));
                }
            }
            Flush::Blocked if client => {
                // Whoever reads nothing for that long is closed.
                if progress || self.poller.deadline(Key::Peer(peer)).is_none() {
                    self.poller.arm(Key::Peer(peer), self.settings.deadlines.handshake);
                }
            }
            Flush::Blocked => {
                // A long manifest on its way is no silence of the successor, nor of a holder.
                let holder = self.predecessor.as_ref().is_some_and(|owner| owner.is_holder(peer));
                let key = if holder { Key::Holder(peer) } else { Key::Predecessor(Timer::Handshake) };
                if progress && self.poller.deadline(key).is_some() {
                    self.poller.arm(key, self.settings.deadlines.handshake);
                }
            }
            Flush::Crowded => {
                let since = connection.crowded.map_or(Duration::ZERO, |since| since.elapsed());
                let limit = since >= CROWDED_LIMIT;
                let why = "the kernel takes no more descriptors from the user of the owner, or has no memory";
                let why = Refusal::new("crowded", why);
                match &self.predecessor {
                    Some(owner) if limit && owner.may_call_off(peer) => self.owner(predecessor::Input::Unable(why)),
                    Some(owner) if limit && owner.is_holder(peer) => {
                        self.owner(predecessor::Input::CannotKeep(peer, why));
                    }
                    // Who owns already gets it as soon as it goes: it can do without until then, and there is no way back.
                    _ => self.poller.arm(Key::Crowded(peer), CROWDED_PAUSE),
                }
            }
            // Not the end yet: what the peer had said before it broke is still to be read, and the reader finds the end.
            Flush::Broken if connection.closing && Some(peer) != self.link => self.forget_peer(peer),
            Flush::Broken => self.read_to_the_end(peer),
        }
    }

    /// Has the poller tell when there is room to write again, as long as something waits for it and no longer: each read
    /// of the other side would be an event.
    fn watch_room(&mut self, peer: Peer, wanted: bool) {
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        if connection.awaits_room == wanted {
            return;
        }
        let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        match self.poller.watch_again(connection.stream().as_fd(), token(peer), interest) {
            Ok(()) => connection.awaits_room = wanted,
            Err(error) => {
                debug!("cannot wait for room to write: {error}");
                self.poller.arm(Key::Crowded(peer), CROWDED_PAUSE);
            }
        }
    }

    /// Whether a peer only asks: neither the predecessor nor somebody who takes over or rehearses.
    fn is_client(&self, peer: Peer) -> bool {
        Some(peer) != self.link && !self.offered.contains_key(&peer)
    }

    /// Reads what is left in a connection whose other side is gone: that is as much as its socket buffer held.
    fn read_to_the_end(&mut self, peer: Peer) {
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        connection.discard_outgoing();
        loop {
            let Some(connection) = self.connections.get_mut(&peer) else { return };
            match connection.read(&mut self.receiver) {
                Incoming::Frame(frame, descriptors) => match Message::decode(&frame) {
                    Ok(message) => self.route(peer, message, descriptors),
                    Err(fault) => return self.fault(peer, fault.to_string()),
                },
                Incoming::Crowded => return self.poller.arm(Key::Crowded(peer), CROWDED_PAUSE),
                Incoming::Blocked | Incoming::End => return self.ended(peer),
                Incoming::Fault(what) => return self.fault(peer, what),
                Incoming::NoRoom(frame) => self.no_room(peer, &frame),
            }
        }
    }
}
