//! Every descriptor is accounted for: none leaks in takeovers and aborts, none reaches a child.

use serde_json::{Value, json};

use crate::peer::Peer;
use crate::puppet::Scene;
use crate::starting::settled;
use crate::visitor::visit;

/// What descriptors lead to, without their numbers and without those that differ by name alone.
fn kinds(found: &Value) -> Vec<String> {
    let mut kinds: Vec<String> = found["ok"]
        .as_array()
        .unwrap()
        .iter()
        .map(|descriptor| {
            let link = descriptor.as_str().unwrap().split_once(' ').unwrap().1;
            link.split(":[").next().unwrap().to_owned()
        })
        .collect();
    kinds.sort();
    kinds
}

#[test]
fn the_tenth_owner_has_as_many_descriptors_as_the_first() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", json!({}));
    let first = owner.ask(json!({"do": "descriptors"}));
    for round in 0..10 {
        if round % 2 == 0 {
            scene.warm("x", json!({})).kill();
            scene.status_where(|status| status.takeover.is_none());
        }
        let (next, _) = scene.serve("x", json!({}));
        assert_eq!(owner.exit_code(), Some(0));
        owner = next;
        // Once the end of the predecessor is noticed, nothing of it is left.
        scene.status_where(|status| status.predecessor.is_none());
    }
    assert_eq!(settled(&mut owner, &first), first);
    assert_eq!(kinds(&owner.ask(json!({"do": "descriptors"}))), kinds(&first));
    assert_eq!(visit(&address).generation, 11);
}

#[test]
fn an_owner_that_resumed_has_what_it_had() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    first.ask(json!({"do": "lease"}));
    for _ in 0..3 {
        let (mut second, _) = scene.serve("2", json!({}));
        first.event("leave");
        second.kill();
        first.event("resumed");
    }
    assert_eq!(settled(&mut first, &before), before);
}

/// It gives up between the release and its lock, and its process lives on: here it is that of the test.
#[test]
fn an_owner_that_resumed_keeps_nothing_of_a_successor_that_lives() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({"exclusive": true}));
    let before = first.ask(json!({"do": "descriptors"}));
    let mut peer = Peer::connect(&scene);
    peer.get_released();
    drop(peer);
    first.event("resume");
    assert_eq!(settled(&mut first, &before), before);
}

#[test]
fn clients_that_come_and_go_leave_nothing() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    for _ in 0..100 {
        scene.status();
    }
    // Some that never say a word, and more than may be at once.
    let silent: Vec<_> = (0..100).map(|_| std::os::unix::net::UnixStream::connect(scene.control()).unwrap()).collect();
    scene.status();
    drop(silent);
    assert_eq!(settled(&mut first, &before), before);
}

#[test]
fn a_child_inherits_nothing() {
    let scene = Scene::new();
    let claims = json!({"claims": [
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "udp", "name": "dns", "address": "127.0.0.1:0"},
        {"kind": "unix", "name": "local", "address": scene.path("app.sock")},
        {"kind": "seqpacket", "name": "packets", "address": scene.path("packets.sock")},
        {"kind": "pipe", "name": "queue"},
    ]});
    let (mut first, _) = scene.serve("1", claims.clone());
    let mut second = scene.warm("2", claims);
    // In the middle of a takeover both have all there is: pidfds, lease, lock, connections.
    for puppet in [&mut first, &mut second] {
        let all = puppet.ask(json!({"do": "descriptors"}));
        assert!(all["ok"].as_array().unwrap().len() > 12, "{all}");
        let inheritable = puppet.ask(json!({"do": "inheritable"}));
        let open: Vec<&str> = inheritable["ok"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let standard = |descriptor: &&str| ["0 ", "1 ", "2 "].iter().any(|number| descriptor.starts_with(number));
        let others: Vec<&&str> = open.iter().filter(|descriptor| !standard(descriptor)).collect();
        // What the test runner itself was started with is not ours to close.
        let ours: Vec<_> = others.iter().filter(|found| !inherited_by_this_process(found)).collect();
        assert!(ours.is_empty(), "{ours:?}");
        let child = puppet.ask(json!({"do": "child"}));
        let sockets: Vec<&Value> = child["ok"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|found| {
                let found = found.as_str().unwrap();
                found.contains("socket:") || found.contains("heirloom-") || found.contains("anon_inode")
            })
            .collect();
        assert!(sockets.is_empty(), "{sockets:?}");
    }
}

/// Cargo's jobserver, and the like.
fn inherited_by_this_process(descriptor: &str) -> bool {
    let (number, link) = descriptor.split_once(' ').unwrap();
    std::fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|here| here.to_str() == Some(link))
}

#[test]
fn what_is_received_and_what_is_made_is_non_blocking_where_it_is_a_socket() {
    let scene = Scene::new();
    let claims = json!({"claims": [
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "udp", "name": "dns", "address": "127.0.0.1:0"},
    ], "accept": false});
    let (mut first, _) = scene.serve("1", claims.clone());
    assert!(first.ask(json!({"do": "receive", "name": "dns"}))["ok"].is_null());
    let (mut second, _) = scene.serve("2", claims);
    assert!(second.ask(json!({"do": "receive", "name": "dns"}))["ok"].is_null());
    second.ask(json!({"do": "accept", "on": true}));
}
