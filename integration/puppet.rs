//! A server in a process of its own, which a test drives step by step.
//!
//! The test binary runs itself again as [`entry`]. Commands go in as JSON, one a line; each gets one answer, and what
//! happens in between comes as events. [`crate::actor`] is the other side. A puppet ends when its stdin closes, and is
//! killed and reaped when its handle is dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{actor, broken, cost};

/// No step of a test takes as long, on any machine; it only ends those that would never end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The variable that makes a puppet of the test binary.
pub(crate) const ROLE: &str = "HEIRLOOM_PUPPET";

/// What makes the test binary run nothing but [`entry`].
pub(crate) const ENTRY: [&str; 4] = ["--exact", "puppet::entry", "--nocapture", "--test-threads=1"];

/// Makes the command after it the first process of a pid namespace, as in a container; only root may.
pub(crate) const PID_NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"];

/// No test: the process behind a [`Puppet`].
#[test]
fn entry() {
    match std::env::var(ROLE).as_deref() {
        Ok("child") => actor::tell_descriptors(),
        Ok(broken::ROLE) => broken::run(),
        Ok(broken::CHECK) => broken::check(),
        Ok(cost::COUNTED) => cost::run(),
        Ok(_) => actor::run(),
        Err(_) => {}
    }
}

/// How a puppet is started: this binary, as [`entry`].
pub(crate) fn command(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(ENTRY).env(ROLE, role);
    command
}

/// The handle of a puppet.
pub(crate) struct Puppet {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    events: VecDeque<Value>,
    answers: VecDeque<Value>,
    log: Arc<Mutex<String>>,
    reaped: Option<ExitStatus>,
}

impl Puppet {
    pub(crate) fn new() -> Puppet {
        Puppet::with(|_| {}).unwrap()
    }

    /// One that runs as another user; `None`, said aloud, where this process may not do that.
    pub(crate) fn of_user(uid: u32) -> Option<Puppet> {
        use std::os::unix::process::CommandExt;
        let puppet = Puppet::with(|command| {
            command.uid(uid).gid(uid).current_dir("/");
        });
        match puppet {
            Ok(puppet) => Some(puppet),
            Err(error) => {
                skip(&format!("cannot start a process as uid {uid}: {error}"));
                None
            }
        }
    }

    pub(crate) fn with(configure: impl FnOnce(&mut Command)) -> std::io::Result<Puppet> {
        let mut command = command("server");
        configure(&mut command);
        Puppet::spawn(command)
    }

    /// One that another program, such as unshare(1), starts by executing it; `None`, said aloud, where that program is
    /// missing or may not do what it is to do.
    pub(crate) fn through(wrapper: &[&str]) -> Option<Puppet> {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(std::env::current_exe().unwrap());
        command.args(ENTRY).env(ROLE, "server").current_dir("/");
        let mut puppet = match Puppet::spawn(command) {
            Ok(puppet) => puppet,
            Err(error) => {
                skip(&format!("{}: {error}", wrapper[0]));
                return None;
            }
        };
        if puppet.survives() {
            return Some(puppet);
        }
        skip(&format!("{wrapper:?}: {}", puppet.log.lock().unwrap().trim()));
        None
    }

