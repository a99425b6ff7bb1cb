//! The owner's side: offers, sends, waits for ready, lets go, and takes back where the successor fails.
//!
//! One machine for the whole time in which a process owns or drains. It has no socket and no clock: [`Input`] goes in,
//! [`Output`]s come out, descriptors are slot numbers, and deadlines are [`Timer`]s that the driver arms. What it
//! believes about the owner lock is true, because nobody but this process can take that lock from it.

mod hold;
mod holders;
mod probation;
mod rehearsal;
mod standing_by;

use std::time::Duration;

#[cfg(target_os = "linux")]
pub(crate) use self::hold::HELD;
use self::holders::Holders;
use self::probation::Probation;
#[cfg(target_os = "linux")]
pub(crate) use self::probation::Takes;
use self::rehearsal::Rehearsal;
use self::standing_by::Standing;
use super::message::{
    Abort, Ask, Bye, Done, Draining, Held, Hello, Message, Offer, Question, Released, State, TakeBack, VERSIONS, Wants,
    cut,
};
use super::patience::Patience;
use super::transfer::Transfer;
use super::{DELIVERY, Deadlines, FAMILY_SLOTS, MAX_PROBATION, Timer};
use crate::error::{Refusal, Who};
use crate::hold::Hold;
use crate::manifest::StateKind;
use crate::status::Phase;

/// One connection on the control socket, by a number that is never used again.
pub(crate) type Peer = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// The application of a first start is ready to serve.
    Ready,
    /// A peer said something.
    Message(Peer, Message),
    /// A peer broke the protocol; its connection is of no more use.
    Fault(Peer, String),
    /// This side cannot go on with the takeover of the moment.
    Unable(Refusal),
    /// This side cannot give a holder what it is to have.
    CannotKeep(Peer, Refusal),
    /// The connection ended, after everything in it was read.
    Gone(Peer),
    /// The process at the other end is dead, as its pidfd says.
    Died(Peer),
    /// A deadline passed.
    Expired(Timer),
    /// That of a holder, which does not have everything yet.
    HolderExpired(Peer),
    /// The answer to [`Output::Claim`].
    Claimed(Found),
    /// The application has let go of its exclusive work.
    AppReleased,
    /// So it has, and this is the state that its successor goes on with.
    AppReleasedWith(State),
    /// The application cannot let go.
    AppKeeps(String),
    /// The application knows that it serves again.
    AppResumed,
    /// The application, or somebody who may, wants this process to leave.
    Stop,
    /// The application ends the probation: the predecessor may drain.
    Confirm,
    /// The application ends the probation: the predecessor takes the service back.
    GiveBack(String),
    /// The descriptor of the state that comes back arrived, and is what it should be.
    StateArrived(Peer),
    /// What the other side of a takeover says of the hold of the service.
    Held(Option<Hold>),
    /// The time of the hold is over.
    HoldOver,
    /// The entries are others than before, or the control listener is.
    Changed,
    /// What was in flight is now this much.
    InFlight { in_flight: u64, left: Option<Duration> },
    /// Nothing is in flight any more, or the drain deadline has passed.
    Finish { forced: bool, in_flight: u64 },
}

/// What an attempt to take the owner lock back found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Found {
    /// This process holds it, and the file holds this generation.
    Free(u64),
    /// Another process owns.
    Held,
    /// The kernel did not say, for an error that has nothing to do with who owns.
    Unknown,
    /// Nobody owns at this moment, and two others are at a takeover: one of them will, unless both are stopped.
    Barred,
    /// As `Free`, and the file says that it was unlocked for this very process.
    Returned(u64),
    /// Another process owns, and the probation of this one's successor is over: it has given byte 1 back, or somebody has
    /// owned after it.
    Over,
}

/// How the owner lock is to be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// The takeover lock is held from the offer on: byte 0 alone, as long as the file has this process's generation.
    /// Afterwards somebody else has owned, so that takeover is over: byte 1 is given back, and then as `Exclusive`.
    Shared,
    /// The takeover lock exclusively first, so that no third process is in between.
    Exclusive,
    /// Byte 0 alone, because a stopped successor may keep byte 1 for ever; the nonce in the file decides.
    Bare,
    /// Of a process that stands by, and holds byte 1 shared with its successor: byte 0 alone, as long as the file has the
    /// generation after its own, and nonce 0 or this one.
    StandBy(u64),
}

/// Why the application is told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A successor owns the service.
    Successor,
    /// A stop was asked for.
    Stopped,
    /// The predecessor owns the service again: this process was on probation.
    RolledBack,
}

impl Reason {
    /// Whether another process serves now: what waits in the queues is for that one.
    #[must_use]
    pub fn is_served(self) -> bool {
        self != Reason::Stopped
    }
}

