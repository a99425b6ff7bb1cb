//! Whole takeovers, with each message lost, late or doubled, and with each side killed, stopped or asked to stop between
//! any two of its actions.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{App, Blow, Note, Pid, Trouble, World};
use crate::protocol::message::Wants;
use crate::protocol::predecessor::Reason;

/// Longer than all deadlines of one side together.
pub(super) const AN_AGE: Duration = Duration::from_secs(1500);
/// Longer than all starts, warm-ups and drains after it.
pub(super) const AGES: Duration = Duration::from_secs(6000);

pub(super) const OLD: Pid = 0;
pub(super) const NEW: Pid = 1;

/// A world in which one process serves and nothing else happens.
pub(super) fn serving(app: App, seed: u64) -> World {
    let mut world = World::new(seed);
    assert_eq!(world.spawn(app), OLD);
    world.run(AN_AGE);
    assert_eq!(world.owner_pid(), Some(OLD));
    world.assert_idle(OLD);
    world
}

/// How many outputs old and new perform, and how many messages go each way, where nothing goes wrong.
fn measure(app: App) -> ([usize; 2], [usize; 2]) {
    let mut world = serving(app, 0);
    let before = world.processes[OLD].performed;
    world.spawn(app);
    world.run(AN_AGE);
    ([world.processes[OLD].performed - before, world.processes[NEW].performed], world.carried())
}

/// The applications that the tests below run with.
fn apps() -> [App; 3] {
    let plain = App { exclusive: false, state: false, drain: Duration::ZERO, ..App::default() };
    [App::default(), App { state: false, ..App::default() }, plain]
}

/// Whatever has happened: in the end one process owns and rests, and whoever comes next takes over from it.
pub(super) fn assert_sound(mut world: World, what: &str) -> World {
    world.calm();
    world.run(AGES);
    let mut owner = world.owner_pid();
    if let Some(owner) = owner {
        world.assert_idle(owner);
    }
    for _ in 0..2 {
        let next = world.spawn(App::default());
        world.run(AGES);
        assert_eq!(
            world.owner_pid(),
            Some(next),
            "{what}: {:?} did not take over from {owner:?}",
            world.processes[next]
        );
        world.assert_idle(next);
        if let Some(owner) = owner {
            assert!(!world.processes[owner].alive, "{what}: {owner} stays");
        }
        owner = Some(next);
    }
    world
}

#[test]
fn a_takeover() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(AN_AGE);
        assert_eq!(world.owner_pid(), Some(NEW));
        world.assert_idle(NEW);
        let mut expected = vec![Note::Leave(Reason::Successor), Note::Exit];
        if app.exclusive {
            expected.insert(0, Note::Release);
        }
        assert_eq!(world.told(OLD), expected);
        assert_eq!(world.processes[NEW].predecessor.as_ref().unwrap().generation(), 2);
        assert_sound(world, "after a plain takeover");
    }
}

#[test]
fn a_rehearsal_changes_nothing() {
    let mut world = serving(App::default(), 0);
    let look = world.spawn(App { wants: Wants::Rehearsal, ..App::default() });
    world.run(Duration::from_secs(1));
    assert_eq!(world.processes[look].notes, [Note::Started]);
    assert_eq!(world.told(OLD), []);
    let mut during = world.clone();
    let next = during.spawn(App::default());
    during.run(AN_AGE);
    assert_eq!(during.owner_pid(), Some(next), "a real takeover does not wait for it");
    world.cancel(look);
    world.run(AN_AGE);
    world.assert_idle(OLD);
    assert_sound(world, "after a rehearsal");
}

#[test]
fn each_message_lost_with_the_link() {
    for app in apps() {
        let (_, carried) = measure(app);
        for direction in [0, 1] {
            for nth in 0..carried[direction] {
                let what = format!("cut after message {nth} of direction {direction}");
                let mut world = serving(app, 0);
                world.disturb(direction, nth, Trouble::Cut);
                world.spawn(app);
                world.run(AGES);
                assert!(world.owner_pid().is_some(), "{what}: nobody owns: {:#?}", world.processes);
                assert_sound(world, &what);
            }
        }
    }
}

