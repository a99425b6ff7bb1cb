//! Broken versions, one after the other, each deployed by `ctl upgrade` while clients never stop: the first version serves
//! on, nobody is refused, nothing is lost but what a version had accepted that then died, and `ctl` says in one line what
//! was wrong. A good version afterwards goes through.
//!
//! ```sh
//! cargo test --test integration broken_versions
//! ```
//!
//! prints what was deployed, and the line.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use heirloom::{Drained, Event, Handoff, Phase};
use nix::sys::signal::{Signal, raise};
use serde_json::json;

use crate::ctl::stage::{CTL, Run};
use crate::matrix::crowd::{Accepted, Crowd, Lost};
use crate::puppet::{self, Puppet, Scene};
use crate::service::{ONCE, Service};

/// What the test binary is as a new version, and as a check of one: see [`puppet::entry`].
pub(crate) const ROLE: &str = "broken";
pub(crate) const CHECK: &str = "check-of-broken";
/// What is wrong with the version, where it notes what it has accepted, and where it serves.
const HOW: &str = "HEIRLOOM_BROKEN";
const LOG: &str = "HEIRLOOM_BROKEN_LOG";
const ADDRESS: &str = "HEIRLOOM_BROKEN_ADDRESS";

/// What a version answers that is up, and not well.
const SICK: &str = "sick";
/// How long the check waits for an answer.
const PROMPT: Duration = Duration::from_secs(1);
/// No version outlives the test, however that ends.
const LIFE: Duration = Duration::from_secs(120);

/// A deploy of a broken version.
struct Deploy {
    how: &'static str,
    /// Before `--`.
    options: &'static [&'static str],
    /// The word for programs, as the line for people says it.
    line: &'static str,
    /// It may have accepted connections when it dies.
    dies_serving: bool,
}

const fn deploy(how: &'static str, options: &'static [&'static str], line: &'static str) -> Deploy {
    Deploy { how, options, line, dies_serving: false }
}

const fn dies_serving(deploy: Deploy) -> Deploy {
    Deploy { dies_serving: true, ..deploy }
}

/// With a check that asks the service itself.
const CANARY: [&str; 4] = ["--probation", "1m", "--check", "\"$HEIRLOOM_CHECK\""];

const DEPLOYS: [Deploy; 15] = [
    deploy("is not there", &[], "is not a program that can be run"),
    deploy("has no interpreter", &[], "the new one ended with code 127 before it served"),
    deploy("exits with 1 before it is ready", &[], "the new one ended with code 1 before it served"),
    deploy("crashes before it says hello", &[], "the new one was ended by SIGABRT before it served"),
    deploy("crashes in its warm-up", &[], "the new one was ended by SIGSEGV before it served"),
    deploy("talks garbage", &[], "the new one ended with code 3 before it served"),
    deploy("hangs before it is ready", &["--timeout", "1s"], "the new one does not serve after 1s"),
    deploy("hangs when it is to own", &["--timeout", "3s"], "the new one does not serve after 3s"),
    dies_serving(deploy("crashes after 100 ms", &CANARY, "the new one was ended by SIGABRT on probation")),
    dies_serving(deploy("exits after 100 ms", &CANARY, "the new one ended with code 0 on probation")),
    deploy("serves, and is sick", &CANARY, "the check ended with code 22: the service answers: sick"),
    dies_serving(deploy("owns, and hangs", &CANARY, "did not answer")),
    dies_serving(deploy("serves, and hangs later", &CANARY, "it did not answer any more and was ended")),
    deploy(
        "has a check that hangs",
        &["--probation", "3s", "--check", "sleep 100"],
        "the check does not end within 2s",
    ),
    deploy("gives the service back", &CANARY, "the new one gave the service back: out of memory"),
];

#[test]
fn ten_broken_versions_and_more_go_unnoticed() {
    let scene = Scene::new();
    let mut first = Puppet::new();
    first.ask(json!({"do": "service", "log": scene.path("accepted-1")}));
    first.ask(scene.begin("1", json!({"exclusive": true})));
    let address = first.event("serving")["addresses"]["web"].as_str().unwrap().to_owned();
    let crowds: Vec<Crowd> = (0..2).map(|_| Crowd::busy_for(&address, LIFE)).collect();
    tell("the new version                  exit      took  what ctl says");
    for (number, deploy) in DEPLOYS.iter().enumerate() {
        crowds.iter().for_each(|crowd| crowd.flows(20));
        let log = accepted(&scene, number);
        let mut ctl = upgrade(&scene, deploy.how, &log, &address, deploy.options);
        ctl.args(program(&scene, deploy.how));
        let began = Instant::now();
        let run = Run::of(&mut ctl);
        let took = began.elapsed();
        let line = run.stderr.lines().rev().find(|line| line.starts_with("ctl: ")).unwrap_or_default();
        tell(&format!("{:<32} {:>4} {:>7.1} s  {line}", deploy.how, run.code, took.as_secs_f64()));
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{}: {}", deploy.how, run.stderr);
        assert!(line.contains(deploy.line), "{}: {}", deploy.how, run.stderr);
        let untouched = deploy.how == "is not there";
        assert!(untouched || line.contains("(version 1), still serves") || line.contains("(version 1), serves again"));
        let status = scene.status_where(|status| status.takeover.is_none());
        assert_eq!((status.pid, status.phase), (first.pid(), Phase::Serving), "{}", deploy.how);
    }
    crowds.iter().for_each(|crowd| crowd.flows(20));
    let served: u64 = crowds.iter().map(Crowd::served).sum();
    let lost: Vec<Lost> = crowds.into_iter().flat_map(Crowd::stop).collect();
    let mut dead: Vec<Accepted> = DEPLOYS
        .iter()
        .enumerate()
        .filter(|(_, deploy)| deploy.dies_serving)
        .map(|(number, _)| Accepted::of(&accepted(&scene, number)))
        .collect();
    let (explained, noticed): (Vec<_>, Vec<_>) =
        lost.into_iter().partition(|lost| dead.iter_mut().any(|accepted| accepted.explains(lost)));
    tell(&format!(
        "{served} requests answered, {} lost with the version that had accepted them, {} others",
        explained.len(),
        noticed.len()
    ));
    assert!(noticed.is_empty(), "{noticed:?}");

    // After all that a good one goes through, and the old one leaves.
    let options = ["--probation", "2s", "--check", "\"$HEIRLOOM_CHECK\""];
    let mut ctl = upgrade(&scene, "is good", &scene.path("accepted-good"), &address, &options);
    let run = Run::of(ctl.args(program(&scene, "is good")));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(first.exit_code(), Some(0));
    let answer = visit_once(&address);
    assert!(answer.starts_with("2 "), "{answer}");
    let stopped = Run::of(Command::new(CTL).arg("--socket").arg(scene.control()).arg("stop"));
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
}

/// Past the harness, which keeps to itself what a test that passes has printed.
fn tell(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn accepted(scene: &Scene, number: usize) -> PathBuf {
    scene.path(&format!("accepted-broken-{number}"))
}

/// `ctl upgrade`, up to and without the program.
fn upgrade(scene: &Scene, how: &str, log: &Path, address: &str, options: &[&str]) -> Command {
    let check = scene.path("check");
    let exe = std::env::current_exe().unwrap();
    let script = format!("#!/bin/sh\n{}={CHECK} exec '{}' {}\n", puppet::ROLE, exe.display(), puppet::ENTRY.join(" "));
    executable(&check, &script);
    let mut ctl = Command::new(CTL);
    ctl.arg("--socket").arg(scene.control()).arg("upgrade").args(options).arg("--");
    ctl.env(puppet::ROLE, ROLE).env(HOW, how).env(LOG, log).env(ADDRESS, address).env("HEIRLOOM_CHECK", check);
    ctl
}

/// The new version, with its arguments.
fn program(scene: &Scene, how: &str) -> Vec<String> {
    let path = scene.path("shop-2");
    match how {
        "is not there" => vec![path.display().to_string()],
        "has no interpreter" => {
            executable(&path, "#!/nosuch/interpreter\n");
            vec![path.display().to_string()]
        }
        _ => {
            let exe = std::env::current_exe().unwrap().display().to_string();
            [exe].into_iter().chain(puppet::ENTRY.map(str::to_owned)).collect()
        }
    }
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

/// A request on a connection of its own.
fn visit_once(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PROMPT)).unwrap();
    let mut answer = String::new();
    let _ = stream.write_all(ONCE.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    answer
}

/// The check of a new version: it asks the service, as a client would.
pub(crate) fn check() -> ! {
    let answer = visit_once(&variable(ADDRESS));
    let word = answer.split(' ').next().unwrap_or_default();
    match word {
        "" => eprintln!("no answer within {PROMPT:?}"),
        SICK => eprintln!("the service answers: {SICK}"),
        _ => std::process::exit(0),
    }
    std::process::exit(22)
}

/// The new version.
pub(crate) fn run() -> ! {
    std::thread::spawn(|| {
        std::thread::sleep(LIFE);
        std::process::exit(99)
    });
    match serve(&variable(HOW)) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(9)
        }
    }
}

