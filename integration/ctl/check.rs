//! `ctl check`: a healthy owner passes and does not notice, a bad one is found out, and nothing of a check stays.

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stage::{CTL, Place, Run, Running, Service, eventually, heeded, is_alive};
use crate::puppet::{Puppet, Scene, is_root, skip};
use crate::starting::settled;
use crate::visitor::{Load, visit};

/// Those that last as long as an owner's patience: they have tests of their own.
const SLOW: [&str; 5] = ["stall-silent", "stall-half-header", "stall-byte-by-byte", "stall-hello", "stall-room"];

/// A user that is nobody's.
const STRANGER: u32 = 54_321;

fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(CTL);
    command.args(["--json", "--socket"]).arg(socket).arg("check").args(arguments).env_remove("HEIRLOOM_SOCKET");
    command
}

/// A check of these cases.
fn check(socket: &Path, cases: &[&str]) -> (i32, Value) {
    let arguments: Vec<&str> = cases.iter().flat_map(|case| ["--only", case]).collect();
    let run = Run::of(&mut command(socket, &arguments));
    assert_eq!(run.stderr, "");
    (run.code, run.json())
}

/// The names of all cases, and whether each is gentle.
fn listed(arguments: &[&str]) -> Vec<(String, bool)> {
    let run = Run::of(&mut command(Path::new("/nowhere"), &[&["--list"], arguments].concat()));
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let cases = run.json()["cases"].as_array().unwrap().clone();
    let told = |case: &Value| (case["name"].as_str().unwrap().to_owned(), case["gentle"].as_bool().unwrap());
    assert!(cases.iter().all(|case| !case["what"].as_str().unwrap().is_empty()));
    cases.iter().map(told).collect()
}

/// The one case of a check.
#[track_caller]
fn only(seen: &Value) -> &Value {
    let cases = seen["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 1, "{seen}");
    &cases[0]
}

#[track_caller]
fn all_went_well(seen: &Value, cases: &[&str]) {
    assert_eq!(seen["ok"], true, "{seen}");
    let found = seen["cases"].as_array().unwrap();
    let names: Vec<&str> = found.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names, cases);
    for case in found {
        assert!(case["ok"] == true && case["survived"] == true && case["stayed_owner"] == true, "{case}");
        for duration in ["busy", "answered_within"] {
            let text = case[duration].as_str().unwrap_or_else(|| panic!("{case}"));
            assert!(text.parse::<jiff::SignedDuration>().unwrap() < jiff::SignedDuration::from_secs(8), "{case}");
        }
        assert!(case["what"].is_string() && (case["note"].is_null() || case["note"].is_string()), "{case}");
    }
}

/// With something of every kind, and more descriptors than one frame takes.
fn claims(scene: &Scene) -> Value {
    json!({"exclusive": true, "claims": [
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "udp", "name": "dns", "address": "127.0.0.1:0"},
        {"kind": "unix", "name": "local", "address": scene.path("app.sock")},
        {"kind": "null", "name": "null", "count": 300},
    ]})
}

#[test]
fn a_healthy_owner_under_load_passes_every_case_and_its_clients_notice_nothing() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", claims(&scene));
    let before = owner.ask(json!({"do": "descriptors"}));
    owner.events();
    let load = Load::on(&address);
    load.flows(10);
    let all = listed(&[]);
    let quick = |gentle: bool| -> Vec<&str> {
        all.iter()
            .filter(|case| case.1 == gentle)
            .map(|case| case.0.as_str())
            .filter(|name| !SLOW.contains(name))
            .collect()
    };

    // The application has not heard of these.
    let (code, seen) = check(&scene.control(), &quick(true));
    assert_eq!(code, 0, "{seen}");
    all_went_well(&seen, &quick(true));
    assert_eq!(seen["owner"], json!({"generation": 1, "pid": owner.pid(), "app_version": "1"}));
    assert_eq!(owner.events(), Vec::<Value>::new());

    // Of these it has, and each time it went on.
    let (code, seen) = check(&scene.control(), &quick(false));
    assert_eq!(code, 0, "{seen}");
    all_went_well(&seen, &quick(false));
    let told: Vec<String> = owner.events().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, ["release", "resume"].repeat(8));

    load.flows(10);
    let tally = load.stop();
    assert_eq!((tally.refused, tally.reset, tally.cut, tally.other.len()), (0, 0, 0, 0), "{tally:?}");
    assert_eq!(tally.by.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(settled(&mut owner, &before), before);
    assert_eq!(scene.status().generation, 1);
    let (next, _) = scene.serve("2", json!({}));
    assert_eq!(owner.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, next.pid());
}