#[test]
fn each_message_late() {
    for app in apps() {
        let (_, carried) = measure(app);
        for direction in [0, 1] {
            for nth in 0..carried[direction] {
                for seconds in [1, 3, 6, 8, 11, 14, 16, 18, 30, 61, 700] {
                    let what = format!("message {nth} of direction {direction} late by {seconds} s");
                    let mut world = serving(app, 0);
                    world.disturb(direction, nth, Trouble::Delay(Duration::from_secs(seconds)));
                    world.spawn(app);
                    world.run(AGES);
                    assert!(world.owner_pid().is_some(), "{what}: nobody owns: {:#?}", world.processes);
                    assert_sound(world, &what);
                }
            }
        }
    }
}

#[test]
fn each_message_doubled() {
    for app in apps() {
        let (_, carried) = measure(app);
        for direction in [0, 1] {
            for nth in 0..carried[direction] {
                let what = format!("message {nth} of direction {direction} twice");
                let mut world = serving(app, 0);
                world.disturb(direction, nth, Trouble::Double);
                world.spawn(app);
                world.run(AGES);
                assert!(world.owner_pid().is_some(), "{what}: nobody owns: {:#?}", world.processes);
                assert_sound(world, &what);
            }
        }
    }
}

/// Runs a takeover with a blow after each output of one side.
fn struck(pid: Pid, blow: Blow, then: impl Fn(&World, &str)) {
    for app in apps() {
        let (outputs, _) = measure(app);
        for after in 0..=outputs[pid] {
            let what = format!("{blow:?} of process {pid} after {after} outputs, {app:?}");
            let mut world = serving(app, 0);
            if pid == OLD {
                world.strike(OLD, after, blow);
            }
            world.spawn(app);
            if pid == NEW {
                world.strike(NEW, after, blow);
            }
            world.run(AGES);
            then(&world, &what);
            assert_sound(world, &what);
        }
    }
}

#[test]
fn the_predecessor_killed_at_every_step() {
    struck(OLD, Blow::Kill, |world, what| {
        assert_eq!(world.owner_pid(), Some(NEW), "{what}: {:#?}", world.processes[NEW]);
    });
}

#[test]
fn the_successor_killed_at_every_step() {
    struck(NEW, Blow::Kill, |world, what| {
        // Where the old one had already left, nobody can be expected.
        let left = world.told(OLD).last() == Some(&Note::Exit);
        assert_eq!(world.owner_pid(), (!left).then_some(OLD), "{what}: {:#?}", world.processes);
    });
}

#[test]
fn the_predecessor_stopped_at_every_step() {
    struck(OLD, Blow::Stop(AN_AGE), |world, what| {
        assert!(world.owner_pid().is_some(), "{what}: {:#?}", world.processes);
    });
}

#[test]
fn the_successor_stopped_at_every_step() {
    struck(NEW, Blow::Stop(AN_AGE), |world, what| {
        assert!(world.owner_pid().is_some(), "{what}: {:#?}", world.processes);
    });
}

/// Stops that end between the deadlines find the other side in each of its states.
#[test]
fn short_stops_at_every_step() {
    for millis in [500, 1000, 2000, 4000, 6000, 9000, 12_000, 14_500, 15_500, 16_500, 18_000, 25_000, 65_000] {
        for pid in [OLD, NEW] {
            struck(pid, Blow::Stop(Duration::from_millis(millis)), |world, what| {
                assert!(world.owner_pid().is_some(), "{what}: {:#?}", world.processes);
                let why = world.has_failed(NEW).unwrap_or_default();
                assert!(!why.contains("out of order"), "{what}: a stop is no broken protocol: {why}");
            });
        }
    }
}

