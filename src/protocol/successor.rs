//! The successor's side: asks, receives, warms up, says ready, and takes the owner lock.
//!
//! One machine for one attempt. Taking the lock is the commit; only the kernel's answer to [`Output::TakeLock`] makes
//! this process the owner, never a message and never the other side's silence.

use std::sync::Arc;
use std::time::Duration;

use super::message::{
    Abort, Ack, Confirmed, Hello, Message, Offer, Owning, Progress, Ready, Room, VERSIONS, Wants, cut,
};
use super::{DELIVERY, FAMILY_SLOTS, MAX_COMMIT, MAX_PROBATION, MAX_RELEASE, READER_GRACE, Timer};
use crate::error::{Refusal, Who};
use crate::manifest::{Entry, StateKind};

/// A longer manifest takes several frames, and memory that is not to be spent on what there is no room for.
const SHORT_MANIFEST: u32 = 4096;
/// How much text an entry may have on an average, in bytes, and how much more some of them: several times what names and
/// addresses come to.
const TEXT_OF_AN_ENTRY: u64 = 1024;
const MORE_TEXT: u64 = 64 * 1024;

/// How often in a row others may be found at it before byte 0 is tried without byte 1: longer than a commit of this owner
/// may take, and those after it announce the same, as a rule.
fn patient_looks(offer: &Offer, probe: Duration) -> u8 {
    let looks = Duration::from_millis(offer.commit_ms).as_millis() / probe.as_millis().max(1) + 1;
    u8::try_from(looks).unwrap_or(u8::MAX).max(3)
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// The predecessor said something. Descriptors come as [`Input::Arrived`].
    Message(Message),
    /// The predecessor broke the protocol.
    Fault(String),
    /// The room for descriptors was reserved, or not.
    Reserved(Result<(), Refusal>),
    /// This many more descriptors arrived, and each was what the manifest says.
    Arrived(u32),
    /// The descriptor of the state arrived, and is what it should be.
    StateArrived,
    /// Descriptors arrived that are not what the manifest says.
    Lied(Refusal),
    /// The connection ended, after everything in it was read.
    LinkLost,
    /// The predecessor is dead, as its pidfd says, and everything that it had sent was read.
    Died,
    /// A deadline passed.
    Expired(Timer),
    /// The answer to [`Output::TakeLock`].
    Lock(Lock),
    /// The application goes on warming up.
    Progress(String),
    /// The application is ready.
    Ready(Ready),
    /// The application does not want any more.
    Cancel(Refusal),
}

/// What came of an attempt at the owner lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lock {
    /// This process holds it, and the file holds this generation: the one that was offered, or a later one whose owner is
    /// gone and has left nobody behind.
    Taken { generation: u64 },
    /// Another process holds it.
    Busy,
    /// Another process holds it, and the file holds something else than was offered: this takeover is over.
    Foreign,
    /// Nobody holds it, and others are at it: one of them will, unless they are dead at the next look.
    Unsettled,
}

/// Why an attempt came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    /// Refused before anything was offered.
    Refused(Refusal),
    /// The predecessor called it off.
    GaveUp(Refusal),
    /// This side called it off.
    Withdrew(Refusal),
    /// The connection ended before anything was offered: start over.
    NotServed,
    /// The connection ended, and the predecessor lives.
    LinkLost,
    /// A deadline passed: what was waited for, and for how long.
    Deadline(&'static str, Duration),
    /// Somebody else became the owner.
    Superseded,
}

