//! Probations: by time, confirmed and rolled back, with each message lost, late or doubled, and with each side killed,
//! stopped or asked to stop between any two of its actions.

use std::time::Duration;

use super::takeover::{AGES, AN_AGE, NEW, OLD, assert_sound, serving};
use super::world::{App, Blow, Note, Pid, Trouble, World};
use crate::protocol::predecessor::{self, Reason};
use crate::status::Phase;

const SPAN: Duration = Duration::from_secs(20);
/// In the middle of the probation: the commit is after 3 s of warm-up.
const MIDDLE: Duration = Duration::from_secs(10);

/// How a probation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Time,
    Confirm,
    GiveBack,
}

const ENDS: [End; 3] = [End::Time, End::Confirm, End::GiveBack];

fn apps() -> [App; 3] {
    let quick = Duration::from_millis(300);
    let with = |app: App| App { probation: Some(SPAN), drain: quick, ..app };
    [
        with(App::default()),
        with(App { state: false, ..App::default() }),
        with(App { exclusive: false, state: false, ..App::default() }),
    ]
}

/// A takeover, and in the middle of its probation what ends it.
fn run(world: &mut World, app: App, end: End) -> Pid {
    let next = world.spawn(app);
    finish(world, next, end);
    next
}

fn finish(world: &mut World, next: Pid, end: End) {
    world.run(MIDDLE);
    match end {
        End::Time => {}
        End::Confirm => world.strike(next, 0, Blow::Confirm),
        End::GiveBack => world.strike(next, 0, Blow::GiveBack),
    }
    world.run(AN_AGE);
}

fn phase(world: &World, pid: Pid) -> Phase {
    world.processes[pid].predecessor.as_ref().unwrap().phase()
}

fn generation(world: &World, pid: Pid) -> u64 {
    world.processes[pid].predecessor.as_ref().unwrap().generation()
}

/// What the predecessor is told, from its release on.
fn notes(app: App, rest: &[Note]) -> Vec<Note> {
    let release = app.exclusive.then_some(Note::Release);
    release.into_iter().chain([Note::StandBy]).chain(rest.iter().cloned()).collect()
}

#[test]
fn the_predecessor_stands_by_until_the_time_has_passed() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        assert_eq!((phase(&world, OLD), phase(&world, NEW)), (Phase::StandingBy, Phase::Serving));
        assert_eq!(world.told(OLD), notes(app, &[]));
        world.run(SPAN);
        assert_eq!(world.owner_pid(), Some(NEW));
        assert_eq!(world.told(OLD), notes(app, &[Note::Leave(Reason::Successor), Note::Exit]));
        world.assert_idle(NEW);
        assert_sound(world, "a probation that has passed");
    }
}

#[test]
fn confirmed_it_is_a_takeover_like_any_other() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(NEW, 0, Blow::Confirm);
        world.run(Duration::from_secs(3));
        assert_eq!(world.told(OLD), notes(app, &[Note::Leave(Reason::Successor), Note::Exit]));
        world.assert_idle(NEW);
        assert_sound(world, "confirmed");
    }
}

#[test]
fn rolled_back_the_predecessor_serves_again() {
    for app in apps() {
        let mut world = serving(app, 0);
        run(&mut world, app, End::GiveBack);
        assert_eq!(world.owner_pid(), Some(OLD));
        assert_eq!(generation(&world, OLD), 3, "the number never goes back");
        assert_eq!(world.told(OLD), notes(app, &[Note::Resume]));
        let mut expected = vec![Note::Leave(Reason::RolledBack), Note::Exit];
        if app.exclusive {
            expected.insert(0, Note::Release);
        }
        assert_eq!(world.told(NEW), expected);
        world.assert_idle(OLD);
        assert_sound(world, "rolled back");
    }
}