/// What the application is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// Let go of exclusive work, then say so.
    Release,
    /// Take everything up again.
    Resume,
    /// Stop accepting and keep everything.
    StandBy,
    /// Stop accepting and drain.
    Leave(Reason),
    /// A stop was asked for before the application was ready: it will not serve.
    Cancelled,
    /// A holder has everything that was started in place of those before it.
    Replaced,
    /// Nothing is left to do: exit.
    Exit,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    Send(Peer, Message),
    /// Send a refusal, with the time that the driver knows, and close.
    Refuse(Peer, Refusal),
    /// Send all entries, in as many frames as it takes.
    SendManifest(Peer),
    /// Send these descriptors, at most 253.
    SendDescriptors {
        peer: Peer,
        first: u32,
        count: u16,
    },
    /// Send the application's state, with its one descriptor.
    SendState(Peer, State),
    /// Answer with a status now, and after each change where `watch` is set.
    Tell {
        peer: Peer,
        watch: bool,
    },
    /// The answer to this client takes as long as it takes: he may be silent.
    Await(Peer),
    /// The probation is over: give byte 1 back.
    EndProbation,
    /// Answer with the last takeovers.
    TellHistory(Peer),
    /// Pass on what a client wants of those who drain, and answer him when they have obeyed.
    Steer(Peer, Ask),
    /// Close once everything that was sent is written.
    Close(Peer),
    /// Take byte 1 shared.
    JoinTakeover,
    /// Give byte 1 back.
    LeaveTakeover,
    /// Write generation and nonce into the lock file.
    Record {
        generation: u64,
        nonce: u64,
    },
    /// Deregister the control listener; keep it open.
    StopControl,
    /// Listen again, register again.
    StartControl,
    /// Give byte 0 back.
    Unlock,
    /// Takeovers are refused from now on, or no longer: keep the time of it, and tell a predecessor that still drains.
    Hold(Option<Hold>),
    /// Try to take byte 0 back; answer with [`Input::Claimed`] before anything else.
    Claim(Claim),
    Tells(Notice),
    Arm(Timer, Duration),
    Disarm(Timer),
    /// The deadline of the next word of this holder: each has its own.
    ArmHolder(Peer, Duration),
    /// The deadline of all that it is to have.
    ArmHolding(Peer, Duration),
    /// Both of them.
    DisarmHolder(Peer),
}

/// How far a takeover is before its release.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Offered,
    Sending(Transfer),
    WarmingUp,
    /// The application has been told `Release`.
    Releasing,
    /// It has let go, and its state is on the way.
    SendingState,
}

/// The successor of the moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Heir {
    peer: Peer,
    nonce: u64,
    who: Who,
    /// Whether it takes the application's state.
    takes_state: bool,
    /// Whether it can go on with a hold.
    takes_hold: bool,
    progress: String,
    /// For how long this process stands by after the commit, if the heir says that it is on probation.
    probation: Option<Duration>,
    /// It is the predecessor, which takes the service back, and this is why.
    back: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Owns, and the application is not ready yet.
    Starting,
    Serving,
    /// A successor is at it; this process holds byte 0.
    HandingOver(Heir, Step),
    /// Byte 0 is free for the heir.
    Released(Heir),
    /// The heir did not say `Owning` in time, and the lock is not to be had: it lives, or somebody does.
    Silent(Heir),
    /// The heir owns, on probation.
    StandingBy(Standing),
    /// The heir owns. `confirmed`: byte 1 is given back.
    Leaving {
        heir: Heir,
        confirmed: bool,
        finish: Option<(bool, u64)>,
    },
    Stopping,
    Gone,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Predecessor {
    generation: u64,
    entries: u32,
    exclusive: bool,
    deadlines: Deadlines,
    identity: Who,
    backlog: u32,
    path_inode: Option<(u64, u64)>,
    window: u32,
    state: Option<StateKind>,
    /// Takeovers are refused. How long it lasts is for the driver to know.
    hold: Option<Hold>,
    stage: Stage,
    rehearsal: Option<Rehearsal>,
    /// This process lives on after it has left.
    stays: bool,
    /// It owns in the place of a service that is down, and only keeps what that had.
    keeps: bool,
    /// This process is on probation, and its predecessor stands by.
    probation: Option<Probation>,
    /// A takeover that comes during a probation confirms it.
    confirms: bool,
    /// Who wants this process to stand by after the next takeover, and for how long.
    wish: Option<(Peer, Duration)>,
    /// The successor that has given the service back: what it still says changes nothing.
    giver: Option<(Peer, Who)>,
    holders: Holders,
    /// A stop was asked for while a takeover was past `Ready`.
    stopping: bool,
    /// The application was told `Release` and has not answered; the takeover it was for may be over.
    owed: bool,
    /// With byte 1, where byte 0 is free and this process not the owner any more.
    patience: Patience,
}

impl Predecessor {
    /// The machine of a process that has just become the owner of `generation`.
    pub(crate) fn new(
        generation: u64,
        entries: u32,
        exclusive: bool,
        deadlines: Deadlines,
        identity: Who,
        backlog: u32,
    ) -> Predecessor {
        Predecessor {
            generation,
            entries,
            exclusive,
            deadlines,
            identity,
            backlog,
            path_inode: None,
            window: 0,
            state: None,
            hold: None,
            stage: Stage::Starting,
            rehearsal: None,
            stays: false,
            keeps: false,
            probation: None,
            confirms: false,
            wish: None,
            giver: None,
            holders: Holders::default(),
            stopping: false,
            owed: false,
            patience: Patience::Rested,
        }
    }

    /// The generation that this process owns, or owned last.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// How many entries the next offer has.
    pub(crate) fn set_entries(&mut self, entries: u32) {
        self.entries = entries;
    }

    /// What the next offer says of the control path.
    pub(crate) fn set_path_inode(&mut self, inode: Option<(u64, u64)>) {
        self.path_inode = inode;
    }

    /// How many descriptors may be under way at once, as far as the limits of the protocol allow.
    pub(crate) fn set_window(&mut self, descriptors: u32) {
        self.window = descriptors;
    }