#[test]
fn the_predecessor_asked_to_stop_at_every_step() {
    struck(OLD, Blow::Ask, |world, what| {
        assert!(!world.processes[OLD].alive, "{what}: it stays: {:#?}", world.processes[OLD]);
    });
}

#[test]
fn the_successor_asked_to_stop_at_every_step() {
    struck(NEW, Blow::Ask, |world, what| {
        let left = world.told(OLD).last() == Some(&Note::Exit);
        assert_eq!(world.owner_pid(), (!left).then_some(OLD), "{what}: {:#?}", world.processes);
    });
}

/// An application that never answers its release costs that takeover, and the next ones until it answers.
#[test]
fn an_application_that_does_not_let_go() {
    let mut world = serving(App { release: None, ..App::default() }, 0);
    world.spawn(App::default());
    world.run(AGES);
    assert_eq!(world.owner_pid(), Some(OLD));
    assert_eq!(world.told(OLD), [Note::Release, Note::Resume]);
    assert!(world.has_failed(NEW).unwrap().contains("release"));
    let next = world.spawn(App::default());
    world.run(AGES);
    assert!(world.has_failed(next).unwrap().contains("releasing"));
    world.assert_idle(OLD);
}

/// Two at once: one is the first, the other its successor.
#[test]
fn two_starters_at_once() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.spawn(App::default());
        world.spawn(App::default());
        world.run(AGES);
        let owner = world.owner_pid().unwrap_or_else(|| panic!("seed {seed}: {:#?}", world.processes));
        world.assert_idle(owner);
        assert_eq!(world.processes[owner].predecessor.as_ref().unwrap().generation(), 2, "seed {seed}");
        assert_sound(world, &format!("two starters, seed {seed}"));
    }
}

/// Two successors at once: one is refused or comes later, and nothing is lost.
#[test]
fn two_successors_at_once() {
    for seed in 0..200 {
        let mut world = serving(App::default(), seed);
        world.spawn(App::default());
        world.spawn(App::default());
        world.run(AGES);
        assert!(matches!(world.owner_pid(), Some(1 | 2)), "seed {seed}: {:#?}", world.processes);
        assert_sound(world, &format!("two successors, seed {seed}"));
    }
}

/// A predecessor that still drains must not win the moment in which its successor's successor hands over: two others are
/// at it, and one of them will own.
#[test]
fn a_process_that_drains_stays_out_of_the_takeovers_after_it() {
    let quick = App { drain: Duration::ZERO, ..App::default() };
    let (outputs, _) = measure(quick);
    for after in 1..=outputs[NEW] {
        let mut world = serving(App { drain: Duration::from_secs(60), ..App::default() }, 0);
        for pid in 1..=3 {
            let next = world.spawn(quick);
            assert_eq!(next, pid);
            if pid == 3 {
                // Slow, and not too slow for its predecessor.
                world.strike(pid, after, Blow::Stop(Duration::from_millis(1600)));
            }
            world.run(Duration::from_secs(10));
        }
        assert_eq!(world.told(OLD), [Note::Release, Note::Leave(Reason::Successor)], "stopped after {after} outputs");
        assert_eq!(world.owner_pid(), Some(3), "stopped after {after} outputs");
        assert_sound(world, "two takeovers during one drain");
    }
}

/// The same for a predecessor that never heard `Owning`: the one that it waits for has owned meanwhile.
#[test]
fn a_process_that_waits_stays_out_of_the_takeovers_after_it() {
    let app = App { exclusive: false, state: false, ..App::default() };
    let (outputs, carried) = measure(app);
    for after in 1..=outputs[NEW] {
        let mut world = serving(app, 0);
        // `owning` and `confirmed` are the last two.
        world.disturb(0, carried[0] - 2, Trouble::Lose);
        assert_eq!(world.spawn(app), NEW);
        world.run(Duration::from_secs(20));
        assert_eq!(world.owner_pid(), Some(NEW));
        assert_eq!(world.told(OLD), [], "it has not heard that it is replaced");
        let next = world.spawn(app);
        world.strike(next, after, Blow::Stop(Duration::from_millis(1600)));
        world.run(Duration::from_secs(20));
        assert_eq!(world.owner_pid(), Some(next), "stopped after {after} outputs");
        assert_sound(world, "a takeover beside a silent one");
    }
}

