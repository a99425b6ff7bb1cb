//! The life of a process that keeps the entries beside an owner, and owns where nobody else does.
//!
//! What it receives, it receives as a [`successor`](super::successor) would, session by session; while it owns, it answers
//! as any [`predecessor`](super::predecessor). This machine is what holds these together: whom it follows, when it asks
//! anew, and when it takes the owner lock. It keeps the control listener open, so that a connection tells nothing: only
//! the lock says whether somebody owns.

use std::time::Duration;

use super::patience::Patience;
use super::predecessor::{Claim, Found};
use super::{Deadlines, Timer};
use crate::error::Refusal;

/// How long entries may go on changing before they are asked for anew.
const SETTLE: Duration = Duration::from_millis(50);
/// The pause after an attempt that came to nothing, where nobody has asked for another one.
const RETRY: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// The attempt has everything of the owner of this generation, and is in place of what was kept before.
    Whole { generation: u64 },
    /// The attempt came to nothing. When another one makes sense, where the owner has said so; `refused`: it has said no,
    /// and no wait makes it a yes.
    Failed { after: Option<Duration>, refused: bool },
    /// The owner followed has other entries by now.
    Changed,
    /// The link to the owner followed is at its end, or that process is dead.
    Ended(Option<Refusal>),
    /// The answer to [`Output::Look`].
    Looked(Look),
    /// The answer to [`Output::Claim`].
    Claimed(Found),
    /// As the owner: a successor owns.
    Left,
    /// After that: this process owns again.
    Resumed,
    /// As the owner: a holder was started in place of this one, and has everything.
    Replaced,
    /// As the owner that has left: its drain deadline has passed.
    Overdue,
    /// As the owner that has left: it has said its last words.
    Gone,
    /// Whoever runs this process wants it to leave.
    Stop,
    /// A deadline passed.
    Expired(Timer),
}

/// What a look at the owner lock found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Look {
    /// Somebody owns.
    Held,
    /// Nobody owns at this moment; the file has this generation.
    Free(u64),
    /// The kernel did not say.
    Unknown,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// It was asked to leave.
    Stopped,
    /// Another holder was started in its place.
    Replaced,
}

/// What the process learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// It has everything that the owner has.
    Following,
    /// It owns.
    Holding,
    Over(End),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Begin an attempt: connect, and ask for everything.
    Ask,
    /// End the attempt.
    CallOff,
    /// Look whether somebody owns; answer with [`Input::Looked`] before anything else.
    Look,
    /// Try to take the owner lock; answer with [`Input::Claimed`] before anything else.
    Claim(Claim),
    /// The lock is held: write this generation, and answer as the owner.
    Own {
        generation: u64,
    },
    /// As the owner: leave, and end what is kept.
    Leave,
    /// As the owner that has left: say the last words, and keep everything all the same.
    Drain,
    Tells(Notice),
    Arm(Timer, Duration),
    Disarm(Timer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Nothing is kept yet.
    Joining,
    /// Everything is kept, and the owner tells of changes.
    Following,
    /// Everything is kept, and nobody tells anything. `grace`: nobody owned at the last look, and the time runs.
    Lost {
        grace: bool,
    },
    /// This process owns.
    Owner,
    /// A successor owns, and is asked; until it has answered, this process is ready to take the service back. `drains`: it
    /// will not answer, and is told that this process drains no more.
    Leaving {
        drains: bool,
    },
    Over,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    stage: Stage,
    deadlines: Deadlines,
    /// That of the owner whose entries are kept.
    generation: u64,
    /// It was asked to leave while it owned.
    stopping: bool,
    /// An attempt is under way.
    asking: bool,
    /// The next one waits for its time.
    pausing: bool,
    /// With byte 1, while byte 0 is free.
    patience: Patience,
}

impl Holder {
    /// A new holder; its first step is in `out`.
    pub(crate) fn new(deadlines: Deadlines, out: &mut Vec<Output>) -> Holder {
        out.push(Output::Ask);
        Holder {
            stage: Stage::Joining,
            deadlines,
            generation: 0,
            stopping: false,
            asking: true,
            pausing: false,
            patience: Patience::Rested,
        }
    }

    /// Whether it is at its end.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether it owns, or has not yet found whom it has handed over to.
    pub(crate) fn has_owned(&self) -> bool {
        matches!(self.stage, Stage::Owner | Stage::Leaving { .. })
    }

    /// Whether it keeps anything.
    pub(crate) fn keeps(&self) -> bool {
        !matches!(self.stage, Stage::Joining | Stage::Over)
    }

