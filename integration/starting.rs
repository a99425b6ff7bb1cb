//! The way in: several starters, cancelled starts, and what they leave behind.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use heirloom::{Client, Phase};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::ctl::stage::eventually;
use crate::puppet::{PATIENCE, Puppet, Scene};
use crate::visitor::{is_listening_unix, visit};

/// One owns, and the other takes over from it; whoever that is, both are reachable in turn.
#[test]
fn two_starters_at_once_end_as_one_owner_and_one_successor() {
    let (mut one, mut other) = (Puppet::new(), Puppet::new());
    for round in 0..20 {
        let scene = Scene::new();
        let begin = |version: &str| scene.begin(version, json!({"exit": false}));
        one.tell(&begin("a"));
        other.tell(&begin("b"));
        one.answer();
        other.answer();
        let serving = [one.event("serving"), other.event("serving")];
        let mut generations = serving.map(|serving| serving["generation"].as_u64().unwrap());
        generations.sort_unstable();
        assert_eq!(generations, [1, 2], "round {round}");
        let status = scene.status();
        assert_eq!((status.generation, status.phase), (2, Phase::Serving));
        let (first, second) = if status.pid == other.pid() { (&mut one, &mut other) } else { (&mut other, &mut one) };
        first.event("drained");
        assert_eq!(visit(&status.listeners[0].address).pid, second.pid());
        second.ask(json!({"do": "stop"}));
        second.event("drained");
        one.events();
        other.events();
    }
}

#[test]
fn five_starters_at_once_take_their_turns() {
    let scene = Scene::new();
    let mut puppets: Vec<Puppet> = (0..5).map(|_| Puppet::new()).collect();
    for (number, puppet) in puppets.iter_mut().enumerate() {
        puppet.tell(&scene.begin(&number.to_string(), json!({"exit": false})));
    }
    let mut busy = Vec::new();
    let mut generations = Vec::new();
    for (number, puppet) in puppets.iter_mut().enumerate() {
        let event = puppet.first_of(&["serving", "failed"]);
        if event["event"] == "serving" {
            generations.push(event["generation"].as_u64().unwrap());
        } else {
            assert_eq!(event["code"], "busy", "{event}");
            busy.push(number);
        }
    }
    generations.sort_unstable();
    assert_eq!(generations, (1..=5 - busy.len() as u64).collect::<Vec<_>>());
    let status = scene.status();
    assert_eq!(status.generation, *generations.last().unwrap());
    let owners = puppets.iter_mut().filter(|puppet| status.pid == puppet.pid()).count();
    assert_eq!(owners, 1);
    assert_eq!(visit(&status.listeners[0].address).pid, status.pid);
}

#[test]
fn a_first_that_is_still_starting_says_so_and_a_second_waits_for_it() {
    let scene = Scene::new();
    let mut first = scene.warm("1", json!({}));
    let status = scene.status();
    assert_eq!((status.phase, status.pid, status.generation), (Phase::Starting, first.pid(), 1));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({})));
    // Its hello was answered once the owner has seen a second client.
    assert_eq!(scene.status().phase, Phase::Starting);
    assert!(second.events().is_empty());
    first.ask(json!({"do": "ready"}));
    first.event("serving");
    let started = second.event("started");
    assert_eq!(started["predecessor"]["pid"], first.pid());
    assert_eq!(second.event("serving")["generation"], 2);
}

#[test]
fn a_start_ends_at_its_deadline() {
    let scene = Scene::new();
    let _first = scene.warm("1", json!({}));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({"start_ms": 300})));
    let error = second.failure();
    assert_eq!(error["code"], "deadline", "{error}");
}

/// Nothing that a start made may be left: no path, no lock, no descriptor.
#[track_caller]
fn nothing_is_left(scene: &Scene, puppet: &mut Puppet, before: &Value) {
    assert!(!scene.control().exists(), "the control path is gone");
    assert_eq!(&puppet.ask(json!({"do": "descriptors"})), before);
    let locks = std::fs::File::options().write(true).open(scene.path("handoff.sock.lock"));
    if let Ok(file) = locks {
        assert!(file.try_lock().is_ok(), "the lease is free");
    }
    let code = Client::connect(scene.control(), Duration::ZERO).unwrap_err();
    assert_eq!(code.code(), "nobody");
}

