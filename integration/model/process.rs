//! One process: the three machines as the driver runs them, and what it has open.

use std::collections::VecDeque;

use super::application::Application;
use super::kernel::{LinkId, Packet, Pid, Set};
use super::world::Rules;
use crate::error::Who;
use crate::manifest::StateKind;
use crate::protocol::predecessor::{self, Claim, Found, Predecessor, Takes};
use crate::protocol::starter::{self, Lease, Starter};
use crate::protocol::successor::{self, Lock, Successor};
use crate::protocol::{Deadlines, Timer};

/// An input on its way to its machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    Starter(starter::Input),
    Successor(successor::Input),
    Predecessor(predecessor::Input),
}

/// What is left to do of an input. What a machine wants is one entry; where that takes several system calls, the rest of
/// them are entries of their own, so that a kill, a stop or another process can come between any two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Op {
    Starter(starter::Output),
    Successor(successor::Output),
    Predecessor(predecessor::Output),
    Find(Find),
    Commit(Commit),
    Reclaim(Reclaim),
    /// Writes one chunk of what waits on this connection, or closes it after the last.
    Flush(LinkId),
    /// Closes lease, lock description and control listener.
    CloseFamily,
    CloseService,
    /// Begins to serve: binds what did not come, listens.
    Serve,
    /// The attempt has come to nothing, and the start goes on.
    GoOn(starter::Input),
    /// The process exits.
    End,
}

/// The first of a family takes both bytes and writes the next generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Find {
    Bar,
    Take,
    Write,
    Leave,
}

/// A successor compares the file with what it was offered, and takes byte 0. Where it was overtaken it needs byte 1 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Commit {
    Take {
        generation: u64,
        nonce: u64,
        bare: bool,
    },
    Compare {
        generation: u64,
        nonce: u64,
        bare: bool,
    },
    GiveBack,
    /// The file says something else: is byte 0 held?
    Overtaken,
    Bar,
    TakeLast,
    Rejoin,
}

/// A predecessor takes byte 0 back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reclaim {
    Leave {
        file: (u64, u64),
    },
    /// What the file said is known before byte 1 is taken.
    Bar {
        file: (u64, u64),
    },
    /// Byte 1 was not to be had: is byte 0 held?
    Look,
    /// With byte 1 in hand, where the file is named.
    Take {
        claim: Claim,
        file: Option<(u64, u64)>,
    },
    /// Of a process that stands by: byte 0, then what the file says.
    TakeBack {
        nonce: u64,
    },
    CompareBack {
        nonce: u64,
    },
    /// It is held: by a party of that takeover?
    IsParty,
    IsOwned,
    Unbar {
        taken: bool,
        file: (u64, u64),
    },
    Compare {
        claim: Claim,
        file: Option<(u64, u64)>,
    },
    GiveBack,
}

/// A deadline, by who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Starter(Timer),
    Successor(Timer),
    Predecessor(Timer),
    /// A connection whose other end says nothing or does not close.
    Peer(LinkId),
}

/// In the order of their declaration, and all of them.
const TIMERS: [Timer; 13] = [
    Timer::Handshake,
    Timer::Delivery,
    Timer::Stall,
    Timer::WarmUp,
    Timer::Release,
    Timer::Commit,
    Timer::Probation,
    Timer::Probe,
    Timer::Rehearsal,
    Timer::Grace,
    Timer::Retry,
    Timer::Start,
    Timer::Orphan,
];

/// The deadlines that are armed. They have no times: each may pass whenever its process runs and has nothing to read.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Armed {
    machines: u64,
    peers: Set,
}

impl Armed {
    fn bit(key: Key) -> u64 {
        let (machine, timer) = match key {
            Key::Starter(timer) => (0, timer),
            Key::Successor(timer) => (1, timer),
            Key::Predecessor(timer) => (2, timer),
            Key::Peer(_) => return 0,
        };
        let place = timer as usize;
        assert_eq!(TIMERS.get(place), Some(&timer), "the model's list of timers is out of date");
        1 << (machine * TIMERS.len() + place)
    }

    pub(super) fn arm(&mut self, key: Key) {
        match key {
            Key::Peer(link) => self.peers.insert(link),
            key => self.machines |= Armed::bit(key),
        }
    }

    pub(super) fn disarm(&mut self, key: Key) {
        match key {
            Key::Peer(link) => {
                self.peers.remove(link);
            }
            key => self.machines &= !Armed::bit(key),
        }
    }

    pub(super) fn has(self, key: Key) -> bool {
        match key {
            Key::Peer(link) => self.peers.has(link),
            key => self.machines & Armed::bit(key) != 0,
        }
    }

