//! The program `ctl`: every command with its exit codes and its JSON.
//!
//! The first generation of each service lives in a thread of the test; the later ones are keepers, `ctl` itself.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid};
use serde_json::{Value, json};

use self::stage::{CTL, Place, Run, Running, Service, eventually, heeded, is_alive};
use crate::puppet::Scene;

mod check;
mod hold;
mod rescue;
pub(crate) mod stage;
mod stop;

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let place = Place::new();
    let wrong: [&[&str]; 14] = [
        &["bogus"],
        &["wait"],
        &["wait", "--ready", "--drained"],
        &["handoff", "--", "true"],
        &["handoff", "--commit", "--name", "web"],
        &["upgrade"],
        &["status", "--timeout", "soon"],
        &["completions", "csh"],
        &["drain"],
        &["drain", "extend"],
        &["upgrade", "--probation", "0s", "--", "true"],
        &["upgrade", "--probation", "999ms", "--check", "true", "--", "true"],
        &["check", "--only", "nosuchcase"],
        &["check", "--only", "die-hello", "--gentle"],
    ];
    for arguments in wrong {
        let run = place.run(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}: {}", run.stderr);
        assert!(!run.stderr.is_empty());
        let run = place.run(&[&["--json"], arguments].concat());
        assert_eq!((run.code, run.stderr.as_str()), (2, ""), "{arguments:?}");
        assert_eq!(run.json()["error"]["code"], "usage", "{arguments:?}");
    }
    // With the name of what is missing, and not only that something is.
    let run = place.run(&["--json", "drain", "extend"]);
    assert!(run.json()["error"]["message"].as_str().unwrap().contains("<DURATION>"), "{}", run.stdout);
}

#[test]
fn a_control_socket_has_to_be_given() {
    for command in
        [&["status"][..], &["check"], &["handoff"], &["stop"], &["wait", "--ready"], &["upgrade", "--", "true"]]
    {
        let run = Run::of(Command::new(CTL).args(command).env_remove("HEIRLOOM_SOCKET"));
        assert_eq!(run.code, 2, "{command:?}");
        assert!(run.stderr.contains("HEIRLOOM_SOCKET"), "{}", run.stderr);
        let run = Run::of(Command::new(CTL).arg("--json").args(command).env_remove("HEIRLOOM_SOCKET"));
        assert_eq!(run.code, 2, "{command:?}");
        let error = &run.json()["error"];
        assert!(error["code"] == "usage" && error["hint"].as_str().unwrap().contains("HEIRLOOM_SOCKET"));
    }
    // An empty variable is as good as none, and not every command needs it.
    let with_empty = |command: &str| Run::of(Command::new(CTL).arg(command).env("HEIRLOOM_SOCKET", ""));
    assert_eq!(with_empty("man").code, 0);
    let run = with_empty("status");
    assert!(run.code == 2 && run.stderr.contains("no control socket given"), "{}", run.stderr);
}

/// A start that may take a second does not wait five for an answer.
#[test]
fn a_rehearsal_and_a_keeper_wait_no_longer_than_they_are_told_to() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.freeze();
    for command in ["handoff", "keep"] {
        let arguments = ["--timeout", "300ms", command];
        let run = Run::of(Command::new(CTL).args(arguments).env("HEIRLOOM_SOCKET", scene.control()));
        assert_eq!(run.code, 1, "{command}: {}", run.stderr);
        assert!(run.stderr.contains("300ms") && !run.stderr.contains("5s"), "{command}: {}", run.stderr);
    }
}

#[test]
fn nobody_is_exit_code_3_and_nothing_is_made() {
    let place = Place::new();
    let commands: [&[&str]; 15] = [
        &["status"],
        &["check"],
        &["history"],
        &["drain", "status"],
        &["drain", "extend", "5s"],
        &["drain", "finish"],
        &["status", "--watch"],
        &["handoff"],
        &["handoff", "--commit"],
        &["handoff", "--commit", "--", "true"],
        &["upgrade", "--", "true"],
        &["wait", "--ready", "--timeout", "0s"],
        &["wait", "--generation", "1", "--timeout", "50ms"],
        &["wait", "--drained", "--timeout", "50ms"],
        &["stop"],
    ];
    for arguments in commands {
        let run = place.run(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (3, ""), "{arguments:?}");
        assert!(run.stderr.contains("nobody listens") && run.stderr.contains("hint: "), "{}", run.stderr);
        let run = place.run(&[&["--json"], arguments].concat());
        assert_eq!((run.code, run.stderr.as_str()), (3, ""), "{arguments:?}");
        assert_eq!(run.json()["error"]["code"], "nobody", "{arguments:?}");
    }
    assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 0);
}

