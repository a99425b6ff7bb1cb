//! The side that drains: tells its successor by a drain link how far it is, and obeys whoever owns the service.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use log::{info, warn};
use mio::Interest;

use super::drain_link::{DrainLink, Heard};
use super::{Driver, FRAMES_IN_A_TURN, Key, token};
use crate::protocol::message::{Bye, Drainer, Draining, Message, Order, Steer};
use crate::protocol::predecessor::{Peer, Predecessor};
use crate::shared::SharedFd;
use crate::status::{DrainStatus, Phase};
use crate::sys;

/// The furthest that a drain deadline may be away.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// This process's end of its own drain link.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) id: Peer,
    link: DrainLink,
    /// The number of the last order that was obeyed.
    obeyed: Option<u64>,
}

impl Driver {
    /// This process drains: its successor gets a drain link of it.
    pub(super) fn hand_on_own_drain(&mut self) {
        let Some(heir) = self.steering_heir() else { return };
        match self.tail() {
            Ok((theirs, pidfd)) => {
                let drainer = Drainer { drain: self.drain_status(), forced: None };
                self.hand_on(heir, drainer, theirs, pidfd);
                self.report_by_tail(true);
            }
            Err(error) => warn!("cannot make a drain link: {error}"),
        }
    }

    /// A successor owns: it gets the drain links of those before this process that still drain, where it has not got them
    /// already, and is the one who reads on.
    pub(super) fn hand_on_drainers(&mut self) {
        if !self.drainers.are_resting() {
            for id in self.known_drainers() {
                self.hand_on_drainer(id);
            }
        }
        self.rest_drainers();
    }

    /// The successor gets the drain link of one before this process.
    pub(super) fn hand_on_drainer(&mut self, id: Peer) {
        if let Some(heir) = self.steering_heir()
            && let Some((drainer, link, pidfd)) = self.passed_on(id)
        {
            self.hand_on(heir, drainer, link, pidfd);
            self.flush(heir);
        }
    }

    /// The connection to a successor that steers those who drain.
    fn steering_heir(&self) -> Option<Peer> {
        let heir = self.connections.iter().find(|(peer, connection)| {
            // After the last word nothing more is for it.
            connection.takes_drain_links
                && !connection.closing
                && self.predecessor.as_ref().is_some_and(|owner| owner.is_heir(**peer))
        });
        heir.map(|(peer, _)| *peer)
    }

    fn hand_on(&mut self, heir: Peer, drainer: Drainer, link: OwnedFd, pidfd: OwnedFd) {
        self.send(heir, &drainer.into());
        if let Some(connection) = self.connections.get_mut(&heir) {
            connection.send_descriptors(vec![SharedFd::from(link), SharedFd::from(pidfd)]);
        }
    }

    /// Makes the link, and what goes to the successor of it: the other end, and a pidfd.
    fn tail(&mut self) -> std::io::Result<(OwnedFd, OwnedFd)> {
        let (ours, theirs) = DrainLink::pair()?;
        let pidfd = sys::own_pidfd()?;
        let id = self.next_peer;
        self.next_peer += 1;
        self.poller.watch(ours.as_fd(), token(id), Interest::READABLE)?;
        self.drop_tail();
        self.tail = Some(Tail { id, link: ours, obeyed: None });
        Ok((theirs, pidfd))
    }

    /// This process drains no more.
    pub(super) fn drop_tail(&mut self) {
        if let Some(tail) = self.tail.take() {
            self.poller.forget(tail.link.as_fd());
        }
    }

    fn drain_status(&self) -> DrainStatus {
        DrainStatus {
            who: self.identity(),
            generation: self.predecessor.as_ref().map(Predecessor::generation),
            in_flight: Some(self.wake.leases()),
            left_ms: self.drain_left().map(|left| left.as_millis() as u64),
            oldest_ms: self.wake.oldest().map(|age| age.as_millis() as u64),
        }
    }

    /// How far this drain is. One that is not read yet is enough, unless somebody waits for it.
    pub(super) fn report_by_tail(&self, awaited: bool) {
        let Some(tail) = &self.tail else { return };
        if !awaited && tail.link.is_unread() {
            return;
        }
        let status = self.drain_status();
        let draining = Draining {
            in_flight: self.wake.leases(),
            left_ms: status.left_ms,
            oldest_ms: status.oldest_ms,
            obeyed: tail.obeyed,
        };
        // Where nobody reads, nobody wants to know.
        let _ = tail.link.send(&draining.into());
    }

    pub(super) fn say_bye_by_tail(&self, bye: &Bye) {
        if let Some(tail) = &self.tail {
            let _ = tail.link.send(&bye.clone().into());
        }
    }

    /// Something came by this process's drain link.
    pub(super) fn hear_steering(&mut self) {
        for _ in 0..FRAMES_IN_A_TURN {
            let Some(tail) = &self.tail else { return };
            match tail.link.receive() {
                Heard::Message(Message::Steer(steer)) => self.obey(&steer),
                Heard::Message(_) | Heard::Noise => {}
                Heard::Nothing => return,
                // Nobody is left who could steer.
                Heard::End => return self.drop_tail(),
            }
        }
        if let Some(tail) = &self.tail {
            self.unread.insert(tail.id);
        }
    }

    fn obey(&mut self, steer: &Steer) {
        if self.phase() != Phase::Draining
            || !self.steer_drain(steer.order, Duration::from_millis(steer.by_ms.unwrap_or_default()))
        {
            return;
        }
        if let Some(tail) = &mut self.tail {
            tail.obeyed = Some(steer.number);
        }
        self.report_by_tail(true);
    }

    /// Moves the drain deadline of this process, or makes it pass. `false`: this version does not know how.
    pub(super) fn steer_drain(&mut self, order: Order, by: Duration) -> bool {
        match order {
            Order::Extend => {
                // One that has passed does not come back.
                if let Some(left) = self.drain_left() {
                    let left = left.saturating_add(by).min(LONGEST);
                    info!("the drain deadline was moved: {left:.1?} left");
                    self.poller.arm(Key::Drain, left);
                    self.manager_hears_drain();
                }
            }
            Order::Finish => {
                info!("the drain is ended by an operator, with {} in flight", self.wake.leases());
                self.poller.disarm(Key::Drain);
            }
            Order::Unknown => return false,
        }
        self.changed = true;
        true
    }
}
