//! Killed, stopped, delayed and refused at every step: each [`fault`] at each [`point`] of both sides of a takeover, and of
//! each end of a probation ([`play`]).
//!
//! The processes are real and know nothing of it: strace injects the fault from outside, so a normal build has neither
//! cost nor switch for it. A point is an occurrence of a system call of the thread that has the handoff; the service
//! runs in another, and so does not disturb the count. Meanwhile [`crowd`] opens connections and keeps one, and a
//! further connection waits in an accept queue.
//!
//! After each fault, [`cell`] checks that there is one owner, that it answers on the control socket and on the service,
//! that no connection was refused, reset or left without an answer but those that a killed process had accepted (each
//! puppet writes down which), that the owner's descriptors lead to what they led to before and those of a process that
//! gave up are what they were before its attempt, that an idle owner does not spin, that nobody ended who was not
//! killed, and that the next takeover goes through under the same load. The one exception is a predecessor that is killed
//! before its descriptors have left it: the successor then binds anew.
//!
//! The ordinary tests run every point of both sides of a takeover with `kill`, `stop`, `late` and `pause`, and every error;
//! those of a probation with `kill` and `stop`, and where the service goes back with `late`. The full product, with delays,
//! exits and deaths after the call as well, is
//!
//! ```sh
//! cargo test --test integration matrix -- --ignored --nocapture
//! ```
//!
//! Both print the matrix, as `held/reached` for each call and fault.

mod cell;
pub(crate) mod crowd;
mod fault;
mod play;
mod player;
mod point;
mod schedule;
mod table;

use std::io::Write;
use std::time::Instant;

use self::fault::{FAULTS, Fault};
use self::play::Play;
use self::point::{Call, Side};
use crate::puppet::skip;

/// Runs the matrix of some sides, prints it, and fails where something did not hold.
fn run(play: Play, sides: &[Side], faults: impl Fn(Call) -> Vec<Fault>) {
    let began = Instant::now();
    let counted: Result<Vec<_>, String> = sides.iter().map(|side| schedule::count(play, *side)).collect();
    let counted = match counted {
        Ok(counted) => counted,
        Err(error) => return skip(&format!("strace: {error}")),
    };
    let table = schedule::run(play, &counted, faults);
    let text = format!("\n{play}\n{}in {:.0?}\n", table.print(), began.elapsed());
    // Past the harness, which keeps to itself what a test that passes has printed.
    let _ = std::io::stderr().write_all(text.as_bytes());
    assert!(table.reached() > 0, "no fault ever came");
    assert!(table.failures().is_empty(), "{}", table.failures().join("\n"));
}

fn errors(call: Call) -> Vec<Fault> {
    call.errors.iter().map(|errno| Fault::Error(errno)).collect()
}

fn violence(_: Call) -> Vec<Fault> {
    vec![Fault::Kill, Fault::Stop, Fault::Late, Fault::Pause]
}

#[test]
fn a_successor_that_is_killed_or_stopped_at_any_point_costs_nothing() {
    run(Play::Takeover, &[Side::Successor], violence);
}

#[test]
fn a_predecessor_that_is_killed_or_stopped_at_any_point_costs_nothing_once_its_descriptors_are_out() {
    run(Play::Takeover, &[Side::Predecessor], violence);
}

/// Errors that pass were once the end of a takeover, or left an owner that nobody could ask.
#[test]
fn an_error_of_a_call_ends_no_service() {
    run(Play::Takeover, &[Side::Predecessor, Side::Successor], errors);
}

fn ends(_: Call) -> Vec<Fault> {
    vec![Fault::Kill, Fault::Stop]
}

fn ends_and_wakes(_: Call) -> Vec<Fault> {
    vec![Fault::Kill, Fault::Stop, Fault::Late]
}

#[test]
fn a_confirmation_that_is_cut_off_at_any_point_costs_nothing() {
    run(Play::Confirm, &[Side::Predecessor, Side::Successor], ends);
}

#[test]
fn a_rollback_that_is_cut_off_at_any_point_costs_nothing() {
    run(Play::Rollback, &[Side::Predecessor, Side::Successor], ends_and_wakes);
}

#[test]
fn a_predecessor_that_is_stopped_at_any_point_of_its_return_returns() {
    run(Play::Death, &[Side::Predecessor], ends_and_wakes);
}

#[test]
#[ignore = "the full product, which takes minutes: see the module"]
fn every_fault_at_every_point_of_both_sides() {
    run(Play::Takeover, &[Side::Predecessor, Side::Successor], |call| FAULTS.into_iter().chain(errors(call)).collect());
}

#[test]
#[ignore = "the full product, which takes minutes: see the module"]
fn every_fault_at_every_point_of_a_probation() {
    let all = |call: Call| FAULTS.into_iter().chain(errors(call)).collect();
    run(Play::Confirm, &[Side::Predecessor, Side::Successor], all);
    run(Play::Rollback, &[Side::Predecessor, Side::Successor], all);
    run(Play::Death, &[Side::Predecessor], all);
}
