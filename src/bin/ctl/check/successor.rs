//! A successor that never owns: it goes the way of one to a given step. Its three ways to leave are not its own.
//!
//! Where it is to die it is a process of its own, this program started again: only so do its descriptors go as those of a
//! dead successor go. It never locks anything, never accepts, and never says that it owns.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use heirloom::Error;
use heirloom::probe::{Heard, Hello, Peer, Say};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use super::cases::{CASES, Deed};
use crate::failure::{FAILED, Failure};
use crate::reentry;

/// How long the owner may take for its next word: as long as it waits itself, and some more.
pub(crate) const ANSWER: Duration = Duration::from_secs(7);
/// How much longer than its application may take to let go an owner may take to say so.
const RELEASE_GRACE: Duration = Duration::from_secs(5);

/// The code with which it aborts.
pub(crate) const CANCELLED: &str = "cancelled";

/// How far a successor is, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Connected,
    /// The first word is said, nothing is read.
    Hello,
    Offer,
    Manifest,
    Room,
    /// The first descriptors have come.
    Descriptors,
    /// All have come and are acknowledged: it warms up.
    Ack,
    Progress,
    /// The application may have been told to let go.
    Ready,
    /// Nobody holds the owner lock.
    Released,
}

/// How it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    Die,
    Close,
    Abort,
}

/// Where it came to.
#[derive(Debug)]
pub(crate) enum Way {
    /// To the step.
    There,
    /// The owner said this instead.
    Instead(Heard),
}

/// One on its way.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) peer: Peer,
    /// How many descriptors were offered.
    pub(crate) offered: u32,
    release: Duration,
    /// The first descriptors, where they are kept: the others are closed as they come.
    hand: Option<Vec<OwnedFd>>,
}

impl Successor {
    /// One that closes at once whatever it receives.
    pub(crate) fn new(peer: Peer) -> Successor {
        Successor { peer, offered: 0, release: Duration::ZERO, hand: None }
    }

    /// Goes on until the step is reached. `wait` waits for the peer, for so long at most.
    pub(crate) fn go<E: From<Error>>(
        &mut self,
        hello: &Hello,
        to: Step,
        mut wait: impl FnMut(&Peer, Duration) -> Result<(), E>,
    ) -> Result<Way, E> {
        if to >= Step::Hello {
            self.say(Say::Hello(hello.clone()))?;
        }
        let (mut entries, mut listed, mut received) = (0, 0, 0);
        if to >= Step::Offer {
            match self.next(ANSWER, &mut wait)? {
                Heard::Offer { entries: all, descriptors, release } => {
                    (entries, self.offered, self.release) = (all, descriptors, release);
                }
                other => return Ok(Way::Instead(other)),
            }
        }
        while to >= Step::Manifest && listed < entries {
            match self.next(ANSWER, &mut wait)? {
                Heard::Entries(part) => listed += part,
                other => return Ok(Way::Instead(other)),
            }
        }
        if to >= Step::Room {
            self.say(Say::Room(self.offered))?;
        }
        while to >= Step::Descriptors && received < self.offered {
            match self.next(ANSWER, &mut wait)? {
                Heard::Descriptors(descriptors) => {
                    received += u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
                    if let Some(hand) = self.hand.as_mut().filter(|hand| hand.is_empty()) {
                        *hand = descriptors;
                    }
                }
                other => return Ok(Way::Instead(other)),
            }
            if to == Step::Descriptors {
                return Ok(Way::There);
            }
            self.say(Say::Ack(received))?;
        }
        if to >= Step::Progress {
            self.say(Say::Progress("a check, which will not own".to_owned()))?;
        }
        if to >= Step::Ready {
            self.say(Say::Ready)?;
        }
        if to >= Step::Released {
            match self.next(self.release + RELEASE_GRACE, &mut wait)? {
                Heard::Released => {}
                other => return Ok(Way::Instead(other)),
            }
        }
        Ok(Way::There)
    }

