//! kill -9 and SIGSTOP at each system call of a takeover, of either side, by strace's injection.
//!
//! The process knows nothing of it. Calls are counted, so the steps are the same in every run; a run that ends without
//! the injection was the last one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use heirloom::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::puppet::{PATIENCE, Puppet, Scene, skip};
use crate::visitor::{self, visit};

/// The calls by which a handoff touches the world. strace counts each by itself.
const CALLS: [&str; 11] = [
    "sendto",
    "sendmsg",
    "recvmsg",
    "fcntl",
    "pread64",
    "pwrite64",
    "epoll_ctl",
    "listen",
    "accept4",
    "getsockopt",
    "timerfd_settime",
];
/// Where the injection has not come after so many calls, something is wrong.
const MOST: u32 = 100;

/// strace, attached to a puppet until either ends.
struct Strace {
    child: Child,
    /// Each line that it writes.
    lines: Receiver<String>,
}

impl Strace {
    /// `None`, said aloud, where there is no strace or where it may not attach.
    fn attach(pid: u32, call: &str, signal: &str, when: u32) -> Option<Strace> {
        let spawned = Command::new("strace")
            .args(["-f", "-e", &format!("trace={call}")])
            .arg(format!("--inject={call}:signal={signal}:when={when}"))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                skip(&format!("strace: {error}"));
                return None;
            }
        };
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let strace = Strace { child, lines };
        let first = strace.lines.recv_timeout(PATIENCE).unwrap_or_default();
        if first.contains(" attached") {
            return Some(strace);
        }
        skip(&format!("strace: {first}"));
        None
    }

    /// Waits until the process is stopped (`true`), or until something else is so (`false`).
    fn stops_or(&self, mut otherwise: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(5)) {
                Ok(line) if line.contains("--- stopped by SIGSTOP ---") => return true,
                Ok(_) => {}
                Err(_) if otherwise() => return false,
                Err(_) => assert!(Instant::now() < end, "it neither stopped nor went on"),
            }
        }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Continues a process again and again: a SIGCONT that comes while strace holds some of its threads is lost.
struct Thawing {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Thawing {
    fn begin(pid: u32) -> Thawing {
        let (stop, stopped) = channel();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                // The handle of the puppet has not reaped it yet, so the number is still its own.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGCONT);
            }
        });
        Thawing { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Thawing {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An owner with something in flight, so that it stays, and with a connection in its queue.
fn owner(scene: &Scene) -> (Puppet, String, std::net::TcpStream) {
    let (mut first, address) = scene.serve("1", json!({"accept": false, "exit": false}));
    first.ask(json!({"do": "lease"}));
    let waiting = std::net::TcpStream::connect(&address).unwrap();
    (first, address, waiting)
}

#[test]
fn a_successor_that_is_killed_at_any_step_costs_nothing() {
    for call in CALLS {
        let mut step = 1;
        while successor_killed(call, step) {
            step += 1;
            assert!(step < MOST, "{call}: no end of steps");
        }
    }
}

/// Whether it came to the kill.
fn successor_killed(call: &str, step: u32) -> bool {
    let scene = Scene::new();
    let (mut first, address, waiting) = owner(&scene);
    let mut second = Puppet::new();
    let Some(strace) = Strace::attach(second.pid(), call, "SIGKILL", step) else { return false };
    second.tell(&scene.begin("2", json!({"accept": false})));
    let killed = !second.says_or_dies("serving");
    drop(strace);
    second.kill();
    // Killed by the step, or now that it owns: the predecessor owns in the end.
    let status = scene.status_where(|status| status.phase == Phase::Serving && status.takeover.is_none());
    assert_eq!(status.pid, first.pid(), "{call} {step}");
    first.ask(json!({"do": "accept", "on": true}));
    assert_eq!(visitor::answer(waiting).pid, first.pid(), "{call} {step}");
    assert_eq!(visit(&address).pid, first.pid(), "{call} {step}");
    let (third, _) = scene.serve("3", json!({}));
    let answer = visit(&address);
    assert_eq!(answer.pid, third.pid(), "{call} {step}");
    assert!(answer.generation > status.generation, "{call} {step}");
    killed
}

#[test]
fn a_predecessor_that_is_killed_at_any_step_costs_nothing_once_its_descriptors_are_out() {
    let mut inherited = 0;
    for call in CALLS {
        let mut step = 1;
        while let Some(kept) = predecessor_killed(call, step) {
            inherited += u32::from(kept);
            step += 1;
            assert!(step < MOST, "{call}: no end of steps");
        }
    }
    skip_or(inherited > 10, "too few steps after the descriptors");
}

/// Without strace there is nothing to count.
fn skip_or(holds: bool, what: &str) {
    assert!(holds || Command::new("strace").arg("-V").output().is_err(), "{what}");
}

/// Whether the successor inherited; `None` where it did not come to the kill.
fn predecessor_killed(call: &str, step: u32) -> Option<bool> {
    let scene = Scene::new();
    let (mut first, address, waiting) = owner(&scene);
    let strace = Strace::attach(first.pid(), call, "SIGKILL", step)?;
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({})));
    let serving = second.event("serving");
    let now = serving["addresses"]["web"].as_str().unwrap().to_owned();
    let survived = first.says_or_dies("leave") && first.survives();
    drop(strace);
    first.kill();
    let status = scene.status_where(|status| status.phase == Phase::Serving && status.predecessor.is_none());
    assert_eq!((status.pid, status.generation), (second.pid(), 2), "{call} {step}");
    // Without them it died before anything had left it, and no protocol can mend that.
    let inherited = now == address;
    if inherited {
        assert_eq!(visitor::answer(waiting).pid, second.pid(), "{call} {step}");
    }
    assert_eq!(second.event("started")["entries"], if inherited { json!(["web"]) } else { json!([]) });
    assert_eq!(visit(&now).pid, second.pid(), "{call} {step}");
    let (third, _) = scene.serve("3", json!({}));
    assert_eq!(visit(&now).pid, third.pid(), "{call} {step}");
    (!survived).then_some(inherited)
}

/// Stopped at each step for a moment, and continued: the takeover goes through, and there is one owner.
#[test]
fn a_stop_at_any_step_of_either_side_makes_no_second_owner() {
    for (side, call) in ["predecessor", "successor"].iter().flat_map(|side| CALLS.map(|call| (*side, call))) {
        let mut step = 1;
        while stopped(side, call, step) {
            step += 1;
            assert!(step < MOST, "{side}, {call}: no end of steps");
        }
    }
}

/// Whether it came to the stop.
fn stopped(side: &str, call: &str, step: u32) -> bool {
    let scene = Scene::new();
    let (mut first, address, waiting) = owner(&scene);
    let mut second = Puppet::new();
    let pid = if side == "predecessor" { first.pid() } else { second.pid() };
    let Some(strace) = Strace::attach(pid, call, "SIGSTOP", step) else { return false };
    second.tell(&scene.begin("2", json!({})));
    let stopped = strace.stops_or(|| second.has_said("serving") && first.has_said("leave"));
    let thawing = Thawing::begin(pid);
    second.event("serving");
    first.event("leave");
    assert_eq!(first.ask(json!({"do": "is-owner"}))["ok"], false);
    assert_eq!(second.ask(json!({"do": "is-owner"}))["ok"], true);
    assert_eq!(visitor::answer(waiting).pid, second.pid(), "{side}, {call} {step}");
    assert_eq!(visit(&address).pid, second.pid());
    drop((thawing, strace));
    stopped
}
