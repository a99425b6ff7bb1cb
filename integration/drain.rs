//! What a successor and an operator know of the processes that drain, and how they steer them.

use serde_json::{Value, json};

use crate::puppet::{PATIENCE, Puppet, Scene};

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