/// Where there can be no service at all, the path is likely to be mistaken.
#[test]
fn a_path_that_cannot_be_right_is_said_to_be_so() {
    let place = Place::new();
    let folder = place.folder.path();
    std::fs::write(folder.join("plain"), "").unwrap();
    std::fs::create_dir(folder.join("shop")).unwrap();
    for (path, what) in [("plain", "is no socket"), ("no/such.sock", "there is no folder"), ("shop", "is a folder")] {
        let socket = folder.join(path);
        let run = Run::of(Command::new(CTL).arg("--socket").arg(&socket).arg("status"));
        assert_eq!((run.code, run.stdout.as_str()), (3, ""), "{path}");
        let hint = run.stderr.lines().find(|line| line.starts_with("hint: ")).unwrap();
        assert!(hint.contains(what) && hint.contains("--socket"), "{hint}");
    }
}

#[test]
fn an_owner_that_does_not_answer_is_told_from_one_that_refuses() {
    let place = Place::new();
    let _silent = UnixListener::bind(&place.socket).unwrap();
    for (arguments, code, word) in [
        (&["status"][..], 4, "deadline"),
        (&["history"], 4, "deadline"),
        (&["status", "--watch"], 4, "deadline"),
        (&["stop"], 4, "deadline"),
        // These have changed nothing, and nobody took over from whoever it is.
        (&["wait", "--ready"], 1, "deadline"),
        (&["handoff"], 1, "unresponsive"),
        (&["handoff", "--commit"], 1, "deadline"),
        (&["upgrade", "--", "true"], 1, "deadline"),
        (&["check"], 1, "deadline"),
    ] {
        let run = place.run(&[&["--json", "--timeout", "100ms"], arguments].concat());
        assert_eq!((run.code, &run.json()["error"]["code"]), (code, &json!(word)), "{arguments:?}");
    }
}

#[test]
fn history_shows_the_last_takeovers_the_newest_last() {
    let service = Service::start();
    let keeper = service.keeper(&[]);
    service.left();
    let pid = std::process::id();
    let history = eventually(|| {
        let history = service.json(&["history"]);
        history["takeovers"][1]["steps"].as_array()?.iter().any(|step| step["step"] == "drained").then_some(history)
    });
    let [start, takeover] = history["takeovers"].as_array().unwrap().as_slice() else { panic!("{history}") };
    let first = json!({"generation": 1, "pid": pid, "app_version": "one"});
    assert_eq!((&start["outcome"], &start["from"], &start["to"]), (&json!("cold-start"), &Value::Null, &first));
    assert_eq!((&takeover["outcome"], &takeover["from"]), (&json!("taken-over"), &first));
    assert_eq!((&takeover["to"]["generation"], &takeover["to"]["pid"]), (&json!(2), &json!(keeper.pid())));
    assert_eq!((&takeover["cause"], &takeover["count"]), (&Value::Null, &json!(1)));
    assert!(
        takeover["took"].is_string()
            && takeover["steps"][0] == json!({"step": "offered", "at_ms": takeover["steps"][0]["at_ms"]})
    );
    for time in ["began", "last"] {
        takeover[time].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    let newest = service.json(&["history", "--limit", "1"]);
    assert_eq!(newest["takeovers"], json!([takeover]));
    assert_eq!(service.json(&["history", "--limit", "0"])["takeovers"], json!([]));
    let text = service.run(&["history"]).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("BEGAN") && lines.len() == 3, "{text}");
    assert!(lines[1].contains("cold-start") && lines[1].contains(&format!("1: pid {pid} (version one)")), "{text}");
    assert!(lines[2].contains("taken-over") && lines[2].contains(", owning ") && lines[2].contains("2: pid"), "{text}");
}

