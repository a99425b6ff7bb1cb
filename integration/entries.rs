//! Entries that come and go: with options, made by the application, added and removed while it serves.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use heirloom::Phase;
use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene};
use crate::visitor::{visit, visit_unix};

/// The names that a puppet would offer.
#[track_caller]
fn names(puppet: &mut Puppet) -> Vec<String> {
    let entries = puppet.ask(json!({"do": "entries"}));
    entries["ok"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

/// Claims, and gives the address.
#[track_caller]
fn add(puppet: &mut Puppet, kind: &str, name: &str) -> String {
    let command = json!({"do": "claim", "kind": kind, "name": name, "address": "127.0.0.1:0"});
    puppet.ask(command)["ok"]["address"].as_str().unwrap_or_default().to_owned()
}

/// A claim for everything that an owner of these names has.
fn claims(addresses: &BTreeMap<String, String>) -> Value {
    let claim = |(name, address): (&String, &String)| json!({"kind": "tcp", "name": name, "address": address});
    Value::Array(addresses.iter().map(claim).collect())
}

#[test]
fn options_are_set_once_and_kept_by_the_next_generation() {
    let scene = Scene::new();
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": "[::1]:0", "only_v6": true, "reuse_port": true, "backlog": 7,
         "receive_buffer": 300_000},
        {"kind": "unix", "name": "app", "address": scene.path("app.sock"), "mode": 0o600},
    ]);
    let (mut first, _) = scene.serve("1", json!({"claims": claims}));
    let before = first.ask(json!({"do": "socket", "name": "web"}));
    assert_eq!((&before["ok"]["only_v6"], &before["ok"]["reuse_port"]), (&json!(true), &json!(true)));
    assert!(before["ok"]["receive_buffer"].as_u64().unwrap() >= 300_000, "{before}");
    // The next version asks for something else: what is inherited keeps what it has, and the queue its length.
    let other = json!([
        {"kind": "tcp", "name": "web", "address": "[::1]:0", "backlog": 9},
        {"kind": "unix", "name": "app", "address": scene.path("app.sock"), "mode": 0o666},
    ]);
    let (mut second, _) = scene.serve("2", json!({"claims": other}));
    assert_eq!(second.ask(json!({"do": "socket", "name": "web"})), before);
    let listener = scene.status().listeners.into_iter().find(|listener| listener.name == "web").unwrap();
    assert_eq!(listener.accept_queue_limit, Some(7));
    let mode = std::fs::metadata(scene.path("app.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    visit_unix(scene.path("app.sock"));
}

#[test]
fn sockets_that_the_application_made_travel_like_others() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let made = add(&mut first, "own-tcp", "made");
    first.ask(json!({"do": "claim", "kind": "own-unix", "name": "path", "address": scene.path("own.sock")}));
    assert_eq!(first.ask(json!({"do": "socket", "name": "made"}))["ok"]["nonblocking"], true);
    assert_eq!(visit(&made).pid, first.pid());
    let (mut second, _) = scene.serve(
        "2",
        json!({"claims": [
            {"kind": "own-tcp", "name": "made", "address": "127.0.0.1:1"},
            {"kind": "own-unix", "name": "path", "address": scene.path("other.sock")},
        ]}),
    );
    first.exit_code();
    assert_eq!(visit(&made).pid, second.pid());
    assert_eq!(visit_unix(scene.path("own.sock")).pid, second.pid());
    // It was bound by the family, so the last of it removes it.
    second.ask(json!({"do": "stop"}));
    assert_eq!(second.exit_code(), Some(0));
    assert!(!scene.path("own.sock").exists());
}

#[test]
fn something_else_than_was_said_is_a_mismatch() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let error = first.refuse(json!({"do": "claim", "kind": "wrong", "name": "dns", "address": "127.0.0.1:0"}));
    assert_eq!(error["code"], "mismatch");
    assert!(error["message"].as_str().unwrap().contains("inet stream"), "{error}");
    assert_eq!(names(&mut first), ["web"]);
}

