//! What an owner tells about itself, to whoever asks and to whoever watches.

use std::os::fd::AsFd;

use super::owning::PER_FRAME;
use super::{Driver, unix_ms};
use crate::error::Who;
use crate::protocol::message::{Listeners, Message};
use crate::protocol::predecessor::{self, Peer};
use crate::status::{ListenerStatus, Phase, Status, TakeoverStatus};
use crate::sys;

impl Driver {
    /// Tells everybody who watches, if something has changed that is worth a line.
    pub(super) fn tell_watchers(&mut self) {
        let Some(predecessor) = &self.predecessor else { return };
        let phase = predecessor.phase();
        if phase != self.phase {
            self.phase = phase;
            self.phase_since = unix_ms();
        }
        if predecessor.takeover().is_none() {
            self.takeover_since = None;
        }
        let hold = self.hold().map(|hold| (hold.since, hold.reason));
        let told =
            format!("{phase} {} {:?} {:?} {hold:?}", predecessor.generation(), predecessor.takeover(), self.elder);
        if told == self.told {
            return;
        }
        self.told = told;
        self.manager_hears_phase();
        let watchers: Vec<Peer> =
            self.connections.iter().filter(|(_, connection)| connection.watch).map(|(peer, _)| *peer).collect();
        for peer in watchers {
            self.tell(peer);
            self.flush(peer);
        }
    }

    /// Sends a status; later, where the peer has not read the last one.
    pub(super) fn tell(&mut self, peer: Peer) {
        match self.connections.get_mut(&peer) {
            Some(connection) if connection.watch && connection.is_writing() => {
                connection.stale = true;
                return;
            }
            Some(_) => {}
            None => return,
        }
        let mut status = self.status();
        let listeners = std::mem::take(&mut status.listeners);
        self.send(peer, &Message::Status(status));
        for part in listeners.chunks(PER_FRAME) {
            self.send_part(peer, part, &|part| Listeners { listeners: part.to_vec() }.into());
        }
    }

    /// What this process tells about itself.
    pub(crate) fn status(&self) -> Status {
        let listeners: Vec<ListenerStatus> = self
            .table
            .iter()
            .map(|held| {
                let queue = sys::accept_queue(held.fd.as_fd());
                ListenerStatus {
                    name: held.entry.name.clone(),
                    kind: held.entry.kind.as_str().to_owned(),
                    address: held.entry.address.clone(),
                    accept_queue: queue.map(|(length, _)| length),
                    accept_queue_limit: queue.map(|(_, limit)| limit),
                }
            })
            .collect();
        let takeover = self.predecessor.as_ref().and_then(|predecessor| predecessor.takeover());
        let phase = match self.predecessor.as_ref().map(predecessor::Predecessor::phase) {
            Some(Phase::Serving) if self.settings.holding => Phase::Holding,
            Some(phase) => phase,
            None => Phase::Starting,
        };
        Status {
            generation: self.generation(),
            pid: self.pid,
            app_version: self.identity().app_version,
            phase,
            since: self.phase_since,
            in_flight: self.wake.leases(),
            left_ms: self.drain_left().map(|left| left.as_millis() as u64),
            takeover: takeover.map(|(who, step, progress)| TakeoverStatus {
                who: Who::clone(who),
                step: step.to_owned(),
                progress: progress.to_owned(),
                since_ms: self.takeover_since.map_or(0, |since| since.elapsed().as_millis() as u64),
            }),
            predecessor: self.elder.clone(),
            hold: self.hold(),
            listener_count: listeners.len() as u32,
            listeners,
        }
    }
}
