//! What runs out: descriptors, room in a queue, on a disk, in the kernel. Each ends in an error that says what to do, with
//! the predecessor serving and no descriptor lost; and once there is room again, the next takeover goes through.
//!
//! Where a shortage can be made, it is; the others are injected by strace, of which the process knows nothing.

use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene, is_root, skip};
use crate::starting::settled;
use crate::strace::Strace;
use crate::visitor::visit;

/// A user without rights.
const USER: u32 = 54_341;

/// The error with which a start fails, at once or a little later; `None` where it does not.
fn fails(puppet: &mut Puppet, command: Value) -> Option<Value> {
    let answer = puppet.try_ask(command);
    if answer.get("error").is_some() {
        return Some(answer["error"].clone());
    }
    let first = puppet.first_of(&["failed", "serving"]);
    (first["event"] == "failed").then_some(first)
}

#[track_caller]
fn assert_clear(error: &Value, code: &str, hint: &str, what: &str) {
    assert_eq!(error["code"], code, "{what}: {error}");
    assert!(error["message"].as_str().is_some_and(|message| message.len() > 20), "{what}: {error}");
    assert!(error["hint"].as_str().unwrap_or_default().contains(hint), "{what}: {error}");
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Predecessor,
    Successor,
}

/// What is to come of a failing call: an error with this code and this in its hint, or nothing but a delay.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Error(&'static str, &'static str),
    Nothing,
}

/// One takeover with a call that fails; afterwards everything is as before, and the next takeover goes through.
#[track_caller]
fn with(side: Side, call: &str, error: &str, when: &str, wanted: Wanted) {
    let what = format!("{side:?}: {call}, {error}, {when}");
    let scene = Scene::new();
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "null", "name": "null", "count": 300},
    ]);
    let (mut first, address) = scene.serve("1", json!({"claims": claims}));
    let mut second = Puppet::new();
    let before = (first.ask(json!({"do": "descriptors"})), second.ask(json!({"do": "descriptors"})));
    let pid = if let Side::Predecessor = side { first.pid() } else { second.pid() };
    let Some(failing) = Strace::fail(pid, call, error, when) else { return };
    let failed = fails(&mut second, scene.begin("2", json!({"claims": claims})));
    drop(failing);
    match (&failed, wanted) {
        (Some(error), Wanted::Error(code, hint)) => {
            assert_clear(error, code, hint, &what);
            second.ask(json!({"do": "drop"}));
            scene.status_where(|status| status.takeover.is_none());
            assert_eq!(visit(&address).pid, first.pid(), "{what}");
            assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], true, "{what}");
            assert_eq!(settled(&mut first, &before.0), before.0, "{what}");
            assert_eq!(settled(&mut second, &before.1), before.1, "{what}");
            second.ask(scene.begin("2", json!({"claims": claims})));
            second.event("serving");
        }
        (None, Wanted::Nothing) => {}
        (failed, _) => panic!("{what}: {failed:?}"),
    }
    assert_eq!(first.exit_code(), Some(0), "{what}");
    assert_eq!(visit(&address).pid, second.pid(), "{what}");
    let (third, _) = scene.serve("3", json!({"claims": claims}));
    assert_eq!(visit(&address).pid, third.pid(), "{what}");
}

/// Too few descriptors for the process itself: nothing is begun, or what the takeover needs is kept in reserve.
#[test]
fn no_descriptor_is_left() {
    let short = Wanted::Error("io", "ulimit -n");
    with(Side::Successor, "epoll_create1", "EMFILE", "1", short);
    with(Side::Successor, "eventfd2", "EMFILE", "1", short);
    with(Side::Successor, "timerfd_create", "EMFILE", "1", short);
    with(Side::Successor, "timerfd_create", "ENFILE", "1", Wanted::Error("io", "fs.file-max"));
    with(Side::Successor, "inotify_init1", "EMFILE", "1+", Wanted::Nothing);
    with(Side::Successor, "pidfd_open", "EMFILE", "1", Wanted::Nothing);
    with(Side::Predecessor, "accept4", "EMFILE", "1", Wanted::Nothing);
    with(Side::Predecessor, "accept4", "ENFILE", "1..2", Wanted::Nothing);
    with(Side::Predecessor, "accept4", "ENOMEM", "1", Wanted::Nothing);
    with(Side::Predecessor, "pidfd_open", "EMFILE", "1+", Wanted::Nothing);
    with(Side::Predecessor, "openat", "EMFILE", "1+", Wanted::Nothing);
}

