//! The ways in which a service passes from one process to the next.

use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene};
use crate::starting::settled;
use crate::visitor::{self, Load, visit, visit_unix};

#[test]
fn the_first_serves_as_generation_one() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let answer = visit(&address);
    assert_eq!((answer.version.as_str(), answer.generation, answer.pid), ("1", 1, first.pid()));
    let started = first.event("started");
    assert!(started["predecessor"].is_null() && started["entries"].as_array().unwrap().is_empty());
    let status = scene.status();
    assert_eq!((status.phase, status.generation, status.pid), (heirloom::Phase::Serving, 1, first.pid()));
    assert_eq!(status.listeners[0].address, address);
    let report = first.ask(json!({"do": "report"}));
    assert_eq!(report["ok"]["entries"]["web"]["outcome"], "bound");
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true);
}

#[test]
fn a_successor_takes_over_and_its_predecessor_exits() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let (mut second, _) = scene.serve("2", json!({}));
    let started = second.event("started");
    assert_eq!(started["predecessor"]["pid"], first.pid());
    assert_eq!(started["predecessor"]["app_version"], "1");
    assert_eq!(started["predecessor"]["generation"], 1);
    assert_eq!(started["failed_checks"], json!([]));
    assert_eq!(second.ask(json!({"do": "report"}))["ok"]["entries"]["web"]["outcome"], "adopted");
    assert_eq!(first.event("leave")["reason"], "successor");
    assert_eq!(first.exit_code(), Some(0));
    let answer = visit(&address);
    assert_eq!((answer.version.as_str(), answer.generation, answer.pid), ("2", 2, second.pid()));
    let status = scene.status_where(|status| status.predecessor.is_none());
    assert_eq!((status.generation, status.pid, status.phase), (2, second.pid(), heirloom::Phase::Serving));
}

#[test]
fn ten_generations_in_a_row_and_an_older_version_among_them() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("9", json!({}));
    for generation in 2..=10 {
        let (next, _) = scene.serve(&(10 - generation).to_string(), json!({}));
        assert_eq!(owner.exit_code(), Some(0));
        owner = next;
        let answer = visit(&address);
        assert_eq!((answer.generation, answer.pid), (generation, owner.pid()));
    }
}

#[test]
fn the_generation_counts_on_over_a_cold_start() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.kill();
    let (mut second, _) = scene.serve("2", json!({}));
    assert!(second.event("started")["predecessor"].is_null());
    assert_eq!(scene.status().generation, 2);
}

#[test]
fn a_thousand_listeners_and_a_soft_limit_that_is_too_low() {
    let scene = Scene::new();
    let claims = json!({"claims": [
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "tcp", "name": "many", "address": "127.0.0.1:0", "count": 1000},
        {"kind": "null", "name": "null", "count": 100},
    ]});
    let begin = |version: &str, soft: u64| {
        let mut puppet = Puppet::new();
        puppet.ask(json!({"do": "limit", "soft": soft, "hard": 4096}));
        puppet.ask(scene.begin(version, claims.clone()));
        let address = puppet.event("serving")["addresses"]["many-0999"].as_str().unwrap().to_owned();
        (puppet, address)
    };
    let (mut first, address) = begin("1", 4096);
    let (mut second, same) = begin("2", 1024);
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(address, same);
    assert_eq!(visit(&address).pid, second.pid());
    let report = second.ask(json!({"do": "report"}));
    let adopted = report["ok"]["entries"].as_object().unwrap().values();
    assert_eq!(adopted.filter(|outcome| outcome["outcome"] == "adopted").count(), 1101);
    assert_eq!(scene.status().listeners.len(), 1101);
}

#[test]
fn three_takeovers_fail_and_the_next_one_works() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    for round in 0..3 {
        let mut failing = scene.warm("2", json!({}));
        match round {
            0 => drop(failing.ask(json!({"do": "drop"}))),
            1 => failing.kill(),
            _ => drop(failing.ask(json!({"do": "abort"}))),
        }
        scene.status_where(|status| status.takeover.is_none());
        assert_eq!(visit(&address).pid, first.pid());
    }
    let (second, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    let answer = visit(&address);
    assert_eq!((answer.pid, answer.generation), (second.pid(), 2));
}

