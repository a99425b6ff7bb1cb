//! `ctl` as the first process of a pid namespace, as in a container: the kernel treats that one unlike all others
//! (pid_namespaces(7)). It gets no signal for which it has no handler, and inherits every orphan.
//!
//! So it does nothing else: the command runs in a second process, under the rules that it was written for. The first one
//! passes signals on, reaps whoever ends, and ends with the command's code.

use std::ffi::OsString;
use std::iter;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::args::Command;
use crate::failure::{FAILED, Failure};
use crate::follow;
use crate::reentry;
use crate::signals::Signals;

/// Whether this is the first process of its pid namespace.
pub(crate) fn is_first() -> bool {
    std::process::id() == 1
}

/// Runs this same command line as a child, and stands by until it has ended.
pub(crate) fn run(arguments: &[OsString], command: &Command) -> Result<ExitCode, Failure> {
    if matches!(command, Command::Upgrade(_)) {
        let message = "this is the first process of a pid namespace: what it started would be killed with it";
        return Err(Failure::new(FAILED, "first-process", message)
            .hint("let the container run the new version itself, or give it to ctl handoff --commit -- CMD"));
    }
    let signals = Signals::take()?;
    let again: Vec<OsString> = iter::once(reentry::SELF.into()).chain(arguments.iter().skip(1).cloned()).collect();
    let started = reentry::command(reentry::UNBLOCKED, &again).spawn();
    let mut child = started.map_err(|error| Failure::io("start the command", error))?;
    loop {
        while let Some(caught) = signals.next() {
            // The terminal has sent it to the child as well.
            if caught.signal != Signal::SIGCHLD && !caught.to_group {
                // Not reaped yet, so the number is its own.
                let _ = kill(pid_of(&child), caught.signal);
            }
        }
        if let Some(code) = reap(&mut child) {
            return Ok(ExitCode::from(code));
        }
        follow::wait(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], None)?;
    }
}

/// Reaps all that have ended; the code, where the command itself is among them.
fn reap(child: &mut Child) -> Option<u8> {
    let mut code = None;
    loop {
        // By itself, and first: who is reaped below may have been killed by a signal that has no name there.
        code = code.or_else(|| match child.try_wait() {
            Ok(ended) => ended.map(code_of),
            Err(_) => Some(FAILED),
        });
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == pid_of(child) => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == pid_of(child) => code = Some(128 + signal as u8),
            Ok(WaitStatus::StillAlive) => return code,
            // No child at all is left, and this one would have been told of.
            Err(Errno::ECHILD) => return code.or(Some(FAILED)),
            // EINVAL, too: somebody was reaped, killed by a real-time signal, of which nix knows none.
            Ok(_) | Err(_) => {}
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// A signal counts as a shell counts it.
fn code_of(ended: ExitStatus) -> u8 {
    let code = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}
