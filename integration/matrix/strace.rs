//! strace, attached to the thread of a puppet that has the handoff.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fault::Fault;
use super::point::Point;
use crate::puppet::PATIENCE;

/// How often something is looked at that no event tells of.
const LOOK: Duration = Duration::from_millis(5);

/// strace at work.
pub(crate) struct Strace {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Strace {
    /// Injects a fault into one occurrence of a call of one thread, and shows what is sent with descriptors.
    pub(crate) fn inject(thread: u64, point: Point, fault: Fault) -> Result<Strace, String> {
        let Point { call, occurrence, .. } = point;
        let mut arguments = vec![
            "-e".to_owned(),
            format!("trace={},sendmsg", call.name),
            format!("--inject={}:{}:when={occurrence}", call.name, fault.expression()),
        ];
        if let Some(only) = call.only {
            arguments.extend(["-P".to_owned(), only.to_owned()]);
        }
        Strace::attach(thread, &arguments)
    }

    /// Shows every call of one thread, with what its descriptors lead to.
    pub(crate) fn watch(thread: u64) -> Result<Strace, String> {
        Strace::attach(thread, &["-y".to_owned()])
    }

    /// The other threads of the process go on unseen.
    fn attach(thread: u64, arguments: &[String]) -> Result<Strace, String> {
        let mut child = Command::new("strace")
            .args(arguments)
            .args(["-p", &thread.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let strace = Strace { child, lines, heard: Vec::new() };
        let first = strace.lines.recv_timeout(PATIENCE).unwrap_or_default();
        if first.contains(" attached") { Ok(strace) } else { Err(first) }
    }

    /// Waits until a line has this in it (`true`), or until something else is so (`false`).
    pub(crate) fn says_or(&mut self, what: &str, mut otherwise: impl FnMut() -> bool) -> bool {
        let mut seen = 0;
        let mut says = false;
        self.until(|heard| {
            says = heard[seen..].iter().any(|line| line.contains(what));
            seen = heard.len();
            says || otherwise()
        });
        says
    }

    /// Waits until something is so.
    pub(crate) fn until(&mut self, mut holds: impl FnMut(&[String]) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.heard) {
            assert!(Instant::now() < end, "it never came to that; the last call was {:?}", self.heard.last());
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Timeout) => {}
                // Its process is over, and so is strace; what the others make of that takes its time.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            }
        }
    }

    /// Lets go of the thread and gives what was seen.
    pub(crate) fn leave(mut self) -> Vec<String> {
        // SIGTERM, on which it detaches; a process that is gone is left already.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
        let mut heard = std::mem::take(&mut self.heard);
        heard.extend(self.lines.iter());
        heard
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
