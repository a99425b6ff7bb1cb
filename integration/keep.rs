//! `ctl keep`: what it keeps beside an owner, and what clients see while nobody serves.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use heirloom::Phase;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ctl::stage::{CTL, Run, Running, eventually};
use crate::peer::{self, Peer};
use crate::puppet::{Puppet, Scene};
use crate::strace::Strace;
use crate::visitor::{self, Load, visit};

/// A keeper, and what it tells.
struct Keeper {
    run: Running,
}

impl Keeper {
    /// One that has everything of the owner.
    #[track_caller]
    fn of(scene: &Scene, more: &[&str]) -> Keeper {
        let mut keeper = Keeper { run: Running::new(ctl(scene, "keep").args(more)) };
        keeper.event("following");
        keeper
    }

    fn pid(&self) -> u32 {
        self.run.pid()
    }

    /// Waits until it tells this; what it told before is passed over.
    #[track_caller]
    fn event(&mut self, name: &str) -> Value {
        loop {
            let object = self.run.object();
            if object["event"] == name {
                return object;
            }
        }
    }

    /// Waits until it has told that it follows this generation.
    #[track_caller]
    fn follows(&mut self, generation: u64) {
        while self.event("following")["generation"] != generation {}
    }

    fn freeze(&mut self) {
        self.run.signal(Signal::SIGSTOP);
        let pid = Pid::from_raw(self.pid() as i32);
        assert!(matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(..))));
    }
}

fn ctl(scene: &Scene, command: &str) -> Command {
    let mut ctl = Command::new(CTL);
    ctl.args(["--json", "--socket"]).arg(scene.control()).arg(command).env_remove("HEIRLOOM_SOCKET");
    ctl
}

fn sockets(pid: u32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One that was closed meanwhile is none.
    let links = folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Waits until the owner tells of so many keepers.
#[track_caller]
fn keepers(scene: &Scene, count: usize) -> heirloom::Status {
    scene.status_where(|status| status.keepers.len() == count)
}

#[test]
fn connections_wait_for_the_next_start_when_the_owner_is_killed() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"accept": false}));
    let mut keeper = Keeper::of(&scene, &[]);
    assert_eq!(keepers(&scene, 1).keepers[0].pid, keeper.pid());
    let before: Vec<_> = (0..10).map(|_| TcpStream::connect(&address).unwrap()).collect();
    first.kill();
    let between: Vec<_> = (0..10).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let holding = keeper.event("holding");
    assert_eq!((&holding["generation"], &holding["waiting"]), (&json!(2), &json!(20)));
    let status = scene.status();
    assert_eq!((status.phase, status.pid), (Phase::Holding, keeper.pid()));
    assert_eq!((status.listeners[0].accept_queue, status.listeners[0].address == address), (Some(20), true));
    let during: Vec<_> = (0..10).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let (second, same) = scene.serve("2", json!({}));
    assert_eq!(same, address);
    for stream in before.into_iter().chain(between).chain(during) {
        assert_eq!(visitor::answer(stream).pid, second.pid());
    }
    keeper.follows(3);
    let status = scene.status_where(|status| status.predecessor.is_none() && !status.keepers.is_empty());
    assert_eq!((status.generation, status.keepers[0].pid), (3, keeper.pid()));
}

/// A start in the time in which the keeper still leaves it to others waits in its queue, and is not refused.
#[test]
fn a_start_right_after_the_crash_gets_the_listeners() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let _keeper = Keeper::of(&scene, &[]);
    first.kill();
    let waiting = TcpStream::connect(&address).unwrap();
    let (mut second, same) = scene.serve("2", json!({}));
    assert_eq!(same, address);
    assert_eq!(second.ask(json!({"do": "report"}))["ok"]["entries"]["web"]["outcome"], "adopted");
    assert_eq!(visitor::answer(waiting).pid, second.pid());
}

