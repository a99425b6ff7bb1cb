//! Takeovers, checked exhaustively: the state machines of `src/protocol` run here against a kernel in miniature,
//! and [stateright](https://docs.rs/stateright) goes through everything that can happen.
//!
//! The machines are the ones that run in production, unchanged and without switches. Around them, `process` and
//! `performing` do what `src/driver` does, one system call at a time, so that a kill, a stop or another process can
//! come between any two: messages are written when a round is over, a broken connection is read to its end, input
//! comes before deadlines, and the answer to a question comes before everything else. `kernel` has the lock file
//! with its three locks, connections with descriptors in flight, and accept queues. An application (`application`)
//! does what it must, at any pace.
//!
//! # To run it, and to read what it says
//!
//! `cargo test --lib model` runs everything and prints a line for each run: how many states it went through, how
//! many of them are different, how deep the longest shortest way is, and the time. A property that does not hold
//! fails its test with a counterexample: each step on a line (`process 1: ...` is a system call, `Event` what a
//! process found to do, and the numbers are processes and connections; connection 6 is the first one of process 1,
//! 12 of process 2), then the state that it comes to. Read the steps from the last `Kill`, `Stop` or `Expire` on:
//! what came before is the usual way there.
//!
//! A state is known by a hash of 64 bits. With two million states, two of them share one by chance in about one run
//! of ten million, and then a part is left out.
//!
//! # What can happen
//!
//! A process starts, performs its next system call, reads a message or the end of a connection, sees a death,
//! accepts, finds a deadline passed; its application looks at what it was told, is ready, lets go, serves, has
//! drained, drops everything; somebody kills it, stops it, lets it go on, asks it to leave, sends garbage; the
//! kernel closes a part of what a dead process had open (a core dump takes seconds, so any of it may last); a
//! connection breaks; a client connects.
//!
//! Deadlines have no lengths. Whatever is armed may pass at any time at which its process has nothing to read: that
//! covers every relation of two deadlines, also those that the real ones rule out. Where a run says *early
//! deadlines*, so many may pass while something else could happen; when nothing else can, they pass for nothing.
//! That, the kills and the stops are what bounds the runs with three processes; those with two are bounded by
//! nothing but two attempts of each process to join. One relation is needed: patience with byte 1 (`Claim::Bare`)
//! lasts as long as a commit may take, so a lock that was taken that way is no breach of [`properties::GAP`].
//!
//! # What makes it small
//!
//! - What a machine wants and nobody else can see (timers, flags, messages that are queued) is done together with
//!   the step before it: a kill or a stop in between leaves the same to be seen.
//! - A step that asks the kernel and the machine's answer to it are one: the machine knows nothing else meanwhile.
//! - An application without exclusive work looks at once at what it is told, since all that it does then may also
//!   be late.
//! - Clients are alike, and serving one is a single step: nobody dies while it is served.
//! - A starter's pause is at its longest from the beginning, and connections have numbers by their maker.
//! - Lease, lock description and control listener of an attempt that is over are closed in one step.
//!
//! # What must hold
//!
//! Next to what is named here, each state is run to its end without further faults: see `settling`.
//!
//! | invariant of DESIGN.md | property |
//! |---|---|
//! | 1 somebody always listens | [`properties::LISTENS`], [`properties::EXITS`] |
//! | 2 one owner | [`properties::ONE_OWNER`], [`properties::EXCLUSIVE`], [`properties::GAP`], [`properties::FENCING`] |
//! | 3 nobody acts without the lock, silence is never death | [`properties::ACTS`], [`properties::LEAVES`], [`properties::STALE`], [`properties::STOPPED`] |
//! | 4 nothing by accident | [`properties::AS_BEFORE`], in the runs with garbage and with a rehearsal |
//! | 5 the path never disappears | [`properties::PATH`], [`properties::LEASE`] |
//! | 6 every wait has a deadline | [`properties::DEADLINE`], [`properties::IDLE`], [`properties::ENDS_WELL`] |
//! | 7 what arrives is checked | not here, descriptors have no insides: `integration/descriptors.rs`. Nothing is lost by an abort: [`properties::AS_BEFORE`] |
//! | 8 old and new versions talk | not here, there is one version: `src/protocol/tests/format.rs`, `integration/recorded.rs` |
//! | 9 a commit is not the end | [`properties::LISTENS`] and [`properties::ENDS_WELL`], in the runs with a probation; [`reached::STOOD_BY`], [`reached::ROLLED_BACK`] |
//!
//! | rule that closes a hole | where |
//! |---|---|
//! | 1 first batch, true pidfd | only the pidfd in it tells of a death: `Mutation::EndOfFileIsDeath`; credentials: `integration/peers.rs` |
//! | 2 read to the end | `Mutation::JudgedAtTheWrite`, [`reached::COLD`], [`reached::IN_PART`] |
//! | 3 last holder | [`reached::LAST_HOLDER`], `Mutation::{AbortTakenAtItsWord, GivesUpWithoutALook, AnswersWait, OvertakenLetsGo}` |
//! | 4 silent successor | [`reached::SILENT`], `Mutation::{ResumeWithoutTheLock, NoProbe}`, [`properties::STOPPED`] |
//! | 5 order on every wake | `Mutation::TimersBeforeInput`, [`properties::IDLE`] |
//! | 6 release, its nonce and its late answer | [`reached::MISSED`], `Mutation::MissedReleaseForgotten`; a `Released` of another takeover cannot come on a connection, so `src/protocol/tests/alone.rs` |
//! | 7 new names | not here: `integration/takeover.rs`, `integration/bad_input.rs` |
//! | 8 rollback | the runs with a probation, [`reached::OVERDUE`], `Mutation::{ProbationKeepsByte1, StandsByWithNothing}` |
//! | 9 orphans and rehearsals | the run with a rehearsal, [`reached::PREEMPTED`]; the error's pids: `integration/starting.rs` |
//! | 10 control listener | [`properties::ACTS`], `Mutation::ControlStaysOpen`; edges: `integration/faces.rs` |
//! | 11 missing path | nobody of the family removes it: [`properties::PATH`]; somebody else does: `integration/bad_input.rs` |
//! | 12, 13 | not here: they are `ctl`'s |
//! | 14 who may | not here: `integration/bad_input.rs` |
//!
//! # What is left out
//!
//! A successor that received everything and was overtaken lets go where somebody owns, even where that owner received
//! a part only, because its own predecessor died meanwhile: what it misses is bound anew.
//!
//! Nor are here: a full backlog, system calls that fail, writes that block half way, and children that hold
//! copies.

