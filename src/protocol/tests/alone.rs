//! Each machine alone, with inputs in any order, also those that no sane peer and no driver would give.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use crate::error::{Refusal, Who};
use crate::manifest::{Entry, FileIdentity, Kind};
use crate::protocol::message::*;
use crate::protocol::predecessor::{self, Found, Predecessor};
use crate::protocol::starter::{self, Lease, Starter};
use crate::protocol::successor::{self, Lock, Successor};
use crate::protocol::{Deadlines, FAMILY_SLOTS, Timer};
use crate::status::Phase;

const TIMERS: [Timer; 10] = [
    Timer::Handshake,
    Timer::Stall,
    Timer::WarmUp,
    Timer::Release,
    Timer::Commit,
    Timer::Probe,
    Timer::Rehearsal,
    Timer::Retry,
    Timer::Start,
    Timer::Orphan,
];

const NONCE: u64 = 7;
const ENTRIES: u32 = 3;

fn any_message() -> impl Strategy<Value = Message> {
    let hello = |wants| Hello { min_version: 1, max_version: 3, nonce: NONCE, wants, ..Hello::default() };
    let offer =
        Offer { version: 1, generation: 1, entries: ENTRIES, descriptors: ENTRIES + FAMILY_SLOTS, ..Offer::default() };
    let entry = Entry {
        name: "web".to_owned(),
        kind: Kind::Raw,
        address: String::new(),
        requested: String::new(),
        path: None,
        path_inode: None,
        backlog: None,
        file: FileIdentity::default(),
        socket: None,
    };
    let ask = |question| Message::from(Ask { question });
    prop_oneof![
        select(vec![
            hello(Wants::Takeover).into(),
            hello(Wants::Rehearsal).into(),
            hello(Wants::Unknown).into(),
            Hello { min_version: 2, ..hello(Wants::Takeover) }.into(),
            Message::Refused(Refusal::new("busy", "")),
            offer.clone().into(),
            Offer { version: 2, ..offer.clone() }.into(),
            Offer { descriptors: ENTRIES, ..offer.clone() }.into(),
            Offer { entries: 0, descriptors: FAMILY_SLOTS, ..offer }.into(),
            Entries { entries: vec![entry.clone(); 3] }.into(),
            Entries { entries: vec![entry] }.into(),
            Progress::default().into(),
            Ready::default().into(),
            Released { nonce: NONCE }.into(),
            Released { nonce: NONCE + 1 }.into(),
            Owning { generation: 2 }.into(),
            Confirmed {}.into(),
            Draining::default().into(),
            Bye::default().into(),
            Abort(Refusal::new("cancelled", "")).into(),
            ask(Question::Status),
            ask(Question::Watch),
            ask(Question::Stop),
            ask(Question::Unknown),
            Done {}.into(),
            Message::Unknown(200),
            Message::Descriptors(1),
        ]),
        (0u32..9).prop_map(|descriptors| Room { descriptors }.into()),
        (0u32..9).prop_map(|descriptors| Ack { descriptors }.into()),
        any::<u32>().prop_map(|descriptors| Ack { descriptors }.into()),
    ]
}

/// What a well-behaved world does next: without it, the walk would hardly get past the first door.
fn usual(machine: &Predecessor) -> predecessor::Input {
    let all = ENTRIES + FAMILY_SLOTS;
    let message: Message = match (machine.phase(), machine.takeover().map(|(_, step, _)| step)) {
        (Phase::Starting, _) => return predecessor::Input::Ready,
        (_, Some("offered")) => Room { descriptors: all }.into(),
        (_, Some("sending")) => Ack { descriptors: all }.into(),
        (_, Some("warming-up")) => Ready::default().into(),
        (_, Some("releasing")) => return predecessor::Input::AppReleased,
        (_, Some(_)) => Owning { generation: 2 }.into(),
        (Phase::Draining, _) => Confirmed {}.into(),
        _ => Hello { min_version: 1, max_version: 1, nonce: NONCE, ..Hello::default() }.into(),
    };
    predecessor::Input::Message(1, message)
}