#[test]
fn what_waits_in_the_accept_queue_is_served_by_the_successor() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"accept": false}));
    let waiting: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    let (second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    for stream in waiting {
        assert_eq!(visitor::answer(stream).pid, second.pid());
    }
}

#[test]
fn a_client_that_never_stops_notices_no_takeover_no_abort_and_no_kill() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", json!({}));
    let load = Load::on(&address);
    let mut kills = 0;
    for round in 0..12 {
        load.flows(20);
        match round % 4 {
            // A successor that dies in its warm-up.
            1 => {
                let mut failing = scene.warm("x", json!({}));
                load.flows(5);
                failing.kill();
            }
            // The owner dies when its successor has everything.
            2 => {
                let mut next = scene.warm("x", json!({}));
                owner.kill();
                kills += 1;
                next.ask(json!({"do": "ready"}));
                next.event("serving");
                owner = next;
            }
            _ => {
                let (next, _) = scene.serve("x", json!({}));
                load.flows(5);
                assert_eq!(owner.exit_code(), Some(0));
                owner = next;
            }
        }
    }
    let tally = load.stop();
    assert_eq!((tally.refused, tally.reset, tally.other.len()), (0, 0, 0), "{tally:?}");
    assert!(tally.cut <= kills, "{tally:?}");
    assert!(tally.by.len() >= 8, "{tally:?}");
}

#[test]
fn a_second_successor_is_refused_at_once_and_told_why() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let busy = scene.warm("2", json!({}));
    let mut second = Puppet::new();
    second.ask(scene.begin("3", json!({})));
    let error = second.failure();
    assert_eq!(error["code"], "busy", "{error}");
    let refusal = &error["refusal"];
    assert_eq!(refusal["who"]["pid"], busy.pid());
    assert_eq!(refusal["who"]["app_version"], "2");
    assert!(refusal["since_ms"].is_u64() && refusal["retry_after_ms"].is_u64(), "{refusal}");
    assert!(error["hint"].is_string() && error["message"].as_str().unwrap().contains("still owns"));
}

#[test]
fn progress_is_seen_by_those_who_ask() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "progress", "text": "loading 40%"}));
    let status = scene
        .status_where(|status| status.takeover.as_ref().is_some_and(|takeover| takeover.progress == "loading 40%"));
    let takeover = status.takeover.unwrap();
    assert_eq!((takeover.step.as_str(), takeover.who.pid), ("warming-up", second.pid()));
    assert_eq!(status.phase, heirloom::Phase::HandingOver);
}

#[test]
fn a_name_at_another_address_is_bound_anew_and_what_nobody_claims_is_dropped() {
    let scene = Scene::new();
    let (unix, other) = (scene.path("old.sock"), scene.path("new.sock"));
    let claims = |path: &std::path::Path| {
        json!([
            {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
            {"kind": "unix", "name": "local", "address": path},
        ])
    };
    let (mut first, address) = scene.serve("1", json!({"claims": claims(&unix)}));
    let (mut second, _) = scene.serve("2", json!({"claims": claims(&other)}));
    assert_eq!(first.exit_code(), Some(0));
    let report = &second.ask(json!({"do": "report"}))["ok"]["entries"];
    assert_eq!(report["web"]["outcome"], "adopted");
    assert_eq!(report["local"]["outcome"], "bound");
    assert!(report["local"]["why"].as_str().unwrap().contains("old.sock"), "{report}");
    assert_eq!(visit_unix(&other).pid, second.pid());
    let mut third = Puppet::new();
    third.ask(scene.begin("3", json!({"claims": [{"kind": "tcp", "name": "web", "address": "127.0.0.1:0"}]})));
    third.event("serving");
    assert_eq!(second.exit_code(), Some(0));
    let report = &third.ask(json!({"do": "report"}))["ok"]["entries"];
    assert_eq!(report["local"], json!({"outcome": "dropped", "why": "nobody claimed it"}));
    assert!(!other.exists(), "the path of a dropped entry is removed");
    assert_eq!(visit(&address).pid, third.pid());
}

#[test]
fn a_new_listener_serves_from_the_commit_on() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    let claim = json!({"do": "claim", "kind": "tcp", "name": "admin", "address": "127.0.0.1:0"});
    let address = second.ask(claim)["ok"]["address"].as_str().unwrap().to_owned();
    let early = std::net::TcpStream::connect(&address);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "nothing queues before the commit");
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, second.pid());
}

