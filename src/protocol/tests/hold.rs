//! A hold, at each step of a takeover.

use crate::error::Who;
use crate::hold::Hold;
use crate::protocol::message::{
    Abort, Ack, Ask, Confirmed, Done, Held, Hello, Message, Owning, Question, Ready, Room, Wants,
};
use crate::protocol::predecessor::{Found, Input, Output, Predecessor};
use crate::protocol::{Deadlines, FAMILY_SLOTS, Timer};
use crate::status::Phase;

const NONCE: u64 = 7;
const HEIR: u64 = 1;
const CLIENT: u64 = 2;

fn hello(hold: bool) -> Message {
    Hello { min_version: 1, max_version: 1, nonce: NONCE, hold, ..Hello::default() }.into()
}

/// What a successor says, up to `ready`.
fn courtship(hold: bool) -> [Message; 4] {
    let (room, ack) = (Room { descriptors: FAMILY_SLOTS }, Ack { descriptors: FAMILY_SLOTS });
    [hello(hold), room.into(), ack.into(), Ready::default().into()]
}

/// An owner to whom its successor has said this much of it.
fn owner(exclusive: bool, said: &[Message]) -> Predecessor {
    let mut machine = Predecessor::new(1, 0, exclusive, Deadlines::default(), Who::default(), 128);
    machine.handle(Input::Ready, &mut Vec::new());
    for message in said {
        machine.handle(Input::Message(HEIR, message.clone()), &mut Vec::new());
    }
    machine
}

fn hold() -> Hold {
    Hold { reason: "disk full".to_owned(), left_ms: Some(5000), ..Hold::default() }
}

fn hear(machine: &mut Predecessor, peer: u64, message: impl Into<Message>) -> Vec<Output> {
    let mut out = Vec::new();
    machine.handle(Input::Message(peer, message.into()), &mut out);
    out
}

fn ask(machine: &mut Predecessor) -> Vec<Output> {
    hear(machine, CLIENT, Ask { hold: Some(hold()), ..Question::Hold.into() })
}