fn owner_input() -> impl Strategy<Value = predecessor::Input> {
    use predecessor::Input;
    prop_oneof![
        2 => (1u64..4, any_message()).prop_map(|(peer, message)| Input::Message(peer, message)),
        1 => (1u64..4).prop_map(|peer| Input::Fault(peer, "fault".to_owned())),
        1 => (1u64..4).prop_map(Input::Gone),
        1 => (1u64..4).prop_map(Input::Died),
        2 => select(TIMERS.to_vec()).prop_map(Input::Expired),
        2 => Just(Input::AppReleased),
        1 => Just(Input::Ready),
        1 => select(vec![
            Input::Stop,
            Input::InFlight { in_flight: 1, left: Some(Duration::from_secs(1)) },
            Input::Finish { forced: true, in_flight: 1 },
            Input::Finish { forced: false, in_flight: 0 },
        ]),
    ]
}

fn heir_input() -> impl Strategy<Value = successor::Input> {
    use successor::Input;
    let offer = Offer { version: 1, generation: 1, descriptors: FAMILY_SLOTS, ..Offer::default() };
    prop_oneof![
        3 => Just(Input::Message(offer.into())),
        3 => any_message().prop_map(Input::Message),
        3 => Just(Input::Reserved(Ok(()))),
        3 => (0u32..8).prop_map(Input::Arrived),
        3 => Just(Input::Ready(Ready::default())),
        3 => Just(Input::Message(Released { nonce: NONCE }.into())),
        1 => Just(Input::LinkLost),
        1 => Just(Input::Died),
        2 => select(TIMERS.to_vec()).prop_map(Input::Expired),
        1 => select(vec![
            Input::Fault("fault".to_owned()),
            Input::Reserved(Err(Refusal::new("no-room", ""))),
            Input::Lied(Refusal::new("mismatch", "")),
            Input::Progress("on it".to_owned()),
            Input::Cancel(Refusal::new("cancelled", "")),
        ]),
    ]
}

