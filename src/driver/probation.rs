//! Both sides of a probation: the owner whose predecessor stands by, and the process that stands by for its successor.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use log::{info, warn};

use super::{Driver, Key};
use crate::error::{Error, Result};
use crate::protocol::message::{Message, TakeBack, cut_names};
use crate::protocol::predecessor::{self, Found, Peer, Predecessor, Reason, Takes};
use crate::protocol::{READER_GRACE, Timer};
use crate::status::{DrainStatus, ProbationStatus};
use crate::sys;
use crate::table::StateOutcome;

/// What the driver remembers of a probation, on either side.
#[derive(Debug, Default)]
pub(super) struct Probation {
    /// The connection to the predecessor, by its number also when it is gone.
    pub(super) elder: Option<Peer>,
    /// When the probation of this process, or that of its successor, began.
    since: Option<Instant>,
    /// This process stands by.
    standing_by: bool,
    /// The lock came back because the successor gave it back.
    returned: bool,
    /// The connection to a successor that gave the service back, while it drains, and how far it is.
    pub(super) giver: Option<(Peer, DrainStatus)>,
}

impl Driver {
    /// The commit is done: tells the owner's machine who stands by.
    pub(super) fn meet_probation(&mut self) {
        let takes_holds = self.elder_takes_holds();
        let Some(predecessor) = &mut self.predecessor else { return };
        predecessor.set_confirms(self.settings.takeover_confirms);
        let Some(successor) = &self.successor else { return };
        self.probation.elder = self.link;
        let (Some(link), Some(span)) = (self.link, successor.probation()) else {
            if self.settings.probation.is_some() && !successor.predecessor_died() {
                warn!("no probation: the predecessor does not stand by");
            }
            return;
        };
        let takes =
            Takes { state: self.settings.state.is_some() && successor.state_kind().is_some(), hold: takes_holds };
        let who = successor.predecessor().clone();
        predecessor.enter_probation(link, successor.nonce(), who, takes, span);
        self.probation.since = Some(Instant::now());
        info!("on probation for {span:?}: the predecessor stands by");
    }

    /// Whether what comes on the connection to the predecessor is for the owner's machine: it stands by, or takes the
    /// service back.
    pub(super) fn elder_speaks(&self, peer: Peer) -> bool {
        self.predecessor.as_ref().is_some_and(|owner| owner.is_elder(peer) || owner.is_heir(peer))
    }

    /// Something became of the connection to the predecessor, or of itself, that the owner's machine has to know.
    pub(super) fn owner_hears_of_elder(&mut self, input: impl FnOnce(Peer) -> predecessor::Input) {
        if let (Some(_), Some(elder)) = (&self.predecessor, self.probation.elder) {
            self.owner(input(elder));
        }
    }

    /// An offer was made: where it grants a probation, the state may come back on this connection.
    pub(super) fn may_be_given_back(&mut self) {
        let Some(predecessor) = &self.predecessor else { return };
        for (peer, connection) in &self.connections {
            if predecessor.grants_probation(*peer) && self.settings.state.is_some() {
                let _ = sys::admit_descriptors(connection.stream().as_fd());
            }
        }
    }

    /// The successor owns, on probation.
    pub(super) fn stands_by(&mut self) {
        info!("standing by: a successor owns, on probation");
        self.probation.standing_by = true;
        self.probation.returned = false;
        self.probation.since = Some(Instant::now());
        // What was not taken of the state that came before is of no more use.
        self.arriving = None;
        let takes_state = self.settings.state.is_some();
        let Some(predecessor) = &self.predecessor else { return };
        for (peer, connection) in &mut self.connections {
            if predecessor.is_standing_by_for(*peer) {
                connection.takes_descriptors = takes_state;
            }
        }
        self.manager_hears_leaving();
    }

    /// A successor on probation says something that brings the state back, or leads up to it. `false`: it is something
    /// else.
    pub(super) fn hear_return(&mut self, peer: Peer, message: &Message, descriptors: Vec<OwnedFd>) -> bool {
        let Some(predecessor) = &self.predecessor else { return false };
        if predecessor.is_giver(peer) {
            match message {
                Message::Draining(draining) => self.giver_tells(Some(draining.in_flight), draining.left_ms),
                Message::Bye(bye) => self.giver_tells(Some(bye.in_flight), None),
                _ => return false,
            }
            return true;
        }
        if !predecessor.is_standing_by_for(peer) {
            return false;
        }
        match message {
            Message::State(state) if self.settings.state.is_some() => {
                // That of an earlier attempt to go back is of no more use.
                self.arriving = None;
                self.state_announced(state);
            }
            Message::Abort(why) => {
                info!("the successor goes on: {}", why.0);
                self.arriving = None;
            }
            Message::TakeBack(back) => {
                info!("the successor gives the service back: {:?}", back.reason);
                if !back.lost.is_empty() {
                    warn!("lost with it, since it was new there: {}", back.lost.join(", "));
                }
            }
            Message::Descriptors(_) if self.expects_state() => {
                let input = match self.check_state(descriptors) {
                    Ok(()) => predecessor::Input::StateArrived(peer),
                    Err(error) => {
                        self.arriving = None;
                        predecessor::Input::Fault(peer, error.to_string())
                    }
                };
                self.owner(input);
                return true;
            }
            _ => {}
        }
        false
    }

