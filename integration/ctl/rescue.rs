//! `ctl rescue`: the service goes on after an owner that is stopped, and one that is well is left alone.

use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use heirloom::TakeoverRecord;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::stage::{CTL, Run, Running, Service, eventually};
use crate::puppet::{Scene, skip};
use crate::strace::Strace;
use crate::visitor;

/// An owner in a process of its own, which is stopped, and alone in its family.
fn stopped(service: &Service) -> Running {
    let mut owner = service.keeper(&[]);
    service.left();
    owner.signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", owner.pid());
    eventually(|| std::fs::read_to_string(&stat).unwrap().contains(") T ").then_some(()));
    owner
}

fn names(seen: &Value) -> Vec<&Value> {
    seen["entries"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect()
}

#[test]
fn a_look_changes_nothing() {
    let service = Service::start();
    let mut owner = stopped(&service);
    let seen = service.run(&["--json", "--timeout", "200ms", "rescue"]);
    assert_eq!(seen.code, 0, "{}{}", seen.stdout, seen.stderr);
    let seen = seen.json();
    assert_eq!((&seen["source"]["pid"], &seen["source"]["state"]), (&json!(owner.pid()), &json!("T")));
    assert_eq!(seen["ends"], json!([{"pid": owner.pid(), "state": "T"}]));
    assert_eq!(names(&seen), ["admin", "file", "web"]);
    let text = service.run(&["--timeout", "200ms", "rescue"]);
    assert!(text.code == 0 && text.stdout.contains("stopped (T)") && text.stderr.contains("--yes"), "{}", text.stdout);
    owner.signal(Signal::SIGCONT);
    assert_eq!((service.status().generation, service.status().pid), (2, owner.pid()));
}

/// Connections are made all the time; each is answered by who comes after the dead.
#[test]
fn the_listeners_of_a_stopped_owner_are_kept_under_load() {
    let service = Service::start();
    let mut owner = stopped(&service);
    let (end, address) = (Arc::new(AtomicBool::new(false)), service.address);
    let visitors: Vec<_> = (0..4)
        .map(|_| {
            let end = end.clone();
            thread::spawn(move || {
                let mut answers = Vec::new();
                while !end.load(Ordering::SeqCst) {
                    let mut stream = TcpStream::connect(address).unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).unwrap();
                    answers.push(answer);
                }
                answers
            })
        })
        .collect();
    let mut rescue = service.spawn(&["--json", "--timeout", "200ms", "rescue", "--yes"]);
    assert_eq!(names(&rescue.object()), ["admin", "file", "web"]);
    let told = rescue.object();
    assert_eq!((&told["owner"]["generation"], &told["owner"]["pid"]), (&json!(3), &json!(rescue.pid())));
    assert!(owner.killed(), "the old owner is dead");
    let next = service.place.serve("four");
    assert_eq!(rescue.code(), 0, "{}", rescue.stderr());
    assert_eq!((next.status().generation, next.status().listeners.len()), (4, 3));
    assert_eq!(next.address, service.address);
    end.store(true, Ordering::SeqCst);
    for visitor in visitors {
        let answers = visitor.join().expect("no connection is refused or reset");
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer == "four"), "{answers:?}");
    }
}

#[test]
fn a_program_goes_on_with_the_listeners() {
    let service = Service::start();
    let _owner = stopped(&service);
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES; exec sleep 1000";
    let mut rescue = service.spawn(&["--timeout", "200ms", "rescue", "--yes", "--", "sh", "-c", script]);
    assert_eq!(rescue.line(), "3 admin:file:web");
    let status = service.status();
    assert_eq!((status.generation, status.pid, status.in_flight), (3, rescue.pid(), 1));
    assert_eq!(service.run(&["stop"]).code, 0);
}

/// An incident is not over because its owner hangs: with a program that serves at once, and with one that comes later.
#[test]
fn a_hold_outlives_a_rescue() {
    for program in [&["--", "sleep", "1000"][..], &[]] {
        let service = Service::start();
        let mut owner = service.keeper(&[]);
        service.left();
        service.json(&["hold", "--reason", "incident 12", "--for", "1h"]);
        owner.signal(Signal::SIGSTOP);
        let arguments = [&["--json", "--timeout", "200ms", "rescue", "--yes"], program].concat();
        let mut rescue = service.spawn(&arguments);
        assert_eq!(names(&rescue.object()), ["admin", "file", "web"]);
        rescue.object();
        assert!(owner.killed());
        let hold = service.status().hold.unwrap();
        assert_eq!((hold.reason.as_str(), hold.suspended), ("incident 12", program.is_empty()));
        assert!(hold.left_ms.is_some_and(|left| left > 3_000_000 && left < 3_600_000), "{hold:?}");
        if program.is_empty() {
            let next = service.place.serve("four");
            assert_eq!(rescue.code(), 0, "{}", rescue.stderr());
            assert_eq!(next.status().hold.map(|hold| hold.suspended), Some(false));
        } else {
            let run = service.run(&["--json", "handoff", "--commit"]);
            assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("held")));
            assert_eq!(service.run(&["stop"]).code, 0);
        }
    }
}