#[test]
fn peers_that_stall_aside_are_hung_up_on_and_nobody_is_busy_with_them() {
    let scene = Scene::new();
    let (_owner, _) = scene.serve("1", json!({}));
    let (code, seen) = check(&scene.control(), &SLOW[..3]);
    assert_eq!(code, 0, "{seen}");
    all_went_well(&seen, &SLOW[..3]);
    let notes: Vec<&Value> = seen["cases"].as_array().unwrap().iter().map(|case| &case["note"]).collect();
    assert_eq!(notes, ["hung up", "hung up", "answered"]);
    assert!(seen["cases"].as_array().unwrap().iter().all(|case| case["busy"] == "0s"), "{seen}");
}

#[test]
fn peers_that_stall_in_a_takeover_keep_it_busy_for_as_long_as_the_owner_says() {
    let patience = jiff::SignedDuration::from_secs(5);
    let threads: Vec<JoinHandle<()>> = SLOW[3..]
        .iter()
        .map(|case| {
            thread::spawn(move || {
                let scene = Scene::new();
                let (_owner, _) = scene.serve("1", json!({}));
                let (code, seen) = check(&scene.control(), &[case]);
                assert_eq!(code, 0, "{seen}");
                all_went_well(&seen, &[case]);
                let busy: jiff::SignedDuration = only(&seen)["busy"].as_str().unwrap().parse().unwrap();
                assert!(busy >= patience, "{seen}");
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_person_reads_a_table() {
    let service = Service::start();
    let run = service.run(&["check", "--only", "die-room", "--only", "bad-magic"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.starts_with("generation 1, pid"), "{}", run.stdout);
    let row = run.stdout.lines().find(|line| line.starts_with("bad-magic")).unwrap();
    assert!(row.contains("refused: protocol"), "{row}");
    assert!(run.stdout.lines().last().unwrap().starts_with("2 cases went well"), "{}", run.stdout);
    assert!(run.stderr.contains("ctl: die-room: says that it has room"), "{}", run.stderr);
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));

    let list = service.run(&["check", "--list"]);
    assert!(list.code == 0 && list.stdout.lines().any(|line| line.starts_with("flood-silent")), "{}", list.stdout);
}

#[test]
fn gentle_leaves_out_what_an_application_could_notice() {
    let (all, gentle) = (listed(&[]), listed(&["--gentle"]));
    assert!(gentle.len() > 40 && gentle.iter().all(|case| case.1));
    let rough: Vec<&str> = all.iter().filter(|case| !gentle.contains(case)).map(|case| case.0.as_str()).collect();
    assert_eq!(rough.len(), 9);
    for name in ["die-ready", "close-released", "ready-twice", "flood-silent"] {
        assert!(rough.contains(&name), "{name}");
    }
}

#[test]
fn who_is_not_well_or_is_busy_is_left_alone() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({}));
    owner.freeze();
    let (code, seen) = check(&scene.control(), &["die-hello"]);
    owner.thaw();
    assert_eq!((code, &seen["error"]["code"]), (1, &json!("deadline")));
    assert!(seen["error"]["hint"].as_str().unwrap().contains("nothing was tried"), "{seen}");

    let mut successor = scene.warm("2", json!({}));
    let (code, seen) = check(&scene.control(), &["die-hello"]);
    assert_eq!((code, &seen["error"]["code"]), (1, &json!("busy")));
    assert!(seen["error"]["message"].as_str().unwrap().contains(&format!("pid {}", successor.pid())), "{seen}");
    successor.ask(json!({"do": "ready"}));
    successor.event("serving");
    assert_eq!(owner.exit_code(), Some(0));

    let service = Service::start();
    let _keeper = service.keeper(&[]);
    let (code, seen) = check(&service.place.socket, &["die-hello"]);
    assert_eq!((code, &seen["error"]["code"]), (1, &json!("not-serving")), "{seen}");
}

/// It opened what one takeover needs while it had the right to, and has nothing for a second.
#[test]
fn an_owner_for_which_a_failed_takeover_would_be_its_last_is_left_alone() {
    if !is_root() {
        return skip("only root has a right to give up");
    }
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", json!({}));
    owner.ask(json!({"do": "become", "uid": STRANGER}));
    let (code, seen) = check(&scene.control(), &["die-hello"]);
    assert_eq!((code, &seen["error"]["code"]), (1, &json!("last-offer")), "{seen}");
    for path in [scene.path("handoff.sock.lock"), scene.control()] {
        chown(path, Some(STRANGER), None).unwrap();
    }
    // Who owns is now one whom root does not know; he himself may try it.
    let (code, seen) = check(&scene.control(), &["die-hello"]);
    assert_eq!((code, &seen["error"]["code"]), (1, &json!("stranger")), "{seen}");
    std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut own = command(&scene.control(), &["--only", "die-ack", "--only", "close-released", "--only", "bad-magic"]);
    match own.uid(STRANGER).gid(STRANGER).current_dir("/").output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => skip(&format!("cannot start ctl as uid {STRANGER}: {error}")),
    }
    let mut next = Puppet::new();
    next.ask(scene.begin("2", json!({"allow_uids": [STRANGER]})));
    next.event("serving");
    assert_eq!(owner.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, next.pid());
}

/// An application that never lets go would fail every real takeover: that is told, and harms nobody.
#[test]
fn an_application_that_does_not_let_go_is_found_out() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({"exclusive": true, "release": false, "release_ms": 200}));
    let (code, seen) = check(&scene.control(), &["die-released"]);
    assert_eq!((code, &seen["ok"]), (1, &json!(false)));
    let case = only(&seen);
    assert!(case["ok"] == false && case["survived"] == true && case["stayed_owner"] == true, "{case}");
    assert!(case["note"].as_str().unwrap().contains("release"), "{case}");
    owner.event("resume");
    assert_eq!(owner.ask(json!({"do": "is-owner"}))["ok"], true);
}

