//! Rules of the protocol, each of which can be switched off, to show that the model notices.
//!
//! The machines have no switches. A rule is switched off where a machine meets the kernel: what a machine
//! wants is changed on its way out, or a system call does less than it should. Those of the last kind are where that system
//! call is, in `performing`.

use std::time::Duration;

use super::process::{Op, Work};
use super::world::World;
use crate::protocol::message::{Ack, Message, Owning};
use crate::protocol::predecessor::{self, Found};
use crate::protocol::successor::{self, Lock};
use crate::protocol::{FAMILY_SLOTS, Timer};

/// A rule that is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutation {
    /// A predecessor takes the answer to its attempt at byte 0 for granted.
    ResumeWithoutTheLock,
    /// It closes its listeners with the unlock, before it has heard `Owning`.
    ClosedBeforeOwning,
    /// The lease is given back by `LOCK_UN`, not just closed.
    LeaseUnlocked,
    /// The end of the link is taken for the predecessor's death.
    EndOfFileIsDeath,
    /// The lock file never names a takeover.
    NonceNotWritten,
    /// A successor owns whatever the file says.
    NothingCompared,
    /// A successor that was overtaken lets go, whether somebody owns or not.
    OvertakenLetsGo,
    /// It owns where nobody does, although others are at it.
    OvertakenTakesAll,
    /// Who takes byte 1 does not wait for a takeover that the file names.
    TakeoverNotAwaited,
    /// Who held byte 1 does not look whether others have gone on without it.
    ChangeUnnoticed,
    /// A successor waits for others at it as long as they are.
    WaitsForOthers,
    /// The parties of a takeover do not share byte 1.
    Byte1NotShared,
    /// A process that drains takes byte 0 without byte 1, at once.
    NoPatience,
    /// A process that drains leaves without a last look at the lock.
    NoLastLook,
    /// The control listener goes on after the unlock.
    ControlStaysOpen,
    /// `Owning` is sent before the lock is taken.
    OwningBeforeTheLock,
    /// Exclusive work goes on after the answer to the release.
    WorkGoesOn,
    /// A new owner does not write its generation.
    GenerationNotWritten,
    /// Who takes the service back after somebody else owned keeps its generation.
    ResumeKeepsTheGeneration,
    /// A connection that breaks at a write is not read to its end.
    JudgedAtTheWrite,
    /// Who exits removes the control path.
    PathRemovedAtExit,
    /// A deadline counts before what waits to be read.
    TimersBeforeInput,
    /// A successor takes an `abort` at its word, without a look at the lock.
    AbortTakenAtItsWord,
    /// A deadline ends an attempt without a last look at the lock.
    GivesUpWithoutALook,
    /// The kernel's answer waits behind what came before it.
    AnswersWait,
    /// A new offer does not wait for the answer to a release that was missed.
    MissedReleaseForgotten,
    /// The lock is given back before the state has arrived.
    StateNotAwaited,
    /// After the unlock nobody looks at the lock again by himself.
    NoProbe,
    /// An abort does not tell the application that it goes on.
    NoResumeAfterAnAbort,
    /// Byte 1 is kept after the takeover.
    Byte1Kept,
    /// Patience with byte 1 has no deadline.
    PatienceWithoutEnd,
    /// Who takes the service back leaves his deadlines armed.
    TimersStayArmed,
    /// A commit is no change of the generation.
    SameGeneration,
    /// Byte 1 is kept after the end of a probation.
    ProbationKeepsByte1,
    /// Who stands by drops what it has.
    StandsByWithNothing,
}

