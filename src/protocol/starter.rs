//! The way into a family: connect to the owner that lives, or become the first where none does.
//!
//! One loop until its deadline: connect; where nobody answers, try the family lease; where that is held, wait a little
//! and connect again. So two processes that start at the same moment end as one owner and one successor.

use std::time::Duration;

use super::Timer;
use crate::error::Refusal;

/// The first pause between two attempts; it doubles up to [`LONGEST_PAUSE`], and the driver adds jitter.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that an owner can ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// connect(2) succeeded.
    Connected,
    /// Nobody listens: `ENOENT` or `ECONNREFUSED`.
    Unreachable,
    /// Somebody listens, and his queue is full: `EAGAIN`.
    Full,
    /// The connection ended before an offer.
    NotServed,
    /// No answer to `Hello` in time.
    Silent,
    /// The owner refused.
    Refused(Refusal),
    /// The answer to [`Output::TakeLease`].
    Lease(Lease),
    /// The answer to [`Output::TakeLock`].
    Lock(bool),
    /// A deadline passed.
    Expired(Timer),
}

/// What came of an attempt at the family lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lease {
    /// No generation lives, and the locked file is the one at the path.
    Taken,
    /// Some generation lives. `owned`: one of the two locks is held as well.
    Busy { owned: bool },
    /// The file at the path is another one by now.
    Replaced,
}

