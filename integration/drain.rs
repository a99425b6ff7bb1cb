//! What a successor and an operator know of the processes that drain, and how they steer them.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use std::time::Duration;

use heirloom::{DrainStatus, Error, Status};
use serde_json::{Value, json};

use crate::ctl::stage::{CTL, Run};
use crate::puppet::{PATIENCE, Puppet, Scene};
use crate::starting::settled;
use crate::strace::Strace;

/// A predecessor that drains with a lease in its hand, and its successor.
fn drainer_and_owner(scene: &Scene, more: Value) -> (Puppet, Puppet) {
    let (mut first, _) = scene.serve("1", more);
    first.ask(json!({"do": "lease"}));
    let (second, _) = scene.serve("2", json!({}));
    first.event("leave");
    (first, second)
}

/// Waits for the end of the predecessor, in the owner itself.
#[track_caller]
fn wait_for_end(owner: &mut Puppet) -> Value {
    let within = PATIENCE.as_millis() as u64;
    owner.ask(json!({"do": "wait-for-predecessor", "within_ms": within}))["ok"].clone()
}

#[test]
fn a_predecessor_that_finished_has_ended_cleanly() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    let before = second.ask(json!({"do": "predecessor"}))["ok"].clone();
    assert_eq!(before["end"], Value::Null);
    assert_eq!(before["drains"]["who"]["pid"], first.pid());
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(wait_for_end(&mut second), "clean");
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(second.event("predecessor-gone")["end"], "clean");
    let after = second.ask(json!({"do": "predecessor"}))["ok"].clone();
    assert_eq!(after, json!({"drains": null, "end": "clean"}));
    // A second wait is told at once.
    assert_eq!(second.ask(json!({"do": "wait-for-predecessor", "within_ms": 0}))["ok"], "clean");
}

#[test]
fn a_predecessor_whose_drain_deadline_passed_has_ended_by_force() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({"drain_ms": 200}));
    assert_eq!(wait_for_end(&mut second), "forced");
    assert_eq!(first.event("drained")["forced"], true);
    assert_eq!(second.event("predecessor-gone")["end"], "forced");
}

#[test]
fn a_predecessor_that_was_killed_while_it_drained_has_ended_without_a_word() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    first.kill();
    assert_eq!(wait_for_end(&mut second), "killed");
    assert_eq!(second.event("predecessor-gone")["end"], "killed");
    assert_eq!(second.ask(json!({"do": "is-owner"}))["ok"], true);
}

#[test]
fn a_predecessor_that_is_stopped_is_still_there() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({"drain_ms": 100}));
    first.freeze();
    // Long past its drain deadline: silence is no death.
    assert_eq!(second.ask(json!({"do": "wait-for-predecessor", "within_ms": 500}))["ok"], Value::Null);
    assert_eq!(second.ask(json!({"do": "predecessor"}))["ok"]["end"], Value::Null);
    first.thaw();
    assert_eq!(wait_for_end(&mut second), "forced");
}

/// It has said its last word and has not exited: the end of the process is the true end.
#[test]
fn a_predecessor_that_has_drained_and_not_exited_is_still_there() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({"exit": false}));
    first.ask(json!({"do": "end-lease"}));
    first.event("drained");
    assert_eq!(second.ask(json!({"do": "wait-for-predecessor", "within_ms": 200}))["ok"], Value::Null);
    first.tell(&json!({"do": "exit"}));
    assert_eq!(wait_for_end(&mut second), "clean");
}

#[test]
fn a_first_has_no_predecessor_to_wait_for() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    assert_eq!(wait_for_end(&mut first), "absent");
    assert_eq!(first.ask(json!({"do": "predecessor"}))["ok"], json!({"drains": null, "end": "absent"}));
}

#[test]
fn a_predecessor_that_died_during_the_warm_up_was_killed() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    first.kill();
    scene.status_where(|status| status.pid == second.pid());
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(wait_for_end(&mut second), "killed");
}

/// Who waits for his predecessor hears of a takeover in time.
#[test]
fn a_takeover_ends_the_wait_for_the_predecessor() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    let mut third = scene.warm("3", json!({}));
    second.tell(&json!({"do": "wait-for-predecessor", "within_ms": PATIENCE.as_millis() as u64}));
    second.event("waiting");
    third.ask(json!({"do": "ready"}));
    assert_eq!(second.answer()["ok"], Value::Null);
    assert_eq!(second.event("leave")["reason"], "successor");
    third.event("serving");
    assert_eq!(wait_for_end(&mut third), "clean", "the one before it had nothing in flight");
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
}

