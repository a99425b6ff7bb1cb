//! Each machine alone, step by step, where a whole world would hide the point. Inputs in any order are for the fuzz
//! targets.

use std::sync::Arc;

use crate::error::{Refusal, Who};
use crate::manifest::Entry;
use crate::protocol::message::{Abort, Ack, Confirmed, Entries, Hello, Message, Offer, Owning, Ready, Room, Wants};
use crate::protocol::predecessor::{self, Found, Predecessor};
use crate::protocol::successor::{self, Lock, Successor};
use crate::protocol::{DELIVERY, Deadlines, FAMILY_SLOTS, MAX_COMMIT, MAX_RELEASE, READER_GRACE, Timer};
use crate::status::Phase;

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
    use successor::{Input, Lock, Output};
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

/// A successor that has said hello, and was offered so many entries; and what it then wants.
fn offered(entries: u32) -> (Successor, Vec<successor::Output>) {
    let hello = Successor::hello(NONCE, Who::default(), Wants::Takeover, None);
    let deadlines = Deadlines::default();
    let mut out = Vec::new();
    let mut machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out);
    out.clear();
    let offer = Offer { version: 1, generation: 1, entries, descriptors: FAMILY_SLOTS + entries, ..Offer::default() };
    machine.handle(successor::Input::Message(offer.into()), &mut out);
    (machine, out)
}

/// An entry with so much text, its kind and its name included.
fn entry(number: u32, text: usize) -> Arc<Entry> {
    let raw = format!(r#"{{"name": "{number:04}", "kind": "raw", "address": "{}"}}"#, "x".repeat(text - 7));
    Arc::new(serde_json::from_str(&raw).unwrap())
}

/// Each word comes in time, and it never ends.
#[test]
fn an_owner_that_says_a_little_at_a_time_is_listened_to_for_a_minute() {
    use successor::{Failure, Input, Notice, Output};
    let (mut machine, mut out) = offered(1000);
    let whole = DELIVERY + READER_GRACE;
    assert!(out.contains(&Output::Arm(Timer::Delivery, whole)), "{out:?}");
    out.clear();
    machine.handle(Input::Message(Entries { entries: vec![entry(1, 10)] }.into()), &mut out);
    assert!(out.contains(&Output::Arm(Timer::Handshake, Deadlines::default().handshake)), "{out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::Arm(Timer::Delivery, _))), "begun anew: {out:?}");
    let mut listing = machine.clone();
    listing.handle(Input::Expired(Timer::Delivery), &mut out);
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Failed(Failure::Deadline("the manifest", whole)))));

    let rest = (2..=1000).map(|number| entry(number, 10)).collect();
    for input in [Input::Message(Entries { entries: rest }.into()), Input::Reserved(Ok(())), Input::Arrived(4)] {
        machine.handle(input, &mut out);
    }
    let mut receiving = machine.clone();
    receiving.handle(Input::Expired(Timer::Delivery), &mut out);
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Failed(Failure::Deadline("the descriptors", whole)))));

    out.clear();
    machine.handle(Input::Arrived(1000), &mut out);
    assert!(out.contains(&Output::Disarm(Timer::Delivery)), "{out:?}");
}

/// There is no room for them, so nothing of them is kept.
#[test]
fn a_long_manifest_is_not_received_for_nothing() {
    use successor::{Failure, Input, Notice, Output};
    let (mut machine, out) = offered(1_000_000);
    assert!(out.contains(&Output::Reserve(1_000_000 + FAMILY_SLOTS)), "{out:?}");
    let mut crowded = machine.clone();
    let mut out = Vec::new();
    let why = Refusal::new("no-room", "1000036 descriptors are needed, and there is room for 1000");
    crowded.handle(Input::Reserved(Err(why.clone())), &mut out);
    assert_eq!(out.first(), Some(&Output::Send(Abort(why.clone()).into())));
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Failed(Failure::Withdrew(why)))));

    // Room is told of once the manifest is whole, and not before.
    out.clear();
    machine.handle(Input::Reserved(Ok(())), &mut out);
    assert_eq!(out, []);
    assert!(!offered(1000).1.iter().any(|output| matches!(output, Output::Reserve(_))));
}

/// Names and addresses are short. An owner that says otherwise would have its successor keep 64 KiB for each entry.
#[test]
fn a_manifest_has_a_kibibyte_for_each_entry_and_some_more() {
    use successor::{Failure, Input, Notice, Output};
    let (mut machine, mut out) = offered(100);
    // One that has more than others, then as much as entries may have.
    let long = vec![entry(0, 60_000)];
    let usual = (1..90).map(|number| entry(number, 1024)).collect();
    for entries in [long, usual] {
        machine.handle(Input::Message(Entries { entries }.into()), &mut out);
    }
    assert!(!out.iter().any(|output| matches!(output, Output::Tells(_))), "{out:?}");
    let beyond = vec![entry(99, 100 * 1024 + 64 * 1024 - 60_000 - 89 * 1024 + 1)];
    out.clear();
    machine.handle(Input::Message(Entries { entries: beyond }.into()), &mut out);
    let why = Refusal::new("protocol", "more text than entries have");
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Failed(Failure::Withdrew(why)))));
}

/// Each word comes in time, and all of them together never do.
#[test]
fn a_successor_that_says_a_little_at_a_time_is_waited_for_for_a_minute() {
    use predecessor::{Input, Output};
    const PEER: u64 = 1;
    const ENTRIES: u32 = 10_000;
    let mut machine = Predecessor::new(1, ENTRIES, false, Deadlines::default(), Who::default(), 128);
    let mut out = Vec::new();
    let hello = Hello { min_version: 1, max_version: 1, nonce: NONCE, ..Hello::default() };
    machine.handle(Input::Ready, &mut out);
    machine.handle(Input::Message(PEER, hello.into()), &mut out);
    assert!(out.contains(&Output::Arm(Timer::Delivery, DELIVERY)), "{out:?}");
    out.clear();
    machine.handle(Input::Message(PEER, Room { descriptors: FAMILY_SLOTS + ENTRIES }.into()), &mut out);
    for descriptors in 1..=20 {
        machine.handle(Input::Message(PEER, Ack { descriptors }.into()), &mut out);
    }
    assert!(out.contains(&Output::Arm(Timer::Handshake, Deadlines::default().handshake)), "{out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::Arm(Timer::Delivery, _))), "begun anew: {out:?}");
    out.clear();
    machine.handle(Input::Expired(Timer::Delivery), &mut out);
    let told =
        |output: &Output| matches!(output, Output::Send(PEER, Message::Abort(Abort(why))) if why.code == "deadline");
    assert!(out.iter().any(told), "{out:?}");
    assert_eq!(machine.phase(), Phase::Serving);
    // The next one is made an offer.
    out.clear();
    let hello = Hello { min_version: 1, max_version: 1, nonce: NONCE + 1, ..Hello::default() };
    machine.handle(Input::Message(PEER + 1, hello.into()), &mut out);
    assert!(out.contains(&Output::SendManifest(PEER + 1)), "{out:?}");
}