    /// What the owner had to say before it hung up tells more than that it did.
    fn say<E: From<Error>>(&mut self, say: Say) -> Result<(), E> {
        match self.peer.say(&say) {
            Ok(()) | Err(Error::HungUp) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next<E: From<Error>>(
        &mut self,
        within: Duration,
        wait: &mut impl FnMut(&Peer, Duration) -> Result<(), E>,
    ) -> Result<Heard, E> {
        let end = Instant::now() + within;
        loop {
            if let Some(heard) = self.peer.hear()? {
                return Ok(heard);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Deadline { waiting_for: "the owner's next word", after: within }.into());
            }
            wait(&self.peer, left)?;
        }
    }
}

/// What was heard, for a person.
pub(crate) fn told(heard: &Heard) -> String {
    match heard {
        Heard::Refused(why) => format!("refused: {why}"),
        Heard::Aborted(why) => format!("called off: {why}"),
        Heard::End => "hung up without a word".to_owned(),
        Heard::Offer { .. } => "offered a takeover".to_owned(),
        Heard::Released => "gave the owner lock back".to_owned(),
        Heard::Other(word) => format!("said {word:?}"),
        other => format!("said {other:?}"),
    }
}

/// The first line of the process below.
const CONNECTED: &str = "connected";

/// A successor in a process of its own, which kills itself at its step. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Mortal {
    child: Child,
    pub(crate) output: ChildStderr,
    said: String,
    /// When it connected.
    pub(crate) connected: Option<Instant>,
}

impl Mortal {
    /// Starts it for the case of that name.
    pub(crate) fn start(socket: &Path, name: &str, case: &str) -> Result<Mortal, Failure> {
        let failed = |error| Failure::io("start a successor", error);
        let mut child = reentry::command(reentry::SUCCESSOR, &[socket.into(), name.into(), case.into()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        match child.stderr.take() {
            Some(output) => Ok(Mortal { child, output, said: String::new(), connected: None }),
            None => Err(failed(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Reads on in its output, where something or the end has come; `true` at the end: it is dead, or about to be.
    pub(crate) fn listen(&mut self) -> Result<bool, Failure> {
        let mut buffer = [0; 1024];
        let count = self.output.read(&mut buffer).map_err(|error| Failure::io("hear the successor", error))?;
        self.said.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if self.connected.is_none() && self.said.starts_with(CONNECTED) {
            self.connected = Some(Instant::now());
        }
        Ok(count == 0)
    }

    /// How it ended: `None` by its own hand at its step, else what it had to say.
    pub(crate) fn reap(&mut self) -> Result<Option<String>, Failure> {
        let status = self.child.wait().map_err(|error| Failure::io("reap the successor", error))?;
        if status.signal() == Some(Signal::SIGKILL as i32) {
            return Ok(None);
        }
        let last = self.said.lines().last().and_then(|line| line.strip_prefix("ctl: "));
        Ok(Some(last.map_or_else(|| status.to_string(), str::to_owned)))
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        // No more than an error where it is reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself: comes back only where it did not get to its step.
pub(crate) fn perish(arguments: &[OsString]) -> Failure {
    // Should whoever started this be killed, then this, too.
    if let Err(errno) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return Failure::io("follow its parent", errno);
    }
    match go_and_die(arguments) {
        Ok(instead) => Failure::new(FAILED, "astray", told(&instead)),
        Err(failure) => failure,
    }
}

/// What the owner said instead.
fn go_and_die(arguments: &[OsString]) -> Result<Heard, Failure> {
    let [socket, name, case] = arguments else { return Err(Failure::usage("a socket, a name and a case are missing")) };
    let step = CASES.iter().find(|known| case == known.name).and_then(|case| match case.deed {
        Deed::Leave(step, Leaving::Die) => Some(step),
        _ => None,
    });
    let step = step.ok_or_else(|| Failure::usage("no such case"))?;
    let hello = Hello::new(&name.to_string_lossy())?;
    let peer = Peer::connect(Path::new(socket), ANSWER)?;
    let mut successor = Successor { hand: Some(Vec::new()), ..Successor::new(peer) };
    // One write, so that it is read as one.
    std::io::stderr().write_all(format!("{CONNECTED}\n").as_bytes())?;
    match successor.go(&hello, step, |peer, within| peer.listen(within).map_err(Failure::from))? {
        Way::Instead(heard) => Ok(heard),
        // In the middle of it, with all that it holds.
        Way::There => match kill(getpid(), Signal::SIGKILL) {
            Ok(()) => Err(Failure::io("die", "it lives")),
            Err(errno) => Err(Failure::io("die", errno)),
        },
    }
}