#[test]
fn an_established_connection_travels_as_it_is() {
    let scene = Scene::new();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut first, _) = scene.serve("1", json!({}));
    let address = backend.local_addr().unwrap().to_string();
    first.ask(json!({"do": "claim", "kind": "connection", "name": "backend", "address": address}));
    let (mut accepted, _) = backend.accept().unwrap();
    first.ask(json!({"do": "write", "name": "backend", "text": "one "}));
    let claims = json!([{"kind": "connection", "name": "backend", "address": address}]);
    let (mut second, _) = scene.serve("2", json!({"claims": claims}));
    first.exit_code();
    second.ask(json!({"do": "write", "name": "backend", "text": "two"}));
    let mut said = [0; 7];
    accepted.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"one two");
    // Nobody connected again.
    backend.set_nonblocking(true).unwrap();
    assert!(backend.accept().is_err());
}

#[test]
fn all_of_a_kind_are_inherited_by_one_call() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let addresses: Vec<String> = (1..=3).map(|number| add(&mut first, "tcp", &format!("extra-{number}"))).collect();
    add(&mut first, "memfd", "state");
    let mut second = scene.warm("2", json!({"claims": []}));
    let found = second.ask(json!({"do": "inherited-of", "kind": "tcp-listener"}));
    assert_eq!(found["ok"], json!(["extra-1", "extra-2", "extra-3", "web"]));
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(names(&mut second), ["extra-1", "extra-2", "extra-3", "web"], "what was not asked for is dropped");
    for address in addresses {
        // Its queue is there: the puppet does not accept from what it has as a plain descriptor.
        TcpStream::connect(address).unwrap();
    }
}

#[test]
fn an_entry_that_was_added_is_served_and_inherited() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let address = add(&mut first, "tcp", "admin");
    assert_eq!(visit(&address).pid, first.pid());
    assert!(scene.status().listeners.iter().any(|listener| listener.name == "admin"));
    let all = BTreeMap::from([("admin".to_owned(), address.clone())]);
    let (second, _) = scene.serve("2", json!({"claims": claims(&all)}));
    first.exit_code();
    assert_eq!(visit(&address).pid, second.pid());
}

#[test]
fn a_name_that_is_in_use_and_an_address_that_overlaps_are_refused_while_serving_too() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let twice = first.refuse(json!({"do": "claim", "kind": "tcp", "name": "web", "address": "127.0.0.1:0"}));
    assert_eq!(twice["code"], "name-twice");
    let port = address.rsplit(':').next().unwrap();
    let wildcard = format!("0.0.0.0:{port}");
    let overlap = first.refuse(json!({"do": "claim", "kind": "tcp", "name": "all", "address": wildcard}));
    assert_eq!(overlap["code"], "overlap");
    assert_eq!(names(&mut first), ["web"]);
}

#[test]
fn an_entry_that_was_removed_is_neither_served_nor_inherited_and_can_be_replaced() {
    let scene = Scene::new();
    let path = scene.path("admin.sock");
    let (mut first, _) = scene.serve("1", json!({}));
    let old = add(&mut first, "tcp", "api");
    first.ask(json!({"do": "claim", "kind": "unix", "name": "admin", "address": path}));
    assert_eq!(first.ask(json!({"do": "remove", "name": "api"}))["ok"], true);
    assert_eq!(first.ask(json!({"do": "remove", "name": "api"}))["ok"], false);
    assert!(TcpStream::connect(&old).is_err());
    let new = add(&mut first, "tcp", "api");
    assert_ne!(old, new);
    assert!(path.exists());
    first.ask(json!({"do": "remove", "name": "admin"}));
    assert!(!path.exists(), "no predecessor could come back for it");
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "claim", "kind": "tcp", "name": "api", "address": new}));
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(names(&mut second), ["api", "web"]);
    assert_eq!(visit(&new).pid, second.pid());
}

