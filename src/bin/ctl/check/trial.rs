//! The owner under trial: what it was when it began, and whether it still is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use heirloom::probe::{Heard, Hello, Peer, Say};
use heirloom::{Client, Error, Phase, Side, Status, Who};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use super::beside::Beside;
use super::rights::Rights;
use super::successor::{ANSWER, CANCELLED, Step, Successor, Way, told};
use crate::failure::{FAILED, Failure};
use crate::follow::{self, PATIENCE};
use crate::signals::Signals;
use crate::status::who;
use crate::time;

/// How long a takeover may stay under way after its case, and an application may owe an answer to a release.
const SETTLE: Duration = Duration::from_secs(15);
/// The pause between two looks at whether it is over.
const PAUSE: Duration = Duration::from_millis(10);

/// Why a case ends before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The owner did not do what it should: only the case is over.
    Fault(String),
    Interrupted(Signal),
    /// The time of the whole run is over.
    Late,
    /// Another process takes the service over, or has, or has tried.
    Overtaken(String),
    /// Another process has taken over, as the history of the service says: by whom, as a whole sentence.
    TakenOver(String),
    /// The owner was asked to leave.
    Leaving,
    /// Something failed on this side.
    Failed(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        match error {
            Error::Io { .. } => Stop::Failed(error.into()),
            error => Stop::Fault(error.to_string()),
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// What became of the owner.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) survived: bool,
    pub(crate) stayed_owner: bool,
    /// What is not as it was.
    pub(crate) trouble: Option<String>,
    /// A takeover of this run's was seen to be under way.
    pub(crate) was_busy: bool,
    /// When the owner told this.
    pub(crate) at: Instant,
    /// The longest that it has taken to answer a question since the case began.
    pub(crate) slowest: Option<Duration>,
}

/// Everything that the cases share.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) socket: PathBuf,
    /// What a successor of this run calls itself, so that it is told from all others.
    pub(crate) name: String,
    pub(crate) owner: Status,
    /// The owner's process, where the kernel tells.
    process: Option<OwnedFd>,
    /// Hears of takeovers that come and go between two questions.
    watch: Option<Client>,
    signals: Signals,
    until: Instant,
    beside: Beside,
}

impl Trial {
    /// Looks at the owner first: whoever is not well, or busy, is left alone.
    pub(crate) fn begin(socket: &Path, within: Duration) -> Result<Trial, Failure> {
        let until = Instant::now() + within;
        let owner = follow::ask(socket, PATIENCE.min(within)).map_err(|error| {
            let silent = matches!(error, Error::Deadline { .. });
            let failure = Failure::from(error);
            if silent {
                failure.hint("nothing was tried: an owner that is stopped or hangs is not well")
            } else {
                failure
            }
        })?;
        if let Some(takeover) = &owner.takeover {
            let name = who(takeover.who.pid, &takeover.who.app_version);
            return Err(Failure::new(FAILED, "busy", format!("a takeover is under way: {name}, {}", takeover.step))
                .hint("nothing was tried; when it is over, try again"));
        }
        if owner.phase != Phase::Serving {
            let name = who(owner.pid, &owner.app_version);
            let hint = match owner.phase {
                Phase::Holding => "nothing was tried; it only keeps the listeners: start the service first",
                _ => "nothing was tried; ctl status --watch shows when it serves",
            };
            return Err(
                Failure::new(FAILED, "not-serving", format!("{name} is in the phase {}", owner.phase)).hint(hint)
            );
        }
        // After the answer: now it is surely the owner that listened last.
        let peer = Peer::connect(socket, PATIENCE)?;
        let pid = getsockopt(&peer, sockopt::PeerCredentials).map_or(0, |credentials| credentials.pid());
        let rights = Rights::of(pid, socket);
        if rights.is_some_and(|rights| !rights.may_open_lock) {
            let message = format!(
                "pid {pid} may not open its lock file any more: after a takeover that fails it can offer no other"
            );
            return Err(Failure::new(FAILED, "last-offer", message)
                .hint("nothing was tried; give the lock file to the user that the owner runs as, then try again"));
        }
        // It listens anew after some of the cases, and then as who it is now.
        if let Some(Rights { uid, .. }) = rights
            && uid != 0
            && uid != geteuid().as_raw()
        {
            return Err(Error::Stranger { uid }.into());
        }
        let process = peer.listener().filter(|process| !is_dead(process));
        let signals = Signals::take()?;
        let name = format!("{}, check by pid {}", crate::handoff::NAME, std::process::id());
        let socket = socket.to_owned();
        Ok(Trial { socket, name, owner, process, watch: None, signals, until, beside: Beside::new() })
    }

    pub(crate) fn connect(&self) -> Result<Peer, Error> {
        Peer::connect(&self.socket, PATIENCE)
    }

    /// A good first word of a successor.
    pub(crate) fn hello(&self) -> Result<Hello, Error> {
        Hello::new(&self.name)
    }

