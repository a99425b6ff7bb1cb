//! The owner on probation: its predecessor stands by, and takes the service back where it is asked to, or where this
//! process dies.
//!
//! The way back is the takeover reversed, from the release on. So the predecessor is the heir of that time, and what
//! holds for a heir holds for it: it owns once it has locked byte 0, and not before.

use std::time::Duration;

use super::super::Timer;
use super::super::message::{Abort, Confirmed, Done, Message, cut};
use super::{Heir, Notice, Output, Peer, Predecessor, Stage, Step};
use crate::error::{Refusal, Who};

/// What the predecessor can do with what comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Takes {
    pub(crate) state: bool,
    pub(crate) hold: bool,
}

/// The predecessor that stands by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Probation {
    /// The connection to it.
    peer: Peer,
    /// That of the takeover that may be undone.
    nonce: u64,
    who: Who,
    takes: Takes,
    span: Duration,
    /// Whether the connection is there.
    linked: bool,
    /// It will not take the service back any more: it is dead, or was asked to leave.
    lost: bool,
    /// The time has passed.
    due: bool,
    /// Who asked for the rollback that is under way, and waits for its end.
    askers: Vec<Peer>,
}

impl Predecessor {
    /// This process is on probation: the one at the other end of `peer` stands by for so long.
    pub(crate) fn enter_probation(&mut self, peer: Peer, nonce: u64, who: Who, takes: Takes, span: Duration) {
        let askers = Vec::new();
        let (linked, lost, due) = (true, false, false);
        self.probation = Some(Probation { peer, nonce, who, takes, span, linked, lost, due, askers });
    }

    /// Whether a takeover that comes during the probation confirms it, and is not refused.
    pub(crate) fn set_confirms(&mut self, confirms: bool) {
        self.confirms = confirms;
    }

    /// The process that stands by, while this one is on probation.
    pub(crate) fn stands_by(&self) -> Option<&Who> {
        self.probation.as_ref().filter(|_| !matches!(self.stage, Stage::Gone)).map(|probation| &probation.who)
    }

    /// Whether this is the connection to the process that stands by: what it says is for this machine.
    pub(crate) fn is_elder(&self, peer: Peer) -> bool {
        self.probation.as_ref().is_some_and(|probation| probation.peer == peer && probation.linked)
    }

    /// The time begins with the service.
    pub(super) fn probation_begins(&self, out: &mut Vec<Output>) {
        if let (Some(probation), Stage::Serving) = (&self.probation, &self.stage) {
            out.push(Output::Arm(Timer::Probation, probation.span));
        }
    }

    /// Ends the probation: the predecessor may drain, and this process will not be undone.
    pub(super) fn confirm(&mut self, out: &mut Vec<Output>) {
        if self.stage != Stage::Serving {
            return;
        }
        let Some(probation) = self.probation.take() else { return };
        if probation.linked && !probation.lost {
            out.push(Output::Send(probation.peer, Confirmed {}.into()));
        }
        out.push(Output::Disarm(Timer::Probation));
        out.push(Output::EndProbation);
    }

    /// Confirms what could not be confirmed before.
    pub(super) fn confirm_if_due(&mut self, out: &mut Vec<Output>) {
        if self.probation.as_ref().is_some_and(|probation| probation.due || probation.lost) {
            self.confirm(out);
        }
    }

    /// A deadline of either side.
    pub(super) fn probation_passed(&mut self, out: &mut Vec<Output>) {
        if let Stage::StandingBy(standing) = &mut self.stage {
            // Nobody has said so, and the lock tells the rest: silence is no death.
            standing.overdue = true;
            return self.claim(out);
        }
        if let Some(probation) = &mut self.probation {
            probation.due = true;
            self.confirm_if_due(out);
        }
    }