/// The children of a process that has one thread.
fn children(pid: u32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_check_that_is_interrupted_leaves_nothing_behind() {
    for signal in heeded(&[Signal::SIGINT, Signal::SIGTERM]) {
        let scene = Scene::new();
        // Its successor is a process that waits for a release that never comes.
        let (mut owner, address) = scene.serve("1", json!({"exclusive": true, "release": false}));
        let before = owner.ask(json!({"do": "descriptors"}));
        let mut running = Running::with_output(
            command(&scene.control(), &["--only", "die-offer", "--only", "die-released"])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped()),
        );
        owner.event("release");
        let child = children(running.pid());
        assert_eq!(child.len(), 1);
        running.signal(signal);
        let seen = running.object();
        assert_eq!(running.code(), 1, "{seen}");
        assert_eq!((&seen["error"]["code"], &seen["ok"]), (&json!("interrupted"), &json!(false)));
        assert_eq!(only(&seen)["name"], "die-offer");
        assert!(!is_alive(child[0]));
        owner.event("resume");
        assert_eq!(scene.status_where(|status| status.takeover.is_none()).generation, 1);
        assert_eq!(visit(&address).pid, owner.pid());
        assert_eq!(settled(&mut owner, &before), before);
    }
}

#[test]
fn a_check_that_is_killed_takes_its_successor_along() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({"exclusive": true, "release": false}));
    let running = Running::new(&mut command(&scene.control(), &["--only", "die-released"]));
    owner.event("release");
    let child = children(running.pid())[0];
    kill(Pid::from_raw(running.pid() as i32), Signal::SIGKILL).unwrap();
    owner.event("resume");
    // Whoever inherits it reaps it, or not.
    let gone = || std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
    eventually(|| (!gone()).then_some(()));
    assert_eq!(scene.status_where(|status| status.takeover.is_none()).generation, 1);
}