#[test]
fn a_drain_waits_for_its_leases_and_the_owner_knows_of_it() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", json!({}));
    let status = scene
        .status_where(|status| status.predecessor.as_ref().is_some_and(|predecessor| predecessor.in_flight == Some(1)));
    assert_eq!(status.predecessor.unwrap().who.pid, first.pid());
    first.ask(json!({"do": "end-lease"}));
    let drained = first.event("drained");
    assert_eq!((&drained["forced"], &drained["in_flight"]), (&json!(false), &json!(0)));
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.predecessor.is_none());
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({"drain_ms": 200}));
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", json!({}));
    let drained = first.event("drained");
    assert_eq!((&drained["forced"], &drained["in_flight"]), (&json!(true), &json!(1)));
    assert_eq!(first.exit_code(), Some(0));
}

#[test]
fn a_takeover_while_the_one_before_still_drains() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({}));
    second.ask(json!({"do": "lease"}));
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(visit(&address).pid, third.pid());
    for puppet in [&mut first, &mut second] {
        puppet.ask(json!({"do": "end-lease"}));
        assert_eq!(puppet.exit_code(), Some(0));
    }
    assert_eq!(visit(&address).generation, 3);
}

#[test]
fn a_stop_without_a_successor_serves_what_waits_and_removes_its_unix_paths() {
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let claims = json!({"claims": [{"kind": "unix", "name": "local", "address": path}], "accept": false});
    let (mut first, _) = scene.serve("1", claims);
    let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    first.ask(json!({"do": "accept", "on": true}));
    scene.client().stop().unwrap();
    assert_eq!(visitor::answer_unix(waiting).pid, first.pid());
    assert_eq!(first.event("leave")["reason"], "stopped");
    assert_eq!(first.exit_code(), Some(0));
    assert!(!path.exists());
    // What is stale at the control path is the next starter's work.
    let (_second, _) = scene.serve("2", json!({}));
    assert_eq!(scene.status().generation, 2);
}

#[test]
fn unix_paths_stay_where_a_successor_owns_them_and_where_a_stranger_has_bound() {
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let claims = json!({"claims": [{"kind": "unix", "name": "local", "address": path}]});
    let (mut first, _) = scene.serve("1", claims.clone());
    let (mut second, _) = scene.serve("2", claims);
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit_unix(&path).pid, second.pid());
    std::fs::remove_file(&path).unwrap();
    let _stranger = std::os::unix::net::UnixListener::bind(&path).unwrap();
    second.ask(json!({"do": "stop"}));
    assert_eq!(second.exit_code(), Some(0));
    assert!(path.exists(), "not ours any more");
}

#[test]
fn a_drainer_takes_the_service_back_when_its_successor_is_stopped_and_is_stopped_as_well() {
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let claims = json!({"claims": [{"kind": "unix", "name": "local", "address": path}]});
    let (mut first, _) = scene.serve("1", claims.clone());
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", claims.clone());
    first.event("leave");
    second.ask(json!({"do": "stop"}));
    assert_eq!(second.exit_code(), Some(0));
    assert!(path.exists(), "a process of the family still has it open");
    assert_eq!(first.first_of(&["resumed", "drained"])["event"], "resumed");
    assert_eq!(visit_unix(&path).pid, first.pid());
    first.ask(json!({"do": "end-lease"}));
    first.ask(json!({"do": "stop"}));
    assert_eq!(first.exit_code(), Some(0));
    assert!(!path.exists(), "it was the last");
    let (third, _) = scene.serve("3", claims);
    assert_eq!(visit_unix(&path).pid, third.pid());
}