#[test]
fn a_first_start_that_is_cancelled_leaves_nothing() {
    let scene = Scene::new();
    let mut puppet = Puppet::new();
    let before = puppet.ask(json!({"do": "descriptors"}));
    let unix = scene.path("app.sock");
    puppet.ask(scene.begin("1", json!({"ready": false})));
    puppet.event("started");
    puppet.ask(json!({"do": "claim", "kind": "unix", "name": "local", "address": unix}));
    assert!(unix.exists());
    puppet.ask(json!({"do": "cancel"}));
    let error = puppet.failure();
    assert_eq!(error["code"], "cancelled", "{error}");
    assert!(!unix.exists());
    nothing_is_left(&scene, &mut puppet, &before);
    // The same process may try again.
    puppet.ask(scene.begin("2", json!({})));
    puppet.event("serving");
    assert_eq!(scene.status().pid, puppet.pid());
}

#[test]
fn a_first_start_that_is_dropped_leaves_nothing() {
    let scene = Scene::new();
    let mut puppet = Puppet::new();
    let before = puppet.ask(json!({"do": "descriptors"}));
    puppet.ask(scene.begin("1", json!({"ready": false})));
    puppet.event("started");
    puppet.ask(json!({"do": "drop"}));
    nothing_is_left(&scene, &mut puppet, &before);
}

#[test]
fn a_start_that_waits_can_be_cancelled() {
    let scene = Scene::new();
    let _first = scene.warm("1", json!({}));
    let mut second = Puppet::new();
    let before = second.ask(json!({"do": "descriptors"}));
    second.ask(scene.begin("2", json!({})));
    second.ask(json!({"do": "cancel"}));
    assert_eq!(second.failure()["code"], "cancelled");
    assert_eq!(second.ask(json!({"do": "descriptors"})), before);
    assert_eq!(scene.status().phase, Phase::Starting);
}

/// However early the cancel comes, it works; and if it comes too late, it stops an owner.
#[test]
fn a_cancel_at_any_moment_of_a_start_ends_it() {
    let mut puppet = Puppet::new();
    let before = puppet.ask(json!({"do": "descriptors"}));
    for step in 0..12 {
        let scene = Scene::new();
        let owner = (step % 2 == 0).then(|| scene.serve("owner", json!({})));
        puppet.tell(&scene.begin("x", json!({"exit": false})));
        puppet.tell(&json!({"do": "cancel-after", "rounds": (step / 2) * (step / 2)}));
        puppet.answer();
        puppet.answer();
        let event = puppet.first_of(&["failed", "drained"]);
        if event["event"] == "failed" {
            assert_eq!(event["code"], "cancelled", "step {step}: {event}");
            if let Some((mut owner, address)) = owner {
                scene.status_where(|status| status.takeover.is_none());
                assert_eq!(visit(&address).pid, owner.pid());
                assert_eq!(owner.ask(json!({"do": "is-owner"}))["ok"], true);
            }
        }
        puppet.events();
        assert_eq!(puppet.ask(json!({"do": "descriptors"})), before, "step {step}");
    }
}

#[test]
fn a_successor_that_is_dropped_or_cancelled_leaves_its_predecessor_as_it_was() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    first.events();
    let held = first.ask(json!({"do": "descriptors"}));
    let mut second = Puppet::new();
    let before = second.ask(json!({"do": "descriptors"}));
    for end in ["drop", "cancel"] {
        second.ask(scene.begin("2", json!({"ready": false})));
        second.event("started");
        second.ask(json!({"do": end}));
        if end == "cancel" {
            assert_eq!(second.failure()["code"], "cancelled");
        }
        scene.status_where(|status| status.takeover.is_none());
        assert_eq!(second.ask(json!({"do": "descriptors"})), before);
        assert_eq!(visit(&address).pid, first.pid());
        assert!(first.events().is_empty(), "the application noticed nothing");
    }
    // The owner drops what it had of the client when it reads the end of the connection: a status later.
    scene.status();
    assert_eq!(settled(&mut first, &held), held);
}

