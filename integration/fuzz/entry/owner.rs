//! The owner's machine under any order of events: peers that say anything, timers that come late, a lock that others take.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};

use super::kernel::{Deed, Holder, Kernel};
use super::says::{ENTRIES, NONCE, Says};
use crate::error::Who;
use crate::hold::Hold;
use crate::manifest::StateKind;
use crate::protocol::message::Ack;
use crate::protocol::message::{Confirmed, Hello, Message, Owning, Ready, Room, State};
use crate::protocol::predecessor::{Input, Notice, Output, Peer, Predecessor, Takes};
use crate::protocol::{Deadlines, FAMILY_SLOTS, Timer};
use crate::status::Phase;

/// How many peers there are at once.
const PEERS: u64 = 4;
/// The most that one input may ask for. The longest answer is that to the last `Room`: a whole window of descriptors.
const MOST_OUTPUTS: usize = 16;

/// One thing that happens.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Event {
    /// What a well-behaved world does next: without it, a walk would hardly get past the first door.
    Usual,
    Says(u8, Says),
    Fault(u8),
    Gone(u8),
    Died(u8),
    /// A deadline that is armed passes.
    Expires(u8),
    /// A deadline that was on its way when it was taken back.
    Late(u8),
    Kernel(Deed),
    Ready,
    AppReleased,
    AppReleasedWith,
    AppResumed,
    Stop,
    Confirm,
    GiveBack,
    StateArrived(u8),
    InFlight(u8),
    Finish {
        forced: bool,
        in_flight: u8,
    },
    Held(bool),
    HoldOver,
}

/// The bytes are a list of events, in the encoding of `arbitrary`.
pub fn predecessor(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let Ok(exclusive) = bool::arbitrary(&mut bytes) else { return };
    let Ok(probation) = <Option<bool>>::arbitrary(&mut bytes) else { return };
    let mut walk = Walk::new(exclusive, probation);
    while !bytes.is_empty()
        && let Ok(event) = Event::arbitrary(&mut bytes)
    {
        walk.happen(event);
    }
}

/// A deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Named(Timer),
    Holder(Peer),
}

impl Due {
    fn passes(self) -> Input {
        match self {
            Due::Named(timer) => Input::Expired(timer),
            Due::Holder(peer) => Input::HolderExpired(peer),
        }
    }
}

struct Walk {
    machine: Predecessor,
    kernel: Kernel,
    exclusive: bool,
    joined: bool,
    armed: BTreeSet<Due>,
    /// Those that were taken back, and not armed again.
    late: BTreeSet<Due>,
    /// The connections of the moment: a number is never used again.
    peers: [Peer; PEERS as usize],
    next: Peer,
    /// Connections that the machine has closed.
    closed: BTreeSet<Peer>,
    generation: u64,
    /// The application was told to let go, or to leave.
    released: bool,
    stands_by: bool,
    left: bool,
    over: bool,
}

impl Walk {
    fn new(exclusive: bool, probation: Option<bool>) -> Walk {
        let mut machine = Predecessor::new(1, ENTRIES, exclusive, Deadlines::default(), Who::default(), 128);
        machine.set_state(Some(StateKind { schema: "count".to_owned(), version: 1 }));
        if let Some(confirms) = probation {
            // The first of the connections leads to the predecessor.
            machine.enter_probation(
                0,
                NONCE,
                Who::default(),
                Takes { state: confirms, hold: !confirms },
                Duration::from_secs(1),
            );
            machine.set_confirms(confirms);
        }
        Walk {
            machine,
            kernel: Kernel::new(Holder::This, 1, 0),
            exclusive,
            joined: probation.is_some(),
            armed: BTreeSet::new(),
            late: BTreeSet::new(),
            peers: std::array::from_fn(|peer| peer as Peer),
            next: PEERS,
            closed: BTreeSet::new(),
            generation: 1,
            released: false,
            stands_by: false,
            left: false,
            over: false,
        }
    }

