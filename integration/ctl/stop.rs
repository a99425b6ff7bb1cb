//! `ctl stop`: who leaves, and who is left alone.

use std::io::Write;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stage::{CTL, Running, Service};
use crate::puppet::{PID_NAMESPACE, Puppet, Scene, is_root, skip};

fn stop(scene: &Scene, flags: &[&str]) -> Running {
    Running::new(Command::new(CTL).args(flags).arg("stop").env("HEIRLOOM_SOCKET", scene.control()))
}

/// All of these drain, each with something in flight.
fn drain(scene: &Scene, generations: &[u64]) {
    scene.status_where(|status| {
        let drainers = status.drainers.iter().filter(|drain| drain.in_flight == Some(1));
        drainers.map(|drain| drain.generation.unwrap()).eq(generations.iter().copied())
    });
}

/// As in containers, where each is the first process of its own namespace.
fn first_process(scene: &Scene, version: &str, more: Value) -> Option<Puppet> {
    if !is_root() {
        skip("only root can make a pid namespace");
        return None;
    }
    let mut puppet = Puppet::through(&PID_NAMESPACE)?;
    puppet.ask(scene.begin(version, more));
    puppet.event("serving");
    Some(puppet)
}

#[test]
fn it_ends_the_service() {
    let service = Service::start();
    let run = service.run(&["--json", "stop"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(
        run.json(),
        json!({"stopped": true, "owner": {"generation": 1, "pid": std::process::id(), "app_version": "one"}})
    );
    assert_eq!(service.run(&["stop"]).code, 3);

    let text = Service::start().run(&["stop"]);
    assert_eq!(text.code, 0);
    assert!(text.stdout.contains("has left") && text.stderr.contains("leaves"), "{} {}", text.stdout, text.stderr);
}

/// Who drains would serve again, as it does after a crash of the owner: nobody who asks for a stop wants an old version
/// back.
#[test]
fn it_ends_those_who_drain_and_come_back() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({}));
    second.ask(json!({"do": "lease"}));
    let (mut third, _) = scene.serve("3", json!({}));
    for drainer in [&mut first, &mut second] {
        assert_eq!(drainer.event("leave")["reason"], "successor");
    }
    drain(&scene, &[2, 1]);
    // The older one comes back first, and does not know the other.
    second.freeze();
    let mut stopping = stop(&scene, &["--json"]);
    assert_eq!(first.event("resumed")["generation"], 4);
    assert_eq!(first.event("leave")["reason"], "stopped");
    first.ask(json!({"do": "end-lease"}));
    assert_eq!(first.exit_code(), Some(0));
    second.thaw();
    assert_eq!(second.event("resumed")["generation"], 5);
    assert_eq!(second.event("leave")["reason"], "stopped");
    second.ask(json!({"do": "end-lease"}));
    let stopped = stopping.object();
    assert_eq!(stopping.code(), 0, "{stopped}");
    assert_eq!(stopped["owner"], json!({"generation": 3, "pid": third.pid(), "app_version": "3"}));
    let (first_owned, second_owned) = (
        json!({"generation": 4, "pid": first.pid(), "app_version": "1"}),
        json!({"generation": 5, "pid": second.pid(), "app_version": "2"}),
    );
    assert_eq!(stopped["came_back"], json!([first_owned, second_owned]));
    assert_eq!((second.exit_code(), third.exit_code()), (Some(0), Some(0)));
    assert_eq!(stop(&scene, &[]).code(), 3);
}

#[test]
fn it_says_where_who_drains_neither_comes_back_nor_ends() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = scene.serve("2", json!({}));
    drain(&scene, &[1]);
    first.freeze();
    let mut stopping = stop(&scene, &["--json", "--timeout", "5s"]);
    assert_eq!(second.exit_code(), Some(0));
    let error = stopping.object()["error"].clone();
    assert_eq!((stopping.code(), &error["code"]), (4, &json!("deadline")));
    assert!(error["message"].as_str().unwrap().contains("has left, and whoever still has the socket"), "{error}");
}

#[test]
fn on_probation_it_leaves_the_one_that_serves_again() {
    let scene = Scene::new();
    let Some(mut first) = first_process(&scene, "1", json!({})) else { return };
    first.ask(json!({"do": "lease"}));
    let Some(mut second) = first_process(&scene, "2", json!({})) else { return };
    drain(&scene, &[1]);
    let Some(_third) = first_process(&scene, "3", json!({"probation_ms": 600_000})) else { return };
    drain(&scene, &[1]);
    let mut stopping = stop(&scene, &["--json"]);
    second.event("resume");
    let told = stopping.object();
    let (error, owner) = (&told["error"], &told["owner"]);
    assert_eq!((stopping.code(), &error["code"], &owner["app_version"]), (1, &json!("overtaken"), &json!("2")));
    assert!(!second.has_said("leave"));
}

#[test]
fn it_leaves_a_successor_that_is_past_ready() {
    let scene = Scene::new();
    let Some(mut first) = first_process(&scene, "1", json!({})) else { return };
    first.ask(json!({"do": "lease"}));
    let Some(mut second) = first_process(&scene, "2", json!({"exclusive": true, "release": false})) else { return };
    drain(&scene, &[1]);
    let mut third = scene.warm("3", json!({}));
    third.ask(json!({"do": "ready"}));
    second.event("release");
    let mut stopping = stop(&scene, &[]);
    assert!(stopping.talk().contains("leaves"));
    second.ask(json!({"do": "released"}));
    third.event("serving");
    assert_eq!(stopping.code(), 1, "{}", stopping.stderr());
    assert!(!third.has_said("leave") && scene.status().pid == third.pid());
}

/// In a container it has the pid of the one that drained, and the same version; but it never drained.
#[test]
fn it_leaves_one_that_starts_anew_and_only_looks_like_one_that_drained() {
    let scene = Scene::new();
    let Some(mut first) = first_process(&scene, "1", json!({})) else { return };
    first.ask(json!({"do": "lease"}));
    let Some(mut second) = first_process(&scene, "1", json!({})) else { return };
    drain(&scene, &[1]);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", first.pid())).unwrap();
    let inside = Pid::from_raw(children.trim().parse().unwrap());
    kill(inside, Signal::SIGSTOP).unwrap();
    let mut stopping = stop(&scene, &["--json"]);
    assert_eq!(second.exit_code(), Some(0));
    let Some(mut third) = Puppet::through(&PID_NAMESPACE) else { return };
    third.ask(scene.begin("1", json!({})));
    kill(inside, Signal::SIGKILL).unwrap();
    assert_eq!(third.event("serving")["generation"], 3);
    let told = stopping.object();
    assert_eq!((stopping.code(), &told["error"]["code"]), (1, &json!("overtaken")), "{told}");
    assert!(!third.has_said("leave") && scene.status().generation == 3);
}

#[test]
fn it_does_not_wait_for_ever() {
    let service = Service::start();
    let mut client = service.hold();
    service.place.status_where(|status| status.in_flight == 1);
    let run = service.run(&["--json", "--timeout", "200ms", "stop"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (4, &json!("deadline")));
    assert_eq!(service.json(&["status"])["phase"], "stopping");
    let mut again = service.spawn(&["stop"]);
    assert!(again.talk().contains("leaves, 1 in flight"));
    client.write_all(b"\n").unwrap();
    assert_eq!(again.code(), 0, "{}", again.stderr());
}
