//! The last step before a program that `ctl` starts: what must be done inside the new process, and needs no `unsafe`
//! code in a process that is not a fork of anything any more.
//!
//! `ctl` starts itself with one of the words below as its first argument, does that one thing, and becomes the program;
//! or dies as it was told to, where a check needs a process that does. They are no commands for people, so they are not in
//! the table of `args`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::check;
use crate::failure::Failure;
use crate::signals;

/// A session of its own: no terminal, a group that can be ended as one, and no files of somebody else.
pub(crate) const IN_SESSION: &str = "exec-session";
/// `LISTEN_PID`, which only the process itself knows before its program runs. The other variables are set already.
pub(crate) const LISTENING: &str = "exec-listening";

/// Nothing beside the signals that the starting process holds back: for this same program again.
pub(crate) const UNBLOCKED: &str = "exec-unblocked";
/// A successor that goes to a given step and dies there. It becomes no program.
pub(crate) const SUCCESSOR: &str = "die-as-successor";

/// How a shell ends where it cannot run a program.
const CANNOT_RUN: u8 = 127;

/// Leads to the running file even where an upgrade has replaced or removed what is at its path.
pub(crate) const SELF: &str = "/proc/self/exe";

/// This program, to be started as `word`, then to become `program`.
pub(crate) fn command(word: &str, program: &[OsString]) -> Command {
    let mut command = Command::new(SELF);
    command.arg0("ctl").arg(word).arg("--").args(program);
    command
}

/// Does what the first argument says, if it is one of those words; comes back only where that fails, or is none.
pub(crate) fn enter(arguments: &[OsString]) -> Option<Failure> {
    let word = arguments.get(1)?;
    if word == SUCCESSOR {
        return Some(check::perish(arguments.get(3..).unwrap_or_default()));
    }
    let prepare: fn(&mut Command) -> io::Result<()> = if word == IN_SESSION {
        enter_session
    } else if word == LISTENING {
        tell_own_pid
    } else if word == UNBLOCKED {
        |_| Ok(())
    } else {
        return None;
    };
    let Some((program, rest)) = arguments.get(3..).and_then(<[OsString]>::split_first) else {
        return Some(Failure::usage("a program is missing"));
    };
    let mut command = Command::new(program);
    command.args(rest);
    let prepared = signals::give_back().and_then(|()| prepare(&mut command));
    Some(cannot_run(program, prepared.err().unwrap_or_else(|| command.exec())))
}

fn enter_session(_: &mut Command) -> io::Result<()> {
    close_all()?;
    nix::unistd::setsid()?;
    Ok(())
}

fn tell_own_pid(command: &mut Command) -> io::Result<()> {
    command.env("LISTEN_PID", std::process::id().to_string());
    Ok(())
}

/// Closes whatever was inherited beside input, output and error: a lock or a connection of the script that called `ctl`
/// must not live as long as the service.
fn close_all() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // That of the folder itself is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

fn cannot_run(program: &OsStr, error: io::Error) -> Failure {
    Failure::new(CANNOT_RUN, "no-program", format!("cannot run {}: {error}", program.display()))
}