#[test]
fn the_kernel_has_no_memory() {
    let short = Wanted::Error("io", "memory");
    with(Side::Successor, "epoll_create1", "ENOMEM", "1", short);
    with(Side::Successor, "connect", "ENOMEM", "1", short);
    with(Side::Successor, "epoll_ctl", "ENOMEM", "3", short);
    // A connection that breaks before the commit is made again.
    for side in [Side::Predecessor, Side::Successor] {
        with(side, "sendto", "ENOBUFS", "1", Wanted::Nothing);
        with(side, "recvmsg", "ENOMEM", "1", Wanted::Nothing);
    }
    with(Side::Predecessor, "sendmsg", "ENOMEM", "1", Wanted::Nothing);
    with(Side::Predecessor, "sendmsg", "ENOBUFS", "2", Wanted::Nothing);
    with(Side::Predecessor, "epoll_ctl", "ENOSPC", "1", Wanted::Nothing);
}

#[test]
fn too_many_descriptors_are_in_flight() {
    with(Side::Predecessor, "sendmsg", "ETOOMANYREFS", "1", Wanted::Nothing);
    with(Side::Predecessor, "sendmsg", "ETOOMANYREFS", "2..5", Wanted::Nothing);
    with(Side::Predecessor, "sendmsg", "ETOOMANYREFS", "1+", Wanted::Error("crowded", "ulimit -n"));
    with(Side::Predecessor, "sendmsg", "ETOOMANYREFS", "2+", Wanted::Error("crowded", "ulimit -n"));
}

/// After the commit nothing can be called off: a predecessor that cannot hand its drain link on, or stands by and cannot
/// hand on another's, goes on trying, and takes the service back all the same when its successor dies.
#[test]
fn after_the_commit_too_many_descriptors_in_flight_stop_nothing() {
    for options in [json!({}), json!({"probation_ms": 600_000})] {
        let scene = Scene::new();
        let (mut first, _) = scene.serve("1", json!({}));
        first.ask(json!({"do": "lease"}));
        let (mut second, address) = scene.serve("2", json!({}));
        scene.status_where(|status| !status.drainers.is_empty());
        second.ask(json!({"do": "lease"}));
        let mut third = scene.warm("3", options.clone());
        let Some(mut failing) = Strace::fail(second.pid(), "sendmsg", "ETOOMANYREFS", "1+") else { return };
        third.ask(json!({"do": "ready"}));
        third.event("serving");
        // Longer than a takeover is kept up for; with each try the next one is 10 ms away.
        let began = Instant::now();
        failing.until(|tries| {
            assert!(tries.len() < 1000, "{} tries in {:?}", tries.len(), began.elapsed());
            began.elapsed() > Duration::from_secs(4)
        });
        third.kill();
        second.event(if options["probation_ms"].is_null() { "resumed" } else { "resume" });
        assert_eq!(visit(&address).pid, second.pid());
        drop(failing);
        first.ask(json!({"do": "end-lease"}));
        assert_eq!(first.exit_code(), Some(0));
    }
}

/// The kernel counts what is in flight against the limit of the sender (unix(7)): what is sent and
/// not yet acknowledged stays below it.
#[test]
fn many_descriptors_of_a_user_with_a_low_limit() {
    if !is_root() {
        return skip("only root can be another user");
    }
    let scene = Scene::new();
    chown(scene.folder(), Some(USER), Some(USER)).unwrap();
    let claims = json!({"claims": [
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "null", "name": "null", "count": 700},
    ]});
    let Some(mut owner) = Puppet::of_user(USER) else { return };
    owner.ask(json!({"do": "limit", "soft": 740, "hard": 800}));
    owner.ask(scene.begin("0", claims.clone()));
    let address = owner.event("serving")["addresses"]["web"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        let Some(mut next) = Puppet::of_user(USER) else { return };
        next.ask(json!({"do": "limit", "soft": 64, "hard": 800}));
        next.ask(scene.begin("next", claims.clone()));
        next.event("serving");
        assert_eq!(owner.exit_code(), Some(0));
        owner = next;
    }
    assert_eq!(visit(&address).pid, owner.pid());
}

