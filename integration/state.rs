//! The application's state, from one generation to the next.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heirloom::Phase;
use serde_json::{Value, json};

use crate::program::Program;
use crate::puppet::{Puppet, Scene};
use crate::visitor::visit;

const SCHEMA: &str = "counter";

/// Options of a puppet that hands its state on and is asked for it by the test.
fn stateful(version: u32) -> Value {
    json!({"state": {"schema": SCHEMA, "version": version}, "release": false})
}

fn take(puppet: &mut Puppet, to: u32) -> Value {
    puppet.ask(json!({"do": "take-state", "schema": SCHEMA, "to": to}))["ok"].clone()
}

fn outcome(puppet: &mut Puppet) -> Value {
    puppet.ask(json!({"do": "report"}))["ok"]["state"].clone()
}

/// A takeover in which the first hands this on.
#[track_caller]
fn handed_on(first: &mut Puppet, scene: &Scene, with: Value, options: Value) -> Puppet {
    let mut second = Puppet::new();
    second.ask(scene.begin("2", options));
    first.event("release");
    let mut command = json!({"do": "release-with"});
    crate::puppet::merge(&mut command, with);
    first.ask(command);
    second.event("serving");
    second
}

#[test]
fn a_successor_goes_on_with_the_state_of_its_predecessor() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", stateful(1));
    assert_eq!(outcome(&mut first), json!({"outcome": "cold", "why": "first of its family"}));
    let mut second = handed_on(&mut first, &scene, json!({"text": "41"}), stateful(2));
    assert_eq!(outcome(&mut second), json!({"outcome": "inherited", "schema": SCHEMA, "version": 1, "length": 2}));
    assert_eq!(take(&mut second, 2), json!({"length": 2, "text": "41"}));
    assert_eq!(take(&mut second, 2), Value::Null, "once");
    assert_eq!(first.exit_code(), Some(0));
}

#[test]
fn a_successor_knows_before_it_is_ready_what_the_state_is_written_in() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", stateful(7));
    let mut second = Puppet::new();
    let mut begin = scene.begin("2", json!({"ready": false}));
    crate::puppet::merge(&mut begin, stateful(7));
    second.ask(begin);
    assert_eq!(second.event("started")["predecessor"]["state"], json!({"schema": SCHEMA, "version": 7}));
}

#[test]
fn a_state_that_cannot_be_read_is_said_in_the_report_and_the_service_goes_on() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful(9));
    let mut second = handed_on(&mut first, &scene, json!({"text": "41"}), stateful(2));
    assert_eq!(take(&mut second, 2), Value::Null);
    let report = outcome(&mut second);
    assert_eq!(report["outcome"], "cold");
    assert_eq!(report["why"], "it is counter version 9, and 1 to 2 can be read");
    assert_eq!(visit(&address).pid, second.pid());
}

#[test]
fn sizes_from_nothing_to_a_gibibyte() {
    for (length, checksum) in [(0, true), (1, true), (1 << 20, true), (1 << 26, false), (1 << 30, true)] {
        let scene = Scene::new();
        // A gibibyte and its checksum may take long beside other tests.
        let mut patient = stateful(1);
        patient["release_ms"] = json!(60_000);
        let (mut first, _) = scene.serve("1", patient);
        let with = json!({"length": length, "checksum": checksum});
        let mut second = handed_on(&mut first, &scene, with, stateful(1));
        let taken = take(&mut second, 1);
        assert_eq!(taken["length"], length);
        assert_eq!(taken["text"].as_str().unwrap(), "x".repeat(100.min(length)));
    }
}

#[test]
fn a_successor_that_takes_no_state_is_not_sent_any() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful(1));
    let mut second = handed_on(&mut first, &scene, json!({"text": "41"}), json!({}));
    assert_eq!(outcome(&mut second), Value::Null);
    assert_eq!(visit(&address).pid, second.pid());
    // And one that has never heard of states is a fine predecessor.
    let mut third = Puppet::new();
    third.ask(scene.begin("3", stateful(1)));
    third.event("serving");
    assert_eq!(outcome(&mut third)["why"], "the predecessor has none");
}

#[test]
fn an_application_that_cannot_let_go_says_why_and_serves_on() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful(1));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", stateful(1)));
    first.event("release");
    first.ask(json!({"do": "cannot-release", "why": "a migration is under way"}));
    first.event("resume");
    let failed = second.failure();
    assert_eq!(failed["code"], "release");
    assert!(failed["message"].as_str().unwrap().contains("a migration is under way"), "{failed}");
    assert_eq!(visit(&address).pid, first.pid());
    let third = handed_on(&mut first, &scene, json!({"text": "41"}), stateful(1));
    assert_eq!(visit(&address).pid, third.pid());
}

/// The lock is given back once the state has arrived: a successor that dies with it costs nothing.
#[test]
fn a_successor_that_dies_with_the_state_leaves_the_predecessor_as_it_was() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful(1));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", stateful(1)));
    first.event("release");
    second.freeze();
    first.ask(json!({"do": "release-with", "text": "41"}));
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true, "it waits for the answer");
    second.kill();
    first.event("resume");
    scene.status_where(|status| status.phase == Phase::Serving && status.takeover.is_none());
    assert_eq!(visit(&address).pid, first.pid());
    let mut third = handed_on(&mut first, &scene, json!({"text": "42"}), stateful(1));
    assert_eq!(take(&mut third, 1)["text"], "42");
}

#[test]
fn a_predecessor_that_dies_with_its_state_under_way_leaves_it_behind() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful(1));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", stateful(1)));
    first.event("release");
    second.freeze();
    first.ask(json!({"do": "release-with", "text": "41"}));
    first.kill();
    second.thaw();
    second.event("serving");
    assert_eq!(take(&mut second, 1)["text"], "41");
    assert_eq!(visit(&address).pid, second.pid());
}

#[test]
fn a_predecessor_that_dies_before_its_release_leaves_none() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", stateful(1));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", stateful(1)));
    first.event("release");
    first.kill();
    second.event("serving");
    assert_eq!(outcome(&mut second)["why"], "the predecessor was gone before it was sent");
    assert_eq!(take(&mut second, 1), Value::Null);
}

/// Twenty versions of the example, under four clients that never stop asking: each number is given once, and none is left
/// out.
#[test]
fn the_counter_counts_on_through_twenty_takeovers() {
    const CLIENTS: usize = 4;
    let scene = Scene::new();
    let start = |version: u32| Program::start("counter", &scene, &version.to_string(), "counting on from");
    let Some(mut serving) = start(0) else { return };
    let address = serving.said.rsplit(' ').next().unwrap().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (stop, address) = (stop.clone(), address.clone());
            std::thread::spawn(move || {
                let mut numbers = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let mut line = String::new();
                    TcpStream::connect(&address).unwrap().read_to_string(&mut line).unwrap();
                    numbers.push(line.trim().parse::<u64>().unwrap());
                }
                numbers
            })
        })
        .collect();
    for version in 1..=20 {
        let next = start(version).unwrap();
        assert!(serving.wait().success());
        serving = next;
    }
    stop.store(true, Ordering::SeqCst);
    let mut numbers: Vec<u64> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert!(numbers.len() > 200, "{} numbers", numbers.len());
    drop(serving);
}
