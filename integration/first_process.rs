//! `ctl` as the first process of a pid namespace, and beside one: what a container does to it, without a container.
//!
//! Needs root and util-linux's `unshare`; what is missing is said aloud.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::ctl::stage::CTL;
use crate::puppet::{PATIENCE, PID_NAMESPACE, Puppet, Scene, is_root, skip};
use crate::visitor::visit;

fn first(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = Command::new(PID_NAMESPACE[0]);
    command
        .args(&PID_NAMESPACE[1..])
        .arg(CTL)
        .args(arguments)
        .env("HEIRLOOM_SOCKET", scene.control())
        .stdin(Stdio::null());
    command
}

fn run(scene: &Scene, arguments: &[&str]) -> Option<Output> {
    if !is_root() {
        skip("only root can make a pid namespace");
        return None;
    }
    Some(first(scene, arguments).output().unwrap())
}

/// Has a program take the service over, and lets it begin when the one before has left: that one would resume where the
/// first process ended earlier.
fn run_alone(scene: &Scene, program: &str) -> Option<Output> {
    if !is_root() {
        skip("only root can make a pid namespace");
        return None;
    }
    let (mut owner, _) = scene.serve("1", json!({}));
    let gate = scene.path("gate");
    // For a minute at most, whatever becomes of this test.
    let wait = "n=0; until [ -e \"$GATE\" ] || [ $n = 1200 ]; do sleep 0.05; n=$((n + 1)); done";
    let program = format!("{wait}\n{program}");
    let mut command = first(scene, &["handoff", "--commit", "--", "sh", "-c", &program]);
    let child = command.env("GATE", &gate).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(owner.exit_code(), Some(0));
    File::create(gate).unwrap();
    Some(child.wait_with_output().unwrap())
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn it_ends_with_the_code_of_its_command() {
    let scene = Scene::new();
    let Some(nobody) = run(&scene, &["--json", "status"]) else { return };
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
    assert_eq!(run(&scene, &["wait"]).unwrap().status.code(), Some(2));
    let (owner, _) = scene.serve("1", json!({}));
    let status = run(&scene, &["--json", "status"]).unwrap();
    assert_eq!((status.status.code(), &json_of(&status)["pid"]), (Some(0), &json!(owner.pid())));
}

/// Each of these leaves a child behind that ends after it, and nobody but the first process can reap that.
const ORPHANS: &str = "for _ in 1 2 3 4 5; do sh -c 'sleep 0.1 & exec true'; done";

/// These end by a signal in real time, one that has a number and no name.
const KILLED_ORPHANS: &str =
    r#"for _ in 1 2 3 4 5; do sh -c '(sleep 0.1; exec sh -c "kill -34 \$\$") & exec true'; done"#;

/// Ends with 7 once no orphan is left.
const UNTIL_REAPED: &str = r#"
tries=0
while [ "$tries" -lt 300 ]; do
    left=0
    for stat in /proc/[0-9]*/stat; do
        read -r pid name state parent rest <"$stat" 2>/dev/null || continue
        [ "$parent" = 1 ] && [ "$pid" != "$PPID" ] && [ "$pid" != $$ ] && left=$((left + 1))
    done
    [ "$left" -gt 0 ] || exit 7
    tries=$((tries + 1))
    sleep 0.1
done
exit 8
"#;

#[test]
fn it_reaps_what_the_program_left_behind() {
    for orphans in [ORPHANS, KILLED_ORPHANS] {
        let Some(ended) = run_alone(&Scene::new(), &[orphans, UNTIL_REAPED].concat()) else { return };
        assert_eq!(ended.status.code(), Some(7), "{orphans}: {ended:?}");
    }
}

/// As a shell counts it, also where the signal has no name.
#[test]
fn it_ends_with_the_signal_that_killed_its_command() {
    for signal in [15, 34, 64] {
        let Some(ended) = run_alone(&Scene::new(), &format!("kill -{signal} $$")) else { return };
        assert_eq!(ended.status.code(), Some(128 + signal), "{ended:?}");
    }
}

/// Killed with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// The process that is 1 in there: the only child of unshare(1).
    fn inner(&self) -> Pid {
        let path = format!("/proc/{0}/task/{0}/children", self.0.id());
        let children = std::fs::read_to_string(path).unwrap();
        Pid::from_raw(children.trim().parse().unwrap())
    }
}

