//! The starter's machine under any order of events: it founds only with lease and lock in hand.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};

use super::says::Code;
use crate::protocol::Timer;
use crate::protocol::starter::{Input, Lease, Output, Starter};

/// The most that one input may ask for.
const MOST_OUTPUTS: usize = 8;
/// No attempt follows the last one sooner: an owner may not make a starter spin.
const SHORTEST: Duration = Duration::from_millis(1);

/// One thing that happens. An answer comes only where it was asked for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Event {
    Connected,
    Unreachable,
    Full,
    NotServed,
    Silent,
    Refused(Code, Option<u16>),
    LeaseTaken,
    LeaseBusy {
        owned: bool,
    },
    LeaseReplaced,
    Lock(bool),
    /// A deadline that is armed passes.
    Expires(u8),
    /// A deadline that was on its way when it was taken back.
    Late(u8),
    /// The attempt has received everything.
    Joined,
}

/// The bytes are a list of events, in the encoding of `arbitrary`.
pub fn starter(data: &[u8]) {
    let mut out = Vec::new();
    let machine = Starter::new(Duration::from_secs(60), Duration::from_secs(5), &mut out);
    let mut walk = Walk {
        machine,
        armed: BTreeSet::new(),
        late: BTreeSet::new(),
        asked: None,
        made: false,
        joined: false,
        lease: false,
        lock: false,
        over: false,
    };
    out.into_iter().for_each(|output| walk.perform(output));
    let mut bytes = Unstructured::new(data);
    while !bytes.is_empty()
        && let Ok(event) = Event::arbitrary(&mut bytes)
    {
        walk.happen(event);
    }
}

/// What the machine waits to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Connect,
    Lease,
    Lock,
}

struct Walk {
    machine: Starter,
    armed: BTreeSet<Timer>,
    /// Those that were taken back, and not armed again.
    late: BTreeSet<Timer>,
    asked: Option<Asked>,
    /// The connection of the last attempt is there, and nothing was said on it yet.
    made: bool,
    /// A successor is at it.
    joined: bool,
    lease: bool,
    lock: bool,
    over: bool,
}

impl Walk {
    fn happen(&mut self, event: Event) {
        let answer = |walk: &mut Walk, to: Asked, input: Input| {
            let due = walk.asked == Some(to);
            walk.asked = walk.asked.filter(|_| !due);
            due.then_some(input)
        };
        let input = match event {
            Event::Connected => answer(self, Asked::Connect, Input::Connected).inspect(|_| self.made = true),
            Event::Unreachable => answer(self, Asked::Connect, Input::Unreachable),
            Event::Full => answer(self, Asked::Connect, Input::Full),
            Event::LeaseTaken => answer(self, Asked::Lease, Input::Lease(Lease::Taken)).inspect(|_| self.lease = true),
            Event::LeaseBusy { owned } => answer(self, Asked::Lease, Input::Lease(Lease::Busy { owned })),
            Event::LeaseReplaced => answer(self, Asked::Lease, Input::Lease(Lease::Replaced)),
            Event::Lock(taken) => answer(self, Asked::Lock, Input::Lock(taken)).inspect(|_| self.lock = taken),
            // What ends an attempt ends one that there is.
            Event::NotServed => std::mem::take(&mut self.joined).then_some(Input::NotServed),
            Event::Silent => std::mem::take(&mut self.joined).then_some(Input::Silent),
            Event::Refused(code, after) => {
                let why = code.refusal(after.map(u64::from));
                std::mem::take(&mut self.joined).then_some(Input::Refused(why))
            }
            Event::Expires(which) => {
                let timer = self.armed.iter().nth(usize::from(which) % self.armed.len().max(1)).copied();
                timer.map(|timer| {
                    self.armed.remove(&timer);
                    Input::Expired(timer)
                })
            }
            Event::Late(which) => {
                let timer = self.late.iter().nth(usize::from(which) % self.late.len().max(1)).copied();
                timer.map(Input::Expired)
            }
            Event::Joined => {
                if self.joined {
                    let mut out = Vec::new();
                    self.machine.joined(&mut out);
                    self.over = true;
                    out.into_iter().for_each(|output| self.perform(output));
                }
                None
            }
        };
        let Some(input) = input else { return };
        let what = input.clone();
        let mut out = Vec::new();
        self.machine.handle(input, &mut out);
        assert!(out.len() <= MOST_OUTPUTS, "{what:?} makes {} outputs", out.len());
        for output in out {
            // The lease may be dropped just before the end is told.
            assert!(!self.over || matches!(output, Output::Disarm(_)), "{what:?} after the end: {output:?}");
            self.perform(output);
        }
        assert_eq!(self.machine.is_over(), self.over, "{what:?}");
        assert!(!self.over || self.armed.is_empty(), "{what:?}: {:?} after the end", self.armed);
        // It never waits for nothing: something was asked, or is under way, or a deadline runs.
        let waits = self.asked.is_some() || self.joined || self.armed.contains(&Timer::Retry);
        assert!(self.over || waits, "{what:?}: it waits for nothing");
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Connect => self.asked = Some(Asked::Connect),
            Output::TakeLease => {
                assert!(!self.lease);
                self.asked = Some(Asked::Lease);
            }
            Output::TakeLock => {
                assert!(self.lease);
                self.asked = Some(Asked::Lock);
            }
            Output::DropLease => (self.lease, self.lock) = (false, false),
            Output::Join => {
                assert!(self.made && !self.lease);
                (self.made, self.joined) = (false, true);
            }
            Output::HangUp => {
                assert!(self.made);
                self.made = false;
            }
            Output::Found => {
                assert!(self.lease && self.lock && !self.over);
                self.over = true;
            }
            Output::Fail(_) => {
                assert!(!self.over && !self.lease, "it fails with the lease in hand");
                self.over = true;
            }
            Output::Arm(timer, after) => {
                assert!(after >= SHORTEST, "{timer:?} after {after:?}");
                self.late.remove(&timer);
                self.armed.insert(timer);
            }
            Output::Disarm(timer) => self.late.extend(self.armed.take(&timer)),
        }
    }
}
