//! The owner's side of drains: what it knows of the processes before it, and what it passes on to them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use log::{debug, info, warn};
use mio::Interest;

use super::drain_link::{DrainLink, Heard};
use super::{Driver, FRAMES_IN_A_TURN, Key, token};
use crate::error::Refusal;
use crate::protocol::message::{Ask, Done, Drainer, Message, Order, Question, Steer, cut};
use crate::protocol::predecessor::Peer;
use crate::protocol::successor::Successor;
use crate::status::{DrainStatus, Phase};
use crate::sys;

/// The most processes that drain and are known here; of more than those, the oldest finish by themselves.
const MAX_DRAINERS: usize = 16;
/// How long a process that drains may take to obey. Less than a client may be silent.
const OBEY_WITHIN: Duration = Duration::from_secs(3);

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Drainers {
    list: Vec<Known>,
    /// The next descriptors are its.
    announced: Option<Drainer>,
    orders: Vec<Relayed>,
    /// The successor of this process has copies of all this, and is the one who reads.
    resting: bool,
}

/// A process that drains.
#[derive(Debug)]
struct Known {
    id: Peer,
    /// The predecessor of this process: what it tells is in `elder`, and its end is told by `elder_pidfd`.
    predecessor: bool,
    drain: DrainStatus,
    forced: Option<bool>,
    link: Option<DrainLink>,
    pidfd: OwnedFd,
}

/// What a client wants, on its way.
#[derive(Debug)]
struct Relayed {
    client: Peer,
    number: u64,
    order: Order,
    waiting: BTreeSet<Peer>,
    obeyed: bool,
}

impl Drainers {
    pub(super) fn has(&self, id: Peer) -> bool {
        self.list.iter().any(|known| known.id == id)
    }

    pub(super) fn announce(&mut self, drainer: Drainer) {
        self.announced = Some(drainer);
    }

    /// A client is gone, and with him whoever waited for an answer.
    pub(super) fn forget_client(&mut self, client: Peer) {
        self.orders.retain(|order| order.client != client);
    }

    pub(super) fn expects_link(&self) -> bool {
        self.announced.is_some()
    }

    /// Whether the successor of this process has them already, and is the one who reads.
    pub(super) fn are_resting(&self) -> bool {
        self.resting
    }

    /// Whether the predecessor tells by a drain link how far it is.
    pub(super) fn hears_predecessor(&self) -> bool {
        !self.resting && self.list.iter().any(|known| known.predecessor && known.link.is_some())
    }
}

impl Driver {
    /// The drain link that was announced.
    pub(super) fn meet_drainer(&mut self, descriptors: Vec<OwnedFd>) {
        let Some(Drainer { mut drain, forced }) = self.drainers.announced.take() else { return };
        let mut descriptors = descriptors.into_iter();
        let (Some(socket), Some(pidfd), None) = (descriptors.next(), descriptors.next(), descriptors.next()) else {
            return warn!("a drain link came with the wrong number of descriptors");
        };
        let Some(link) = DrainLink::of(socket) else { return warn!("what was called a drain link is none") };
        drain.who.app_version = cut(drain.who.app_version);
        let own = self.successor.as_ref().map(Successor::generation);
        let predecessor = own.is_some() && own == drain.generation.and_then(|generation| generation.checked_add(1));
        if predecessor && self.elder.is_none() {
            return;
        }
        if self.drainers.list.len() >= MAX_DRAINERS {
            // The oldest is left out, in whatever order they come.
            let others = self.drainers.list.iter().filter(|known| !known.predecessor);
            match others.min_by_key(|known| known.drain.generation) {
                Some(oldest) if oldest.drain.generation < drain.generation => self.forget_drainer(oldest.id),
                _ => return,
            }
        }
        if predecessor {
            self.elder = Some(drain.clone());
        }
        let id = self.next_peer;
        self.next_peer += 1;
        self.drainers.list.push(Known { id, predecessor, drain, forced, link: Some(link), pidfd });
        self.changed = true;
        match self.drainers.resting {
            false => self.wake_drainer(id),
            // The next takeover was faster than the predecessor, which tells of its drain after it.
            true => self.hand_on_drainer(id),
        }
    }

    /// What was announced came, and the kernel had no room for it.
    pub(super) fn lose_drainer(&mut self) {
        let Some(Drainer { drain, .. }) = self.drainers.announced.take() else { return };
        warn!("{} drains, and cannot be steered from here: the limit on open files is reached", drain.who);
    }

    /// Begins to read what a process that drains tells.
    fn wake_drainer(&mut self, id: Peer) {
        let Some(known) = self.drainers.list.iter().find(|known| known.id == id) else { return };
        let token = token(id);
        let watched = known
            .link
            .as_ref()
            .map_or(Ok(()), |link| self.poller.watch(link.as_fd(), token, Interest::READABLE))
            .and_then(|()| match known.predecessor {
                true => Ok(()),
                false => self.poller.watch(known.pidfd.as_fd(), token + 1, Interest::READABLE),
            });
        if let Err(error) = watched {
            warn!("cannot hear {}, which drains: {error}", known.drain.who);
            self.forget_drainer(id);
        }
    }