#[test]
fn a_stop_before_ready_refuses_the_successor() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    first.ask(json!({"do": "stop"}));
    assert_eq!(first.event("leave")["reason"], "stopped");
    let error = second.failure();
    assert_eq!((&error["code"], &error["kind"]), (&json!("stopping"), &json!("GaveUp")), "{error}");
    assert_eq!(first.exit_code(), Some(0));
}

#[test]
fn a_stop_after_ready_finishes_the_takeover() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({"exclusive": true, "release": false}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "ready"}));
    first.event("release");
    first.ask(json!({"do": "stop"}));
    first.ask(json!({"do": "released"}));
    second.event("serving");
    assert_eq!(first.event("leave")["reason"], "successor");
    assert_eq!(first.exit_code(), Some(0));
}

#[test]
fn nothing_is_offered_while_a_stopping_owner_drains_and_the_next_start_waits_for_it() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    first.ask(json!({"do": "stop"}));
    first.event("leave");
    assert_eq!(scene.status().phase, heirloom::Phase::Stopping);
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({})));
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(second.event("serving")["generation"], 2);
    assert!(second.event("started")["predecessor"].is_null());
}

#[test]
fn a_rehearsal_shows_everything_and_changes_nothing() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    let mut look = Puppet::new();
    look.ask(scene.begin("look", json!({"rehearsal": true})));
    let started = look.event("started");
    assert_eq!((&started["entries"], &started["failed_checks"]), (&json!(["web"]), &json!([])));
    // A real takeover does not wait for it.
    let second = scene.warm("2", json!({}));
    drop(second);
    look.ask(json!({"do": "drop"}));
    scene.status_where(|status| status.takeover.is_none());
    assert_eq!(visit(&address).pid, first.pid());
    assert_eq!(
        first.events().into_iter().map(|event| event["event"].clone()).collect::<Vec<Value>>(),
        [json!("started"),]
    );
    assert_eq!(settled(&mut first, &before), before);
    assert_eq!(targets(&first.ask(json!({"do": "descriptors"}))), targets(&before));
}

/// What a process has open, whatever the numbers: those that it keeps in reserve are closed and made again.
fn targets(descriptors: &Value) -> Vec<String> {
    let target = |descriptor: &Value| descriptor.as_str().unwrap().split_once(' ').unwrap().1.to_owned();
    let mut targets: Vec<String> = descriptors["ok"].as_array().unwrap().iter().map(target).collect();
    targets.sort_unstable();
    targets
}

#[test]
fn a_rehearsal_with_nobody_there_says_so() {
    let scene = Scene::new();
    let error = heirloom::Handoff::at(scene.control()).rehearse().unwrap_err();
    assert_eq!(error.code(), "nobody");
    assert_eq!(std::fs::read_dir(scene.folder()).unwrap().count(), 0, "it left nothing");
}

/// Its successor waits for nothing more of it: what an orchestrator asks before it ends the process.
#[test]
fn a_process_that_stays_has_drained_when_it_says_so() {
    for stays in [false, true] {
        let scene = Scene::new();
        let (mut first, _) = scene.serve("1", json!({"exit": false, "process_stays": stays}));
        let (mut second, _) = scene.serve("2", json!({}));
        first.event("drained");
        if stays {
            let status = scene.status_where(|status| status.predecessor.is_none());
            assert_eq!(status.pid, second.pid());
        } else {
            second.ask(json!({"do": "nothing"}));
            assert_eq!(scene.status().predecessor.map(|old| old.who.pid), Some(first.pid()));
            first.kill();
            scene.status_where(|status| status.predecessor.is_none());
        }
        assert!(stays == first.survives());
    }
}