#[test]
fn a_successor_that_dies_on_probation_is_followed_by_its_predecessor() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(NEW, 0, Blow::Kill);
        world.run(Duration::from_millis(1));
        assert_eq!(world.owner_pid(), Some(OLD), "at once, and not with the next look");
        assert_eq!(generation(&world, OLD), 3);
        assert_eq!(world.told(OLD), notes(app, &[Note::Resume]));
        world.assert_idle(OLD);
        assert_sound(world, "died on probation");
    }
}

/// A stop of the owner is the end of that process, and not of the service: it goes back in good order.
#[test]
fn a_successor_that_is_asked_to_stop_gives_the_service_back() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(NEW, 0, Blow::Ask);
        world.run(AN_AGE);
        assert_eq!(world.owner_pid(), Some(OLD));
        assert_eq!(world.told(NEW).last(), Some(&Note::Exit));
        world.assert_idle(OLD);
    }
}

/// A stop of the process that stands by is the end of the probation, and nothing else.
#[test]
fn a_process_that_stands_by_and_is_asked_to_stop_leaves_its_successor_alone() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(OLD, 0, Blow::Ask);
        world.run(Duration::from_secs(3));
        assert!(!world.processes[OLD].alive);
        assert_eq!(world.told(OLD), notes(app, &[Note::Leave(Reason::Successor), Note::Exit]));
        assert_eq!(world.told(NEW), [], "and it notices nothing");
        world.assert_idle(NEW);
        assert_sound(world, "the one that stood by has left");
    }
}

#[test]
fn a_takeover_on_probation_is_refused_or_confirms_it() {
    for confirms in [false, true] {
        let app = App { confirms, ..apps()[0] };
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        let third = world.spawn(App { probation: None, ..app });
        world.run(AN_AGE);
        if confirms {
            assert_eq!(world.owner_pid(), Some(third));
            assert!(!world.processes[OLD].alive && !world.processes[NEW].alive);
        } else {
            assert!(world.has_failed(third).unwrap().contains("probation"), "{:?}", world.has_failed(third));
            assert_eq!(world.owner_pid(), Some(NEW));
        }
        assert_sound(world, "a third on probation");
    }
}

/// Stopped for longer than all deadlines, it is not dead: nobody takes the service from it.
#[test]
fn a_successor_that_is_stopped_past_its_time_is_waited_for() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(NEW, 0, Blow::Stop(AN_AGE));
        world.run(AN_AGE - Duration::from_secs(1));
        assert_eq!(phase(&world, OLD), Phase::StandingBy);
        assert!(world.processes[OLD].predecessor.as_ref().unwrap().stands_by_for().unwrap().1, "overdue");
        assert_eq!(world.told(OLD), notes(app, &[]));
        world.run(AN_AGE);
        assert_eq!(world.owner_pid(), Some(NEW));
        assert_eq!(world.told(OLD).last(), Some(&Note::Exit));
        assert_sound(world, "stopped past its probation");
    }
}

/// The link says nothing of who lives: the lock and byte 1 do.
#[test]
fn without_the_link_the_probation_goes_on() {
    for app in apps() {
        for (blow, owner) in [(None, NEW), (Some(Blow::Confirm), NEW), (Some(Blow::Kill), OLD)] {
            let mut world = serving(app, 0);
            world.spawn(app);
            world.run(MIDDLE);
            world.cut(NEW);
            world.run(Duration::from_secs(1));
            assert_eq!((phase(&world, OLD), phase(&world, NEW)), (Phase::StandingBy, Phase::Serving));
            if let Some(blow) = blow {
                world.strike(NEW, 0, blow);
            }
            world.run(AN_AGE);
            assert_eq!(world.owner_pid(), Some(owner), "{blow:?}");
            world.assert_idle(owner);
            assert_eq!(world.told(OLD).contains(&Note::Exit), owner == NEW, "{blow:?}");
            assert_sound(world, "a probation without a link");
        }
    }
}

