//! Everything that there is at one moment, and what becomes of it when something happens.

use super::actions::{Action, Event, Part};
use super::application::{Application, Phase, Told};
use super::kernel::{Client, Kernel, LinkId, Packet, Pid, Set};
use super::mutations::{self, Mutation};
use super::process::{Life, Op, Process, Work};
use super::properties::Broken;
use crate::error::Refusal;
use crate::protocol::message::{Ready, Wants};
use crate::protocol::{predecessor, starter, successor};

/// What is the same for a whole run of the checker.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// The applications have work that must not run twice.
    pub(super) exclusive: bool,
    /// They hand a state on, and take their predecessor's.
    pub(super) state: bool,
    /// How many entries the service has: five descriptors are one batch, more than 253 are two.
    pub(super) entries: u32,
    /// How many connections a process makes before it gives up.
    pub(super) attempts: u8,
    /// What a process had open is closed in any order after its end; else all at once.
    pub(super) torn: bool,
    /// Successors ask for a probation.
    pub(super) probation: bool,
    /// Connections may break: whoever has not heard `Owning` then waits beside his successor as long as that lives.
    pub(super) breaks: bool,
    /// The rule of the protocol that is off.
    pub(super) off: Option<Mutation>,
}

/// How often something may still go wrong. [`ALWAYS`] is never used up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) kills: u8,
    pub(super) stops: u8,
    /// An application, or an operator, asks a process to leave.
    pub(super) asks: u8,
    /// A successor's application drops everything.
    pub(super) drops: u8,
    /// A connection breaks, and both ends live.
    pub(super) cuts: u8,
    /// A stranger breaks the protocol on the control socket.
    pub(super) garbage: u8,
    /// An application, or a client, ends a probation: forwards or back.
    pub(super) verdicts: u8,
    /// A deadline passes although something else could happen first. Where nothing else can, they pass for nothing.
    pub(super) deadlines: u8,
}

pub(super) const ALWAYS: u8 = u8::MAX;

fn spend(left: &mut u8) {
    if *left != ALWAYS {
        *left = left.saturating_sub(1);
    }
}

/// One state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) kernel: Kernel,
    pub(super) processes: Vec<Process>,
    /// Processes that may be started.
    pub(super) to_start: Vec<(Pid, Wants)>,
    pub(super) budget: Budget,
    /// The takeover that is under way, by its nonce; 0: none, or it was called off. Only the properties know.
    pub(super) offered: u64,
    /// Who has owned under which generation.
    pub(super) owners: Vec<Option<Pid>>,
    /// Byte 0 was unlocked by the one for the other, and nobody has taken it yet.
    pub(super) gap: Option<(Pid, Pid)>,
    /// A state went before the last unlock.
    pub(super) stateful: bool,
    /// Properties of a step that do not hold.
    pub(super) broken: Broken,
}

impl World {
    pub(super) fn new(processes: usize, clients: usize) -> World {
        World {
            kernel: Kernel { clients: vec![Client::Away; clients], ..Kernel::default() },
            processes: vec![Process::unborn(); processes],
            to_start: Vec::new(),
            budget: Budget::default(),
            offered: 0,
            owners: Vec::new(),
            gap: None,
            stateful: false,
            broken: Broken::default(),
        }
    }

    pub(super) fn process(&self, pid: Pid) -> &Process {
        &self.processes[usize::from(pid)]
    }