/// The process that took the service back still knows the one that it once followed.
#[test]
fn an_owner_that_took_the_service_back_still_waits_for_its_own_predecessor() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    second.ask(json!({"do": "lease"}));
    let (mut third, _) = scene.serve("3", json!({}));
    second.event("leave");
    first.freeze();
    third.kill();
    assert_eq!(second.event("resumed")["generation"], 4);
    assert_eq!(second.ask(json!({"do": "predecessor"}))["ok"]["drains"]["who"]["pid"], first.pid());
    first.thaw();
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(wait_for_end(&mut second), "clean");
}

/// Three generations that drain, the oldest first, with two leases, one and one; and the owner.
fn chain(scene: &Scene) -> (Vec<Puppet>, Puppet) {
    let mut drainers = Vec::new();
    for version in ["1", "2", "3"] {
        let (mut puppet, _) = scene.serve(version, json!({}));
        puppet.ask(json!({"do": "lease"}));
        if version == "1" {
            puppet.ask(json!({"do": "lease"}));
        }
        drainers.push(puppet);
    }
    let (owner, _) = scene.serve("4", json!({}));
    (drainers, owner)
}

fn generations(status: &Status) -> Vec<u64> {
    status.drainers.iter().filter_map(|drain| drain.generation).collect()
}

fn drainer(status: &Status, generation: u64) -> DrainStatus {
    status.drainers.iter().find(|drain| drain.generation == Some(generation)).unwrap().clone()
}

/// The code with which an order to those who drain was refused.
#[track_caller]
fn refusal(answer: heirloom::Result<()>) -> String {
    match answer {
        Err(Error::Refused(why)) => why.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_owner_reaches_all_generations_that_drain() {
    let scene = Scene::new();
    let (mut drainers, owner) = chain(&scene);
    let status = scene.status_where(|status| generations(status) == [3, 2, 1]);
    assert_eq!(status.pid, owner.pid());
    assert_eq!(status.predecessor.as_ref(), Some(&status.drainers[0]));
    for (drain, puppet) in status.drainers.iter().rev().zip(&drainers) {
        let leases = if drain.generation == Some(1) { 2 } else { 1 };
        assert_eq!((drain.who.pid, drain.in_flight), (puppet.pid(), Some(leases)), "{drain:?}");
        assert!(drain.left_ms.is_some_and(|left| left <= 30_000) && drain.oldest_ms.is_some(), "{drain:?}");
    }

    // The oldest alone, through two that drain themselves.
    scene.client().extend_drain(Duration::from_secs(600), Some(1)).unwrap();
    let status = scene.status();
    assert!(drainer(&status, 1).left_ms.unwrap() > 500_000, "{status:?}");
    assert!(drainer(&status, 2).left_ms.unwrap() <= 30_000, "{status:?}");
    scene.client().extend_drain(Duration::from_secs(600), None).unwrap();
    let status = scene.status();
    assert!(drainer(&status, 1).left_ms.unwrap() > 1_100_000, "moved twice: {status:?}");
    assert!(drainer(&status, 3).left_ms.unwrap() > 500_000, "{status:?}");

    // The one in the middle ends, and those on both sides of it stay.
    scene.client().finish_drain(Some(2)).unwrap();
    assert_eq!(drainers[1].event("drained")["forced"], true);
    assert_eq!(drainers[1].exit_code(), Some(0));
    scene.status_where(|status| generations(status) == [3, 1]);
    scene.client().finish_drain(None).unwrap();
    for at in [0, 2] {
        assert_eq!(drainers[at].event("drained")["forced"], true);
        assert_eq!(drainers[at].exit_code(), Some(0));
    }
    scene.status_where(|status| generations(status).is_empty());
    assert_eq!(refusal(scene.client().finish_drain(None)), "no-drain");
}

#[test]
fn progress_of_all_that_drain_is_told_and_the_dead_are_forgotten() {
    let scene = Scene::new();
    let (mut drainers, mut owner) = chain(&scene);
    scene.status_where(|status| generations(status) == [3, 2, 1] && drainer(status, 1).in_flight == Some(2));
    drainers[0].ask(json!({"do": "end-lease"}));
    scene.status_where(|status| generations(status) == [3, 2, 1] && drainer(status, 1).in_flight == Some(1));
    drainers[0].kill();
    scene.status_where(|status| generations(status) == [3, 2]);
    drainers[2].kill();
    assert_eq!(wait_for_end(&mut owner), "killed");
    scene.status_where(|status| generations(status) == [2] && status.predecessor.is_none());
    drainers[1].ask(json!({"do": "end-lease"}));
    assert_eq!(drainers[1].exit_code(), Some(0));
    scene.status_where(|status| generations(status).is_empty());
}

#[test]
fn a_drain_that_was_extended_outlives_its_deadline() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({"drain_ms": 2000}));
    scene.client().extend_drain(Duration::from_secs(600), None).unwrap();
    let end = second.ask(json!({"do": "wait-for-predecessor", "within_ms": 3000}))["ok"].clone();
    assert_eq!(end, Value::Null);
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(wait_for_end(&mut second), "clean");
}

