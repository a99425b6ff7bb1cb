//! How a state ends where nothing more goes wrong.
//!
//! stateright looks for an end of each path, and these paths have none: a process that waits looks at the lock each second.
//! So each state is asked what comes of it by one fair run without further faults, in which a deadline passes only when
//! nothing else can happen, the short ones first. Such a run is found from *every* state that the checker reaches, so no
//! fault leads to a place that leads nowhere. Its states are mostly known already: what comes of them is remembered.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use super::actions::{Action, Event};
use super::application::Phase;
use super::kernel::{Client, LINKS_EACH, Pid, link_of};
use super::process::{Key, Life, Process};
use super::takeovers::Takeovers;
use super::world::{ALWAYS, Budget, Rules, World};
use crate::protocol::Timer;
use crate::protocol::message::Wants;
use crate::protocol::predecessor::Predecessor;
use crate::status;

/// More steps than any run takes: beyond it, something spins.
const SPIN: usize = 20_000;

/// What came of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// One process owns, serves and rests.
    pub(super) owned: bool,
    /// A process that runs is left waiting, or it never came to an end.
    pub(super) stuck: bool,
    /// A client is still in the queue.
    pub(super) waiting: bool,
    /// Whoever starts next owns, and the others leave.
    pub(super) followed: bool,
}

/// What is known of how states end.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<u64, End>>);

impl Memory {
    fn get(&self, state: u64) -> Option<End> {
        self.0.lock().unwrap().get(&state).copied()
    }

