//! What is remembered of the last takeovers, and by whom.

use std::net::Shutdown;

use heirloom::{Phase, TakeoverRecord};
use serde_json::json;

use crate::peer::{HELLO, Peer, REFUSED};
use crate::puppet::{Puppet, Scene};
use crate::visitor::visit;

fn history(scene: &Scene) -> Vec<TakeoverRecord> {
    scene.client().history().unwrap()
}

fn outcomes(records: &[TakeoverRecord]) -> Vec<&str> {
    records.iter().map(|record| record.outcome.as_str()).collect()
}

fn steps(record: &TakeoverRecord) -> Vec<&str> {
    record.steps.iter().map(|step| step.step.as_str()).collect()
}

fn code(record: &TakeoverRecord) -> Option<&str> {
    record.cause.as_ref().map(|cause| cause.code.as_str())
}

/// Who it was from and to: generation, pid and version.
type Sides<'a> = [Option<(Option<u64>, u32, &'a str)>; 2];

fn sides(record: &TakeoverRecord) -> Sides<'_> {
    [&record.from, &record.to].map(|side| side.as_ref().map(|side| (side.generation, side.pid, &*side.app_version)))
}

fn assert_times(record: &TakeoverRecord) {
    let times: Vec<u64> = record.steps.iter().map(|step| step.at_ms).collect();
    assert!(times.is_sorted(), "{record:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(record.began <= now && record.began + 600_000 > now, "{record:?}");
    assert!(record.last >= record.began && record.took_ms < 60_000, "{record:?}");
}

#[test]
fn a_takeover_is_remembered_with_each_of_its_steps() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let start = history(&scene);
    assert_eq!(outcomes(&start), ["cold-start"]);
    assert_eq!(sides(&start[0]), [None, Some((Some(1), first.pid(), "1"))]);
    assert_eq!(steps(&start[0]), ["starting", "serving"]);
    let (second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.predecessor.is_none());
    let records = history(&scene);
    assert_eq!(outcomes(&records), ["cold-start", "taken-over"]);
    assert_eq!(records[0], start[0], "it was handed on as it was");
    assert_eq!(sides(&records[1]), [Some((Some(1), first.pid(), "1")), Some((Some(2), second.pid(), "2"))]);
    let whole = ["offered", "sending", "warming-up", "releasing", "released", "owning", "serving", "drained"];
    assert_eq!(steps(&records[1]), whole);
    assert_eq!(records[1].cause, None);
    records.iter().for_each(assert_times);
}

#[test]
fn a_predecessor_that_is_killed_while_it_drains_is_gone_and_not_drained() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", json!({}));
    first.event("leave");
    first.kill();
    scene.status_where(|status| status.predecessor.is_none());
    assert_eq!(steps(history(&scene).last().unwrap()).last(), Some(&"gone"));
}

/// The refusal comes after the offer to the one that takes over in the end, and is told to it all the same.
#[test]
fn a_refusal_is_counted_and_handed_on() {
    let scene = Scene::new();
    let (first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    for _ in 0..3 {
        let mut third = Puppet::new();
        third.ask(scene.begin("3", json!({})));
        assert_eq!(third.failure()["code"], "busy");
    }
    let asked = history(&scene);
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    let records = history(&scene);
    assert_eq!(records[..2], asked[..]);
    assert_eq!(outcomes(&records), ["cold-start", "refused", "taken-over"]);
    let [from, to] = sides(&records[1]);
    assert_eq!(from, Some((Some(1), first.pid(), "1")));
    assert_eq!(to.map(|(generation, _, version)| (generation, version)), Some((None, "3")));
    assert_eq!((code(&records[1]), records[1].count), (Some("busy"), 3));
    assert!(records[1].last > records[1].began, "{:?}", records[1]);
}

#[test]
fn a_successor_that_is_killed_leaves_a_failure_and_the_owner_as_it_was() {
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({}));
    let before = scene.status();
    scene.warm("2", json!({})).kill();
    let after = scene.status_where(|status| status.takeover.is_none() && status.phase == Phase::Serving);
    assert_eq!(after.since, before.since, "it has served all the time");
    assert_eq!(visit(&address).pid, first.pid());
    let records = history(&scene);
    assert_eq!(outcomes(&records), ["cold-start", "failed"]);
    assert_eq!((code(&records[1]), steps(&records[1]).last()), (Some("link-lost"), Some(&"warming-up")));
    assert_eq!(sides(&records[1])[1].map(|(generation, _, version)| (generation, version)), Some((None, "2")));
    let line = first.logged("came to nothing");
    assert!(line.contains("WARN") && line.contains("link-lost: "), "{line}");
}

/// The owner hears in one moment that somebody wants to take over, that he is gone, and a question.
#[test]
fn a_phase_is_never_told_with_the_time_of_another() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let before = scene.status();
    first.freeze();
    let mut second = Peer::connect(&scene);
    second.send(HELLO, &Peer::hello());
    second.stream().shutdown(Shutdown::Write).unwrap();
    let mut client = scene.client();
    client.watch().unwrap();
    first.thaw();
    let after = client.next(Some(crate::puppet::PATIENCE)).unwrap().unwrap();
    assert_eq!((after.phase, after.since), (Phase::Serving, before.since), "it has served all the time");
}