/// Where the one that it waits for leaves on purpose, nobody else owns: it serves again, and has to be stopped as well.
#[test]
fn a_process_that_waits_comes_back_for_the_one_it_waits_for() {
    for app in apps() {
        let (_, carried) = measure(app);
        let mut world = serving(app, 0);
        world.disturb(0, carried[0] - 2, Trouble::Lose);
        world.spawn(app);
        world.run(Duration::from_secs(20));
        assert_eq!(world.owner_pid(), Some(NEW));
        world.strike(NEW, 0, Blow::Ask);
        world.run(Duration::from_secs(20));
        assert!(!world.processes[NEW].alive);
        assert_eq!(world.owner_pid(), Some(OLD));
        assert_sound(world, "one has left");
    }
}

/// Two that wait, each for the one that came after it, must not bar each other when the last one dies.
#[test]
fn two_processes_that_wait_are_not_in_each_others_way() {
    let app = App { exclusive: false, state: false, ..App::default() };
    let (_, carried) = measure(app);
    let mut world = serving(app, 0);
    for next in [1, 2] {
        world.disturb(0, carried[0] - 2, Trouble::Lose);
        assert_eq!(world.spawn(app), next);
        world.run(Duration::from_secs(20));
        assert_eq!(world.owner_pid(), Some(next));
    }
    world.strike(2, 0, Blow::Kill);
    world.run(Duration::from_secs(20));
    assert!(matches!(world.owner_pid(), Some(OLD | NEW)));
    assert_sound(world, "the last of three has died");
}

fn blow() -> impl Strategy<Value = Blow> {
    prop_oneof![
        Just(Blow::Kill),
        (0u64..700).prop_map(|seconds| Blow::Stop(Duration::from_secs(seconds))),
        (0u64..20_000).prop_map(|millis| Blow::Stop(Duration::from_millis(millis))),
        Just(Blow::Ask),
        Just(Blow::Confirm),
        Just(Blow::GiveBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several starts, one after the other and at once, in any order of steps, and several things go wrong.
    #[test]
    fn anything_goes_wrong(
        seed in 1u64..,
        gaps in prop::collection::vec(0u64..12_000, 2..5),
        blows in prop::collection::vec((0usize..5, 0usize..90, blow()), 0..4),
        trouble in prop::option::of((0usize..2, 0usize..12, 0u64..30_000)),
        exclusive: bool,
        state: bool,
        drain in 0u64..40_000,
        probation in prop::option::of(1u64..30_000),
        confirms: bool,
    ) {
        let probation = probation.map(Duration::from_millis);
        let state = exclusive && state;
        let drain = Duration::from_millis(drain);
        let app = App { exclusive, state, drain, probation, confirms, ..App::default() };
        let mut world = serving(app, seed);
        if let Some((direction, nth, millis)) = trouble {
            let late = Trouble::Delay(Duration::from_millis(millis));
            let troubles = [late, Trouble::Cut, Trouble::Lose, Trouble::Double];
            world.disturb(direction, nth, troubles[millis as usize % 4]);
        }
        for (pid, after, blow) in blows.iter().filter(|(pid, _, _)| *pid == OLD) {
            world.strike(*pid, after + 1, *blow);
        }
        for gap in gaps {
            let next = world.spawn(app);
            for (pid, after, blow) in blows.iter().filter(|(pid, _, _)| *pid == next) {
                world.strike(*pid, after + 1, *blow);
            }
            world.run(Duration::from_millis(gap));
        }
        assert_sound(world, "anything");
    }
}
