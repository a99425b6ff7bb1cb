//! `ctl upgrade -- CMD`: starts a new version beside the old one and waits until it owns the service, or ends it again.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Hold, Status};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::args::{Global, UpgradeArgs};
use crate::failure::{FAILED, Failure, NOBODY, UNKNOWN};
use crate::follow::{Follow, News, PATIENCE, is_ready, owns, wait};
use crate::hold;
use crate::json;
use crate::printer::Printer;
use crate::probation;
use crate::program;
use crate::session::{Ended, Log, Session};
use crate::signals::Signals;
use crate::status::{held, who};
use crate::steps::Steps;
use crate::table::clean;
use crate::time;
use crate::verdict::Verdict;

/// How long the whole may take where nothing else is said: as long as a successor may warm up.
const TIMEOUT: Duration = Duration::from_secs(600);
/// How long the old process has to take back what an attempt had of it: it looks once a second.
const TAKE_BACK: Duration = Duration::from_secs(5);
/// From the moment at which the kernel frees what a process had locked to the news of its end.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How long a rollback may take: the release of the new one and the commit of the old one are in it.
const TAKE_BACK_ASKED: Duration = Duration::from_secs(30);

pub(crate) fn run(global: &Global, args: &UpgradeArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    let socket = std::path::absolute(socket).map_err(|error| Failure::io("find the current folder", error))?;
    let within = global.timeout_or(TIMEOUT);
    let program = args.command.first().ok_or_else(|| Failure::usage("a program is missing"))?;
    program::check(program)?;
    // Watched from before the start on: no step goes by unseen.
    let mut follow = Follow::new(&socket);
    let from = follow.known_owner(PATIENCE.min(within)).map_err(|error| match error {
        Error::Nobody { .. } => {
            Failure::from(error).hint("nothing to upgrade: start the first version directly, without ctl")
        }
        error => error.into(),
    })?;
    if let Some(hold) = &from.hold {
        return Err(hold::refused(hold));
    }
    let from_peer = follow.peer_pid();
    if from_peer == Some(1) {
        return Err(first_process());
    }
    let log = Log::open(&args.log.clone().unwrap_or_else(|| beside(&socket)))?;
    // Before there is a second thread, that of the spinner.
    let signals = Signals::take()?;
    let steps = Steps::begin(printer);
    // Kept to the end: the owner stands by as long as this client is there when it hands over.
    let wish = args.probation.map(|time| stand_by(&socket, time, &from)).transpose()?;
    let session = Session::start(&args.command, &socket, &log)?;
    let (check, doubted) = (args.check.clone(), None);
    let upgrade =
        Upgrade { socket, from, log, signals, follow, steps, session, from_peer, doubted, wish, check, printer };
    upgrade.run(within)
}

/// Asks the old one to stand by after the takeover, whether or not the new one asks for it.
fn stand_by(socket: &Path, time: Duration, from: &Status) -> Result<Client, Failure> {
    let (mut client, owner) = probation::reach(socket, PATIENCE)?;
    if owner.generation != from.generation {
        return Err(Failure::new(FAILED, "overtaken", "another process took the service over first"));
    }
    client.want_probation(time).map_err(|error| {
        Failure::from(error).before("the old version was not asked to stand by, and the new one not started")
    })?;
    Ok(client)
}

/// The log where no other was asked for.
fn beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".log");
    path.into()
}

/// The owner is the first process of this pid namespace. When it has handed over and exits, the kernel kills all others
/// in there (pid_namespaces(7)), and the new version with them.
fn first_process() -> Failure {
    let message = "the old one is the first process of this container: at its exit the kernel would kill the new one";
    Failure::new(FAILED, "first-process", message)
        .hint("start the new version in a container of its own, beside this one, with the same control socket")
}