mod actions;
mod application;
mod beginnings;
mod connections;
mod kernel;
mod mutations;
mod performing;
mod process;
mod properties;
mod reached;
mod settling;
mod takeovers;
mod world;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Path};

use self::actions::Action;
use self::beginnings::{draining, nothing, serving, silent};
use self::mutations::Mutation;
use self::properties as p;
use self::reached as r;
use self::takeovers::Takeovers;
use self::world::{ALWAYS, Budget, Rules, World};
use crate::protocol::message::Wants;

/// The rules of most runs.
fn rules() -> Rules {
    Rules {
        exclusive: false,
        state: false,
        entries: 1,
        attempts: 2,
        torn: false,
        probation: false,
        breaks: false,
        off: None,
    }
}

/// Kills of whomever at any point, deadlines that pass at any time.
const KILLS: Budget =
    Budget { kills: ALWAYS, stops: 0, asks: 0, drops: 0, cuts: 0, garbage: 0, verdicts: 0, deadlines: ALWAYS };

/// Process 0 serves, and process 1 is started at some time.
fn two(rules: Rules, clients: usize, budget: Budget) -> Takeovers {
    let world = serving(&rules, 2, clients);
    begin(rules, world, &[(1, Wants::Takeover)], budget)
}

/// Process 0 serves, and two others are started at some time. Whoever is refused gives up.
fn three(rules: Rules, budget: Budget) -> Takeovers {
    let rules = Rules { attempts: 1, ..rules };
    let world = serving(&rules, 3, 0);
    begin(rules, world, &[(1, Wants::Takeover), (2, Wants::Takeover)], budget)
}

/// Process 0 drains, process 1 owns, and process 2 is started at some time.
fn chain(rules: Rules, budget: Budget) -> Takeovers {
    let rules = Rules { attempts: 1, ..rules };
    let world = draining(&rules, 3);
    begin(rules, world, &[(2, Wants::Takeover)], budget)
}

