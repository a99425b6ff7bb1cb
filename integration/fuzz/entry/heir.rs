//! The successor's machine under any order of events: an owner that says anything, and a lock that others take.

use std::collections::BTreeSet;

use arbitrary::{Arbitrary, Unstructured};

use super::kernel::{Deed, Holder, Kernel};
use super::says::{Code, ENTRIES, NONCE, Says, entry};
use crate::error::{Refusal, Who};
use crate::protocol::message::{Entries, Message, Offer, Ready, Released, Wants};
use crate::protocol::successor::{Input, Notice, Output, Successor};
use crate::protocol::{Deadlines, FAMILY_SLOTS, Timer};

/// The most that one input may ask for: a commit, with all its timers taken back.
const MOST_OUTPUTS: usize = 16;

/// One thing that happens.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Event {
    /// What a well-behaved world does next.
    Usual,
    Says(Says),
    Fault,
    Reserved(bool),
    Arrived(u8),
    Lied,
    LinkLost,
    Died,
    /// A deadline that is armed passes.
    Expires(u8),
    /// A deadline that was on its way when it was taken back.
    Late(u8),
    Kernel(Deed),
    /// The owner unlocks for the takeover under test.
    Unlocked,
    Progress,
    Ready,
    Cancel(Code),
}

/// How far a well-behaved world is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Offer,
    Entries,
    Room,
    Descriptors,
    Ready,
    Released,
    Nothing,
}

/// The bytes are a list of events, in the encoding of `arbitrary`.
pub fn successor(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let (Ok(wants), Ok(probation)) = (u8::arbitrary(&mut bytes), bool::arbitrary(&mut bytes)) else { return };
    let wants = match wants {
        wants if wants & 1 != 0 => Wants::Rehearsal,
        wants if wants & 2 != 0 => Wants::Hold,
        _ => Wants::Takeover,
    };
    let mut walk = Walk::new(wants, probation);
    while !bytes.is_empty()
        && let Ok(event) = Event::arbitrary(&mut bytes)
    {
        walk.happen(event);
    }
}

struct Walk {
    machine: Successor,
    kernel: Kernel,
    rehearsal: bool,
    holder: bool,
    /// Whether a well-behaved owner grants one.
    probation: bool,
    joined: bool,
    step: Step,
    armed: BTreeSet<Timer>,
    /// Those that were taken back, and not armed again.
    late: BTreeSet<Timer>,
    /// What the offer promised, once it was accepted.
    promised: Option<u32>,
    /// Whether there is room for that, was asked and not answered.
    asked: bool,
    kept: u32,
    acked: u32,
    received: bool,
    ready: bool,
    owner: bool,
    closed: bool,
    failed: bool,
}

