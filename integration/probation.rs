//! Probations between real processes: what their clients see, and what each side is told.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use heirloom::{Error, Phase};
use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene};
use crate::starting::settled;
use crate::visitor::{Load, answer, visit};

/// Longer than any of these tests takes.
const LONG: u64 = 600_000;
const SCHEMA: &str = "counter";

fn probation() -> Value {
    json!({"probation_ms": LONG})
}

fn stateful() -> Value {
    json!({"state": {"schema": SCHEMA, "version": 1}, "release": false, "probation_ms": LONG})
}

/// Two processes, the second on probation.
#[track_caller]
fn on_probation(scene: &Scene, options: &Value) -> (Puppet, Puppet, String) {
    let (mut first, address) = scene.serve("1", options.clone());
    let (second, _) = scene.serve("2", options.clone());
    first.event("stand-by");
    assert_eq!(visit(&address).pid, second.pid());
    (first, second, address)
}

/// The successor of a process that hands its state on.
#[track_caller]
fn handed_on(scene: &Scene, first: &mut Puppet, text: &str, options: Value) -> Puppet {
    let mut second = Puppet::new();
    second.ask(scene.begin("2", options));
    first.event("release");
    first.ask(json!({"do": "release-with", "text": text}));
    second.event("serving");
    second
}

fn state_of(puppet: &mut Puppet) -> (Value, Value) {
    let taken = puppet.ask(json!({"do": "take-state", "schema": SCHEMA}))["ok"]["text"].clone();
    (puppet.ask(json!({"do": "report"}))["ok"]["state"].clone(), taken)
}

fn code(error: &Error) -> &str {
    error.code()
}

#[test]
fn a_successor_that_is_killed_on_probation_costs_nobody_a_connection() {
    let scene = Scene::new();
    let (mut first, mut second, address) = on_probation(&scene, &probation());
    let load = Load::on(&address);
    load.flows(50);
    // What waits in the queue of a process that is about to die.
    second.ask(json!({"do": "accept", "on": false}));
    let waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let killed = Instant::now();
    second.kill();
    let answers: Vec<_> = waiting.into_iter().map(answer).collect();
    println!("from the kill to the last of 20 answers that had waited: {:?}", killed.elapsed());
    assert!(answers.iter().all(|answer| answer.pid == first.pid() && answer.generation == 3), "{answers:?}");
    assert_eq!(first.event("resume")["generation"], 3);
    load.flows(50);
    let tally = load.stop();
    assert_eq!((tally.refused, tally.reset), (0, 0), "{tally:?}");
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
}

/// How long a service is away whose owner is killed on probation. It is printed and held against nothing: it is the
/// machine's.
#[test]
fn from_the_kill_to_the_first_answer() {
    const ROUNDS: usize = 20;
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let (mut second, _) = scene.serve("2", json!({"probation_ms": LONG, "accept": false}));
            first.event("stand-by");
            let waiting = TcpStream::connect(&address).unwrap();
            let killed = Instant::now();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(second.pid() as i32), nix::sys::signal::SIGKILL).unwrap();
            assert_eq!(answer(waiting).pid, first.pid());
            let time = killed.elapsed();
            first.event("resume");
            second.kill();
            time
        })
        .collect();
    times.sort();
    let [shortest, median, longest] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| times[at].as_secs_f64() * 1000.0);
    let line = format!(
        "from kill -9 on probation to the first answer: {median:.2} ms in the median of {ROUNDS}, {shortest:.2} to {longest:.2} ms\n"
    );
    // Past the harness, which keeps to itself what a test that passes has printed.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

#[test]
fn the_time_confirms() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let (second, _) = scene.serve("2", json!({"probation_ms": 700}));
    let began = Instant::now();
    first.event("stand-by");
    assert_eq!(first.event("leave")["reason"], "successor");
    assert!(began.elapsed() > Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, second.pid());
    assert!(scene.status().probation.is_none());
}

#[test]
fn a_call_and_a_client_confirm() {
    for client in [false, true] {
        let scene = Scene::new();
        let (mut first, mut second, address) = on_probation(&scene, &probation());
        if client {
            scene.client().confirm().unwrap()
        } else {
            drop(second.ask(json!({"do": "confirm"})))
        }
        assert_eq!(first.event("leave")["reason"], "successor");
        assert_eq!(first.exit_code(), Some(0));
        assert_eq!(visit(&address).pid, second.pid());
        assert_eq!(code(&scene.client().confirm().unwrap_err()), "no-probation");
        assert_eq!(second.refuse(json!({"do": "confirm"}))["code"], "no-probation");
    }
}