/// The predecessor may take the service back, and it has the listener still: without a path nobody would reach it.
#[test]
fn the_path_of_a_removed_entry_stays_as_long_as_the_predecessor_does() {
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"}, {"kind": "unix", "name": "app", "address": path},
    ]);
    let (mut first, _) = scene.serve("1", json!({"claims": claims}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({"claims": claims}));
    first.event("leave");
    second.ask(json!({"do": "remove", "name": "app"}));
    assert!(path.exists());
    second.kill();
    first.event("resumed");
    assert_eq!(visit_unix(&path).pid, first.pid());
}

#[test]
fn nothing_changes_from_an_offer_to_the_end_of_its_takeover() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    let adding = json!({"do": "claim", "kind": "tcp", "name": "late", "address": "127.0.0.1:0"});
    let frozen = first.refuse(adding.clone());
    assert_eq!(frozen["code"], "frozen");
    assert!(frozen["message"].as_str().unwrap().contains(&format!("to pid {}", second.pid())), "{frozen}");
    assert!(frozen["hint"].is_string());
    assert_eq!(first.refuse(json!({"do": "remove", "name": "web"}))["code"], "frozen");
    second.kill();
    scene.status_where(|status| status.phase == Phase::Serving && status.takeover.is_none());
    first.ask(adding);
    assert_eq!(names(&mut first), ["late", "web"]);
    // A process that has left owns nothing that could change.
    first.ask(json!({"do": "options", "drain": false}));
    let (_third, _) = scene.serve("3", json!({}));
    first.event("leave");
    assert_eq!(first.refuse(json!({"do": "remove", "name": "late"}))["code"], "frozen");
}

/// Adds and removes at random moments of ten takeovers: each either fails, or the successor has it.
#[test]
fn whatever_was_added_without_an_error_is_inherited() {
    let scene = Scene::new();
    let (mut owner, web) = scene.serve("0", json!({}));
    let mut all = BTreeMap::from([("web".to_owned(), web)]);
    let (mut changed, mut refused) = (0, 0);
    // On a busy machine the owner comes to few changes before it is frozen.
    for generation in 1..=50 {
        if changed > 10 && refused >= 10 {
            break;
        }
        let mut next = Puppet::new();
        next.tell(&scene.begin(&generation.to_string(), json!({"ready": false, "claims": []})));
        // As the successor comes at its own pace, each of these meets another moment of its takeover.
        for number in 0.. {
            let name = format!("{generation}-{number}");
            let answer = owner.try_ask(json!({"do": "claim", "kind": "tcp", "name": name, "address": "127.0.0.1:0"}));
            if answer.get("error").is_some() {
                assert_eq!(answer["error"]["code"], "frozen");
                refused += 1;
                break;
            }
            changed += 1;
            all.insert(name.clone(), answer["ok"]["address"].as_str().unwrap().to_owned());
            if number % 3 == 2 && owner.try_ask(json!({"do": "remove", "name": name})).get("error").is_none() {
                all.remove(&name);
            }
        }
        next.answer();
        let started = next.event("started");
        assert_eq!(started["entries"], json!(all.keys().collect::<Vec<_>>()));
        assert_eq!(started["failed_checks"], json!([]));
        for claim in claims(&all).as_array().unwrap() {
            let mut claim = claim.clone();
            claim["do"] = json!("claim");
            next.ask(claim);
        }
        next.ask(json!({"do": "ready"}));
        next.event("serving");
        assert_eq!(owner.exit_code(), Some(0));
        for address in all.values() {
            assert_eq!(visit(address).pid, next.pid());
        }
        owner = next;
    }
    assert!(changed > 10 && refused >= 10, "{changed} changes, {refused} refused");
}

/// A rehearsal looks at what there was when it came.
#[test]
fn entries_may_change_while_somebody_rehearses() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut looking = Puppet::new();
    looking.ask(scene.begin("2", json!({"rehearsal": true})));
    looking.event("started");
    let address = add(&mut first, "tcp", "more");
    looking.ask(json!({"do": "drop"}));
    assert_eq!(visit(&address).pid, first.pid());
    assert_eq!(names(&mut first), ["more", "web"]);
}