/// What the process learns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// All entries that will come have come; `whole` is false where the predecessor died too early.
    Received { whole: bool },
    /// Of what this process keeps: the owner has others by now.
    Changed,
    /// The link to the owner whose entries this process keeps is at its end, or the owner is dead.
    Ended(Option<Refusal>),
    /// This process is the owner now. `cold`: the application is not ready yet.
    Owner { cold: bool },
    /// The attempt is over. This process never owns by it.
    Failed(Failure),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    Send(Message),
    /// The entries, in the order in which their descriptors come.
    Keep(Vec<Arc<Entry>>),
    /// Make sure that so many descriptors can be received; answer with [`Input::Reserved`].
    Reserve(u32),
    /// Take byte 1 shared, through the description that came in the first batch.
    JoinTakeover,
    /// Give byte 1 back.
    LeaveTakeover,
    /// Compare the file with these, try byte 0; answer with [`Input::Lock`] before anything else. `bare`: whoever else is
    /// at it has had his time, so byte 0 alone decides.
    TakeLock {
        generation: u64,
        nonce: u64,
        bare: bool,
    },
    /// Write the new generation.
    Record {
        generation: u64,
    },
    /// Close the connection once everything is written.
    Close,
    Tells(Notice),
    Arm(Timer, Duration),
    Disarm(Timer),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// `Hello` is sent.
    Greeting,
    /// The offer is here; the manifest comes.
    Listing {
        offer: Offer,
        entries: u32,
        text: u64,
    },
    /// `Room` is sent; descriptors come.
    Receiving {
        offer: Offer,
        got: u32,
        acked: u32,
    },
    /// Everything is here; the application warms up.
    WarmingUp {
        offer: Offer,
    },
    /// `Ready` is sent.
    Waiting {
        offer: Offer,
    },
    /// `Released` is here, or the predecessor is gone; the lock was busy at the first try.
    Taking {
        offer: Offer,
    },
    /// Everything is here, to be kept beside the owner.
    Holding,
    /// This process owns. The link stays for `Draining` and `Bye`.
    Owner,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum StateSoFar {
    None,
    /// What it is; the descriptor is next.
    Announced,
    Arrived,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Successor {
    nonce: u64,
    wants: Wants,
    handshake: Duration,
    probe: Duration,
    stage: Stage,
    link: bool,
    died: bool,
    ready: bool,
    /// How much of the application's state has come.
    state: StateSoFar,
    /// Why this attempt is over, unless the last look at the lock says that nobody else owns.
    giving_up: Option<Failure>,
    /// How often in a row it has found others at it, and nobody that owned.
    looks: u8,
    /// The entries that come are not those of the owner any more.
    stale: bool,
    predecessor: Who,
    offered_state: Option<StateKind>,
    /// For how long the predecessor stands by after the commit, as it has offered.
    probation: Option<Duration>,
    /// Without a probation there is to be no takeover.
    demands_probation: bool,
    generation: u64,
}

impl Successor {
    /// A new attempt; its first message is in `out`.
    pub(crate) fn new(hello: Hello, handshake: Duration, probe: Duration, out: &mut Vec<Output>) -> Successor {
        let successor = Successor {
            nonce: hello.nonce,
            wants: hello.wants,
            handshake,
            probe,
            stage: Stage::Greeting,
            link: true,
            died: false,
            ready: false,
            state: StateSoFar::None,
            giving_up: None,
            looks: 0,
            stale: false,
            predecessor: Who::default(),
            offered_state: None,
            probation: None,
            demands_probation: false,
            generation: 0,
        };
        out.push(Output::Send(hello.into()));
        out.push(Output::Arm(Timer::Handshake, handshake));
        successor
    }

    /// The process that serves, as it told about itself in the offer.
    pub(crate) fn predecessor(&self) -> &Who {
        &self.predecessor
    }

    /// What the predecessor's state is written in, as it told in the offer.
    pub(crate) fn state_kind(&self) -> Option<&StateKind> {
        self.offered_state.as_ref()
    }

    /// Gives up where the predecessor offers no probation.
    pub(crate) fn demand_probation(&mut self) {
        self.demands_probation = true;
    }

    /// For how long the predecessor stands by: as offered, and since the commit as it is.
    pub(crate) fn probation(&self) -> Option<Duration> {
        self.probation
    }

    /// What names this takeover.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// The generation that this process has, or will have, as the owner.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the predecessor is known to be dead.
    pub(crate) fn predecessor_died(&self) -> bool {
        self.died
    }

    /// The version range and the rest of a `Hello` of this crate.
    pub(crate) fn hello(nonce: u64, who: Who, wants: Wants, network_namespace: Option<u64>) -> Hello {
        Hello {
            min_version: VERSIONS.0,
            max_version: VERSIONS.1,
            nonce,
            pid: who.pid,
            app_version: cut(who.app_version),
            wants,
            network_namespace,
            state: false,
            probation_ms: None,
            history: false,
            drain_links: false,
            hold: true,
            replaces: false,
        }
    }

    /// Takes one input; appends what is to be done, in order.
    pub(crate) fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        if self.stage == Stage::Over {
            return;
        }
        match input {
            Input::Message(message) => self.message(message, out),
            Input::Fault(what) => self.withdraw(Refusal::new("protocol", what), out),
            Input::Reserved(room) => self.reserved(room, out),
            Input::Arrived(count) => self.arrived(count, out),
            Input::StateArrived => self.state_arrived(out),
            Input::Lied(why) => self.withdraw(why, out),
            Input::LinkLost => self.link_lost(out),
            Input::Died => {
                self.died = true;
                self.link_lost(out);
            }
            Input::Expired(timer) => self.expired(timer, out),
            Input::Lock(lock) => self.locked(lock, out),
            Input::Progress(text) => {
                if matches!(self.stage, Stage::WarmingUp { .. }) && self.link {
                    out.push(Output::Send(Progress { text: cut(text) }.into()));
                }
            }
            Input::Ready(report) => self.ready(report, out),
            Input::Cancel(why) => self.withdraw(why, out),
        }
    }

    fn message(&mut self, message: Message, out: &mut Vec<Output>) {
        match (&mut self.stage, message) {
            // What the predecessor remembers, and whether takeovers are refused, is for the driver to keep.
            (_, Message::Unknown(_) | Message::History(_) | Message::Held(_)) => {}
            (Stage::Greeting, Message::Refused(why)) => self.fail(Failure::Refused(why), out),
            (Stage::Greeting, Message::Offer(offer)) => self.offered(offer, out),
            (Stage::Listing { offer, entries, text }, Message::Entries(list)) => {
                *entries += list.entries.len() as u32;
                *text += list.entries.iter().map(|entry| entry.text()).sum::<u64>();
                if *text > u64::from(offer.entries) * TEXT_OF_AN_ENTRY + MORE_TEXT {
                    return self.withdraw(Refusal::new("protocol", "more text than entries have"), out);
                }
                let (have, want) = (*entries, offer.entries);
                if have > want {
                    return self.withdraw(Refusal::new("protocol", "more entries than offered"), out);
                }
                out.push(Output::Keep(list.entries));
                out.push(Output::Arm(Timer::Handshake, self.handshake));
                if have == want {
                    self.reserve(out);
                }
            }
            // For another takeover: void.
            (_, Message::Released(released)) if released.nonce != self.nonce => {}
            // It comes after this side has given up waiting for it, and is still true: the lock is free now.
            (Stage::Taking { .. }, Message::Released(_)) => self.take(out),
            (Stage::Waiting { offer }, Message::Released(_)) => {
                let offer = offer.clone();
                out.push(Output::Disarm(Timer::Release));
                out.push(Output::Arm(Timer::Commit, Duration::from_millis(offer.commit_ms) + READER_GRACE));
                self.stage = Stage::Taking { offer };
                self.take(out);
            }
            // Its descriptor comes next, as an input of its own.
            (Stage::Waiting { .. } | Stage::Taking { .. }, Message::State(_)) if self.state == StateSoFar::None => {
                self.state = StateSoFar::Announced;
            }
            (Stage::Holding, Message::Changed(_)) => out.push(Output::Tells(Notice::Changed)),
            (Stage::Listing { .. } | Stage::Receiving { .. }, Message::Changed(_)) if self.wants == Wants::Hold => {
                self.stale = true;
            }
            (Stage::Holding, Message::Abort(Abort(why))) => self.end(Some(why), out),
            // What a drain tells is for the status, and the driver keeps it to itself.
            (Stage::Owner, _) => {}
            // What it sent before it died may be read long afterwards, by a process that was stopped meanwhile and has
            // the last copies now: the lock tells. A stop on purpose is none of that.
            (Stage::WarmingUp { .. } | Stage::Waiting { .. } | Stage::Taking { .. }, Message::Abort(Abort(why)))
                if self.wants == Wants::Takeover && why.code != "stopping" =>
            {
                self.give_up(Failure::GaveUp(why), out);
            }
            (_, Message::Abort(Abort(why))) => self.fail(Failure::GaveUp(why), out),
            (_, message) => {
                let what = format!("{} out of order", message.word());
                self.withdraw(Refusal::new("protocol", what), out);
            }
        }
    }

    fn offered(&mut self, mut offer: Offer, out: &mut Vec<Output>) {
        if offer.version < VERSIONS.0 || offer.version > VERSIONS.1 {
            return self.withdraw(Refusal::new("version", format!("version {} was chosen", offer.version)), out);
        }
        let family = if self.wants == Wants::Rehearsal { 0 } else { FAMILY_SLOTS };
        if offer.descriptors != offer.entries + family {
            return self.withdraw(Refusal::new("protocol", "the numbers of the offer disagree"), out);
        }
        // What an owner announces is waited for, but not for ever.
        offer.release_ms = offer.release_ms.min(MAX_RELEASE.as_millis() as u64);
        offer.commit_ms = offer.commit_ms.min(MAX_COMMIT.as_millis() as u64);
        self.probation = offer.probation_ms.map(Duration::from_millis).map(|span| span.min(MAX_PROBATION));
        if self.probation.is_none() && self.demands_probation {
            return self.withdraw(Refusal::new("no-probation", "the owner would not stand by"), out);
        }
        self.predecessor = Who { pid: offer.pid, app_version: cut(offer.app_version.clone()) };
        self.offered_state = offer.state.clone();
        self.generation = offer.generation + 1;
        out.push(Output::Arm(Timer::Handshake, self.handshake));
        out.push(Output::Arm(Timer::Delivery, DELIVERY + READER_GRACE));
        let announced = offer.entries;
        self.stage = Stage::Listing { offer, entries: 0, text: 0 };
        if announced == 0 || announced > SHORT_MANIFEST {
            self.reserve(out);
        }
    }

    /// The manifest is whole, or too long to be received for nothing.
    fn reserve(&self, out: &mut Vec<Output>) {
        if let Stage::Listing { offer, .. } = &self.stage {
            out.push(Output::Reserve(offer.descriptors));
        }
    }

    fn reserved(&mut self, room: Result<(), Refusal>, out: &mut Vec<Output>) {
        let Stage::Listing { offer, entries, .. } = &self.stage else { return };
        if let Err(why) = room {
            return self.withdraw(why, out);
        }
        if *entries < offer.entries {
            return;
        }
        let offer = offer.clone();
        out.push(Output::Send(Room { descriptors: offer.descriptors }.into()));
        out.push(Output::Arm(Timer::Handshake, self.handshake));
        let nothing = offer.descriptors == 0;
        self.stage = Stage::Receiving { offer, got: 0, acked: 0 };
        if nothing {
            self.received(out);
        }
    }

    fn arrived(&mut self, count: u32, out: &mut Vec<Output>) {
        let Stage::Receiving { offer, got, acked } = &mut self.stage else {
            return self.withdraw(Refusal::new("protocol", "descriptors out of order"), out);
        };
        let first = *got == 0;
        *got += count;
        let (got, total) = (*got, offer.descriptors);
        // Half a window early enough that the owner never waits, and no oftener: each one is read and answered.
        let due = got == total || got.saturating_sub(*acked) >= offer.window.unwrap_or_default() / 2;
        if due {
            *acked = got;
        }
        if got > total || (first && self.wants != Wants::Rehearsal && count < FAMILY_SLOTS) {
            return self.withdraw(Refusal::new("protocol", "descriptors in the wrong number"), out);
        }
        if first && self.wants == Wants::Takeover {
            out.push(Output::JoinTakeover);
        }
        if self.link && due {
            out.push(Output::Send(Ack { descriptors: got }.into()));
        }
        if got == total {
            self.received(out);
        } else {
            out.push(Output::Arm(Timer::Handshake, self.handshake));
        }
    }

    /// The predecessor gives the lock back once it knows that its state is here.
    fn state_arrived(&mut self, out: &mut Vec<Output>) {
        let (Stage::Waiting { offer } | Stage::Taking { offer }) = &self.stage else { return };
        if self.state != StateSoFar::Announced {
            return self.withdraw(Refusal::new("protocol", "descriptors out of order"), out);
        }
        self.state = StateSoFar::Arrived;
        if self.link {
            out.push(Output::Send(Ack { descriptors: offer.descriptors + 1 }.into()));
        }
    }

    fn received(&mut self, out: &mut Vec<Output>) {
        if let Stage::Receiving { offer, .. } = &self.stage {
            self.stage = match self.wants {
                Wants::Hold => Stage::Holding,
                _ => Stage::WarmingUp { offer: offer.clone() },
            };
            out.push(Output::Disarm(Timer::Handshake));
            out.push(Output::Disarm(Timer::Delivery));
            out.push(Output::Tells(Notice::Received { whole: true }));
            if self.stale {
                out.push(Output::Tells(Notice::Changed));
            }
        }
    }

    fn ready(&mut self, report: Ready, out: &mut Vec<Output>) {
        match &self.stage {
            Stage::WarmingUp { offer } => {
                let offer = offer.clone();
                self.ready = true;
                if self.link {
                    out.push(Output::Send(report.cut().into()));
                    out.push(Output::Arm(Timer::Release, Duration::from_millis(offer.release_ms) + READER_GRACE));
                    self.stage = Stage::Waiting { offer };
                } else {
                    // Nobody to ask: only the lock or the pidfd can tell now.
                    out.push(Output::Arm(Timer::Commit, Duration::from_millis(offer.commit_ms) + READER_GRACE));
                    self.stage = Stage::Taking { offer };
                    self.take(out);
                }
            }
            Stage::Taking { .. } => self.ready = true,
            Stage::Owner => {}
            _ => self.withdraw(Refusal::new("misuse", "ready before everything was received"), out),
        }
    }

    /// The end of the link is not the end of the predecessor: the lock and its pidfd decide.
    fn link_lost(&mut self, out: &mut Vec<Output>) {
        self.link = false;
        match &self.stage {
            Stage::Greeting | Stage::Listing { .. } => self.fail(Failure::NotServed, out),
            // Without the first batch there is neither lease nor lock to own by.
            Stage::Receiving { got: 0, .. } => self.fail(Failure::NotServed, out),
            Stage::Holding => self.end(None, out),
            _ if self.wants != Wants::Takeover => self.fail(Failure::LinkLost, out),
            Stage::Receiving { .. } | Stage::WarmingUp { .. } => {
                out.push(Output::Arm(Timer::Handshake, self.handshake));
                self.take(out);
            }
            Stage::Waiting { offer } => {
                let offer = offer.clone();
                out.push(Output::Disarm(Timer::Release));
                out.push(Output::Arm(Timer::Commit, Duration::from_millis(offer.commit_ms) + READER_GRACE));
                self.stage = Stage::Taking { offer };
                self.take(out);
            }
            Stage::Taking { .. } => self.take(out),
            Stage::Owner | Stage::Over => {}
        }
    }

    fn expired(&mut self, timer: Timer, out: &mut Vec<Output>) {
        match (timer, &self.stage) {
            (Timer::Handshake, Stage::Greeting) => {
                self.fail(Failure::Deadline("an answer of the owner", self.handshake), out);
            }
            (Timer::Handshake | Timer::Delivery, Stage::Listing { .. }) => {
                self.fail(Failure::Deadline("the manifest", self.allowed(timer)), out);
            }
            (Timer::Handshake | Timer::Delivery, Stage::Receiving { .. }) if self.link => {
                self.fail(Failure::Deadline("the descriptors", self.allowed(timer)), out);
            }
            // The link is lost and the predecessor lives. A process that was not yet ready may go on warming up: it is
            // told when it asks.
            (Timer::Handshake | Timer::Delivery, Stage::Receiving { .. }) => self.give_up(Failure::LinkLost, out),
            (Timer::Release, Stage::Waiting { .. }) => {
                // One look at the lock: it may have been freed for us, and the message lost with its sender stopped.
                let Stage::Waiting { offer } = std::mem::replace(&mut self.stage, Stage::Over) else { return };
                out.push(Output::Arm(Timer::Commit, Duration::from_millis(offer.commit_ms)));
                self.stage = Stage::Taking { offer };
                self.take(out);
            }
            (Timer::Commit, Stage::Taking { offer }) => {
                let waited = Duration::from_millis(offer.release_ms + offer.commit_ms) + READER_GRACE;
                let failure = if self.link { Failure::Deadline("the release", waited) } else { Failure::LinkLost };
                self.give_up(failure, out);
            }
            (Timer::Probe, Stage::Taking { .. } | Stage::WarmingUp { .. } | Stage::Receiving { .. }) => {
                self.looks += 1;
                self.take(out);
            }
            _ => {}
        }
    }

    /// How long what comes before the warm-up may take.
    fn allowed(&self, timer: Timer) -> Duration {
        if timer == Timer::Delivery { DELIVERY + READER_GRACE } else { self.handshake }
    }

    /// Asks the kernel.
    fn take(&mut self, out: &mut Vec<Output>) {
        self.take_lock(false, out);
    }

    fn take_lock(&mut self, bare: bool, out: &mut Vec<Output>) {
        let generation = self.generation.saturating_sub(1);
        out.push(Output::TakeLock { generation, nonce: self.nonce, bare });
    }

    fn locked(&mut self, lock: Lock, out: &mut Vec<Output>) {
        if lock != Lock::Unsettled {
            self.looks = 0;
        }
        match (lock, &self.stage) {
            (
                Lock::Taken { generation },
                Stage::Receiving { .. } | Stage::WarmingUp { .. } | Stage::Waiting { .. } | Stage::Taking { .. },
            ) => {
                let whole = !matches!(self.stage, Stage::Receiving { .. });
                // Else nobody is known to stand by.
                let released = self.link && !self.died && self.ready && self.giving_up.is_none();
                self.probation = self.probation.filter(|_| released && self.generation == generation + 1);
                self.generation = generation + 1;
                for timer in [Timer::Handshake, Timer::Delivery, Timer::Release, Timer::Commit, Timer::Probe] {
                    out.push(Output::Disarm(timer));
                }
                out.push(Output::Record { generation: self.generation });
                if self.link {
                    let probation_ms = self.probation.map(|span| span.as_millis() as u64);
                    out.push(Output::Send(Owning { generation: self.generation, probation_ms }.into()));
                }
                // On probation the owner's machine says the one and does the other, at its end.
                if self.probation.is_none() {
                    if self.link {
                        out.push(Output::Send(Confirmed {}.into()));
                    }
                    out.push(Output::LeaveTakeover);
                }
                self.stage = Stage::Owner;
                if !whole {
                    out.push(Output::Tells(Notice::Received { whole }));
                }
                out.push(Output::Tells(Notice::Owner { cold: !self.ready }));
            }
            (Lock::Busy, _) if self.giving_up.is_some() => {
                if let Some(failure) = self.giving_up.take() {
                    self.fail(failure, out);
                }
            }
            (Lock::Busy, Stage::Receiving { .. } | Stage::WarmingUp { .. } | Stage::Taking { .. }) => {
                out.push(Output::Arm(Timer::Probe, self.probe));
            }
            // One of them will own, unless they are dead or stopped; then what this process has may be the last copies.
            (
                Lock::Unsettled,
                Stage::Receiving { offer, .. } | Stage::WarmingUp { offer } | Stage::Taking { offer },
            ) => {
                if self.looks < patient_looks(offer, self.probe) {
                    out.push(Output::Arm(Timer::Probe, self.probe));
                } else {
                    self.looks = 0;
                    self.take_lock(true, out);
                }
            }
            (Lock::Foreign, Stage::Owner | Stage::Over) => {}
            (Lock::Foreign, _) => self.fail(Failure::Superseded, out),
            _ => {}
        }
    }

    /// Gives up, but for one more look at the lock: the predecessor may have died since the last one, and then this process
    /// has the last copies of what it received.
    fn give_up(&mut self, failure: Failure, out: &mut Vec<Output>) {
        self.giving_up = Some(failure);
        self.take(out);
    }

    /// Calls it off and says so.
    fn withdraw(&mut self, mut why: Refusal, out: &mut Vec<Output>) {
        if self.stage == Stage::Owner {
            return;
        }
        why.message = cut(why.message);
        if self.link {
            out.push(Output::Send(Abort(why.clone()).into()));
        }
        self.fail(Failure::Withdrew(why), out);
    }

    /// What this process keeps stays, whatever becomes of the link.
    fn end(&mut self, why: Option<Refusal>, out: &mut Vec<Output>) {
        self.link = false;
        out.push(Output::Close);
        out.push(Output::Tells(Notice::Ended(why)));
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Output>) {
        if self.stage == Stage::Holding {
            return self.end(None, out);
        }
        for timer in [Timer::Handshake, Timer::Delivery, Timer::Release, Timer::Commit, Timer::Probe] {
            out.push(Output::Disarm(timer));
        }
        out.push(Output::LeaveTakeover);
        out.push(Output::Close);
        self.stage = Stage::Over;
        out.push(Output::Tells(Notice::Failed(failure)));
    }
}