fn starter_input() -> impl Strategy<Value = starter::Input> {
    use starter::Input;
    let later = |code: &str| Refusal { retry_after_ms: Some(100), ..Refusal::new(code, "") };
    prop_oneof![
        select(vec![
            Input::Connected,
            Input::Unreachable,
            Input::Full,
            Input::NotServed,
            Input::Silent,
            Input::Refused(later("starting")),
            Input::Refused(later("busy")),
            Input::Lease(Lease::Taken),
            Input::Lease(Lease::Busy { owned: true }),
            Input::Lease(Lease::Busy { owned: false }),
            Input::Lease(Lease::Replaced),
            Input::Lock(false),
            Input::Lock(true),
        ]),
        select(TIMERS.to_vec()).prop_map(Input::Expired),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_predecessor_owns_only_with_the_lock(
        inputs in prop::collection::vec(prop::option::weighted(0.3, owner_input()), 1..60),
        answers in prop::collection::vec(0u8..5, 60..=60),
        exclusive: bool,
    ) {
        let mut machine = Predecessor::new(1, ENTRIES, exclusive, Deadlines::default(), Who::default(), 128);
        let (mut locked, mut joined, mut generation) = (true, false, 1);
        let (mut left, mut released, mut gone) = (false, false, false);
        let mut armed = BTreeSet::new();
        let mut answers = answers.into_iter().cycle();
        for input in inputs {
            let mut inputs = vec![input.unwrap_or_else(|| usual(&machine))];
            while let Some(input) = inputs.pop() {
                if let predecessor::Input::Expired(timer) = input {
                    armed.remove(&timer);
                }
                let mut out = Vec::new();
                machine.handle(input, &mut out);
                for output in out {
                    use predecessor::{Notice, Output};
                    match output {
                        Output::Unlock => {
                            prop_assert!(locked && joined);
                            locked = false;
                        }
                        Output::Record { generation: written, .. } => {
                            prop_assert!(locked && written >= generation);
                            generation = written;
                        }
                        Output::JoinTakeover => joined = true,
                        Output::LeaveTakeover => joined = false,
                        Output::Claim(_) => {
                            // The kernel gives it to whoever holds it already, and to others only where it is free.
                            let found = match answers.next() {
                                Some(0) => Found::Held,
                                Some(1) => Found::Barred,
                                Some(4) => Found::Unknown,
                                answer => {
                                    locked = true;
                                    generation += u64::from(answer == Some(3));
                                    Found::Free(generation)
                                }
                            };
                            inputs.push(predecessor::Input::Claimed(found));
                        }
                        Output::Arm(timer, _) => {
                            armed.insert(timer);
                        }
                        Output::Disarm(timer) => {
                            armed.remove(&timer);
                        }
                        Output::Tells(Notice::Release) => {
                            prop_assert!(exclusive && !released && !left);
                            released = true;
                        }
                        Output::Tells(Notice::Resume) => {
                            prop_assert!(locked && (released || left));
                            (released, left) = (false, false);
                        }
                        Output::Tells(Notice::Leave(_)) => {
                            prop_assert!(!left);
                            left = true;
                        }
                        Output::Tells(Notice::Exit) => {
                            prop_assert!(left && !gone);
                            gone = true;
                        }
                        _ => {}
                    }
                }
                prop_assert!(!machine.owns() || locked, "{machine:?}");
                prop_assert!(!gone || armed.is_empty(), "{armed:?} after the end");
            }
            if machine.phase() == Phase::Serving {
                armed.remove(&Timer::Rehearsal);
                prop_assert!(armed.is_empty(), "an idle owner waits for {armed:?}");
                prop_assert!(!joined && !left && !released);
            }
        }
    }

    #[test]
    fn a_successor_owns_only_by_the_lock(
        inputs in prop::collection::vec(heir_input(), 1..40),
        answers in prop::collection::vec(select(vec![Lock::Taken, Lock::Busy, Lock::Foreign]), 40..=40),
        rehearsal: bool,
    ) {
        let wants = if rehearsal { Wants::Rehearsal } else { Wants::Takeover };
        let mut out = Vec::new();
        let hello = Successor::hello(NONCE, Who::default(), wants, None);
        let deadlines = Deadlines::default();
        let mut machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut out);
        let (mut locked, mut owner, mut failed, mut received, mut ready) = (false, false, false, false, false);
        let mut armed = BTreeSet::from([Timer::Handshake]);
        let mut answers = answers.into_iter().cycle();
        for input in inputs {
            let mut inputs = vec![input];
            while let Some(input) = inputs.pop() {
                if let successor::Input::Expired(timer) = input {
                    armed.remove(&timer);
                }
                let mut out = Vec::new();
                machine.handle(input, &mut out);
                prop_assert!(!failed || out.is_empty(), "after its end: {out:?}");
                for output in out {
                    use successor::{Notice, Output};
                    match output {
                        Output::TakeLock { .. } => {
                            prop_assert!(!rehearsal, "a rehearsal takes nothing");
                            let lock = answers.next().unwrap_or(Lock::Busy);
                            locked |= lock == Lock::Taken;
                            inputs.push(successor::Input::Lock(lock));
                        }
                        Output::Record { .. } => prop_assert!(locked && !owner && !failed),
                        Output::JoinTakeover => prop_assert!(!rehearsal),
                        Output::Send(Message::Owning(_)) => prop_assert!(locked),
                        Output::Send(Message::Ready(_)) => {
                            prop_assert!(received && !ready);
                            ready = true;
                        }
                        Output::Tells(Notice::Received { .. }) => {
                            prop_assert!(!received);
                            received = true;
                        }
                        Output::Tells(Notice::Owner { .. }) => {
                            prop_assert!(locked && received && !owner && !failed);
                            owner = true;
                        }
                        Output::Tells(Notice::Failed(_)) => {
                            prop_assert!(!failed && !owner);
                            failed = true;
                        }
                        Output::Arm(timer, _) => {
                            armed.insert(timer);
                        }
                        Output::Disarm(timer) => {
                            armed.remove(&timer);
                        }
                        _ => {}
                    }
                }
            }
            prop_assert!(!(owner || failed) || armed.is_empty(), "{armed:?} after the end");
        }
    }

    #[test]
    fn a_starter_founds_only_with_lease_and_lock(inputs in prop::collection::vec(starter_input(), 1..60)) {
        let mut out = Vec::new();
        let mut machine = Starter::new(Duration::from_secs(60), Duration::from_secs(5), &mut out);
        let (mut lease, mut over) = (false, false);
        let (mut asked_lease, mut asked_lock, mut asked_connect) = (false, false, true);
        for input in inputs {
            // Answers come to questions only; everything else may come at any time.
            let (taken, made) = match &input {
                starter::Input::Lease(_) if !std::mem::take(&mut asked_lease) => continue,
                starter::Input::Lock(_) if !std::mem::take(&mut asked_lock) => continue,
                starter::Input::Connected | starter::Input::Unreachable | starter::Input::Full
                    if !std::mem::take(&mut asked_connect) => continue,
                starter::Input::Lease(answer) => {
                    lease |= *answer == Lease::Taken;
                    (false, false)
                }
                input => (*input == starter::Input::Lock(true), *input == starter::Input::Connected),
            };
            let mut out = Vec::new();
            machine.handle(input, &mut out);
            for output in out {
                use starter::Output;
                prop_assert!(!over || matches!(output, Output::Disarm(_) | Output::DropLease), "after the end: {output:?}");
                match output {
                    Output::TakeLease => asked_lease = true,
                    Output::TakeLock => {
                        prop_assert!(lease);
                        asked_lock = true;
                    }
                    Output::Connect => asked_connect = true,
                    Output::DropLease => lease = false,
                    Output::Join => prop_assert!(made && !lease),
                    Output::Found => {
                        prop_assert!(taken && lease);
                        over = true;
                    }
                    Output::Fail(_) => over = true,
                    _ => {}
                }
            }
            prop_assert_eq!(machine.is_over(), over);
        }
    }
}