/// Process 0 serves, and process 1 is started at some time, and asks it to stand by.
fn on_probation(rules: Rules, clients: usize, budget: Budget) -> Takeovers {
    two(Rules { probation: true, attempts: 1, ..rules }, clients, budget)
}

fn begin(rules: Rules, mut world: World, to_start: &[(u8, Wants)], budget: Budget) -> Takeovers {
    world.to_start = to_start.to_vec();
    world.budget = budget;
    Takeovers::new(rules, world)
}

/// Past the test harness, which keeps to itself what a test that passes has printed.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Goes through all states: every property must hold in each, and each of these places must be among them.
fn check(name: &str, mut model: Takeovers, reached: &[r::Reached]) {
    model.reached = reached.to_vec();
    let began = Instant::now();
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    say(&format!(
        "model: {name}: {} states, {} different ones, depth {}, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64(),
    ));
    let mut found = checker.discoveries();
    let missing: Vec<&str> =
        reached.iter().map(|(place, _)| *place).filter(|place| found.remove(place).is_none()).collect();
    let shortest = found.into_iter().min_by_key(|(_, path)| path.clone().into_actions().len());
    if let Some((property, path)) = shortest {
        panic!("{name}: does not hold: {property}\n{}", story(path));
    }
    assert!(missing.is_empty(), "{name}: never comes to {missing:?}");
}

/// Each step of a counterexample, and the state that it comes to.
fn story(path: Path<World, Action>) -> String {
    let mut lines = Vec::new();
    let last = path.last_state().clone();
    for (world, action) in path.into_vec() {
        match action {
            Some(Action::Step(pid)) => {
                let op = world.process(pid).todo.front().map(|op| format!("{op:?}")).unwrap_or_default();
                lines.push(format!("  process {pid}: {op}"));
            }
            Some(action) => lines.push(format!("  {action:?}")),
            None => {}
        }
    }
    format!("{}\n{last:#?}", lines.join("\n"))
}

/// Two processes, exhaustively: kills, stops and continues of either at any point, any deadline at any time, descriptors
/// closed piece by piece at a death, and a client that connects at any time.
#[test]
fn two_processes_under_any_kill_and_any_stop() {
    let everything = Budget { stops: ALWAYS, ..KILLS };
    let places = [
        r::TAKEN_OVER,
        r::TAKEN_BACK,
        r::COMES_BACK,
        r::LAST_HOLDER,
        r::COLD,
        r::SILENT,
        r::STOPPED_OWNER,
        r::GAVE_UP,
        r::SERVED,
    ];
    check(
        "two processes, a client, any kill and any stop",
        two(Rules { torn: true, ..rules() }, 1, everything),
        &places,
    );
}

#[test]
fn two_clients() {
    check("two processes, two clients", two(rules(), 2, KILLS), &[r::TAKEN_OVER, r::SERVED]);
}

#[test]
fn exclusive_work_and_a_state() {
    let rules = Rules { exclusive: true, state: true, ..rules() };
    let model = two(rules, 0, Budget { stops: ALWAYS, ..KILLS });
    check("two processes, exclusive work and a state", model, &[r::TAKEN_OVER, r::MISSED, r::STATE]);
}

#[test]
fn two_batches() {
    let model = two(Rules { entries: 300, ..rules() }, 1, KILLS);
    check("two processes, two batches of descriptors", model, &[r::TAKEN_OVER, r::IN_PART]);
}

#[test]
fn asked_to_stop() {
    let model = two(rules(), 0, Budget { asks: 2, drops: 1, garbage: 1, ..KILLS });
    check("two processes; asked to leave twice, 1 drop, 1 piece of garbage", model, &[r::TAKEN_OVER, r::STOPS]);
}

#[test]
fn a_connection_that_breaks() {
    let model = two(Rules { breaks: true, ..rules() }, 0, Budget { cuts: 1, ..KILLS });
    check("two processes; 1 connection breaks", model, &[r::TAKEN_OVER, r::SILENT]);
}

#[test]
fn two_starters() {
    let model = begin(rules(), nothing(2), &[(0, Wants::Takeover), (1, Wants::Takeover)], KILLS);
    check("two starters, nobody there", model, &[r::JOINS]);
}