#[test]
fn an_order_that_nobody_can_obey_is_refused() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    assert_eq!(refusal(scene.client().extend_drain(Duration::from_secs(1), None)), "no-drain");
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", json!({}));
    scene.status_where(|status| !status.drainers.is_empty());
    assert_eq!(refusal(scene.client().finish_drain(Some(7))), "no-drain");
}

/// Its successor is told that it does not answer; it obeys when it goes on.
#[test]
fn a_drainer_that_is_stopped_is_named() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    scene.status_where(|status| status.drainers.first().is_some_and(|drain| drain.in_flight == Some(1)));
    first.freeze();
    let Err(Error::Refused(why)) = scene.client().finish_drain(None) else { panic!("not refused") };
    assert_eq!(why.code, "deadline");
    assert!(why.message.contains(&first.pid().to_string()), "{why:?}");
    first.thaw();
    assert_eq!(wait_for_end(&mut second), "forced");
    assert_eq!(first.event("drained")["forced"], true);
}

/// The links come back with the service: the one in the middle takes it back, and still steers its own predecessor.
#[test]
fn an_owner_that_took_the_service_back_reaches_those_before_it() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    second.ask(json!({"do": "lease"}));
    let (mut third, _) = scene.serve("3", json!({}));
    second.event("leave");
    scene.status_where(|status| generations(status) == [2, 1]);
    // So that it is the second which takes the service back.
    first.freeze();
    third.kill();
    second.event("resumed");
    first.thaw();
    scene.status_where(|status| generations(status) == [1] && status.drainers[0].in_flight == Some(1));
    scene.client().finish_drain(None).unwrap();
    assert_eq!(first.event("drained")["forced"], true);
    assert_eq!(wait_for_end(&mut second), "forced");
    // And whoever follows it is told of it as of any other.
    let (_fourth, _) = scene.serve("5", json!({}));
    scene.status_where(|status| generations(status) == [4]);
}

#[test]
fn an_owner_that_was_asked_to_stop_is_steered_as_well() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    first.ask(json!({"do": "stop"}));
    first.event("leave");
    scene.client().extend_drain(Duration::from_secs(600), None).unwrap();
    assert!(scene.status().left_ms.unwrap() > 500_000);
    scene.client().finish_drain(Some(1)).unwrap();
    assert_eq!(first.event("drained")["forced"], true);
    assert_eq!(first.exit_code(), Some(0));
}

/// What was handed on is not held here: neither by who drains, nor by who owns once the others are gone.
#[test]
fn drain_links_leave_no_descriptor_behind() {
    let scene = Scene::new();
    let count = |descriptors: &Value| descriptors["ok"].as_array().unwrap().len();
    let (mut alone, _) = scene.serve("1", json!({}));
    let first = count(&alone.ask(json!({"do": "descriptors"})));
    let (mut second, _) = scene.serve("2", json!({}));
    assert_eq!(alone.exit_code(), Some(0));
    second.event("predecessor-gone");
    let usual = second.ask(json!({"do": "descriptors"}));
    assert!(count(&usual) <= first + 1, "{usual} and {first}");
    second.ask(json!({"do": "lease"}));
    let (mut third, _) = scene.serve("3", json!({}));
    third.ask(json!({"do": "lease"}));
    let (mut fourth, _) = scene.serve("4", json!({}));
    scene.status_where(|status| generations(status) == [3, 2]);
    for puppet in [&mut second, &mut third] {
        puppet.ask(json!({"do": "end-lease"}));
        assert_eq!(puppet.exit_code(), Some(0));
    }
    fourth.event("predecessor-gone");
    scene.status_where(|status| status.drainers.is_empty());
    assert_eq!(settled(&mut fourth, &usual), usual);
}

