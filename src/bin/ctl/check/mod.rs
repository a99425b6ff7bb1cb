//! `ctl check`: misbehaves towards a live owner in every known way, and tells what became of it.
//!
//! `cases` is the table of all ways; `successor` goes the way of one that never owns, `broken`, `stall` and `flood` are the
//! other families. `trial` looks at the owner before and after each of them, and `beside` asks it meanwhile.

mod beside;
mod broken;
mod cases;
mod flood;
mod rights;
mod stall;
mod successor;
mod trial;

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::probe::{Heard, Peer, Say};
use heirloom::{Error, Status};
use serde_json::{Value, json};

use self::broken::Broken;
use self::cases::{CASES, Case, Deed};
use self::stall::Stall;
use self::successor::{CANCELLED, Leaving, Mortal, Step, Successor, told};
use self::trial::{Settled, Stop, Trial};
use crate::args::{CheckArgs, Global};
use crate::failure::{FAILED, Failure};
use crate::json;
use crate::printer::Printer;
use crate::status::who;
use crate::steps::Steps;
use crate::table::table;
use crate::time;

pub(crate) use self::cases::names;
pub(crate) use self::successor::perish;

/// How long the whole may take where nothing else is said: several times what a healthy owner needs.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long the process of a successor may take to its step: longer than any wait on the way.
const MORTAL: Duration = Duration::from_secs(60);