    fn happen(&mut self, event: Event) {
        let input = match event {
            Event::Usual => Some(self.usual()),
            Event::Says(peer, says) => {
                let peer = self.speaker(peer);
                says.message().map(|message| Input::Message(peer, message))
            }
            Event::Fault(peer) => Some(Input::Fault(self.speaker(peer), "fault".to_owned())),
            Event::Gone(peer) => Some(Input::Gone(self.ends(peer))),
            Event::Died(peer) => Some(Input::Died(self.ends(peer))),
            Event::Expires(which) => {
                let timer = self.armed.iter().nth(usize::from(which) % self.armed.len().max(1)).copied();
                timer.map(|timer| {
                    self.armed.remove(&timer);
                    timer.passes()
                })
            }
            Event::Late(which) => {
                let timer = self.late.iter().nth(usize::from(which) % self.late.len().max(1)).copied();
                timer.map(Due::passes)
            }
            Event::Kernel(deed) => {
                self.kernel.suffer(deed);
                None
            }
            Event::Ready => Some(Input::Ready),
            Event::AppReleased => Some(Input::AppReleased),
            Event::AppReleasedWith => {
                Some(Input::AppReleasedWith(State { schema: "count".to_owned(), ..State::default() }))
            }
            Event::Confirm => Some(Input::Confirm),
            Event::GiveBack => Some(Input::GiveBack("because".to_owned())),
            Event::StateArrived(peer) => Some(Input::StateArrived(self.speaker(peer))),
            Event::AppResumed => Some(Input::AppResumed),
            Event::Stop => Some(Input::Stop),
            Event::Held(holds) => Some(Input::Held(holds.then(Hold::default))),
            Event::HoldOver => Some(Input::HoldOver),
            Event::InFlight(count) => Some(Input::InFlight {
                in_flight: count.into(),
                left: (count % 2 == 0).then_some(Duration::from_secs(1)),
            }),
            Event::Finish { forced, in_flight } => Some(Input::Finish { forced, in_flight: in_flight.into() }),
        };
        let mut inputs: Vec<Input> = input.into_iter().collect();
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            let what = input.clone();
            self.machine.handle(input, &mut out);
            assert!(out.len() <= MOST_OUTPUTS, "{what:?} makes {} outputs", out.len());
            for output in out {
                if let Output::Claim(claim) = output {
                    let found = self.kernel.reclaim(claim, self.machine.generation());
                    inputs.push(Input::Claimed(found));
                } else {
                    self.perform(output);
                }
            }
            self.check(&what);
        }
    }

    /// A connection that still is one: the driver reads none that the machine has closed.
    fn speaker(&mut self, peer: u8) -> Peer {
        let slot = usize::from(peer) % self.peers.len();
        if self.closed.contains(&self.peers[slot]) {
            self.peers[slot] = self.next;
            self.next += 1;
        }
        self.peers[slot]
    }

    /// A connection ends; in its place comes another. The end of one that is closed already may come as well.
    fn ends(&mut self, peer: u8) -> Peer {
        let slot = usize::from(peer) % self.peers.len();
        self.closed.insert(self.peers[slot]);
        self.peers[slot]
    }

    fn usual(&mut self) -> Input {
        let all = ENTRIES + FAMILY_SLOTS;
        let message: Message = match (self.machine.phase(), self.machine.takeover().map(|(_, step, _)| step)) {
            (Phase::Starting, _) => return Input::Ready,
            (_, Some("offered")) => Room { descriptors: all }.into(),
            (_, Some("sending")) => Ack { descriptors: all }.into(),
            (_, Some("warming-up")) => Ready::default().into(),
            (_, Some("releasing")) => return Input::AppReleased,
            (_, Some(_)) => {
                self.kernel.suffer(Deed::Own);
                Owning { generation: self.kernel.generation, probation_ms: Some(1) }.into()
            }
            (Phase::Draining | Phase::StandingBy, _) => Confirmed {}.into(),
            _ => {
                let probation_ms = Some(1000);
                Hello { min_version: 1, max_version: 1, nonce: NONCE, probation_ms, ..Hello::default() }.into()
            }
        };
        let heir = self.peers.iter().find(|peer| self.machine.is_heir(**peer)).copied();
        Input::Message(heir.unwrap_or_else(|| self.speaker(0)), message)
    }

    fn perform(&mut self, output: Output) {
        if let Some(peer) = addressee(&output) {
            // What is said to a closed connection is lost, so it must be nothing that counts.
            let last_words = matches!(
                output,
                Output::Close(_) | Output::Send(_, Message::Abort(_) | Message::Draining(_) | Message::Bye(_))
            );
            assert!(last_words || !self.closed.contains(&peer), "{output:?} to a connection that is closed");
        }
        match output {
            Output::Refuse(peer, _) | Output::Close(peer) => drop(self.closed.insert(peer)),
            // Whoever only keeps the entries is offered all of them at any time.
            Output::Send(peer, Message::Offer(offer))
                if offer.descriptors > offer.entries && !self.machine.is_holder(peer) =>
            {
                assert!(self.machine.hold().is_none(), "offers a takeover during a hold");
            }
            Output::Unlock => {
                assert!(self.joined, "unlocks where a third process may take the lock");
                self.kernel.unlock();
            }
            Output::Record { generation, nonce } => self.kernel.record(generation, nonce),
            Output::JoinTakeover => {
                // Who begins to stand by makes sure of it.
                assert!(!self.joined || self.machine.phase() == Phase::StandingBy);
                self.joined = true;
            }
            Output::EndProbation => {
                assert!(self.joined && self.kernel.holder == Holder::This, "ends a probation that is none");
                self.joined = false;
            }
            Output::LeaveTakeover => self.joined = false,
            Output::Arm(timer, _) => self.arm(Due::Named(timer)),
            Output::Disarm(timer) => self.late.extend(self.armed.take(&Due::Named(timer))),
            Output::ArmHolder(peer, _) | Output::ArmHolding(peer, _) => {
                assert!(self.machine.is_holder(peer), "waits for a holder that is none");
                self.arm(Due::Holder(peer));
            }
            Output::DisarmHolder(peer) => self.late.extend(self.armed.take(&Due::Holder(peer))),
            Output::StartControl => assert_eq!(self.kernel.holder, Holder::This),
            Output::Send(_, Message::Released(_) | Message::TakeBack(_)) => {
                assert_ne!(self.kernel.holder, Holder::This, "says that the lock is free, and has it");
            }
            Output::SendDescriptors { first, count, .. } => {
                assert!(count > 0 && first + u32::from(count) <= ENTRIES + FAMILY_SLOTS);
            }
            Output::Tells(notice) => self.told(notice),
            _ => {}
        }
    }

    fn arm(&mut self, due: Due) {
        self.late.remove(&due);
        self.armed.insert(due);
    }

    fn told(&mut self, notice: Notice) {
        assert!(!self.over, "{notice:?} after the end");
        match notice {
            Notice::Release => {
                assert!(self.exclusive && !self.released && !self.left, "released twice, or what has left");
                self.released = true;
            }
            Notice::Resume => {
                assert_eq!(self.kernel.holder, Holder::This, "resumed without the lock");
                assert!(self.released || self.stands_by || self.left, "a resume of what goes on");
                (self.released, self.stands_by, self.left) = (false, false, false);
            }
            Notice::StandBy => {
                assert!(self.released || !self.exclusive, "stands by with exclusive work");
                assert!(!self.stands_by && !self.left);
                self.stands_by = true;
            }
            Notice::Leave(_) => {
                assert!(!self.left, "told twice to leave");
                (self.stands_by, self.left) = (false, true);
            }
            Notice::Exit => {
                assert!(self.left, "an exit without a leave");
                self.over = true;
            }
            Notice::Replaced => {}
            Notice::Cancelled => self.over = true,
        }
    }

    fn check(&mut self, what: &Input) {
        let machine = &self.machine;
        assert!(!machine.owns() || self.kernel.holder == Holder::This, "{what:?}: believes that it owns: {machine:?}");
        assert!(machine.generation() >= self.generation, "{what:?}: the generation goes back");
        self.generation = machine.generation();
        if self.over {
            // A timer that was on its way is disarmed by having expired.
            assert!(self.armed.is_empty(), "{what:?}: {:?} after the end", self.armed);
        }
        if machine.phase() == Phase::Serving {
            let on_probation = machine.stands_by().is_some();
            let due = |due: &Due| match due {
                Due::Named(Timer::Rehearsal) => true,
                Due::Named(Timer::Probation) => on_probation,
                Due::Named(_) => false,
                Due::Holder(peer) => machine.is_holder(*peer),
            };
            assert!(self.armed.iter().all(due), "{what:?}: idle, with {:?}", self.armed);
            assert_eq!(self.joined, on_probation, "{what:?}: {machine:?}");
            assert!(!self.left && !self.released && !self.stands_by, "{what:?}: {machine:?}");
        }
    }
}

/// Whom an output is for.
fn addressee(output: &Output) -> Option<Peer> {
    match output {
        Output::Send(peer, _)
        | Output::Refuse(peer, _)
        | Output::SendManifest(peer)
        | Output::SendDescriptors { peer, .. }
        | Output::Tell { peer, .. }
        | Output::Await(peer)
        | Output::TellHistory(peer)
        | Output::Steer(peer, _)
        | Output::Close(peer) => Some(*peer),
        _ => None,
    }
}