#[test]
fn a_rehearsal() {
    let rules = Rules { attempts: 1, ..rules() };
    let world = serving(&rules, 3, 0);
    let starts = [(1, Wants::Rehearsal), (2, Wants::Takeover)];
    let model = begin(rules, world, &starts, Budget { kills: 1, deadlines: 2, ..KILLS });
    check("a rehearsal and a takeover; 1 kill, 2 early deadlines", model, &[r::TAKEN_OVER, r::PREEMPTED]);
}

#[test]
fn three_processes() {
    let model = three(rules(), Budget { kills: 1, deadlines: 2, ..KILLS });
    check("three processes; 1 kill, 2 early deadlines", model, &[r::TAKEN_OVER, r::BUSY, r::SUPERSEDED]);
}

#[test]
fn a_takeover_during_a_drain() {
    let model = chain(rules(), Budget { kills: 1, stops: 1, deadlines: 2, ..KILLS });
    check("a takeover during a drain; 1 kill, 1 stop, 2 early deadlines", model, &[r::COMES_BACK, r::BARRED, r::BARE]);
}

#[test]
fn a_takeover_beside_a_silent_one() {
    let rules = Rules { attempts: 1, breaks: true, ..rules() };
    let world = silent(&rules, 3);
    let model = begin(rules, world, &[(2, Wants::Takeover)], Budget { kills: 1, deadlines: 2, ..KILLS });
    check("a takeover beside one that waits; 1 kill, 2 early deadlines", model, &[r::SILENT, r::COMES_BACK]);
}

#[test]
fn a_probation() {
    let model = on_probation(rules(), 1, Budget { verdicts: 1, ..KILLS });
    let places = [r::TAKEN_OVER, r::STOOD_BY, r::ROLLED_BACK, r::CONFIRMED, r::SERVED];
    check("a probation, a client, a verdict, any kill", model, &places);
}

#[test]
fn a_probation_that_nobody_ends() {
    let model = on_probation(rules(), 0, Budget { kills: 1, stops: 1, deadlines: 2, ..KILLS });
    check("a probation; 1 kill, 1 stop, 2 early deadlines", model, &[r::STOOD_BY, r::CONFIRMED, r::OVERDUE]);
}

#[test]
fn a_probation_with_exclusive_work_and_a_state() {
    let rules = Rules { exclusive: true, state: true, ..rules() };
    let model = on_probation(rules, 0, Budget { kills: 1, verdicts: 2, deadlines: 1, ..KILLS });
    let places = [r::ROLLED_BACK, r::STOOD_BY, r::CONFIRMED, r::STATE];
    check("a probation, exclusive work and a state; 2 verdicts, 1 kill, 1 early deadline", model, &places);
}

#[test]
fn a_probation_whose_connection_breaks() {
    let rules = Rules { breaks: true, ..rules() };
    let model = on_probation(rules, 0, Budget { kills: 1, cuts: 1, verdicts: 1, asks: 1, deadlines: 2, ..KILLS });
    let places = [r::ROLLED_BACK, r::STOOD_BY, r::CONFIRMED, r::OVERDUE];
    check("a probation; 1 connection breaks, 1 verdict, 1 asked to leave, 1 kill, 2 early deadlines", model, &places);
}

#[test]
fn a_takeover_during_a_probation() {
    let rules = Rules { probation: true, ..rules() };
    let model = three(rules, Budget { kills: 1, verdicts: 1, deadlines: 0, ..KILLS });
    let places = [r::ROLLED_BACK, r::STOOD_BY, r::CONFIRMED, r::ON_PROBATION];
    check("a takeover during a probation; 1 verdict, 1 kill", model, &places);
}

/// With a rule off, the checker finds how that one property breaks.
fn breaks(off: Mutation, property: &'static str, model: impl Fn(Rules) -> Takeovers) {
    let model = model(Rules { off: Some(off), ..rules() });
    let began = Instant::now();
    let wanted = HasDiscoveries::AllOf(BTreeSet::from([property]));
    let checker = model.checker().finish_when(wanted).spawn_bfs().join();
    let found = checker.discovery(property);
    let steps = found.as_ref().map(|path| path.clone().into_actions().len());
    say(&format!(
        "model: with the rule off: {off:?}: {} breaks {property:?}, {} states, {:.1} s",
        steps.map_or("nothing".to_owned(), |steps| format!("a run of {steps} steps")),
        checker.state_count(),
        began.elapsed().as_secs_f64(),
    ));
    assert!(found.is_some(), "{off:?} breaks nothing");
}

