//! What becomes of each takeover, as this process sees it, and what its predecessors have seen.
//!
//! The machines know no clock, so it is here that their inputs and outputs are watched and timed.

use std::time::Instant;

use super::{Driver, unix_ms};
use crate::error::{Refusal, Who};
use crate::history::{Cause, History, Outcome, Side, TakeoverRecord};
use crate::protocol::message::{self, Abort, Hello, Message, Wants};
use crate::protocol::predecessor::{self, Peer};
use crate::protocol::successor;

/// The code of a connection that ended, of which it is not known why.
const LINK_LOST: &str = "link-lost";
/// The code of a service that its owner has given back.
const ROLLED_BACK: &str = "rolled-back";

/// What is remembered, and what is under way.
#[derive(Debug)]
pub(super) struct Journal {
    history: History,
    /// When this process began to start.
    started: Begun,
    /// When that began by which it became the owner.
    origin: Begun,
    /// The takeover of the moment: by another of this process, or by this process of another.
    current: Option<(Begun, TakeoverRecord)>,
    /// Why it is about to come to nothing: the first thing that went wrong.
    cause: Option<Cause>,
    /// What the last takeover that came to nothing came to nothing for.
    failure: Option<Cause>,
    /// The successor that was last made an offer.
    with: Option<Peer>,
    /// It takes the history.
    carries: bool,
    /// Something was added since that successor was told.
    news: bool,
    /// The successor of the last takeover, as long as it can still come to nothing.
    heir: Option<Side>,
}

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
struct Begun {
    unix_ms: u64,
    at: Instant,
}

impl Begun {
    fn now() -> Begun {
        Begun { unix_ms: unix_ms(), at: Instant::now() }
    }

    fn ago_ms(self) -> u64 {
        self.at.elapsed().as_millis() as u64
    }
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            history: History::default(),
            started: Begun::now(),
            origin: Begun::now(),
            current: None,
            cause: None,
            failure: None,
            with: None,
            carries: false,
            news: false,
            heir: None,
        }
    }
}

impl Journal {
    fn add(&mut self, record: TakeoverRecord) {
        self.history.push(record);
        self.news = true;
    }

    /// What goes wrong first is why, but for the end of a connection: a death says more.
    fn blame(&mut self, code: &str, message: &str) {
        let known = self.cause.as_ref().is_some_and(|cause| cause.code != LINK_LOST);
        if !known && (self.current.is_some() || self.heir.is_some()) {
            self.cause = Some(Cause { code: code.to_owned(), message: message.to_owned() });
        }
    }

    /// Whether the predecessor has let go in the takeover of the moment.
    fn is_released(&self) -> bool {
        self.current.as_ref().is_some_and(|(_, record)| record.steps.iter().any(|step| step.step == "released"))
    }

    /// The takeover of the moment has come to a step.
    fn step(&mut self, step: &str) {
        if let Some((begun, record)) = &mut self.current {
            record.step(step, begun.ago_ms());
        }
    }

    /// The takeover of the moment has come to its end.
    fn end(&mut self, outcome: Outcome) {
        if let Some((begun, record)) = self.current.take() {
            let cause = self.cause.take();
            self.failure.clone_from(&cause);
            self.add(record.end(outcome, begun.ago_ms(), cause));
        }
    }
}

impl Driver {
    fn side(&self, generation: Option<u64>) -> Option<Side> {
        Some(side(generation, &self.identity()))
    }

    /// The records as they are now.
    pub(super) fn history(&self) -> Message {
        message::History { takeovers: self.journal.history.records().to_vec() }.into()
    }

    /// What the predecessor remembers. The last that it says counts.
    pub(super) fn inherit_history(&mut self, history: message::History) {
        // Not from one that speaks on after this process has begun to remember by itself.
        if self.predecessor.is_none() {
            self.journal.history = History::of(history.takeovers);
        }
    }

    /// An input of the owner's machine, before it acts on it.
    pub(super) fn note_owner_input(&mut self, input: &predecessor::Input) {
        use predecessor::Input;
        let (Input::Message(peer, _) | Input::Gone(peer) | Input::Died(peer)) = input else { return };
        let Some(owner) = self.predecessor.as_ref().filter(|owner| owner.is_heir(*peer)) else { return };
        match input {
            Input::Message(_, Message::TakeBack(back)) => {
                self.journal.cause = Some(Cause { code: ROLLED_BACK.to_owned(), message: back.reason.clone() });
            }
            // A rollback came to nothing, and the successor goes on.
            Input::Message(_, Message::Abort(_)) if owner.is_standing_by_for(*peer) => self.journal.cause = None,
            Input::Message(_, Message::Abort(Abort(why))) => self.journal.blame(&why.code, &why.message),
            // Where the application has nothing to let go of, the release follows at once.
            Input::Message(_, Message::Ready(_))
                if owner.takeover().is_some_and(|(_, step, _)| step == "warming-up") =>
            {
                self.journal.step("releasing");
            }
            Input::Gone(_) => self.journal.blame(LINK_LOST, "the successor has died, or closed the connection"),
            Input::Died(_) => self.journal.blame("died", "the process of the successor has ended"),
            _ => {}
        }
    }