#[test]
fn a_takeover_is_followed_and_so_are_entries() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    let (mut second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    keeper.follows(2);
    // The control listener, its link to the owner, and the one entry.
    eventually(|| (sockets(keeper.pid()) == 3).then_some(()));
    second.ask(json!({"do": "claim", "kind": "tcp", "name": "more", "address": "127.0.0.1:0", "count": 20}));
    while keeper.event("following")["entries"] != 21 {}
    eventually(|| (sockets(keeper.pid()) == 23).then_some(()));
    for number in 0..20 {
        second.ask(json!({"do": "remove", "name": format!("more-{number:04}")}));
    }
    while keeper.event("following")["entries"] != 1 {}
    // The rest is closed here, so nothing of it listens any more.
    eventually(|| (sockets(keeper.pid()) == 3).then_some(()));
    assert_eq!(keepers(&scene, 1).phase, Phase::Serving);
}

#[test]
fn three_crashes_under_load_refuse_nobody() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    let load = Load::on(&address);
    for round in 0..3 {
        load.flows(50);
        owner.kill();
        let (next, same) = scene.serve("2", json!({}));
        assert_eq!(same, address);
        owner = next;
        load.flows(50);
        // The crash takes one generation, its keeper another.
        keeper.follows(3 + 2 * round);
    }
    let tally = load.stop();
    assert_eq!((tally.refused, &tally.other), (0, &Vec::new()), "{tally:?}");
    // What a killed process had accepted is its own loss, one connection at a time.
    assert!(tally.cut + tally.reset <= 3, "{tally:?}");
}

#[test]
fn a_keeper_that_dies_or_stops_is_no_concern_of_the_owner() {
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({}));
    let round = || {
        let keeper = Keeper::of(&scene, &[]);
        drop(keeper);
        assert_eq!(visit(&address).pid, first.pid());
        keepers(&scene, 0);
    };
    // What an owner has at hand for later is counted in by then.
    round();
    let few = descriptors(first.pid());
    (0..3).for_each(|_| round());
    eventually(|| (descriptors(first.pid()) <= few).then_some(()));
}

#[test]
fn a_stopped_keeper_delays_no_takeover() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    keeper.freeze();
    let began = Instant::now();
    let (mut second, _) = scene.serve("2", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    let (mut third, _) = scene.serve("3", json!({}));
    assert_eq!(second.exit_code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(visit(&address).pid, third.pid());
    keeper.run.signal(Signal::SIGCONT);
    keeper.follows(3);
    assert_eq!(third.ask(json!({"do": "is-owner"}))["ok"], true);
}

/// One that was stopped in the midst of what it was to receive, as well.
#[test]
fn a_keeper_that_stops_while_it_receives_delays_no_takeover() {
    let scene = Scene::new();
    let many = json!({"claims": [{"kind": "null", "name": "null", "count": 5000}, {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"}]});
    let (mut first, _) = scene.serve("1", many.clone());
    let keeper = Running::new(&mut ctl(&scene, "keep"));
    let pid = Pid::from_raw(keeper.pid() as i32);
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    let (_second, _) = scene.serve("2", many);
    assert_eq!(first.exit_code(), Some(0));
}

#[test]
fn a_drainer_takes_the_service_back_before_a_keeper_does() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"drain_ms": 30_000}));
    first.ask(json!({"do": "lease"}));
    let mut keeper = Keeper::of(&scene, &[]);
    let (mut second, _) = scene.serve("2", json!({}));
    first.event("leave");
    keeper.follows(2);
    second.kill();
    first.event("resumed");
    keeper.follows(3);
    assert_eq!(visit(&address).pid, first.pid());
    assert_eq!(scene.status().phase, Phase::Serving);
}

#[test]
fn of_two_keepers_one_holds_and_the_other_keeps_on() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keepers = [Keeper::of(&scene, &[]), Keeper::of(&scene, &[])];
    self::keepers(&scene, 2);
    first.kill();
    let status = scene.status_where(|status| status.phase == Phase::Holding && status.keepers.len() == 1);
    let holder = keepers.iter().position(|keeper| keeper.pid() == status.pid).unwrap();
    assert_eq!(status.keepers[0].pid, keepers[1 - holder].pid());
    // And when that one dies, the other one holds.
    let waiting = TcpStream::connect(&address).unwrap();
    keepers[holder].run.signal(Signal::SIGKILL);
    keepers[1 - holder].event("holding");
    let (second, _) = scene.serve("2", json!({}));
    assert_eq!(visitor::answer(waiting).pid, second.pid());
}