    /// Takes one input; appends what is to be done, in order.
    pub(crate) fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        match (self.stage, input) {
            (Stage::Over, _) => {}
            (_, Input::Whole { generation }) => {
                self.asking = false;
                self.generation = generation;
                self.rest(out);
                self.stage = Stage::Following;
                out.push(Output::Tells(Notice::Following));
            }
            (_, Input::Failed { after, refused }) => {
                self.asking = false;
                if refused {
                    self.drain(out);
                }
                if !matches!(self.stage, Stage::Joining | Stage::Owner) {
                    self.pause(after.unwrap_or(RETRY), out);
                }
            }
            (Stage::Following, Input::Changed) if !self.asking => self.pause(SETTLE, out),
            // The attempt of the moment may have begun before the change.
            (Stage::Following, Input::Changed) => {}
            (Stage::Following | Stage::Lost { .. }, Input::Ended(Some(why))) if why.code == "replaced" => {
                self.over(End::Replaced, out);
            }
            (Stage::Following, Input::Ended(_)) => {
                self.stage = Stage::Lost { grace: false };
                out.push(Output::Look);
            }
            (Stage::Lost { .. }, Input::Ended(_)) => out.push(Output::Look),
            (Stage::Lost { grace }, Input::Looked(look)) => self.looked(grace, look, out),
            (Stage::Lost { .. }, Input::Claimed(found)) => self.claimed(found, out),
            // Who wanted it to leave wanted that, and not that it follows the next one.
            (Stage::Owner, Input::Left) if self.stopping => self.over(End::Stopped, out),
            (Stage::Owner, Input::Left) => {
                self.stage = Stage::Leaving { drains: false };
                self.ask(out);
            }
            (_, Input::Overdue) => self.drain(out),
            // Whoever it has handed over to is dead. It may have asked that one already, or even be another's by now.
            (Stage::Leaving { .. } | Stage::Following | Stage::Lost { .. }, Input::Resumed) => self.own(out),
            (Stage::Owner, Input::Replaced) => {
                // The other one keeps everything, and owns after its grace.
                self.over(End::Replaced, out);
            }
            (Stage::Owner, Input::Gone) => self.over(End::Stopped, out),
            // Nobody counts it as one that drains any more, and what it keeps it keeps on its own account.
            (Stage::Leaving { .. }, Input::Gone) => {
                self.stage = Stage::Lost { grace: false };
                out.push(Output::Look);
            }
            (Stage::Owner, Input::Stop) => {
                self.stopping = true;
                out.push(Output::Leave);
            }
            (_, Input::Stop) => self.over(End::Stopped, out),
            (_, Input::Expired(timer)) => self.expired(timer, out),
            // Of a time that is over.
            _ => {}
        }
    }

    fn looked(&mut self, grace: bool, look: Look, out: &mut Vec<Output>) {
        out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
        match look {
            Look::Held => {
                self.stage = Stage::Lost { grace: false };
                out.push(Output::Disarm(Timer::Grace));
                self.be_patient(out);
                if !self.asking && !self.pausing {
                    self.ask(out);
                }
            }
            Look::Free(generation) => {
                // Nobody would answer but this process.
                self.call_off(out);
                if !grace {
                    self.stage = Stage::Lost { grace: true };
                    // Where somebody has owned since, others may have what is newer.
                    let newer = generation != self.generation;
                    let grace = if newer { 2 * self.deadlines.grace } else { self.deadlines.grace };
                    out.push(Output::Arm(Timer::Grace, grace));
                }
            }
            Look::Unknown => {}
        }
    }

    fn claimed(&mut self, found: Found, out: &mut Vec<Output>) {
        match found {
            Found::Free(generation) | Found::Returned(generation) => {
                out.push(Output::Own { generation: generation.saturating_add(1) });
                self.own(out);
            }
            Found::Held | Found::Over => {
                self.stage = Stage::Lost { grace: false };
                out.push(Output::Look);
            }
            Found::Barred | Found::Unknown => {
                if self.patience.try_it() {
                    // Whoever is at that takeover may try as long before; a stopped one keeps byte 1 for ever.
                    out.push(Output::Arm(Timer::Commit, 2 * self.deadlines.commit));
                }
                out.push(Output::Arm(Timer::Grace, self.deadlines.probe));
            }
        }
    }

    fn expired(&mut self, timer: Timer, out: &mut Vec<Output>) {
        match (timer, self.stage) {
            (Timer::Probe, Stage::Lost { .. }) => out.push(Output::Look),
            (Timer::Grace, Stage::Lost { grace: true }) => {
                let claim = if self.patience == Patience::Gone { Claim::Bare } else { Claim::Exclusive };
                out.push(Output::Claim(claim));
            }
            (Timer::Commit, Stage::Lost { .. }) => self.patience.run_out(),
            (Timer::Retry, stage) if self.pausing => {
                self.pausing = false;
                if !self.asking && !matches!(stage, Stage::Joining | Stage::Owner | Stage::Lost { grace: true }) {
                    self.ask(out);
                }
            }
            // A timer that was on its way when its state ended.
            _ => {}
        }
    }

    /// What it has owned is not to be counted as draining for ever, only because its successor gives it nothing.
    fn drain(&mut self, out: &mut Vec<Output>) {
        if let Stage::Leaving { drains } = &mut self.stage
            && !std::mem::replace(drains, true)
        {
            out.push(Output::Drain);
        }
    }

    fn own(&mut self, out: &mut Vec<Output>) {
        self.call_off(out);
        self.rest(out);
        self.stage = Stage::Owner;
        out.push(Output::Tells(Notice::Holding));
    }

    fn ask(&mut self, out: &mut Vec<Output>) {
        self.asking = true;
        out.push(Output::Ask);
    }

    fn call_off(&mut self, out: &mut Vec<Output>) {
        if std::mem::take(&mut self.asking) {
            out.push(Output::CallOff);
        }
        if std::mem::take(&mut self.pausing) {
            out.push(Output::Disarm(Timer::Retry));
        }
    }

    fn pause(&mut self, pause: Duration, out: &mut Vec<Output>) {
        if !self.pausing {
            self.pausing = true;
            out.push(Output::Arm(Timer::Retry, pause));
        }
    }

    fn be_patient(&mut self, out: &mut Vec<Output>) {
        if self.patience.rest() {
            out.push(Output::Disarm(Timer::Commit));
        }
    }

    /// Nothing is waited for.
    fn rest(&mut self, out: &mut Vec<Output>) {
        self.be_patient(out);
        self.pausing = false;
        for timer in [Timer::Probe, Timer::Grace, Timer::Retry] {
            out.push(Output::Disarm(timer));
        }
    }

    fn over(&mut self, end: End, out: &mut Vec<Output>) {
        self.call_off(out);
        self.rest(out);
        self.stage = Stage::Over;
        out.push(Output::Tells(Notice::Over(end)));
    }
}
