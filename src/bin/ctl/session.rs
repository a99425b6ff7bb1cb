//! A program that was started in a session of its own, beside `ctl` and to outlive it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getsid};

use crate::failure::Failure;
use crate::follow;
use crate::output::Output;
use crate::reentry;
use crate::signals::Signals;

/// The session: its leader is the program itself, under the pid that it was started with.
#[derive(Debug)]
pub(crate) struct Session {
    leader: Child,
    /// How the leader ended.
    ended: Option<Ended>,
    /// Nothing of it is left.
    empty: bool,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    /// By a signal, perhaps one in real time, which has a number and no name.
    By(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Ended {
        match (status.code(), status.signal()) {
            (None, Some(signal)) => Ended::By(signal),
            (code, _) => Ended::Code(code.unwrap_or_default()),
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Code(code) => write!(f, "ended with code {code}"),
            Ended::By(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
        }
    }
}

impl Session {
    /// Starts the program, with the null device as its input.
    pub(crate) fn start(command: &[OsString], socket: &Path, output: &Output) -> Result<Session, Failure> {
        // Whatever the program starts and leaves behind becomes a child of this process: so its end is an event, and
        // the number of the group is nobody else's as long as something of it lives.
        nix::sys::prctl::set_child_subreaper(true).map_err(|errno| Failure::io("become a subreaper", errno))?;
        let failed = |error| Failure::io("start the program", error);
        let leader = reentry::command(reentry::IN_SESSION, command)
            .env("HEIRLOOM_SOCKET", socket)
            .stdin(Stdio::null())
            .stdout(output.stdio().map_err(failed)?)
            .stderr(output.stdio().map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        Ok(Session { leader, ended: None, empty: false })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.leader.id() as i32
    }

    /// The leader leads a session and a group, which have its number.
    fn id(&self) -> Pid {
        Pid::from_raw(self.pid())
    }

    /// Whether this process is the program, or was started by it and stayed in its session.
    pub(crate) fn has(&self, pid: i32) -> bool {
        // 0 would ask for this process's own session.
        pid > 0 && (pid == self.pid() || getsid(Some(Pid::from_raw(pid))) == Ok(self.id()))
    }

    /// How the program ended, if it has. To be called after each `SIGCHLD`, which may stand for several.
    pub(crate) fn reap(&mut self) -> Option<Ended> {
        // Before setsid(2) the program is in the group of this process, so it is asked for by its number.
        if self.ended.is_none() {
            match self.leader.try_wait() {
                Ok(Some(status)) => self.ended = Some(status.into()),
                Ok(None) => return None,
                Err(_) => self.empty = true,
            }
        }
        while !self.empty {
            match waitpid(Pid::from_raw(-self.pid()), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Err(Errno::ECHILD) => self.empty = true,
                // EINVAL, too: somebody was reaped, killed by a real-time signal, of which nix knows none.
                Ok(_) | Err(_) => {}
            }
        }
        self.ended
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
            let _ = nix::sys::signal::kill(self.id(), signal);
        }
        let _ = killpg(self.id(), signal);
    }
}