#[test]
fn an_owner_that_answers_is_left_alone() {
    let service = Service::start();
    for arguments in [&["rescue"][..], &["rescue", "--yes"], &["rescue", "--yes", "--", "true"]] {
        let run = service.run(&[&["--json"], arguments].concat());
        assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("healthy")), "{arguments:?}");
        assert!(run.json()["error"]["hint"].as_str().unwrap().contains("ctl upgrade"));
    }
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
    for wrong in [&["rescue", "--", "true"][..], &["rescue", "--drain", "1s"]] {
        assert_eq!(service.run(wrong).code, 2, "{wrong:?}");
    }
}

/// Without the right to trace the owner nothing can be taken from it.
#[test]
fn who_may_not_trace_the_owner_is_told_so() {
    let dropped = ["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"];
    let able = nix::unistd::geteuid().is_root()
        && Command::new("setpriv").args(dropped).arg("true").output().is_ok_and(|output| output.status.success());
    if !able {
        return skip("it takes root, and setpriv, to drop a right");
    }
    let service = Service::start();
    let mut owner = stopped(&service);
    let mut command = Command::new("setpriv");
    command.args(dropped).arg(CTL).arg("--socket").arg(&service.place.socket);
    let run = Run::of(command.args(["--json", "--timeout", "200ms", "rescue", "--yes"]));
    let error = &run.json()["error"];
    assert_eq!(run.code, 1, "{error}");
    assert!(error["hint"].as_str().unwrap().contains("CAP_SYS_PTRACE"), "{error}");
    owner.signal(Signal::SIGCONT);
    assert_eq!(service.status().pid, owner.pid());
}

/// The owner and the successor that was at it are both stopped: who holds byte 1 for ever delays a rescue by the time of a
/// commit, and what wakes later finds that it is too late.
#[test]
fn a_rescue_beside_two_stopped_parties_has_the_service() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"accept": false}));
    let mut second = scene.warm("2", json!({}));
    first.freeze();
    second.freeze();
    let waiting = TcpStream::connect(&address).unwrap();
    let ctl = |arguments: &[&str]| {
        let mut command = Command::new(CTL);
        command.arg("--socket").arg(scene.control()).args(["--json", "--timeout", "500ms", "rescue"]).args(arguments);
        command.env_remove("HEIRLOOM_SOCKET");
        command
    };
    let look = Run::of(&mut ctl(&[]));
    assert_eq!(look.code, 0, "{}{}", look.stdout, look.stderr);
    assert_eq!(look.json()["ends"], json!([{"pid": first.pid(), "state": "T"}]));
    let mut rescue = Running::new(&mut ctl(&["--yes"]));
    scene.status_where(|status| status.generation == 2 && status.pid == rescue.pid());
    let history = scene.client().history().unwrap();
    let [TakeoverRecord { outcome, from: Some(from), cause: Some(cause), .. }] = &history[..] else {
        panic!("{history:?}")
    };
    assert_eq!((outcome.as_str(), from.pid, cause.code.as_str()), ("taken-over", first.pid(), "rescued"));
    // It had everything of the dead, and was to own next: somebody else does.
    second.thaw();
    assert_eq!(second.failure()["kind"], "Superseded");
    let (third, same) = scene.serve("3", json!({}));
    assert_eq!((visitor::answer(waiting).pid, same), (third.pid(), address));
    assert_eq!((rescue.code(), scene.status().generation), (0, 3));
}

/// What could not be written down when it came is written down with the next thing that happens.
#[test]
fn a_list_that_could_not_be_written_is_written_later() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let Some(failing) = Strace::fail(first.pid(), "memfd_create", "EMFILE", "1+") else { return };
    first.ask(json!({"do": "claim", "kind": "tcp", "name": "more", "address": "127.0.0.1:0"}));
    first.logged("cannot leave a manifest for a rescue");
    drop(failing);
    assert_eq!(scene.status().listeners.len(), 2);
    // Its answer is written before the list is.
    first.ask(json!({"do": "nothing"}));
    first.freeze();
    let mut look = Command::new(CTL);
    look.arg("--socket").arg(scene.control()).args(["--json", "--timeout", "500ms", "rescue"]);
    let look = Run::of(look.env_remove("HEIRLOOM_SOCKET"));
    assert_eq!(look.code, 0, "{}{}", look.stdout, look.stderr);
    assert_eq!(names(&look.json()), ["more", "web"]);
}
