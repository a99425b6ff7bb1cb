//! `ctl upgrade -- CMD`: starts a new version beside the old one and waits until it owns the service, or ends it again.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Hold, Phase, Side, Status};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::args::{Global, UpgradeArgs};
use crate::failure::{FAILED, Failure, NOBODY, UNKNOWN};
use crate::follow::{self, Follow, News, PATIENCE, is_ready, owns};
use crate::hold;
use crate::json;
use crate::output::Output;
use crate::printer::Printer;
use crate::probation;
use crate::program;
use crate::session::{Ended, Session};
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
/// How long a rollback may take: the release of the new one and the commit of the old one are in it.
const TAKE_BACK_ASKED: Duration = Duration::from_secs(30);
/// The shortest probation in which a check is sure to run.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long before the end of a probation the last check is over, so that there is time for a rollback.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a program that is not wanted any more may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// And one that owns, and hangs: its clients wait for its end.
const HASTE: Duration = Duration::from_secs(1);
/// How long a new version that owns, by the word of the old one, may leave the control socket without an answer.
const SILENT: Duration = Duration::from_secs(3);

pub(crate) fn run(global: &Global, args: &UpgradeArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    let socket = std::path::absolute(socket).map_err(|error| Failure::io("find the current folder", error))?;
    let within = global.timeout_or(TIMEOUT);
    let program = args.command.first().ok_or_else(|| Failure::usage("a program is missing"))?;
    program::check(program)?;
    if args.check.is_some() && args.probation.is_some_and(|time| time < SHORTEST) {
        return Err(Failure::usage("with --check a --probation takes 1s at least: the check is to run in it"));
    }
    // Watched from before the start on: no step goes by unseen.
    let mut follow = Follow::new(&socket);
    let from = follow.known_owner(PATIENCE.min(within)).map_err(|error| match error {
        Error::Nobody { .. } => {
            Failure::nobody(error, "nothing to upgrade: start the first version directly, without ctl")
        }
        error => error.into(),
    })?;
    if let Some(hold) = from.hold.as_ref().filter(|hold| !hold.suspended) {
        return Err(hold::refused(hold));
    }
    let from_peer = follow.peer_pid();
    if from_peer == Some(1) {
        return Err(first_process());
    }
    let output = Output::choose(args.log.as_deref(), &beside(&socket))?;
    // Before there is a second thread, that of the spinner.
    let signals = Signals::take()?;
    let steps = Steps::begin(printer);
    // Kept to the end: the owner stands by as long as this client is there when it hands over.
    let wish = args.probation.map(|time| stand_by(&socket, time, &from)).transpose()?;
    let session = Session::start(&args.command, &socket, &output)?;
    let (check, doubted) = (args.check.clone(), None);
    let upgrade =
        Upgrade { socket, from, output, signals, follow, steps, session, from_peer, doubted, wish, check, printer };
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
    output: Output,
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
    /// It owns, on probation, and has not said a word since.
    Silent,
    Interrupted(Signal),
    Broken(Error),
    EndedLate(Ended),
    /// It served, and was not as it should be.
    Unfit(String),
    /// It served, and the old one took the service back.
    RolledBack,
    /// It served, and gave the service back, for this reason.
    GivenBack(String),
    /// So it was, and did not even hear that the service is to go back.
    Hung(Box<Over>),
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
        let mut silent: Option<Instant> = None;
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
                        // Somebody else is to answer now, or the same one again: one that lives does so at once.
                        let is_asked = status.phase == Phase::StandingBy || self.follow.is_to_connect();
                        silent = is_asked.then(|| Instant::now() + SILENT);
                        // What cannot be called off any more goes on, hold or not.
                        if let (Some(hold), None) = (status.hold, &status.takeover)
                            && status.generation == self.from.generation
                            && !hold.suspended
                        {
                            return self.give_up(Over::Held(hold));
                        }
                        Ok(())
                    }
                },
                // The old one is gone; what was started may be about to own.
                Ok(Some(News::Nobody(_))) => Ok(()),
                Ok(None) if Instant::now() >= until => return self.give_up(Over::Late(within)),
                Ok(None) if silent.is_some_and(|at| Instant::now() >= at) => return self.give_up(Over::Silent),
                Ok(None) => {
                    let until = silent.map_or(until, |at| until.min(at));
                    self.follow.wait(&[PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], Some(until))
                }
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
        // Who listens is told as it was when the connection was made, and one that dies may leave it to the next owner to
        // answer: a newer connection knows better.
        let sure = whose == Whose::Another || self.doubted == Some(status.generation);
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
            let unchecked = if self.check.is_some() { ", and nothing was checked" } else { "" };
            let none = "no probation: the new version knows of none, or it is over already";
            self.printer.say(&format!("{none}{unchecked}"));
        }
        let check = self.check.take().filter(|_| to.probation.is_some());
        let Some(check) = check else { return self.done(to, 0) };
        self.steps.reach("probation", "");
        let left = to.probation.as_ref().and_then(|probation| probation.left_ms).map(Duration::from_millis);
        let ends = left.map(|left| Instant::now() + left - (left / 4).min(MARGIN));
        let mut verdict = Verdict::new(&check, &self.socket, ends);
        loop {
            if let Some(why) = verdict.turn() {
                return self.take_back(Over::Unfit(why));
            }
            match self.signalled() {
                Some(Over::Ended(how)) => return Err(self.went_back(Some(how))),
                Some(over) => return self.take_back(over),
                None => {}
            }
            let turn = match self.follow.news() {
                // Whoever owns now, the new one does not: it is back with the old one, or a third has confirmed it.
                Ok(Some(News::Status(now))) if owns(&now) && now.generation > to.generation => {
                    if (now.pid, &now.app_version) == (self.from.pid, &self.from.app_version) {
                        return Err(self.went_back(None));
                    }
                    return self.done(to, verdict.runs());
                }
                Ok(Some(News::Status(now))) if owns(&now) && now.probation.is_none() && is_ready(&now) => {
                    return self.done(&now, verdict.runs());
                }
                Ok(Some(_)) => Ok(()),
                Ok(None) => {
                    let signals = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
                    self.follow.wait(&[signals], verdict.due())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = turn {
                return self.take_back(Over::Broken(error));
            }
        }
    }

    /// Gives the service back to the old one. What was started goes by itself, when it has finished what it has in flight.
    fn take_back(mut self, over: Over) -> Result<ExitCode, Failure> {
        self.steps.reach("rolling-back", &over.to_string());
        // One that hangs is not waited for as long as a rollback may take.
        let asked = probation::reach(&self.socket, PATIENCE)
            .and_then(|_| probation::reach(&self.socket, TAKE_BACK_ASKED))
            .and_then(|(mut client, _)| client.roll_back(&over.to_string()));
        self.steps.finish();
        match asked {
            // Where it died on the way, the old one has the service all the same.
            Ok(()) | Err(Error::HungUp) => Err(self.failed(&over)),
            // Its end frees the lock, and the old one stands by.
            Err(Error::Deadline { .. }) => {
                self.session.end(&self.signals, HASTE)?;
                Err(self.failed(&Over::Hung(Box::new(over))))
            }
            Err(error) => Err(self.unknown(&over, &format!("the new one was not rolled back ({error})"))),
        }
    }

    /// The service is back with the old one, or about to be, and not by this run. The new one has given it back, or has
    /// ended; a process that ends frees its lock before its end is an event.
    fn went_back(&mut self, mut ended: Option<Ended>) -> Failure {
        self.steps.finish();
        if let Some(reason) = self.reason_of_return() {
            return self.failed(&Over::GivenBack(reason));
        }
        let until = Instant::now() + TAKE_BACK;
        while ended.is_none() && Instant::now() < until {
            match self.signalled() {
                Some(Over::Ended(how)) => ended = Some(how),
                _ if follow::wait_for(&self.signals, Some(until)).is_err() => break,
                _ => {}
            }
        }
        self.failed(&ended.map_or(Over::RolledBack, Over::EndedLate))
    }

    /// Why the service was given back, as the one remembers that has it again.
    fn reason_of_return(&self) -> Option<String> {
        let (mut client, owner) = probation::reach(&self.socket, PATIENCE).ok()?;
        let mut records = client.history().ok()?;
        let of = |side: &Option<Side>| side.as_ref().and_then(|side| side.generation);
        records.retain(|record| of(&record.to) == Some(owner.generation));
        let cause = records.into_iter().find_map(|record| record.cause)?;
        Some(cause.message).filter(|_| cause.code == "rolled-back")
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
                "log": self.output.path().map(Path::to_string_lossy),
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
        let grace = if matches!(over, Over::Silent) { HASTE } else { GRACE };
        self.session.end(&self.signals, grace)?;
        Err(self.failed(&over))
    }

    /// What was started is gone. Who serves?
    fn failed(&self, over: &Over) -> Failure {
        let tail = self.output.tail();
        if let Some(path) = self.output.path().filter(|_| !tail.is_empty()) {
            self.printer.line(&format!("--- the end of {}", path.display()));
            tail.iter().for_each(|line| self.printer.line(&clean(line)));
            self.printer.line("---");
        }
        let mut fresh = Follow::new(&self.socket);
        let (mut held, mut had_owned) = (None, false);
        let (exit, truth) = match fresh.known_owner(TAKE_BACK) {
            Ok(now) => {
                held = now.hold.clone().filter(|hold| !hold.suspended);
                let is_old = matches!(self.owner_since(&now, fresh.peer_pid()), None | Some(Whose::Old));
                let name = who(now.pid, &now.app_version);
                let name = if is_old { format!("the old one, {name},") } else { name };
                had_owned = is_old && self.wish.is_some() && now.generation > self.from.generation;
                let does = match now.phase {
                    _ if had_owned && is_ready(&now) => format!("serves again as generation {}", now.generation),
                    _ if is_old && is_ready(&now) => "still serves".to_owned(),
                    _ if is_ready(&now) => format!("serves as generation {}", now.generation),
                    phase => format!("owns the service, phase {phase}"),
                };
                (FAILED, format!("{name} {does}"))
            }
            Err(Error::Nobody { .. }) => (NOBODY, "nobody serves any more".to_owned()),
            Err(error) => (UNKNOWN, format!("who serves is unknown: {error}")),
        };
        let over = match (over, held) {
            // It has heard so before this process has.
            (Over::Ended(_), Some(hold)) if !had_owned => &Over::Held(hold),
            (Over::Ended(how), _) if had_owned => {
                &self.reason_of_return().map_or(Over::EndedLate(*how), Over::GivenBack)
            }
            _ => over,
        };
        let hint = if tail.is_empty() && self.output.path().is_some() {
            "it wrote nothing to its log".to_owned()
        } else {
            self.output.found(self.session.pid())
        };
        Failure::new(exit, over.code(), format!("{over}; {truth}")).hint(hint).key("log_tail", tail)
    }

    /// What was started goes on.
    fn unknown(&self, over: &Over, what: &str) -> Failure {
        let message = format!("{over}: {what}; it was left as it is, pid {}", self.session.pid());
        Failure::new(UNKNOWN, over.code(), message)
            .hint(format!("ctl status tells more; {}", self.output.found(self.session.pid())))
    }
}

impl Over {
    fn code(&self) -> &str {
        match self {
            Over::Ended(_) | Over::EndedLate(_) => "ended",
            Over::Overtaken => "overtaken",
            Over::Held(_) => "held",
            Over::Late(_) | Over::Silent => "deadline",
            Over::Interrupted(_) => "interrupted",
            Over::Broken(error) => error.code(),
            Over::Unfit(_) => "check",
            Over::RolledBack | Over::GivenBack(_) => "rolled-back",
            Over::Hung(over) => over.code(),
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
            Over::Silent => f.write_str("the new one owned the service and did not answer"),
            Over::Interrupted(signal) => write!(f, "interrupted by {signal}"),
            Over::Broken(error) => write!(f, "the service cannot be watched: {error}"),
            Over::Unfit(why) => f.write_str(why),
            Over::RolledBack => f.write_str("the old one has taken the service back"),
            Over::GivenBack(why) => write!(f, "the new one gave the service back: {}", clean(why)),
            Over::Hung(over) => write!(f, "{over}; it did not answer any more and was ended"),
        }
    }
}