#[test]
fn a_takeover_fails_for_the_reason_that_its_successor_was_told() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({"progress_ms": 300}));
    let mut second = scene.warm("2", json!({}));
    assert_eq!(second.failure()["code"], "deadline");
    let records = history(&scene);
    assert_eq!((outcomes(&records)[1], code(&records[1])), ("failed", Some("deadline")));
    assert!(records[1].took_ms >= 300, "{:?}", records[1]);
}

#[test]
fn the_time_of_a_step_is_not_that_of_the_takeover() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let _second = scene.warm("2", json!({}));
    let end = std::time::Instant::now() + crate::puppet::PATIENCE;
    let takeover = loop {
        let takeover = scene.status().takeover.unwrap();
        // At a step after the first: what came before it took some time.
        if takeover.step == "warming-up" && takeover.step_since_ms > 0 {
            break takeover;
        }
        assert!(std::time::Instant::now() < end, "{takeover:?}");
    };
    assert!(takeover.step_since_ms <= takeover.since_ms, "{takeover:?}");
}

#[test]
fn who_takes_the_service_back_remembers_that() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({}));
    first.event("leave");
    let pid = second.pid();
    second.kill();
    first.event("resumed");
    let records = history(&scene);
    assert_eq!(outcomes(&records), ["cold-start", "taken-over", "resumed"]);
    let back = [Some((Some(2), pid, "2")), Some((Some(3), first.pid(), "1"))];
    assert_eq!(sides(&records[2]), back);
    assert!(matches!(code(&records[2]), Some("died" | "link-lost")), "{:?}", records[2]);
    // And it is part of what its next successor knows.
    let (_third, _) = scene.serve("3", json!({}));
    first.event("leave");
    assert_eq!(outcomes(&history(&scene)), ["cold-start", "taken-over", "resumed", "taken-over"]);
}

/// The end of a predecessor that has drained has nothing to do with what is under way meanwhile.
#[test]
fn a_failure_is_not_blamed_on_a_predecessor_that_leaves_meanwhile() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (_second, _) = scene.serve("2", json!({}));
    first.event("leave");
    let mut third = scene.warm("3", json!({}));
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.predecessor.is_none());
    third.kill();
    scene.status_where(|status| status.takeover.is_none());
    let records = history(&scene);
    assert_eq!(outcomes(&records), ["cold-start", "taken-over", "failed"]);
    assert_eq!(code(&records[2]), Some("link-lost"));
    assert_eq!((steps(&records[1]).last(), steps(&records[2]).last()), (Some(&"drained"), Some(&"warming-up")));
}

/// It has the history with the offer, so nothing of it is lost.
#[test]
fn a_predecessor_that_dies_in_the_warm_up_has_handed_its_history_on() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    first.kill();
    scene.status_where(|status| status.generation == 2);
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    let records = history(&scene);
    assert_eq!(outcomes(&records), ["cold-start", "taken-over"]);
    assert_eq!(code(&records[1]), Some("predecessor-died"));
    assert_eq!(steps(&records[1]), ["offered", "sending", "warming-up", "owning", "serving"]);
}

#[test]
fn a_service_that_starts_anew_has_a_new_history() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.kill();
    let (second, _) = scene.serve("2", json!({}));
    let records = history(&scene);
    assert_eq!(outcomes(&records), ["cold-start"]);
    assert_eq!(sides(&records[0]), [None, Some((Some(2), second.pid(), "2"))]);
}

#[test]
fn forty_takeovers_in_a_row_keep_the_newest() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({}));
    for generation in 2..=41 {
        let (next, _) = scene.serve(&generation.to_string(), json!({}));
        assert_eq!(owner.exit_code(), Some(0));
        owner = next;
    }
    scene.status_where(|status| status.predecessor.is_none());
    let records = history(&scene);
    assert_eq!(records.len(), 32);
    for (record, generation) in records.iter().zip(10..) {
        assert_eq!((record.outcome.as_str(), steps(record).last()), ("taken-over", Some(&"drained")));
        assert_eq!(sides(record)[1].unwrap().0, Some(generation));
    }
}

/// Each names itself differently, so they cannot be counted together.
#[test]
fn a_flood_of_refusals_pushes_out_nothing_but_refusals() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    for number in 0..500 {
        let mut peer = Peer::connect(&scene);
        let version = format!("{number}-{}", "x".repeat(2000));
        peer.send(HELLO, &json!({"min_version": 1, "max_version": 1, "nonce": 7, "app_version": version}));
        assert_eq!(peer.expect(REFUSED)["code"], "busy");
    }
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    let records = history(&scene);
    let outcomes = outcomes(&records);
    assert_eq!((outcomes[0], outcomes[9], outcomes.len()), ("cold-start", "taken-over", 10));
    assert!(outcomes[1..9].iter().all(|outcome| *outcome == "refused"), "{outcomes:?}");
    let newest = records[8].to.as_ref().unwrap();
    assert!(newest.app_version.starts_with("499-x") && newest.app_version.len() == 64, "{newest:?}");
}

/// A look, a question and garbage are no takeovers.
#[test]
fn what_wants_nothing_is_not_remembered() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    heirloom::Handoff::at(scene.control()).rehearse().unwrap();
    let mut peer = Peer::connect(&scene);
    peer.send_bytes(b"GET / HTTP/1.1\r\n\r\n");
    peer.expect(REFUSED);
    scene.status();
    assert_eq!(outcomes(&history(&scene)), ["cold-start"]);
}