/// A rollback forgets nobody who drained before it.
#[test]
fn a_drain_before_a_rollback_stays_in_sight() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    let (mut third, _) = scene.serve("3", json!({"probation_ms": 600_000}));
    scene.client().roll_back("too slow").unwrap();
    second.event("resume");
    assert_eq!(third.exit_code(), Some(0));
    let status = scene.status_where(|status| generations(status) == [1]);
    assert_eq!(status.pid, second.pid());
    first.kill();
    assert_eq!(wait_for_end(&mut second), "killed");
    scene.status_where(|status| status.drainers.is_empty() && status.predecessor.is_none());
}

/// The next owner reads on, and knows nothing of an order that waits for one that is stopped.
#[test]
fn an_order_that_a_takeover_cuts_off_is_refused_at_once() {
    let scene = Scene::new();
    let (mut first, second) = drainer_and_owner(&scene, json!({}));
    scene.status_where(|status| generations(status) == [1]);
    let mut third = scene.warm("3", json!({}));
    first.freeze();
    let mut client = scene.client();
    let waiting = thread::spawn(move || refusal(client.extend_drain(Duration::from_secs(600), None)));
    second.logged("which drains");
    third.ask(json!({"do": "ready"}));
    third.event("serving");
    assert_eq!(waiting.join().unwrap(), "busy");
    first.thaw();
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
    assert!(third.survives());
}

/// Of many that drain an owner reads sixteen: its predecessor, and the newest before that.
#[test]
fn of_seventeen_that_drain_the_oldest_is_left_out() {
    let scene = Scene::new();
    let mut puppets: Vec<Puppet> = (1..=18)
        .map(|generation: u64| {
            let (mut puppet, _) = scene.serve(&generation.to_string(), json!({}));
            puppet.ask(json!({"do": "lease"}));
            puppet
        })
        .collect();
    let known: Vec<u64> = (2..=17).rev().collect();
    let status = scene.status_where(|status| generations(status) == known);
    assert_eq!(status.predecessor.map(|predecessor| predecessor.generation), Some(Some(17)));
    // It ends on its own, and the others are steered.
    puppets[0].ask(json!({"do": "end-lease"}));
    assert_eq!(puppets[0].exit_code(), Some(0));
    scene.client().finish_drain(None).unwrap();
    for puppet in &mut puppets[1..17] {
        assert_eq!(puppet.event("drained")["forced"], true);
    }
    scene.status_where(|status| status.drainers.is_empty());
}

/// Who waits until all have drained waits for those before the predecessor as well.
#[test]
fn a_wait_for_the_end_of_all_drains_sees_each_of_them() {
    let scene = Scene::new();
    let (mut first, _second) = drainer_and_owner(&scene, json!({}));
    let (_third, _) = scene.serve("3", json!({}));
    scene.status_where(|status| generations(status) == [1] && status.predecessor.is_none());
    let wait = |timeout: &str| {
        let arguments = ["--timeout", timeout, "wait", "--drained"];
        Run::of(Command::new(CTL).args(arguments).env("HEIRLOOM_SOCKET", scene.control()))
    };
    assert_eq!(wait("300ms").code, 1);
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(wait("2m").code, 0);
    // The takeover with which it began to drain is whole now, though its owner of then is gone.
    let history = scene.client().history().unwrap();
    let second = history.iter().find(|record| record.to.as_ref().is_some_and(|to| to.generation == Some(2))).unwrap();
    assert_eq!(second.steps.last().unwrap().step, "drained", "{second:?}");
}

/// The next takeover may be over before the predecessor has told of its drain; then its word goes the whole way.
#[test]
fn a_drain_link_that_comes_after_the_next_takeover_is_passed_on() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    // When it makes the link.
    let Some(mut strace) = Strace::stop(first.pid(), "socketpair") else { return };
    let (mut second, _) = scene.serve("2", json!({}));
    second.ask(json!({"do": "lease"}));
    strace.says_or("stopped by SIGSTOP", || false);
    // It stays so.
    strace.leave();
    first.freeze();
    let (_third, _) = scene.serve("3", json!({}));
    second.event("leave");
    assert_eq!(generations(&scene.status_where(|status| generations(status).contains(&2))), [2]);
    first.thaw();
    scene.status_where(|status| generations(status) == [2, 1]);
    scene.client().finish_drain(Some(1)).unwrap();
    assert_eq!(first.event("drained")["forced"], true);
    scene.status_where(|status| generations(status) == [2]);
}