/// Entries may come and go while somebody rehearses: what he gets is what was announced to him.
#[test]
fn a_rehearsal_gets_as_much_as_was_announced_to_it() {
    let deadlines = Deadlines::default();
    let mut machine = Predecessor::new(1, ENTRIES, false, deadlines, Who::default(), 128);
    let mut out = Vec::new();
    machine.handle(predecessor::Input::Ready, &mut out);
    let hello = Hello { min_version: 1, max_version: 1, nonce: NONCE, wants: Wants::Rehearsal, ..Hello::default() };
    machine.handle(predecessor::Input::Message(1, hello.into()), &mut out);
    machine.set_entries(ENTRIES + 1);
    out.clear();
    machine.handle(predecessor::Input::Message(1, Room { descriptors: ENTRIES }.into()), &mut out);
    let sent = predecessor::Output::SendDescriptors { peer: 1, first: 0, count: ENTRIES as u16 };
    assert_eq!(out, [sent]);
}

/// Its predecessor is dead, and somebody looks at the lock whenever this process does. When its deadline passes it may be
/// the one that has the last copies: it gives up only where the lock is still taken then.
#[test]
fn a_successor_looks_at_the_lock_once_more_before_it_gives_up() {
    use successor::{Failure, Input, Notice, Output};
    let mut machine = taking();
    let mut out = Vec::new();
    machine.handle(Input::Expired(Timer::Commit), &mut out);
    assert_eq!(out, [Output::TakeLock { generation: 1, nonce: NONCE }]);
    let mut waits_in_vain = machine.clone();
    out.clear();
    waits_in_vain.handle(Input::Lock(Lock::Busy), &mut out);
    assert_eq!(out.last(), Some(&Output::Tells(Notice::Failed(Failure::LinkLost))));
    out.clear();
    machine.handle(Input::Lock(Lock::Taken), &mut out);
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
        Input::Message(PEER, Owning { generation: 2 }.into()),
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