    /// Whether a takeover may begin.
    pub(super) fn admit_on_probation(&self) -> Result<(), Refusal> {
        let Some(probation) = &self.probation else { return Ok(()) };
        Err(Refusal {
            who: Some(probation.who.clone()),
            ..Refusal::new("probation", "this owner is on probation: confirm it or roll it back first")
        })
    }

    pub(super) fn asked_to_confirm(&mut self, peer: Peer, out: &mut Vec<Output>) {
        if let Err(why) = self.may_end_probation() {
            return self.decline(peer, why, out);
        }
        self.confirm(out);
        out.push(Output::Send(peer, Done {}.into()));
    }

    pub(super) fn asked_to_give_back(&mut self, peer: Peer, reason: String, out: &mut Vec<Output>) {
        match self.give_back(reason, Some(peer), out) {
            Ok(()) => out.push(Output::Await(peer)),
            Err(why) => self.decline(peer, why, out),
        }
    }

    pub(super) fn asked_to_stand_by(&mut self, peer: Peer, span_ms: Option<u64>, out: &mut Vec<Output>) {
        if !self.owns() || matches!(self.stage, Stage::Stopping) {
            return self.decline(peer, not_the_owner(), out);
        }
        self.wish = span_ms.map(|span| (peer, Duration::from_millis(span)));
        out.push(Output::Await(peer));
        out.push(Output::Send(peer, Done {}.into()));
    }

    /// Whether there is a probation that can be ended now.
    pub(crate) fn may_end_probation(&self) -> Result<(), Refusal> {
        match &self.stage {
            Stage::Serving if self.probation.is_some() => Ok(()),
            Stage::Starting | Stage::Serving => {
                Err(Refusal::new("no-probation", "no probation is under way: nobody stands by"))
            }
            Stage::HandingOver(..) => Err(Refusal::new("busy", "a takeover or a rollback is under way")),
            Stage::Stopping | Stage::Gone => Err(Refusal::new("stopping", "the owner is about to stop")),
            _ => Err(not_the_owner()),
        }
    }

    /// Whether the service can go back to the process that stands by.
    pub(crate) fn may_give_back(&self) -> Result<(), Refusal> {
        self.may_end_probation()?;
        if self.probation.as_ref().is_some_and(|probation| !probation.linked) {
            let why = "the connection to the process that stands by broke: it has the service once this process ends";
            return Err(Refusal::new("link-lost", why));
        }
        if self.owed {
            let why = "the application has not yet answered an earlier release";
            return Err(Refusal { retry_after_ms: Some(1000), ..Refusal::new("releasing", why) });
        }
        Ok(())
    }

    /// Begins to give the service back. Who asks while that is under way already waits with the others.
    pub(super) fn give_back(
        &mut self,
        reason: String,
        asker: Option<Peer>,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let returning = self.returns();
        if !returning {
            self.may_give_back()?;
        }
        let Some(probation) = &mut self.probation else { return Err(not_the_owner()) };
        probation.askers.extend(asker);
        if returning {
            return Ok(());
        }
        let heir = Heir {
            peer: probation.peer,
            nonce: probation.nonce,
            who: probation.who.clone(),
            takes_state: probation.takes.state,
            takes_hold: probation.takes.hold,
            progress: String::new(),
            probation: None,
            back: Some(cut(reason)),
        };
        self.end_rehearsal(Refusal::new("preempted", "the service goes back to its predecessor"), out);
        self.stage = Stage::HandingOver(heir, Step::Releasing);
        if self.exclusive {
            self.owed = true;
            out.push(Output::Arm(Timer::Release, self.deadlines.release));
            out.push(Output::Tells(Notice::Release));
        } else {
            self.release(out);
        }
        Ok(())
    }

    /// Whether the service is on its way back.
    pub(super) fn returns(&self) -> bool {
        matches!(&self.stage,
            Stage::HandingOver(heir, _) | Stage::Released(heir) | Stage::Silent(heir) if heir.back.is_some())
    }