    fn spawn(mut command: Command) -> std::io::Result<Puppet> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test harness writes here, too.
                if let Some(line) = line.strip_prefix(actor::MARK) {
                    let _ = sender.send(serde_json::from_str(line).unwrap());
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let (mut stderr, sink) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let stdin = child.stdin.take();
        Ok(Puppet { child, stdin, lines, events: VecDeque::new(), answers: VecDeque::new(), log, reaped: None })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command without waiting for its answer; a dead puppet hears nothing.
    pub(crate) fn tell(&mut self, command: &Value) {
        if let Some(stdin) = &mut self.stdin {
            let _ = writeln!(stdin, "{command}");
        }
    }

    /// Sends a command and gives its answer, whatever it is.
    pub(crate) fn try_ask(&mut self, command: Value) -> Value {
        self.tell(&command);
        self.answer()
    }

    /// Sends a command that must succeed.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: Value) -> Value {
        let answer = self.try_ask(command.clone());
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    /// Sends a command that must fail, and gives the error.
    #[track_caller]
    pub(crate) fn refuse(&mut self, command: Value) -> Value {
        let answer = self.try_ask(command.clone());
        assert!(answer.get("error").is_some(), "{command}: {answer}");
        answer["error"].clone()
    }

    /// The next answer.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return answer;
            }
            assert!(self.hear(end), "the puppet did not answer");
        }
    }

    /// The next event of that name; others wait for their turn.
    #[track_caller]
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return self.events.remove(at).unwrap();
            }
            if let Some(failed) = self.events.iter().find(|event| event["event"] == "failed") {
                panic!("waited for {name:?}: {failed}");
            }
            assert!(self.hear(end), "the puppet never said {name:?}; it said {:?}", self.events);
        }
    }

    /// The next event that has one of these names.
    #[track_caller]
    pub(crate) fn first_of(&mut self, names: &[&str]) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.events.iter().position(|event| names.iter().any(|name| event["event"] == *name)) {
                return self.events.remove(at).unwrap();
            }
            assert!(self.hear(end), "the puppet said none of {names:?}; it said {:?}", self.events);
        }
    }

    /// The error with which an attempt ended.
    #[track_caller]
    pub(crate) fn failure(&mut self) -> Value {
        self.first_of(&["failed"])
    }

    /// What happened so far that nobody asked for; everything, where the puppet has ended.
    pub(crate) fn events(&mut self) -> Vec<Value> {
        if self.reaped.is_none() {
            self.sync();
        }
        while let Ok(line) = self.lines.try_recv() {
            self.sort(line);
        }
        self.events.drain(..).collect()
    }

    /// Whether nothing is heard of this puppet for so long, without a question.
    pub(crate) fn is_silent_for(&mut self, duration: Duration) -> bool {
        matches!(self.lines.recv_timeout(duration), Err(RecvTimeoutError::Timeout))
    }

    /// Waits until everything that was sent so far has been acted on.
    fn sync(&mut self) {
        self.ask(json!({"do": "nothing"}));
    }

    /// Takes one line in; `false` where none comes any more.
    fn hear(&mut self, end: Instant) -> bool {
        match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => self.sort(line),
            Err(_) => return false,
        }
        true
    }

    fn sort(&mut self, line: Value) {
        if line.get("event").is_some() { self.events.push_back(line) } else { self.answers.push_back(line) }
    }

    /// kill -9, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if self.reaped.is_none() {
            let _ = self.child.kill();
            self.reaped = self.child.wait().ok();
        }
    }

    /// Sends a command and gives its answer; `None` where the process has ended.
    pub(crate) fn ask_if_alive(&mut self, command: Value) -> Option<Value> {
        self.tell(&command);
        self.answer_if_alive()
    }

    /// The next answer; `None` where the process has ended.
    pub(crate) fn answer_if_alive(&mut self) -> Option<Value> {
        let end = Instant::now() + PATIENCE;
        while self.answers.is_empty() {
            if !self.hear(end) {
                assert!(Instant::now() < end, "the puppet did not answer; it said {:?}", self.events);
                return None;
            }
        }
        self.answers.pop_front()
    }

    /// The first answer that nobody has waited for, where there is one.
    pub(crate) fn heard(&mut self) -> Option<Value> {
        while let Ok(line) = self.lines.try_recv() {
            self.sort(line);
        }
        self.answers.pop_front()
    }

    /// Whether its last word is said: the process is at its end.
    pub(crate) fn is_over(&mut self) -> bool {
        loop {
            match self.lines.try_recv() {
                Ok(line) => self.sort(line),
                Err(nothing) => return nothing == TryRecvError::Disconnected,
            }
        }
    }

    /// What it has written to stderr.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The first line with these words that it has written to stderr; waits for it, since that is another pipe than its
    /// events come by.
    #[track_caller]
    pub(crate) fn logged(&self, words: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(words)) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "the puppet never wrote {words:?}: {}", self.log());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// How the process ended, as it was seen after its last word; waits for that.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let status = self.reaped.unwrap_or_else(|| self.child.wait().unwrap());
        self.reaped = Some(status);
        status
    }

    /// Whether it is alive and has acted on everything that it was told.
    pub(crate) fn survives(&mut self) -> bool {
        self.tell(&json!({"do": "nothing"}));
        let end = Instant::now() + PATIENCE;
        while self.answers.is_empty() {
            if !self.hear(end) {
                return false;
            }
        }
        self.answers.pop_front().is_some()
    }

    /// Whether it has said this; the event stays.
    pub(crate) fn has_said(&mut self, event: &str) -> bool {
        while let Ok(line) = self.lines.try_recv() {
            self.sort(line);
        }
        self.events.iter().any(|said| said["event"] == event)
    }

    /// SIGSTOP, and waits until it has stopped.
    pub(crate) fn freeze(&mut self) {
        let pid = Pid::from_raw(self.pid() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self) {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGCONT).unwrap();
    }

    /// Waits for the end of the process; what it said meanwhile is kept.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while self.hear(end) {}
        assert!(Instant::now() < end, "the puppet did not end; it said {:?}", self.events);
        let status = match self.reaped {
            Some(status) => status,
            None => self.child.wait().unwrap(),
        };
        self.reaped = Some(status);
        assert_eq!(status.signal(), None);
        status.code()
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.stdin = None;
        self.kill();
        if thread::panicking() {
            eprintln!("--- puppet {}, still unheard: {:?}", self.pid(), self.events);
            eprintln!("{}---", self.log.lock().unwrap());
        }
    }
}