const FEW: Budget = Budget { kills: 1, deadlines: 1, ..KILLS };
const CALM: Budget = Budget { kills: 0, ..KILLS };

#[test]
fn each_rule_is_needed_by_two() {
    use Mutation::*;
    let exclusive = |rules| Rules { exclusive: true, ..rules };
    breaks(ResumeWithoutTheLock, p::ONE_OWNER, |rules| two(rules, 0, CALM));
    breaks(ClosedBeforeOwning, p::LISTENS, |rules| two(rules, 1, KILLS));
    breaks(LeaseUnlocked, p::LEASE, |rules| two(rules, 0, CALM));
    breaks(EndOfFileIsDeath, p::ONE_OWNER, |rules| two(Rules { breaks: true, ..rules }, 0, Budget { cuts: 1, ..CALM }));
    breaks(NoLastLook, p::EXITS, |rules| two(rules, 0, KILLS));
    breaks(OwningBeforeTheLock, p::LEAVES, |rules| two(rules, 0, KILLS));
    breaks(WorkGoesOn, p::EXCLUSIVE, |rules| two(exclusive(rules), 0, CALM));
    breaks(GenerationNotWritten, p::AS_BEFORE, |rules| two(rules, 0, CALM));
    breaks(ResumeKeepsTheGeneration, p::GOES_BACK, |rules| two(rules, 0, KILLS));
    breaks(JudgedAtTheWrite, p::LISTENS, |rules| two(Rules { entries: 300, ..rules }, 0, KILLS));
    breaks(PathRemovedAtExit, p::PATH, |rules| two(rules, 0, CALM));
    breaks(TimersBeforeInput, p::LISTENS, |rules| two(rules, 0, KILLS));
    breaks(AbortTakenAtItsWord, p::LISTENS, |rules| two(rules, 0, KILLS));
    breaks(AnswersWait, p::LISTENS, |rules| two(rules, 0, KILLS));
    breaks(StateNotAwaited, p::STATE, |rules| two(Rules { state: true, ..exclusive(rules) }, 0, KILLS));
    breaks(NoProbe, p::DEADLINE, |rules| two(rules, 0, CALM));
    breaks(NoResumeAfterAnAbort, p::ENDS_WELL, |rules| two(exclusive(rules), 0, CALM));
    breaks(Byte1Kept, p::AS_BEFORE, |rules| two(rules, 0, CALM));
    breaks(TimersStayArmed, p::IDLE, |rules| two(rules, 0, CALM));
    breaks(SameGeneration, p::FENCING, |rules| two(rules, 0, CALM));
    breaks(ProbationKeepsByte1, p::AS_BEFORE, |rules| on_probation(rules, 0, CALM));
    breaks(StandsByWithNothing, p::LISTENS, |rules| on_probation(rules, 1, KILLS));
}

#[test]
fn each_rule_is_needed_by_three() {
    use Mutation::*;
    breaks(NonceNotWritten, p::STALE, |rules| three(rules, FEW));
    breaks(NothingCompared, p::STALE, |rules| three(rules, FEW));
    breaks(ControlStaysOpen, p::ACTS, |rules| three(rules, FEW));
    breaks(GivesUpWithoutALook, p::LISTENS, |rules| three(rules, Budget { deadlines: 2, ..FEW }));
    breaks(MissedReleaseForgotten, p::EXCLUSIVE, |rules| three(Rules { exclusive: true, ..rules }, FEW));
    breaks(Byte1NotShared, p::GAP, |rules| three(rules, FEW));
    breaks(NoPatience, p::GAP, |rules| chain(rules, FEW));
    breaks(PatienceWithoutEnd, p::STOPPED, |rules| chain(rules, Budget { stops: 1, ..FEW }));
    breaks(OvertakenLetsGo, p::LISTENS, |rules| three(rules, FEW));
    breaks(OvertakenTakesAll, p::GAP, |rules| three(rules, FEW));
    breaks(TakeoverNotAwaited, p::GAP, |rules| chain(rules, Budget { kills: 0, stops: 1, ..FEW }));
    breaks(ChangeUnnoticed, p::GAP, |rules| chain(rules, Budget { kills: 0, stops: 1, ..FEW }));
    breaks(WaitsForOthers, p::STOPPED, |rules| three(rules, Budget { stops: 1, deadlines: 2, ..FEW }));
}