    /// Goes the way of a successor.
    pub(crate) fn go(&mut self, successor: &mut Successor, hello: &Hello, to: Step) -> Result<(), Stop> {
        let wait = |peer: &Peer, within| self.wait(&[peer.as_fd()], Instant::now() + within);
        match successor.go(hello, to, wait)? {
            Way::There => Ok(()),
            Way::Instead(Heard::Refused(why)) if why.code == "busy" && !self.is_ours(why.who.as_ref()) => {
                let other = why.who.unwrap_or_default();
                Err(Stop::Overtaken(who(other.pid, &other.app_version)))
            }
            Way::Instead(heard) => Err(Stop::Fault(told(&heard))),
        }
    }

    fn is_ours(&self, who: Option<&Who>) -> bool {
        who.is_some_and(|who| who.app_version == self.name)
    }

    /// A whole rehearsal, descriptors included.
    pub(crate) fn rehearse(&mut self, to: Step) -> Result<(), Stop> {
        let mut hello = self.hello()?;
        hello.rehearsal = true;
        let mut successor = Successor::new(self.connect()?);
        self.go(&mut successor, &hello, to)?;
        Ok(successor.peer.say(&Say::Abort(CANCELLED.to_owned()))?)
    }

    /// Hears the owner out until it hangs up, and gives what it said last, if that was a reason. Descriptors are closed as
    /// they come. `fits` says what it may say meanwhile.
    pub(crate) fn last_words(&mut self, peer: &mut Peer, fits: impl Fn(&Heard) -> bool) -> Result<Option<Heard>, Stop> {
        let end = Instant::now() + ANSWER;
        let mut last = None;
        loop {
            match peer.hear()? {
                Some(Heard::End) => return Ok(last),
                Some(heard) if !fits(&heard) => {
                    return Err(Stop::Fault(format!("it was taken for good: the owner {}", told(&heard))));
                }
                Some(reason @ (Heard::Refused(_) | Heard::Aborted(_))) => last = Some(reason),
                Some(_) => {}
                None if Instant::now() >= end => {
                    return Err(Stop::Fault(format!("the owner did not hang up in {}", time::duration(ANSWER))));
                }
                None => self.wait(&[peer.as_fd()], end)?,
            }
        }
    }

    /// Begins a case: the owner has to be as it was, and from here on its answers are timed.
    pub(crate) fn look(&mut self) -> Result<Settled, Stop> {
        if self.watch.is_none() {
            let watch = Client::connect(&self.socket, PATIENCE).and_then(|mut client| client.watch().map(|()| client));
            // Whether it answers is seen below.
            self.watch = watch.ok();
        }
        let settled = self.settle(false)?;
        self.beside.slowest = None;
        Ok(settled)
    }

