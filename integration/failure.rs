//! What happens when one side dies, stops or is slow, at each step of a takeover.

use std::time::Duration;

use heirloom::Phase;
use serde_json::json;

use crate::puppet::{Puppet, Scene};
use crate::visitor::{self, visit};

/// The owner of before serves on, and the next takeover works.
#[track_caller]
fn serves_on_and_hands_over(scene: &Scene, owner: &mut Puppet, address: &str) {
    scene.status_where(|status| status.takeover.is_none() && status.phase == Phase::Serving);
    assert_eq!(visit(address).pid, owner.pid());
    assert_eq!(owner.ask(json!({"do": "is-owner"}))["ok"], true);
    let (next, _) = scene.serve("next", json!({}));
    assert_eq!(owner.exit_code(), Some(0));
    assert_eq!(visit(address).pid, next.pid());
}

#[test]
fn a_successor_is_killed_before_ready() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    scene.warm("2", json!({})).kill();
    serves_on_and_hands_over(&scene, &mut first, &address);
    assert!(first.events().iter().all(|event| event["event"] != "resume"), "the application noticed nothing");
}

#[test]
fn a_successor_exits_before_ready() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    second.tell(&json!({"do": "exit", "code": 3}));
    assert_eq!(second.exit_code(), Some(3));
    serves_on_and_hands_over(&scene, &mut first, &address);
}

#[test]
fn a_successor_without_progress_is_given_up() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"progress_ms": 300}));
    let mut second = scene.warm("2", json!({}));
    let error = second.failure();
    assert_eq!((&error["kind"], &error["code"]), (&json!("GaveUp"), &json!("deadline")), "{error}");
    serves_on_and_hands_over(&scene, &mut first, &address);
}

#[test]
fn progress_keeps_a_warm_up_alive_until_its_own_deadline() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"progress_ms": 500, "warm_up_ms": 1200}));
    let mut second = scene.warm("2", json!({}));
    let began = std::time::Instant::now();
    let error = loop {
        if let Some(failed) = second.events().into_iter().find(|event| event["event"] == "failed") {
            break failed;
        }
        // Where the attempt has just ended there is nobody to tell; the event says so in the next round.
        second.try_ask(json!({"do": "progress", "text": began.elapsed().as_millis().to_string()}));
    };
    assert_eq!(error["code"], "deadline");
    assert!(error["message"].as_str().unwrap().contains("too long"), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(1000), "{:?}", began.elapsed());
    serves_on_and_hands_over(&scene, &mut first, &address);
}

#[test]
fn a_successor_that_is_stopped_is_given_up_and_never_owns() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"progress_ms": 300}));
    let mut second = scene.warm("2", json!({}));
    second.freeze();
    scene.status_where(|status| status.takeover.is_none());
    assert_eq!(visit(&address).pid, first.pid());
    second.thaw();
    let error = second.failure();
    assert_eq!(error["kind"], "GaveUp", "{error}");
    serves_on_and_hands_over(&scene, &mut first, &address);
}

/// It says `Ready` first of all when it continues, before it hears that it was given up.
#[test]
fn a_stopped_successor_that_wakes_up_with_ready_never_owns() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"progress_ms": 300}));
    let mut second = scene.warm("2", json!({"deaf": true}));
    second.freeze();
    scene.status_where(|status| status.takeover.is_none());
    second.tell(&json!({"do": "ready"}));
    second.thaw();
    let answer = second.answer();
    let error = if answer.get("error").is_some() { answer["error"].clone() } else { second.failure() };
    assert_eq!(error["kind"], "GaveUp", "{error}");
    serves_on_and_hands_over(&scene, &mut first, &address);
}

/// It is stopped, and another one takes over. When it wakes, it must not win with its old listeners.
#[test]
fn a_stopped_successor_that_was_overtaken_never_owns() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"progress_ms": 300}));
    let mut stopped = scene.warm("2", json!({"deaf": true}));
    stopped.freeze();
    scene.status_where(|status| status.takeover.is_none());
    let (mut third, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    stopped.tell(&json!({"do": "ready"}));
    stopped.thaw();
    let answer = stopped.answer();
    let error = if answer.get("error").is_some() { answer["error"].clone() } else { stopped.failure() };
    assert_eq!(error["kind"], "Superseded", "{error}");
    serves_on_and_hands_over(&scene, &mut third, &address);
}