/// A cancel while the predecessor lets go: the successor withdraws, and the predecessor goes on.
#[test]
fn ready_can_be_cancelled() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true, "release": false}));
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "ready"}));
    first.event("release");
    second.ask(json!({"do": "cancel"}));
    assert_eq!(second.failure()["code"], "cancelled");
    first.event("resume");
    first.ask(json!({"do": "released"}));
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true);
    assert_eq!(visit(&address).pid, first.pid());
}

/// Asks until the descriptors are as wanted, for as long as a busy machine takes; gives what there is at the end.
///
/// What this process closes is not closed for its peer at once: a child that another test is starting has copies of all
/// descriptors between fork(2) and execve(2).
pub(crate) fn settled(puppet: &mut Puppet, wanted: &Value) -> Value {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let found = puppet.ask(json!({"do": "descriptors"}));
        let (have, want) = (found["ok"].as_array().unwrap().len(), wanted["ok"].as_array().unwrap().len());
        if have == want || std::time::Instant::now() > end {
            // Numbers may differ, what they lead to may not.
            return if have == want { wanted.clone() } else { found };
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_control_socket_and_the_lock_file_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scene.control()), 0o600);
    assert_eq!(mode(&scene.path("handoff.sock.lock")), 0o600);
}

#[test]
fn a_lock_file_that_was_replaced_under_a_living_owner_is_noticed() {
    let scene = Scene::new();
    let (first, _) = scene.serve("1", json!({}));
    let mut deaf = first;
    deaf.freeze();
    std::fs::remove_file(scene.path("handoff.sock.lock")).unwrap();
    std::fs::write(scene.path("handoff.sock.lock"), "").unwrap();
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({"start_ms": 20_000})));
    let error = second.failure();
    deaf.thaw();
    assert_eq!(error["code"], "occupied", "{error}");
    assert_eq!(scene.status().pid, deaf.pid());
}

/// The old process gives its lease back a moment before its listeners are closed: the next start must not trip over that.
#[test]
fn a_start_right_after_a_stop_finds_its_addresses_free() {
    for round in 0..10 {
        let scene = Scene::new();
        let (mut first, address) = scene.serve("1", json!({}));
        first.kill();
        let claims = json!({"claims": [
            {"kind": "tcp", "name": "web", "address": address},
            {"kind": "unix", "name": "local", "address": scene.path("app.sock")},
        ]});
        let (mut second, _) = scene.serve("2", claims.clone());
        let mut third = Puppet::new();
        if round % 2 == 0 {
            second.ask(json!({"do": "stop"}));
            third.tell(&scene.begin("3", claims));
        } else {
            third.tell(&scene.begin("3", claims));
            second.kill();
        }
        third.event("serving");
        assert_eq!(visit(&address).pid, third.pid());
    }
}

/// The process may change its folder afterwards: a family is where it was founded.
#[test]
fn a_relative_path_is_resolved_once() {
    let scene = Scene::new();
    let mut first = Puppet::with(|command| {
        command.current_dir(scene.path(""));
    })
    .unwrap();
    let local = json!({"kind": "unix", "name": "local", "address": "app.sock"});
    first.ask(scene.begin("1", json!({"path": "handoff.sock", "claims": [local], "exit": false})));
    first.event("serving");
    first.ask(json!({"do": "chdir", "folder": "/"}));
    // The owner makes a path that was removed again: where it was.
    std::fs::remove_file(scene.control()).unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    while !scene.control().exists() {
        assert!(std::time::Instant::now() < end, "the control path is not made again");
        std::thread::yield_now();
    }
    // A successor in another folder, by the absolute path, inherits the absolute path.
    let local = json!({"kind": "unix", "name": "local", "address": scene.path("app.sock")});
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({"claims": [local]})));
    assert_eq!(second.event("serving")["generation"], 2);
    assert_eq!(second.ask(json!({"do": "report"}))["ok"]["entries"]["local"]["outcome"], "adopted");
    first.event("drained");
    assert_eq!(crate::visitor::visit_unix(scene.path("app.sock")).pid, second.pid());
    second.ask(json!({"do": "stop"}));
    second.event("drained");
    assert!(!scene.path("app.sock").exists());
}

