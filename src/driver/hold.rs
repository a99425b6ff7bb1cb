//! The hold of a service on this process's clock: the machines have none.

use std::time::{Duration, Instant};

use log::info;

use super::{Driver, unix_ms};
use crate::control;
use crate::error::Refusal;
use crate::hold::{Hold, SetBy};
use crate::protocol::message::{Abort, Ask, Held, Message};
use crate::protocol::predecessor::{HELD, Input, Peer};

/// What a process keeps of a hold beside its machine.
#[derive(Debug, Default)]
pub(super) struct HoldClock {
    /// When it ends, where it does by itself. No timer is armed for it: an idle owner wakes for nothing.
    until: Option<Instant>,
    /// What the predecessor has said, before this process owned.
    inherited: Option<Hold>,
    /// The predecessor can be told while it drains.
    elder_takes: bool,
}

impl HoldClock {
    fn start(&mut self, hold: Option<&Hold>) {
        // One that ends after all clocks ends by being lifted.
        self.until = hold.and_then(|hold| Instant::now().checked_add(Duration::from_millis(hold.left_ms?)));
    }
}

impl Driver {
    /// The hold of this moment.
    pub(super) fn hold(&self) -> Option<Hold> {
        let hold = self.predecessor.as_ref()?.hold()?.clone();
        match self.hold_clock.until {
            None => Some(Hold { left_ms: None, ..hold }),
            Some(until) => {
                let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                Some(Hold { left_ms: Some(left.as_millis() as u64), ..hold })
            }
        }
    }

    /// Before the machine hears of anybody: whether its hold is over.
    pub(super) fn end_hold_in_time(&mut self) {
        if self.hold_clock.until.is_some_and(|until| Instant::now() >= until) {
            info!("the hold is over");
            self.hold_clock.until = None;
            self.owner(Input::HoldOver);
        }
    }

    /// Who holds, and since when, is not for him to say.
    pub(super) fn sign_hold(&self, peer: Peer, ask: &mut Ask) {
        let Some(hold) = &mut ask.hold else { return };
        let who = self.connections.get(&peer).and_then(|peer| control::peer_credentials(peer.stream()).ok());
        hold.since = unix_ms();
        hold.by = who.map_or_else(SetBy::default, |who| SetBy { pid: who.pid.unwrap_or(0), uid: who.uid });
    }

    /// The hold has changed, by whomever.
    pub(super) fn keep_hold(&mut self, hold: Option<Hold>) {
        match &hold {
            Some(hold) if hold.suspended => info!("the hold goes on with the next owner: {}", hold.reason),
            Some(hold) => info!("takeovers are refused: {}", hold.reason),
            None => info!("takeovers are not refused any more"),
        }
        self.hold_clock.start(hold.as_ref());
        // Whoever has set it is answered after this: a rescuer goes on with it.
        self.inventory.is_stale();
        self.leave_inventory_now();
        let elder = self.link.filter(|_| self.hold_clock.elder_takes);
        // Whoever still drains may have to go on as the owner.
        for drainer in elder.into_iter().chain(self.probation.giver.as_ref().map(|(giver, _)| *giver)) {
            self.send_latest(drainer, &Held { hold: hold.clone() }.into());
        }
    }

    /// What a refusal for a hold says of its end.
    pub(super) fn date_refusal(&self, why: &mut Refusal) {
        if why.code == HELD {
            why.retry_after_ms = self.hold().and_then(|hold| hold.left_ms);
        }
    }

    /// What a predecessor says that may matter for a hold.
    pub(super) fn hear_of_hold(&mut self, message: &Message) {
        match message {
            Message::Offer(offer) => {
                self.hold_clock.elder_takes = offer.hold;
                if self.predecessor.is_none() {
                    // What there is follows. Nothing is left of what another one may have said before.
                    self.inherit_hold(None);
                }
            }
            Message::Held(held) if self.predecessor.is_some() => self.owner(Input::Held(held.hold.clone())),
            Message::Held(held) => self.inherit_hold(held.hold.clone()),
            // Should the predecessor be dead by now, and this process go on by itself, it goes on with the hold.
            Message::Abort(Abort(why)) if why.code == HELD => {
                let (reason, left_ms) = (why.message.clone(), why.retry_after_ms);
                self.inherit_hold(Some(Hold { reason, left_ms, since: unix_ms(), ..Hold::default() }));
            }
            _ => {}
        }
    }

    /// Whether the predecessor knows of holds.
    pub(super) fn elder_takes_holds(&self) -> bool {
        self.hold_clock.elder_takes
    }

    /// What was said of a hold before this process owns.
    pub(super) fn inherit_hold(&mut self, hold: Option<Hold>) {
        self.hold_clock.start(hold.as_ref());
        self.hold_clock.inherited = hold;
    }

    /// This process may own once more, by another machine: with the hold of the moment.
    pub(super) fn keep_hold_for_next(&mut self) {
        self.hold_clock.inherited = self.hold();
    }

    /// This process owns.
    pub(super) fn go_on_with_hold(&mut self) {
        let over = self.hold_clock.until.is_some_and(|until| Instant::now() >= until);
        if let (Some(hold), Some(predecessor)) = (self.hold_clock.inherited.take_if(|_| !over), &mut self.predecessor) {
            info!("the hold goes on: {}", hold.reason);
            predecessor.inherit_hold(Some(hold));
        }
    }
}