/// Who is on probation sees and steers those who drained before it; who stands by does not drain.
#[test]
fn on_probation_the_new_owner_reaches_those_who_drained_before() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    let (mut third, _) = scene.serve("3", json!({"probation_ms": 600_000}));
    let status = scene.status_where(|status| generations(status) == [1]);
    assert_eq!((status.pid, status.drainers[0].who.pid), (third.pid(), first.pid()));
    scene.client().extend_drain(Duration::from_secs(600), None).unwrap();
    scene.status_where(|status| generations(status) == [1] && drainer(status, 1).left_ms.unwrap() > 500_000);
    assert_eq!(refusal(scene.client().finish_drain(Some(2))), "no-drain");
    // Given back, its predecessor reads on.
    scene.client().roll_back("too slow").unwrap();
    second.event("resume");
    assert_eq!(third.exit_code(), Some(0));
    scene.client().extend_drain(Duration::from_secs(600), None).unwrap();
    let status =
        scene.status_where(|status| generations(status) == [1] && drainer(status, 1).left_ms.unwrap() > 1_000_000);
    assert_eq!(status.pid, second.pid());
    // And once more, to the end: each is told of once.
    let (_fourth, _) = scene.serve("4", json!({"probation_ms": 600_000}));
    scene.status_where(|status| status.generation == 5 && generations(status) == [1]);
    second.ask(json!({"do": "lease"}));
    scene.client().confirm().unwrap();
    scene.status_where(|status| generations(status) == [4, 1]);
    scene.client().finish_drain(Some(1)).unwrap();
    assert_eq!(first.event("drained")["forced"], true);
    scene.status_where(|status| generations(status) == [4]);
    second.ask(json!({"do": "end-lease"}));
    scene.status_where(|status| status.drainers.is_empty());
}

/// What it cannot see it does without; the way back is not lost with it.
#[test]
fn on_probation_an_owner_at_its_limit_on_open_files_can_give_the_service_back() {
    let scene = Scene::new();
    let (mut first, mut second) = drainer_and_owner(&scene, json!({}));
    let mut third = scene.warm("3", json!({"probation_ms": 600_000}));
    let open: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{}/fd", third.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).find(|number| !open.contains(number)).unwrap();
    third.ask(json!({"do": "limit", "soft": free, "hard": 1024}));
    third.ask(json!({"do": "ready"}));
    third.event("serving");
    third.logged("cannot be steered from here");
    // For those who ask it.
    third.ask(json!({"do": "limit", "soft": 1024, "hard": 1024}));
    let status = scene.status_where(|status| status.probation.is_some());
    assert_eq!((status.pid, generations(&status)), (third.pid(), vec![]));
    scene.client().roll_back("no descriptors").unwrap();
    second.event("resume");
    scene.status_where(|status| status.pid == second.pid() && generations(status) == [1]);
    first.ask(json!({"do": "end-lease"}));
    scene.status_where(|status| !generations(status).contains(&1));
}

#[test]
fn nobody_drains_while_the_only_one_stands_by() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let (_second, _) = scene.serve("2", json!({"probation_ms": 600_000}));
    scene.status_where(|status| status.probation.is_some());
    assert_eq!(refusal(scene.client().extend_drain(Duration::from_secs(1), None)), "no-drain");
    assert_eq!(refusal(scene.client().finish_drain(Some(1))), "no-drain");
}

/// A process that lives on after its drain is no drainer any more, for whoever owns by then.
#[test]
fn a_drainer_whose_process_stays_is_forgotten_at_its_last_word() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({"process_stays": true, "exit": false}));
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", json!({}));
    let (_third, _) = scene.serve("3", json!({}));
    scene.status_where(|status| generations(status).contains(&1));
    first.ask(json!({"do": "end-lease"}));
    scene.status_where(|status| !generations(status).contains(&1));
    first.tell(&json!({"do": "exit"}));
    assert_eq!(first.exit_code(), Some(0), "it lived on");
}
