//! What the runs must come to: a model that never gets there proves nothing.

use super::application::Phase;
use super::kernel::Packet;
use super::process::{Key, Life, Op, Process};
use super::settling;
use super::takeovers::Takeovers;
use super::world::World;
use crate::protocol::Timer;
use crate::protocol::message::{Abort, Message};
use crate::protocol::predecessor::{self, Predecessor};
use crate::protocol::successor::{self, Failure, Successor};
use crate::status;

/// A place that a run comes to, by its name.
pub(super) type Reached = (&'static str, fn(&Takeovers, &World) -> bool);

pub(super) const TAKEN_OVER: Reached = ("a takeover completes", |_, world| {
    settling::owner(world).is_some_and(|owner| owner > 0) && world.process(0).life == Life::Over
});
pub(super) const TAKEN_BACK: Reached =
    ("a predecessor takes back what nobody took", |_, world| resumes(world, |process| process.generation() == 1));
pub(super) const COMES_BACK: Reached =
    ("a predecessor comes back as a later generation", |_, world| resumes(world, |process| process.generation() > 2));
pub(super) const LAST_HOLDER: Reached = ("a successor is the last holder, and knows it", |_, world| {
    world.processes.iter().any(|process| {
        let alone = process.successor.as_ref().is_some_and(Successor::predecessor_died);
        alone && process.predecessor.is_none() && process.service.is_some()
    })
});
pub(super) const COLD: Reached = ("a successor owns before its application is ready", |_, world| {
    world.processes.iter().any(|process| {
        process.successor.is_some() && process.predecessor.is_some() && process.app.phase == Phase::WarmingUp
    })
});
pub(super) const SILENT: Reached = ("a predecessor waits for a silent successor", |_, world| {
    let silent = |owner: &Predecessor| owner.takeover().is_some_and(|(_, step, _)| step == "silent");
    world.processes.iter().any(|process| process.predecessor.as_ref().is_some_and(silent))
});
pub(super) const STOPPED_OWNER: Reached =
    ("a stopped process holds byte 0", |_, world| world.kernel.owner.is_some_and(|owner| world.process(owner).stopped));
pub(super) const GAVE_UP: Reached = ("a successor is told that it is called off", |_, world| {
    fails(world, |failure| matches!(failure, Failure::GaveUp(_)))
});
pub(super) const SUPERSEDED: Reached =
    ("a successor finds that it is superseded", |_, world| fails(world, |failure| *failure == Failure::Superseded));
pub(super) const IN_PART: Reached = ("a successor owns with a part of the descriptors", |_, world| {
    let part = Op::Successor(successor::Output::Tells(successor::Notice::Received { whole: false }));
    world.processes.iter().any(|process| process.todo.contains(&part))
});
pub(super) const BUSY: Reached = ("a second successor is refused as busy", |_, world| {
    says(world, |message| matches!(message, Message::Refused(why) if why.code == "busy"))
});
pub(super) const PREEMPTED: Reached = ("a takeover ends a rehearsal", |_, world| {
    says(world, |message| matches!(message, Message::Abort(Abort(why)) if why.code == "preempted"))
});
pub(super) const BARRED: Reached = ("a process that drains has patience with byte 1", |_, world| {
    world.processes.iter().any(|process| {
        let drains = process.predecessor.as_ref().is_some_and(|owner| owner.phase() == status::Phase::Draining);
        drains && process.timers.has(Key::Predecessor(Timer::Commit))
    })
});
pub(super) const BARE: Reached = ("a process that drains tries byte 0 without byte 1", |_, world| {
    let bare = Op::Predecessor(predecessor::Output::Claim(predecessor::Claim::Bare));
    world.processes.iter().any(|process| process.todo.contains(&bare))
});
pub(super) const MISSED: Reached = ("an application misses its release", |_, world| {
    world.processes.iter().any(|process| {
        let serves = process.predecessor.as_ref().is_some_and(|owner| owner.phase() == status::Phase::Serving);
        serves && process.app.owes
    })
});
pub(super) const STATE: Reached =
    ("the state arrives", |_, world| world.processes.iter().any(|process| process.state == Some(true)));
pub(super) const STOPS: Reached = ("an owner is asked to stop after `Ready`", |_, world| {
    world.processes.iter().any(|process| {
        let late = |owner: &Predecessor| owner.takeover().is_some_and(|(_, step, _)| step == "released");
        process.asked && process.predecessor.as_ref().is_some_and(late)
    })
});
pub(super) const JOINS: Reached = ("of two that start at once, one joins the other", |_, world| {
    world.kernel.generation == 2 && settling::owner(world).is_some()
});
pub(super) const STOOD_BY: Reached = ("who stood by owns, and nobody has given it back", |_, world| {
    resumes_with(world, |owner| owner.giver().is_none())
});
pub(super) const ROLLED_BACK: Reached =
    ("a service is given back", |_, world| resumes_with(world, |owner| owner.giver().is_some()));
pub(super) const OVERDUE: Reached = ("a probation is over, and nobody says so", |_, world| {
    let overdue = |owner: &Predecessor| owner.stands_by_for().is_some_and(|(_, overdue)| overdue);
    world.processes.iter().any(|process| process.predecessor.as_ref().is_some_and(overdue))
});
pub(super) const ON_PROBATION: Reached = ("a takeover is refused because of a probation", |_, world| {
    says(world, |message| matches!(message, Message::Refused(why) if why.code == "probation"))
});
pub(super) const CONFIRMED: Reached = ("a probation is confirmed", |_, world| {
    let ends = Op::Predecessor(predecessor::Output::EndProbation);
    world.processes.iter().any(|process| process.todo.contains(&ends))
});
pub(super) const SERVED: Reached = ("every client is served", |_, world| {
    world.kernel.clients.iter().all(|client| *client == super::kernel::Client::Served)
});

fn resumes(world: &World, of: impl Fn(&Process) -> bool) -> bool {
    let resumes = Op::Predecessor(predecessor::Output::StartControl);
    world.processes.iter().any(|process| process.todo.contains(&resumes) && of(process))
}

/// As the third generation, after the second has owned.
fn resumes_with(world: &World, of: impl Fn(&Predecessor) -> bool) -> bool {
    resumes(world, |process| process.generation() == 3 && process.predecessor.as_ref().is_some_and(&of))
}

fn fails(world: &World, of: impl Fn(&Failure) -> bool) -> bool {
    world.processes.iter().any(|process| {
        process.todo.iter().any(|op| match op {
            Op::Successor(successor::Output::Tells(successor::Notice::Failed(failure))) => of(failure),
            _ => false,
        })
    })
}

fn says(world: &World, of: impl Fn(&Message) -> bool) -> bool {
    world.kernel.links.iter().flat_map(|link| &link.unread[0]).any(|packet| match packet {
        Packet::Message(message) => of(message),
        _ => false,
    })
}
