//! A holder: what it does when its successor gives it nothing, and how an owner deals with several of them.

use std::time::Duration;

use crate::error::{Refusal, Who};
use crate::hold::Hold;
use crate::protocol::holder::{self, Holder, Look};
use crate::protocol::message::{
    Abort, Ack, Ask, Confirmed, Held, Hello, Message, Owning, Question, Ready, Room, TakeBack, Wants,
};
use crate::protocol::predecessor::{Found, Input, Notice, Output, Peer, Predecessor, Reason, Takes};
use crate::protocol::{DELIVERY, Deadlines, FAMILY_SLOTS, Timer};
use crate::status::Phase;

/// The next owner.
const HEIR: Peer = 1;
const CLIENT: Peer = 2;
const HOLDERS: [Peer; 2] = [11, 12];

fn feed(machine: &mut Holder, inputs: &[holder::Input]) -> Vec<holder::Output> {
    let mut out = Vec::new();
    for input in inputs {
        machine.handle(input.clone(), &mut out);
    }
    out
}

/// A holder that has owned, and asks the one that took over.
fn has_left() -> Holder {
    let mut machine = Holder::new(Deadlines::default(), &mut Vec::new());
    let out = feed(
        &mut machine,
        &[
            holder::Input::Whole { generation: 1 },
            holder::Input::Ended(None),
            holder::Input::Looked(Look::Free(1)),
            holder::Input::Expired(Timer::Grace),
            holder::Input::Claimed(Found::Free(1)),
        ],
    );
    assert!(out.contains(&holder::Output::Own { generation: 2 }), "{out:?}");
    assert_eq!(feed(&mut machine, &[holder::Input::Left]), [holder::Output::Ask]);
    assert!(machine.has_owned());
    machine
}

fn failed(refused: bool) -> holder::Input {
    holder::Input::Failed { after: Some(Duration::from_secs(1)), refused }
}

fn drains(out: &[holder::Output]) -> bool {
    out.contains(&holder::Output::Drain)
}

#[test]
fn a_holder_that_owned_and_is_refused_for_good_drains_and_keeps_what_it_has() {
    let mut machine = has_left();
    let out = feed(&mut machine, &[failed(true)]);
    assert!(drains(&out) && out.contains(&holder::Output::Arm(Timer::Retry, Duration::from_secs(1))), "{out:?}");
    // Until it has said its last words it is ready to take the service back.
    assert!(machine.has_owned() && machine.keeps());
    assert_eq!(feed(&mut machine, &[holder::Input::Gone]), [holder::Output::Look]);
    assert!(!machine.has_owned() && machine.keeps() && !machine.is_over());
    // It asks again when its time has come, and owns if nobody does.
    feed(&mut machine, &[holder::Input::Looked(Look::Held)]);
    assert!(feed(&mut machine, &[holder::Input::Expired(Timer::Retry)]).contains(&holder::Output::Ask));
    let free = [holder::Input::Looked(Look::Free(3)), holder::Input::Expired(Timer::Grace)];
    feed(&mut machine, &free);
    let out = feed(&mut machine, &[holder::Input::Claimed(Found::Free(3))]);
    assert!(out.contains(&holder::Output::Own { generation: 4 }), "{out:?}");
}

#[test]
fn a_refusal_that_passes_is_waited_for_until_the_drain_deadline() {
    let mut machine = has_left();
    for _ in 0..3 {
        assert!(!drains(&feed(&mut machine, &[failed(false)])));
        assert!(feed(&mut machine, &[holder::Input::Expired(Timer::Retry)]).contains(&holder::Output::Ask));
    }
    assert!(drains(&feed(&mut machine, &[holder::Input::Overdue])));
    assert!(!drains(&feed(&mut machine, &[holder::Input::Overdue, failed(true)])), "once");
    // The attempt of the moment may still come to something.
    let out = feed(&mut machine, &[holder::Input::Gone, holder::Input::Whole { generation: 3 }]);
    assert!(out.contains(&holder::Output::Tells(holder::Notice::Following)), "{out:?}");
}

/// Its last look at the lock may find that the successor is dead; and the next time it leaves, it drains anew.
#[test]
fn a_holder_that_drains_may_own_again() {
    let mut machine = has_left();
    assert!(drains(&feed(&mut machine, &[failed(true)])));
    let out = feed(&mut machine, &[holder::Input::Resumed]);
    assert!(out.contains(&holder::Output::Tells(holder::Notice::Holding)), "{out:?}");
    feed(&mut machine, &[holder::Input::Left]);
    assert!(drains(&feed(&mut machine, &[failed(true)])));
}

#[test]
fn only_a_holder_that_has_left_drains() {
    let mut following = Holder::new(Deadlines::default(), &mut Vec::new());
    feed(&mut following, &[holder::Input::Whole { generation: 1 }]);
    let inputs = [holder::Input::Changed, holder::Input::Expired(Timer::Retry), failed(true), holder::Input::Overdue];
    assert!(!drains(&feed(&mut following, &inputs)));
}