pub(crate) fn run(global: &Global, args: &CheckArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let chosen: Vec<&Case> = CASES.iter().filter(|case| is_chosen(args, case)).collect();
    if args.list {
        printer
            .print(|| list(&chosen), || json!({"cases": chosen.iter().map(|case| listed(case)).collect::<Value>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let within = global.timeout_or(TIMEOUT);
    let mut trial = Trial::begin(global.socket()?, within)?;
    let mut steps = Steps::begin(printer);
    let mut verdicts = Vec::new();
    let ended = try_all(&mut trial, &chosen, &mut steps, &mut verdicts);
    steps.finish();
    let cases: Value = verdicts.iter().map(Verdict::json).collect();
    if let Err(stop) = ended {
        if !printer.is_json() {
            printer.text(&text(&trial.owner, &verdicts, chosen.len()))?;
        }
        return Err(stopped(stop, within).key("owner", json::owner(&trial.owner)).key("cases", cases).key("ok", false));
    }
    let ok = verdicts.iter().all(|verdict| verdict.ok);
    printer.print(
        || text(&trial.owner, &verdicts, chosen.len()),
        || json!({"owner": json::owner(&trial.owner), "cases": cases, "ok": ok}),
    )?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn is_chosen(args: &CheckArgs, case: &Case) -> bool {
    let wanted = args.only.is_empty() || args.only.iter().any(|name| name == case.name);
    wanted && (case.is_gentle() || !args.gentle)
}

/// What came of one case.
#[derive(Debug)]
struct Verdict {
    case: &'static Case,
    ok: bool,
    survived: bool,
    stayed_owner: bool,
    busy: Duration,
    answered_within: Option<Duration>,
    note: Option<String>,
}

/// A case that was gone through.
struct Done {
    began: Instant,
    /// It has asked for a takeover.
    occupied: bool,
    /// What the owner said to each case of the group, or what was wrong with that.
    said: Vec<Result<Option<String>, String>>,
    /// To be closed when the owner has been looked at.
    held: Vec<Peer>,
}

/// All cases in turn, until one finds the owner in another state than before it.
fn try_all(
    trial: &mut Trial,
    mut rest: &[&'static Case],
    steps: &mut Steps,
    verdicts: &mut Vec<Verdict>,
) -> Result<(), Stop> {
    while let Some(first) = rest.first() {
        let aside = rest.iter().take_while(|case| aside(case).is_some()).count();
        let (group, later) = rest.split_at(aside.max(1));
        rest = later;
        steps.reach(first.name, first.what);
        for other in &group[1..] {
            steps.reach(other.name, other.what);
        }
        let before = trial.look()?;
        if before.trouble.is_some() {
            // Between two cases: nothing is left to be tried on it.
            let done = Done { began: before.at, occupied: false, said: vec![Ok(None); group.len()], held: Vec::new() };
            verdicts.extend(judge(group, done, &before));
            return Ok(());
        }
        let began = Instant::now();
        let mut done = match perform(trial, group) {
            Err(Stop::Fault(why)) => {
                Done { began, occupied: asks(first), said: vec![Err(why); group.len()], held: Vec::new() }
            }
            performed => performed?,
        };
        let settled = trial.settle(!first.is_gentle())?;
        done.held.clear();
        verdicts.extend(judge(group, done, &settled));
        if settled.trouble.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

fn judge(group: &[&'static Case], done: Done, settled: &Settled) -> Vec<Verdict> {
    let busy = if done.occupied || settled.was_busy { settled.at - done.began } else { Duration::ZERO };
    let verdict = |(case, said): (&&'static Case, Result<Option<String>, String>)| {
        let ok = said.is_ok() && settled.trouble.is_none();
        let said = said.unwrap_or_else(Some);
        Verdict {
            case,
            ok,
            survived: settled.survived,
            stayed_owner: settled.stayed_owner,
            busy,
            answered_within: settled.slowest,
            note: settled.trouble.clone().or(said),
        }
    };
    group.iter().zip(done.said).map(verdict).collect()
}

fn aside(case: &Case) -> Option<Stall> {
    match case.deed {
        Deed::Stall(stall) if stall.is_aside() => Some(stall),
        _ => None,
    }
}

/// Whether a case asks for a takeover, so that a real one has to wait until it is over.
fn asks(case: &Case) -> bool {
    match case.deed {
        Deed::Leave(step, _) | Deed::Break(step, _) => step >= Step::Hello,
        Deed::Stall(stall) => !stall.is_aside(),
        Deed::Flood(_) => false,
    }
}

fn perform(trial: &mut Trial, group: &[&'static Case]) -> Result<Done, Stop> {
    let case = group[0];
    let mut began = Instant::now();
    let mut held = Vec::new();
    let said = match case.deed {
        Deed::Leave(_, Leaving::Die) => {
            began = die(trial, case)?;
            vec![Ok(None)]
        }
        Deed::Leave(step, leaving) => {
            leave(trial, step, leaving)?;
            vec![Ok(None)]
        }
        Deed::Break(step, broken) => vec![Ok(send_broken(trial, step, broken)?)],
        Deed::Stall(stall) if stall.is_aside() => {
            let stalls: Vec<Stall> = group.iter().filter_map(|case| aside(case)).collect();
            let said = stall::aside(trial, &stalls)?;
            said.into_iter().map(|said| said.map(Some)).collect()
        }
        Deed::Stall(stall) => {
            let (said, peer) = stall::alone(trial, stall)?;
            held.extend(peer);
            vec![Ok(said)]
        }
        Deed::Flood(flood) => {
            held = flood::flood(trial, flood)?;
            vec![Ok(None)]
        }
    };
    Ok(Done { began, occupied: asks(case), said, held })
}

/// Lets a process go to its step and die there; tells when it had connected.
fn die(trial: &mut Trial, case: &Case) -> Result<Instant, Stop> {
    let began = Instant::now();
    let end = began + MORTAL;
    let mut mortal = Mortal::start(&trial.socket, &trial.name, case.name)?;
    loop {
        trial.wait(&[mortal.output.as_fd()], end)?;
        if Instant::now() >= end {
            return Err(Stop::Fault(format!("a successor did not come to its step in {}", time::duration(MORTAL))));
        }
        if mortal.listen()? {
            break;
        }
    }
    match mortal.reap()? {
        None => Ok(mortal.connected.unwrap_or(began)),
        Some(instead) if instead.starts_with("refused: busy") && !instead.contains(&trial.name) => {
            Err(Stop::Overtaken(instead))
        }
        Some(instead) => Err(Stop::Fault(instead)),
    }
}

fn leave(trial: &mut Trial, step: Step, leaving: Leaving) -> Result<(), Stop> {
    let hello = trial.hello()?;
    let mut successor = Successor::new(trial.connect()?);
    trial.go(&mut successor, &hello, step)?;
    if leaving == Leaving::Abort {
        successor.peer.say(&Say::Abort(CANCELLED.to_owned()))?;
    }
    Ok(())
}

/// What the owner answered.
fn send_broken(trial: &mut Trial, after: Step, broken: Broken) -> Result<Option<String>, Stop> {
    let hello = trial.hello()?;
    let mut successor = Successor::new(trial.connect()?);
    trial.go(&mut successor, &hello, after)?;
    match (broken.send)(&mut successor, &hello) {
        // It may have hung up before everything was sent.
        Ok(()) | Err(Error::HungUp) => {}
        Err(error) => return Err(error.into()),
    }
    if broken.hangs_up {
        return Ok(None);
    }
    let last = trial.last_words(&mut successor.peer, |heard| match heard {
        Heard::Offer { .. } | Heard::Status(_) => false,
        Heard::Released => after >= Step::Ready,
        _ => true,
    })?;
    Ok(last.as_ref().map(told))
}

impl Verdict {
    fn json(&self) -> Value {
        json!({
            "name": self.case.name,
            "what": self.case.what,
            "ok": self.ok,
            "survived": self.survived,
            "stayed_owner": self.stayed_owner,
            "busy": time::duration(self.busy),
            "answered_within": self.answered_within.map(time::duration),
            "note": self.note,
        })
    }

    fn row(&self) -> [String; 7] {
        let yes = |is| if is { "yes" } else { "NO" }.to_owned();
        [
            self.case.name.to_owned(),
            yes(self.ok),
            yes(self.survived),
            yes(self.stayed_owner),
            exact(self.busy),
            self.answered_within.map(exact).unwrap_or_default(),
            self.note.clone().unwrap_or_default(),
        ]
    }
}

fn text(owner: &Status, verdicts: &[Verdict], chosen: usize) -> String {
    let mut text = format!("generation {}, {}\n\n", owner.generation, who(owner.pid, &owner.app_version));
    let heading = ["CASE", "OK", "SURVIVED", "OWNER", "BUSY", "ANSWERED", "NOTE"];
    text.push_str(&table(heading, verdicts.iter().map(Verdict::row)));
    text.push_str(&format!("\n{}", summary(verdicts)));
    if verdicts.len() < chosen {
        text.push_str(&format!("; {} of {chosen} cases were not tried", chosen - verdicts.len()));
    }
    text
}

fn summary(verdicts: &[Verdict]) -> String {
    let bad = verdicts.iter().filter(|verdict| !verdict.ok).count();
    if bad > 0 {
        return format!("{bad} of {} cases did not go well", verdicts.len());
    }
    let Some(busiest) = verdicts.iter().max_by_key(|verdict| verdict.busy) else {
        return "nothing was tried".to_owned();
    };
    let slowest = verdicts.iter().filter_map(|verdict| verdict.answered_within).max().unwrap_or_default();
    format!(
        "{} cases went well: busy for {} at most ({}), a status within {}",
        verdicts.len(),
        exact(busiest.busy),
        busiest.case.name,
        exact(slowest)
    )
}

/// A duration for people, for whom a part of a millisecond is not nothing.
fn exact(duration: Duration) -> String {
    if duration.is_zero() || duration >= Duration::from_millis(1) {
        time::duration(duration)
    } else {
        "<1ms".to_owned()
    }
}

/// Why the run ended before its last case.
fn stopped(stop: Stop, within: Duration) -> Failure {
    match stop {
        Stop::Fault(why) => Failure::new(FAILED, "failed", why),
        Stop::Interrupted(signal) => {
            Failure::new(FAILED, "interrupted", format!("interrupted by {signal}")).hint("nothing of the check is left")
        }
        Stop::Late => {
            Failure::new(FAILED, "deadline", format!("the check was not over after {}", time::duration(within)))
                .hint("nothing of the check is left; a longer --timeout lets it finish")
        }
        Stop::Overtaken(other) => {
            let message = format!("another takeover came while the check ran: {other}");
            Failure::new(FAILED, "overtaken", message)
                .hint("that is not the owner's fault, and the check left it alone; try again when it is over")
        }
        Stop::TakenOver(by_whom) => Failure::new(FAILED, "overtaken", by_whom)
            .hint("that is not the owner's fault; start the check again for the new one"),
        Stop::Leaving => Failure::new(FAILED, "leaving", "the owner was asked to leave while the check ran")
            .hint("that is not the owner's fault"),
        Stop::Failed(failure) => failure,
    }
}

fn list(chosen: &[&Case]) -> String {
    let gentle = |case: &Case| if case.is_gentle() { "yes" } else { "no" }.to_owned();
    table(
        ["CASE", "GENTLE", "WHAT"],
        chosen.iter().map(|case| [case.name.to_owned(), gentle(case), case.what.to_owned()]),
    )
}

fn listed(case: &Case) -> Value {
    json!({"name": case.name, "what": case.what, "gentle": case.is_gentle()})
}