#[test]
fn a_real_takeover_ends_a_check_and_is_nobodys_fault() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({}));
    // It drains until the check has looked: of one that has ended, nobody could say how.
    owner.ask(json!({"do": "lease"}));
    let mut running = Running::new(&mut command(&scene.control(), &["--only", "stall-silent"]));
    // Under way for seconds, and not in the way: its connection is there as soon as this one is.
    let connected = || owner_has_connections(&mut owner).then_some(());
    eventually(connected);
    let (next, _) = scene.serve("2", json!({}));
    let seen = running.object();
    assert_eq!((running.code(), &seen["error"]["code"]), (1, &json!("overtaken")), "{seen}");
    assert!(seen["error"]["hint"].as_str().unwrap().contains("not the owner's fault"), "{seen}");
    assert_eq!(seen["cases"], json!([]), "nothing that it was in the middle of is judged");
    owner.ask(json!({"do": "end-lease"}));
    assert_eq!(owner.exit_code(), Some(0));
    let status = scene.status();
    assert_eq!((status.pid, status.generation), (next.pid(), 2));
}

/// It did not see the takeover, and finds the owner's process dead: the next one remembers how that came about.
#[test]
fn an_owner_that_has_been_followed_and_has_ended_is_no_dead_owner() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({}));
    let mut running = Running::new(&mut command(&scene.control(), &["--only", "stall-silent"]));
    eventually(|| owner_has_connections(&mut owner).then_some(()));
    running.signal(Signal::SIGSTOP);
    // They drive out its connections, that of its watch included.
    let crowd: Vec<UnixStream> = (0..80).map(|_| UnixStream::connect(scene.control()).unwrap()).collect();
    let (next, _) = scene.serve("2", json!({}));
    assert_eq!(owner.exit_code(), Some(0));
    drop(crowd);
    running.signal(Signal::SIGCONT);
    let seen = running.object();
    assert_eq!((running.code(), &seen["error"]["code"]), (1, &json!("overtaken")), "{seen}");
    let said = format!("pid {} (version 1) was taken over by pid {} (version 2) meanwhile", owner.pid(), next.pid());
    assert_eq!(seen["error"]["message"], said, "{seen}");
}

/// Whether somebody is connected to the control socket, beside those who come and go.
fn owner_has_connections(owner: &mut Puppet) -> bool {
    let found = owner.ask(json!({"do": "descriptors"}));
    let pidfds = |found: &&Value| found.as_str().unwrap().contains("[pidfd]");
    // Its own, that of the watch, and that of the silent one.
    found["ok"].as_array().unwrap().iter().filter(pidfds).count() >= 3
}

/// What a bad owner does with the first bytes that are no question.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vice {
    /// Closes everything: nobody listens any more.
    Dies,
    /// Answers nobody any more.
    Hangs,
    /// Takes it for a good hello.
    Offers,
    /// Owns anew, as another generation.
    Flaps,
}

/// A kind that ends a bad owner.
const ENOUGH: u8 = 255;