/// No more than it has open, and the reserve used up as well: nobody can be accepted, and the successor says so.
#[test]
fn a_predecessor_at_its_hard_limit_serves_on_and_hands_over_when_it_has_room() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    first.ask(json!({"do": "limit", "soft": 3, "hard": 1024}));
    let mut second = Puppet::new();
    let error = fails(&mut second, scene.begin("2", json!({"start_ms": 100}))).unwrap();
    assert_clear(&error, "unresponsive", "that process", "at the limit");
    assert!(error["message"].as_str().unwrap().contains(&first.pid().to_string()), "{error}");
    first.ask(json!({"do": "limit", "soft": 1024, "hard": 1024}));
    assert_eq!(scene.status().pid, first.pid());
    assert_eq!(settled(&mut first, &before), before);
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(visit(&address).pid, third.pid());
}

/// After an attempt that came to nothing, the lock description for the next successor cannot be made.
#[test]
fn a_predecessor_that_cannot_open_the_lock_file_again_says_so() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let Some(failing) = Strace::fail(first.pid(), "openat", "EMFILE", "1+") else { return };
    let mut second = scene.warm("2", json!({}));
    second.ask(json!({"do": "drop"}));
    scene.status_where(|status| status.takeover.is_none());
    let error = fails(&mut second, scene.begin("2", json!({}))).unwrap();
    drop(failing);
    assert_clear(&error, "shortage", "ulimit -n", "no description");
    assert_eq!(visit(&address).pid, first.pid());
    // What is missing is made when there is room again, at the latest for the one who asks.
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
}

#[test]
fn a_full_backlog_is_waited_for_and_named() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    first.freeze();
    let mut waiting = Vec::new();
    loop {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
        let stream =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
                .unwrap();
        let connected = connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &UnixAddr::new(&scene.control()).unwrap());
        match connected {
            Ok(()) => waiting.push(stream),
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(errno) => panic!("{errno}"),
        }
        assert!(waiting.len() < 5000, "the backlog has no end");
    }
    let mut second = Puppet::new();
    let error = fails(&mut second, scene.begin("2", json!({"start_ms": 300}))).unwrap();
    assert_clear(&error, "unresponsive", "kill -CONT", "a full backlog");
    let client = heirloom::Client::connect(scene.control(), Duration::from_millis(50)).unwrap_err();
    assert_eq!(client.code(), "deadline", "{client}");
    assert!(client.hint().unwrap().contains("kill -CONT"), "{client}");
    second.ask(scene.begin("2", json!({})));
    drop(waiting);
    first.thaw();
    // Those who queued are nobody any more, and the successor has its turn.
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.predecessor.is_none());
    assert_eq!(settled(&mut second, &before), before);
    assert_eq!(visit(&address).pid, second.pid());
}

/// The nonce cannot be written by the one, or the generation by the other.
#[test]
fn the_disk_is_full_at_the_lock_file_during_a_takeover() {
    with(Side::Predecessor, "pwrite64", "ENOSPC", "1+", Wanted::Error("io", "process that serves"));
    with(Side::Predecessor, "pwrite64", "EDQUOT", "1", Wanted::Error("io", "process that serves"));
    with(Side::Successor, "pwrite64", "ENOSPC", "1", Wanted::Error("io", "make room"));
    with(Side::Successor, "pwrite64", "ENOSPC", "1+", Wanted::Error("io", "make room"));
}

/// A number that was not written down would be given a second time.
#[test]
fn no_generation_is_given_twice_where_the_disk_was_full() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let mut second = Puppet::new();
    let Some(failing) = Strace::fail(second.pid(), "pwrite64", "ENOSPC", "1+") else { return };
    let failed = fails(&mut second, scene.begin("2", json!({})));
    let owner = scene.status();
    drop(failing);
    first.kill();
    second.kill();
    let (_third, _) = scene.serve("3", json!({}));
    assert!(scene.status().generation > owner.generation, "{failed:?}");
}