    /// This process leaves: its successor is the one who reads on.
    pub(super) fn rest_drainers(&mut self) {
        self.drainers.resting = true;
        for known in &self.drainers.list {
            if let Some(link) = &known.link {
                self.poller.forget(link.as_fd());
            }
            self.poller.forget(known.pidfd.as_fd());
        }
        for order in std::mem::take(&mut self.drainers.orders) {
            self.poller.disarm(Key::Relay(order.client));
            // Who obeys tells the successor, which knows nothing of the order.
            self.refuse(order.client, Refusal::new("busy", "a takeover came in between: ask again"));
        }
    }

    /// This process owns again, and reads on.
    pub(super) fn wake_drainers(&mut self) {
        if std::mem::take(&mut self.drainers.resting) {
            for id in self.known_drainers() {
                self.wake_drainer(id);
            }
        }
    }

    /// Those whose drain links this process has.
    pub(super) fn known_drainers(&self) -> Vec<Peer> {
        self.drainers.list.iter().map(|known| known.id).collect()
    }

    /// What the successor of this process gets of one before it.
    pub(super) fn passed_on(&self, id: Peer) -> Option<(Drainer, OwnedFd, OwnedFd)> {
        let known = self.drainers.list.iter().find(|known| known.id == id)?;
        let drain = match &self.elder {
            Some(elder) if known.predecessor => elder.clone(),
            _ => known.drain.clone(),
        };
        let link = known.link.as_ref()?;
        let copies = link.try_clone().and_then(|link| Ok((link, known.pidfd.try_clone()?)));
        match copies {
            Ok((link, pidfd)) => Some((Drainer { drain, forced: known.forced }, link, pidfd)),
            Err(error) => {
                warn!("{} drains, and the successor cannot steer it: {error}", drain.who);
                None
            }
        }
    }

    /// Something came by the drain link of a process before this one.
    pub(super) fn hear_drainer(&mut self, id: Peer) {
        for _ in 0..FRAMES_IN_A_TURN {
            if self.drainers.resting {
                return;
            }
            let Some(known) = self.drainers.list.iter_mut().find(|known| known.id == id) else { return };
            let Some(link) = &known.link else { return };
            let (in_flight, left_ms, oldest_ms, obeyed) = match link.receive() {
                Heard::Message(Message::Draining(draining)) => {
                    (draining.in_flight, draining.left_ms, draining.oldest_ms, draining.obeyed)
                }
                Heard::Message(Message::Bye(bye)) => {
                    known.forced = Some(bye.forced);
                    // Its process has to do with the service in another way from here on, or in none.
                    if bye.stays && !known.predecessor {
                        let generation = known.drain.generation;
                        self.note_drainers_end(generation, "drained");
                        return self.forget_drainer(id);
                    }
                    if bye.stays && self.link.is_none() && self.elder.is_some() {
                        return self.elder_says_bye(bye);
                    }
                    (bye.in_flight, None, None, None)
                }
                Heard::Message(_) | Heard::Noise => continue,
                Heard::Nothing => return,
                Heard::End => {
                    self.poller.forget(link.as_fd());
                    known.link = None;
                    return self.settle_orders(id, None);
                }
            };
            known.drain = DrainStatus { in_flight: Some(in_flight), left_ms, oldest_ms, ..known.drain.clone() };
            let (told, predecessor, forced) = (known.drain.clone(), known.predecessor, known.forced);
            if predecessor {
                self.elder = self.elder.take().map(|_| told);
                self.elder_bye = self.elder_bye.or(forced);
            }
            self.changed = true;
            if obeyed.is_some() {
                self.settle_orders(id, obeyed);
            }
        }
        self.unread.insert(id);
    }

    /// The pidfd of a process before the predecessor became readable.
    pub(super) fn drainer_died(&mut self, id: Peer) {
        self.hear_drainer(id);
        if let Some(known) = self.drainers.list.iter().find(|known| known.id == id) {
            let end = match known.forced {
                Some(false) => "it had nothing in flight",
                Some(true) => "by force",
                None => "without a word",
            };
            info!("{}, which drained, has ended: {end}", known.drain.who);
            let (generation, step) = (known.drain.generation, known.forced.map_or("gone", |_| "drained"));
            self.note_drainers_end(generation, step);
        }
        self.forget_drainer(id);
    }

    fn forget_drainer(&mut self, id: Peer) {
        let Some(at) = self.drainers.list.iter().position(|known| known.id == id) else { return };
        let known = self.drainers.list.remove(at);
        if let Some(link) = &known.link {
            self.poller.forget(link.as_fd());
        }
        self.poller.forget(known.pidfd.as_fd());
        self.changed = true;
        self.settle_orders(id, None);
    }