#[test]
fn a_takeover_is_refused_with_the_reason_and_a_rehearsal_is_not() {
    let mut machine = owner(false, &[]);
    assert_eq!(ask(&mut machine), [Output::Send(CLIENT, Done {}.into()), Output::Hold(Some(hold()))]);
    let refused = hear(&mut machine, HEIR, hello(true));
    let [Output::Refuse(HEIR, why)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!((why.code.as_str(), why.message.as_str(), why.retry_after_ms), ("held", "disk full", Some(5000)));
    let look = Hello { wants: Wants::Rehearsal, min_version: 1, max_version: 1, nonce: NONCE, ..Hello::default() };
    assert!(hear(&mut machine, 3, look).contains(&Output::SendManifest(3)));

    let mut lifted = machine.clone();
    let answer = hear(&mut lifted, CLIENT, Ask::from(Question::Lift));
    assert_eq!(answer, [Output::Send(CLIENT, Done {}.into()), Output::Hold(None)]);
    assert!(hear(&mut lifted, HEIR, hello(true)).contains(&Output::SendManifest(HEIR)));

    machine.handle(Input::HoldOver, &mut Vec::new());
    assert!(hear(&mut machine, HEIR, hello(true)).contains(&Output::SendManifest(HEIR)));
}

#[test]
fn a_reason_is_cut_and_has_no_control_characters() {
    let mut machine = owner(false, &[]);
    let reason = format!("a\x1b[2J\n{}", "é".repeat(5000));
    hear(&mut machine, CLIENT, Ask { hold: Some(Hold { reason, ..Hold::default() }), ..Question::Hold.into() });
    let kept = &machine.hold().unwrap().reason;
    assert!(kept.starts_with("a[2Jé") && kept.len() <= 1024 && kept.len() > 1000, "{}", kept.len());
}

#[test]
fn before_ready_a_takeover_is_called_off() {
    for said in 1..=3 {
        let mut machine = owner(true, &courtship(true)[..said]);
        let out = ask(&mut machine);
        assert_eq!(out[0], Output::Send(CLIENT, Done {}.into()));
        let aborted = out.iter().any(|output| {
            matches!(output, Output::Send(HEIR, Message::Abort(Abort(why))) if why.code == "held" && why.message == "disk full")
        });
        assert!(aborted && out.contains(&Output::Close(HEIR)), "after {said}: {out:?}");
        assert_eq!(machine.phase(), Phase::Serving);
        // A lift calls nothing off.
        let mut machine = owner(true, &courtship(true)[..said]);
        hear(&mut machine, CLIENT, Ask::from(Question::Lift));
        assert_eq!(machine.phase(), Phase::HandingOver);
    }
}

/// It is finished, and the hold goes on: in the new owner, and here, should that one die.
#[test]
fn after_ready_the_hold_goes_on_in_the_successor() {
    let held = Output::Send(HEIR, Held { hold: Some(hold()) }.into());
    for (exclusive, silent) in [(true, false), (false, false), (false, true)] {
        let mut machine = owner(exclusive, &courtship(true));
        if silent {
            machine.handle(Input::Expired(Timer::Commit), &mut Vec::new());
            machine.handle(Input::Claimed(Found::Held), &mut Vec::new());
        }
        let out = ask(&mut machine);
        assert_eq!(out, [Output::Send(CLIENT, Done {}.into()), Output::Hold(Some(hold())), held.clone()]);
        let lifted = hear(&mut machine, CLIENT, Ask::from(Question::Lift));
        assert_eq!(lifted.last(), Some(&Output::Send(HEIR, Held { hold: None }.into())));
        ask(&mut machine);
        machine.handle(Input::AppReleased, &mut Vec::new());
        for message in [Message::from(Owning { generation: 2, probation_ms: None }), Confirmed {}.into()] {
            hear(&mut machine, HEIR, message);
        }
        assert_eq!(machine.phase(), Phase::Draining);
        machine.handle(Input::Gone(HEIR), &mut Vec::new());
        machine.handle(Input::Claimed(Found::Free(2)), &mut Vec::new());
        assert_eq!((machine.phase(), machine.hold()), (Phase::Serving, Some(&hold())));
    }
}

#[test]
fn an_older_successor_is_called_off_as_long_as_that_is_possible() {
    let mut releasing = owner(true, &courtship(false));
    assert!(ask(&mut releasing).contains(&Output::Close(HEIR)));
    assert_eq!(releasing.phase(), Phase::Serving);

    let mut released = owner(false, &courtship(false));
    let out = ask(&mut released);
    assert!(matches!(&out[..], [Output::Refuse(CLIENT, why)] if why.code == "unsupported"), "{out:?}");
    assert_eq!(released.hold(), None);
}

/// What happens in the new owner is known here as well, should this process own again.
#[test]
fn who_drains_hears_of_a_hold_and_sets_none() {
    let mut machine = owner(false, &courtship(true));
    hear(&mut machine, HEIR, Owning { generation: 2, probation_ms: None });
    let out = ask(&mut machine);
    assert!(matches!(&out[..], [Output::Refuse(CLIENT, why)] if why.code == "draining"), "{out:?}");
    assert_eq!(hear(&mut machine, HEIR, Held { hold: Some(hold()) }), [Output::Hold(Some(hold()))]);
    assert_eq!(machine.hold(), Some(&hold()));
    hear(&mut machine, HEIR, Held { hold: None });
    assert_eq!(machine.hold(), None);
}

#[test]
fn a_successor_and_a_process_that_leaves_set_no_hold() {
    for said in 1..=3 {
        let mut machine = owner(true, &courtship(true)[..said]);
        hear(&mut machine, HEIR, Ask::from(Question::Hold));
        assert_eq!((machine.phase(), machine.hold()), (Phase::Serving, None));
    }
    let mut machine = owner(false, &[]);
    machine.handle(Input::Stop, &mut Vec::new());
    let out = ask(&mut machine);
    assert!(matches!(&out[..], [Output::Refuse(CLIENT, why)] if why.code == "stopping"), "{out:?}");
}