#[test]
fn status_shows_who_serves_and_what() {
    let service = Service::start();
    let status = service.json(&["status"]);
    assert_eq!(status["generation"], 1);
    assert_eq!(status["pid"], std::process::id());
    assert_eq!((&status["app_version"], &status["phase"]), (&json!("one"), &json!("serving")));
    assert_eq!(status["in_flight"], 0);
    for unknown in ["left", "takeover", "predecessor"] {
        assert!(status.as_object().unwrap()[unknown].is_null());
    }
    let since = status["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(since <= jiff::Timestamp::now() && status["since"].as_str().unwrap().ends_with('Z'));
    let listeners = status["listeners"].as_array().unwrap();
    let named = |name: &str| listeners.iter().find(|listener| listener["name"] == name).unwrap();
    assert_eq!(named("web")["kind"], "tcp-listener");
    assert_eq!(named("web")["address"], service.address.to_string());
    assert_eq!(named("web")["accept_queue_length"], 0);
    assert!(named("web")["accept_queue_limit"].as_u64().unwrap() > 0);
    assert_eq!(named("admin")["kind"], "unix-listener");
    assert!(named("admin")["accept_queue_length"].is_null() && named("admin")["accept_queue_limit"].is_null());
    assert!(named("file")["address"].is_null());

    let run = service.run(&["status"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(run.stdout.contains("generation 1") && run.stdout.contains("serving since"), "{}", run.stdout);
    let web = run.stdout.lines().find(|line| line.starts_with("web ")).unwrap();
    assert!(web.split_whitespace().nth(3).unwrap().starts_with("0/"), "{web}");
}

#[test]
fn a_connection_that_waits_is_seen_in_the_queue() {
    let service = Service::start();
    let _keeper = service.keeper(&[]);
    let _waiting = TcpStream::connect(service.address).unwrap();
    let status = service.json(&["status"]);
    let web = status["listeners"].as_array().unwrap().iter().find(|listener| listener["name"] == "web").unwrap();
    assert_eq!(web["accept_queue_length"], 1);
}

#[test]
fn a_watch_follows_the_service_from_owner_to_owner_until_nobody_is_left() {
    let service = Service::start();
    let mut json = service.spawn(&["--json", "status", "--watch"]);
    let mut text = service.spawn(&["status", "--watch"]);
    assert_eq!(json.object()["generation"], 1);
    assert!(text.line().contains("generation 1"));
    let mut second = service.keeper(&[]);
    let third = service.keeper(&[]);
    assert_eq!(second.code(), 0);
    let mut steps = Vec::new();
    loop {
        let status = json.object();
        if let Some(step) = status["takeover"]["step"].as_str() {
            steps.push(step.to_owned());
            assert!(status["takeover"]["for"].is_string() && status["takeover"]["progress"].is_string());
        }
        if status["generation"] == 3 {
            assert_eq!((&status["phase"], &status["pid"]), (&json!("holding"), &json!(third.pid())));
            break;
        }
    }
    assert!(steps.iter().any(|step| step == "warming-up"), "{steps:?}");
    while !text.line().contains("generation 3") {}
    assert_eq!(service.run(&["stop"]).code, 0);
    assert_eq!((json.code(), text.code()), (3, 3));
    let last = json.rest();
    assert_eq!(serde_json::from_str::<Value>(last.lines().last().unwrap()).unwrap()["error"]["code"], "nobody");
}

#[test]
fn a_watch_ends_when_its_time_is_over_or_when_nobody_reads_it() {
    let service = Service::start();
    let run = service.run(&["--timeout", "1s", "status", "--watch"]);
    assert_eq!((run.code, run.stdout.lines().count(), run.stderr.as_str()), (0, 1, ""));
    let mut unread = service.spawn(&["status", "--watch"]);
    unread.line();
    drop(unread.stdout.take());
    assert_eq!(unread.code(), 0);
    assert_eq!(unread.stderr(), "");
}

#[test]
fn data_into_a_closed_pipe_is_a_quiet_end() {
    let service = Service::start();
    for arguments in [
        &["status"][..],
        &["--json", "status"],
        &["history"],
        &["handoff"],
        &["man"],
        &["completions", "zsh"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let run = Run::of(service.place.command(arguments).stdout(writer));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn a_rehearsal_shows_every_entry_and_changes_nothing() {
    let service = Service::start();
    let seen = service.json(&["handoff"]);
    assert_eq!(seen["passed"], true);
    assert_eq!(seen["predecessor"], json!({"pid": std::process::id(), "app_version": "one", "generation": 1}));
    let names: Vec<&Value> = seen["entries"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["admin", "file", "web"]);
    for entry in seen["entries"].as_array().unwrap() {
        assert!(entry["kind"].is_string() && entry.get("address").is_some());
        assert!(!entry["checks"].as_array().unwrap().is_empty());
        for check in entry["checks"].as_array().unwrap() {
            assert_eq!(check["ok"], true, "{check}");
            assert!(["check", "expected", "found"].iter().all(|key| check[key].is_string()), "{check}");
        }
    }
    let text = service.run(&["handoff"]);
    assert_eq!((text.code, text.stdout.matches("all ok").count()), (0, 3), "{}", text.stdout);

    let filtered = service.json(&["handoff", "--name", "web", "--name", "admin"]);
    assert_eq!(filtered["entries"].as_array().unwrap().len(), 2);
    let unknown = service.run(&["--json", "handoff", "--name", "nosuch"]);
    assert_eq!((unknown.code, &unknown.json()["error"]["code"]), (1, &json!("unknown-name")));
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
}

#[test]
fn a_rehearsal_tells_which_check_failed() {
    let service = Service::start();
    // The mode belongs to the open socket, so whoever has it may change it under the owner.
    service.admin.set_nonblocking(false).unwrap();
    let run = service.run(&["--json", "handoff"]);
    let seen = run.json();
    assert_eq!((run.code, &seen["passed"]), (1, &json!(false)));
    let admin = &seen["entries"].as_array().unwrap()[0];
    let failed: Vec<&Value> = admin["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["check"], "non-blocking");
    service.admin.set_nonblocking(false).unwrap();
    let text = service.run(&["handoff"]);
    assert_eq!(text.code, 1);
    assert!(text.stdout.contains("non-blocking: expected true, found false"), "{}", text.stdout);
    assert_eq!(service.status().generation, 1);
}

#[test]
fn a_keeper_holds_everything_until_a_successor_comes() {
    let service = Service::start();
    let mut keeper = service.spawn(&["--json", "handoff", "--commit"]);
    let told = keeper.object();
    assert_eq!(told["owner"]["generation"], 2);
    assert_eq!(told["owner"]["pid"], keeper.pid());
    assert!(told["owner"]["app_version"].as_str().unwrap().starts_with("ctl "));
    assert_eq!(told["predecessor"]["app_version"], "one");
    assert_eq!(told["entries"].as_array().unwrap().len(), 3);
    let status = service.status();
    assert_eq!((status.phase, status.pid, status.listeners.len()), (heirloom::Phase::Holding, keeper.pid(), 3));

    let mut waiting = TcpStream::connect(service.address).unwrap();
    let next = service.place.serve("three");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "three");
    drop(waiting);
    assert_eq!(keeper.code(), 0);
    assert_eq!(next.status().listeners.len(), 3);
}

#[test]
fn a_keeper_leaves_when_it_is_asked_to() {
    for signal in heeded(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]) {
        let service = Service::start();
        let mut keeper = service.keeper(&[]);
        service.left();
        keeper.signal(signal);
        assert_eq!(keeper.code(), 0, "{signal}: {}", keeper.stderr());
        assert_eq!(service.run(&["status"]).code, 3);
    }
}

#[test]
fn a_keeper_outlives_whoever_reads_its_output() {
    let service = Service::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = service.place.command(&["handoff", "--commit"]);
    let mut keeper = Running::with_output(command.stdout(writer.try_clone().unwrap()).stderr(writer));
    service.place.status_where(|status| status.generation == 2);
    assert_eq!(service.run(&["stop"]).code, 0);
    assert_eq!(keeper.code(), 0);
}

#[test]
fn a_program_gets_the_listeners_by_socket_activation() {
    let service = Service::start();
    let seen = service.place.path("seen");
    let script = format!(
        "echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID $$ $(stat -Lc %i /proc/$$/fd/3 /proc/$$/fd/4 /proc/$$/fd/5) > {0}.new; \
         mv {0}.new {0}; exec sleep 1000",
        seen.display()
    );
    let mut keeper = service.spawn(&["handoff", "--commit", "--", "sh", "-c", &script]);
    let told = eventually(|| std::fs::read_to_string(&seen).ok());
    let told: Vec<&str> = told.split_whitespace().collect();
    assert_eq!(told[..2], ["3", "admin:file:web"]);
    assert_eq!(told[2], told[3], "LISTEN_PID is the program's own");
    assert_eq!(told[4..], service.inodes().map(|inode| inode.to_string()));
    let status = service.status();
    assert_eq!((status.pid, status.in_flight), (keeper.pid(), 1));
    assert_eq!(status.phase, heirloom::Phase::Serving);

    // A successor ends it, and the keeper ends as the program does: here by a signal.
    let mut next = service.keeper(&[]);
    assert_eq!(keeper.code(), 128 + Signal::SIGTERM as i32);
    next.signal(Signal::SIGTERM);
    assert_eq!(next.code(), 0);
}

#[test]
fn a_keeper_ends_with_the_code_of_its_program() {
    let service = Service::start();
    let end = service.place.path("end");
    let script = format!("echo out; while [ ! -e {} ]; do sleep 0.01; done; exit 42", end.display());
    let mut keeper = service.spawn(&["handoff", "--commit", "--", "sh", "-c", &script]);
    assert_eq!(keeper.line(), "out");
    service.left();
    std::fs::write(end, "").unwrap();
    assert_eq!((keeper.code(), keeper.rest().as_str()), (42, ""), "{}", keeper.stderr());
    assert_eq!(service.run(&["status"]).code, 3);
}

#[test]
fn a_keeper_passes_signals_on() {
    let service = Service::start();
    let script = "trap 'exit 43' TERM; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done";
    let mut keeper = service.spawn(&["handoff", "--commit", "--", "sh", "-c", script]);
    assert_eq!(keeper.line(), "ready");
    keeper.signal(Signal::SIGTERM);
    assert_eq!(keeper.code(), 43);
}

#[test]
fn a_program_that_does_not_finish_is_ended_at_the_drain_deadline() {
    let service = Service::start();
    let script = "trap '' TERM; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done";
    let mut keeper = service.spawn(&["handoff", "--commit", "--drain", "100ms", "--", "sh", "-c", script]);
    assert_eq!(keeper.line(), "ready");
    let _next = service.keeper(&[]);
    assert_eq!(keeper.code(), 128 + Signal::SIGKILL as i32);
}

#[test]
fn a_program_is_started_again_when_the_successor_dies_too_early() {
    let service = Service::start();
    let script = "trap '' TERM; echo ready; while kill -0 $PPID 2>&-; do sleep 0.01; done";
    let mut keeper = service.spawn(&["handoff", "--commit", "--", "sh", "-c", script]);
    assert_eq!(keeper.line(), "ready");
    let mut next = service.keeper(&[]);
    // Only then has the program been told to finish.
    eventually(|| keeper.talk().contains("a successor serves").then_some(()));
    next.signal(Signal::SIGKILL);
    assert_eq!(keeper.line(), "ready");
    let status = service.place.status_where(|status| status.pid == keeper.pid());
    assert_eq!(status.phase, heirloom::Phase::Serving);
    assert!(status.generation > 2);
}

#[test]
fn what_cannot_be_passed_to_a_program_is_refused_before_anything_happens() {
    let service = Service::named("we:b");
    let run = service.run(&["--json", "handoff", "--commit", "--", "true"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("bad-name")));
    let run = service.run(&["--json", "handoff", "--commit", "--", "/nosuch/program"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("no-program")));
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
}

#[test]
fn an_upgrade_ends_when_the_new_version_serves() {
    let service = Service::start();
    let run = service.run(&["--json", "upgrade", "--", CTL, "handoff", "--commit"]);
    let done = run.json();
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{done}");
    assert_eq!(done["upgraded"], true);
    assert_eq!(done["from"], json!({"generation": 1, "pid": std::process::id(), "app_version": "one"}));
    let status = service.status();
    assert_eq!(done["to"], json!({"generation": 2, "pid": status.pid, "app_version": status.app_version}));
    let steps = done["steps"].as_array().unwrap();
    assert_eq!(steps[0], json!({"step": "started", "at_ms": 0}));
    assert!(steps.iter().any(|step| step["step"] == "warming-up"), "{steps:?}");
    let times: Vec<u64> = steps.iter().map(|step| step["at_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted());
    assert_eq!(steps.last().unwrap()["step"], "holding");

    // It has its own session, its output is in the log, and it found the socket in its environment.
    let log = PathBuf::from(format!("{}.log", service.place.socket.display()));
    assert_eq!(done["log"], log.to_str().unwrap());
    eventually(|| std::fs::read_to_string(&log).unwrap().contains("generation 2").then_some(()));
    let pid = Pid::from_raw(status.pid as i32);
    assert_eq!(getsid(Some(pid)), Ok(pid));

    let text = service.run(&[
        "upgrade",
        "--log",
        service.place.path("log").to_str().unwrap(),
        "--",
        CTL,
        "handoff",
        "--commit",
    ]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    assert!(text.stdout.contains("serves as generation 3") && text.stdout.contains("warming-up"), "{}", text.stdout);
    assert!(text.stderr.contains("ctl: offered"), "{}", text.stderr);
    assert!(service.place.path("log").exists());
    assert_eq!(service.run(&["stop"]).code, 0);
}

#[test]
fn a_new_version_inherits_nothing_that_it_should_not_keep() {
    let service = Service::start();
    let seen = service.place.path("seen");
    let script = format!(
        "{{ ls -l /proc/self/fd; grep SigBlk /proc/self/status; }} > {}; exec {CTL} handoff --commit",
        seen.display()
    );
    // As a script does that holds a lock while it calls ctl.
    let upgrade = format!("exec 7<{}; exec {CTL} upgrade -- sh -c '{script}'", service.place.folder.path().display());
    let run = Run::of(Command::new("sh").args(["-c", &upgrade]).env("HEIRLOOM_SOCKET", &service.place.socket));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(!seen.contains(" 7 -> "), "{seen}");
    assert!(seen.contains(" 0 -> /dev/null"), "{seen}");
    assert!(seen.contains("SigBlk:\t0000000000000000"), "{seen}");
    assert_eq!(service.run(&["stop"]).code, 0);
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_version_serving() {
    let service = Service::start();
    let run = service.run(&["upgrade", "--", "false"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.contains("code 1") && run.stderr.contains("still serves"), "{}", run.stderr);

    let script = "for n in $(seq 30); do echo line $n; done; echo broken >&2; exit 7";
    let run = service.run(&["upgrade", "--", "sh", "-c", script]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("line 30\nbroken\n") && !run.stderr.contains("line 10\n"), "{}", run.stderr);
    assert!(run.stderr.contains("code 7"), "{}", run.stderr);

    let run = service.run(&["--json", "upgrade", "--", "sh", "-c", "echo again; kill -9 $$"]);
    assert_eq!((run.code, run.stderr.as_str()), (1, ""));
    assert_eq!(run.json()["error"]["code"], "ended");
    assert!(run.json()["error"]["message"].as_str().unwrap().contains("SIGKILL"));
    // From where this run began: the last one wrote to the same log.
    assert_eq!(run.json()["log_tail"], json!(["again"]));

    let run = service.run(&["--json", "upgrade", "--", "nosuchprogram"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("no-program")));
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
}

/// As systemd runs it in a reload. Any file is as good as a stream to the journal: what counts is that it is the same one.
#[test]
fn where_ctl_writes_to_the_journal_a_new_version_does_too() {
    use std::os::unix::fs::MetadataExt;
    let service = Service::start();
    let path = service.place.path("journal");
    let file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
    let place = file.metadata().unwrap();
    let upgrade = |stream: &str, arguments: &[&str]| {
        let mut command = Command::new(CTL);
        command.args(arguments).env("HEIRLOOM_SOCKET", &service.place.socket).env("JOURNAL_STREAM", stream);
        let output = command.stderr(file.try_clone().unwrap()).output().unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default())
    };
    let journal = || std::fs::read_to_string(&path).unwrap();
    let beside = PathBuf::from(format!("{}.log", service.place.socket.display()));
    let same = format!("{}:{}", place.dev(), place.ino());

    let (code, done) = upgrade(&same, &["--json", "upgrade", "--", CTL, "handoff", "--commit"]);
    assert_eq!((code, &done["upgraded"], &done["log"]), (Some(0), &json!(true), &Value::Null), "{done}");
    eventually(|| journal().contains("generation 2").then_some(()));
    assert!(!beside.exists());
    // One that fails has said why there.
    let (code, _) = upgrade(&same, &["upgrade", "--", "sh", "-c", "echo $$ is broken; exit 7"]);
    assert_eq!(code, Some(1));
    let text = journal();
    let pid = text.lines().find_map(|line| line.strip_suffix(" is broken")).unwrap();
    assert!(text.contains(&format!("journalctl _PID={pid},")), "{text}");
    assert!(!beside.exists());

    // Somebody inherited the variable, and has redirected the stream; or wants a file.
    for stream in ["1:2", "", "no:numbers"] {
        let (code, failed) = upgrade(stream, &["--json", "upgrade", "--", "sh", "-c", "echo aside; exit 7"]);
        assert_eq!((code, &failed["log_tail"]), (Some(1), &json!(["aside"])), "{stream:?}");
    }
    let log = service.place.path("log");
    let asked = ["--json", "upgrade", "--log", log.to_str().unwrap(), "--", "sh", "-c", "echo to a file; exit 7"];
    assert_eq!(upgrade(&same, &asked).1["log_tail"], json!(["to a file"]));
    assert!(!journal().contains("aside") && !journal().contains("to a file"));
    assert_eq!(service.run(&["stop"]).code, 0);
}

#[test]
fn an_upgrade_ends_what_it_started_and_all_that_this_started() {
    let service = Service::start();
    let script = "sleep 1000 & echo $! $$; wait";
    let run = service.run(&["--json", "--timeout", "2s", "upgrade", "--", "sh", "-c", script]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("deadline")), "{}", run.json());
    assert!(run.json()["error"]["message"].as_str().unwrap().contains("still serves"));
    let tail = run.json()["log_tail"][0].as_str().unwrap().to_owned();
    for pid in tail.split_whitespace() {
        assert!(!is_alive(pid.parse().unwrap()), "{pid}");
    }
    // A leader that is gone already leaves children behind that are ended, too.
    let run = service.run(&["--json", "upgrade", "--", "sh", "-c", "sleep 1000 & echo $!"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("ended")));
    assert!(!is_alive(run.json()["log_tail"][0].as_str().unwrap().parse().unwrap()));
    // Nor does it matter that a signal in real time, which has no name, ends the leader or an orphan of it.
    for script in [
        "sleep 1000 & echo $!; kill -34 $$",
        "sleep 1000 & echo $!; sh -c '(exec sh -c \"kill -34 \\$\\$\") &'; sleep 0.2; exit 34",
    ] {
        let run = service.run(&["--json", "upgrade", "--", "sh", "-c", script]);
        assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("ended")), "{}", run.json());
        assert!(run.json()["error"]["message"].as_str().unwrap().contains(" 34 before it served"), "{}", run.json());
        assert!(!is_alive(run.json()["log_tail"][0].as_str().unwrap().parse().unwrap()));
    }
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
}

#[test]
fn an_upgrade_that_is_interrupted_leaves_the_old_version_serving() {
    let service = Service::start();
    let log = service.place.path("log");
    for signal in heeded(&[Signal::SIGINT, Signal::SIGTERM]) {
        let mut upgrade =
            service.spawn(&["upgrade", "--log", log.to_str().unwrap(), "--", "sh", "-c", "echo $$; exec sleep 1000"]);
        let pid = eventually(|| std::fs::read_to_string(&log).ok()?.lines().next()?.parse().ok());
        upgrade.signal(signal);
        assert_eq!(upgrade.code(), 1);
        assert!(upgrade.stderr().contains("interrupted"), "{}", upgrade.stderr());
        assert!(!is_alive(pid));
        std::fs::remove_file(&log).unwrap();
    }
    assert_eq!((service.status().generation, service.visit()), (1, "one".to_owned()));
}

#[test]
fn an_upgrade_that_is_overtaken_ends_what_it_started() {
    let service = Service::start();
    let log = service.place.path("log");
    let mut upgrade = service.spawn(&[
        "--json",
        "upgrade",
        "--log",
        log.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "echo $$; exec sleep 1000",
    ]);
    let pid = eventually(|| std::fs::read_to_string(&log).ok()?.lines().next()?.parse().ok());
    let keeper = service.keeper(&[]);
    let error = upgrade.object()["error"].clone();
    assert_eq!((upgrade.code(), &error["code"]), (1, &json!("overtaken")), "{error}");
    assert!(error["message"].as_str().unwrap().contains(&format!("pid {}", keeper.pid())), "{error}");
    assert!(!is_alive(pid));
}

#[test]
fn a_new_version_that_dies_right_after_its_commit_is_a_failure() {
    let service = Service::start();
    // Owns and dies while the old one still has something in flight, which then takes the service back.
    let _client = service.hold();
    service.place.status_where(|status| status.in_flight == 1);
    let script = format!("{CTL} handoff --commit & pid=$!; {CTL} wait --generation 2; kill -9 $pid; exit 9");
    let run = service.run(&["--json", "upgrade", "--", "sh", "-c", &script]);
    // Either ctl saw it serve, for a moment, or it saw it end: both are true.
    if run.code == 1 {
        let error = run.json()["error"].clone();
        assert_eq!(error["code"], "ended");
        assert!(error["message"].as_str().unwrap().contains("still serves"), "{error}");
    }
    service.place.status_where(|status| status.pid == std::process::id());
}

/// An upgrade to a keeper, with a probation.
fn on_probation(service: &Service, more: &[&str]) -> Run {
    let upgrade = ["--json", "upgrade", "--probation", "10m"];
    service.run(&[&upgrade, more, &["--", CTL, "handoff", "--commit"]].concat())
}

#[test]
fn a_new_version_on_probation_is_confirmed() {
    let service = Service::start();
    let run = service.run(&["--json", "confirm"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("no-probation")));
    let run = on_probation(&service, &[]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    let done = run.json();
    assert_eq!((&done["probation"]["pid"], &done["checks"]), (&json!(std::process::id()), &json!(0)));
    let status = service.json(&["status"]);
    assert_eq!(status["probation"]["pid"], std::process::id());
    assert_eq!((&status["probation"]["overdue"], &status["predecessor"]), (&json!(false), &Value::Null));
    let text = service.run(&["status"]).stdout;
    assert!(text.contains("(version one) stands by, ") && text.contains(" left\n"), "{text}");
    let late = service.run(&["--timeout", "200ms", "wait", "--drained"]);
    assert_eq!(late.code, 1, "the one that stands by is not gone");
    let run = service.run(&["--json", "confirm"]);
    assert_eq!((run.code, run.json()["confirmed"].clone()), (0, json!(true)));
    assert_eq!(run.json()["owner"]["generation"], 2);
    assert_eq!(service.run(&["wait", "--drained"]).code, 0);
    assert_eq!(service.json(&["status"])["probation"], Value::Null);
    assert_eq!(service.run(&["stop"]).code, 0);
}

#[test]
fn a_new_version_on_probation_is_rolled_back() {
    let service = Service::start();
    assert_eq!(on_probation(&service, &[]).code, 0);
    let run = service.run(&["--json", "rollback", "--reason", "too slow"]);
    let done = run.json();
    assert_eq!((run.code, &done["rolled_back"]), (0, &json!(true)), "{done}");
    assert_eq!((&done["from"]["generation"], &done["to"]["generation"]), (&json!(2), &json!(3)));
    assert_eq!(done["to"]["pid"], std::process::id());
    assert_eq!((service.status().generation, service.visit()), (3, "one".to_owned()));
    let run = service.run(&["--json", "rollback"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("no-probation")));
    assert_eq!(service.run(&["rollback"]).code, 1);
}

#[test]
fn an_upgrade_with_a_check_waits_until_the_new_version_is_confirmed() {
    let service = Service::start();
    let upgrade = ["--json", "upgrade", "--probation", "1500ms", "--check", "test -S \"$HEIRLOOM_SOCKET\""];
    let run = service.run(&[&upgrade[..], &["--", CTL, "handoff", "--commit"]].concat());
    let done = run.json();
    assert_eq!(run.code, 0, "{done}");
    assert!(done["checks"].as_u64().unwrap() >= 1, "{done}");
    assert_eq!((&done["probation"], &done["to"]["generation"]), (&Value::Null, &json!(2)));
    assert!(done["steps"].as_array().unwrap().iter().any(|step| step["step"] == "probation"), "{done}");
    assert_eq!(service.run(&["wait", "--drained"]).code, 0);
    assert_eq!(service.run(&["stop"]).code, 0);
}

#[test]
fn an_upgrade_whose_check_fails_is_rolled_back() {
    let service = Service::start();
    let run = on_probation(&service, &["--check", "echo starting >&2; echo no answer >&2; exit 3"]);
    let error = run.json()["error"].clone();
    assert_eq!((run.code, &error["code"]), (1, &json!("check")), "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("the check ended with code 3: no answer"), "{message}");
    assert!(message.contains("serves again as generation 3"), "{message}");
    assert_eq!((service.status().generation, service.visit()), (3, "one".to_owned()));
}

#[test]
fn an_upgrade_whose_new_version_dies_on_probation_is_a_failure() {
    let service = Service::start();
    let pid = service.place.path("pid");
    let script = format!("echo $$ > {}; exec {CTL} handoff --commit", pid.display());
    let check = format!("kill -9 $(cat {})", pid.display());
    let upgrade = ["--json", "upgrade", "--probation", "10m", "--check", &check, "--", "sh", "-c", &script];
    let run = service.run(&upgrade);
    let error = run.json()["error"].clone();
    assert_eq!((run.code, &error["code"]), (1, &json!("ended")), "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("SIGKILL on probation") && message.contains("serves again"), "{message}");
    assert_eq!((service.status().generation, service.visit()), (3, "one".to_owned()));
}

#[test]
fn wait_for_a_service_that_comes_later() {
    let place = Place::new();
    let mut ready = place.spawn(&["--json", "wait", "--ready"]);
    let mut second = place.spawn(&["wait", "--generation", "2"]);
    let service = place.serve("one");
    assert_eq!(ready.object()["generation"], 1);
    assert_eq!(ready.code(), 0);
    let run = service.run(&["--json", "--timeout", "50ms", "wait", "--generation", "2"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("deadline")));
    let _keeper = service.keeper(&[]);
    assert!(second.line().contains("generation 2"));
    assert_eq!(second.code(), 0);
    assert_eq!(service.run(&["wait", "--ready"]).code, 0);
}

#[test]
fn wait_until_a_predecessor_has_drained() {
    let service = Service::start();
    assert_eq!(service.json(&["wait", "--drained"])["generation"], 1);
    // The test itself was the first generation, and lives on: only later ones can go.
    let script = "trap '' TERM; echo ready; while [ ! -e end ] && kill -0 $PPID 2>&-; do sleep 0.01; done";
    let mut command = service.place.command(&["handoff", "--commit", "--", "sh", "-c", script]);
    let mut second = Running::new(command.current_dir(service.place.folder.path()));
    assert_eq!(second.line(), "ready");
    let _third = service.keeper(&[]);
    let run = service.run(&["--timeout", "1s", "wait", "--drained"]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stderr.contains(&format!("draining: pid {}", second.pid())), "{}", run.stderr);
    let status = service.json(&["status"]);
    assert_eq!(status["predecessor"]["pid"], second.pid());
    assert!(status["predecessor"].get("in_flight").is_some() && status["predecessor"].get("left").is_some());

    let mut drained = service.spawn(&["--json", "wait", "--drained"]);
    std::fs::write(service.place.path("end"), "").unwrap();
    assert!(drained.object()["predecessor"].is_null());
    assert_eq!((drained.code(), second.code()), (0, 0));
}

#[test]
fn those_who_drain_are_shown_and_steered() {
    let service = Service::start();
    assert_eq!(service.json(&["drain", "status"]), json!({"drainers": []}));
    let run = service.run(&["drain", "status"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, ""));
    assert!(run.stderr.contains("nobody drains"));
    for order in [&["drain", "extend", "5s"][..], &["drain", "finish"]] {
        let run = service.run(&[&["--json"], order].concat());
        assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("no-drain")));
        assert_eq!(run.json()["error"]["hint"], "ctl drain status shows who drains");
    }
    // Held by the first generation, which is in this very process.
    let _client = service.hold();
    service.place.status_where(|status| status.in_flight == 1);
    let keeper = service.keeper(&[]);
    let status =
        service.place.status_where(|status| status.drainers.first().is_some_and(|drain| drain.in_flight == Some(1)));
    assert_eq!(status.pid, keeper.pid());
    let drainers = service.json(&["drain", "status"]);
    let drain = &drainers["drainers"][0];
    assert_eq!(drain["pid"], std::process::id());
    assert_eq!(
        (&drain["app_version"], &drain["generation"], &drain["in_flight"]),
        (&json!("one"), &json!(1), &json!(1))
    );
    assert!(drain["left"].is_string() && drain["oldest"].is_string(), "{drain}");
    assert_eq!(drain.as_object().unwrap().len(), 6);
    let whole = service.json(&["status"]);
    assert_eq!(whole["drainers"][0]["generation"], 1);
    let table = service.run(&["drain", "status"]).stdout;
    assert!(table.starts_with("GENERATION  PID"), "{table}");
    assert!(service.run(&["status"]).stdout.contains("draining    pid"));

    let extended = service.json(&["drain", "extend", "10m", "--generation", "1"]);
    assert_eq!(extended["extended"], "10m");
    assert!(extended["drainers"][0]["left"].as_str().unwrap().starts_with("10m"), "{extended}");
    let run = service.run(&["--json", "drain", "finish", "--generation", "7"]);
    assert_eq!((run.code, &run.json()["error"]["code"]), (1, &json!("no-drain")));
    let finished = service.json(&["drain", "finish"]);
    assert_eq!(finished["finished"], true);
    service.left();
}

#[test]
fn completions_and_the_page_need_no_service() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = Run::of(Command::new(CTL).args(["completions", shell]).env_remove("HEIRLOOM_SOCKET"));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""));
        assert!(run.stdout.contains("handoff") && run.stdout.contains("upgrade"), "{shell}");
        assert!(
            !run.stdout.contains("exec-") && !run.stdout.contains("die-as-"),
            "what only ctl calls is shown to nobody"
        );
    }
    let run = Run::of(Command::new(CTL).arg("man").env_remove("HEIRLOOM_SOCKET"));
    assert_eq!(run.code, 0);
    for command in ["check", "handoff", "status", "upgrade", "wait", "stop", "completions", "man"] {
        assert!(run.stdout.contains(&format!(".SS \"ctl {command}\"")), "{command}");
    }
    let help = Run::of(Command::new(CTL).arg("--help").env_remove("HEIRLOOM_SOCKET"));
    for part in ["Exit codes:", "Examples:", "HEIRLOOM_SOCKET"] {
        assert!(help.code == 0 && help.stdout.contains(part), "{part}");
    }
}