    /// The predecessor is dead: what it has said by its drain link is read first.
    pub(super) fn forget_predecessors_link(&mut self) {
        if let Some(id) = self.drainers.list.iter().find(|known| known.predecessor).map(|known| known.id) {
            self.hear_drainer(id);
            self.forget_drainer(id);
        }
    }

    /// The predecessor, where it drains: one that stands by does not.
    fn draining_elder(&self) -> Option<&DrainStatus> {
        self.elder.as_ref().filter(|_| self.predecessor.as_ref().is_none_or(|own| own.stands_by().is_none()))
    }

    /// All that drain, as far as this process knows: the predecessor first.
    pub(super) fn all_drainers(&self) -> Vec<DrainStatus> {
        let elder = self.draining_elder().cloned();
        let before = self.drainers.list.iter().filter(|known| !known.predecessor).map(|known| known.drain.clone());
        let mut before: Vec<DrainStatus> = before.collect();
        before.sort_by_key(|drain| std::cmp::Reverse(drain.generation));
        self.giver().cloned().into_iter().chain(elder).chain(before).collect()
    }

    /// Passes on what a client wants, and answers him when it was obeyed.
    pub(super) fn steer(&mut self, client: Peer, ask: &Ask) {
        if self.drainers.orders.iter().any(|order| order.client == client) {
            return self.refuse(client, Refusal::new("busy", "an order of this client is under way"));
        }
        let order = if ask.question == Question::FinishDrain { Order::Finish } else { Order::Extend };
        let meant = |generation: Option<u64>| ask.generation.is_none_or(|wanted| Some(wanted) == generation);
        let own = self.phase() == Phase::Stopping && meant(Some(self.generation()));
        let by = ask.by_ms.unwrap_or_default();
        if own {
            self.steer_drain(order, Duration::from_millis(by));
        }
        let number = sys::random().unwrap_or(u64::from(self.pid));
        let steer: Message = Steer { number, order, by_ms: ask.by_ms }.into();
        let mut waiting = BTreeSet::new();
        for known in self.drainers.list.iter().filter(|known| meant(known.drain.generation)) {
            if let Some(link) = known.link.as_ref().filter(|_| known.forced.is_none()) {
                debug!("{} to {}, which drains", order, known.drain.who);
                // One that takes nothing is stopped, and the client is told so in time.
                let _ = link.send(&steer);
                waiting.insert(known.id);
            }
        }
        if waiting.is_empty() && !own {
            let deaf = self.draining_elder().filter(|elder| meant(elder.generation) && self.elder_bye.is_none());
            let why = match (deaf, ask.generation) {
                (Some(elder), _) => Refusal::new(
                    "unsupported",
                    format!("{} drains, and this owner has no link to steer it by", elder.who),
                ),
                (None, Some(generation)) => Refusal::new("no-drain", format!("generation {generation} does not drain")),
                (None, None) => Refusal::new("no-drain", "nobody drains"),
            };
            return self.refuse(client, why);
        }
        self.drainers.orders.push(Relayed { client, number, order, waiting, obeyed: own });
        self.poller.arm(Key::Relay(client), OBEY_WITHIN);
        self.answer_orders();
    }

    /// One that drains has obeyed an order of that number; or, without one, can obey none any more.
    fn settle_orders(&mut self, id: Peer, number: Option<u64>) {
        for relayed in &mut self.drainers.orders {
            if number.is_none_or(|number| number == relayed.number) {
                let waited = relayed.waiting.remove(&id);
                // Who has ended is at the end of his drain.
                relayed.obeyed |= waited && (number.is_some() || relayed.order == Order::Finish);
            }
        }
        self.answer_orders();
    }

    fn answer_orders(&mut self) {
        let (settled, open) =
            std::mem::take(&mut self.drainers.orders).into_iter().partition(|order| order.waiting.is_empty());
        self.drainers.orders = open;
        for order in Vec::<Relayed>::from_iter(settled) {
            self.changed = true;
            self.poller.disarm(Key::Relay(order.client));
            if order.obeyed {
                self.send(order.client, &Done {}.into());
                self.flush(order.client);
            } else {
                self.refuse(order.client, Refusal::new("no-drain", "the drain has ended meanwhile"));
            }
        }
    }

    /// Somebody who drains has not obeyed in time.
    pub(super) fn relay_expired(&mut self, client: Peer) {
        let orders = std::mem::take(&mut self.drainers.orders);
        for order in orders {
            if order.client != client {
                self.drainers.orders.push(order);
                continue;
            }
            let silent = self.drainers.list.iter().filter(|known| order.waiting.contains(&known.id));
            let silent: Vec<String> = silent.map(|known| known.drain.who.to_string()).collect();
            let what = format!("{} has not answered for {OBEY_WITHIN:?}: it may be stopped", silent.join(", "));
            self.refuse(client, Refusal::new("deadline", what));
        }
        self.changed = true;
    }
}