#[test]
fn a_call_and_a_client_roll_back() {
    for client in [false, true] {
        let scene = Scene::new();
        let (mut first, mut second, address) = on_probation(&scene, &probation());
        let load = Load::on(&address);
        load.flows(20);
        if client {
            scene.client().roll_back("too slow").unwrap();
        } else {
            second.ask(json!({"do": "give-back", "reason": "too slow"}));
        }
        assert_eq!(first.event("resume")["generation"], 3);
        assert_eq!(second.event("leave")["reason"], "rolled-back");
        load.flows(20);
        let tally = load.stop();
        assert_eq!((tally.refused, tally.reset, tally.cut), (0, 0, 0), "{tally:?}");
        assert_eq!(second.exit_code(), Some(0));
        let answer = visit(&address);
        assert_eq!((answer.pid, answer.generation), (first.pid(), 3));
        first.logged("too slow");
        let back = scene.client().history().unwrap().pop().unwrap();
        let cause = back.cause.unwrap();
        assert_eq!(
            (back.outcome.as_str(), cause.code.as_str(), cause.message.as_str()),
            ("resumed", "rolled-back", "too slow")
        );
        assert_eq!(code(&scene.client().roll_back("again").unwrap_err()), "no-probation");
        let status = scene.status();
        assert_eq!((status.phase, status.generation), (Phase::Serving, 3));
    }
}

#[test]
fn the_state_comes_back_on_a_rollback() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful());
    let mut second = handed_on(&scene, &mut first, "41", stateful());
    first.event("stand-by");
    assert_eq!(state_of(&mut second).1, "41");
    second.ask(json!({"do": "give-back", "reason": "test"}));
    second.event("release");
    second.ask(json!({"do": "release-with", "text": "42"}));
    first.event("resume");
    let (report, text) = state_of(&mut first);
    assert_eq!(text, "42");
    assert_eq!(report, json!({"outcome": "inherited", "schema": SCHEMA, "version": 1, "length": 2}));
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, first.pid());
    // And again: what came back goes on.
    let mut third = handed_on(&scene, &mut first, "43", stateful());
    assert_eq!(state_of(&mut third).1, "43");
}

/// A state that the old version cannot read is said, and so is one that died with its process.
#[test]
fn a_state_that_does_not_come_back_is_said() {
    let newer = json!({"state": {"schema": SCHEMA, "version": 2}, "release": false, "probation_ms": LONG});
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", stateful());
    let mut second = handed_on(&scene, &mut first, "41", newer);
    second.ask(json!({"do": "give-back", "reason": "test"}));
    second.event("release");
    second.ask(json!({"do": "release-with", "text": "42"}));
    first.event("resume");
    assert_eq!(state_of(&mut first).1, Value::Null);
    let report = first.ask(json!({"do": "report"}))["ok"]["state"].clone();
    assert_eq!(report, json!({"outcome": "cold", "why": "it is counter version 2, and 1 to 1 can be read"}));
    drop(second);

    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", stateful());
    let mut second = handed_on(&scene, &mut first, "41", stateful());
    first.event("stand-by");
    second.kill();
    first.event("resume");
    let (report, text) = state_of(&mut first);
    assert_eq!(text, Value::Null, "it has its own");
    assert_eq!(report, json!({"outcome": "stale", "why": "the successor died on probation"}));
}

#[test]
fn a_rollback_that_the_application_cannot_do_comes_to_nothing_and_the_probation_goes_on() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", stateful());
    let mut second = handed_on(&scene, &mut first, "41", stateful());
    first.event("stand-by");
    let mut client = scene.client();
    let asking = std::thread::spawn(move || client.roll_back("test").unwrap_err().code().to_owned());
    second.event("release");
    second.ask(json!({"do": "cannot-release", "why": "a migration is under way"}));
    assert_eq!(asking.join().unwrap(), "release");
    second.event("resume");
    assert_eq!(visit(&address).pid, second.pid());
    assert_eq!(scene.status().probation.unwrap().who.pid, first.pid());
    // The next one is done.
    second.ask(json!({"do": "give-back", "reason": "test"}));
    second.event("release");
    second.ask(json!({"do": "release-with", "text": "42"}));
    first.event("resume");
    assert_eq!(state_of(&mut first).1, "42");
}