    /// What the owner's machine made of an input: `hello`, where it was one.
    pub(super) fn note_owner_outputs(&mut self, hello: Option<&Hello>, out: &[predecessor::Output]) {
        use predecessor::Output;
        for output in out {
            match (output, hello) {
                (Output::Refuse(_, why), Some(hello)) if hello.wants == Wants::Takeover => {
                    let who = Who { pid: hello.pid, app_version: hello.app_version.clone() };
                    self.note_refusal(&who, why);
                }
                (Output::SendManifest(peer), Some(hello)) if hello.wants == Wants::Takeover => {
                    (self.journal.with, self.journal.carries) = (Some(*peer), hello.history);
                    (self.journal.cause, self.journal.heir) = (None, None);
                }
                (Output::Send(peer, Message::Abort(Abort(why))), _) if self.journal.with == Some(*peer) => {
                    self.journal.blame(&why.code, &why.message);
                }
                _ => {}
            }
        }
        self.note_owner();
    }

    /// Somebody was refused before anything was offered.
    pub(super) fn note_refusal(&mut self, who: &Who, why: &Refusal) {
        let (from, to) = (self.side(Some(self.generation())), Some(side(None, who)));
        let record = TakeoverRecord::begin(unix_ms(), from, to);
        self.journal.add(record.end(Outcome::Refused, 0, Some(why.into())));
    }

    /// Compares what the owner's machine says now with what was noted last.
    fn note_owner(&mut self) {
        let Some(owner) = &self.predecessor else { return };
        let (owns, generation) = (owner.owns(), owner.generation());
        if let Some((who, step, _)) = owner.takeover() {
            if self.journal.current.is_none() {
                let record = TakeoverRecord::begin(unix_ms(), self.side(Some(generation)), Some(side(None, who)));
                self.journal.current = Some((Begun::now(), record));
            }
            self.journal.step(step);
            return self.log_phase(false);
        }
        let mut came_to_nothing = false;
        let own = side(Some(generation), &self.identity());
        match &mut self.journal.current {
            // Somebody owned in between without a word.
            Some((_, record)) if owns && owned_by_other(record, generation) => {
                record.to = record.to.take().map(|to| Side { generation: Some(generation - 1), ..to });
                (record.from, record.to) = (record.to.take(), Some(own));
                self.journal.end(Outcome::Resumed);
            }
            Some(_) if owns => {
                self.journal.end(Outcome::Failed);
                came_to_nothing = true;
            }
            Some((_, record)) => {
                if let Some(to) = &mut record.to {
                    to.generation = Some(generation + 1);
                }
                self.journal.heir = record.to.clone();
                self.journal.step("owning");
                self.journal.end(Outcome::TakenOver);
            }
            None if owns => {
                if let Some(heir) = self.journal.heir.take() {
                    // The lock file tells how many have owned since, and not who.
                    let last = Some(generation.saturating_sub(1));
                    let heir = if heir.generation == last { heir } else { side(last, &Who::default()) };
                    let record = TakeoverRecord::begin(unix_ms(), Some(heir), Some(own));
                    let cause = self.journal.cause.take();
                    self.journal.failure.clone_from(&cause);
                    self.journal.add(record.end(Outcome::Resumed, 0, cause));
                }
            }
            None => {}
        }
        self.log_phase(came_to_nothing);
    }

    /// This process leaves without a successor. Whoever takes the service back from it has this record no more; who asks
    /// while it drains has.
    pub(super) fn note_stop(&mut self) {
        let record = TakeoverRecord::begin(unix_ms(), self.side(Some(self.generation())), None);
        self.journal.add(record.end(Outcome::Stopped, 0, None));
    }

    /// This process says hello.
    pub(super) fn note_attempt(&mut self) {
        self.journal.current = Some((Begun::now(), TakeoverRecord::begin(unix_ms(), None, None)));
        self.journal.cause = None;
    }

    /// An attempt of this process is over, and so is what it was told.
    pub(super) fn forget_attempt(&mut self) {
        self.journal = Journal { started: self.journal.started, ..Journal::default() };
    }

    /// An input of the successor's machine, before it acts on it.
    pub(super) fn note_successor_input(&mut self, input: &successor::Input) {
        if self.predecessor.is_some() {
            // This process owns: what becomes of its predecessor is no news of the takeover of the moment.
            return;
        }
        match input {
            successor::Input::Message(Message::Offer(_)) => self.journal.step("offered"),
            successor::Input::Message(Message::Released(_)) => self.journal.step("released"),
            successor::Input::LinkLost => self.journal.blame(LINK_LOST, "the connection to the predecessor ended"),
            successor::Input::Died => self.blame_death(),
            _ => {}
        }
    }

    fn blame_death(&mut self) {
        self.journal.blame("predecessor-died", "the predecessor died before it had handed over");
    }

