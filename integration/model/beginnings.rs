//! Where the runs begin.

use super::actions::Action;
use super::kernel::{Pid, link_of};
use super::settling;
use super::world::{Rules, World};
use crate::protocol::message::Wants;
use crate::status::Phase;

/// Nobody is there.
pub(super) fn nothing(processes: usize) -> World {
    World::new(processes, 0)
}

/// Process 0 serves, and nothing else happens.
pub(super) fn serving(rules: &Rules, processes: usize, clients: usize) -> World {
    let mut world = World::new(processes, clients);
    world.start(rules, 0, Wants::Takeover);
    run_until(rules, &mut world, |world| settling::owner(world) == Some(0));
    world
}

/// Process 1 owns, and process 0 drains.
pub(super) fn draining(rules: &Rules, processes: usize) -> World {
    let mut world = serving(rules, processes, 0);
    world.start(rules, 1, Wants::Takeover);
    run(rules, &mut world);
    assert_eq!(settling::owner(&world), Some(1));
    assert_eq!(phase(&world, 0), Some(Phase::Draining));
    world
}

/// Process 1 owns, and process 0 has not heard of it: the connection broke.
pub(super) fn silent(rules: &Rules, processes: usize) -> World {
    let mut world = serving(rules, processes, 0);
    world.start(rules, 1, Wants::Takeover);
    run_until(rules, &mut world, |world| world.process(1).believes());
    world.apply(rules, Action::Cut(link_of(1, 0)));
    run(rules, &mut world);
    assert_eq!(settling::owner(&world), Some(1));
    assert_eq!(phase(&world, 0), Some(Phase::HandingOver));
    world
}

fn phase(world: &World, pid: Pid) -> Option<Phase> {
    world.process(pid).predecessor.as_ref().map(|owner| owner.phase())
}

/// Runs until nothing more happens without a deadline.
fn run(rules: &Rules, world: &mut World) {
    while let Some(action) = settling::quiet(rules, world) {
        world.apply(rules, action);
    }
}

fn run_until(rules: &Rules, world: &mut World, there: impl Fn(&World) -> bool) {
    while !there(world) {
        let action = settling::quiet(rules, world);
        world.apply(rules, action.unwrap_or_else(|| panic!("it comes to rest before that: {world:#?}")));
    }
}
