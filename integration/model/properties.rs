//! What must hold, under the names of DESIGN.md.

use stateright::Property;

use super::application::{Phase, Told};
use super::process::{Key, Life, Process};
use super::takeovers::Takeovers;
use super::world::World;
use crate::protocol::Timer;
use crate::protocol::predecessor::Predecessor;
use crate::status;

/// What a single step broke. A state cannot tell by itself how it came about, so the step leaves its mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Broken {
    /// A client was refused or reset although somebody should have had the listener.
    pub(super) listens: bool,
    /// Something that only the owner does was done without byte 0.
    pub(super) acts: bool,
    /// The control path was replaced under a living family.
    pub(super) path: bool,
    /// The number in the lock file went back.
    pub(super) goes_back: bool,
    /// Two processes owned under one generation.
    pub(super) fencing: bool,
    /// A process was told that it is followed, and it was not.
    pub(super) leaves: bool,
    /// A process that drained left, and nobody owned.
    pub(super) exits: bool,
    /// A successor whose takeover was over took the lock, and a later one was under way.
    pub(super) stale: bool,
    /// A third process took the lock between the unlock and the commit.
    pub(super) gap: bool,
    /// A successor owns without the state that was given up for it.
    pub(super) state: bool,
}

pub(super) const LISTENS: &str = "1 somebody always listens";
pub(super) const ONE_OWNER: &str = "2 one owner";
pub(super) const EXCLUSIVE: &str = "2 exclusive work runs in the owner alone";
pub(super) const ACTS: &str = "3 nobody acts without the lock";
pub(super) const LEAVES: &str = "3 silence is never death: nobody leaves before somebody has owned";
pub(super) const EXITS: &str = "3 who drains exits only when somebody else owns";
pub(super) const AS_BEFORE: &str = "4 and 7 what comes to nothing leaves the owner as it was";
pub(super) const PATH: &str = "5 the path never disappears";
pub(super) const LEASE: &str = "5 the lease is held while the family lives";
pub(super) const DEADLINE: &str = "6 every wait has a deadline";
pub(super) const IDLE: &str = "6 an idle owner wakes for nothing";
pub(super) const GOES_BACK: &str = "fencing: the generation never goes back";
pub(super) const FENCING: &str = "fencing: a generation has one owner";
pub(super) const STALE: &str = "a successor whose takeover is over never wins";
pub(super) const GAP: &str = "no third process wins between unlock and commit";
pub(super) const STATE: &str = "the state goes before the lock";
pub(super) const ENDS_WELL: &str = "in the end one process owns and serves";
pub(super) const STOPPED: &str = "in the end nobody waits for ever for a stopped one";

pub(super) fn properties() -> Vec<Property<Takeovers>> {
    vec![
        Property::always(LISTENS, |_, world: &World| !world.broken.listens),
        Property::always(ONE_OWNER, |_, world: &World| one_owner(world)),
        Property::always(EXCLUSIVE, |_, world: &World| exclusive(world)),
        Property::always(ACTS, |_, world: &World| !world.broken.acts),
        Property::always(LEAVES, |_, world: &World| !world.broken.leaves),
        Property::always(EXITS, |_, world: &World| !world.broken.exits),
        Property::always(AS_BEFORE, |_, world: &World| as_before(world)),
        Property::always(PATH, |_, world: &World| path(world)),
        Property::always(LEASE, |_, world: &World| lease(world)),
        Property::always(DEADLINE, |_, world: &World| deadlines(world)),
        Property::always(IDLE, |_, world: &World| idle(world)),
        Property::always(GOES_BACK, |_, world: &World| !world.broken.goes_back),
        Property::always(FENCING, |_, world: &World| !world.broken.fencing),
        Property::always(STALE, |_, world: &World| !world.broken.stale),
        Property::always(GAP, |_, world: &World| !world.broken.gap),
        Property::always(STATE, |_, world: &World| !world.broken.state),
        Property::always(ENDS_WELL, Takeovers::ends_well),
        Property::always(STOPPED, Takeovers::nobody_waits_for_ever),
    ]
}