/// The same, and whoever overtook it dies: then it has the last copies, and whoever waits in their queue is served.
#[test]
fn a_stopped_successor_that_was_overtaken_owns_where_nobody_is_left() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"progress_ms": 300}));
    let mut stopped = scene.warm("2", json!({"deaf": true}));
    stopped.freeze();
    scene.status_where(|status| status.takeover.is_none());
    let (mut third, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    third.kill();
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    stopped.tell(&json!({"do": "ready"}));
    stopped.thaw();
    let serving = stopped.event("serving");
    assert_eq!(serving["generation"], 3, "the one after the last that owned: {serving}");
    assert_eq!(serving["addresses"]["web"], *address);
    assert_eq!(visitor::answer(waiting).pid, stopped.pid());
    serves_on_and_hands_over(&scene, &mut stopped, &address);
}

#[test]
fn the_predecessor_dies_during_the_warm_up_and_the_successor_owns_at_once() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"accept": false}));
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    let mut second = scene.warm("2", json!({}));
    first.kill();
    let status = scene.status_where(|status| status.pid == second.pid());
    assert_eq!((status.phase, status.generation), (Phase::Starting, 2), "cold, and already the owner");
    // A third is told to wait, and gets its turn.
    let mut third = Puppet::new();
    third.ask(scene.begin("3", json!({})));
    let more = std::net::TcpStream::connect(&address).unwrap();
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    for stream in [waiting, more] {
        let pid = visitor::answer(stream).pid;
        assert!(pid == second.pid() || pid == third.pid());
    }
    third.event("serving");
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).generation, 3);
}

#[test]
fn a_deaf_successor_whose_predecessor_died_owns_when_it_gets_ready() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({"deaf": true}));
    first.kill();
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    second.ask(json!({"do": "ready"}));
    assert_eq!(second.event("serving")["generation"], 2);
    assert_eq!(visitor::answer(waiting).pid, second.pid());
}

#[test]
fn giving_up_as_the_last_holder_is_said_aloud() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    first.kill();
    scene.status_where(|status| status.pid == second.pid());
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    assert_eq!(second.ask(json!({"do": "abort"}))["ok"]["last_holder"], true);
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(visitor::answer(waiting).pid, second.pid());
}

#[test]
fn the_predecessor_dies_with_ready_unread() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    first.freeze();
    second.ask(json!({"do": "ready"}));
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    first.kill();
    assert_eq!(second.event("serving")["generation"], 2);
    assert_eq!(visitor::answer(waiting).pid, second.pid());
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
}

#[test]
fn the_predecessor_dies_while_it_releases() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true, "release": false}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "ready"}));
    first.event("release");
    first.kill();
    assert_eq!(second.event("serving")["generation"], 2);
    assert_eq!(visit(&address).pid, second.pid());
}

/// Nobody takes over from a process that lives.
#[test]
fn the_predecessor_is_stopped_before_its_release() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"release_ms": 100}));
    let mut second = scene.warm("2", json!({}));
    first.freeze();
    second.ask(json!({"do": "ready"}));
    let error = second.failure();
    assert!(["deadline", "link-lost"].contains(&error["code"].as_str().unwrap()), "{error}");
    first.thaw();
    serves_on_and_hands_over(&scene, &mut first, &address);
}

#[test]
fn both_die_and_the_next_start_is_cold() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    first.freeze();
    second.kill();
    first.kill();
    let (_third, address) = scene.serve("3", json!({}));
    let answer = visit(&address);
    assert_eq!((answer.version.as_str(), answer.generation), ("3", 2));
}

#[test]
fn the_successor_dies_while_the_predecessor_drains() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({"accept": false}));
    first.event("leave");
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    second.kill();
    assert_eq!(first.event("resumed")["generation"], 3);
    assert_eq!(visitor::answer(waiting).pid, first.pid());
    let status = scene.status();
    assert_eq!((status.pid, status.generation, status.phase), (first.pid(), 3, Phase::Serving));
    serves_on_and_hands_over_with_a_lease(&scene, &mut first, &address);
}

/// Five owners die under load while the first still drains: whoever starts next gets the listeners from that one.
#[test]
fn a_third_process_gets_the_listeners_from_a_drainer_whose_successor_died() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"drain_ms": 60_000}));
    first.ask(json!({"do": "lease"}));
    let (mut owner, _) = scene.serve("2", json!({}));
    first.event("leave");
    let load = visitor::Load::on(&address);
    for generation in [4, 6, 8, 10, 12] {
        load.flows(50);
        owner.kill();
        let (mut next, same) = scene.serve("3", json!({}));
        assert_eq!(same, address);
        assert_eq!(next.ask(json!({"do": "report"}))["ok"]["entries"]["web"]["outcome"], "adopted");
        assert_eq!(first.event("resumed")["generation"], generation - 1);
        assert_eq!(first.event("leave")["reason"], "successor");
        assert_eq!(scene.status().generation, generation);
        owner = next;
    }
    load.flows(50);
    let tally = load.stop();
    assert_eq!((tally.refused, &tally.other), (0, &Vec::new()), "{tally:?}");
    // What a killed process had accepted is its own loss, one connection at a time.
    assert!(tally.cut + tally.reset <= 5, "{tally:?}");
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, owner.pid());
}

