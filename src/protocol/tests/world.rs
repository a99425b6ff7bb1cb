//! A kernel in miniature: processes, connections, the lock file and a clock, all in one thread and all repeatable.
//!
//! Each process is the driver without system calls: it feeds the three machines and performs their outputs one at a time,
//! so that a kill or a stop can fall between any two. Connections are queues that end where their writer ends. Locks
//! belong to processes and are freed by their death. The clock jumps to the next deadline when nothing else can be done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::error::{Refusal, Who};
use crate::manifest::{Entry, Kind};
use crate::protocol::message::{Entries, Hello, Message, Ready, State, Wants};
use crate::protocol::predecessor::{self, Claim, Found, Predecessor, Reason, Takes};
use crate::protocol::starter::{self, Lease, Starter};
use crate::protocol::successor::{self, Failure, Lock, Successor};
use crate::protocol::{Deadlines, Timer};
use crate::status::Phase;

pub(super) type Pid = usize;
type LinkId = usize;

/// How many entries the service has: more than two frames of descriptors, so that the window matters.
const ENTRIES: u32 = 600;
/// More rounds than any run needs: beyond it, something spins.
const SPIN: usize = 300_000;

/// What an application is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct App {
    pub(super) exclusive: bool,
    pub(super) warm_up: Duration,
    /// Whether it hands its state on, and takes its predecessor's.
    pub(super) state: bool,
    /// How long it takes to let go of exclusive work; `None`: it never answers.
    pub(super) release: Option<Duration>,
    /// How long its last request takes.
    pub(super) drain: Duration,
    pub(super) wants: Wants,
    /// For how long it asks its predecessor to stand by.
    pub(super) probation: Option<Duration>,
    /// A takeover confirms it.
    pub(super) confirms: bool,
}

impl Default for App {
    fn default() -> App {
        App {
            exclusive: true,
            state: true,
            warm_up: Duration::from_secs(3),
            release: Some(Duration::from_millis(50)),
            drain: Duration::from_millis(2500),
            wants: Wants::Takeover,
            probation: None,
            confirms: false,
        }
    }
}

/// What an application was told, or what became of its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Started,
    Serving,
    Release,
    StandBy,
    Resume,
    Leave(Reason),
    Exit,
    Failed(String),
}

/// What happens to a process once it has performed so many outputs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blow {
    Kill,
    /// SIGSTOP, and SIGCONT so much later.
    Stop(Duration),
    /// Its application, or its operator, asks it to leave.
    Ask,
    /// The same, to end its probation.
    Confirm,
    GiveBack,
}

/// What happens to one message of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// It is the last one: the connection breaks, in both directions, and both processes live.
    Cut,
    /// The connection breaks just before it.
    Lose,
    Delay(Duration),
    Double,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Starter(Timer),
    Successor(Timer),
    Predecessor(Timer),
    Peer(LinkId),
    WarmUp,
    Release,
    Drain,
}

#[derive(Clone, Debug)]
enum Work {
    Starter(starter::Input),
    Successor(successor::Input),
    Predecessor(predecessor::Input),
}

#[derive(Clone, Debug)]
enum Todo {
    Starter(starter::Output),
    Successor(successor::Output),
    Predecessor(predecessor::Output),
}

/// A connection. Direction 0 is from who connected, 1 from who accepted.
#[derive(Clone, Debug)]
struct Link {
    ends: [Option<Pid>; 2],
    queues: [VecDeque<(Duration, Message)>; 2],
    sent: [usize; 2],
    /// The writer of this direction has closed.
    closed: [bool; 2],
    cut: bool,
    /// The first batch is on its way: lease and control listener live in the socket buffer.
    carries_family: bool,
}

/// The lock file.
#[derive(Clone, Debug, Default)]
struct LockFile {
    owner: Option<Pid>,
    shared: BTreeSet<Pid>,
    generation: u64,
    nonce: u64,
    /// The takeover for which it was last unlocked, where a state went before.
    stateful: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) alive: bool,
    stopped: bool,
    app: App,
    starter: Option<Starter>,
    successor: Option<Successor>,
    pub(super) predecessor: Option<Predecessor>,
    timers: BTreeMap<Key, Duration>,
    work: VecDeque<Work>,
    todo: VecDeque<Todo>,
    /// The connection to the predecessor.
    link: Option<LinkId>,
    /// Connections that were accepted.
    peers: BTreeSet<LinkId>,
    accepting: bool,
    /// It has the lease, and not yet a control listener.
    lease: bool,
    /// It has lease, lock description and control listener.
    family: bool,
    entries: u32,
    listed: u32,
    /// Its predecessor's state: announced, and here.
    state: Option<bool>,
    elder: Option<Pid>,
    elder_link: Option<LinkId>,
    /// The state that came back on a rollback.
    returned: Option<bool>,
    /// Deaths that its pidfds have told of.
    mourned: BTreeSet<(LinkId, Pid)>,
    pub(super) notes: Vec<Note>,
    released: bool,
    stands_by: bool,
    left: bool,
    /// Work that must not run twice.
    runs_exclusive_work: bool,
    drained: bool,
    dirty: bool,
    /// How many outputs it has performed.
    pub(super) performed: usize,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) processes: Vec<Process>,
    links: Vec<Link>,
    file: LockFile,
    /// Connections that wait to be accepted.
    backlog: VecDeque<LinkId>,
    blows: Vec<(Pid, usize, Blow)>,
    /// Connection, direction, message.
    trouble: Option<(LinkId, usize, usize, Trouble)>,
    wakes: Vec<(Duration, Pid)>,
    random: u64,
}