    /// What the kernel said to a process that stands by.
    pub(super) fn weigh_return(&mut self, found: Found) {
        self.probation.returned = matches!(found, Found::Returned(_));
    }

    /// This process owns again. Whether the state is that of the successor or its own is in the report.
    pub(super) fn comes_back(&mut self) {
        if !std::mem::take(&mut self.probation.standing_by) {
            return;
        }
        self.probation.since = None;
        if !self.probation.returned {
            self.arriving = None;
        }
        if self.settings.state.is_some() {
            match self.came_back() {
                Some(outcome) => self.table.report.state = Some(outcome),
                None => {
                    let why = if self.probation.returned {
                        "the successor gave none back"
                    } else {
                        "the successor died on probation"
                    };
                    warn!("the state is that of the last release: {why}");
                    self.table.report.state = Some(StateOutcome::Stale { why: why.to_owned() });
                }
            }
        }
        if let Some((peer, who)) = self.predecessor.as_ref().and_then(Predecessor::giver)
            && self.connections.contains_key(&peer)
        {
            self.probation.giver = Some((peer, DrainStatus { who: who.clone(), ..DrainStatus::default() }));
            self.changed = true;
        }
    }

    /// The wait for a successor is over: this process drains.
    pub(super) fn stands_by_no_more(&mut self, reason: Reason) {
        self.probation.standing_by = false;
        self.probation.since = None;
        if reason == Reason::RolledBack {
            // It is the owner again, and no predecessor that drains.
            self.elder = None;
        }
    }

    /// The connection to a successor that gave the service back is gone, and so is what is known of its drain.
    pub(super) fn giver_gone(&mut self, peer: Peer) {
        if self.probation.giver.take_if(|(giver, _)| *giver == peer).is_some() {
            self.changed = true;
            // What waited for its end.
            self.remove_dropped();
            self.steer_groups();
            info!("the successor that gave the service back is gone");
        }
    }

    fn giver_tells(&mut self, in_flight: Option<u64>, left_ms: Option<u64>) {
        if let Some((_, drain)) = &mut self.probation.giver {
            drain.in_flight = in_flight;
            drain.left_ms = left_ms;
            self.changed = true;
        }
    }

    /// The successor that gave the service back, while it drains.
    pub(super) fn giver(&self) -> Option<&DrainStatus> {
        self.probation.giver.as_ref().map(|(_, drain)| drain)
    }

    /// The owner's machine has confirmed: nobody stands by any more.
    pub(super) fn probation_ends(&mut self) {
        info!("the probation is over: generation {} stays", self.generation());
        self.probation.since = None;
        if let Err(error) = self.family.leave_takeover() {
            warn!("cannot leave the takeover lock: {error}");
        }
    }

    /// The word for a predecessor that takes the service back: what it does not get is in it.
    pub(super) fn name_lost(&self, mut back: TakeBack) -> TakeBack {
        let new = |name: &String| self.table.report.entries.get(name).is_none_or(|outcome| outcome.is_new());
        back.lost = self.table.iter().map(|held| held.entry.name.clone()).filter(new).collect();
        cut_names(&mut back.lost);
        back
    }

    /// For how long the probation of the moment has gone on, and how long it goes on yet.
    pub(super) fn probation_times(&self) -> (Option<Duration>, Option<Duration>) {
        let left = self.poller.deadline(Key::Predecessor(Timer::Probation));
        let left = left.map(|at| at.saturating_duration_since(Instant::now()));
        (self.probation.since.map(|since| since.elapsed()), left)
    }

    /// What there is to tell of a probation.
    pub(crate) fn probation_status(&self) -> Option<ProbationStatus> {
        let predecessor = self.predecessor.as_ref()?;
        let (who, overdue) = match (predecessor.stands_by(), predecessor.stands_by_for()) {
            (Some(who), _) => (who, false),
            (None, Some((who, overdue))) => (who, overdue),
            (None, None) => return None,
        };
        let (since, left) = self.probation_times();
        // The one that stands by waits a little longer than the one on probation may take.
        let grace = if predecessor.stands_by().is_some() { Duration::ZERO } else { READER_GRACE };
        Some(ProbationStatus {
            who: who.clone(),
            since_ms: since.map_or(0, |since| since.as_millis() as u64),
            left_ms: left.map(|left| left.saturating_sub(grace).as_millis() as u64),
            overdue,
        })
    }

    /// Ends the probation of this process, forwards.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is none, or it is on its way to its end already.
    pub(crate) fn confirm(&mut self) -> Result<()> {
        self.enter()?;
        let Some(predecessor) = &self.predecessor else { return Ok(()) };
        predecessor.may_end_probation().map_err(Error::Refused)?;
        self.owner(predecessor::Input::Confirm);
        self.leave()
    }

    /// Ends the probation of this process, backwards.
    ///
    /// # Errors
    /// [`Error::Refused`] where that cannot be.
    pub(crate) fn give_back(&mut self, reason: &str) -> Result<()> {
        self.enter()?;
        let Some(predecessor) = &self.predecessor else { return Ok(()) };
        predecessor.may_give_back().map_err(Error::Refused)?;
        self.owner(predecessor::Input::GiveBack(reason.to_owned()));
        self.leave()
    }
}