    /// What the successor's machine made of an input.
    pub(super) fn note_successor_outputs(&mut self, out: &[successor::Output]) {
        use successor::{Notice, Output};
        for output in out {
            match output {
                Output::Send(Message::Room(_)) => self.journal.step("sending"),
                Output::Tells(Notice::Received { .. }) => self.journal.step("warming-up"),
                Output::Send(Message::Ready(_)) => self.journal.step("releasing"),
                Output::Tells(Notice::Owner { .. }) => self.note_commit(),
                _ => {}
            }
        }
    }

    /// This process has become the owner by its predecessor's leave, or by its death.
    fn note_commit(&mut self) {
        let Some(successor) = &self.successor else { return };
        let generation = successor.generation();
        let from = side(Some(generation.saturating_sub(1)), successor.predecessor());
        let to = self.side(Some(generation));
        self.journal.step("owning");
        if self.journal.cause.as_ref().is_some_and(|cause| cause.code == LINK_LOST) && !self.journal.is_released() {
            // It had not let go, so the kernel did that for it: the end of a process closes its connections, frees its
            // locks, and is told last.
            self.blame_death();
        }
        if let Some((begun, record)) = &mut self.journal.current {
            self.journal.origin = *begun;
            (record.from, record.to) = (Some(from), to);
        }
        self.journal.end(Outcome::TakenOver);
    }

    /// This process is the first of its family.
    pub(super) fn note_cold_start(&mut self) {
        let started = self.journal.started;
        self.journal.origin = started;
        let mut record = TakeoverRecord::begin(started.unix_ms, None, self.side(Some(self.generation())));
        record.step("starting", started.ago_ms());
        self.journal.add(record.end(Outcome::ColdStart, started.ago_ms(), None));
    }

    /// This process has taken the service from one that did not answer. What that one remembered is lost with it.
    #[cfg(feature = "ctl")]
    pub(super) fn note_rescue(&mut self, dead: &Who) {
        let (started, generation) = (self.journal.started, self.generation());
        self.journal.origin = started;
        let from = side(Some(generation.saturating_sub(1)), dead);
        let record = TakeoverRecord::begin(started.unix_ms, Some(from), self.side(Some(generation)));
        let message = "it did not answer, and was ended".to_owned();
        let cause = Cause { code: "rescued".to_owned(), message };
        self.journal.add(record.end(Outcome::TakenOver, started.ago_ms(), Some(cause)));
    }

    /// A step of the change that made this process the owner, which is past its outcome.
    pub(super) fn note_later_step(&mut self, step: &str) {
        let generation = self.generation();
        let at_ms = self.journal.origin.ago_ms();
        for outcome in [Outcome::TakenOver, Outcome::ColdStart] {
            if let Some(record) = self.journal.history.newest(outcome, generation) {
                // Who has said that he is done says more than his end does.
                if step != "gone" || record.steps.last().is_none_or(|last| last.step != "drained") {
                    record.step(step, at_ms);
                    self.journal.news = true;
                }
                return;
            }
        }
    }

    /// The end of a process that drained before the predecessor: a step of the takeover with which it began to drain.
    pub(super) fn note_drainers_end(&mut self, generation: Option<u64>, step: &str) {
        let Some(next) = generation.and_then(|generation| generation.checked_add(1)) else { return };
        if let Some(record) = self.journal.history.newest(Outcome::TakenOver, next) {
            // Its owner of then has measured the others.
            record.step(step, unix_ms().saturating_sub(record.began));
            self.journal.news = true;
        }
    }

    /// Tells a successor what is remembered, where it takes it: with the offer, and again before the release where
    /// something has come since.
    pub(super) fn tell_heir_history(&mut self, peer: Peer, again: bool) {
        if self.journal.carries && self.journal.with == Some(peer) && (self.journal.news || !again) {
            self.journal.news = false;
            let history = self.history();
            self.send(peer, &history);
        }
    }

    /// For the log: why the takeover of the moment came to nothing.
    pub(super) fn last_failure(&self) -> String {
        let cause = self.journal.failure.as_ref();
        cause.map(|cause| format!("{}: {}", cause.code, cause.message)).unwrap_or_else(|| "no reason known".to_owned())
    }

    /// For how long the takeover of the moment has been under way, and for how long of that at its step, in milliseconds
    /// by one look at the clock.
    pub(super) fn takeover_times(&self) -> Option<(u64, u64)> {
        let (begun, record) = self.journal.current.as_ref()?;
        let since = begun.ago_ms();
        Some((since, since.saturating_sub(record.steps.last().map_or(0, |step| step.at_ms))))
    }
}

/// Whether somebody has owned after the owner of this record.
fn owned_by_other(record: &TakeoverRecord, generation: u64) -> bool {
    record.from.as_ref().and_then(|from| from.generation) != Some(generation)
}

fn side(generation: Option<u64>, who: &Who) -> Side {
    Side { generation, pid: who.pid, app_version: who.app_version.clone() }
}