fn owner() -> Predecessor {
    let mut machine = Predecessor::new(1, 0, false, Deadlines::default(), Who::default(), 128);
    machine.handle(Input::Ready, &mut Vec::new());
    machine
}

fn hello(nonce: u64, wants: Wants) -> Hello {
    Hello { min_version: 1, max_version: 1, nonce, wants, hold: true, ..Hello::default() }
}

fn hear(machine: &mut Predecessor, peer: Peer, message: impl Into<Message>) -> Vec<Output> {
    give(machine, Input::Message(peer, message.into()))
}

fn give(machine: &mut Predecessor, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    machine.handle(input, &mut out);
    out
}

/// A holder comes, and has everything.
fn keep(machine: &mut Predecessor, peer: Peer) -> Vec<Output> {
    let mut out = hear(machine, peer, hello(peer, Wants::Hold));
    out.extend(hear(machine, peer, Room { descriptors: FAMILY_SLOTS }));
    out.extend(hear(machine, peer, Ack { descriptors: FAMILY_SLOTS }));
    out
}

/// How each connection was ended, by the code.
fn aborted(out: &[Output]) -> Vec<(Peer, &str)> {
    let of = |output| match output {
        &Output::Send(peer, Message::Abort(Abort(ref why))) => Some((peer, why.code.as_str())),
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

#[test]
fn each_holder_has_a_deadline_of_its_own() {
    let within = Deadlines::default().handshake;
    let mut machine = owner();
    let [stalled, other] = HOLDERS;
    let armed = hear(&mut machine, stalled, hello(1, Wants::Hold));
    assert!(armed.contains(&Output::ArmHolder(stalled, within)), "{armed:?}");
    // What another one says, and that it has everything, is no word of the first.
    for out in [hear(&mut machine, other, hello(2, Wants::Hold)), keep(&mut machine, 13)] {
        let touched = |output: &Output| matches!(output, Output::ArmHolder(peer, _) | Output::DisarmHolder(peer) if *peer == stalled);
        assert!(!out.iter().any(touched), "{out:?}");
    }
    // Each word is waited for anew, and all of it only for so long.
    let whole = Output::ArmHolding(stalled, DELIVERY);
    assert!(armed.contains(&whole), "{armed:?}");
    let out = hear(&mut machine, stalled, Room { descriptors: FAMILY_SLOTS });
    assert!(out.contains(&Output::ArmHolder(stalled, within)) && !out.contains(&whole), "{out:?}");
    let out = give(&mut machine, Input::HolderExpired(stalled));
    assert_eq!(aborted(&out), [(stalled, "deadline")], "{out:?}");
    assert!(out.contains(&Output::Close(stalled)) && machine.is_holder(other) && machine.is_holder(13));
    // One that has everything waits for nothing.
    assert_eq!(give(&mut machine, Input::HolderExpired(13)), []);
    let done = give(&mut machine, Input::Gone(other));
    assert!(done.contains(&Output::DisarmHolder(other)), "{done:?}");
}

#[test]
fn what_the_owner_lacks_is_no_fault_of_a_holder() {
    let mut machine = owner();
    let [short, other] = HOLDERS;
    hear(&mut machine, short, hello(1, Wants::Hold));
    keep(&mut machine, other);
    let out = give(&mut machine, Input::CannotKeep(short, Refusal::new("shortage", "none left")));
    assert_eq!(aborted(&out), [(short, "shortage")]);
    assert!(!machine.is_holder(short) && machine.is_holder(other));
    assert_eq!(machine.phase(), Phase::Serving);
}

fn hold() -> Hold {
    Hold { reason: "disk full".to_owned(), ..Hold::default() }
}

fn ask_hold(machine: &mut Predecessor) -> Vec<Output> {
    hear(machine, CLIENT, Ask { hold: Some(hold()), ..Question::Hold.into() })
}

fn held(peer: Peer, hold: Option<Hold>) -> Output {
    Output::Send(peer, Held { hold }.into())
}

#[test]
fn a_holder_is_told_of_a_hold_and_of_its_end() {
    let mut machine = owner();
    let [before, after] = HOLDERS;
    let older = 13;
    keep(&mut machine, before);
    hear(&mut machine, older, Hello { hold: false, ..hello(3, Wants::Hold) });
    let out = ask_hold(&mut machine);
    assert!(out.contains(&held(before, Some(hold()))) && !out.contains(&held(older, Some(hold()))), "{out:?}");
    let out = keep(&mut machine, after);
    assert!(out.contains(&held(after, Some(hold()))), "{out:?}");
    let out = hear(&mut machine, CLIENT, Ask::from(Question::Lift));
    assert!(out.contains(&held(before, None)) && out.contains(&held(after, None)), "{out:?}");
    let out = keep(&mut machine, 14);
    assert!(!out.iter().any(|output| matches!(output, Output::Send(_, Message::Held(_)))), "{out:?}");
}

/// Without the holder a start would meet nobody who could refuse it. The hold goes on with that one.
#[test]
fn a_hold_of_a_dead_service_lets_the_next_start_in_and_goes_on_in_it() {
    let mut machine = Predecessor::new(2, 0, false, Deadlines::default(), Who::default(), 128);
    machine.set_keeps(true);
    machine.inherit_hold(Some(hold()));
    machine.handle(Input::Ready, &mut Vec::new());
    assert!(machine.hold().unwrap().suspended);
    let mut said_now = machine.clone();
    let out = hear(&mut machine, HEIR, hello(7, Wants::Takeover));
    // With the offer, and before the descriptors: from then on it may go on by itself.
    let offered = out.iter().position(|output| matches!(output, Output::Send(HEIR, Message::Offer(_))));
    let told = out.iter().position(|output| matches!(output, Output::Send(HEIR, Message::Held(_))));
    assert!(offered.is_some() && told > offered && out[told.unwrap() + 1..] == [Output::SendManifest(HEIR)], "{out:?}");
    let mut lifted = machine.clone();
    hear(&mut machine, HEIR, Room { descriptors: FAMILY_SLOTS });
    hear(&mut machine, HEIR, Ack { descriptors: FAMILY_SLOTS });
    let out = hear(&mut machine, HEIR, Ready::default());
    assert!(!out.iter().any(|output| matches!(output, Output::Send(_, Message::Held(_)))), "once is enough: {out:?}");
    // Should that one die as well, the next start is let in all the same.
    hear(&mut machine, HEIR, Owning { generation: 3, probation_ms: None });
    hear(&mut machine, HEIR, Confirmed {});
    hear(&mut machine, HEIR, Held { hold: Some(hold()) });
    machine.handle(Input::Gone(HEIR), &mut Vec::new());
    machine.handle(Input::Claimed(Found::Free(3)), &mut Vec::new());
    assert_eq!(machine.phase(), Phase::Serving);
    assert!(hear(&mut machine, 3, hello(8, Wants::Takeover)).contains(&Output::SendManifest(3)));

    // Nothing is called off by its end, and the one that comes hears of that, once.
    let out = hear(&mut lifted, CLIENT, Ask::from(Question::Lift));
    assert!(out.contains(&held(HEIR, None)) && lifted.phase() == Phase::HandingOver, "{out:?}");
    let out = hear(&mut lifted, CLIENT, Ask::from(Question::Lift));
    assert!(!out.contains(&held(HEIR, None)), "{out:?}");

    // Whoever says so while nobody serves means this one.
    ask_hold(&mut said_now);
    let refused = hear(&mut said_now, HEIR, hello(7, Wants::Takeover));
    assert!(matches!(&refused[..], [Output::Refuse(HEIR, why)] if why.code == "held"), "{refused:?}");
}

/// On probation, with a predecessor that does or does not know of holds.
fn on_probation(takes_hold: bool, exclusive: bool) -> Predecessor {
    let mut machine = Predecessor::new(2, 0, exclusive, Deadlines::default(), Who::default(), 128);
    let takes = Takes { state: false, hold: takes_hold };
    machine.enter_probation(HEIR, 7, Who::default(), takes, Duration::from_secs(60));
    machine.handle(Input::Ready, &mut Vec::new());
    machine
}

/// No hold bars the way back, and an older predecessor is not told of what it does not know.
#[test]
fn on_the_way_back_to_an_older_version_a_hold_is_not_told() {
    let told = |out: &[Output]| out.iter().any(|output| matches!(output, Output::Send(HEIR, Message::Held(_))));
    for exclusive in [false, true] {
        let mut machine = on_probation(false, exclusive);
        assert!(!told(&ask_hold(&mut machine)));
        let mut out = give(&mut machine, Input::GiveBack("too slow".to_owned()));
        if exclusive {
            // While the application lets go a hold can be set, and nothing is called off by it.
            assert_eq!(machine.phase(), Phase::HandingOver);
            let asked = ask_hold(&mut machine);
            assert!(matches!(&asked[..2], [Output::Send(CLIENT, Message::Done(_)), Output::Hold(_)]), "{asked:?}");
            assert!(!told(&asked) && aborted(&asked).is_empty(), "{asked:?}");
            out = give(&mut machine, Input::AppReleased);
        }
        assert!(out.iter().any(|output| matches!(output, Output::Send(HEIR, Message::TakeBack(TakeBack { .. })))));
        assert!(!told(&out), "{out:?}");
        // Now it would be lost.
        let asked = ask_hold(&mut machine);
        assert!(matches!(&asked[..], [Output::Refuse(CLIENT, why)] if why.code == "unsupported"), "{asked:?}");
        let out = hear(&mut machine, HEIR, Owning { generation: 3, probation_ms: None });
        assert!(out.contains(&Output::Tells(Notice::Leave(Reason::RolledBack))), "{out:?}");
    }
    let mut newer = on_probation(true, false);
    give(&mut newer, Input::GiveBack("too slow".to_owned()));
    assert!(!matches!(&ask_hold(&mut newer)[..], [Output::Refuse(..)]), "this one takes it with it");
}