/// A predecessor that is stopped cannot take the service back: the successor keeps it, and says so.
#[test]
fn a_rollback_that_nobody_takes_comes_to_nothing() {
    for app in apps() {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(OLD, 0, Blow::Stop(AN_AGE));
        world.strike(NEW, 0, Blow::GiveBack);
        world.run(Duration::from_secs(30));
        assert_eq!(world.owner_pid(), Some(NEW));
        assert_eq!(generation(&world, NEW), 2);
        let resumed: &[Note] = if app.exclusive { &[Note::Release, Note::Resume] } else { &[] };
        assert_eq!(world.told(NEW), resumed);
        world.run(AN_AGE);
        assert_eq!(world.told(OLD).last(), Some(&Note::Exit), "it hears of the confirmation when it goes on");
        assert_sound(world, "nobody took it back");
    }
}

/// Its descriptors are old by then: whoever was stopped wakes in the gap of a later takeover, and must not win it.
#[test]
fn one_that_stood_by_does_not_win_a_later_takeover() {
    let app = App { exclusive: false, state: false, ..apps()[2] };
    let probe = {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(AN_AGE);
        let before = world.processes[NEW].performed;
        world.spawn(App { probation: None, ..app });
        world.run(AN_AGE);
        world.processes[NEW].performed - before
    };
    for after in 1..probe {
        let mut world = serving(app, 0);
        world.spawn(app);
        world.run(MIDDLE);
        world.strike(OLD, 0, Blow::Stop(Duration::from_secs(100)));
        world.run(Duration::from_secs(89));
        assert_eq!(world.owner_pid(), Some(NEW));
        // The warm-up of the third ends just when it wakes.
        let third = world.spawn(App { probation: None, warm_up: Duration::from_secs(11), ..app });
        world.strike(NEW, after, Blow::Stop(Duration::from_millis(1500)));
        world.run(AN_AGE);
        assert_ne!(world.owner_pid(), Some(OLD), "stopped after {after} outputs");
        assert_eq!(world.owner_pid(), Some(third), "stopped after {after} outputs");
        assert_sound(world, "woke into a later gap");
    }
}

/// The outputs of both sides from the start of the takeover to its end, and the messages each way.
fn measure(app: App, end: End) -> ([usize; 2], [usize; 2]) {
    let mut world = serving(app, 0);
    let before = world.processes[OLD].performed;
    run(&mut world, app, end);
    ([world.processes[OLD].performed - before, world.processes[NEW].performed], world.carried())
}

fn struck(pid: Pid, blow: Blow, then: impl Fn(&World, &str)) {
    for app in apps() {
        for end in ENDS {
            let (outputs, _) = measure(app, end);
            for after in 0..=outputs[pid] {
                let what = format!("{end:?}, {blow:?} of process {pid} after {after} outputs, {app:?}");
                let mut world = serving(app, 0);
                if pid == OLD {
                    world.strike(OLD, after, blow);
                }
                world.spawn(app);
                if pid == NEW {
                    world.strike(NEW, after, blow);
                }
                finish(&mut world, NEW, end);
                world.run(AGES);
                then(&world, &what);
                assert_sound(world, &what);
            }
        }
    }
}

#[test]
fn the_predecessor_killed_at_every_step() {
    struck(OLD, Blow::Kill, |world, what| {
        let left = world.told(NEW).last() == Some(&Note::Exit);
        assert_eq!(world.owner_pid(), (!left).then_some(NEW), "{what}: {:#?}", world.processes);
    });
}

#[test]
fn the_successor_killed_at_every_step() {
    struck(NEW, Blow::Kill, |world, what| {
        let left = world.told(OLD).last() == Some(&Note::Exit);
        assert_eq!(world.owner_pid(), (!left).then_some(OLD), "{what}: {:#?}", world.processes);
    });
}

