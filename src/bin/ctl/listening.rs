//! A program that gets listeners by socket activation: descriptors from 3 on, and `LISTEN_FDS`, `LISTEN_FDNAMES` and
//! `LISTEN_PID` (sd_listen_fds(3)).

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;

use command_fds::{CommandFdExt, FdMapping};
use heirloom::Lease;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::{FAILED, Failure};
use crate::reentry;

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// How a shell ends where a program could not be started.
const NOT_STARTED: u8 = 126;

/// Checks that a name can be passed: `LISTEN_FDNAMES` is a list with colons, and knows no escapes.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    if !name.contains(':') {
        return Ok(());
    }
    let message = format!("the name {name:?} cannot be passed in LISTEN_FDNAMES, whose names are separated by colons");
    Err(Failure::new(FAILED, "bad-name", message).hint("the old one still serves; rename that entry first"))
}

/// The program, with all that it gets, and each process of it that has not ended yet.
#[derive(Debug)]
pub(crate) struct Workload {
    command: Vec<OsString>,
    listeners: Vec<(String, Arc<OwnedFd>)>,
    /// The newest last. There is more than one only after a successor died while an older one was still finishing.
    running: Vec<Running>,
    /// How the newest ended.
    code: Option<u8>,
}

/// One process. It counts as in flight.
#[derive(Debug)]
struct Running {
    child: Child,
    /// It was asked to end because a successor serves.
    leaving: bool,
    _lease: Lease,
}

impl Workload {
    pub(crate) fn new(command: Vec<OsString>, listeners: Vec<(String, Arc<OwnedFd>)>) -> Workload {
        Workload { command, listeners, running: Vec::new(), code: None }
    }

    /// Starts the program, unless its newest process goes on anyway. Where that fails it counts as ended at once.
    pub(crate) fn start(&mut self, lease: Lease) -> io::Result<()> {
        if self.code.is_none() && self.running.last().is_some_and(|newest| !newest.leaving) {
            return Ok(());
        }
        match self.spawn() {
            Ok(child) => {
                self.code = None;
                self.running.push(Running { child, leaving: false, _lease: lease });
                Ok(())
            }
            Err(error) => {
                self.code = Some(NOT_STARTED);
                Err(error)
            }
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let names: Vec<&str> = self.listeners.iter().map(|(name, _)| name.as_str()).collect();
        // Duplicates, because a mapping wants to own. They also fill all gaps between the open descriptors, so the pipe
        // through which `spawn` hears of a failed exec lies above those that the child gets.
        let mappings: io::Result<Vec<FdMapping>> = (FIRST..)
            .zip(&self.listeners)
            .map(|(child_fd, (_, listener))| Ok(FdMapping { parent_fd: listener.try_clone()?, child_fd }))
            .collect();
        reentry::command(reentry::LISTENING, &self.command)
            .env("LISTEN_FDS", self.listeners.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            // What systemd set for this process is not for that one.
            .env_remove("LISTEN_PIDFDID")
            .fd_mappings(mappings?)
            .map_err(io::Error::other)?
            .spawn()
    }

    /// Passes a signal on to every process of the program.
    pub(crate) fn forward(&self, signal: Signal) {
        for running in &self.running {
            // Not reaped yet, so the number is its own.
            let _ = kill(Pid::from_raw(running.child.id() as i32), signal);
        }
    }

    /// Asks the program to finish: a successor serves.
    pub(crate) fn leave(&mut self) {
        for running in self.running.iter_mut().filter(|running| !running.leaving) {
            running.leaving = true;
            let _ = kill(Pid::from_raw(running.child.id() as i32), Signal::SIGTERM);
        }
    }

    /// Takes note of the processes that have ended.
    pub(crate) fn reap(&mut self) {
        let newest = self.running.len();
        let mut number = 0;
        let code = &mut self.code;
        self.running.retain_mut(|running| {
            number += 1;
            let Ok(Some(status)) = running.child.try_wait() else { return true };
            if number == newest {
                *code = Some(exit_code(status));
            }
            false
        });
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// How the newest process ended; `None` while it runs.
    pub(crate) fn ended(&self) -> Option<u8> {
        self.code
    }

    /// Ends what did not finish in time, and says how the newest process ended.
    pub(crate) fn finish(mut self) -> u8 {
        for mut running in self.running.drain(..) {
            let _ = running.child.kill();
            if let Ok(status) = running.child.wait() {
                self.code = Some(exit_code(status));
            }
        }
        self.code.unwrap_or(NOT_STARTED)
    }
}

/// As a shell tells it: the code, or 128 and the number of the signal.
fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.saturating_add(signal as u8),
        (None, None) => FAILED,
    }
}