#[test]
fn it_passes_signals_on_to_the_program() {
    if !is_root() {
        return skip("only root can make a pid namespace");
    }
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", json!({}));
    let program = "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = first(&scene, &["handoff", "--commit", "--", "sh", "-c", program]);
    let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut told = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert_eq!(told.next().unwrap().unwrap(), "ready");
    assert_eq!(owner.exit_code(), Some(0));
    // As an engine does it: from outside, to the first process.
    kill(running.inner(), Signal::SIGTERM).unwrap();
    assert_eq!(told.next().unwrap().unwrap(), "asked");
    assert_eq!(running.0.wait().unwrap().code(), Some(5));
}

#[test]
fn a_command_that_waits_ends_when_it_is_asked_to() {
    if !is_root() {
        return skip("only root can make a pid namespace");
    }
    let scene = Scene::new();
    let (_owner, _) = scene.serve("1", json!({}));
    let mut command = first(&scene, &["status", "--watch"]);
    let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut told = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert!(told.next().unwrap().unwrap().contains("serving"));
    kill(running.inner(), Signal::SIGTERM).unwrap();
    assert!(told.next().is_none());
    assert_eq!(running.0.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
}

#[test]
fn nothing_is_started_that_would_be_killed_with_its_namespace() {
    let scene = Scene::new();
    let (owner, address) = scene.serve("1", json!({}));
    let Some(refused) = run(&scene, &["--json", "upgrade", "--", "true"]) else { return };
    assert_eq!((refused.status.code(), &json_of(&refused)["error"]["code"]), (Some(1), &json!("first-process")));
    assert_eq!(visit(&address).pid, owner.pid());
}

/// Where the owner is the first process itself, an upgrade beside it would not outlive it.
#[test]
fn an_upgrade_inside_the_container_of_the_old_one_is_refused() {
    if !is_root() {
        return skip("only root can make a pid namespace");
    }
    let scene = Scene::new();
    let Some(mut owner) = Puppet::through(&PID_NAMESPACE) else { return };
    owner.ask(scene.begin("1", json!({})));
    owner.event("serving");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", owner.pid())).unwrap();
    let target = format!("--target={}", children.trim());
    let mut inside = Command::new("nsenter");
    inside.args([&target, "--pid", "--mount", CTL, "--json", "upgrade", "--", "true"]);
    let refused = inside.env("HEIRLOOM_SOCKET", scene.control()).stdin(Stdio::null()).output().unwrap();
    assert_eq!((refused.status.code(), &json_of(&refused)["error"]["code"]), (Some(1), &json!("first-process")));
}

/// What a container's health check asks: is it this container that serves, and not the one beside it?
#[test]
fn here_is_the_pid_namespace_that_has_the_owner() {
    if !is_root() {
        return skip("only root can make a pid namespace");
    }
    let scene = Scene::new();
    let wait = |wrapper: &[&str], more: &[&str]| {
        let command = [wrapper, &[CTL, "--json", "wait", "--ready"], more].concat();
        let mut run = Command::new(command[0]);
        run.args(&command[1..]).env("HEIRLOOM_SOCKET", scene.control()).stdin(Stdio::null());
        let output = run.output().unwrap();
        (output.status.code(), json_of(&output))
    };
    let inside = |puppet: &Puppet| {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", puppet.pid())).unwrap();
        [format!("--target={}", children.trim()), "--pid".to_owned(), "--mount".to_owned()]
    };
    let Some(mut blue) = Puppet::through(&PID_NAMESPACE) else { return };
    blue.ask(scene.begin("1", json!({})));
    blue.event("serving");
    let Some(mut green) = Puppet::through(&PID_NAMESPACE) else { return };
    green.ask(scene.begin("2", json!({"ready": false})));
    green.event("started");
    let (blue_flags, green_flags) = (inside(&blue), inside(&green));
    let in_blue = [&["nsenter"][..], &blue_flags.each_ref().map(String::as_str)].concat();
    let in_green = [&["nsenter"][..], &green_flags.each_ref().map(String::as_str)].concat();

    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    assert_eq!(wait(&in_blue, &["--here", &patience]).0, Some(0));
    assert_eq!(wait(&in_green, &["--timeout=1s"]).0, Some(0), "somebody serves");
    let (code, told) = wait(&in_green, &["--here", "--timeout=1s"]);
    assert_eq!((code, &told["error"]["code"]), (Some(1), &json!("elsewhere")), "{told}");

    green.ask(json!({"do": "ready"}));
    green.event("serving");
    assert_eq!(wait(&in_green, &["--here", &patience]).0, Some(0));
    // Who sees both sees whoever serves.
    assert_eq!(wait(&[], &["--here", &patience]).0, Some(0));
}