struct Upgrade {
    socket: PathBuf,
    from: Status,
    log: Log,
    signals: Signals,
    follow: Follow,
    steps: Steps,
    session: Session,
    /// The old one, as the kernel knows it.
    from_peer: Option<i32>,
    /// The generation for which a newer connection was made, to know who that is.
    doubted: Option<u64>,
    /// The connection on which the old one was asked to stand by.
    wish: Option<Client>,
    /// What tells in a probation whether the new one is as it should be.
    check: Option<OsString>,
    printer: Printer,
}

/// Why an attempt is over.
#[derive(Debug)]
enum Over {
    Ended(Ended),
    /// Another process owns now.
    Overtaken,
    /// Takeovers are refused since it was started.
    Held(Hold),
    Late(Duration),
    Interrupted(Signal),
    Broken(Error),
    EndedLate(Ended),
    /// It served, and was not as it should be.
    Unfit(String),
    /// It served, and the old one took the service back.
    RolledBack,
}

/// What an owner is to this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// It was started here.
    Ours,
    /// It owned before: a takeover came to nothing, and it has a new generation for it.
    Old,
    /// Somebody else's.
    Another,
    /// It lives in another pid namespace, as in a container: no number can tell.
    Unknown,
}

impl Upgrade {
    fn run(mut self, within: Duration) -> Result<ExitCode, Failure> {
        let until = Instant::now() + within;
        loop {
            if let Some(over) = self.signalled() {
                return self.give_up(over);
            }
            let turn = match self.follow.news() {
                Ok(Some(News::Status(status))) => match self.judge(&status) {
                    Some(Whose::Another) => return self.give_up(Over::Overtaken),
                    Some(_) if is_ready(&status) => return self.serves(&status),
                    _ => {
                        self.steps.see(&status);
                        // What cannot be called off any more goes on, hold or not.
                        if let (Some(hold), None) = (status.hold, &status.takeover)
                            && status.generation == self.from.generation
                        {
                            return self.give_up(Over::Held(hold));
                        }
                        Ok(())
                    }
                },
                // The old one is gone; what was started may be about to own.
                Ok(Some(News::Nobody(_))) => Ok(()),
                Ok(None) if Instant::now() >= until => return self.give_up(Over::Late(within)),
                Ok(None) => self.follow.wait(&[PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], Some(until)),
                Err(error) => Err(error),
            };
            if let Err(error) = turn {
                return self.give_up(Over::Broken(error));
            }
        }
    }

    /// What signals tell: that the program has ended, or that a person has had enough.
    fn signalled(&mut self) -> Option<Over> {
        let mut over = None;
        while let Some(caught) = self.signals.next() {
            if caught.signal != Signal::SIGCHLD {
                over = Some(Over::Interrupted(caught.signal));
            }
        }
        self.session.reap().map(Over::Ended).or(over)
    }

    /// Whose the service is since this began; `None` where it is the old one's, as it was or again.
    fn judge(&mut self, status: &Status) -> Option<Whose> {
        let whose = self.owner_since(status, self.follow.peer_pid())?;
        // Who listens is told as it was when the connection was made: a newer one knows better.
        let sure = matches!(whose, Whose::Ours | Whose::Another) || self.doubted == Some(status.generation);
        if !sure {
            self.doubted = Some(status.generation);
            self.follow.reconnect();
        }
        Some(whose).filter(|whose| sure && *whose != Whose::Old)
    }

    /// `None` where nobody has taken the service over.
    fn owner_since(&self, status: &Status, peer: Option<i32>) -> Option<Whose> {
        if !owns(status) || status.generation <= self.from.generation {
            return None;
        }
        Some(match peer {
            Some(peer) if self.session.has(peer) => Whose::Ours,
            // Not by what it says of itself: in containers each version is pid 1.
            Some(_) if peer == self.from_peer => Whose::Old,
            Some(peer) if peer == status.pid as i32 => Whose::Another,
            _ => Whose::Unknown,
        })
    }