/// Who believes to own holds byte 0, so there are never two.
fn one_owner(world: &World) -> bool {
    world.pids().all(|pid| !world.process(pid).believes() || world.kernel.owner == Some(pid))
}

/// Work that must not run twice runs in the holder of byte 0.
fn exclusive(world: &World) -> bool {
    world.pids().all(|pid| {
        let process = world.process(pid);
        process.life != Life::Runs || !process.app.works || world.kernel.owner == Some(pid)
    })
}

/// An owner with no takeover under way holds what it held before, whatever was tried in between.
fn as_before(world: &World) -> bool {
    world.pids().all(|pid| {
        let process = world.process(pid);
        let serves = |owner: &Predecessor| owner.phase() == status::Phase::Serving;
        if !process.waits() || !process.predecessor.as_ref().is_some_and(serves) {
            return true;
        }
        let holds = process.lease.is_some() && process.lock && process.control.is_some() && process.service.is_some();
        let kernel = &world.kernel;
        // On probation it stays a party of its takeover, where it could become one.
        let probation = process.predecessor.as_ref().is_some_and(|owner| owner.stands_by().is_some());
        let locks = kernel.owner == Some(pid) && (probation || !kernel.parties.has(pid)) && kernel.bar != Some(pid);
        let file = (kernel.generation, kernel.nonce) == (process.generation(), 0);
        // The application has been told, or is about to be, that it goes on.
        let told =
            process.app.phase != Phase::Serving || process.app.accepts || process.app.told.contains(&Told::Resume);
        holds && locks && file && told && process.accepting
    })
}

/// Whoever has a control listener has the one at the path.
fn path(world: &World) -> bool {
    !world.broken.path
        && world.pids().all(|pid| world.process(pid).control.is_none_or(|id| world.kernel.path == Some(id)))
}

/// Whoever has a copy of the lease has one that is held.
fn lease(world: &World) -> bool {
    world.pids().all(|pid| world.process(pid).lease.is_none_or(|id| world.kernel.lease == Some(id)))
}

/// Who waits for somebody else has a deadline armed.
fn deadlines(world: &World) -> bool {
    // Where the application has been told something, it is its turn.
    let turn = |process: &&Process| process.waits() && process.app.told.is_empty();
    world.pids().map(|pid| world.process(pid)).filter(turn).all(|process| {
        let armed = |of: fn(Key) -> bool| process.timers.iter().any(of);
        if let Some(owner) = &process.predecessor {
            // The release is the application's to answer, and has a deadline all the same.
            let waits = matches!(
                owner.phase(),
                status::Phase::HandingOver | status::Phase::Draining | status::Phase::StandingBy
            );
            let probation = owner.phase() == status::Phase::Serving && owner.stands_by().is_some();
            return !(waits || probation) || armed(|key| matches!(key, Key::Predecessor(_)));
        }
        let starting = process.starter.as_ref().is_some_and(|starter| !starter.is_over());
        match &process.successor {
            // It waits for its own application, as long as that likes; the owner has deadlines.
            Some(_) if process.app.phase != Phase::Committing && !starting => true,
            Some(_) => armed(|key| matches!(key, Key::Successor(_))),
            None => !starting || armed(|key| matches!(key, Key::Starter(_))),
        }
    })
}

/// An owner that nobody talks to has no deadline armed.
fn idle(world: &World) -> bool {
    world.pids().map(|pid| world.process(pid)).filter(|process| process.waits()).all(|process| {
        let serves = |owner: &Predecessor| owner.phase() == status::Phase::Serving;
        let idle = process.predecessor.as_ref().is_some_and(serves) && process.peers.is_empty();
        let probation = process.predecessor.as_ref().is_some_and(|owner| owner.stands_by().is_some());
        let own = |key: Key| {
            matches!(key, Key::Predecessor(timer) if timer != Timer::Rehearsal && !(probation && timer == Timer::Probation)) || matches!(key, Key::Starter(_))
        };
        !idle || !process.timers.iter().any(own)
    })
}