/// What a test does with a service: a folder of its own, and puppets that serve in it.
pub(crate) struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        Scene { folder: tempfile::Builder::new().prefix("heirloom-").tempdir().unwrap() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.path("handoff.sock")
    }

    /// The command that begins a start here: one TCP listener, named `web`, and ready at once. `more` goes on top.
    pub(crate) fn begin(&self, version: &str, more: Value) -> Value {
        let mut command = json!({
            "do": "begin",
            "path": self.control(),
            "version": version,
            "claims": [{"kind": "tcp", "name": "web", "address": "127.0.0.1:0"}],
            "ready": true,
        });
        merge(&mut command, more);
        command
    }

    /// A puppet that serves `web`, and its address.
    #[track_caller]
    pub(crate) fn serve(&self, version: &str, more: Value) -> (Puppet, String) {
        let mut puppet = Puppet::new();
        puppet.ask(self.begin(version, more));
        let serving = puppet.event("serving");
        let address = serving["addresses"]["web"].as_str().unwrap_or_default().to_owned();
        (puppet, address)
    }

    /// A puppet that has what the owner had, and warms up.
    #[track_caller]
    pub(crate) fn warm(&self, version: &str, more: Value) -> Puppet {
        let mut puppet = Puppet::new();
        let mut command = self.begin(version, json!({"ready": false}));
        merge(&mut command, more);
        puppet.ask(command);
        puppet.event("started");
        puppet
    }

    pub(crate) fn client(&self) -> heirloom::Client {
        heirloom::Client::connect(self.control(), PATIENCE).unwrap()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> heirloom::Status {
        self.client().status().unwrap()
    }

    /// Waits until the owner's status is as wanted, told by each change.
    #[track_caller]
    pub(crate) fn status_where(&self, wanted: impl Fn(&heirloom::Status) -> bool) -> heirloom::Status {
        let mut client = self.client();
        client.watch().unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            let status = client.next(Some(end.saturating_duration_since(Instant::now()))).unwrap().unwrap();
            if wanted(&status) {
                return status;
            }
        }
    }
}

pub(crate) fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// Says aloud that a test, or a part of it, could not run here; also in the file that `SKIPPED_PARTS` names, for whoever
/// runs all of it and sums up.
pub(crate) fn skip(why: &str) {
    // Past the harness, which keeps to itself what a test that passes has printed.
    let line = format!("skipped in {}: {why}\n", thread::current().name().unwrap_or("a test"));
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("SKIPPED_PARTS") {
        let sum = std::fs::OpenOptions::new().append(true).open(path);
        let _ = sum.and_then(|mut sum| sum.write_all(line.trim_start_matches("skipped in ").as_bytes()));
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