impl World {
    /// `seed` 0 lets the processes take turns; others choose who goes next.
    pub(super) fn new(seed: u64) -> World {
        World {
            now: Duration::ZERO,
            processes: Vec::new(),
            links: Vec::new(),
            file: LockFile::default(),
            backlog: VecDeque::new(),
            blows: Vec::new(),
            trouble: None,
            wakes: Vec::new(),
            random: seed,
        }
    }

    /// Starts a process.
    pub(super) fn spawn(&mut self, app: App) -> Pid {
        let pid = self.processes.len();
        let mut out = Vec::new();
        let deadlines = Deadlines::default();
        let starter = Starter::new(deadlines.start, deadlines.orphan, &mut out);
        self.processes.push(Process {
            alive: true,
            stopped: false,
            app,
            starter: Some(starter),
            successor: None,
            predecessor: None,
            timers: BTreeMap::new(),
            work: VecDeque::new(),
            todo: out.into_iter().map(Todo::Starter).collect(),
            link: None,
            peers: BTreeSet::new(),
            accepting: false,
            lease: false,
            family: false,
            entries: 0,
            listed: 0,
            state: None,
            elder: None,
            elder_link: None,
            returned: None,
            mourned: BTreeSet::new(),
            notes: Vec::new(),
            released: false,
            stands_by: false,
            left: false,
            runs_exclusive_work: false,
            drained: false,
            dirty: false,
            performed: 0,
        });
        pid
    }

    /// Something happens to a process after its next `after` outputs.
    pub(super) fn strike(&mut self, pid: Pid, after: usize, blow: Blow) {
        let at = self.processes[pid].performed + after;
        if after == 0 { self.blow(pid, blow) } else { self.blows.push((pid, at, blow)) }
    }

    /// Something happens to a message of the next connection.
    pub(super) fn disturb(&mut self, direction: usize, nth: usize, trouble: Trouble) {
        self.trouble = Some((self.links.len(), direction, nth, trouble));
    }

    /// The connection of a process to its predecessor breaks, and both live.
    pub(super) fn cut(&mut self, pid: Pid) {
        let link = self.link_of(pid);
        self.links[link].cut = true;
    }

    /// The connection of a process to its predecessor.
    pub(super) fn link_of(&self, pid: Pid) -> usize {
        self.processes[pid].link.expect("a connection")
    }

    /// From here on nothing more goes wrong.
    pub(super) fn calm(&mut self) {
        self.blows.clear();
        self.trouble = None;
    }

    /// How many messages the newest connection has carried in each direction.
    pub(super) fn carried(&self) -> [usize; 2] {
        self.links.last().unwrap().sent
    }

    fn blow(&mut self, pid: Pid, blow: Blow) {
        if !self.processes[pid].alive {
            return;
        }
        match blow {
            Blow::Kill => self.die(pid),
            Blow::Stop(span) => {
                self.processes[pid].stopped = true;
                self.wakes.push((self.now + span, pid));
            }
            Blow::Ask => self.ask(pid),
            Blow::Confirm => self.owner(pid, predecessor::Input::Confirm),
            Blow::GiveBack => self.owner(pid, predecessor::Input::GiveBack("test".to_owned())),
        }
    }

    /// As the driver does when somebody wrote to the stop handle.
    fn ask(&mut self, pid: Pid) {
        let process = &mut self.processes[pid];
        match &process.predecessor {
            Some(predecessor) if predecessor.phase() != Phase::Starting => {
                process.work.push_back(Work::Predecessor(predecessor::Input::Stop));
            }
            _ => {
                // The application is told that it is cancelled, and drops everything.
                process.notes.push(Note::Failed("cancelled".to_owned()));
                self.die(pid);
            }
        }
    }

