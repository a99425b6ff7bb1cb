//! strace, attached to a puppet: it tells what the process does, and makes calls of it fail. The process knows nothing.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::puppet::{PATIENCE, skip};

/// How often something is looked at that no event tells of.
const LOOK: Duration = Duration::from_millis(5);

/// strace at work.
pub(crate) struct Strace {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Strace {
    /// Shows these calls of a process, with all of its threads and with what its descriptors lead to. `None`, said aloud,
    /// where there is no strace or where it may not attach.
    pub(crate) fn show(pid: u32, calls: &str) -> Option<Strace> {
        Strace::or_skip(pid, &["-f", "-y", "-s", "300", "-e", &format!("trace={calls}")])
    }

    /// Makes a call of a process fail, until this is dropped. `when` is strace's: `1` is the first, `1+` each.
    pub(crate) fn fail(pid: u32, call: &str, error: &str, when: &str) -> Option<Strace> {
        let expression = format!("--inject={call}:error={error}:when={when}");
        Strace::or_skip(pid, &["-f", "-e", &format!("trace={call}"), &expression])
    }

    /// Stops a process when it is back from its next call of that name, as SIGSTOP does.
    pub(crate) fn stop(pid: u32, call: &str) -> Option<Strace> {
        let expression = format!("--inject={call}:signal=SIGSTOP:when=1");
        Strace::or_skip(pid, &["-f", "-e", &format!("trace={call}"), &expression])
    }

    fn or_skip(pid: u32, arguments: &[&str]) -> Option<Strace> {
        Strace::attach(u64::from(pid), arguments).map_err(|why| skip(&format!("strace: {why}"))).ok()
    }

    /// Attaches to one thread; the others go on unseen, unless the arguments say so.
    pub(crate) fn attach(thread: u64, arguments: &[impl AsRef<OsStr>]) -> Result<Strace, String> {
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