/// Why a start came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    Refused(Refusal),
    Deadline,
    /// The deadline, with an owner that holds its lock and never answered, or let nobody in: stopped, or busy for too
    /// long.
    Unresponsive,
    /// Somebody listens at the path, although the lease was free.
    Occupied,
    /// The lease is held, the locks are free, and nobody answers.
    Orphaned,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// connect(2), without waiting.
    Connect,
    /// flock(2), without waiting.
    TakeLease,
    /// Close the lease.
    DropLease,
    /// Bytes 1 and 0.
    TakeLock,
    /// Say `Hello` on the connection that was made.
    Join,
    /// Close the connection that was made to see whether somebody is there.
    HangUp,
    /// Replace what is stale at the path, listen: this process is the first, and owns.
    Found,
    Fail(Failure),
    Arm(Timer, Duration),
    Disarm(Timer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Connecting,
    Leasing,
    /// The lease is held; one more connect must be refused.
    Verifying,
    Locking,
    /// A [`successor`](super::successor) is at it on the connection.
    Joined,
    Pausing,
    Over,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Starter {
    stage: Stage,
    pause: Duration,
    orphan: Duration,
    orphan_armed: bool,
    /// The connection of the last attempt was made, and nothing was said on it.
    silent: bool,
    /// The last attempt found a queue that nobody takes from.
    full: bool,
    /// The deadline passed while a takeover was under way: no further attempt after it.
    late: bool,
}

impl Starter {
    /// A new start; its first steps are in `out`.
    pub(crate) fn new(within: Duration, orphan: Duration, out: &mut Vec<Output>) -> Starter {
        out.push(Output::Arm(Timer::Start, within));
        out.push(Output::Connect);
        Starter {
            stage: Stage::Connecting,
            pause: SHORTEST_PAUSE,
            orphan,
            orphan_armed: false,
            silent: false,
            full: false,
            late: false,
        }
    }

    /// Takes one input; appends what is to be done, in order.
    pub(crate) fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        match (self.stage, input) {
            (Stage::Connecting, Input::Connected) => {
                self.full = false;
                self.stage = Stage::Joined;
                // Somebody listens: whether he answers is for the handshake's deadline to say.
                self.rest(out);
                out.push(Output::Join);
            }
            (Stage::Connecting, input @ (Input::Unreachable | Input::Full)) => {
                self.lease(false, out);
                self.full = input == Input::Full;
            }
            (Stage::Joined, Input::NotServed) => self.lease(false, out),
            (Stage::Joined, Input::Silent) => self.lease(true, out),
            (Stage::Joined, Input::Refused(why)) => {
                self.silent = false;
                match (why.code.as_str(), why.retry_after_ms) {
                    // These pass by themselves; everything else is for the caller to decide.
                    ("starting" | "stopping" | "draining", Some(after)) => {
                        let after = Duration::from_millis(after).clamp(SHORTEST_PAUSE, LONGEST_RETRY);
                        self.wait(after, out);
                    }
                    _ => self.fail(Failure::Refused(why), out),
                }
            }
            (Stage::Leasing, Input::Lease(Lease::Taken)) => {
                self.stage = Stage::Verifying;
                self.rest(out);
                out.push(Output::Connect);
            }
            (Stage::Leasing, Input::Lease(Lease::Replaced)) => self.pause(out),
            (Stage::Leasing, Input::Lease(Lease::Busy { owned: false })) if self.silent => {
                self.fail(Failure::Orphaned, out);
            }
            (Stage::Leasing, Input::Lease(Lease::Busy { owned })) => {
                if owned {
                    self.rest(out);
                } else if !self.orphan_armed {
                    out.push(Output::Arm(Timer::Orphan, self.orphan));
                    self.orphan_armed = true;
                }
                self.pause(out);
            }
            (Stage::Verifying, Input::Unreachable) => {
                self.stage = Stage::Locking;
                out.push(Output::TakeLock);
            }
            (Stage::Verifying, Input::Connected) => {
                out.push(Output::HangUp);
                out.push(Output::DropLease);
                self.fail(Failure::Occupied, out);
            }
            (Stage::Verifying, Input::Full) => {
                out.push(Output::DropLease);
                self.fail(Failure::Occupied, out);
            }
            (Stage::Locking, Input::Lock(true)) => {
                self.stage = Stage::Over;
                self.disarm(out);
                out.push(Output::Found);
            }
            (Stage::Locking, Input::Lock(false)) => {
                out.push(Output::DropLease);
                self.pause(out);
            }
            (Stage::Pausing, Input::Expired(Timer::Retry)) => {
                self.stage = Stage::Connecting;
                out.push(Output::Connect);
            }
            // A takeover that is under way has deadlines of its own.
            (Stage::Joined, Input::Expired(Timer::Start)) => self.late = true,
            (Stage::Joined | Stage::Over, Input::Expired(_)) => {}
            (_, Input::Expired(Timer::Start)) => {
                out.push(Output::DropLease);
                self.fail(self.deadline(), out);
            }
            (_, Input::Expired(Timer::Orphan)) if self.orphan_armed => self.fail(Failure::Orphaned, out),
            _ => {}
        }
    }

    /// The attempt that this start made a connection for has received everything, or owns: the start is over.
    pub(crate) fn joined(&mut self, out: &mut Vec<Output>) {
        self.stage = Stage::Over;
        self.disarm(out);
    }

    /// Whether the start has come to its end, one way or the other.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    fn lease(&mut self, silent: bool, out: &mut Vec<Output>) {
        self.silent = silent;
        self.full = false;
        self.stage = Stage::Leasing;
        out.push(Output::TakeLease);
    }

    fn pause(&mut self, out: &mut Vec<Output>) {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        self.wait(pause, out);
    }

    fn wait(&mut self, pause: Duration, out: &mut Vec<Output>) {
        if self.late {
            return self.fail(self.deadline(), out);
        }
        self.stage = Stage::Pausing;
        out.push(Output::Arm(Timer::Retry, pause));
    }

    /// The family is not without an owner, or not known to be, or there is none.
    fn rest(&mut self, out: &mut Vec<Output>) {
        if std::mem::take(&mut self.orphan_armed) {
            out.push(Output::Disarm(Timer::Orphan));
        }
    }

    /// What passing the deadline means: the last attempt tells.
    fn deadline(&self) -> Failure {
        if self.silent || self.full { Failure::Unresponsive } else { Failure::Deadline }
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Output>) {
        self.stage = Stage::Over;
        self.disarm(out);
        out.push(Output::Fail(failure));
    }

    fn disarm(&self, out: &mut Vec<Output>) {
        for timer in [Timer::Retry, Timer::Start, Timer::Orphan] {
            out.push(Output::Disarm(timer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starter() -> Starter {
        Starter::new(Duration::from_secs(60), Duration::from_secs(5), &mut Vec::new())
    }

    fn outputs(starter: &mut Starter, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
        let mut out = Vec::new();
        for input in inputs {
            out.clear();
            starter.handle(input, &mut out);
        }
        out
    }

    /// Otherwise a broken owner could have all of a processor, until the deadline of the start.
    #[test]
    fn an_owner_that_says_try_again_at_once_makes_no_starter_spin() {
        let why = Refusal { retry_after_ms: Some(0), ..Refusal::new("starting", "") };
        let out = outputs(&mut starter(), [Input::Connected, Input::Refused(why)]);
        assert_eq!(out, [Output::Arm(Timer::Retry, SHORTEST_PAUSE)]);
    }

    /// A queue that is still full at the deadline is one before a process that is stopped.
    #[test]
    fn an_owner_whose_queue_stays_full_does_not_respond() {
        let mut starter = starter();
        let busy = Input::Lease(Lease::Busy { owned: true });
        outputs(&mut starter, [Input::Full, busy.clone()]);
        let out = outputs(&mut starter.clone(), [Input::Expired(Timer::Start)]);
        assert_eq!(out.last(), Some(&Output::Fail(Failure::Unresponsive)));
        outputs(&mut starter, [Input::Expired(Timer::Retry), Input::Unreachable, busy]);
        let out = outputs(&mut starter, [Input::Expired(Timer::Start)]);
        assert_eq!(out.last(), Some(&Output::Fail(Failure::Deadline)));
    }

    /// Whoever has the lease knows that no family is alive, whatever it took the last one for.
    #[test]
    fn with_the_lease_in_hand_no_family_is_orphaned() {
        let mut starter = starter();
        let busy = Input::Lease(Lease::Busy { owned: false });
        let out = outputs(&mut starter, [Input::Unreachable, busy]);
        assert!(out.contains(&Output::Arm(Timer::Orphan, Duration::from_secs(5))));
        let taken = [Input::Expired(Timer::Retry), Input::Unreachable, Input::Lease(Lease::Taken)];
        assert_eq!(outputs(&mut starter, taken), [Output::Disarm(Timer::Orphan), Output::Connect]);
        assert_eq!(outputs(&mut starter, [Input::Expired(Timer::Orphan)]), []);
    }
}