    fn keep(&self, states: &[u64], end: End) {
        self.0.lock().unwrap().extend(states.iter().map(|state| (*state, end)));
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

impl Takeovers {
    /// From here on nothing goes wrong, and whoever was stopped goes on.
    pub(super) fn ends_well(&self, world: &World) -> bool {
        let mut calm = world.clone();
        for process in &mut calm.processes {
            process.stopped = false;
        }
        let stays = calm.pids().any(|pid| calm.stands(pid));
        let end = self.end(calm);
        let served = if end.owned { !end.waiting } else { !stays };
        !end.stuck && served && end.followed
    }

    /// From here on nothing else goes wrong, and whoever is stopped stays so.
    pub(super) fn nobody_waits_for_ever(&self, world: &World) -> bool {
        !world.processes.iter().any(|process| process.stopped) || !self.end(world.clone()).stuck
    }

    fn end(&self, mut world: World) -> End {
        world.budget = Budget { deadlines: ALWAYS, ..Budget::default() };
        world.to_start = Vec::new();
        let rules = Rules { attempts: LINKS_EACH - 2, ..self.rules.clone() };
        settle(&rules, &self.memory, world, true)
    }
}

fn settle(rules: &Rules, memory: &Memory, mut world: World, follow: bool) -> End {
    let mut trail = Vec::new();
    let mut seen = HashSet::new();
    let mut level = 0;
    let end = loop {
        let state = fingerprint(&world);
        if let Some(end) = memory.get(state).filter(|_| follow) {
            break end;
        }
        trail.push(state);
        if trail.len() > SPIN {
            break End { owned: false, stuck: true, waiting: true, followed: false };
        }
        if let Some(action) = quiet(rules, &world) {
            world.apply(rules, action);
            continue;
        }
        // Nothing can happen but that deadlines pass. Where the short ones change nothing, longer ones do.
        let mut next = world.clone();
        sweep(rules, &mut next, level);
        if next != world && seen.insert(fingerprint(&next)) {
            world = next;
            level = 0;
        } else if level < LEVELS {
            level += 1;
        } else {
            break judge(rules, memory, &world, follow);
        }
    };
    if follow {
        memory.keep(&trail, end);
    }
    end
}

/// What happens next of what needs no time. The kernel closes at once what the dead had open.
pub(super) fn quiet(rules: &Rules, world: &World) -> Option<Action> {
    let mut actions = Vec::new();
    world.actions(rules, &mut actions);
    actions.sort_by_key(|action| !matches!(action, Action::Close(..)));
    actions.into_iter().find(|action| match action {
        Action::Step(_) | Action::StepWithoutByte1(_) | Action::Close(..) => true,
        Action::Event(_, event) => match event {
            Event::Expire(_) | Event::Drained | Event::Asked | Event::Garbage => false,
            Event::Drop => true, // Without a budget, only a rehearsal does.
            _ => true,
        },
        _ => false,
    })
}

const LEVELS: u8 = 3;

fn level_of(key: Key) -> u8 {
    match key {
        Key::Starter(timer) | Key::Successor(timer) | Key::Predecessor(timer) => match timer {
            Timer::Probe | Timer::Retry => 0,
            Timer::Commit => 1,
            Timer::Handshake | Timer::Release | Timer::Rehearsal | Timer::Stall | Timer::Grace => 2,
            Timer::Delivery | Timer::WarmUp | Timer::Start | Timer::Orphan | Timer::Probation => 3,
        },
        Key::Peer(_) => 2,
    }
}

/// Each deadline up to a level passes once, and what comes of it happens.
pub(super) fn sweep(rules: &Rules, world: &mut World, level: u8) {
    for pid in world.pids() {
        let due: Vec<Key> = world.process(pid).timers.iter().filter(|key| level_of(*key) <= level).collect();
        let due = due.into_iter().map(Event::Expire).chain([Event::Drained]);
        for event in due {
            let action = Action::Event(pid, event);
            let mut actions = Vec::new();
            world.actions(rules, &mut actions);
            if actions.contains(&action) {
                world.apply(rules, action);
                for _ in 0..SPIN {
                    let Some(action) = quiet(rules, world) else { break };
                    world.apply(rules, action);
                }
            }
        }
    }
}

/// The process that owns, serves and waits for nothing.
pub(super) fn owner(world: &World) -> Option<Pid> {
    world.pids().find(|pid| {
        let process = world.process(*pid);
        let serves = |owner: &Predecessor| owner.phase() == status::Phase::Serving;
        process.runs() && process.waits() && process.predecessor.as_ref().is_some_and(serves)
    })
}

/// A process that has given the lock back and has not heard what became of it waits as long as somebody else owns. Where
/// that is its own successor, there must be a reason that it has not heard: that is stopped, or the connection broke.
fn waits_by_right(rules: &Rules, world: &World, process: &Process) -> bool {
    let (Some(owner), Some(machine)) = (world.kernel.owner, &process.predecessor) else { return false };
    let silent = machine.takeover().is_some_and(|(_, step, _)| step == "silent");
    let followed = (0..LINKS_EACH).any(|nth| machine.is_heir(u64::from(link_of(owner, nth))));
    let stopped = world.processes.iter().any(|process| process.stopped);
    let stands_by = machine.stands_by_for().is_some();
    (silent || stands_by) && (!followed || rules.breaks || stopped)
}

fn judge(rules: &Rules, memory: &Memory, world: &World, follow: bool) -> End {
    let owner = owner(world);
    let rests = |pid: Pid, process: &Process| match process.life {
        Life::Unborn | Life::Over => true,
        Life::Ends => false,
        Life::Runs if process.stopped => true,
        Life::Runs if owner == Some(pid) => {
            let app = &process.app;
            app.phase == Phase::Serving && app.accepts && app.works == rules.exclusive && !app.owes
        }
        Life::Runs => waits_by_right(rules, world, process),
    };
    let stuck = !world.pids().all(|pid| rests(pid, world.process(pid)));
    let waiting = world.kernel.clients.iter().any(|client| matches!(client, Client::Waiting(_)));
    let mut end = End { owned: owner.is_some(), stuck, waiting, followed: true };
    let quiet = !world.processes.iter().any(|process| process.stopped);
    if follow && quiet && !stuck {
        let mut after = world.clone();
        let next = after.processes.len() as Pid;
        after.processes.push(Process::unborn());
        after.start(rules, next, Wants::Takeover);
        let then = settle(rules, memory, after, false);
        end.followed = then.owned && !then.stuck && then.followed;
    }
    end
}