    /// The new one owns. Where there is a check it has to stand that for as long as it is on probation.
    fn serves(mut self, to: &Status) -> Result<ExitCode, Failure> {
        if self.wish.is_some() && to.probation.is_none() {
            self.printer.say("no probation: the new version knows of none, or it is over already");
        }
        let check = self.check.take().filter(|_| to.probation.is_some());
        let Some(check) = check else { return self.done(to, 0) };
        self.steps.reach("probation", "");
        let mut verdict = Verdict::new(&check, &self.socket);
        loop {
            if let Some(why) = verdict.turn() {
                return self.take_back(Over::Unfit(why));
            }
            match self.signalled() {
                Some(Over::Ended(how)) => return Err(self.failed(&Over::EndedLate(how))),
                Some(over) => return self.take_back(over),
                None => {}
            }
            let turn = match self.follow.news() {
                // Whoever owns now, the new one does not: it is back with the old one, or a third has confirmed it.
                Ok(Some(News::Status(now))) if owns(&now) && now.generation > to.generation => {
                    if (now.pid, &now.app_version) == (self.from.pid, &self.from.app_version) {
                        let over = self.how_it_went_back();
                        return Err(self.failed(&over));
                    }
                    return self.done(to, verdict.runs());
                }
                Ok(Some(News::Status(now))) if owns(&now) && now.probation.is_none() && is_ready(&now) => {
                    return self.done(&now, verdict.runs());
                }
                Ok(Some(_)) => Ok(()),
                Ok(None) => {
                    let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
                    self.follow.wait(&[signals], Some(verdict.due()))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = turn {
                return self.take_back(Over::Broken(error));
            }
        }
    }

    /// The old one owns again: because the new one has died, or because somebody wanted it so. The kernel frees the lock of
    /// a process a moment before it tells of its end.
    fn how_it_went_back(&mut self) -> Over {
        let until = Instant::now() + LAST_BREATH;
        loop {
            match self.signalled() {
                Some(Over::Ended(how)) if how != Ended::Code(0) => return Over::EndedLate(how),
                Some(Over::Ended(_)) => return Over::RolledBack,
                _ if Instant::now() >= until => return Over::RolledBack,
                _ => {
                    let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
                    if wait(&mut [signals], Some(until)).is_err() {
                        return Over::RolledBack;
                    }
                }
            }
        }
    }

    /// Gives the service back to the old one. What was started goes by itself, when it has finished what it has in flight.
    fn take_back(mut self, over: Over) -> Result<ExitCode, Failure> {
        self.steps.reach("rolling-back", &over.to_string());
        let asked = probation::reach(&self.socket, TAKE_BACK_ASKED)
            .and_then(|(mut client, _)| client.roll_back(&over.to_string()));
        self.steps.finish();
        match asked {
            // Where it died on the way, the old one has the service all the same.
            Ok(()) | Err(Error::HungUp) => Err(self.failed(&over)),
            Err(error) => Err(self.unknown(&over, &format!("the new one was not rolled back ({error})"))),
        }
    }

    fn done(mut self, to: &Status, checks: u64) -> Result<ExitCode, Failure> {
        self.steps.reach(to.phase.as_str(), "");
        self.steps.finish();
        let to_text = || {
            format!(
                "{} serves as generation {}, after {}\n\n{}",
                who(to.pid, &to.app_version),
                to.generation,
                who(self.from.pid, &self.from.app_version),
                self.steps.text(),
            )
        };
        self.printer.print(to_text, || {
            json!({
                "upgraded": true,
                "from": json::owner(&self.from),
                "to": json::owner(to),
                "steps": self.steps.json(),
                "log": self.log.path().to_string_lossy(),
                "probation": to.probation.as_ref().map(json::probation),
                "checks": checks,
            })
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Ends what was started, unless it owns by now, and says what is true of the service.
    fn give_up(mut self, over: Over) -> Result<ExitCode, Failure> {
        self.steps.finish();
        if !matches!(over, Over::Ended(_) | Over::Overtaken) {
            // The last moment for a last look: from here on a takeover is called off.
            let mut fresh = Follow::new(&self.socket);
            match fresh.known_owner(PATIENCE) {
                Ok(status) => match self.owner_since(&status, fresh.peer_pid()) {
                    Some(Whose::Another | Whose::Old) | None => {}
                    Some(_) if is_ready(&status) => return self.done(&status, 0),
                    // Its predecessor is dead: without it there would be no service at all.
                    Some(_) => return Err(self.unknown(&over, "the new one owns the service, and is not ready")),
                },
                Err(Error::Nobody { .. }) => {}
                // To end the only process that may own would be worse than not to know.
                Err(_) if !self.follow.is_linked_to(&self.from) => {
                    return Err(self.unknown(&over, "nobody answers, and it may be the new one that owns"));
                }
                Err(_) => {}
            }
        }
        self.session.end(&self.signals)?;
        Err(self.failed(&over))
    }

    /// What was started is gone. Who serves?
    fn failed(&self, over: &Over) -> Failure {
        let tail = self.log.tail();
        if !tail.is_empty() {
            self.printer.line(&format!("--- the end of {}", self.log.path().display()));
            tail.iter().for_each(|line| self.printer.line(&clean(line)));
            self.printer.line("---");
        }
        let mut fresh = Follow::new(&self.socket);
        let mut held = None;
        let (exit, truth) = match fresh.known_owner(TAKE_BACK) {
            Ok(now) => {
                held.clone_from(&now.hold);
                let is_old = matches!(self.owner_since(&now, fresh.peer_pid()), None | Some(Whose::Old));
                let name = who(now.pid, &now.app_version);
                let name = if is_old { format!("the old one, {name},") } else { name };
                let does = match now.phase {
                    _ if is_old && is_ready(&now) && self.wish.is_some() && now.generation > self.from.generation => {
                        format!("serves again as generation {}", now.generation)
                    }
                    _ if is_old && is_ready(&now) => "still serves".to_owned(),
                    _ if is_ready(&now) => format!("serves as generation {}", now.generation),
                    phase => format!("owns the service, phase {phase}"),
                };
                (FAILED, format!("{name} {does}"))
            }
            Err(Error::Nobody { .. }) => (NOBODY, "nobody serves any more".to_owned()),
            Err(error) => (UNKNOWN, format!("who serves is unknown: {error}")),
        };
        // It has heard so before this process has.
        let held = held.filter(|_| matches!(over, Over::Ended(_))).map(Over::Held);
        let over = held.as_ref().unwrap_or(over);
        let hint = if tail.is_empty() {
            "it wrote nothing to its log".to_owned()
        } else {
            format!("its whole log is {}", self.log.path().display())
        };
        Failure::new(exit, over.code(), format!("{over}; {truth}")).hint(hint).key("log_tail", tail)
    }

    /// What was started goes on.
    fn unknown(&self, over: &Over, what: &str) -> Failure {
        let message = format!("{over}: {what}; it was left as it is, pid {}", self.session.pid());
        Failure::new(UNKNOWN, over.code(), message)
            .hint("ctl status tells more; its log is ".to_owned() + &self.log.path().to_string_lossy())
    }
}

impl Over {
    fn code(&self) -> &str {
        match self {
            Over::Ended(_) | Over::EndedLate(_) => "ended",
            Over::Overtaken => "overtaken",
            Over::Held(_) => "held",
            Over::Late(_) => "deadline",
            Over::Interrupted(_) => "interrupted",
            Over::Broken(error) => error.code(),
            Over::Unfit(_) => "check",
            Over::RolledBack => "rolled-back",
        }
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Over::Ended(how) => write!(f, "the new one {how} before it served"),
            Over::EndedLate(how) => write!(f, "the new one {how} on probation"),
            Over::Overtaken => f.write_str("another process took the service over first"),
            Over::Held(hold) => write!(f, "takeovers are held: {}", held(hold)),
            Over::Late(within) => write!(f, "the new one does not serve after {}", time::duration(*within)),
            Over::Interrupted(signal) => write!(f, "interrupted by {signal}"),
            Over::Broken(error) => write!(f, "the service cannot be watched: {error}"),
            Over::Unfit(why) => f.write_str(why),
            Over::RolledBack => f.write_str("the old one has taken the service back"),
        }
    }
}