#[test]
fn a_fifth_keeper_is_refused() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let _four: [Keeper; 4] = std::array::from_fn(|_| Keeper::of(&scene, &[]));
    let fifth = Run::of(&mut ctl(&scene, "keep"));
    assert_eq!((fifth.code, &fifth.json()["error"]["code"]), (1, &json!("holders")));
    keepers(&scene, 4);
}

#[test]
fn a_new_keeper_replaces_the_old_one_beside_an_owner_and_without_one() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut old = Keeper::of(&scene, &[]);
    let mut new = Keeper::of(&scene, &["--replace"]);
    old.event("replaced");
    assert_eq!(old.run.code(), 0);
    assert_eq!(keepers(&scene, 1).keepers[0].pid, new.pid());
    first.kill();
    new.event("holding");
    let waiting = TcpStream::connect(&address).unwrap();
    let mut newest = Keeper::of(&scene, &["--replace"]);
    new.event("replaced");
    assert_eq!(new.run.code(), 0);
    newest.event("holding");
    let (second, same) = scene.serve("2", json!({}));
    assert_eq!((visitor::answer(waiting).pid, same), (second.pid(), address));
}

#[test]
fn after_a_stop_the_next_start_has_the_listeners_and_a_second_stop_ends_all() {
    let scene = Scene::new();
    let unix = scene.path("web.sock");
    let claims = json!({"claims": [{"kind": "unix", "name": "unix", "address": unix}, {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"}]});
    let (mut first, address) = scene.serve("1", claims.clone());
    let mut keeper = Keeper::of(&scene, &[]);
    let stop = Run::of(&mut ctl(&scene, "stop"));
    assert_eq!(stop.code, 0, "{}", stop.stdout);
    assert_eq!((&stop.json()["stopped"], &stop.json()["keeper"]["pid"]), (&json!(true), &json!(keeper.pid())));
    assert_eq!(first.exit_code(), Some(0));
    let waiting = TcpStream::connect(&address).unwrap();
    let (mut second, same) = scene.serve("2", claims);
    assert_eq!((visitor::answer(waiting).pid, same), (second.pid(), address.clone()));
    keeper.follows(3);
    assert_eq!(Run::of(&mut ctl(&scene, "stop")).code, 0);
    assert_eq!(second.exit_code(), Some(0));
    assert!(unix.exists());
    let stop = Run::of(&mut ctl(&scene, "stop"));
    assert_eq!((stop.code, &stop.json()["keeper"]), (0, &Value::Null), "{}", stop.stdout);
    assert_eq!(keeper.run.code(), 0);
    assert!(!unix.exists(), "the last of a family removes its paths");
    assert_eq!(TcpStream::connect(&address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_signal_ends_it_beside_an_owner_and_tells_what_is_lost_without_one() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    keeper.run.signal(Signal::SIGTERM);
    assert_eq!(keeper.run.code(), 0);
    let mut alone =
        Running::new(Command::new(CTL).arg("--socket").arg(scene.control()).arg("keep").env_remove("HEIRLOOM_SOCKET"));
    assert!(alone.line().starts_with("following generation 1, entries kept: 1"));
    first.kill();
    assert!(alone.line().starts_with("nobody serves: holding 1 entries as generation 2"));
    let _waiting = TcpStream::connect(&address).unwrap();
    alone.signal(Signal::SIGTERM);
    assert_eq!(alone.code(), 0);
    let last = alone.stderr();
    assert!(last.contains("1 connections that wait are lost"), "{last}");
    assert!(TcpStream::connect(&address).is_err());
    let run = Run::of(&mut ctl(&scene, "keep"));
    assert_eq!((run.code, &run.json()["error"]["code"]), (3, &json!("nobody")));
}

/// In a pod it starts first, and in a folder that others can write to.
#[test]
fn told_to_wait_it_is_there_before_the_service_is() {
    let scene = Scene::new();
    let mut waiting = Keeper { run: Running::new(ctl(&scene, "keep").args(["--wait", "--allow-shared-folder"])) };
    let mut ended = Keeper { run: Running::new(ctl(&scene, "keep").arg("--wait")) };
    waiting.event("nobody");
    ended.event("nobody");
    std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(0o777)).unwrap();
    ended.run.signal(Signal::SIGTERM);
    assert_eq!(ended.run.code(), 0);
    let (mut first, address) = scene.serve("1", json!({"allow_shared_folder": true}));
    waiting.event("following");
    let refused = Run::of(&mut ctl(&scene, "keep"));
    assert_eq!((refused.code, &refused.json()["error"]["code"]), (1, &json!("unsafe-folder")));
    let rehearsal = Run::of(ctl(&scene, "handoff").arg("--allow-shared-folder"));
    assert_eq!((rehearsal.code, &rehearsal.json()["passed"]), (0, &json!(true)));
    first.kill();
    waiting.event("holding");
    let client = TcpStream::connect(&address).unwrap();
    let (second, _) = scene.serve("2", json!({"allow_shared_folder": true}));
    assert_eq!(visitor::answer(client).pid, second.pid());
}

/// A control path that was removed leads to another listener afterwards: the keeper has that one, too.
#[test]
fn a_path_that_was_made_again_is_kept() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    std::fs::remove_file(scene.control()).unwrap();
    keeper.event("following");
    first.kill();
    let waiting = TcpStream::connect(&address).unwrap();
    let (second, same) = scene.serve("2", json!({}));
    assert_eq!((visitor::answer(waiting).pid, same), (second.pid(), address));
}

/// The figures of a keeper that has nothing to do.
#[test]
fn an_idle_keeper_is_small_and_wakes_for_nothing() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let keeper = Keeper::of(&scene, &[]);
    let pid = keeper.pid();
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |line: &str| {
        let status = status();
        let value = status.lines().find_map(|text| text.strip_prefix(line)).unwrap().trim().to_owned();
        value.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    // Asleep, and not only about to be.
    eventually(|| status().contains("State:\tS").then_some(()));
    let switches = || number("voluntary_ctxt_switches:") + number("nonvoluntary_ctxt_switches:");
    let settled = eventually(|| {
        let before = switches();
        std::thread::sleep(Duration::from_millis(100));
        (switches() == before).then_some(before)
    });
    // What is shown is that nothing happens, so there is no event to wait for.
    std::thread::sleep(Duration::from_secs(2));
    let wakes = switches() - settled;
    let (resident, anonymous) = (number("VmRSS:"), number("RssAnon:"));
    // Past the harness, which keeps to itself what a test that passes has printed.
    let line = format!("a keeper: {resident} KiB resident, {anonymous} of its own; {wakes} wake-ups in 2 s\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    assert_eq!(wakes, 0, "{line}");
    // The pages of the program itself count for RSS, and those of a debug build are many; they are the kernel's to drop.
    assert!(anonymous < 1024, "{line}");
    assert!(cfg!(debug_assertions) || resident < 3 * 1024, "{line}");
}

/// A keeper that owns and is stopped is as any owner: a rescue finds what it keeps.
#[test]
fn a_keeper_that_owns_can_be_rescued() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"accept": false}));
    let mut keeper = Keeper::of(&scene, &[]);
    first.kill();
    keeper.event("holding");
    let waiting = TcpStream::connect(&address).unwrap();
    keeper.freeze();
    let look = Run::of(ctl(&scene, "rescue").args(["--timeout", "500ms"]));
    assert_eq!(look.code, 0, "{}{}", look.stdout, look.stderr);
    assert_eq!(look.json()["source"]["pid"], keeper.pid());
    let mut rescuer = Running::new(ctl(&scene, "rescue").args(["--timeout", "500ms", "--yes"]));
    scene.status_where(|status| status.generation == 3 && status.pid == rescuer.pid());
    let (second, same) = scene.serve("2", json!({}));
    assert_eq!(same, address);
    assert_eq!(visitor::answer(waiting).pid, second.pid());
    assert_eq!(rescuer.code(), 0);
}

/// Told to leave while it stands by, it leaves, and does not follow the one that it stood by for.
#[test]
fn a_keeper_that_stands_by_ends_when_it_is_told_to() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    first.kill();
    keeper.event("holding");
    let (second, _) = scene.serve("2", json!({"probation_ms": 600_000}));
    scene.status_where(|status| status.pid == second.pid() && status.probation.is_some());
    keeper.run.signal(Signal::SIGTERM);
    assert_eq!(keeper.run.code(), 0);
    let status = scene.status_where(|status| status.probation.is_none());
    assert_eq!((status.pid, status.keepers.len()), (second.pid(), 0));
}