    /// Everything that the attempt of a successor has armed.
    pub(super) fn disarm_attempt(&mut self) {
        TIMERS.into_iter().for_each(|timer| self.disarm(Key::Successor(timer)));
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Key> {
        let machines =
            TIMERS.into_iter().flat_map(|timer| [Key::Starter(timer), Key::Successor(timer), Key::Predecessor(timer)]);
        machines.chain((0..32).map(Key::Peer)).filter(move |key| self.has(*key))
    }
}

impl std::fmt::Debug for Armed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Whether a process is there. What it had open is closed by the kernel piece by piece, in any order: that is where a core
/// dump that takes seconds is, too. Its pidfd tells when it is `Over`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Unborn,
    Runs,
    Ends,
    Over,
}

/// A process. What it has open counts as open until the kernel has closed it, also after its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) life: Life,
    pub(super) stopped: bool,
    /// It was killed, and the kernel is closing what it had open.
    pub(super) killed: bool,
    /// Somebody asked it to leave for good.
    pub(super) asked: bool,
    pub(super) starter: Option<Starter>,
    pub(super) successor: Option<Successor>,
    pub(super) predecessor: Option<Predecessor>,
    pub(super) todo: VecDeque<Op>,
    pub(super) work: VecDeque<Work>,
    pub(super) timers: Armed,
    /// The connection that the starter made, before anything was said on it.
    pub(super) probe: Option<LinkId>,
    /// The connection to the predecessor.
    pub(super) link: Option<LinkId>,
    /// Connections that were accepted.
    pub(super) peers: Set,
    /// Connections that are closed once everything is written.
    pub(super) closing: Set,
    /// What waits to be written.
    pub(super) outgoing: Vec<(LinkId, VecDeque<Packet>)>,
    /// The offers of which a part may still be sent: who has one is no mere client.
    pub(super) offered: Set,
    /// How many connections it has made.
    pub(super) attempts: u8,
    /// A part of the manifest has come in this attempt.
    pub(super) listed: bool,
    /// Its predecessor's state in this attempt: announced, and here.
    pub(super) state: Option<bool>,
    /// The pidfd of its predecessor.
    pub(super) elder: Option<Pid>,
    /// The connection to its predecessor, by its number also when it is gone.
    pub(super) elder_link: Option<LinkId>,
    /// The pidfd of a successor whose connection is gone.
    pub(super) heir: Option<LinkId>,
    /// The lease, by the process that opened it.
    pub(super) lease: Option<Pid>,
    /// A lock description of its own.
    pub(super) lock: bool,
    /// The control listener, by the process that bound it.
    pub(super) control: Option<Pid>,
    /// The control listener is registered.
    pub(super) accepting: bool,
    /// The service's listener, by the process that bound it.
    pub(super) service: Option<Pid>,
    /// The service's listener that it was given or has bound, until it decides to let go of it: it should hold that.
    pub(super) had: Option<Pid>,
    /// Somebody else owned when this process looked at byte 0 just now. It acts on that, whatever happens meanwhile.
    pub(super) followed: bool,
    pub(super) app: Application,
}

impl Process {
    pub(super) fn unborn() -> Process {
        Process {
            life: Life::Unborn,
            stopped: false,
            killed: false,
            asked: false,
            starter: None,
            successor: None,
            predecessor: None,
            todo: VecDeque::new(),
            work: VecDeque::new(),
            timers: Armed::default(),
            probe: None,
            link: None,
            peers: Set::default(),
            closing: Set::default(),
            outgoing: Vec::new(),
            offered: Set::default(),
            attempts: 0,
            listed: false,
            state: None,
            elder: None,
            elder_link: None,
            heir: None,
            lease: None,
            lock: false,
            control: None,
            accepting: false,
            service: None,
            had: None,
            followed: false,
            app: Application::default(),
        }
    }

    /// A process begins. Its starter has tried a few times already, so that its pause between two attempts, which the
    /// model has no use for, does not grow any more.
    pub(super) fn start(&mut self, app: Application) {
        let mut out = Vec::new();
        let deadlines = Deadlines::default();
        let mut starter = Starter::new(deadlines.start, deadlines.orphan, &mut out);
        let mut unused = Vec::new();
        for _ in 0..8 {
            starter.handle(starter::Input::Unreachable, &mut unused);
            starter.handle(starter::Input::Lease(Lease::Replaced), &mut unused);
            starter.handle(starter::Input::Expired(Timer::Retry), &mut unused);
        }
        self.life = Life::Runs;
        self.starter = Some(starter);
        self.todo = out.into_iter().map(Op::Starter).collect();
        self.app = app;
    }

    /// Whether it can do something.
    pub(super) fn runs(&self) -> bool {
        self.life == Life::Runs && !self.stopped
    }

    /// Whether it waits for something to happen: the driver has done all that it could.
    pub(super) fn waits(&self) -> bool {
        self.life == Life::Runs && self.todo.is_empty()
    }

    /// Whether it believes that it is the owner.
    pub(super) fn believes(&self) -> bool {
        self.life == Life::Runs && self.predecessor.as_ref().is_some_and(Predecessor::owns)
    }

    pub(super) fn generation(&self) -> u64 {
        self.predecessor.as_ref().map_or(0, Predecessor::generation)
    }

