//! What an owner tells about itself, to whoever asks and to whoever watches.

use std::os::fd::AsFd;

use log::{info, warn};

use super::owning::PER_FRAME;
use super::{Driver, unix_ms};
use crate::error::Who;
use crate::protocol::message::{Listeners, Message};
use crate::protocol::predecessor::{Peer, Predecessor};
use crate::status::{ListenerStatus, Phase, Status, TakeoverStatus};
use crate::sys;

impl Driver {
    /// Notes since when the owner's machine is in its phase: after each of its steps, for a status tells both.
    pub(super) fn note_phase(&mut self) {
        let Some(predecessor) = &self.predecessor else { return };
        let (phase, generation) = (predecessor.phase(), predecessor.generation());
        if phase != self.phase {
            let before = std::mem::replace(&mut self.phase, phase);
            let since = std::mem::replace(&mut self.phase_since, unix_ms());
            match (before, phase) {
                (Phase::Serving, Phase::HandingOver) => self.served = Some((since, generation)),
                // The service has gone on all the time: a takeover that came to nothing leaves no trace in it.
                (Phase::HandingOver, Phase::Serving) => {
                    let served = self.served.take().filter(|(_, as_generation)| *as_generation == generation);
                    self.phase_since = served.map_or(self.phase_since, |(since, _)| since);
                }
                _ => {}
            }
        }
    }

    /// Tells everybody who watches, if something has changed that is worth a line.
    pub(super) fn tell_watchers(&mut self) {
        // A machine that has just been made has taken no step yet.
        self.note_phase();
        let Some(predecessor) = &self.predecessor else { return };
        let (phase, generation) = (predecessor.phase(), predecessor.generation());
        let probation = (predecessor.stands_by(), predecessor.stands_by_for());
        let takeover = predecessor.takeover();
        let hold = self.hold().map(|hold| (hold.since, hold.reason));
        let keepers = predecessor.holders();
        let told =
            format!("{phase} {generation} {takeover:?} {:?} {probation:?} {hold:?} {keepers:?}", self.all_drainers());
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

    /// A phase in the word that people see: in a status, in the log, and where systemd shows it.
    pub(super) fn shown(&self, phase: Phase) -> Phase {
        if phase == Phase::Serving && self.settings.holding { Phase::Holding } else { phase }
    }

    /// One line for each phase, with its word first.
    pub(super) fn log_phase(&mut self, came_to_nothing: bool) {
        let phase = self.phase();
        // Who has drained and exits is at the end of his last phase, and in none of its own.
        let gone = phase == Phase::Stopping && !self.owns();
        let before = self.logged;
        if before == phase || gone {
            return;
        }
        self.logged = phase;
        let (word, generation) = (self.shown(phase), self.generation());
        match (before, phase) {
            // It has told what it serves.
            (Phase::Starting, Phase::Serving) => {}
            (_, Phase::Serving) if came_to_nothing => {
                warn!("{word}: generation {generation} on, the takeover came to nothing ({})", self.last_failure());
            }
            (_, Phase::Serving) => warn!("{word}: generation {generation}, again ({})", self.last_failure()),
            (_, Phase::HandingOver) => {
                let heir = self.predecessor.as_ref().and_then(|owner| owner.takeover());
                let heir = heir.map(|(who, ..)| format!(", to {who}")).unwrap_or_default();
                info!("{word}: generation {generation}{heir}, {} entries offered", self.table.len());
            }
            (_, Phase::Draining) => info!("{word}: generation {generation}, a successor owns"),
            _ => info!("{word}: generation {generation}"),
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
                    foreign_network_namespace: self.foreign_namespace(held),
                }
            })
            .collect();
        let takeover = self.predecessor.as_ref().and_then(|predecessor| predecessor.takeover());
        let probation = self.probation_status();
        let (since_ms, step_since_ms) = self.takeover_times().unwrap_or_default();
        Status {
            generation: self.generation(),
            pid: self.pid,
            app_version: self.identity().app_version,
            phase: self.shown(self.phase()),
            since: self.phase_since,
            in_flight: self.wake.leases(),
            left_ms: self.drain_left().map(|left| left.as_millis() as u64),
            takeover: takeover.map(|(who, step, progress)| TakeoverStatus {
                who: Who::clone(who),
                step: step.to_owned(),
                progress: progress.to_owned(),
                since_ms,
                step_since_ms,
            }),
            // One that stands by does not drain.
            predecessor: self.giver().or(self.elder.as_ref()).cloned().filter(|_| probation.is_none()),
            drainers: self.all_drainers(),
            probation,
            hold: self.hold(),
            keepers: self.predecessor.as_ref().map(Predecessor::holders).unwrap_or_default(),
            listener_count: listeners.len() as u32,
            listeners,
        }
    }
}
