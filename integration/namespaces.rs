//! Network namespaces told apart: a listener stays where it was made, whoever holds it.
//!
//! Needs root, util-linux's `unshare` and iproute2's `ip`; what is missing is said aloud.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::ctl::stage::{CTL, Running};
use crate::puppet::{Puppet, Scene, is_root, skip};
use crate::visitor::{answer, visit};

/// A network of its own, with loopback in it. It becomes the program that follows, so its pid is the program's.
const NETWORK: [&str; 6] = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"];

/// A puppet in a network namespace that it alone has.
fn puppet_elsewhere() -> Option<Puppet> {
    if !is_root() {
        skip("only root can make a network namespace");
        return None;
    }
    Puppet::through(&NETWORK)
}

/// How lsns(8) and the kernel call the network namespace of a process.
fn network_of(pid: u32) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().to_str().unwrap().to_owned()
}

fn ctl(scene: &Scene, wrapper: &[&str], arguments: &[&str]) -> Output {
    let command = [wrapper, &[CTL], arguments].concat();
    let mut run = Command::new(command[0]);
    run.args(&command[1..]).env("HEIRLOOM_SOCKET", scene.control());
    run.stdin(Stdio::null()).output().unwrap()
}

/// The only listener, as the status of its owner tells it.
fn told(scene: &Scene) -> (Value, String) {
    let json: Value = serde_json::from_slice(&ctl(scene, &[], &["--json", "status"]).stdout).unwrap();
    let text = String::from_utf8(ctl(scene, &[], &["status"]).stdout).unwrap();
    (json["listeners"][0]["foreign_network_namespace"].clone(), text)
}

#[test]
fn a_listener_of_another_network_is_refused_and_both_networks_are_named() {
    let Some(mut second) = puppet_elsewhere() else { return };
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({}));
    let (ours, theirs) = (network_of(second.pid()), network_of(first.pid()));
    assert_ne!(ours, theirs);

    second.ask(scene.begin("2", json!({})));
    let error = second.failure();
    assert_eq!(error["code"], "foreign-namespace", "{error}");
    let message = error["message"].as_str().unwrap();
    let (at_theirs, at_ours) = (message.find(&theirs), message.find(&ours));
    assert!(at_theirs.is_some() && at_theirs < at_ours, "{theirs} then {ours}: {error}");
    let hint = error["hint"].as_str().unwrap();
    for way in ["share a network namespace", "another name", "allow_foreign_network_namespace"] {
        assert!(hint.contains(way), "{hint}");
    }

    assert_eq!(visit(&address).pid, first.pid());
    assert_eq!(told(&scene).0, Value::Null);
}

#[test]
fn a_rehearsal_elsewhere_shows_that_the_network_is_another() {
    if puppet_elsewhere().is_none() {
        return;
    }
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({}));
    let rehearsed = ctl(&scene, &NETWORK, &["--json", "handoff"]);
    let seen: Value = serde_json::from_slice(&rehearsed.stdout).unwrap();
    assert_eq!((rehearsed.status.code(), &seen["passed"]), (Some(1), &json!(false)), "{seen}");
    let checks = seen["entries"][0]["checks"].as_array().unwrap();
    let failed: Vec<&Value> = checks.iter().filter(|check| check["ok"] == json!(false)).collect();
    assert_eq!(failed.len(), 1, "{seen}");
    assert_eq!(failed[0]["check"], "network-namespace");
    assert_eq!(visit(&address).pid, first.pid());
}

#[test]
fn who_knows_what_it_means_may_serve_another_network_and_status_tells() {
    let Some(mut second) = puppet_elsewhere() else { return };
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    second.ask(scene.begin("2", json!({"allow_foreign_network_namespace": true})));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    // It answers in the network where the listener was made, in which it does not live itself.
    assert_eq!(visit(&address).pid, second.pid());
    let (cookie, text) = told(&scene);
    assert!(cookie.as_u64().is_some(), "{cookie}");
    let line = format!("web lives in another network namespace than its owner, the one with cookie {cookie}");
    assert!(text.contains(&line), "{text}");

    // For a process that lives there it is no foreign one, and nothing has to be allowed.
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
    let (cookie, text) = told(&scene);
    assert_eq!(cookie, Value::Null);
    assert!(!text.contains("network namespace"), "{text}");
}

#[test]
fn under_another_name_the_same_address_is_bound_anew() {
    let Some(mut second) = puppet_elsewhere() else { return };
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let anew = json!([{"kind": "tcp", "name": "web-inside", "address": address}]);
    second.ask(scene.begin("2", json!({"claims": anew})));
    let serving = second.event("serving");
    assert_eq!(serving["addresses"]["web-inside"], json!(address), "{serving}");
    assert_eq!(first.exit_code(), Some(0));
    let status = scene.status();
    let names: Vec<&str> = status.listeners.iter().map(|listener| listener.name.as_str()).collect();
    assert_eq!(names, ["web-inside"]);
    assert_eq!(status.listeners[0].foreign_network_namespace, None);
    assert!(std::net::TcpStream::connect(&address).is_err(), "nobody listens in the old network any more");
}

#[test]
fn a_unix_socket_is_of_no_network() {
    let Some(mut second) = puppet_elsewhere() else { return };
    let scene = Scene::new();
    let only = json!([{"kind": "unix", "name": "admin", "address": scene.path("admin.sock")}]);
    let (mut first, _) = scene.serve("1", json!({"claims": only}));
    second.ask(scene.begin("2", json!({"claims": only})));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(scene.status().listeners[0].foreign_network_namespace, None);
}

/// A keeper accepts nothing, so it may live in another network; whoever has the listeners of it lives where they do.
#[test]
fn a_keeper_may_live_in_another_network() {
    if puppet_elsewhere().is_none() {
        return;
    }
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keep = Command::new(NETWORK[0]);
    keep.args(&NETWORK[1..]).args([CTL, "--json", "keep"]).env("HEIRLOOM_SOCKET", scene.control());
    let mut keeper = Running::new(&mut keep);
    assert_eq!(keeper.object()["event"], "following");
    assert_ne!(network_of(keeper.pid()), network_of(first.pid()));
    first.kill();
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    let holding = keeper.object();
    assert_eq!((&holding["event"], &holding["waiting"]), (&json!("holding"), &json!(1)));
    // The listener is none of the keeper's own network, and that is told.
    let (cookie, text) = told(&scene);
    assert!(cookie.as_u64().is_some() && text.contains("lives in another network namespace"), "{text}");
    let (second, same) = scene.serve("2", json!({}));
    assert_eq!((answer(waiting).pid, same), (second.pid(), address));
    assert_eq!(keeper.object()["event"], "following");
}
