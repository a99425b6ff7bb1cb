//! Each machine alone, step by step, where a whole world would hide the point. Inputs in any order are for the fuzz
//! targets.

use crate::error::Who;
use crate::protocol::message::{Ack, Confirmed, Hello, Offer, Owning, Ready, Room, Wants};
use crate::protocol::predecessor::{self, Found, Predecessor};
use crate::protocol::successor::{self, Lock, Successor};
use crate::protocol::{Deadlines, FAMILY_SLOTS, MAX_COMMIT, MAX_RELEASE, READER_GRACE, Timer};

const NONCE: u64 = 7;

/// Entries may come and go while somebody rehearses: what he gets is what was announced to him.
#[test]
fn a_rehearsal_gets_as_much_as_was_announced_to_it() {
    use predecessor::{Input, Output};
    let mut machine = Predecessor::new(1, 3, false, Deadlines::default(), Who::default(), 128);
    let mut out = Vec::new();
    machine.handle(Input::Ready, &mut out);
    let hello = Hello { min_version: 1, max_version: 1, nonce: NONCE, wants: Wants::Rehearsal, ..Hello::default() };
    machine.handle(Input::Message(1, hello.into()), &mut out);
    machine.set_entries(4);
    out.clear();
    machine.handle(Input::Message(1, Room { descriptors: 3 }.into()), &mut out);
    assert_eq!(out, [Output::SendDescriptors { peer: 1, first: 0, count: 3 }]);
}

/// Its predecessor is dead, and somebody looks at the lock whenever this process does. When its deadline passes it may be
/// the one that has the last copies: it gives up only where the lock is still taken then.
#[test]
fn a_successor_looks_at_the_lock_once_more_before_it_gives_up() {
    use successor::{Failure, Input, Notice, Output};
    let mut machine = taking();
    let mut out = Vec::new();
    machine.handle(Input::Expired(Timer::Commit), &mut out);
    assert_eq!(out, [Output::TakeLock { generation: 1, nonce: NONCE, bare: false }]);
    let mut waits_in_vain = machine.clone();
    out.clear();
    waits_in_vain.handle(Input::Lock(Lock::Busy), &mut out);
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Failed(Failure::LinkLost))));
    out.clear();
    machine.handle(Input::Lock(Lock::Taken { generation: 1 }), &mut out);
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Owner { cold: false })));
}

/// It lost patience with byte 1 once, before it heard that its successor owns. When that dies, and byte 1 is kept by a
/// process that is stopped, it must lose patience again, and not wait for ever.
#[test]
fn a_drainer_has_patience_anew() {
    use predecessor::{Claim, Input, Output};
    const PEER: u64 = 1;
    let mut machine = Predecessor::new(1, 0, false, Deadlines::default(), Who::default(), 128);
    let mut out = Vec::new();
    let hello = Hello { min_version: 1, max_version: 1, nonce: NONCE, ..Hello::default() };
    let inputs = [
        Input::Ready,
        Input::Message(PEER, hello.into()),
        Input::Message(PEER, Room { descriptors: FAMILY_SLOTS }.into()),
        Input::Message(PEER, Ack { descriptors: FAMILY_SLOTS }.into()),
        Input::Message(PEER, Ready::default().into()),
        Input::Expired(Timer::Commit),
        Input::Claimed(Found::Barred),
        Input::Message(PEER, Owning { generation: 2, probation_ms: None }.into()),
        Input::Message(PEER, Confirmed {}.into()),
        Input::Gone(PEER),
    ];
    for input in inputs {
        machine.handle(input, &mut out);
    }
    assert_eq!(out.last(), Some(&Output::Claim(Claim::Exclusive)));
    out.clear();
    machine.handle(Input::Claimed(Found::Barred), &mut out);
    assert_eq!(out, [Output::Arm(Timer::Commit, Deadlines::default().commit)]);
    out.clear();
    machine.handle(Input::Expired(Timer::Commit), &mut out);
    assert_eq!(out, [Output::Claim(Claim::Bare)]);
}

/// A successor that is ready, whose predecessor has died, and that found the lock taken.
fn taking() -> Successor {
    use successor::Input;
    let hello = Successor::hello(NONCE, Who::default(), Wants::Takeover, None);
    let deadlines = Deadlines::default();
    let mut out = Vec::new();
    let mut machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out);
    let offer = Offer { version: 1, generation: 1, descriptors: FAMILY_SLOTS, ..Offer::default() };
    let inputs = [
        Input::Message(offer.into()),
        Input::Reserved(Ok(())),
        Input::Arrived(FAMILY_SLOTS),
        Input::Died,
        Input::Lock(Lock::Busy),
        Input::Ready(Ready::default()),
        Input::Lock(Lock::Busy),
    ];
    for input in inputs {
        machine.handle(input, &mut out);
    }
    machine
}

/// An owner that lies, or is mistaken, does not keep its successor for ever.
#[test]
fn what_an_offer_announces_is_waited_for_within_limits() {
    use successor::{Input, Output};
    let hello = Successor::hello(NONCE, Who::default(), Wants::Takeover, None);
    let deadlines = Deadlines::default();
    let mut out = Vec::new();
    let mut machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out);
    let announced = u64::MAX;
    let offer = Offer { version: 1, generation: 1, descriptors: FAMILY_SLOTS, ..Offer::default() };
    let offer = Offer { release_ms: announced, commit_ms: announced, ..offer };
    let inputs = [
        Input::Message(offer.into()),
        Input::Reserved(Ok(())),
        Input::Arrived(FAMILY_SLOTS),
        Input::Ready(Ready::default()),
        Input::LinkLost,
    ];
    for input in inputs {
        machine.handle(input, &mut out);
    }
    for (timer, most) in [(Timer::Release, MAX_RELEASE), (Timer::Commit, MAX_COMMIT)] {
        assert!(out.contains(&Output::Arm(timer, most + READER_GRACE)), "{timer:?}: {out:?}");
    }
}

/// A commit of ten seconds is waited for that long, and a second more, before byte 1 is passed over.
#[test]
fn an_overtaken_successor_is_as_patient_as_its_owner_has_announced() {
    use successor::{Input, Output};
    for (commit_ms, looks) in [(0, 3), (2_000, 3), (10_000, 11), (u64::MAX, 61)] {
        let hello = Successor::hello(NONCE, Who::default(), Wants::Takeover, None);
        let deadlines = Deadlines::default();
        let mut out = Vec::new();
        let mut machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out);
        let offer = Offer { version: 1, generation: 1, descriptors: FAMILY_SLOTS, commit_ms, ..Offer::default() };
        for input in [Input::Message(offer.into()), Input::Reserved(Ok(())), Input::Arrived(FAMILY_SLOTS)] {
            machine.handle(input, &mut out);
        }
        machine.handle(Input::LinkLost, &mut out);
        let mut looked = 0;
        let bare = loop {
            out.clear();
            machine.handle(Input::Lock(Lock::Unsettled), &mut out);
            let bare = out.iter().find_map(|output| match output {
                Output::TakeLock { bare, .. } => Some(*bare),
                _ => None,
            });
            if let Some(bare) = bare {
                break bare;
            }
            assert!(out.contains(&Output::Arm(Timer::Probe, deadlines.probe)), "{out:?}");
            machine.handle(Input::Expired(Timer::Probe), &mut out);
            looked += 1;
        };
        assert!(bare && looked == looks, "{commit_ms} ms: {looked} looks");
    }
}