#[test]
fn a_rollback_that_nobody_takes_comes_to_nothing() {
    let scene = Scene::new();
    let (mut first, mut second, address) = on_probation(&scene, &probation());
    first.freeze();
    assert_eq!(code(&scene.client().roll_back("test").unwrap_err()), "commit");
    assert_eq!(visit(&address).pid, second.pid());
    first.thaw();
    // It has missed its moment, and stands by again.
    scene.client().roll_back("test").unwrap();
    assert_eq!(first.event("resume")["generation"], 3);
    assert_eq!(second.exit_code(), Some(0));
}

#[test]
fn another_takeover_is_refused_until_the_probation_is_over() {
    let scene = Scene::new();
    let (mut first, mut second, address) = on_probation(&scene, &probation());
    let mut third = Puppet::new();
    third.ask(scene.begin("3", json!({})));
    let failed = third.failure();
    assert_eq!((&failed["kind"], &failed["code"]), (&json!("Refused"), &json!("probation")), "{failed}");
    let refusal = &failed["refusal"];
    assert_eq!(refusal["who"]["pid"], first.pid());
    let retry = refusal["retry_after_ms"].as_u64().unwrap();
    assert!(retry > LONG - 60_000 && retry <= LONG, "{refusal}");
    assert!(refusal["since_ms"].as_u64().is_some(), "{refusal}");
    scene.client().confirm().unwrap();
    assert_eq!(first.exit_code(), Some(0));
    let (fourth, _) = scene.serve("4", json!({}));
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, fourth.pid());
}

#[test]
fn another_takeover_confirms_where_the_application_said_so() {
    let scene = Scene::new();
    let options = json!({"probation_ms": LONG, "takeover_confirms": true});
    let (mut first, mut second, address) = on_probation(&scene, &options);
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
}

/// Whoever gave up before he was heard leaves the way back as it is.
#[test]
fn a_takeover_that_was_given_up_before_it_was_heard_confirms_nothing() {
    let scene = Scene::new();
    let options = json!({"probation_ms": LONG, "takeover_confirms": true});
    let (mut first, mut second, address) = on_probation(&scene, &options);
    second.freeze();
    let mut third = Puppet::new();
    third.ask(scene.begin("3", json!({"start_ms": 100})));
    assert_eq!(third.failure()["code"], "unresponsive");
    second.thaw();
    second.logged("has hung up: nothing is done");
    assert!(scene.status().probation.is_some());
    scene.client().roll_back("test").unwrap();
    first.event("resume");
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn a_stop_of_the_one_on_probation_gives_the_service_back() {
    let scene = Scene::new();
    let (mut first, mut second, address) = on_probation(&scene, &probation());
    second.ask(json!({"do": "stop"}));
    assert_eq!(second.event("leave")["reason"], "rolled-back");
    first.event("resume");
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn a_stop_of_the_one_that_stands_by_leaves_the_other_alone() {
    let scene = Scene::new();
    let (mut first, second, address) = on_probation(&scene, &probation());
    first.ask(json!({"do": "stop"}));
    assert_eq!(first.event("leave")["reason"], "successor");
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.probation.is_none());
    let answer = visit(&address);
    assert_eq!((answer.pid, answer.generation), (second.pid(), 2));
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(visit(&address).pid, third.pid());
}

/// Stopped for longer than its time, it is not dead.
#[test]
fn one_that_is_stopped_past_its_probation_is_waited_for() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut watching = scene.client();
    watching.watch().unwrap();
    let (mut second, _) = scene.serve("2", json!({"probation_ms": 1000}));
    second.freeze();
    let waiting = TcpStream::connect(&address).unwrap();
    let overdue = loop {
        let status = watching.next(Some(crate::puppet::PATIENCE)).unwrap().unwrap();
        if status.probation.as_ref().is_some_and(|probation| probation.overdue) {
            break status;
        }
    };
    assert_eq!(overdue.phase, Phase::StandingBy);
    assert_eq!(overdue.probation.unwrap().who.pid, second.pid());
    second.thaw();
    assert_eq!(answer(waiting).pid, second.pid());
    assert_eq!(first.event("leave")["reason"], "successor");
    assert_eq!(first.exit_code(), Some(0));
    first.events().iter().for_each(|event| assert_ne!(event["event"], "resume"));
}