    /// Nothing comes of it, and this process has not let go of the lock: the probation goes on.
    pub(super) fn return_failed(&mut self, why: Refusal, out: &mut Vec<Output>) {
        out.push(Output::Disarm(Timer::Release));
        out.push(Output::Record { generation: self.generation, nonce: 0 });
        if self.exclusive {
            out.push(Output::Tells(Notice::Resume));
        }
        self.call_return_off(why, out);
        self.serve(out);
    }

    /// The predecessor did not take the lock in time, and this process has it again.
    pub(super) fn not_taken_back(&mut self, found: u64, out: &mut Vec<Output>) {
        self.call_return_off(Refusal::new("commit", "the predecessor did not take the lock in time"), out);
        // It had taken it, and is gone since: nobody stands by any more.
        let over = found != self.generation;
        if over {
            self.probation = None;
            out.push(Output::Disarm(Timer::Probation));
        }
        self.resume(found, self.exclusive, over, out);
    }

    /// Tells everybody that the service does not go back.
    fn call_return_off(&mut self, why: Refusal, out: &mut Vec<Output>) {
        let Some(probation) = &mut self.probation else { return };
        for asker in std::mem::take(&mut probation.askers) {
            out.push(Output::Refuse(asker, why.clone()));
        }
        if probation.linked && !probation.lost {
            out.push(Output::Send(probation.peer, Abort(why).into()));
        }
    }

    /// The predecessor owns again.
    pub(super) fn given_back(&mut self, out: &mut Vec<Output>) {
        let Some(probation) = self.probation.take() else { return };
        out.push(Output::Disarm(Timer::Probation));
        for asker in probation.askers {
            out.push(Output::Send(asker, Done {}.into()));
        }
    }

    /// What the process that stands by says on its own account.
    pub(super) fn elder_says(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Abort(Abort(why)) => self.elder_leaves(why, out),
            // For a rollback that was called off meanwhile.
            Message::Ack(_) => {}
            message => self.fault(peer, format!("{} out of order", message.word()), out),
        }
    }

    /// The process that stood by was asked to leave: nobody is left to go back to.
    pub(super) fn elder_leaves(&mut self, why: Refusal, out: &mut Vec<Output>) {
        self.elder_is_lost();
        if matches!(self.stage, Stage::HandingOver(..)) {
            return self.return_failed(why, out);
        }
        self.confirm_if_due(out);
    }

    pub(super) fn elder_is_lost(&mut self) {
        if let Some(probation) = &mut self.probation {
            probation.lost = true;
        }
    }

    /// A connection is gone. That of the predecessor says nothing of its life: it stands by, and has the lock should this
    /// process die.
    pub(super) fn elder_hangs_up(&mut self, peer: Peer) {
        if let Some(probation) = self.probation.as_mut().filter(|probation| probation.peer == peer) {
            probation.linked = false;
        }
    }

    pub(super) fn elder_died(&mut self, peer: Peer, out: &mut Vec<Output>) {
        if let Some(probation) = self.probation.as_mut().filter(|probation| probation.peer == peer) {
            probation.lost = true;
            self.confirm_if_due(out);
        }
    }

    /// A connection is about to be closed: what its client waits for is not told there any more.
    pub(super) fn forget_refused(&mut self, peer: Peer) {
        if let Some(probation) = &mut self.probation {
            probation.askers.retain(|asker| *asker != peer);
        }
        if self.wish.is_some_and(|(asker, _)| asker == peer) {
            self.wish = None;
        }
    }

    /// A client is gone, and what he wanted with him.
    pub(super) fn forget_asker(&mut self, peer: Peer) {
        self.forget_refused(peer);
        if self.is_giver(peer) {
            self.giver = None;
        }
    }
}

fn not_the_owner() -> Refusal {
    Refusal { retry_after_ms: Some(100), ..Refusal::new("draining", "this process is no longer the owner") }
}
