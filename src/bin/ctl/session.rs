//! A program that was started in a session of its own, beside `ctl` and to outlive it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getsid};

use crate::failure::Failure;
use crate::follow;
use crate::reentry;
use crate::signals::Signals;

/// How much of the end of a log is looked at, in bytes.
const TAIL_BYTES: u64 = 64 * 1024;
/// How much of it is shown, in lines.
const TAIL_LINES: usize = 20;

/// The session: its leader is the program itself, under the pid that it was started with.
#[derive(Debug)]
pub(crate) struct Session {
    leader: Pid,
    /// How the leader ended.
    ended: Option<Ended>,
    /// Nothing of it is left.
    empty: bool,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    By(Signal),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Code(code) => write!(f, "ended with code {code}"),
            Ended::By(signal) => write!(f, "was ended by {signal}"),
        }
    }
}

impl Session {
    /// Starts the program, with the null device as its input and the log as its output.
    pub(crate) fn start(command: &[OsString], socket: &Path, log: &Log) -> Result<Session, Failure> {
        // Whatever the program starts and leaves behind becomes a child of this process: so its end is an event, and
        // the number of the group is nobody else's as long as something of it lives.
        nix::sys::prctl::set_child_subreaper(true).map_err(|errno| Failure::io("become a subreaper", errno))?;
        let failed = |error| Failure::io("start the program", error);
        let child = reentry::command(reentry::IN_SESSION, command)
            .env("HEIRLOOM_SOCKET", socket)
            .stdin(Stdio::null())
            .stdout(log.file.try_clone().map_err(failed)?)
            .stderr(log.file.try_clone().map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        Ok(Session { leader: Pid::from_raw(child.id() as i32), ended: None, empty: false })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.leader.as_raw()
    }

    /// Whether this process is the program, or was started by it and stayed in its session.
    pub(crate) fn has(&self, pid: i32) -> bool {
        // 0 would ask for this process's own session.
        pid > 0 && (pid == self.leader.as_raw() || getsid(Some(Pid::from_raw(pid))) == Ok(self.leader))
    }

    /// How the program ended, if it has. To be called after each `SIGCHLD`, which may stand for several.
    pub(crate) fn reap(&mut self) -> Option<Ended> {
        loop {
            // Before setsid(2) the program is in the group of this process, so it is asked for by its number.
            let leader = self.ended.is_none();
            let whom = if leader { self.leader } else { Pid::from_raw(-self.leader.as_raw()) };
            let ended = match waitpid(whom, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Ended::Code(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => Ended::By(signal),
                Err(Errno::EINTR) => continue,
                Ok(_) => return self.ended,
                Err(_) => {
                    self.empty = true;
                    return self.ended;
                }
            };
            if leader {
                self.ended = Some(ended);
            }
        }
    }

    /// Ends all of it: asks first, and after the grace insists. A further signal to this process insists at once.
    pub(crate) fn end(&mut self, signals: &Signals, grace: Duration) -> Result<(), Failure> {
        self.reap();
        self.send(Signal::SIGTERM);
        let mut until = Some(Instant::now() + grace);
        loop {
            self.reap();
            if self.empty {
                return Ok(());
            }
            let mut insist = until.is_some_and(|until| Instant::now() >= until);
            while let Some(caught) = signals.next() {
                insist |= caught.signal != Signal::SIGCHLD;
            }
            if insist && until.take().is_some() {
                self.send(Signal::SIGKILL);
            }
            follow::wait_for(signals, until)?;
        }
    }

    fn send(&self, signal: Signal) {
        if self.empty {
            return; // The number may be anybody's.
        }
        if self.ended.is_none() {
            // It may not lead its group yet.
            let _ = nix::sys::signal::kill(self.leader, signal);
        }
        let _ = killpg(self.leader, signal);
    }
}

/// The file that gets the output of a program.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    /// Where this run begins.
    start: u64,
}

impl Log {
    /// Opens it to append, made for this user alone where it is new: nobody knows what a program tells.
    pub(crate) fn open(path: &Path) -> Result<Log, Failure> {
        let opened = || -> io::Result<Log> {
            let path = std::path::absolute(path)?;
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            let start = file.metadata()?.len();
            Ok(Log { path, file, start })
        };
        opened().map_err(|error| Failure::io(format!("open the log {}", path.display()), error))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The last lines since this run began.
    pub(crate) fn tail(&self) -> Vec<String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.start.max(length.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        // A log that cannot be read, such as a pipe, is not shown.
        let text = read().unwrap_or_default();
        let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}
