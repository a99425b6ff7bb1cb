//! `ctl` as the first process of a pid namespace, as in a container: the kernel treats that one unlike all others
//! (pid_namespaces(7)). It gets no signal for which it has no handler, and inherits every orphan.
//!
//! So it does nothing else: the command runs in a second process, under the rules that it was written for. The first one
//! passes signals on, reaps whoever ends, and ends with the command's code.

use std::ffi::OsString;
use std::iter;
use std::os::fd::AsFd;
use std::process::ExitCode;

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
    let child = reentry::command(reentry::UNBLOCKED, &again).spawn();
    let child = Pid::from_raw(child.map_err(|error| Failure::io("start the command", error))?.id() as i32);
    loop {
        while let Some(caught) = signals.next() {
            // The terminal has sent it to the child as well.
            if caught.signal != Signal::SIGCHLD && !caught.to_group {
                // Not reaped yet, so the number is its own.
                let _ = kill(child, caught.signal);
            }
        }
        if let Some(code) = reap(child) {
            return Ok(ExitCode::from(code));
        }
        follow::wait(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], None)?;
    }
}

/// Reaps all that have ended; the code, where the command itself is among them. A signal counts as a shell counts it.
fn reap(child: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as u8),
            Ok(WaitStatus::StillAlive) => return code,
            Ok(_) | Err(Errno::EINTR) => {}
            // No child at all is left, and this one would have been told of.
            Err(_) => return code.or(Some(FAILED)),
        }
    }
}