/// A second owner at one path is refused, whatever process it would be in: here the very same.
#[test]
fn two_generations_in_one_process_are_never_two_owners() {
    use heirloom::{Drained, Event, Handoff, Reason};
    let scene = Scene::new();
    let mut first = Handoff::at(scene.control()).start().unwrap().ready().unwrap();
    // The owner does not answer, and it lives: nobody takes over from it.
    let refused = Handoff::at(scene.control()).start_within(Duration::from_millis(200)).start().unwrap_err();
    assert_eq!(refused.code(), "unresponsive", "{refused}");
    assert!(first.is_owner());
    let path = scene.control();
    let successor = std::thread::spawn(move || Handoff::at(path).start().unwrap().ready().unwrap());
    assert_eq!(first.wait().unwrap(), Event::Leave(Reason::Successor));
    let second = successor.join().unwrap();
    assert_eq!((first.is_owner(), second.is_owner()), (false, true));
    assert_eq!((first.generation(), second.generation()), (1, 2));
    let refused = Handoff::at(scene.control()).start_within(Duration::from_millis(200)).start().unwrap_err();
    assert_eq!(refused.code(), "unresponsive", "{refused}");
    assert!(second.is_owner());
    // One after the other: a predecessor that found the lock free would take the service back.
    assert!(matches!(first.drain().unwrap(), Drained::Done(_)));
    assert!(matches!(second.drain().unwrap(), Drained::Done(_)));
}

/// What comes with the commit belongs to the service, which may wait before it looks.
#[test]
fn a_stop_that_comes_with_the_commit_makes_the_descriptor_readable() {
    use heirloom::{Event, Reason};
    let mut handoff = heirloom::testing::handoff().unwrap();
    let stopper = handoff.stopper().unwrap();
    let mut committing = handoff.start().unwrap().begin_ready().unwrap();
    stopper.stop();
    let end = std::time::Instant::now() + PATIENCE;
    while !committing.process().unwrap() {
        assert!(std::time::Instant::now() < end);
    }
    let mut serving = committing.serving().unwrap();
    let mut waiting = [PollFd::new(serving.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut waiting, PollTimeout::ZERO), Ok(1));
    assert_eq!(serving.process().unwrap(), Some(Event::Leave(Reason::Stopped)));
}

/// Who wants no limit says so with the longest time that there is.
#[test]
fn no_limit_is_too_long() {
    use heirloom::{Drained, Event, Handoff, Reason};
    let scene = Scene::new();
    let unlimited = || {
        let handoff = Handoff::at(scene.control()).start_within(Duration::MAX).drain_within(Duration::MAX);
        handoff.warm_up_within(Duration::MAX).progress_within(Duration::MAX)
    };
    let mut first = unlimited().start().unwrap().ready().unwrap();
    let next = unlimited();
    let successor = std::thread::spawn(move || {
        let mut starting = next.start().unwrap();
        starting.progress("half of it").unwrap();
        starting.ready().unwrap()
    });
    assert_eq!(first.wait().unwrap(), Event::Leave(Reason::Successor));
    let lease = first.lease();
    let second = successor.join().unwrap();
    let mut draining = first.begin_drain().unwrap();
    assert!(!draining.process().unwrap(), "as long as something is in flight");
    assert!(draining.left().is_some_and(|left| left > Duration::from_secs(30_000_000)));
    drop(lease);
    let end = std::time::Instant::now() + PATIENCE;
    while !draining.process().unwrap() {
        assert!(std::time::Instant::now() < end);
    }
    let Drained::Done(summary) = draining.drained().unwrap() else { panic!("it resumed") };
    assert!(!summary.forced);
    assert!(matches!(second.drain().unwrap(), Drained::Done(_)));
    // A child that another test is starting may have a copy for a while.
    eventually(|| (!is_listening_unix(&scene.control())).then_some(()));
    assert!(Client::connect(scene.control(), Duration::MAX).is_err(), "nobody listens any more");
}