/// A keeper that owns, and stands by for its successor.
#[track_caller]
fn standing_by(scene: &Scene, options: Value) -> (Keeper, Puppet, String) {
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(scene, &[]);
    first.kill();
    keeper.event("holding");
    let (second, _) = scene.serve("2", options);
    scene.status_where(|status| status.pid == second.pid() && status.probation.is_some());
    (keeper, second, address)
}

/// Four others were faster: it is not listed as draining for ever, and keeps what it has.
#[test]
fn a_keeper_that_owned_and_finds_no_place_beside_the_next_owner_drains_no_more() {
    let scene = Scene::new();
    let (mut keeper, mut second, address) = standing_by(&scene, json!({"probation_ms": 600_000}));
    let mut others: [Keeper; 4] = std::array::from_fn(|_| Keeper::of(&scene, &[]));
    scene.client().confirm().unwrap();
    let status = scene.status_where(|status| status.probation.is_none() && status.drainers.is_empty());
    assert_eq!((status.pid, status.keepers.len(), status.predecessor), (second.pid(), 4, None));
    assert!(status.keepers.iter().all(|other| other.pid != keeper.pid()));
    // And when the others are gone with the service, it owns once more.
    others.iter_mut().for_each(|other| other.run.signal(Signal::SIGKILL));
    keepers(&scene, 0);
    second.kill();
    let waiting = TcpStream::connect(&address).unwrap();
    assert_eq!(keeper.event("holding")["generation"], 4);
    let (third, same) = scene.serve("3", json!({}));
    assert_eq!((visitor::answer(waiting).pid, same), (third.pid(), address));
    keeper.follows(5);
    scene.status_where(|status| status.keepers.len() == 1 && status.drainers.is_empty());
}

