//! Everything that can happen next.

use super::application::Phase;
use super::kernel::{Client, LINKS_EACH, Link, LinkId, Pid, link_of, nonce_of};
use super::mutations::Mutation;
use super::process::{Key, Life, Op};
use super::world::{Rules, World};
use crate::error::Refusal;
use crate::protocol::Timer;
use crate::protocol::message::Wants;
use crate::protocol::{predecessor, successor};
use crate::status;

/// What the kernel closes at the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Links,
    Lock,
    /// Lease, control listener and the service's listener.
    Listeners,
    All,
}

/// Something that a process finds when it has nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Accept,
    /// One message, or the end, of a connection.
    Read(LinkId),
    /// The predecessor's pidfd.
    ElderDied,
    /// The pidfd of a successor whose connection is gone.
    HeirDied(LinkId),
    Expire(Key),
    /// The application looks at what it was told.
    Look,
    /// It is ready to serve.
    Ready,
    /// It has let go of its exclusive work.
    Released,
    /// It accepts a client and answers.
    Serve,
    /// Nothing is in flight any more, or the drain deadline has passed.
    Drained,
    /// It gives its attempt up: a rehearsal always does.
    Drop,
    /// It is asked to leave.
    Asked,
    /// It is on probation, and stays.
    Confirm,
    /// It is on probation, and gives the service back.
    GiveBack,
    /// A stranger's bytes.
    Garbage,
}

/// Everything that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// A process is started.
    Start(Pid),
    /// A process performs what is next: one system call that others can see.
    Step(Pid),
    /// Byte 1 is kept exclusively by somebody who does not run: the driver gives up trying to share it.
    StepWithoutByte1(Pid),
    Event(Pid, Event),
    Kill(Pid),
    Stop(Pid),
    Continue(Pid),
    /// The kernel closes a part of what a process had open.
    Close(Pid, Part),
    Cut(LinkId),
    /// A client connects to the service.
    Connect(u8),
}

impl World {
    pub(super) fn actions(&self, rules: &Rules, actions: &mut Vec<Action>) {
        for (pid, _) in &self.to_start {
            actions.push(Action::Start(*pid));
        }
        for pid in self.pids() {
            let process = self.process(pid);
            match process.life {
                Life::Unborn | Life::Over => continue,
                Life::Ends => {
                    self.closings(rules, pid, actions);
                    continue;
                }
                Life::Runs => {}
            }
            if process.stopped {
                actions.push(Action::Continue(pid));
            } else {
                self.work_of(rules, pid, actions);
                if self.budget.stops > 0 {
                    actions.push(Action::Stop(pid));
                }
            }
            if self.budget.kills > 0 {
                actions.push(Action::Kill(pid));
            }
        }
        if self.budget.cuts > 0 {
            let whole = |link: &&Link| link.open == [true, true] && link.acceptor.is_some() && !link.cut;
            actions.extend(self.kernel.links.iter().filter(whole).map(|link| Action::Cut(link.id)));
        }
        // Clients are alike: the first that is away is enough.
        if let Some(client) = self.kernel.clients.iter().position(|client| *client == Client::Away) {
            actions.push(Action::Connect(client as u8));
        }
    }

    /// What a process that runs can do next.
    fn work_of(&self, rules: &Rules, pid: Pid, actions: &mut Vec<Action>) {
        let process = self.process(pid);
        if let Some(op) = process.todo.front() {
            let joins = matches!(
                op,
                Op::Successor(successor::Output::JoinTakeover) | Op::Predecessor(predecessor::Output::JoinTakeover)
            );
            match self.kernel.bar {
                // It tries again and again, for a while.
                Some(bar) if joins && bar != pid => {
                    if !self.process(bar).runs() {
                        actions.push(Action::StepWithoutByte1(pid));
                    }
                }
                // The address is free once those are gone who only had a look: the application tries again and again.
                _ if *op == Op::Serve && self.service().is_some() && !self.stays_elsewhere(pid) => {}
                _ => actions.push(Action::Step(pid)),
            }
        } else {
            let mut events = Vec::new();
            self.inputs(pid, &mut events);
            // Input before timers. What waits was there when the process looked, and a deadline counts as passed only if it
            // had passed before that look.
            let nothing_to_read = events.is_empty() || rules.off == Some(Mutation::TimersBeforeInput);
            if nothing_to_read && (self.budget.deadlines > 0 || !self.is_busy()) {
                let due = process.timers.iter().filter(|key| self.may_expire(rules, pid, *key));
                events.extend(due.map(Event::Expire));
            }
            self.choices(pid, &mut events);
            actions.extend(events.into_iter().map(|event| Action::Event(pid, event)));
        }
        if process.app.accepts
            && self.kernel.clients.iter().any(|client| process.service.is_some_and(|id| *client == Client::Waiting(id)))
        {
            actions.push(Action::Event(pid, Event::Serve));
        }
    }