#[test]
fn either_stopped_at_every_step() {
    for millis in [1500, 4000, 12_000, 26_000, 1_500_000] {
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
fn either_asked_to_stop_at_every_step() {
    struck(OLD, Blow::Ask, |world, what| {
        assert!(!world.processes[OLD].alive, "{what}: it stays: {:#?}", world.processes[OLD]);
    });
    struck(NEW, Blow::Ask, |world, what| {
        let left = world.told(OLD).last() == Some(&Note::Exit);
        assert_eq!(world.owner_pid(), (!left).then_some(OLD), "{what}: {:#?}", world.processes);
    });
}

#[test]
fn each_message_lost_late_or_doubled() {
    let mut troubles = vec![Trouble::Cut, Trouble::Lose, Trouble::Double];
    troubles.extend([1, 3, 6, 8, 16, 30].map(|seconds| Trouble::Delay(Duration::from_secs(seconds))));
    for app in apps() {
        for end in ENDS {
            let (_, carried) = measure(app, end);
            for direction in [0, 1] {
                for nth in 0..carried[direction] {
                    for trouble in &troubles {
                        let what = format!("{end:?}, {trouble:?} of message {nth} of direction {direction}, {app:?}");
                        let mut world = serving(app, 0);
                        world.disturb(direction, nth, *trouble);
                        run(&mut world, app, end);
                        world.run(AGES);
                        assert!(world.owner_pid().is_some(), "{what}: nobody owns: {:#?}", world.processes);
                        assert_sound(world, &what);
                    }
                }
            }
        }
    }
}

/// What a client asks, and is told.
#[test]
fn a_client_confirms_or_rolls_back_and_is_told_what_came_of_it() {
    use crate::protocol::message::{Ask, Message, Question};
    const CLIENT: predecessor::Peer = 1000;
    let ask = |question| predecessor::Input::Message(CLIENT, Ask::from(question).into());
    let said = |world: &mut World, pid: Pid, question| {
        let mut out = Vec::new();
        world.processes[pid].predecessor.as_mut().unwrap().handle(ask(question), &mut out);
        out
    };
    let refused = |out: &[predecessor::Output]| match out {
        [predecessor::Output::Refuse(CLIENT, why)] => why.code.clone(),
        out => panic!("{out:?}"),
    };
    let done = |out: &[predecessor::Output]| {
        out.iter().any(|output| matches!(output, predecessor::Output::Send(CLIENT, Message::Done(_))))
    };
    let app = apps()[2];
    let mut world = serving(app, 0);
    for question in [Question::Confirm, Question::Rollback] {
        assert_eq!(refused(&said(&mut world, OLD, question)), "no-probation");
    }
    assert!(done(&said(&mut world, OLD, Question::Probation)));
    world.spawn(app);
    world.run(MIDDLE);
    for question in [Question::Confirm, Question::Rollback, Question::Probation] {
        assert_eq!(refused(&said(&mut world, OLD, question)), "draining", "it is no longer the owner");
    }
    let mut other = world.clone();
    assert!(done(&said(&mut other, NEW, Question::Confirm)));
    assert_eq!(refused(&said(&mut other, NEW, Question::Confirm)), "no-probation");
    // The rollback is answered once the predecessor owns.
    let out = said(&mut world, NEW, Question::Rollback);
    assert!(!done(&out) && out.contains(&predecessor::Output::Await(CLIENT)), "{out:?}");
    // Asked by the same client this would close the connection on which it waits: by another one, then.
    let mut late = world.clone();
    assert_eq!(refused(&said(&mut late, NEW, Question::Confirm)), "draining", "the lock is given up already");
    let mut out = Vec::new();
    let owning = crate::protocol::message::Owning { generation: 3, probation_ms: None };
    let link = world.link_of(NEW) as u64;
    let owner = world.processes[NEW].predecessor.as_mut().unwrap();
    owner.handle(predecessor::Input::Message(link, owning.into()), &mut out);
    assert!(done(&out), "{out:?}");
}
