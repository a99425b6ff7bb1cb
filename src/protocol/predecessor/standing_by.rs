//! The predecessor after the commit of a successor that is on probation: it keeps everything, and waits.
//!
//! It holds byte 1 shared all the time, as its successor does, so that nobody else touches byte 0. What ends the wait is
//! the successor's word, byte 0, or byte 1 given back by the other side; never the clock.

use super::super::message::{Abort, Ack, Confirmed, Message, Owning};
use super::super::{READER_GRACE, Timer};
use super::{Found, Heir, Notice, Output, Peer, Predecessor, Reason, Stage};
use crate::error::{Refusal, Who};

/// The successor on probation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Standing {
    pub(super) heir: Heir,
    /// Whether the connection to it is there.
    pub(super) linked: bool,
    /// The time has passed, and it has said nothing.
    pub(super) overdue: bool,
}

impl Predecessor {
    /// The process that this one stands by for, and whether its time has passed in silence.
    pub(crate) fn stands_by_for(&self) -> Option<(&Who, bool)> {
        match &self.stage {
            Stage::StandingBy(standing) => Some((&standing.heir.who, standing.overdue)),
            _ => None,
        }
    }

    /// Whether this is the connection to a successor that may be on probation after its commit.
    pub(crate) fn grants_probation(&self, peer: Peer) -> bool {
        match &self.stage {
            Stage::HandingOver(heir, _) | Stage::Released(heir) | Stage::Silent(heir) => {
                heir.peer == peer && heir.probation.is_some()
            }
            Stage::StandingBy(standing) => standing.heir.peer == peer,
            _ => false,
        }
    }

    /// Whether this is the connection to the successor that this process stands by for.
    pub(crate) fn is_standing_by_for(&self, peer: Peer) -> bool {
        matches!(&self.stage, Stage::StandingBy(standing) if standing.heir.peer == peer)
    }

    /// Whether this is the connection to a successor that has given the service back, and drains.
    pub(crate) fn is_giver(&self, peer: Peer) -> bool {
        self.giver.as_ref().is_some_and(|(giver, _)| *giver == peer)
    }

    /// That connection, and who is at its other end.
    pub(crate) fn giver(&self) -> Option<(Peer, &Who)> {
        self.giver.as_ref().map(|(peer, who)| (*peer, who))
    }

    /// The heir owns, on probation.
    pub(super) fn stand_by(&mut self, heir: Heir, out: &mut Vec<Output>) {
        let span = heir.probation.unwrap_or_default();
        self.somebody_owns(out);
        self.stage = Stage::StandingBy(Standing { heir, linked: true, overdue: false });
        self.end_holders(Refusal::new("draining", "a successor owns: ask that one"), out);
        if self.stopping {
            return self.step_down(out);
        }
        // It was given back where the heir was slow to say that it owns.
        out.push(Output::JoinTakeover);
        out.push(Output::Arm(Timer::Probation, span + READER_GRACE));
        out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
        out.push(Output::Tells(Notice::StandBy));
    }

    /// The heir says something.
    pub(super) fn heir_on_probation(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        let Stage::StandingBy(standing) = &self.stage else { return };
        match message {
            Message::Confirmed(_) => self.relieved(out),
            Message::TakeBack(back) if back.nonce == standing.heir.nonce => self.claim(out),
            // For another takeover: void.
            Message::TakeBack(_) => {}
            // It is kept for the case that this process owns again.
            Message::Held(held) => self.hear_hold(held.hold, out),
            // The driver keeps it, until it comes to nothing.
            Message::State(_) if self.state.is_some() => {}
            Message::Abort(_) => {}
            message => self.fault(peer, format!("{} out of order", message.word()), out),
        }
    }

    /// The state of the heir is here.
    pub(super) fn state_came_back(&self, peer: Peer, out: &mut Vec<Output>) {
        if self.is_standing_by_for(peer) {
            out.push(Output::Send(peer, Ack { descriptors: 1 }.into()));
        }
    }

    /// What the kernel says of the lock.
    pub(super) fn stood_by(&mut self, found: Found, out: &mut Vec<Output>) {
        let Stage::StandingBy(standing) = &self.stage else { return };
        match found {
            Found::Free(found) | Found::Returned(found) => {
                let peer = standing.heir.peer;
                let linked = standing.linked;
                self.giver = linked.then(|| (peer, standing.heir.who.clone()));
                out.push(Output::Disarm(Timer::Probation));
                self.resume(found, true, true, out);
                if linked {
                    out.push(Output::Send(peer, Owning { generation: self.generation, probation_ms: None }.into()));
                    out.push(Output::Send(peer, Confirmed {}.into()));
                }
            }
            Found::Over => self.relieved(out),
            // It lives, whether or not it talks.
            Found::Held | Found::Unknown | Found::Barred => {}
        }
    }

    /// The heir will not give the service back: drain.
    fn relieved(&mut self, out: &mut Vec<Output>) {
        let Stage::StandingBy(standing) = &self.stage else { return };
        let heir = standing.heir.clone();
        self.stage = Stage::Leaving { heir, confirmed: true, finish: None };
        self.somebody_owns(out);
        out.push(Output::LeaveTakeover);
        out.push(Output::Disarm(Timer::Probation));
        out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
        out.push(Output::Tells(Notice::Leave(Reason::Successor)));
    }

    /// This process was asked to leave: the heir goes on without it.
    pub(super) fn step_down(&mut self, out: &mut Vec<Output>) {
        let Stage::StandingBy(standing) = &self.stage else { return };
        let why = Refusal::new("stopping", "the predecessor was asked to leave");
        out.push(Output::Send(standing.heir.peer, Abort(why).into()));
        // Should the heir die now, it comes back only to stop.
        self.stopping = true;
        self.relieved(out);
    }
}