impl Walk {
    fn new(wants: Wants, probation: bool) -> Walk {
        let deadlines = Deadlines::default();
        let hello = Successor::hello(NONCE, Who::default(), wants, None);
        let mut out = Vec::new();
        let machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out);
        let mut walk = Walk {
            machine,
            kernel: Kernel::new(Holder::Another, 1, NONCE),
            rehearsal: wants == Wants::Rehearsal,
            holder: wants == Wants::Hold,
            probation,
            joined: false,
            step: Step::default(),
            armed: BTreeSet::new(),
            late: BTreeSet::new(),
            promised: None,
            asked: false,
            kept: 0,
            acked: 0,
            received: false,
            ready: false,
            owner: false,
            closed: false,
            failed: false,
        };
        out.into_iter().for_each(|output| walk.perform(output));
        walk
    }

    fn happen(&mut self, event: Event) {
        let input = match event {
            Event::Usual => self.usual(),
            // Descriptors come as such, and what a drain tells is not for the machine: the driver sees to both.
            Event::Says(says) => says.message().and_then(|message| match message {
                Message::Descriptors(count) => Some(Input::Arrived(u32::from(count))),
                Message::Draining(_) | Message::Bye(_) => None,
                message => Some(Input::Message(message)),
            }),
            Event::Fault => Some(Input::Fault("fault".to_owned())),
            Event::Reserved(room) => self.room(room),
            Event::Arrived(count) => Some(Input::Arrived(u32::from(count.clamp(1, 253)))),
            Event::Lied => Some(Input::Lied(Refusal::new("mismatch", ""))),
            Event::LinkLost => Some(Input::LinkLost),
            Event::Died => {
                self.kernel.suffer(Deed::LetGo);
                Some(Input::Died)
            }
            Event::Expires(which) => {
                let timer = self.armed.iter().nth(usize::from(which) % self.armed.len().max(1)).copied();
                timer.map(|timer| {
                    self.armed.remove(&timer);
                    Input::Expired(timer)
                })
            }
            Event::Late(which) => {
                let timer = self.late.iter().nth(usize::from(which) % self.late.len().max(1)).copied();
                timer.map(Input::Expired)
            }
            Event::Kernel(deed) => {
                // The lock of a living owner is taken by nobody, and this one gives it up only for good.
                if !matches!(deed, Deed::Own) || !self.owner {
                    self.kernel.suffer(deed);
                }
                None
            }
            Event::Unlocked => {
                self.kernel.suffer(Deed::LetGo);
                None
            }
            Event::Progress => Some(Input::Progress("on it".to_owned())),
            // Who rehearses or keeps is never asked whether he is ready.
            Event::Ready if self.rehearsal || self.holder => None,
            Event::Ready => {
                self.ready = true;
                Some(Input::Ready(Ready::default()))
            }
            Event::Cancel(code) => Some(Input::Cancel(code.refusal(None))),
        };
        let mut inputs: Vec<Input> = input.into_iter().collect();
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            let what = input.clone();
            self.machine.handle(input, &mut out);
            assert!(out.len() <= MOST_OUTPUTS, "{what:?} makes {} outputs", out.len());
            assert!(!self.failed || out.is_empty(), "{what:?} after the end: {out:?}");
            for output in out {
                match output {
                    Output::TakeLock { generation, nonce, bare } => {
                        assert!(!self.rehearsal && !self.holder, "a session that takes nothing");
                        assert_eq!(nonce, NONCE);
                        inputs.push(Input::Lock(self.kernel.commit(generation, nonce, bare)));
                    }
                    output => self.perform(output),
                }
            }
            if self.owner {
                let on_probation = self.machine.probation().is_some();
                assert_eq!(self.joined, on_probation, "{what:?}: byte 1 is kept for a probation, and for nothing else");
            }
            let over = self.owner || self.failed;
            assert!(!over || self.armed.is_empty(), "{what:?}: {:?} after the end", self.armed);
        }
    }

    /// Whether there is room: an answer, so it comes where that was asked.
    fn room(&mut self, there_is: bool) -> Option<Input> {
        let room = if there_is { Ok(()) } else { Err(Refusal::new("no-room", "")) };
        std::mem::take(&mut self.asked).then_some(Input::Reserved(room))
    }

    fn usual(&mut self) -> Option<Input> {
        let family = if self.rehearsal { 0 } else { FAMILY_SLOTS };
        let (input, next) = match self.step {
            Step::Offer => {
                let offer = Offer {
                    version: 1,
                    generation: 1,
                    entries: ENTRIES,
                    descriptors: ENTRIES + family,
                    probation_ms: self.probation.then_some(1000),
                    ..Offer::default()
                };
                (Input::Message(offer.into()), Step::Entries)
            }
            Step::Entries => {
                let entries = (0..ENTRIES as u8).map(|number| entry(number).into()).collect();
                (Input::Message(Entries { entries }.into()), Step::Room)
            }
            Step::Room => (self.room(true)?, Step::Descriptors),
            Step::Descriptors => (Input::Arrived(ENTRIES + family), Step::Ready),
            Step::Ready if self.rehearsal || self.holder => return None,
            Step::Ready => {
                self.ready = true;
                (Input::Ready(Ready::default()), Step::Released)
            }
            Step::Released => {
                self.kernel.suffer(Deed::LetGo);
                (Input::Message(Released { nonce: NONCE }.into()), Step::Nothing)
            }
            Step::Nothing => return None,
        };
        self.step = next;
        Some(input)
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send(message) => {
                assert!(!self.closed, "{} after the close", message.word());
                self.sent(&message);
            }
            Output::Close => self.closed = true,
            Output::Keep(entries) => self.kept += entries.len() as u32,
            Output::Reserve(count) => {
                let family = if self.rehearsal { 0 } else { FAMILY_SLOTS };
                // A long manifest is not received before there is room, and once it is whole there must be.
                assert!(self.promised.is_none_or(|before| before == count && self.kept > 0), "reserved twice");
                let whole = self.kept + family == count;
                assert!(whole || self.kept == 0, "the manifest is whole, and has as many as come");
                self.promised = Some(count);
                self.asked = true;
            }
            Output::JoinTakeover => {
                assert!(!self.rehearsal && !self.holder);
                self.joined = true;
            }
            Output::Record { generation } => {
                assert!(!self.owner && !self.failed);
                self.kernel.record(generation, 0);
            }
            Output::Arm(timer, _) => {
                self.late.remove(&timer);
                self.armed.insert(timer);
            }
            Output::Disarm(timer) => self.late.extend(self.armed.take(&timer)),
            Output::Tells(Notice::Received { .. }) => {
                assert!(!self.received && !self.failed);
                self.received = true;
            }
            Output::Tells(Notice::Owner { cold }) => {
                assert_eq!(self.kernel.holder, Holder::This, "owns without the lock");
                assert!(self.received && !self.owner && !self.failed);
                assert!(cold || self.ready, "served by an application that is not ready");
                self.owner = true;
            }
            Output::Tells(Notice::Changed | Notice::Ended(_)) => assert!(self.holder && self.received),
            Output::Tells(Notice::Failed(_)) => {
                assert!(!self.failed && !self.owner);
                assert!(!self.holder || !self.received, "what is kept is closed");
                self.failed = true;
            }
            Output::LeaveTakeover => {
                assert!(!self.owner || self.machine.probation().is_none(), "leaves its predecessor alone");
                self.joined = false;
            }
            Output::TakeLock { .. } => {}
        }
    }

    fn sent(&mut self, message: &Message) {
        match message {
            Message::Ack(ack) => {
                assert!(ack.descriptors > self.acked && Some(ack.descriptors) <= self.promised);
                self.acked = ack.descriptors;
            }
            Message::Room(room) => assert_eq!(Some(room.descriptors), self.promised),
            Message::Ready(_) => assert!(self.received && self.ready),
            Message::Owning(_) | Message::Confirmed(_) => assert_eq!(self.kernel.holder, Holder::This),
            _ => {}
        }
    }
}