fn serve(how: &str) -> heirloom::Result<()> {
    let control = variable("HEIRLOOM_SOCKET");
    match how {
        "crashes before it says hello" => std::process::abort(),
        "talks garbage" => {
            let noise: Vec<u8> = (0..=255).cycle().take(5000).collect();
            let _ = std::io::stdout().write_all(&noise);
            let mut stream = UnixStream::connect(&control).unwrap();
            let _ = stream.write_all(&noise);
            let _ = stream.read_to_end(&mut Vec::new());
            std::process::exit(3)
        }
        _ => {}
    }
    let mut service = Service::new(variable(LOG).as_ref());
    let mut starting =
        Handoff::at(&control).app_version(format!("2, which {how}")).drain_within(Duration::from_secs(5)).start()?;
    let web = starting.tcp_listener("web", "127.0.0.1:0")?;
    match how {
        "exits with 1 before it is ready" => {
            eprintln!("shop: cannot read /etc/shop.toml");
            std::process::exit(1)
        }
        // The first one Rust takes for a stack overflow that it can tell of, and puts the default back.
        "crashes in its warm-up" => {
            let _ = raise(Signal::SIGSEGV).and_then(|()| raise(Signal::SIGSEGV));
        }
        "hangs before it is ready" => hang(),
        "hangs when it is to own" => {
            let _committing = starting.begin_ready()?;
            hang()
        }
        _ => {}
    }
    let mut serving = starting.ready()?;
    let word = if how == "serves, and is sick" { SICK } else { "2" };
    let line = format!("{word} {} {}", serving.generation(), std::process::id());
    service.open(web, line, serving.lease());
    match how {
        "crashes after 100 ms" => later(100, || std::process::abort()),
        "exits after 100 ms" => later(100, || std::process::exit(0)),
        "owns, and hangs" => stop(),
        "serves, and hangs later" => later(500, stop),
        "gives the service back" => serving.give_back("out of memory")?,
        _ => {}
    }
    loop {
        while !matches!(serving.wait()?, Event::Leave(_)) {}
        service.leave();
        match serving.drain()? {
            Drained::Resumed(again) => serving = again,
            Drained::Done(_) => return Ok(()),
        }
    }
}

/// Does this while the version serves.
fn later(millis: u64, what: fn()) {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(millis));
        what();
    });
}

fn stop() {
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGSTOP);
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}