#[test]
fn an_operator_asks_for_a_probation_that_the_program_does_not_know_of() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    let mut client = scene.client();
    client.want_probation(Duration::from_secs(600)).unwrap();
    let (mut second, _) = scene.serve("2", json!({}));
    first.event("stand-by");
    scene.client().roll_back("test").unwrap();
    first.event("resume");
    assert_eq!(second.exit_code(), Some(0));
    // As long as he is there, and no longer.
    drop(client);
    assert_eq!(settled(&mut first, &before), before);
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
    assert!(first.events().iter().all(|event| event["event"] != "stand-by"));
}

#[test]
fn a_first_process_has_nobody_to_go_back_to() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({"probation_ms": LONG, "demand_probation": true}));
    assert_eq!(first.refuse(json!({"do": "give-back"}))["code"], "no-probation");
    assert!(scene.status().probation.is_none());
}

/// Both sides tell of it, and the one that stands by tells that nothing may change.
#[test]
fn the_status_of_both_sides() {
    let scene = Scene::new();
    let (mut first, mut second, _) = on_probation(&scene, &probation());
    let status = scene.status();
    assert_eq!((status.phase, status.predecessor.is_none()), (Phase::Serving, true));
    let told = status.probation.unwrap();
    assert_eq!((told.who.pid, told.overdue), (first.pid(), false));
    assert!(told.left_ms.unwrap() > LONG - 60_000 && told.left_ms.unwrap() <= LONG);
    let status = first.ask(json!({"do": "status"}))["ok"].clone();
    assert_eq!((&status["phase"], &status["probation"]["who"]["pid"]), (&json!("standing-by"), &json!(second.pid())));
    let claim = json!({"do": "claim", "name": "more", "kind": "tcp", "address": "127.0.0.1:0"});
    assert_eq!(first.refuse(claim.clone())["code"], "frozen");
    // What the other one adds is lost with a rollback, and that is said.
    second.ask(claim);
    second.ask(json!({"do": "give-back", "reason": "test"}));
    first.event("resume");
    first.logged("lost with it, since it was new there: more");
}

/// Connections that the first had before it stood by are its own all the time.
#[test]
fn connections_of_before_are_kept_through_a_rollback() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", probation());
    first.event("stand-by");
    scene.client().roll_back("test").unwrap();
    first.event("resume");
    assert_eq!(scene.status().in_flight, 1);
    let (_third, _) = scene.serve("3", json!({}));
    first.event("leave");
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
}

/// A process that gave the service back and still drains may own once more: it knows of a hold that came since.
#[test]
fn a_hold_after_a_rollback_outlives_the_one_that_took_the_service_back() {
    let scene = Scene::new();
    let (mut first, mut second, address) = on_probation(&scene, &probation());
    second.ask(json!({"do": "lease"}));
    scene.client().roll_back("test").unwrap();
    first.event("resume");
    second.event("leave");
    scene.client().hold("an incident", None).unwrap();
    second.logged("takeovers are refused: an incident");
    first.kill();
    second.event("resumed");
    assert_eq!(scene.status().hold.unwrap().reason, "an incident");
    assert_eq!(visit(&address).pid, second.pid());
}

/// A Unix listener that the successor did not want is still there for the one that comes back.
#[test]
fn what_the_successor_dropped_is_kept_until_it_is_confirmed() {
    let scene = Scene::new();
    let path = scene.path("admin.sock");
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "unix", "name": "admin", "address": path},
    ]);
    for confirm in [false, true] {
        let (mut first, _) = scene.serve("1", json!({"claims": claims}));
        let (mut second, _) = scene.serve("2", probation());
        first.event("stand-by");
        assert!(path.exists());
        if confirm {
            scene.client().confirm().unwrap();
            assert_eq!(first.exit_code(), Some(0));
            scene.status_where(|status| status.predecessor.is_none());
            assert!(!path.exists());
        } else {
            scene.client().roll_back("test").unwrap();
            first.event("resume");
            assert_eq!(crate::visitor::visit_unix(&path).pid, first.pid());
            assert_eq!(second.exit_code(), Some(0));
            first.ask(json!({"do": "stop"}));
            assert_eq!(first.exit_code(), Some(0));
        }
    }
}