    /// Queues what is to be written, if that connection is still there.
    pub(super) fn send(&mut self, link: LinkId, packet: Packet) {
        let open = self.link == Some(link) || self.peers.has(link);
        if !open || self.closing.has(link) {
            return;
        }
        match self.outgoing.iter_mut().find(|(at, _)| *at == link) {
            Some((_, queue)) => queue.push_back(packet),
            None => {
                self.outgoing.push((link, VecDeque::from([packet])));
                self.outgoing.sort_by_key(|(link, _)| *link);
            }
        }
    }

    /// Closes it once everything that was said is written; a peer that does not read is not waited for for ever.
    pub(super) fn close_after_writing(&mut self, link: LinkId) {
        if self.link == Some(link) || self.peers.has(link) {
            self.closing.insert(link);
            self.timers.arm(Key::Peer(link));
        }
    }

    /// What leaves in one system call: small messages that follow each other, or one header with descriptors.
    pub(super) fn next_chunk(&mut self, link: LinkId) -> Option<Vec<Packet>> {
        let at = self.outgoing.iter().position(|(at, _)| *at == link)?;
        let queue = &mut self.outgoing[at].1;
        let plain = queue.iter().take_while(|packet| !matches!(packet, Packet::Descriptors { .. })).count();
        let chunk: Vec<Packet> = queue.drain(..plain.max(1)).collect();
        if queue.is_empty() {
            self.outgoing.remove(at);
        }
        Some(chunk)
    }

    pub(super) fn is_writing(&self, link: LinkId) -> bool {
        self.outgoing.iter().any(|(at, _)| *at == link)
    }

    /// Puts what must happen next before everything else.
    pub(super) fn first(&mut self, ops: impl IntoIterator<Item = Op, IntoIter: DoubleEndedIterator>) {
        for op in ops.into_iter().rev() {
            self.todo.push_front(op);
        }
    }

    /// The kernel's answer, before whatever else waits for the machine.
    pub(super) fn answer(&mut self, work: Work) {
        self.work.push_front(work);
    }

    pub(super) fn lock_answer(&mut self, lock: Lock) {
        self.answer(Work::Successor(successor::Input::Lock(lock)));
    }

    pub(super) fn claim_answer(&mut self, found: Found) {
        self.answer(Work::Predecessor(predecessor::Input::Claimed(found)));
    }

    /// Hands an input to the owner's machine.
    pub(super) fn owner(&mut self, input: predecessor::Input) {
        self.work.push_back(Work::Predecessor(input));
    }

    /// Feeds one input to its machine; what comes of it is still to be done.
    pub(super) fn feed(&mut self, work: Work) -> Vec<Op> {
        match work {
            Work::Starter(input) => {
                let mut out = Vec::new();
                if let Some(starter) = &mut self.starter {
                    starter.handle(input, &mut out);
                }
                out.into_iter().map(Op::Starter).collect()
            }
            Work::Successor(input) => {
                let mut out = Vec::new();
                if let Some(successor) = &mut self.successor {
                    successor.handle(input, &mut out);
                }
                out.into_iter().map(Op::Successor).collect()
            }
            Work::Predecessor(input) => {
                let mut out = Vec::new();
                if let Some(predecessor) = &mut self.predecessor {
                    predecessor.handle(input, &mut out);
                }
                out.into_iter().map(Op::Predecessor).collect()
            }
        }
    }

    /// From here on it is the owner's machine that decides.
    pub(super) fn become_owner(&mut self, pid: Pid, generation: u64, rules: &Rules) {
        let who = Who { pid: u32::from(pid), app_version: String::new() };
        let mut predecessor =
            Predecessor::new(generation, rules.entries, rules.exclusive, Deadlines::default(), who, 1);
        predecessor.set_state(rules.state.then(|| StateKind { schema: "state".to_owned(), version: 1 }));
        self.elder_link = self.link;
        if let (Some(link), Some(successor)) = (self.link, &self.successor)
            && let Some(span) = successor.probation()
        {
            let takes_state = rules.state && successor.state_kind().is_some();
            let who = successor.predecessor().clone();
            predecessor.enter_probation(
                u64::from(link),
                successor.nonce(),
                who,
                Takes { state: takes_state, hold: true },
                span,
            );
        }
        self.predecessor = Some(predecessor);
    }

    /// A pidfd, a lock or a connection tells nothing any more: the process is gone, and what it had in memory with it.
    pub(super) fn forget_everything(&mut self) {
        self.starter = None;
        self.successor = None;
        self.predecessor = None;
        self.todo.clear();
        self.work.clear();
        self.timers = Armed::default();
        self.closing = Set::default();
        self.outgoing.clear();
        self.offered = Set::default();
        self.elder = None;
        self.elder_link = None;
        self.heir = None;
        self.accepting = false;
        self.listed = false;
        self.state = None;
        self.attempts = 0;
        self.had = None;
        self.followed = false;
        self.stopped = false;
        self.app = Application::default();
    }
}