/// As long as a takeover is under way it is told to wait. It drains at its deadline, which somebody may bring about.
#[test]
fn a_keeper_that_waits_for_its_successor_drains_when_it_is_told_to() {
    let scene = Scene::new();
    let options = json!({"probation_ms": 600_000, "takeover_confirms": true});
    let (mut keeper, second, _) = standing_by(&scene, options);
    // It confirms the second, and is at it from then on.
    let mut third = scene.warm("3", json!({}));
    let status = scene.status_where(|status| !status.drainers.is_empty());
    assert_eq!((status.pid, status.drainers[0].who.pid), (second.pid(), keeper.pid()));
    scene.client().finish_drain(None).unwrap();
    scene.status_where(|status| status.pid == second.pid() && status.drainers.is_empty());
    third.ask(json!({"do": "ready"}));
    third.event("serving");
    keeper.follows(4);
}

/// A crash in the midst of an incident: the start after it is let in, and the hold goes on.
#[test]
fn a_hold_outlives_a_crash_where_a_keeper_has_heard_of_it() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut early = Keeper::of(&scene, &[]);
    scene.client().hold("incident 10", Some(Duration::from_secs(3600))).unwrap();
    // One that came before the hold, and one after it: whichever owns has heard of it.
    let _late = Keeper::of(&scene, &[]);
    keepers(&scene, 2);
    first.kill();
    let hold = scene.status_where(|status| status.phase == Phase::Holding).hold.unwrap();
    assert_eq!((hold.reason.as_str(), hold.suspended), ("incident 10", true));
    assert!(hold.left_ms.is_some_and(|left| left > 3_000_000 && left < 3_600_000), "{hold:?}");
    let text = Run::of(Command::new(CTL).arg("--socket").arg(scene.control()).arg("status")).stdout;
    assert!(text.contains("incident 10") && text.contains("the next start is let in"), "{text}");

    let (second, _) = scene.serve("2", json!({}));
    assert_eq!(visit(&address).pid, second.pid());
    let hold = scene.status().hold.unwrap();
    assert_eq!((hold.reason.as_str(), hold.suspended), ("incident 10", false));
    assert!(hold.left_ms.is_some_and(|left| left > 3_000_000 && left < 3_600_000), "{hold:?}");
    let mut third = Puppet::new();
    third.ask(scene.begin("3", json!({})));
    assert_eq!(third.failure()["code"], "held");

    // Lifted, it is over for the keepers as well.
    early.event("following");
    keepers(&scene, 2);
    scene.client().lift().unwrap();
    let mut second = second;
    second.kill();
    assert_eq!(scene.status_where(|status| status.phase == Phase::Holding).hold, None);
}