    /// Whether a process has the service's listener for good, as far as it is up to it: as the owner that it is or was, or by
    /// its takeover, unless a later one is under way: whoever was offered that has what is newer.
    pub(super) fn stands(&self, pid: Pid) -> bool {
        let process = self.process(pid);
        let own = nonce_of(link_of(pid, process.attempts.saturating_sub(1)));
        let offered = self.offered == own || self.offered == 0;
        let successor = process.successor.as_ref();
        let in_time = successor.is_some_and(|successor| successor.generation() == self.kernel.generation + 1);
        let may = process.predecessor.is_some() || (offered && in_time);
        // An owner that is asked to leave ends the service: its successor gives up, and who still drains may leave first.
        let on_purpose = self.processes.iter().any(|process| process.asked) && !process.believes();
        process.had.is_some() && !process.asked && !process.followed && may && !on_purpose
    }

    /// Whether something can happen that takes no time.
    pub(super) fn is_busy(&self) -> bool {
        self.pids().any(|pid| {
            let process = self.process(pid);
            let app = &process.app;
            let mut events = Vec::new();
            process.life == Life::Ends
                || (process.runs()
                    && (!process.todo.is_empty()
                        || !app.told.is_empty()
                        || app.owes
                        || app.phase == Phase::WarmingUp
                        || {
                            self.inputs(pid, &mut events);
                            !events.is_empty()
                        }))
        })
    }

    /// What waits to be read.
    pub(super) fn inputs(&self, pid: Pid, events: &mut Vec<Event>) {
        let process = self.process(pid);
        if process.accepting && self.kernel.backlog.iter().any(|(at, _)| Some(*at) == process.control) {
            events.push(Event::Accept);
        }
        for link in &self.kernel.links {
            let end = self.kernel.end(link.id, pid);
            let own = process.link == Some(link.id) && end == 0;
            let peer = process.peers.has(link.id) && end == 1 && !process.closing.has(link.id);
            if (own || peer) && (!link.unread[end].is_empty() || !link.open[1 - end] || link.cut) {
                events.push(Event::Read(link.id));
            }
        }
        // A death is looked at once everything that the dead had sent is read, the end of it included.
        let over = |pid: Pid| self.process(pid).life == Life::Over;
        if process.link.is_none() && process.elder.is_some_and(over) {
            events.push(Event::ElderDied);
        }
        if let Some(heir) = process.heir
            && over(self.connector_of(heir))
        {
            events.push(Event::HeirDied(heir));
        }
    }

    /// The process that made a connection.
    fn connector_of(&self, link: LinkId) -> Pid {
        self.pids().find(|pid| (0..LINKS_EACH).any(|nth| link_of(*pid, nth) == link)).unwrap_or_default()
    }

    fn may_expire(&self, rules: &Rules, pid: Pid, key: Key) -> bool {
        // A bound of the model: after so many connections a process waits for its deadline.
        key != Key::Starter(Timer::Retry) || self.process(pid).attempts < rules.attempts
    }

    /// What an application, an operator or a stranger may do.
    fn choices(&self, pid: Pid, events: &mut Vec<Event>) {
        let process = self.process(pid);
        let app = &process.app;
        if !app.told.is_empty() {
            events.push(Event::Look);
        }
        if app.phase == Phase::WarmingUp && app.wants == Wants::Takeover {
            events.push(Event::Ready);
        }
        if app.owes && app.phase == Phase::Serving {
            events.push(Event::Released);
        }
        if app.phase == Phase::WarmingUp && app.wants == Wants::Rehearsal {
            events.push(Event::Drop);
        }
        let phase = process.predecessor.as_ref().map(predecessor::Predecessor::phase);
        if app.draining && matches!(phase, Some(status::Phase::Draining | status::Phase::Stopping)) {
            events.push(Event::Drained);
        }
        let may = |may: fn(&predecessor::Predecessor) -> Result<(), Refusal>| {
            self.budget.verdicts > 0 && process.predecessor.as_ref().is_some_and(|owner| may(owner).is_ok())
        };
        if may(predecessor::Predecessor::may_end_probation) {
            events.push(Event::Confirm);
        }
        if may(predecessor::Predecessor::may_give_back) {
            events.push(Event::GiveBack);
        }
        if self.budget.asks > 0 && !process.asked {
            events.push(Event::Asked);
        }
        // The public way to give up looks first whether it holds the last copies.
        let last_holder = process.successor.as_ref().is_some_and(successor::Successor::predecessor_died);
        let mut waiting = Vec::new();
        self.inputs(pid, &mut waiting);
        if self.budget.drops > 0 && app.phase == Phase::WarmingUp && !last_holder && waiting.is_empty() {
            events.push(Event::Drop);
        }
        if self.budget.garbage > 0 && process.accepting {
            events.push(Event::Garbage);
        }
    }

    fn closings(&self, rules: &Rules, pid: Pid, actions: &mut Vec<Action>) {
        if !rules.torn {
            return actions.push(Action::Close(pid, Part::All));
        }
        let process = self.process(pid);
        if process.probe.is_some() || process.link.is_some() || !process.peers.is_empty() {
            actions.push(Action::Close(pid, Part::Links));
        }
        if process.lock {
            actions.push(Action::Close(pid, Part::Lock));
        }
        if process.lease.is_some() || process.control.is_some() || process.service.is_some() {
            actions.push(Action::Close(pid, Part::Listeners));
        }
    }
}