/// What a machine wants instead of what it said.
pub(super) fn outputs(off: Option<Mutation>, world: &mut World, pid: u8, work: &Work, ops: &mut Vec<Op>) {
    use predecessor::Output as P;
    use successor::Output as H;
    let Some(off) = off else { return };
    let at = |ops: &[Op], wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted);
    match off {
        Mutation::ClosedBeforeOwning => {
            if let Some(at) = at(ops, &|op| matches!(op, Op::Predecessor(P::Unlock))) {
                ops.insert(at + 1, Op::CloseService);
            }
        }
        Mutation::NonceNotWritten => {
            for op in ops {
                if let Op::Predecessor(P::Record { nonce, .. }) = op {
                    *nonce = 0;
                }
            }
        }
        Mutation::NoLastLook => {
            if matches!(work, Work::Predecessor(predecessor::Input::Finish { .. }))
                && let Some(at) = at(ops, &|op| matches!(op, Op::Predecessor(P::Claim(_))))
            {
                ops.remove(at);
                world.process_mut(pid).claim_answer(Found::Held);
            }
        }
        Mutation::ControlStaysOpen => ops.retain(|op| !matches!(op, Op::Predecessor(P::StopControl))),
        Mutation::OwningBeforeTheLock => {
            let released = matches!(work, Work::Successor(successor::Input::Message(Message::Released(_))));
            let process = world.process(pid);
            if let (true, Some(link), Some(successor)) = (released, process.link, &process.successor) {
                let owning = Owning { generation: successor.generation(), probation_ms: None };
                ops.splice(0..0, [Op::Successor(H::Send(owning.into())), Op::Flush(link)]);
            }
        }
        Mutation::AbortTakenAtItsWord | Mutation::GivesUpWithoutALook => {
            let gives_up = match work {
                Work::Successor(successor::Input::Message(Message::Abort(_))) => off == Mutation::AbortTakenAtItsWord,
                Work::Successor(successor::Input::Expired(Timer::Commit)) => off == Mutation::GivesUpWithoutALook,
                _ => false,
            };
            if gives_up && let Some(at) = at(ops, &|op| matches!(op, Op::Successor(H::TakeLock { .. }))) {
                ops.remove(at);
                world.process_mut(pid).lock_answer(Lock::Busy);
            }
        }
        Mutation::MissedReleaseForgotten => {
            if ops.contains(&Op::Predecessor(P::Tells(predecessor::Notice::Resume))) {
                world.process_mut(pid).owner(predecessor::Input::AppResumed);
            }
        }
        Mutation::StateNotAwaited => {
            let sent = ops.iter().find_map(|op| match op {
                Op::Predecessor(P::SendState(peer, _)) => Some(*peer),
                _ => None,
            });
            if let Some(peer) = sent {
                let ack = Ack { descriptors: FAMILY_SLOTS + 1 + 1 };
                world.process_mut(pid).owner(predecessor::Input::Message(peer, ack.into()));
            }
        }
        Mutation::NoProbe => ops.retain(|op| !matches!(op, Op::Predecessor(P::Arm(Timer::Probe | Timer::Commit, _)))),
        Mutation::NoResumeAfterAnAbort => {
            ops.retain(|op| !matches!(op, Op::Predecessor(P::Tells(predecessor::Notice::Resume))));
        }
        Mutation::Byte1Kept => {
            ops.retain(|op| !matches!(op, Op::Predecessor(P::LeaveTakeover) | Op::Successor(H::LeaveTakeover)));
        }
        Mutation::PatienceWithoutEnd => {
            if let Work::Predecessor(predecessor::Input::Claimed(_)) = work {
                ops.retain(|op| !matches!(op, Op::Predecessor(P::Arm(Timer::Commit, _))));
            }
        }
        Mutation::WaitsForOthers => {
            if let Some(at) = at(ops, &|op| matches!(op, Op::Successor(H::TakeLock { bare: true, .. }))) {
                ops[at] = Op::Successor(H::Arm(Timer::Probe, Duration::ZERO));
            }
        }
        Mutation::TimersStayArmed => ops.retain(|op| !matches!(op, Op::Predecessor(P::Disarm(_)))),
        Mutation::ProbationKeepsByte1 => ops.retain(|op| !matches!(op, Op::Predecessor(P::EndProbation))),
        Mutation::StandsByWithNothing => {
            if let Some(at) = at(ops, &|op| matches!(op, Op::Predecessor(P::Tells(predecessor::Notice::StandBy)))) {
                ops.insert(at, Op::CloseService);
            }
        }
        Mutation::SameGeneration => {
            for op in ops {
                if let Op::Successor(H::Record { generation }) = op {
                    *generation -= 1;
                }
            }
        }
        // Where the system call is.
        Mutation::ResumeWithoutTheLock
        | Mutation::LeaseUnlocked
        | Mutation::EndOfFileIsDeath
        | Mutation::NothingCompared
        | Mutation::OvertakenLetsGo
        | Mutation::OvertakenTakesAll
        | Mutation::TakeoverNotAwaited
        | Mutation::ChangeUnnoticed
        | Mutation::Byte1NotShared
        | Mutation::NoPatience
        | Mutation::WorkGoesOn
        | Mutation::GenerationNotWritten
        | Mutation::ResumeKeepsTheGeneration
        | Mutation::JudgedAtTheWrite
        | Mutation::PathRemovedAtExit
        | Mutation::TimersBeforeInput
        | Mutation::AnswersWait => {}
    }
}

/// Whether it is the answer to what the machine asked the kernel.
pub(super) fn is_answer(work: &Work) -> bool {
    matches!(work, Work::Successor(successor::Input::Lock(_)) | Work::Predecessor(predecessor::Input::Claimed(_)))
}