/// A filesystem of its own for a puppet, with this prepared in it by a shell; the scene's folder leads there.
fn mounted(scene: &Scene, options: &str, script: &str) -> Option<Puppet> {
    let folder = scene.folder().display();
    let script = format!("mount -t tmpfs -o {options} none '{folder}' && {script} && exec \"$@\"");
    Puppet::through(&["unshare", "--mount", "sh", "-c", &script, "sh"])
}

#[test]
fn a_full_disk_at_a_cold_start() {
    if !is_root() {
        return skip("only root can mount");
    }
    let scene = Scene::new();
    let folder = scene.folder().display().to_string();
    // No block, or no inode.
    let full = format!("! head -c 100000 /dev/zero > '{folder}/fill' 2>/dev/null");
    for (options, script) in [("size=16k,mode=700", full.as_str()), ("nr_inodes=1,mode=700", "true")] {
        let Some(mut puppet) = mounted(&scene, options, script) else { return };
        let before = puppet.ask(json!({"do": "descriptors"}));
        let error = fails(&mut puppet, scene.begin("1", json!({}))).unwrap();
        assert_clear(&error, "io", "make room", options);
        assert!(error["message"].as_str().unwrap().contains("handoff.sock.lock"), "{error}");
        puppet.ask(json!({"do": "drop"}));
        assert_eq!(settled(&mut puppet, &before), before);
    }
}

#[test]
fn a_read_only_folder() {
    if !is_root() {
        return skip("only root can mount");
    }
    let scene = Scene::new();
    let Some(mut puppet) = mounted(&scene, "ro,mode=700", "true") else { return };
    let error = fails(&mut puppet, scene.begin("1", json!({}))).unwrap();
    assert_clear(&error, "io", "can be written to", "read-only");
    // A successor writes nothing there by name: what it needs comes from the predecessor.
    let (mut first, address) = scene.serve("1", json!({}));
    let folder = scene.folder().display();
    let script = format!("mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}' && exec \"$@\"");
    let Some(mut second) = Puppet::through(&["unshare", "--mount", "sh", "-c", &script, "sh"]) else { return };
    second.ask(scene.begin("2", json!({})));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(second.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, third.pid());
}

#[test]
fn a_folder_that_the_user_may_not_write_to() {
    if !is_root() {
        return skip("only root can be another user");
    }
    let scene = Scene::new();
    chown(scene.folder(), Some(USER), Some(USER)).unwrap();
    std::fs::set_permissions(scene.folder(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let Some(mut puppet) = Puppet::of_user(USER) else { return };
    let error = fails(&mut puppet, scene.begin("1", json!({}))).unwrap();
    assert_clear(&error, "denied", "", "mode 500");
}

/// The application learns of it before it lets go, and says that it cannot.
#[test]
fn no_memory_for_the_state_calls_the_takeover_off_with_a_reason() {
    let scene = Scene::new();
    let stateful = json!({"state": {"schema": "counter", "version": 1}, "release": false});
    let (mut first, address) = scene.serve("1", stateful.clone());
    let Some(failing) = Strace::fail(first.pid(), "memfd_create", "ENOMEM", "1+") else { return };
    let mut second = Puppet::new();
    second.ask(scene.begin("2", stateful.clone()));
    first.event("release");
    let error = first.refuse(json!({"do": "release-with", "text": "41"}));
    assert_eq!(error["code"], "io");
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("cannot make a memfd for the state: "), "{message}");
    first.ask(json!({"do": "cannot-release", "why": message}));
    first.event("resume");
    assert!(second.failure()["message"].as_str().unwrap().contains(message));
    drop(failing);
    assert_eq!(visit(&address).pid, first.pid());
    let mut third = Puppet::new();
    third.ask(scene.begin("3", stateful));
    first.event("release");
    first.ask(json!({"do": "release-with", "text": "41"}));
    third.event("serving");
    assert_eq!(third.ask(json!({"do": "take-state", "schema": "counter"}))["ok"]["text"], "41");
}