/// Something that looks like an owner until it is tried.
fn bad_owner(place: &Place, vice: Vice) -> JoinHandle<()> {
    let listener = UnixListener::bind(&place.socket).unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut generation = 1;
        while let Ok((mut stream, _)) = listener.accept() {
            let mut header = [0; 16];
            if stream.read_exact(&mut header).is_err() {
                continue;
            }
            if header[4] == ENOUGH {
                return;
            }
            if header[4] == 32 {
                tell(&mut stream, 33, &status(generation));
                kept.push(stream);
                continue;
            }
            match vice {
                Vice::Dies => return,
                Vice::Hangs => {
                    // Held open, and nobody is answered until the test removes the path.
                    let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
                    eventually(|| (!path.exists()).then_some(()));
                    return;
                }
                Vice::Offers => tell(&mut stream, 3, &offer()),
                Vice::Flaps => generation += 1,
            }
        }
    })
}

fn status(generation: u64) -> Value {
    json!({"generation": generation, "pid": std::process::id(), "app_version": "bad", "phase": "serving"})
}

fn offer() -> Value {
    json!({"version": 1, "generation": 1, "entries": 0, "descriptors": 4, "release_ms": 1, "commit_ms": 1,
           "stall_ms": 1, "warm_up_ms": 1})
}

fn tell(stream: &mut UnixStream, kind: u8, body: &Value) {
    let body = rmp_serde::to_vec_named(body).unwrap();
    let mut bytes = b"HRLM".to_vec();
    bytes.extend([kind, 0, 0, 0]);
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    let _ = std::io::Write::write_all(stream, &bytes);
}

/// A check of a bad owner by one case, and after it one that must not be tried any more.
fn found_out(vice: Vice) -> Value {
    let place = Place::new();
    let owner = bad_owner(&place, vice);
    let (code, seen) = check(&place.socket, &["hello-empty", "flood-connects"]);
    assert_eq!((code, &seen["ok"]), (1, &json!(false)), "{seen}");
    if let Ok(mut last) = UnixStream::connect(&place.socket) {
        let _ = std::io::Write::write_all(&mut last, &[ENOUGH; 16]);
        std::fs::remove_file(&place.socket).unwrap();
    }
    owner.join().unwrap();
    seen
}

#[test]
fn an_owner_that_dies_of_garbage_is_found_out() {
    let seen = found_out(Vice::Dies);
    let case = only(&seen);
    assert!(case["ok"] == false && case["survived"] == false && case["stayed_owner"] == false, "{case}");
    assert!(case["note"].as_str().unwrap().contains("nobody listens"), "{case}");
}

#[test]
fn an_owner_that_hangs_on_garbage_is_found_out() {
    let began = Instant::now();
    let seen = found_out(Vice::Hangs);
    let case = only(&seen);
    assert!(case["ok"] == false && case["survived"] == false, "{case}");
    assert!(case["note"].as_str().unwrap().contains("though its process lives"), "{case}");
    let answered: jiff::SignedDuration = case["answered_within"].as_str().unwrap().parse().unwrap();
    assert!(answered >= jiff::SignedDuration::from_secs(5), "{case}");
    assert!(began.elapsed() < Duration::from_secs(25));
}

#[test]
fn an_owner_that_loses_the_service_by_garbage_is_found_out() {
    let seen = found_out(Vice::Flaps);
    let case = only(&seen);
    assert!(case["ok"] == false && case["survived"] == true && case["stayed_owner"] == false, "{case}");
}

/// It is as it was, so the other cases are tried; and this one is no less wrong.
#[test]
fn an_owner_that_takes_garbage_for_good_is_found_out() {
    let seen = found_out(Vice::Offers);
    let cases = seen["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2, "{seen}");
    assert!(cases[0]["ok"] == false && cases[0]["survived"] == true && cases[0]["stayed_owner"] == true, "{seen}");
    assert!(cases[0]["note"].as_str().unwrap().contains("taken for good"), "{seen}");
    assert_eq!(cases[1]["ok"], true, "{seen}");
}
