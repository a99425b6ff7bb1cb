//! A program that says whether a new version is as it should be: `ctl upgrade --check`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::reentry;
use crate::table::clean;
use crate::time;

/// The time from the begin of one run to that of the next.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one run may take.
const LONGEST: Duration = Duration::from_secs(10);
/// How much of what it says to stderr is looked at, in bytes, from its end.
const TAIL_BYTES: u64 = 4096;

/// The program, run again and again.
#[derive(Debug)]
pub(crate) struct Verdict {
    command: [OsString; 3],
    socket: OsString,
    running: Option<Run>,
    /// When the next run begins.
    next: Instant,
    /// What is not known by then comes too late to be acted on.
    ends: Option<Instant>,
    runs: u64,
}

/// One run.
#[derive(Debug)]
struct Run {
    child: Child,
    stderr: File,
    began: Instant,
    until: Instant,
}

impl Verdict {
    /// `command` is for the shell.
    pub(crate) fn new(command: &OsStr, socket: &Path, ends: Option<Instant>) -> Verdict {
        let command = ["/bin/sh".into(), "-c".into(), command.to_owned()];
        Verdict { command, socket: socket.into(), running: None, next: Instant::now(), ends, runs: 0 }
    }

    /// How many runs have ended well.
    pub(crate) fn runs(&self) -> u64 {
        self.runs
    }

    /// When there is something to do, if nothing happens before. The end of a run is `SIGCHLD`.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.running {
            Some(run) => Some(run.until),
            None => Some(self.next).filter(|next| self.ends.is_none_or(|ends| *next < ends)),
        }
    }

    /// Does what is due. `Some`: why the new version is not as it should be.
    pub(crate) fn turn(&mut self) -> Option<String> {
        let now = Instant::now();
        let due = self.due();
        let Some(run) = &mut self.running else {
            if due.is_none_or(|due| now < due) {
                return None;
            }
            self.next = now + PERIOD;
            let until = now + LONGEST;
            return match self.start(now, self.ends.map_or(until, |ends| until.min(ends))) {
                Ok(run) => {
                    self.running = Some(run);
                    None
                }
                Err(error) => Some(format!("the check cannot be run: {error}")),
            };
        };
        let failed = match run.child.try_wait() {
            Ok(None) if now < run.until => return None,
            // Cut short by the end of the probation: those before it tell.
            Ok(None) if self.runs > 0 && now < run.began + LONGEST => {
                self.next = now;
                self.end();
                return None;
            }
            Ok(None) => Some(format!("the check does not end within {}", time::duration(run.until - run.began))),
            Ok(Some(status)) if status.success() => None,
            Ok(Some(status)) => Some(match status.code() {
                Some(code) => format!("the check ended with code {code}"),
                None => format!("the check was ended: {status}"),
            }),
            Err(error) => Some(format!("the check cannot be waited for: {error}")),
        };
        let said = failed.is_some().then(|| run.last_line()).flatten();
        self.end();
        match failed {
            None => {
                self.runs += 1;
                None
            }
            Some(failed) => Some(said.map_or(failed.clone(), |said| format!("{failed}: {said}"))),
        }
    }

    fn start(&self, began: Instant, until: Instant) -> io::Result<Run> {
        // Not a pipe, which somebody would have to read, and which a child that lingers keeps open.
        let stderr = File::from(memfd_create("check", MFdFlags::MFD_CLOEXEC)?);
        let child = reentry::command(reentry::IN_SESSION, &self.command)
            .env("HEIRLOOM_SOCKET", &self.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone()?)
            .spawn()?;
        Ok(Run { child, stderr, began, until })
    }

    /// Ends the run of the moment, with all that it has started.
    fn end(&mut self) {
        if let Some(mut run) = self.running.take() {
            // It has no group of its own before it is in its session; after its end what is left of it has.
            let _ = killpg(Pid::from_raw(run.child.id() as i32), Signal::SIGKILL);
            let _ = run.child.kill();
            let _ = run.child.wait();
        }
    }
}

impl Run {
    fn last_line(&mut self) -> Option<String> {
        let length = self.stderr.metadata().ok()?.len();
        self.stderr.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
        let mut bytes = Vec::new();
        (&self.stderr).take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        text.lines().rev().map(clean).find(|line| !line.trim().is_empty())
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        self.end();
    }
}