    /// Says that the end of this owner is not that of its process.
    pub(crate) fn set_stays(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Says that this owner is a holder, which answers because nobody serves.
    pub(crate) fn set_keeps(&mut self, keeps: bool) {
        self.keeps = keeps;
    }

    /// What the application's state is written in, where it has one.
    pub(crate) fn set_state(&mut self, kind: Option<StateKind>) {
        self.state = kind;
    }

    /// Whether a stop was asked for.
    pub(crate) fn is_to_stop(&self) -> bool {
        self.stopping || matches!(self.stage, Stage::Stopping | Stage::Gone)
    }

    /// Whether this process holds the owner lock.
    pub(crate) fn owns(&self) -> bool {
        matches!(self.stage, Stage::Starting | Stage::Serving | Stage::HandingOver(..) | Stage::Stopping)
    }

    /// Whether this peer is the successor of a takeover that is past its release: its death still matters.
    pub(crate) fn is_leaving_to(&self, peer: Peer) -> bool {
        self.is_heir(peer) && !matches!(self.stage, Stage::HandingOver(..))
    }

    /// The phase for a status.
    pub(crate) fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Starting => Phase::Starting,
            Stage::Serving => Phase::Serving,
            Stage::HandingOver(..) | Stage::Released(_) | Stage::Silent(_) => Phase::HandingOver,
            Stage::StandingBy(_) => Phase::StandingBy,
            Stage::Leaving { .. } => Phase::Draining,
            Stage::Stopping | Stage::Gone => Phase::Stopping,
        }
    }

    /// Who takes over at the moment, how far that is, and what was last said of the warm-up.
    pub(crate) fn takeover(&self) -> Option<(&Who, &'static str, &str)> {
        let (heir, step) = match &self.stage {
            Stage::HandingOver(heir, step) => (
                heir,
                match step {
                    Step::Offered => "offered",
                    Step::Sending(_) => "sending",
                    Step::WarmingUp => "warming-up",
                    Step::Releasing | Step::SendingState => "releasing",
                },
            ),
            Stage::Released(heir) => (heir, "released"),
            Stage::Silent(heir) => (heir, "silent"),
            _ => return None,
        };
        Some((&heir.who, step, &heir.progress))
    }

    /// Takes one input; appends what is to be done, in order.
    pub(crate) fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        let before = out.len();
        self.act(input, out);
        // Who is hung up on is told nothing more, whatever he waited for.
        for output in out.iter().skip(before) {
            if let Output::Refuse(peer, _) | Output::Close(peer) = output {
                self.forget_refused(*peer);
            }
        }
    }

    fn act(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Ready => {
                if self.stage == Stage::Starting {
                    self.serve(out);
                    self.probation_begins(out);
                }
            }
            Input::Message(peer, message) => self.message(peer, message, out),
            Input::Fault(peer, what) => self.fault(peer, what, out),
            Input::Unable(why) => self.abort(why, out),
            Input::CannotKeep(peer, why) => self.holders.end(&why, out, |session| session == peer),
            Input::Gone(peer) => self.gone(peer, out),
            Input::Died(peer) => {
                out.push(Output::Close(peer));
                self.gone(peer, out);
                self.elder_died(peer, out);
            }
            Input::Expired(timer) => self.expired(timer, out),
            Input::HolderExpired(peer) => self.holders.expired(peer, out),
            Input::Claimed(found) => self.claimed(found, out),
            Input::AppReleased => self.app_released(None, out),
            Input::AppReleasedWith(state) => self.app_released(Some(state), out),
            Input::AppKeeps(why) => {
                self.owed = false;
                if let Stage::HandingOver(_, Step::Releasing) = self.stage {
                    self.abort(Refusal::new("release", cut(why)), out);
                }
            }
            Input::AppResumed => {
                // Where another takeover is at its release already, that one is still to be answered.
                if !matches!(self.stage, Stage::HandingOver(_, Step::Releasing)) {
                    self.owed = false;
                }
            }
            Input::Stop => self.stop(out),
            Input::Confirm => self.confirm(out),
            Input::GiveBack(why) => {
                // The application hears of the end by its events, and of a beginning that is refused by nothing: it asks
                // before whether there is a probation.
                let _ = self.give_back(why, None, out);
            }
            Input::StateArrived(peer) => self.state_came_back(peer, out),
            Input::Held(hold) => self.hear_hold(hold, out),
            // Nobody is told: each of them counts for itself.
            Input::HoldOver => self.hold = None,
            Input::Changed => self.holders.changed(out),
            Input::InFlight { in_flight, left } => {
                if let Stage::Leaving { heir, .. } = &self.stage {
                    let left_ms = left.map(|left| left.as_millis() as u64);
                    out.push(Output::Send(heir.peer, Draining { in_flight, left_ms, ..Draining::default() }.into()));
                }
            }
            Input::Finish { forced, in_flight } => self.finish(forced, in_flight, out),
        }
    }

    fn message(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Unknown(_) => {}
            Message::Hello(hello) => self.hello(peer, hello, out),
            // A refusal closes, and the way back must not end with the answer to an order.
            Message::Ask(_) if self.is_elder(peer) => self.elder_says(peer, message, out),
            Message::Ask(ask) => match ask.question {
                Question::Status => out.push(Output::Tell { peer, watch: false }),
                Question::Watch => out.push(Output::Tell { peer, watch: true }),
                Question::History => out.push(Output::TellHistory(peer)),
                Question::Stop => {
                    out.push(Output::Send(peer, Done {}.into()));
                    self.stop(out);
                }
                Question::Confirm => self.asked_to_confirm(peer, out),
                Question::Rollback => self.asked_to_give_back(peer, ask.reason, out),
                Question::Probation => self.asked_to_stand_by(peer, ask.probation_ms, out),
                Question::ExtendDrain | Question::FinishDrain => self.asked_to_steer(peer, ask, out),
                // A refusal closes, and whoever was at something must not stay at it.
                Question::Hold | Question::Lift if self.is_at_it(peer) => {
                    self.fault(peer, format!("{} of a successor", ask.question), out);
                }
                Question::Hold => self.ask_hold(peer, Some(ask.hold.unwrap_or_default()), out),
                Question::Lift => self.ask_hold(peer, None, out),
                Question::Unknown if self.is_at_it(peer) => {
                    self.fault(peer, "a question that this version does not know".to_owned(), out);
                }
                Question::Unknown => {
                    self.decline(peer, Refusal::new("unsupported", "this version cannot do that"), out);
                }
            },
            message if self.is_rehearsal(peer) => self.rehearse(peer, message, out),
            message if self.is_standing_by_for(peer) => self.heir_on_probation(peer, message, out),
            message if self.is_heir(peer) => self.takeover_message(peer, message, out),
            message if self.is_elder(peer) => self.elder_says(peer, message, out),
            _ if self.is_giver(peer) => {}
            message if self.is_holder(peer) => {
                if let Err(what) = self.holders.message(peer, message, self.window, self.deadlines.handshake, out) {
                    self.fault(peer, what, out);
                }
            }
            message => self.fault(peer, format!("{} out of order", message.word()), out),
        }
    }

    /// Something is wanted of those who drain. What comes of it is for the driver, who has their links.
    fn asked_to_steer(&mut self, peer: Peer, ask: Ask, out: &mut Vec<Output>) {
        // A refusal closes, and whoever was at something must not stay at it.
        if self.is_at_it(peer) {
            return self.fault(peer, format!("the question {} out of order", ask.question), out);
        }
        out.push(if self.owns() { Output::Steer(peer, ask) } else { Output::Refuse(peer, no_longer_owner()) });
    }

    /// A takeover, a rehearsal or everything to keep is asked for.
    fn hello(&mut self, peer: Peer, hello: Hello, out: &mut Vec<Output>) {
        if self.is_at_it(peer) || self.is_elder(peer) {
            return self.fault(peer, "a second hello".to_owned(), out);
        }
        if let Err(refusal) = self.admit(&hello) {
            return out.push(Output::Refuse(peer, refusal));
        }
        let (rehearsal, holder) = (hello.wants == Wants::Rehearsal, hello.wants == Wants::Hold);
        let takes_hold = hello.hold;
        if hello.wants == Wants::Takeover && self.probation.is_some() {
            // Admitted all the same: that is what the application wants.
            self.confirm(out);
        }
        let wish = self.wish.map(|(_, span)| span).or(hello.probation_ms.map(Duration::from_millis));
        let probation =
            wish.filter(|span| !rehearsal && !holder && !span.is_zero()).map(|span| span.min(MAX_PROBATION));
        let family = if rehearsal { 0 } else { FAMILY_SLOTS };
        let offer = Offer {
            version: hello.max_version.min(VERSIONS.1),
            generation: self.generation,
            entries: self.entries,
            descriptors: family + self.entries,
            pid: self.identity.pid,
            app_version: self.identity.app_version.clone(),
            release_ms: self.deadlines.release.as_millis() as u64,
            commit_ms: self.deadlines.commit.as_millis() as u64,
            stall_ms: self.deadlines.stall.as_millis() as u64,
            warm_up_ms: self.deadlines.warm_up.as_millis() as u64,
            backlog: Some(self.backlog),
            path_inode: self.path_inode,
            state: self.state.clone().filter(|_| !holder),
            window: Some(Transfer::window(self.window)),
            probation_ms: probation.map(|span| span.as_millis() as u64),
            hold: true,
        };
        if rehearsal {
            self.rehearsal = Some(Rehearsal { peer, entries: self.entries, transfer: None });
            out.push(Output::Arm(Timer::Rehearsal, self.deadlines.rehearsal));
        } else if holder {
            self.holders.open(peer, hello, offer.descriptors, out);
            out.push(Output::ArmHolder(peer, self.deadlines.handshake));
            out.push(Output::ArmHolding(peer, DELIVERY));
        } else {
            // A real takeover never waits for a rehearsal, nor for a holder.
            self.end_rehearsal(Refusal::new("preempted", "a real takeover came"), out);
            let later = Refusal { retry_after_ms: Some(1000), ..Refusal::new("preempted", "a real takeover came") };
            self.holders.end_unfinished(&later, out);
            let who = Who { pid: hello.pid, app_version: cut(hello.app_version) };
            let takes_state = hello.state;
            let progress = String::new();
            let heir = Heir { peer, nonce: hello.nonce, who, takes_state, takes_hold, progress, probation, back: None };
            // The nonce goes into the file with the offer, not just before the unlock: a stale successor that wakes
            // after this process has died must lose against the one that has the newer listeners.
            out.push(Output::JoinTakeover);
            out.push(Output::Record { generation: self.generation, nonce: heir.nonce });
            out.push(Output::Arm(Timer::Handshake, self.deadlines.handshake));
            // Beside the deadline of each word: who says a little just before each must not keep the others waiting.
            out.push(Output::Arm(Timer::Delivery, DELIVERY));
            self.stage = Stage::HandingOver(heir, Step::Offered);
        }
        out.push(Output::Send(peer, offer.into()));
        if let Some(hold) = self.hold.clone().filter(|_| takes_hold && !rehearsal) {
            // Should this process die, the other one goes on with it. A start meets one that is suspended.
            out.push(Output::Send(peer, Held { hold: Some(hold) }.into()));
        }
        out.push(Output::SendManifest(peer));
    }

    /// Whether a `Hello` may be answered with an offer.
    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.max_version < VERSIONS.0 || hello.min_version > VERSIONS.1 {
            let (min, max) = VERSIONS;
            return Err(Refusal::new(
                "version",
                format!(
                    "this owner speaks versions {min} to {max}, the successor {} to {}",
                    hello.min_version, hello.max_version
                ),
            ));
        }
        if hello.wants == Wants::Unknown {
            return Err(Refusal::new("unsupported", "this version does not know what the successor wants"));
        }
        let later = |code, message: &str, ms| Err(Refusal { retry_after_ms: Some(ms), ..Refusal::new(code, message) });
        match &self.stage {
            Stage::Starting => later("starting", "the owner is not ready yet", 200),
            _ if self.stopping => later("stopping", "the owner is about to stop", 500),
            Stage::Stopping | Stage::Gone => later("stopping", "the owner is about to stop", 500),
            Stage::Leaving { .. } | Stage::StandingBy(_) => Err(no_longer_owner()),
            Stage::HandingOver(heir, _) | Stage::Released(heir) | Stage::Silent(heir) => Err(Refusal {
                who: Some(heir.who.clone()),
                retry_after_ms: Some(1000),
                ..Refusal::new("busy", "another successor is at it")
            }),
            Stage::Serving if hello.wants == Wants::Hold => self.holders.admit(hello.nonce),
            Stage::Serving if hello.wants == Wants::Takeover && self.bars_takeovers() => Err(self.held()),
            Stage::Serving if self.owed => {
                later("releasing", "the application has not yet answered an earlier release", 1000)
            }
            Stage::Serving if hello.wants == Wants::Rehearsal && self.rehearsal.is_some() => {
                later("busy", "another rehearsal is at it", 1000)
            }
            Stage::Serving if hello.wants == Wants::Takeover && !self.confirms => self.admit_on_probation(),
            Stage::Serving => Ok(()),
        }
    }

    fn takeover_message(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        match (&mut self.stage, message) {
            (Stage::HandingOver(_, step @ Step::Offered), Message::Room(room)) => {
                let total = FAMILY_SLOTS + self.entries;
                if room.descriptors < total {
                    let why = Refusal::new("no-room", "the successor has too little room for descriptors");
                    return self.abort(why, out);
                }
                let mut transfer = Transfer::of(total, self.window);
                pump(peer, &mut transfer, out);
                *step = Step::Sending(transfer);
                out.push(Output::Arm(Timer::Handshake, self.deadlines.handshake));
            }
            (Stage::HandingOver(heir, Step::SendingState), Message::Ack(ack))
                // On the way back nothing but the state has gone before.
                if ack.descriptors == if heir.back.is_some() { 1 } else { FAMILY_SLOTS + self.entries + 1 } =>
            {
                self.release(out);
            }
            (Stage::HandingOver(_, step), Message::Ack(ack)) => {
                let Step::Sending(transfer) = step else {
                    return self.fault(peer, "ack out of order".to_owned(), out);
                };
                if !transfer.acknowledge(ack.descriptors) {
                    return self.fault(peer, "ack of something that was not sent".to_owned(), out);
                }
                if !transfer.is_done() {
                    pump(peer, transfer, out);
                    out.push(Output::Arm(Timer::Handshake, self.deadlines.handshake));
                } else {
                    *step = Step::WarmingUp;
                    out.push(Output::Disarm(Timer::Handshake));
                    out.push(Output::Disarm(Timer::Delivery));
                    out.push(Output::Arm(Timer::Stall, self.deadlines.stall));
                    out.push(Output::Arm(Timer::WarmUp, self.deadlines.warm_up));
                }
            }
            (Stage::HandingOver(heir, Step::WarmingUp), Message::Progress(progress)) => {
                heir.progress = cut(progress.text);
                out.push(Output::Arm(Timer::Stall, self.deadlines.stall));
            }
            (Stage::HandingOver(_, step @ Step::WarmingUp), Message::Ready(_)) => {
                *step = Step::Releasing;
                out.push(Output::Disarm(Timer::Stall));
                out.push(Output::Disarm(Timer::WarmUp));
                if self.exclusive {
                    self.owed = true;
                    out.push(Output::Arm(Timer::Release, self.deadlines.release));
                    out.push(Output::Tells(Notice::Release));
                } else {
                    self.release(out);
                }
            }
            (Stage::HandingOver(heir, _), Message::Abort(Abort(why))) => {
                if heir.back.is_some() {
                    return self.elder_leaves(why, out);
                }
                self.back_out(out);
                out.push(Output::Close(peer));
            }
            // It has the descriptors and gives up between the unlock and its lock: nobody holds byte 0 now.
            (Stage::Released(heir) | Stage::Silent(heir), Message::Abort(_)) => {
                if heir.back.is_some() {
                    self.elder_is_lost();
                }
                out.push(Output::Claim(Claim::Shared));
            }
            (Stage::Released(heir) | Stage::Silent(heir), Message::Owning(owning))
                if heir.probation.is_some() && owning.probation_ms.is_some() =>
            {
                let heir = heir.clone();
                self.stand_by(heir, out);
            }
            (Stage::Released(heir) | Stage::Silent(heir), Message::Owning(_)) => {
                let reason = if heir.back.is_some() { Reason::RolledBack } else { Reason::Successor };
                self.stage = Stage::Leaving { heir: heir.clone(), confirmed: false, finish: None };
                // A stop that was asked for in between has had its way.
                self.stopping = false;
                self.somebody_owns(out);
                out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
                self.end_holders(Refusal::new("draining", "a successor owns: ask that one"), out);
                out.push(Output::Tells(Notice::Leave(reason)));
                self.given_back(out);
            }
            (Stage::Leaving { confirmed: false, .. }, Message::Confirmed(_)) => self.confirmed(out),
            // It is kept for the case that this process owns again.
            (Stage::Leaving { .. }, Message::Held(held)) => self.hear_hold(held.hold, out),
            // It has crossed the word with which this process has stood down.
            (
                Stage::Leaving { confirmed: true, .. },
                Message::Confirmed(_) | Message::TakeBack(_) | Message::State(_) | Message::Abort(_),
            ) => {}
            (_, message) => self.fault(peer, format!("{} out of order", message.word()), out),
        }
    }

    /// The application has let go of what must not run twice.
    fn app_released(&mut self, state: Option<State>, out: &mut Vec<Output>) {
        // An answer to a release that was called off is taken note of and changes nothing.
        self.owed = false;
        let Stage::HandingOver(heir, step @ Step::Releasing) = &mut self.stage else { return };
        match state.filter(|_| heir.takes_state) {
            // The lock is given back once the state has arrived: whoever owns after that has it, whatever dies.
            Some(state) => {
                *step = Step::SendingState;
                out.push(Output::SendState(heir.peer, state));
            }
            None => self.release(out),
        }
    }

    /// Lets go of the owner lock. From here on the kernel says who owns.
    fn release(&mut self, out: &mut Vec<Output>) {
        let Stage::HandingOver(heir, _) = &self.stage else { return };
        let heir = heir.clone();
        out.push(Output::Disarm(Timer::Release));
        // Before the unlock: nobody but the next owner may accept on the control socket.
        out.push(Output::StopControl);
        out.push(Output::Record { generation: self.generation, nonce: heir.nonce });
        out.push(Output::Unlock);
        let nonce = heir.nonce;
        let word: Message = match &heir.back {
            Some(reason) => TakeBack { nonce, reason: reason.clone(), lost: Vec::new() }.into(),
            None => Released { nonce }.into(),
        };
        out.push(Output::Send(heir.peer, word));
        out.push(Output::Arm(Timer::Commit, self.deadlines.commit));
        self.stage = Stage::Released(heir);
    }

    fn confirmed(&mut self, out: &mut Vec<Output>) {
        if let Stage::Leaving { confirmed, finish, .. } = &mut self.stage {
            *confirmed = true;
            out.push(Output::LeaveTakeover);
            if finish.is_some() {
                out.push(Output::Claim(Claim::Exclusive));
            }
        }
    }

    fn gone(&mut self, peer: Peer, out: &mut Vec<Output>) {
        if self.is_rehearsal(peer) {
            self.rehearsal = None;
            out.push(Output::Disarm(Timer::Rehearsal));
        }
        self.forget_asker(peer);
        self.elder_hangs_up(peer);
        self.holders.gone(peer, out);
        if !self.is_heir(peer) {
            return;
        }
        match &mut self.stage {
            Stage::HandingOver(heir, _) if heir.back.is_some() => {
                self.return_failed(Refusal::new("link-lost", "the connection to the predecessor broke"), out);
            }
            Stage::HandingOver(..) => self.back_out(out),
            Stage::StandingBy(standing) => {
                standing.linked = false;
                self.claim(out);
            }
            Stage::Released(_) | Stage::Silent(_) | Stage::Leaving { .. } => self.claim(out),
            _ => {}
        }
    }

    fn expired(&mut self, timer: Timer, out: &mut Vec<Output>) {
        match (timer, &mut self.stage) {
            (Timer::Rehearsal, _) => {
                self.end_rehearsal(Refusal::new("deadline", "a rehearsal takes five seconds at most"), out);
            }
            (Timer::Handshake, Stage::HandingOver(_, Step::Offered | Step::Sending(_))) => {
                self.abort(Refusal::new("deadline", "the successor did not answer in time"), out);
            }
            (Timer::Delivery, Stage::HandingOver(_, Step::Offered | Step::Sending(_))) => {
                self.abort(Refusal::new("deadline", "the successor took too long to receive everything"), out);
            }
            (Timer::Stall, Stage::HandingOver(_, Step::WarmingUp)) => {
                self.abort(Refusal::new("deadline", "no progress of the warm-up"), out);
            }
            (Timer::WarmUp, Stage::HandingOver(_, Step::WarmingUp)) => {
                self.abort(Refusal::new("deadline", "the warm-up took too long"), out);
            }
            (Timer::Release, Stage::HandingOver(_, Step::Releasing)) => {
                self.abort(Refusal::new("release", "the old application did not let go in time"), out);
            }
            (Timer::Release, Stage::HandingOver(_, Step::SendingState)) => {
                self.abort(Refusal::new("deadline", "the successor did not take the state in time"), out);
            }
            (Timer::Commit, Stage::Released(_) | Stage::Silent(_) | Stage::Leaving { .. }) => {
                self.patience.run_out();
                self.claim(out);
            }
            (Timer::Probe, Stage::StandingBy(_)) => {
                out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
                self.claim(out);
            }
            (Timer::Probation, _) => self.probation_passed(out),
            (Timer::Probe, Stage::Silent(_)) => self.claim(out),
            (Timer::Probe, Stage::Leaving { .. }) => {
                out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
                self.claim(out);
            }
            // A timer that was on its way when its state ended.
            _ => {}
        }
    }

    /// The kernel has said whether the lock was to be had.
    fn claimed(&mut self, found: Found, out: &mut Vec<Output>) {
        self.wait_on(found, out);
        let patience = self.patience;
        match (&mut self.stage, found) {
            (Stage::StandingBy(_), _) => self.stood_by(found, out),
            (Stage::Released(heir), Found::Free(found)) | (Stage::Silent(heir), Found::Free(found))
                if heir.back.is_some() =>
            {
                self.not_taken_back(found, out);
            }
            (Stage::Released(heir), Found::Free(found)) | (Stage::Silent(heir), Found::Free(found)) => {
                let peer = heir.peer;
                let why = Refusal::new("commit", "the successor did not take the lock in time");
                out.push(Output::Send(peer, Abort(why).into()));
                out.push(Output::Close(peer));
                self.resume(found, self.exclusive, true, out);
            }
            (Stage::Released(heir), _) => {
                // It lives and owns, or is about to: accept streams, do nothing exclusive, look again each second.
                self.stage = Stage::Silent(heir.clone());
                out.push(Output::Arm(Timer::Probe, self.deadlines.probe));
            }
            (Stage::Silent(_), _) => out.push(Output::Arm(Timer::Probe, self.deadlines.probe)),
            (Stage::Leaving { confirmed, .. }, Found::Free(found)) => {
                let joined = !*confirmed;
                self.resume(found, true, joined, out);
            }
            // The link broke after `Owning`, and the heir still holds the lock: it lives, and without a probation
            // nothing but this word was missing.
            (Stage::Leaving { confirmed: false, .. }, _) => self.confirmed(out),
            (Stage::Leaving { finish, heir, .. }, Found::Held | Found::Unknown)
                if found == Found::Held || patience == Patience::Gone =>
            {
                let Some((forced, in_flight)) = *finish else { return };
                let peer = heir.peer;
                out.push(Output::Send(peer, Bye { forced, in_flight, stays: self.stays }.into()));
                out.push(Output::Close(peer));
                out.push(Output::Disarm(Timer::Probe));
                self.stage = Stage::Gone;
                out.push(Output::Tells(Notice::Exit));
            }
            _ => {}
        }
    }

    /// Patience with byte 1 lasts as long as a commit may take, and begins anew each time that somebody owns.
    fn wait_on(&mut self, found: Found, out: &mut Vec<Output>) {
        if matches!(found, Found::Barred | Found::Unknown) {
            if self.patience.try_it() {
                out.push(Output::Arm(Timer::Commit, self.deadlines.commit));
            }
        } else if self.patience.rest() {
            out.push(Output::Disarm(Timer::Commit));
        }
    }

    /// Patience begins anew with the next look, and its deadline with it, which until then may be that of the commit.
    fn somebody_owns(&mut self, out: &mut Vec<Output>) {
        self.patience = Patience::Rested;
        out.push(Output::Disarm(Timer::Commit));
    }

    /// Asks the kernel for the owner lock, by the locks that this process has a right to.
    fn claim(&self, out: &mut Vec<Output>) {
        let claim = match &self.stage {
            Stage::StandingBy(standing) => Claim::StandBy(standing.heir.nonce),
            _ if self.patience == Patience::Gone => Claim::Bare,
            Stage::Leaving { confirmed: true, .. } => Claim::Exclusive,
            _ => Claim::Shared,
        };
        out.push(Output::Claim(claim));
    }

    fn stop(&mut self, out: &mut Vec<Output>) {
        match &self.stage {
            Stage::Starting => {
                self.stage = Stage::Gone;
                out.push(Output::Tells(Notice::Cancelled));
            }
            Stage::Serving => {
                // Whoever stands by is told, and takes over in good order.
                self.stopping = true;
                if self.give_back("the owner was asked to stop".to_owned(), None, out).is_err() {
                    self.serve(out);
                }
            }
            Stage::StandingBy(_) => self.step_down(out),
            // What leaves stays gone, even where its successor dies.
            Stage::HandingOver(_, Step::Releasing | Step::SendingState)
            | Stage::Released(_)
            | Stage::Silent(_)
            | Stage::Leaving { .. } => self.stopping = true,
            Stage::HandingOver(..) => {
                self.stopping = true;
                self.abort(Refusal::new("stopping", "the owner was asked to stop"), out);
            }
            Stage::Stopping | Stage::Gone => {}
        }
    }

    fn enter_stopping(&mut self, out: &mut Vec<Output>) {
        self.end_rehearsal(Refusal::new("stopping", "the owner was asked to stop"), out);
        self.end_holders(Refusal::new("stopping", "the owner was asked to stop"), out);
        self.stage = Stage::Stopping;
        if self.probation.is_some() {
            // Whoever stands by gets the lock at the end of this process.
            out.push(Output::Disarm(Timer::Probation));
        }
        out.push(Output::Tells(Notice::Leave(Reason::Stopped)));
    }

    fn finish(&mut self, forced: bool, in_flight: u64, out: &mut Vec<Output>) {
        match &mut self.stage {
            Stage::Stopping => {
                self.stage = Stage::Gone;
                out.push(Output::Tells(Notice::Exit));
            }
            Stage::Leaving { confirmed, finish, .. } => {
                *finish = Some((forced, in_flight));
                // The last act before a listener is closed: is there still somebody who owns?
                if *confirmed {
                    self.claim(out);
                }
            }
            _ => {}
        }
    }

    /// Ends a takeover before its release, by this side's will.
    fn abort(&mut self, why: Refusal, out: &mut Vec<Output>) {
        if let Stage::HandingOver(heir, _) = &self.stage {
            if heir.back.is_some() {
                return self.return_failed(why, out);
            }
            out.push(Output::Send(heir.peer, Abort(why).into()));
            out.push(Output::Close(heir.peer));
            self.back_out(out);
        }
    }

    /// Everything is as it was before the offer.
    fn back_out(&mut self, out: &mut Vec<Output>) {
        let releasing = matches!(self.stage, Stage::HandingOver(_, Step::Releasing | Step::SendingState));
        let told = releasing && self.exclusive;
        for timer in [Timer::Handshake, Timer::Delivery, Timer::Stall, Timer::WarmUp, Timer::Release] {
            out.push(Output::Disarm(timer));
        }
        out.push(Output::Record { generation: self.generation, nonce: 0 });
        out.push(Output::LeaveTakeover);
        if told {
            out.push(Output::Tells(Notice::Resume));
        }
        self.serve(out);
    }

    /// Owns again, with the lock in hand.
    fn resume(&mut self, found: u64, told: bool, joined: bool, out: &mut Vec<Output>) {
        if found != self.generation {
            // Somebody owned in between: a change of owner, and the number never goes back.
            self.generation = found.saturating_add(1);
        }
        for timer in [Timer::Commit, Timer::Probe] {
            out.push(Output::Disarm(timer));
        }
        out.push(Output::Record { generation: self.generation, nonce: 0 });
        if joined {
            out.push(Output::LeaveTakeover);
        }
        out.push(Output::StartControl);
        if told {
            out.push(Output::Tells(Notice::Resume));
        }
        self.serve(out);
    }

    /// Serves, or stops where that was asked for in the meantime.
    fn serve(&mut self, out: &mut Vec<Output>) {
        self.stage = Stage::Serving;
        if std::mem::take(&mut self.stopping) {
            self.enter_stopping(out);
        } else {
            self.confirm_if_due(out);
        }
    }

    /// Says no. A refusal closes, and whoever was at something must not stay at it.
    fn decline(&mut self, peer: Peer, why: Refusal, out: &mut Vec<Output>) {
        if self.is_at_it(peer) || self.is_elder(peer) {
            self.fault(peer, format!("a question that is refused: {}", why.message), out);
        } else {
            out.push(Output::Refuse(peer, why));
        }
    }

    /// A peer broke the protocol: it is told so, and what it was at is over.
    fn fault(&mut self, peer: Peer, what: String, out: &mut Vec<Output>) {
        let why = Refusal::new("protocol", what);
        match &self.stage {
            Stage::HandingOver(heir, _) if heir.peer == peer && heir.back.is_none() => return self.abort(why, out),
            _ => {}
        }
        if self.is_heir(peer) || self.is_elder(peer) {
            out.push(Output::Close(peer));
            self.gone(peer, out);
        } else if self.is_rehearsal(peer) {
            self.end_rehearsal(why, out);
        } else if self.is_holder(peer) {
            self.holders.end(&why, out, |session| session == peer);
        } else {
            out.push(Output::Refuse(peer, why));
        }
    }

    /// Whether this peer is at something that has a beginning and an end.
    fn is_at_it(&self, peer: Peer) -> bool {
        self.is_heir(peer) || self.is_rehearsal(peer) || self.is_holder(peer)
    }

    /// Whether this peer is a successor whose takeover can still be called off.
    pub(crate) fn may_call_off(&self, peer: Peer) -> bool {
        matches!(&self.stage, Stage::HandingOver(heir, _) if heir.peer == peer)
    }

    /// Whether this peer is the successor of the moment.
    pub(crate) fn is_heir(&self, peer: Peer) -> bool {
        match &self.stage {
            Stage::HandingOver(heir, _) | Stage::Released(heir) | Stage::Silent(heir) | Stage::Leaving { heir, .. } => {
                heir.peer == peer
            }
            Stage::StandingBy(standing) => standing.heir.peer == peer,
            _ => false,
        }
    }
}

fn no_longer_owner() -> Refusal {
    Refusal { retry_after_ms: Some(100), ..Refusal::new("draining", "this process is no longer the owner") }
}

/// Sends as many descriptors as the window allows.
pub(super) fn pump(peer: Peer, transfer: &mut Transfer, out: &mut Vec<Output>) {
    while let Some((first, count)) = transfer.next() {
        out.push(Output::SendDescriptors { peer, first, count });
    }
}