/// The start that comes may be left alone in its warm-up: with the listeners, and with the hold.
#[test]
fn a_hold_outlives_the_keeper_that_dies_before_the_next_start_is_ready() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    scene.client().hold("incident 11", None).unwrap();
    first.kill();
    keeper.event("holding");
    let mut second = scene.warm("2", json!({}));
    keeper.run.signal(Signal::SIGKILL);
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(visit(&address).pid, second.pid());
    let hold = scene.status().hold.unwrap();
    assert_eq!((hold.reason.as_str(), hold.suspended), ("incident 11", false));
}

/// Said to the keeper while nobody serves, it bars the start; and `ctl upgrade` is let in by one that was said before.
#[test]
fn a_hold_that_is_set_while_a_keeper_owns_bars_the_next_start() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    scene.client().hold("before the crash", None).unwrap();
    first.kill();
    keeper.event("holding");
    // Of what it starts nothing comes, but it is started.
    let mark = scene.path("started");
    let upgrade = Run::of(ctl(&scene, "upgrade").arg("--").arg("touch").arg(&mark));
    assert_eq!((upgrade.code, mark.exists()), (1, true), "{}", upgrade.stdout);
    scene.client().hold("nobody starts this now", None).unwrap();
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({})));
    assert_eq!(second.failure()["code"], "held");
    scene.client().lift().unwrap();
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(visit(&address).pid, third.pid());
}

/// What the owner lacks is said as that, and not as a fault of the keeper.
#[test]
fn an_owner_without_descriptors_says_so_to_a_keeper() {
    let scene = Scene::new();
    let (first, address) = scene.serve("1", json!({}));
    let Some(failing) = Strace::fail(first.pid(), "openat", "EMFILE", "1+") else { return };
    let refused = Run::of(&mut ctl(&scene, "keep"));
    assert_eq!((refused.code, &refused.json()["error"]["code"]), (1, &json!("shortage")), "{}", refused.stdout);
    drop(failing);
    assert_eq!(visit(&address).pid, first.pid());
    let _keeper = Keeper::of(&scene, &[]);
}

/// One that falls silent while it receives is ended in its own time, however busy others are.
#[test]
fn a_holder_that_stalls_is_not_kept_by_those_that_come_and_go() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let hello = |nonce: u64| {
        let mut hello = Peer::hello();
        hello["wants"] = json!("hold");
        hello["nonce"] = json!(nonce);
        hello
    };
    let began = Instant::now();
    let mut stalled = Peer::connect(&scene);
    stalled.send(peer::HELLO, &hello(1));
    stalled.expect(peer::OFFER);
    stalled.expect(peer::ENTRIES);
    let mut others = 0;
    while stalled.hears_nothing_for(Duration::from_millis(500)) {
        let mut other = Peer::connect(&scene);
        other.send(peer::HELLO, &hello(2));
        other.expect(peer::OFFER);
        others += 1;
        assert!(began.elapsed() < Duration::from_secs(20), "{others} others have kept it");
    }
    assert_eq!(stalled.expect(peer::ABORT)["code"], "deadline");
}

/// It still drains what it has owned, and keeps on all the same: for a stop it is no old version.
#[test]
fn a_stop_right_after_a_takeover_from_a_keeper_leaves_it() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut keeper = Keeper::of(&scene, &[]);
    first.kill();
    keeper.event("holding");
    let Some(mut strace) = Strace::stop(keeper.pid(), "socketpair") else { return };
    let (mut second, _) = scene.serve("2", json!({}));
    strace.says_or("stopped by SIGSTOP", || false);
    strace.leave();
    let mut stopping = Running::new(&mut ctl(&scene, "stop"));
    assert_eq!(second.exit_code(), Some(0));
    keeper.run.signal(Signal::SIGCONT);
    let stopped = stopping.object();
    assert_eq!((stopping.code(), &stopped["keeper"]["pid"]), (0, &json!(keeper.pid())), "{stopped}");
    assert!(stopped.get("came_back").is_none());
    let waiting = TcpStream::connect(&address).unwrap();
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(visitor::answer(waiting).pid, third.pid());
}