    pub(super) fn process_mut(&mut self, pid: Pid) -> &mut Process {
        &mut self.processes[usize::from(pid)]
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> + use<> {
        0..self.processes.len() as Pid
    }

    pub(super) fn start(&mut self, rules: &Rules, pid: Pid, wants: Wants) {
        self.process_mut(pid).start(Application::new(wants));
        self.settle_down(rules, pid);
    }

    // Who has what.

    /// Descriptors that lie in the socket buffer of somebody who can still read them.
    fn in_flight(&self) -> impl Iterator<Item = &Packet> {
        self.kernel.links.iter().flat_map(|link| link.unread[0].iter())
    }

    pub(super) fn has_control(&self, id: Pid) -> bool {
        let flying =
            |packet: &Packet| matches!(packet, Packet::Descriptors { family: Some(batch), .. } if batch.control == id);
        self.processes.iter().any(|process| process.control == Some(id)) || self.in_flight().any(flying)
    }

    pub(super) fn has_lease(&self, id: Pid) -> bool {
        let flying =
            |packet: &Packet| matches!(packet, Packet::Descriptors { family: Some(batch), .. } if batch.lease == id);
        self.processes.iter().any(|process| process.lease == Some(id)) || self.in_flight().any(flying)
    }

    /// The service's listener that is open somewhere. There is never more than one.
    pub(super) fn service(&self) -> Option<Pid> {
        let flying = self.in_flight().find_map(|packet| match packet {
            Packet::Descriptors { service, .. } => *service,
            _ => None,
        });
        self.processes.iter().find_map(|process| process.service).or(flying)
    }

    /// Whether somebody other than this process has the service's listener and means to keep it.
    pub(super) fn stays_elsewhere(&self, pid: Pid) -> bool {
        self.pids().any(|other| {
            let process = self.process(other);
            // Where one was killed and its pidfd has not told so yet, nobody can know better.
            other != pid && ((process.service.is_some() && process.had.is_some()) || process.killed)
        })
    }

    pub(super) fn apply(&mut self, rules: &Rules, action: Action) {
        match action {
            Action::Start(pid) => {
                let at = self.to_start.iter().position(|(starts, _)| *starts == pid);
                if let Some(at) = at {
                    let (_, wants) = self.to_start.remove(at);
                    self.start(rules, pid, wants);
                }
            }
            Action::Step(pid) => {
                if let Some(op) = self.process_mut(pid).todo.pop_front() {
                    self.perform(rules, pid, op);
                }
                self.settle_down(rules, pid);
            }
            Action::StepWithoutByte1(pid) => {
                self.process_mut(pid).todo.pop_front();
                self.settle_down(rules, pid);
            }
            Action::Event(pid, event) => {
                self.happen(rules, pid, event);
                self.settle_down(rules, pid);
            }
            Action::Kill(pid) => {
                spend(&mut self.budget.kills);
                self.process_mut(pid).killed = true;
                self.end(pid);
            }
            Action::Stop(pid) => {
                spend(&mut self.budget.stops);
                self.process_mut(pid).stopped = true;
            }
            Action::Continue(pid) => self.process_mut(pid).stopped = false,
            Action::Close(pid, part) => self.close(pid, part),
            Action::Cut(link) => {
                spend(&mut self.budget.cuts);
                self.cut(link);
            }
            Action::Connect(client) => self.connect(client),
        }
    }

    /// A client connects: whoever has the listener open, the queue is the same.
    fn connect(&mut self, client: u8) {
        let outcome = match self.service() {
            Some(id) => Client::Waiting(id),
            None => {
                self.broken.listens |= self.processes.iter().any(|process| process.had.is_some());
                Client::Refused
            }
        };
        self.kernel.clients[usize::from(client)] = outcome;
    }

    /// A connection breaks in both directions, and what was under way is lost.
    fn cut(&mut self, id: LinkId) {
        let Some(link) = self.kernel.link_mut(id) else { return };
        link.cut = true;
        link.unread = Default::default();
        self.collect();
    }

    /// Runs a process up to the next thing that others can see. What comes before that changes nothing but its own memory,
    /// so it makes no difference to anybody when exactly it happens, and neither does a kill or a stop in between.
    pub(super) fn settle_down(&mut self, rules: &Rules, pid: Pid) {
        loop {
            if self.process(pid).life != Life::Runs {
                return;
            }
            if let Some(op) = self.process(pid).todo.front() {
                if self.is_visible(pid, op) {
                    return;
                }
                if let Some(op) = self.process_mut(pid).todo.pop_front() {
                    self.perform(rules, pid, op);
                }
                continue;
            }
            if rules.off == Some(Mutation::AnswersWait)
                && self.process(pid).work.front().is_some_and(mutations::is_answer)
            {
                self.process_mut(pid).work.rotate_left(1);
            }
            if let Some(work) = self.process_mut(pid).work.pop_front() {
                self.feed(rules, pid, work);
                continue;
            }
            let process = self.process_mut(pid);
            let writing: Vec<LinkId> = process.outgoing.iter().map(|(link, _)| *link).collect();
            let closing = process.closing.iter().filter(|link| !writing.contains(link));
            let flushes: Vec<Op> = writing.iter().copied().chain(closing).map(Op::Flush).collect();
            if !flushes.is_empty() {
                process.todo.extend(flushes);
            } else if !rules.exclusive && !process.app.told.is_empty() {
                // An application without exclusive work owes no answer: that it looks late is the same as that it does late
                // what it may do then.
                self.look(rules, pid);
            } else {
                return;
            }
        }
    }

    /// Whether others can see it.
    fn is_visible(&self, pid: Pid, op: &Op) -> bool {
        use predecessor::Output as P;
        use starter::Output as S;
        use successor::Output as H;
        let process = self.process(pid);
        let party = self.kernel.parties.has(pid) || self.kernel.bar == Some(pid);
        match op {
            Op::Starter(output) => {
                matches!(output, S::Connect | S::TakeLease | S::TakeLock | S::HangUp | S::Found)
                    || (*output == S::DropLease && process.lease.is_some())
            }
            Op::Successor(output) => match output {
                H::JoinTakeover | H::TakeLock { .. } | H::Record { .. } => true,
                // Only this process could have changed that.
                H::LeaveTakeover => party,
                _ => false,
            },
            Op::Predecessor(output) => match output {
                P::JoinTakeover | P::Unlock | P::Claim(_) => true,
                P::LeaveTakeover | P::EndProbation => party,
                // The same content again, and nobody else writes.
                P::Record { generation, nonce } => {
                    (*generation, *nonce) != (self.kernel.generation, self.kernel.nonce)
                        || self.kernel.owner != Some(pid)
                }
                _ => false,
            },
            Op::Find(_) | Op::Commit(_) | Op::Reclaim(_) => true,
            Op::Flush(link) => {
                let there = process.link == Some(*link) || process.peers.has(*link);
                there && (process.is_writing(*link) || process.closing.has(*link))
            }
            Op::CloseFamily => process.lease.is_some() || process.lock || process.control.is_some(),
            Op::CloseService => process.service.is_some(),
            Op::Serve => process.service.is_none(),
            Op::GoOn(_) | Op::End => false,
        }
    }

    /// What the application does, and what comes from outside.
    fn happen(&mut self, rules: &Rules, pid: Pid, event: Event) {
        self.process_mut(pid).followed = false;
        match event {
            Event::Accept => self.accept(pid),
            Event::Read(link) => self.read(pid, link),
            Event::ElderDied => {
                let process = self.process_mut(pid);
                process.elder = None;
                process.work.push_back(Work::Successor(successor::Input::Died));
                if let Some(link) = process.elder_link {
                    process.owner(predecessor::Input::Died(u64::from(link)));
                }
            }
            Event::HeirDied(link) => {
                let process = self.process_mut(pid);
                process.heir = None;
                process.owner(predecessor::Input::Died(u64::from(link)));
            }
            Event::Expire(key) => {
                if self.is_busy() {
                    spend(&mut self.budget.deadlines);
                }
                self.expire(pid, key);
            }
            Event::Look => self.look(rules, pid),
            Event::Ready => {
                let process = self.process_mut(pid);
                process.app.phase = Phase::Committing;
                if process.predecessor.as_ref().is_some_and(predecessor::Predecessor::owns) {
                    process.todo.push_back(Op::Serve);
                } else {
                    process.work.push_back(Work::Successor(successor::Input::Ready(Ready::default())));
                }
            }
            Event::Released => {
                let process = self.process_mut(pid);
                process.app.owes = false;
                if rules.off != Some(Mutation::WorkGoesOn) {
                    process.app.works = false;
                }
                let state = crate::protocol::message::State { schema: "state".to_owned(), ..Default::default() };
                process.owner(match rules.state {
                    true => predecessor::Input::AppReleasedWith(state),
                    false => predecessor::Input::AppReleased,
                });
            }
            Event::Serve => {
                let id = self.process(pid).service;
                let waiting =
                    self.kernel.clients.iter_mut().find(|client| id.is_some_and(|id| **client == Client::Waiting(id)));
                if let Some(client) = waiting {
                    *client = Client::Served;
                }
            }
            Event::Drained => {
                let process = self.process_mut(pid);
                process.owner(predecessor::Input::Finish { forced: false, in_flight: 0 });
            }
            Event::Drop => {
                let process = self.process_mut(pid);
                if process.app.wants == Wants::Takeover {
                    spend(&mut self.budget.drops);
                }
                self.decide(pid, false);
                self.end(pid);
            }
            Event::Asked => {
                spend(&mut self.budget.asks);
                let process = self.process_mut(pid);
                process.asked = true;
                if process.predecessor.is_some() {
                    process.owner(predecessor::Input::Stop);
                } else {
                    let why = Refusal::new("cancelled", "");
                    process.work.push_back(Work::Successor(successor::Input::Cancel(why)));
                    process.app.told.push_back(Told::Failed);
                }
            }
            Event::Confirm => {
                spend(&mut self.budget.verdicts);
                self.process_mut(pid).owner(predecessor::Input::Confirm);
            }
            Event::GiveBack => {
                spend(&mut self.budget.verdicts);
                self.process_mut(pid).owner(predecessor::Input::GiveBack(String::new()));
            }
            Event::Garbage => {
                spend(&mut self.budget.garbage);
                const STRANGER: u64 = 31;
                let process = self.process_mut(pid);
                process.owner(predecessor::Input::Fault(STRANGER, "garbage".to_owned()));
                process.owner(predecessor::Input::Gone(STRANGER));
            }
        }
    }

    /// The application takes the next thing that it was told.
    fn look(&mut self, rules: &Rules, pid: Pid) {
        let process = self.process_mut(pid);
        let Some(told) = process.app.told.pop_front() else { return };
        match told {
            Told::Started => process.app.phase = Phase::WarmingUp,
            Told::Serving => {
                process.app.phase = Phase::Serving;
                process.app.accepts = true;
                process.app.works = rules.exclusive;
            }
            Told::Release => process.app.owes = true,
            Told::StandBy => (process.app.accepts, process.app.owes) = (false, false),
            Told::Resume => {
                // From a drain it comes back as a value; only while it serves does it take note by itself.
                if process.app.phase == Phase::Serving {
                    process.owner(predecessor::Input::AppResumed);
                }
                process.app.phase = Phase::Serving;
                process.app.accepts = true;
                process.app.works = rules.exclusive;
                process.app.owes = false;
            }
            Told::Leave(_) => {
                process.app.phase = Phase::Draining;
                process.app.accepts = false;
                process.app.works = false;
                process.app.owes = false;
                process.app.draining = !process.app.told.contains(&Told::Resume);
            }
            Told::Exit | Told::Failed => process.todo.push_back(Op::End),
        }
    }

    /// A process decides to let go of what it has. From here on it is no longer one that should listen. Whoever does that
    /// must leave somebody behind who has the service's listener.
    pub(super) fn decide(&mut self, pid: Pid, excused: bool) {
        let process = self.process(pid);
        let unread = process.link.and_then(|link| self.kernel.link(link)).is_some_and(|link| {
            link.connector == pid
                && link.unread[0].iter().any(|packet| matches!(packet, Packet::Descriptors { service: Some(_), .. }))
        });
        let has = (process.service.is_some() || unread) && process.app.wants == Wants::Takeover;
        // Where somebody was asked to leave, the service ends on purpose.
        let on_purpose = self.processes.iter().any(|process| process.asked);
        if has && !excused && !on_purpose && !self.stays_elsewhere(pid) {
            self.broken.listens = true;
        }
        self.process_mut(pid).had = None;
    }

    /// A process is gone. The kernel closes what it had open: [`Action::Close`].
    pub(super) fn end(&mut self, pid: Pid) {
        let process = self.process_mut(pid);
        process.forget_everything();
        process.life = Life::Ends;
        self.maybe_over(pid);
    }

    /// Its pidfd tells once the last descriptor is closed.
    fn maybe_over(&mut self, pid: Pid) {
        let process = self.process_mut(pid);
        let links = process.probe.is_some() || process.link.is_some() || !process.peers.is_empty();
        let family = process.lease.is_some() || process.control.is_some() || process.service.is_some() || process.lock;
        if process.life == Life::Ends && !links && !family {
            process.life = Life::Over;
            process.killed = false;
        }
    }

    fn close(&mut self, pid: Pid, part: Part) {
        if matches!(part, Part::Links | Part::All) {
            let process = self.process_mut(pid);
            let mut links: Vec<LinkId> = process.peers.iter().collect();
            links.extend(process.probe.take());
            links.extend(process.link.take());
            process.peers = Set::default();
            for link in links {
                let end = self.kernel.end(link, pid);
                self.kernel.close_end(link, end);
            }
        }
        if matches!(part, Part::Lock | Part::All) {
            self.process_mut(pid).lock = false;
            self.kernel.close_lock(pid);
        }
        if matches!(part, Part::Listeners | Part::All) {
            let process = self.process_mut(pid);
            process.lease = None;
            process.control = None;
            process.service = None;
        }
        self.collect();
        self.maybe_over(pid);
    }

    /// What nobody has open any more is gone, and whoever waits there is told so.
    pub(super) fn collect(&mut self) {
        if self.kernel.lease.is_some_and(|id| !self.has_lease(id)) {
            self.kernel.lease = None;
        }
        let dead: Vec<(Pid, LinkId)> =
            self.kernel.backlog.iter().copied().filter(|(control, _)| !self.has_control(*control)).collect();
        self.kernel.backlog.retain(|waiting| !dead.contains(waiting));
        for (_, link) in dead {
            self.kernel.close_end(link, 1);
        }
        let service = self.service();
        let should = self.processes.iter().any(|process| process.had.is_some());
        for client in &mut self.kernel.clients {
            if let Client::Waiting(id) = *client
                && service != Some(id)
            {
                *client = Client::Reset;
                self.broken.listens |= should;
            }
        }
    }
}