    /// Waits until one of these can be read or the time is over, and asks the owner beside it.
    pub(crate) fn wait(&mut self, descriptors: &[BorrowedFd<'_>], until: Instant) -> Result<(), Stop> {
        loop {
            if let Some(Ok(status)) = self.beside.turn(&self.socket)
                && let Some(other) = self.other(&status)
            {
                return Err(Stop::Overtaken(other));
            }
            let ready = self.poll(descriptors, until.min(self.beside.due()))?;
            if ready || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Asks the owner, and waits for its answer.
    pub(crate) fn ask(&mut self) -> Result<Result<Status, Error>, Stop> {
        self.beside.ask_now();
        loop {
            if let Some(answer) = self.beside.turn(&self.socket) {
                return Ok(answer);
            }
            self.poll(&[], self.beside.due())?;
        }
    }

    /// Waits for one of these, for an answer or for the time; whether it was one of these.
    fn poll(&mut self, descriptors: &[BorrowedFd<'_>], until: Instant) -> Result<bool, Stop> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut all: Vec<PollFd<'_>> = descriptors.iter().map(|fd| readable(*fd)).collect();
        all.push(readable(self.signals.as_fd()));
        all.extend(self.beside.descriptor().map(readable));
        follow::wait(&mut all, Some(until.min(self.until)))?;
        let ready = all[..descriptors.len()].iter().any(|fd| fd.any().unwrap_or(true));
        while let Some(caught) = self.signals.next() {
            if caught.signal != Signal::SIGCHLD {
                return Err(Stop::Interrupted(caught.signal));
            }
        }
        if Instant::now() >= self.until { Err(Stop::Late) } else { Ok(ready) }
    }

    /// Waits until the owner is what it was and nothing is under way. `told_to_release`: its application may have been
    /// told to let go, and owes an answer.
    pub(crate) fn settle(&mut self, told_to_release: bool) -> Result<Settled, Stop> {
        let end = Instant::now() + SETTLE;
        let mut was_busy = false;
        let trouble = loop {
            let status = match self.ask()? {
                Ok(status) => status,
                Err(error) => {
                    let process = match self.is_dead() {
                        Some(true) => ", and its process is dead",
                        Some(false) => ", though its process lives",
                        None => "",
                    };
                    return Ok(self.settled(Found::Gone(format!("{error}{process}")), was_busy));
                }
            };
            if let Some(other) = self.other(&status).or_else(|| self.overheard()) {
                return Err(Stop::Overtaken(other));
            }
            if status.pid != self.owner.pid || status.generation != self.owner.generation {
                let found = self.replaced(&status)?;
                return Ok(self.settled(found, was_busy));
            }
            if let Some(takeover) = &status.takeover {
                was_busy = true;
                if Instant::now() >= end {
                    break Some(format!("the takeover is still {} after {}", takeover.step, time::duration(SETTLE)));
                }
            } else if status.phase == Phase::Stopping {
                return Err(Stop::Leaving);
            } else if status.phase != Phase::Serving {
                let found = Found::Changed(format!("its phase is {}", status.phase));
                return Ok(self.settled(found, was_busy));
            } else if !told_to_release {
                break None;
            } else {
                // Who owes an answer to a release is not to be taken over from.
                match self.rehearse(Step::Offer) {
                    Ok(()) => break None,
                    Err(Stop::Fault(why)) if Instant::now() >= end => break Some(why),
                    Err(Stop::Fault(_)) => was_busy = true,
                    Err(stop) => return Err(stop),
                }
            }
            self.wait(&[], Instant::now() + PAUSE)?;
        };
        let found = trouble.map_or(Found::Well, Found::Stuck);
        Ok(self.settled(found, was_busy))
    }

    fn settled(&self, found: Found, was_busy: bool) -> Settled {
        let (survived, stayed_owner, trouble) = match found {
            Found::Well => (true, true, None),
            Found::Stuck(how) => (true, true, Some(how)),
            Found::Changed(how) => (true, false, Some(how)),
            Found::Gone(how) => (false, false, Some(how)),
        };
        Settled { survived, stayed_owner, trouble, was_busy, at: Instant::now(), slowest: self.beside.slowest }
    }

    /// Whose takeover is under way, if it is none of this run's.
    fn other(&self, status: &Status) -> Option<String> {
        let takeover = status.takeover.as_ref().filter(|takeover| !self.is_ours(Some(&takeover.who)))?;
        Some(who(takeover.who.pid, &takeover.who.app_version))
    }

    /// Whose takeover was under way since the last look, or has succeeded, if it was none of this run's.
    fn overheard(&mut self) -> Option<String> {
        loop {
            match self.watch.as_mut()?.next(Some(Duration::ZERO)) {
                Ok(Some(status)) => {
                    let left = || (status.phase == Phase::Draining).then(|| "a successor".to_owned());
                    if let Some(other) = self.other(&status).or_else(left) {
                        return Some(other);
                    }
                }
                Ok(None) => return None,
                // A crowd has driven it out, or the owner is gone: another is made before the next case.
                Err(_) => self.watch = None,
            }
        }
    }

    /// Another process answers, or the same under another generation, and nobody was heard of who took over.
    fn replaced(&self, status: &Status) -> Result<Found, Stop> {
        if let Some(heir) = self.heir() {
            let owner = who(self.owner.pid, &self.owner.app_version);
            let heir = who(heir.pid, &heir.app_version);
            return Err(Stop::TakenOver(format!("{owner} was taken over by {heir} meanwhile")));
        }
        let now = format!("{} owns as generation {}", who(status.pid, &status.app_version), status.generation);
        match self.is_dead() {
            Some(true) => Ok(Found::Gone(format!("its process is dead, and {now}"))),
            // It lives on and finishes what it has in flight: that is what a takeover looks like.
            Some(false) if status.pid != self.owner.pid => Err(Stop::Overtaken(who(status.pid, &status.app_version))),
            None if status.pid != self.owner.pid => Ok(Found::Gone(now)),
            _ => Ok(Found::Changed(format!("it lost the service and took it back: {now}"))),
        }
    }

    /// Who has taken over from the owner in good order since the check began, as whoever owns now remembers it. An owner
    /// that died beside a successor of somebody else's has a cause in its record.
    fn heir(&self) -> Option<Side> {
        let records = Client::connect(&self.socket, PATIENCE).and_then(|mut client| client.history()).ok()?;
        let (generation, pid) = (Some(self.owner.generation), self.owner.pid);
        let was_owner = |side: &Side| side.generation == generation && side.pid == pid;
        let record = records.into_iter().find(|record| {
            record.outcome == "taken-over" && record.cause.is_none() && record.from.as_ref().is_some_and(was_owner)
        })?;
        record.to
    }

    /// Whether the owner's process is dead, where the kernel tells.
    fn is_dead(&self) -> Option<bool> {
        self.process.as_ref().map(is_dead)
    }
}

/// What there is to say of the owner.
#[derive(Debug)]
enum Found {
    Well,
    /// It owns, and does not come to rest.
    Stuck(String),
    /// It lives, and is not what it was.
    Changed(String),
    /// It does not answer, or another does in its place.
    Gone(String),
}

/// A pidfd can be read when its process has ended.
fn is_dead(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, 0u8).is_ok_and(|ready| ready > 0)
}