    /// Runs until nothing is left to do, or until the clock has come so far.
    pub(super) fn run(&mut self, within: Duration) {
        let end = self.now + within;
        for _ in 0..SPIN {
            if self.turn() {
                continue;
            }
            match self.next_time() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    let due: Vec<Pid> =
                        self.wakes.iter().filter(|(at, _)| *at <= self.now).map(|(_, pid)| *pid).collect();
                    self.wakes.retain(|(at, _)| *at > self.now);
                    for pid in due {
                        self.processes[pid].stopped = false;
                    }
                }
                Some(_) => {
                    self.now = end;
                    return;
                }
                None => return,
            }
        }
        panic!("it spins at {:?}: {self:#?}", self.now);
    }

    /// One step of one process.
    fn turn(&mut self) -> bool {
        let count = self.processes.len();
        let first = if self.random == 0 { 0 } else { self.draw() as usize % count };
        for pid in (first..count).chain(0..first) {
            if self.processes[pid].alive && !self.processes[pid].stopped && self.step(pid) {
                self.check();
                if self.random == 0 {
                    // In turn: the next step is for the others first.
                    for other in (0..count).filter(|other| *other != pid) {
                        if self.processes[other].alive && !self.processes[other].stopped && self.step(other) {
                            self.check();
                        }
                    }
                }
                return true;
            }
        }
        false
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn next_time(&self) -> Option<Duration> {
        let awake =
            |pid: &Option<Pid>| pid.is_some_and(|pid| self.processes[pid].alive && !self.processes[pid].stopped);
        let timers = self
            .processes
            .iter()
            .filter(|process| process.alive && !process.stopped)
            .flat_map(|process| process.timers.values().copied());
        let messages = self.links.iter().flat_map(|link| {
            [0, 1].into_iter().filter_map(move |direction| {
                let reader = link.ends[1 - direction];
                link.queues[direction].front().filter(|_| awake(&reader)).map(|(at, _)| *at)
            })
        });
        timers.chain(messages).chain(self.wakes.iter().map(|(at, _)| *at)).min()
    }

    /// What must hold at every moment.
    fn check(&self) {
        for (pid, process) in self.processes.iter().enumerate().filter(|(_, process)| process.alive) {
            let believes = process.predecessor.as_ref().is_some_and(Predecessor::owns);
            assert!(!believes || self.file.owner == Some(pid), "{pid} believes that it owns: {:#?}", self.file);
            let works = process.runs_exclusive_work && process.app.exclusive;
            assert!(!works || self.file.owner == Some(pid), "{pid} works without the lock: {:#?}", self.file);
        }
    }

    /// One output, one input, or one event.
    fn step(&mut self, pid: Pid) -> bool {
        if let Some(todo) = self.processes[pid].todo.pop_front() {
            match todo {
                Todo::Starter(output) => self.perform_starter(pid, output),
                Todo::Successor(output) => self.perform_successor(pid, output),
                Todo::Predecessor(output) => self.perform_predecessor(pid, output),
            }
            self.processes[pid].performed += 1;
            let performed = self.processes[pid].performed;
            if let Some(at) = self.blows.iter().position(|(who, at, _)| *who == pid && *at == performed) {
                let (_, _, blow) = self.blows.remove(at);
                self.blow(pid, blow);
            }
            return true;
        }
        let process = &mut self.processes[pid];
        if let Some(work) = process.work.pop_front() {
            match work {
                Work::Starter(input) => {
                    let mut out = Vec::new();
                    process.starter.as_mut().unwrap().handle(input, &mut out);
                    process.todo.extend(out.into_iter().map(Todo::Starter));
                }
                Work::Successor(input) => {
                    let mut out = Vec::new();
                    if let Some(successor) = &mut process.successor {
                        successor.handle(input, &mut out);
                    }
                    process.todo.extend(out.into_iter().map(Todo::Successor));
                }
                Work::Predecessor(input) => {
                    let mut out = Vec::new();
                    process.predecessor.as_mut().unwrap().handle(input, &mut out);
                    process.todo.extend(out.into_iter().map(Todo::Predecessor));
                }
            }
            return true;
        }
        if std::mem::take(&mut process.dirty) && process.left && process.drained {
            // The driver asks after each round whether the drain is over.
            process.work.push_back(Work::Predecessor(predecessor::Input::Finish { forced: false, in_flight: 0 }));
            return true;
        }
        let happened = self.accept(pid) || self.read(pid) || self.mourn(pid) || self.expire(pid);
        self.processes[pid].dirty |= happened;
        happened
    }

    fn accept(&mut self, pid: Pid) -> bool {
        if !self.processes[pid].accepting {
            return false;
        }
        let Some(link) = self.backlog.pop_front() else { return false };
        self.links[link].ends[1] = Some(pid);
        self.processes[pid].peers.insert(link);
        self.arm(pid, Key::Peer(link), Deadlines::default().handshake);
        true
    }

    /// One message, or the end, of one connection.
    fn read(&mut self, pid: Pid) -> bool {
        let process = &self.processes[pid];
        let own = process.link.map(|link| (link, 1));
        for (link, direction) in own.into_iter().chain(process.peers.iter().map(|link| (*link, 0))) {
            let connection = &mut self.links[link];
            match connection.queues[direction].front() {
                Some((at, _)) if *at > self.now => continue,
                Some(_) => {
                    let (_, message) = connection.queues[direction].pop_front().unwrap();
                    self.hear(pid, link, message);
                    return true;
                }
                None if connection.closed[direction] || connection.cut => {
                    self.hang_up(pid, link);
                    if direction == 1 {
                        self.processes[pid].work.push_back(Work::Successor(successor::Input::LinkLost));
                        self.owner(pid, predecessor::Input::Gone(link as u64));
                    } else {
                        self.owner(pid, predecessor::Input::Gone(link as u64));
                    }
                    return true;
                }
                None => {}
            }
        }
        false
    }

    fn hear(&mut self, pid: Pid, link: LinkId, message: Message) {
        if self.processes[pid].link != Some(link) {
            self.processes[pid].timers.remove(&Key::Peer(link));
            let process = &mut self.processes[pid];
            let stands_by = process.predecessor.as_ref().is_some_and(|owner| owner.is_standing_by_for(link as u64));
            match &message {
                Message::State(_) if stands_by => process.returned = Some(false),
                Message::Abort(_) if stands_by => process.returned = None,
                Message::Descriptors(1) if stands_by && process.returned == Some(false) => {
                    process.returned = Some(true);
                    return self.owner(pid, predecessor::Input::StateArrived(link as u64));
                }
                _ => {}
            }
            return self.owner(pid, predecessor::Input::Message(link as u64, message));
        }
        let process = &mut self.processes[pid];
        let elder = |owner: &Predecessor| owner.is_elder(link as u64) || owner.is_heir(link as u64);
        if process.predecessor.as_ref().is_some_and(elder)
            && !matches!(message, Message::Draining(_) | Message::Bye(_) | Message::Descriptors(_))
        {
            return self.owner(pid, predecessor::Input::Message(link as u64, message));
        }
        let input = match message {
            Message::Descriptors(_) if process.state == Some(false) => {
                process.state = Some(true);
                successor::Input::StateArrived
            }
            Message::State(_) if process.state.is_none() => {
                process.state = Some(false);
                successor::Input::Message(message)
            }
            Message::Descriptors(count) => {
                if process.app.wants == Wants::Takeover && !process.family {
                    process.family = true;
                    process.elder = self.links[link].ends[1];
                    process.elder_link = Some(link);
                    self.links[link].carries_family = false;
                }
                process.entries += u32::from(count);
                successor::Input::Arrived(u32::from(count))
            }
            Message::Draining(_) | Message::Bye(_) => return,
            message => successor::Input::Message(message),
        };
        self.processes[pid].work.push_back(Work::Successor(input));
    }

    /// The pidfds.
    fn mourn(&mut self, pid: Pid) -> bool {
        if let Some(elder) = self.processes[pid].elder
            && !self.processes[elder].alive
        {
            let process = &mut self.processes[pid];
            process.elder = None;
            if let Some(link) = process.link {
                self.hang_up(pid, link);
            }
            self.processes[pid].work.push_back(Work::Successor(successor::Input::Died));
            if let Some(link) = self.processes[pid].elder_link {
                self.owner(pid, predecessor::Input::Died(link as u64));
            }
            return true;
        }
        let dead = (0..self.links.len()).find_map(|link| {
            let peer = self.links[link].ends[0]?;
            let accepted = self.links[link].ends[1] == Some(pid);
            (accepted && !self.processes[peer].alive && !self.processes[pid].mourned.contains(&(link, peer)))
                .then_some((link, peer))
        });
        let Some((link, peer)) = dead else { return false };
        let process = &mut self.processes[pid];
        process.mourned.insert((link, peer));
        // A pidfd is kept as long as the connection, and longer only for a successor past its release.
        let kept = process.peers.contains(&link)
            || process.predecessor.as_ref().is_some_and(|predecessor| predecessor.is_leaving_to(link as u64));
        if kept {
            self.owner(pid, predecessor::Input::Died(link as u64));
        }
        kept
    }

    fn expire(&mut self, pid: Pid) -> bool {
        let due = self.processes[pid].timers.iter().filter(|(_, at)| **at <= self.now).min_by_key(|(_, at)| **at);
        let Some((key, _)) = due else { return false };
        let key = *key;
        let process = &mut self.processes[pid];
        process.timers.remove(&key);
        match key {
            Key::Starter(timer) => process.work.push_back(Work::Starter(starter::Input::Expired(timer))),
            Key::Successor(timer) => process.work.push_back(Work::Successor(successor::Input::Expired(timer))),
            Key::Predecessor(timer) => {
                if timer == Timer::Probe {
                    let in_flight = u64::from(process.left && !process.drained);
                    self.owner(pid, predecessor::Input::InFlight { in_flight, left: None });
                }
                self.owner(pid, predecessor::Input::Expired(timer));
            }
            Key::Peer(link) => {
                self.hang_up(pid, link);
                self.owner(pid, predecessor::Input::Gone(link as u64));
            }
            Key::WarmUp => {
                if process.predecessor.is_some() {
                    self.serve(pid);
                } else {
                    process.work.push_back(Work::Successor(successor::Input::Ready(Ready::default())));
                }
            }
            Key::Release => {
                if process.released {
                    process.runs_exclusive_work = false;
                }
                let released = if process.app.state {
                    predecessor::Input::AppReleasedWith(State { schema: "count".to_owned(), ..State::default() })
                } else {
                    predecessor::Input::AppReleased
                };
                self.owner(pid, released);
            }
            Key::Drain => process.drained = true,
        }
        true
    }

    fn owner(&mut self, pid: Pid, input: predecessor::Input) {
        if self.processes[pid].predecessor.is_some() {
            self.processes[pid].work.push_back(Work::Predecessor(input));
        }
    }

    fn arm(&mut self, pid: Pid, key: Key, after: Duration) {
        let at = self.now + after;
        self.processes[pid].timers.insert(key, at);
    }

    fn send(&mut self, pid: Pid, link: LinkId, message: Message) {
        let process = &self.processes[pid];
        if process.link != Some(link) && !process.peers.contains(&link) {
            return;
        }
        let now = self.now;
        let connection = &mut self.links[link];
        let direction = usize::from(connection.ends[0] != Some(pid));
        if connection.cut || connection.closed[direction] {
            return; // Nobody can read it any more.
        }
        let nth = connection.sent[direction];
        connection.sent[direction] += 1;
        let mut at = connection.queues[direction].back().map_or(now, |(at, _)| *at).max(now);
        let mut copies = 1;
        if let Some((where_, which, when, trouble)) = self.trouble
            && (where_, which, when) == (link, direction, nth)
        {
            match trouble {
                Trouble::Cut => connection.cut = true,
                Trouble::Lose => {
                    connection.cut = true;
                    return;
                }
                Trouble::Delay(span) => at += span,
                Trouble::Double => copies = 2,
            }
        }
        for _ in 0..copies {
            connection.queues[direction].push_back((at, message.clone()));
        }
    }

    /// Closes one side of a connection.
    fn hang_up(&mut self, pid: Pid, link: LinkId) {
        let process = &mut self.processes[pid];
        process.timers.remove(&Key::Peer(link));
        if process.link == Some(link) {
            process.link = None;
        }
        process.peers.remove(&link);
        let connection = &mut self.links[link];
        let direction = usize::from(connection.ends[0] != Some(pid));
        connection.closed[direction] = true;
        // What it has not read is lost with its end.
        connection.queues[1 - direction].clear();
        connection.closed[1 - direction] = true;
        self.lose_family();
    }

    /// A socket buffer that nobody can read any more closes what is in it.
    fn lose_family(&mut self) {
        for link in &mut self.links {
            let reader = link.ends[0].is_some_and(|pid| self.processes[pid].alive);
            link.carries_family &= reader && !link.queues[1].is_empty();
        }
    }

    /// Some process has the lease and the control listener, or a socket buffer has.
    fn family_lives(&self) -> bool {
        self.processes.iter().any(|process| process.alive && process.family)
            || self.links.iter().any(|link| link.carries_family)
    }

    /// The kernel closes everything.
    fn die(&mut self, pid: Pid) {
        let links: Vec<LinkId> = self.processes[pid].peers.iter().copied().chain(self.processes[pid].link).collect();
        for link in links {
            self.hang_up(pid, link);
        }
        let process = &mut self.processes[pid];
        process.alive = false;
        process.runs_exclusive_work = false;
        process.timers.clear();
        process.todo.clear();
        process.work.clear();
        self.drop_family(pid);
    }

    fn drop_family(&mut self, pid: Pid) {
        self.processes[pid].lease = false;
        self.processes[pid].family = false;
        self.processes[pid].accepting = false;
        self.processes[pid].entries = 0;
        self.processes[pid].listed = 0;
        self.processes[pid].state = None;
        if self.file.owner == Some(pid) {
            self.file.owner = None;
        }
        self.file.shared.remove(&pid);
        self.lose_family();
        if !self.family_lives() {
            for link in std::mem::take(&mut self.backlog) {
                self.links[link].closed = [true, true];
            }
        }
    }

    fn write(&mut self, pid: Pid, generation: u64, nonce: u64) {
        assert_eq!(self.file.owner, Some(pid), "content is written under byte 0");
        assert!(generation >= self.file.generation, "the generation goes back");
        self.file.generation = generation;
        self.file.nonce = nonce;
    }

    fn lock_owner(&mut self, pid: Pid) -> bool {
        let free = self.file.owner.is_none_or(|owner| owner == pid);
        if free {
            self.file.owner = Some(pid);
        }
        free
    }

    /// Byte 1 exclusively, for the moment of one attempt.
    fn may_bar(&self, pid: Pid) -> bool {
        self.file.shared.iter().all(|other| *other == pid)
    }

    fn note(&mut self, pid: Pid, note: Note) {
        let owner = self.file.owner;
        let newest = self.file.generation;
        let process = &mut self.processes[pid];
        match &note {
            Note::Release => assert!(!process.released && !process.left, "{:?}", process.notes),
            Note::Resume => {
                let rests = process.released || process.stands_by || process.left;
                assert!(rests, "resume of what goes on: {:?}", process.notes);
                assert_eq!(owner, Some(pid), "resume without the lock");
                process.released = false;
                process.stands_by = false;
                process.left = false;
                process.drained = false;
                process.runs_exclusive_work = true;
                process.timers.remove(&Key::Drain);
            }
            Note::StandBy => {
                let let_go = process.released || !process.app.exclusive;
                assert!(let_go && !process.stands_by && !process.left, "{:?}", process.notes);
                let own = process.predecessor.as_ref().map_or(0, Predecessor::generation);
                assert!(newest > own, "told to stand by, and nobody has owned after it");
                process.stands_by = true;
                process.runs_exclusive_work = false;
            }
            Note::Leave(reason) => {
                process.stands_by = false;
                assert!(!process.left, "told twice to leave: {:?}", process.notes);
                let own = process.predecessor.as_ref().map_or(0, Predecessor::generation);
                assert!(*reason == Reason::Stopped || newest > own, "told to leave, and nobody has owned after it");
                process.left = true;
                process.runs_exclusive_work = false;
            }
            Note::Exit => assert!(process.left, "exit without leave: {:?}", process.notes),
            Note::Serving => {
                process.runs_exclusive_work = true;
            }
            Note::Started | Note::Failed(_) => {}
        }
        process.notes.push(note.clone());
        let app = process.app;
        match note {
            Note::Started if app.wants == Wants::Takeover => self.arm(pid, Key::WarmUp, app.warm_up),
            Note::Release => {
                self.processes[pid].released = true;
                if let Some(release) = app.release {
                    self.arm(pid, Key::Release, release);
                }
            }
            Note::Leave(_) => self.arm(pid, Key::Drain, app.drain),
            Note::Exit | Note::Failed(_) => self.die(pid),
            _ => {}
        }
    }

    fn become_owner(&mut self, pid: Pid, generation: u64) {
        let process = &mut self.processes[pid];
        let who = Who { pid: pid as u32, app_version: String::new() };
        let mut predecessor =
            Predecessor::new(generation, ENTRIES, process.app.exclusive, Deadlines::default(), who, 128);
        predecessor.set_confirms(process.app.confirms);
        let kind = crate::manifest::StateKind { schema: "count".to_owned(), version: 1 };
        predecessor.set_state(process.app.state.then_some(kind));
        if let (Some(link), Some(successor)) = (process.link, &process.successor)
            && let Some(span) = successor.probation()
        {
            let takes_state = process.app.state && successor.state_kind().is_some();
            let who = successor.predecessor().clone();
            predecessor.enter_probation(
                link as u64,
                successor.nonce(),
                who,
                Takes { state: takes_state, hold: true },
                span,
            );
        }
        process.predecessor = Some(predecessor);
    }

    fn serve(&mut self, pid: Pid) {
        self.owner(pid, predecessor::Input::Ready);
        self.note(pid, Note::Serving);
    }

    fn perform_starter(&mut self, pid: Pid, output: starter::Output) {
        let process = &mut self.processes[pid];
        match output {
            starter::Output::Connect => {
                let input = if self.family_lives() {
                    self.links.push(Link {
                        ends: [Some(pid), None],
                        queues: [VecDeque::new(), VecDeque::new()],
                        sent: [0, 0],
                        closed: [false, false],
                        cut: false,
                        carries_family: false,
                    });
                    let link = self.links.len() - 1;
                    self.backlog.push_back(link);
                    self.processes[pid].link = Some(link);
                    starter::Input::Connected
                } else {
                    starter::Input::Unreachable
                };
                self.processes[pid].work.push_front(Work::Starter(input));
            }
            starter::Output::TakeLease => {
                let answer = if self.processes[pid].app.wants == Wants::Rehearsal {
                    Lease::Busy { owned: true }
                } else if self.family_lives() || self.processes.iter().any(|process| process.alive && process.lease) {
                    Lease::Busy { owned: self.file.owner.is_some() || !self.file.shared.is_empty() }
                } else {
                    self.processes[pid].lease = true;
                    Lease::Taken
                };
                self.processes[pid].work.push_front(Work::Starter(starter::Input::Lease(answer)));
            }
            starter::Output::DropLease => self.drop_family(pid),
            starter::Output::TakeLock => {
                let taken = self.may_bar(pid) && self.lock_owner(pid);
                if taken {
                    let generation = self.file.generation + 1;
                    self.write(pid, generation, 0);
                    self.become_owner(pid, generation);
                }
                self.processes[pid].work.push_front(Work::Starter(starter::Input::Lock(taken)));
            }
            starter::Output::Join => {
                let nonce = 1000 + self.links.len() as u64;
                let who = Who { pid: pid as u32, app_version: String::new() };
                let state = process.app.state;
                let probation_ms = process.app.probation.map(|span| span.as_millis() as u64);
                let hello = Hello { state, probation_ms, ..Successor::hello(nonce, who, process.app.wants, None) };
                let mut out = Vec::new();
                let deadlines = Deadlines::default();
                process.successor = Some(Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out));
                // As the driver does: performed at once, before what else the starter wants.
                for output in out.into_iter().rev() {
                    process.todo.push_front(Todo::Successor(output));
                }
            }
            starter::Output::HangUp => {
                if let Some(link) = process.link {
                    self.backlog.retain(|waiting| *waiting != link);
                    self.hang_up(pid, link);
                }
            }
            starter::Output::Found => {
                process.family = true;
                process.accepting = true;
                process.entries = ENTRIES;
                self.note(pid, Note::Started);
            }
            starter::Output::Fail(failure) => self.note(pid, Note::Failed(format!("{failure:?}"))),
            starter::Output::Arm(timer, after) => self.arm(pid, Key::Starter(timer), after),
            starter::Output::Disarm(timer) => {
                process.timers.remove(&Key::Starter(timer));
            }
        }
    }

    fn perform_successor(&mut self, pid: Pid, output: successor::Output) {
        let process = &mut self.processes[pid];
        match output {
            successor::Output::Send(message) => {
                if let Some(link) = process.link {
                    self.send(pid, link, message);
                }
            }
            successor::Output::Keep(entries) => process.listed += entries.len() as u32,
            successor::Output::Reserve(_) => {
                process.work.push_front(Work::Successor(successor::Input::Reserved(Ok(()))));
            }
            successor::Output::JoinTakeover => {
                self.file.shared.insert(pid);
            }
            successor::Output::LeaveTakeover => {
                self.file.shared.remove(&pid);
            }
            successor::Output::TakeLock { generation, nonce, bare } => {
                let ours = self.file.generation == generation && (self.file.nonce == nonce || self.file.nonce == 0);
                let owned = self.file.owner.is_some_and(|owner| owner != pid);
                let lock = if owned {
                    if ours || bare { Lock::Busy } else { Lock::Foreign }
                } else if ours || bare || self.may_bar(pid) {
                    self.file.owner = Some(pid);
                    let process = &self.processes[pid];
                    let lost = self.file.stateful == Some(nonce) && process.app.state && process.state != Some(true);
                    assert!(!lost, "{pid} owns without the state that was given up for it: {process:#?}");
                    Lock::Taken { generation: self.file.generation }
                } else {
                    Lock::Unsettled
                };
                self.processes[pid].work.push_front(Work::Successor(successor::Input::Lock(lock)));
            }
            successor::Output::Record { generation } => {
                self.write(pid, generation, 0);
                self.become_owner(pid, generation);
            }
            successor::Output::Close => {
                if let Some(link) = process.link {
                    self.hang_up(pid, link);
                }
            }
            successor::Output::Tells(notice) => match notice {
                successor::Notice::Received { .. } => {
                    let mut out = Vec::new();
                    if let Some(starter) = &mut process.starter {
                        starter.joined(&mut out);
                    }
                    for output in out.into_iter().rev() {
                        process.todo.push_front(Todo::Starter(output));
                    }
                    self.note(pid, Note::Started);
                }
                successor::Notice::Owner { cold } => {
                    process.accepting = true;
                    if !cold {
                        self.serve(pid);
                    }
                }
                // For a holder alone, of which this world has none.
                successor::Notice::Changed | successor::Notice::Ended(_) => {}
                successor::Notice::Failed(failure) => self.failed(pid, &failure),
            },
            successor::Output::Arm(timer, after) => self.arm(pid, Key::Successor(timer), after),
            successor::Output::Disarm(timer) => {
                process.timers.remove(&Key::Successor(timer));
            }
        }
    }

    /// As the driver does: before anything was received the start goes on, afterwards the application is told.
    fn failed(&mut self, pid: Pid, failure: &Failure) {
        let process = &mut self.processes[pid];
        let starting = process.starter.as_ref().is_some_and(|starter| !starter.is_over());
        let again = match failure {
            Failure::Refused(why) if starting => Some(starter::Input::Refused(why.clone())),
            Failure::NotServed | Failure::Superseded if starting => Some(starter::Input::NotServed),
            Failure::Deadline(..) if starting && process.listed == 0 => Some(starter::Input::Silent),
            _ => None,
        };
        process.timers.retain(|key, _| !matches!(key, Key::Successor(_)));
        process.elder = None;
        process.successor = None;
        if let Some(link) = process.link {
            self.backlog.retain(|waiting| *waiting != link);
            self.hang_up(pid, link);
        }
        self.drop_family(pid);
        match again {
            Some(input) => self.processes[pid].work.push_back(Work::Starter(input)),
            None => self.note(pid, Note::Failed(format!("{failure:?}"))),
        }
    }

    fn perform_predecessor(&mut self, pid: Pid, output: predecessor::Output) {
        use predecessor::Output;
        let process = &mut self.processes[pid];
        match output {
            Output::Send(peer, message) => self.send(pid, peer as LinkId, message),
            Output::Refuse(peer, why) => {
                self.send(pid, peer as LinkId, Message::Refused(why));
                self.close(pid, peer as LinkId);
            }
            Output::SendManifest(peer) => {
                let entry = |name: u32| Entry {
                    name: name.to_string(),
                    kind: Kind::Raw,
                    address: String::new(),
                    requested: String::new(),
                    path: None,
                    path_inode: None,
                    backlog: None,
                    file: None,
                    socket: None,
                    retired: false,
                };
                for first in (0..ENTRIES).step_by(200) {
                    let entries = (first..(first + 200).min(ENTRIES)).map(|number| entry(number).into()).collect();
                    self.send(pid, peer as LinkId, Entries { entries }.into());
                }
            }
            Output::SendDescriptors { peer, first, count } => {
                let link = peer as LinkId;
                if first == 0 && process.predecessor.as_ref().is_some_and(|owner| owner.is_heir(peer)) {
                    let reader = self.links[link].ends[0].is_some_and(|pid| self.processes[pid].alive);
                    let open = !self.links[link].cut && !self.links[link].closed[1];
                    self.links[link].carries_family = reader && open;
                }
                self.send(pid, link, Message::Descriptors(count));
            }
            Output::SendState(peer, state) => {
                self.send(pid, peer as LinkId, state.into());
                self.send(pid, peer as LinkId, Message::Descriptors(1));
            }
            Output::Tell { .. } | Output::TellHistory(_) | Output::Steer(..) | Output::Hold(_) => {}
            Output::Await(peer) => {
                process.timers.remove(&Key::Peer(peer as LinkId));
            }
            Output::EndProbation => {
                self.file.shared.remove(&pid);
            }
            Output::Close(peer) => self.close(pid, peer as LinkId),
            Output::JoinTakeover => {
                self.file.shared.insert(pid);
            }
            Output::LeaveTakeover => {
                self.file.shared.remove(&pid);
            }
            Output::Record { generation, nonce } => self.write(pid, generation, nonce),
            Output::StopControl => process.accepting = false,
            Output::StartControl => process.accepting = true,
            Output::Unlock => {
                assert_eq!(self.file.owner, Some(pid), "unlocks what it does not have");
                self.file.owner = None;
                self.file.stateful = process.app.state.then_some(self.file.nonce);
            }
            Output::Claim(claim) => {
                let found = self.reclaim(pid, claim);
                self.processes[pid].work.push_front(Work::Predecessor(predecessor::Input::Claimed(found)));
            }
            Output::Tells(notice) => {
                let note = match notice {
                    predecessor::Notice::Release => Note::Release,
                    predecessor::Notice::StandBy => Note::StandBy,
                    predecessor::Notice::Resume => Note::Resume,
                    predecessor::Notice::Leave(reason) => Note::Leave(reason),
                    predecessor::Notice::Cancelled => Note::Exit,
                    predecessor::Notice::Replaced => return,
                    predecessor::Notice::Exit => Note::Exit,
                };
                self.note(pid, note);
            }
            Output::Arm(timer, after) => self.arm(pid, Key::Predecessor(timer), after),
            // Of holders alone, of which this world has none.
            Output::ArmHolder(..) | Output::ArmHolding(..) | Output::DisarmHolder(_) => {}
            Output::Disarm(timer) => {
                process.timers.remove(&Key::Predecessor(timer));
            }
        }
    }

    /// Everything that was sent is written at once here, so the connection closes at once.
    fn close(&mut self, pid: Pid, link: LinkId) {
        if self.processes[pid].peers.contains(&link) || self.processes[pid].link == Some(link) {
            self.hang_up(pid, link);
        }
    }

    fn reclaim(&mut self, pid: Pid, claim: Claim) -> Found {
        let own = self.processes[pid].predecessor.as_ref().map_or(0, Predecessor::generation);
        if let Claim::StandBy(nonce) = claim {
            return self.take_back(pid, own + 1, nonce);
        }
        let shared = claim == Claim::Shared && self.file.generation == own;
        if claim == Claim::Shared && !shared {
            self.file.shared.remove(&pid);
        }
        if claim != Claim::Bare && !shared && !self.may_bar(pid) {
            let owned = self.file.owner.is_some_and(|owner| owner != pid);
            return if owned { Found::Held } else { Found::Barred };
        }
        if !self.lock_owner(pid) {
            return Found::Held;
        }
        Found::Free(self.file.generation)
    }

    fn take_back(&mut self, pid: Pid, expected: u64, nonce: u64) -> Found {
        let same = self.file.generation == expected;
        if !self.lock_owner(pid) {
            let goes_on = same && self.file.shared.iter().any(|other| *other != pid);
            return if goes_on { Found::Held } else { Found::Over };
        }
        match self.file.nonce {
            found if same && found == nonce => {
                let process = &self.processes[pid];
                let lost = self.file.stateful == Some(nonce) && process.app.state && process.returned != Some(true);
                assert!(!lost, "{pid} owns without the state that was given back: {process:#?}");
                Found::Returned(expected)
            }
            0 if same => Found::Free(expected),
            _ => {
                self.file.owner = None;
                Found::Over
            }
        }
    }

    /// The process that owns and serves, where there is exactly one that does.
    pub(super) fn owner_pid(&self) -> Option<Pid> {
        let owners: Vec<Pid> = (0..self.processes.len())
            .filter(|pid| {
                let process = &self.processes[*pid];
                process.alive && process.predecessor.as_ref().is_some_and(|owner| owner.phase() == Phase::Serving)
            })
            .collect();
        assert!(owners.len() <= 1, "{owners:?} serve");
        owners.first().copied()
    }

    /// An owner that nobody talks to wakes for nothing.
    pub(super) fn assert_idle(&self, pid: Pid) {
        let process = &self.processes[pid];
        assert!(process.timers.is_empty(), "{pid} idles with {:?}", process.timers);
        assert!(process.accepting, "{pid} does not answer the control socket");
        assert!(!self.file.shared.contains(&pid), "{pid} keeps the takeover lock");
        assert_eq!(self.file.owner, Some(pid));
        assert_eq!(self.file.nonce, 0, "no takeover is under way");
        assert!(!process.released && !process.stands_by && !process.left, "its application rests: {:?}", process.notes);
        assert!(process.runs_exclusive_work);
        assert_eq!(self.file.generation, process.predecessor.as_ref().unwrap().generation());
    }

    /// The notes of a process, those about its start left out.
    pub(super) fn told(&self, pid: Pid) -> Vec<Note> {
        let notes = self.processes[pid].notes.iter();
        notes.filter(|note| !matches!(note, Note::Started | Note::Serving)).cloned().collect()
    }

    /// Whether a process gave up with an error.
    pub(super) fn has_failed(&self, pid: Pid) -> Option<&str> {
        self.processes[pid].notes.iter().find_map(|note| match note {
            Note::Failed(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// Ends the attempt of a process that has received everything, as its application may.
    pub(super) fn cancel(&mut self, pid: Pid) {
        let why = Refusal::new("cancelled", "the successor was cancelled");
        self.processes[pid].work.push_back(Work::Successor(successor::Input::Cancel(why)));
    }
}