/// When it goes on, the end of its drain and that of its successor are both due: the listeners are not closed before a look
/// at the lock.
#[test]
fn a_drainer_that_wakes_past_its_deadline_finds_its_successor_dead() {
    let scene = Scene::new();
    let drain = Duration::from_millis(300);
    let (mut first, address) = scene.serve("1", json!({"drain_ms": drain.as_millis() as u64}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({"accept": false}));
    first.event("leave");
    first.freeze();
    second.kill();
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    // What is waited for is a deadline of a process that cannot tell of it.
    std::thread::sleep(drain);
    first.thaw();
    assert_eq!(first.event("resumed")["generation"], 3);
    assert_eq!(visitor::answer(waiting).pid, first.pid());
    serves_on_and_hands_over_with_a_lease(&scene, &mut first, &address);
}

#[track_caller]
fn serves_on_and_hands_over_with_a_lease(scene: &Scene, owner: &mut Puppet, address: &str) {
    let (next, _) = scene.serve("next", json!({}));
    owner.event("leave");
    owner.ask(json!({"do": "end-lease"}));
    assert_eq!(owner.exit_code(), Some(0));
    assert_eq!(visit(address).pid, next.pid());
}

/// A process that has not begun to drain yet is told to resume as an event.
#[test]
fn the_successor_dies_before_the_predecessor_begins_to_drain() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"drain": false}));
    let (mut second, _) = scene.serve("2", json!({"accept": false}));
    first.event("leave");
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    second.kill();
    assert_eq!(first.event("resume")["generation"], 3);
    assert_eq!(visitor::answer(waiting).pid, first.pid());
    first.ask(json!({"do": "options", "drain": true}));
    serves_on_and_hands_over(&scene, &mut first, &address);
}

/// Both keep a lease, so both drain at once when the third dies: exactly one of them owns again.
#[test]
fn two_drainers_and_only_one_of_them_resumes() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exit": false}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({"exit": false}));
    second.ask(json!({"do": "lease"}));
    let (mut third, _) = scene.serve("3", json!({"accept": false}));
    first.event("leave");
    second.event("leave");
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    third.kill();
    let owner = visitor::answer(waiting).pid;
    let status = scene.status();
    assert_eq!((status.pid, status.generation), (owner, 4));
    let (resumed, drained) = if owner == first.pid() { (&mut first, &mut second) } else { (&mut second, &mut first) };
    assert_eq!(resumed.event("resumed")["generation"], 4);
    drained.ask(json!({"do": "end-lease"}));
    drained.event("drained");
    assert_eq!(visit(&address).pid, resumed.pid());
}

/// A successor that stops right after it was told to stop accepting still keeps the drainer from resuming: it lives.
#[test]
fn a_stopped_owner_is_no_dead_owner() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"drain_ms": 400}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({}));
    first.event("leave");
    second.freeze();
    let drained = first.event("drained");
    assert_eq!(drained["forced"], true);
    assert_eq!(first.exit_code(), Some(0));
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    second.thaw();
    assert_eq!(visitor::answer(waiting).pid, second.pid());
}

#[test]
fn a_release_in_time_lets_the_successor_own() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true, "release": false}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "ready"}));
    first.event("release");
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true, "the lock moves after the release, not before");
    assert_eq!(visit(&address).pid, first.pid(), "streams are accepted on");
    assert!(second.events().iter().all(|event| event["event"] != "serving"));
    first.ask(json!({"do": "released"}));
    assert_eq!(second.event("serving")["generation"], 2);
    assert_eq!(first.exit_code(), Some(0));
}

#[test]
fn a_release_too_late_ends_the_takeover_and_a_late_answer_lets_go_of_nothing() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true, "release": false, "release_ms": 200}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "ready"}));
    first.event("release");
    first.event("resume");
    let error = second.failure();
    assert_eq!((&error["kind"], &error["code"]), (&json!("GaveUp"), &json!("release")), "{error}");
    assert_eq!(visit(&address).pid, first.pid());
    // It has been told `Resume`, so nobody waits for its answer any more.
    first.ask(json!({"do": "released"}));
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true, "a late answer lets go of nothing");
    first.ask(json!({"do": "options", "release": true}));
    let (fourth, _) = scene.serve("4", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, fourth.pid());
}

#[test]
fn the_successor_dies_while_the_predecessor_releases() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true, "release": false}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "ready"}));
    first.event("release");
    second.kill();
    first.event("resume");
    first.ask(json!({"do": "released"}));
    first.ask(json!({"do": "options", "release": true}));
    serves_on_and_hands_over(&scene, &mut first, &address);
}
