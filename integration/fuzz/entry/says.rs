//! What a peer says: every message, in a form that a list of events can be made of.

use arbitrary::Arbitrary;

use super::messages::decode;
use crate::error::Refusal;
use crate::hold::Hold;
use crate::manifest::{Entry, Kind};
use crate::protocol::FAMILY_SLOTS;
use crate::protocol::message::*;

/// The nonce of the takeover under test.
pub(super) const NONCE: u64 = 7;
/// How many entries its owner has.
pub(super) const ENTRIES: u32 = 3;

/// A message. The numbers are small, so that they often are the right ones.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Says {
    Hello {
        rehearsal: bool,
        hold: bool,
        min: u8,
        max: u8,
        other: bool,
        probation: Option<u8>,
    },
    Refused(Code),
    Offer {
        version: u8,
        entries: u8,
        family: bool,
        generation: u8,
        probation: Option<u8>,
    },
    Entries(u8),
    Room(u8),
    Ack(u8),
    AckOf(u32),
    Progress,
    Ready,
    Released {
        other: bool,
    },
    Owning {
        generation: u8,
        probation: Option<u8>,
    },
    TakeBack {
        other: bool,
    },
    State,
    Confirmed,
    Draining,
    Bye,
    Abort(Code),
    Ask(Asks),
    Status,
    Done,
    Held(bool),
    Hold {
        other: bool,
        replaces: bool,
    },
    Changed,
    Descriptors(u8),
    /// Whatever these bytes mean, where they mean something.
    Bytes(u8, Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Asks {
    Status,
    Watch,
    Stop,
    Confirm,
    Rollback,
    Probation(Option<u8>),
    SomethingNew,
    History,
    ExtendDrain,
    FinishDrain,
    Hold,
    Lift,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Code {
    Busy,
    Starting,
    Stopping,
    Draining,
    Cancelled,
    SomethingNew,
}

impl Code {
    pub(super) fn refusal(self, retry_after_ms: Option<u64>) -> Refusal {
        let code = match self {
            Code::Busy => "busy",
            Code::Starting => "starting",
            Code::Stopping => "stopping",
            Code::Draining => "draining",
            Code::Cancelled => "cancelled",
            Code::SomethingNew => "something new",
        };
        Refusal { retry_after_ms, ..Refusal::new(code, "") }
    }
}

impl Says {
    /// The message, if a peer that says this is understood: what the decoder refuses, no machine ever sees.
    pub(super) fn message(self) -> Option<Message> {
        let message: Message = match self {
            Says::Hello { rehearsal, hold, min, max, other, probation } => Hello {
                min_version: u32::from(min % 3),
                max_version: u32::from(max % 4),
                nonce: NONCE + u64::from(other),
                wants: if rehearsal { Wants::Rehearsal } else { Wants::Takeover },
                probation_ms: probation.map(u64::from),
                hold,
                ..Hello::default()
            }
            .into(),
            Says::Refused(code) => Message::Refused(code.refusal(None)),
            Says::Offer { version, entries, family, generation, probation } => {
                let entries = u32::from(entries % 6);
                let descriptors = entries + if family { FAMILY_SLOTS } else { 0 };
                Offer {
                    version: u32::from(version % 3),
                    generation: u64::from(generation),
                    entries,
                    descriptors,
                    probation_ms: probation.map(u64::from),
                    ..Offer::default()
                }
                .into()
            }
            Says::Entries(count) => {
                Entries { entries: (0..count % 6).map(|number| entry(number).into()).collect() }.into()
            }
            Says::Room(descriptors) => Room { descriptors: u32::from(descriptors) }.into(),
            Says::Ack(descriptors) => Ack { descriptors: u32::from(descriptors) }.into(),
            Says::AckOf(descriptors) => Ack { descriptors }.into(),
            Says::Progress => Progress { text: "loading".to_owned() }.into(),
            Says::Ready => Ready::default().into(),
            Says::Released { other } => Released { nonce: NONCE + u64::from(other) }.into(),
            Says::Owning { generation, probation } => {
                Owning { generation: u64::from(generation), probation_ms: probation.map(u64::from) }.into()
            }
            Says::TakeBack { other } => TakeBack { nonce: NONCE + u64::from(other), ..TakeBack::default() }.into(),
            Says::State => State { schema: "count".to_owned(), ..State::default() }.into(),
            Says::Confirmed => Confirmed {}.into(),
            Says::Draining => Draining::default().into(),
            Says::Bye => Bye::default().into(),
            Says::Abort(code) => Abort(code.refusal(None)).into(),
            Says::Ask(asks) => {
                let hold = matches!(asks, Asks::Hold).then(Hold::default);
                let (question, probation) = match asks {
                    Asks::Status => (Question::Status, None),
                    Asks::Watch => (Question::Watch, None),
                    Asks::Stop => (Question::Stop, None),
                    Asks::Confirm => (Question::Confirm, None),
                    Asks::Rollback => (Question::Rollback, None),
                    Asks::Probation(span) => (Question::Probation, span),
                    Asks::History => (Question::History, None),
                    Asks::ExtendDrain => (Question::ExtendDrain, None),
                    Asks::FinishDrain => (Question::FinishDrain, None),
                    Asks::SomethingNew => (Question::Unknown, None),
                    Asks::Hold => (Question::Hold, None),
                    Asks::Lift => (Question::Lift, None),
                };
                Ask { probation_ms: probation.map(u64::from), hold, ..Ask::from(question) }.into()
            }
            Says::Status => crate::status::Status::default().into(),
            Says::Done => Done {}.into(),
            Says::Held(holds) => Held { hold: holds.then(Hold::default) }.into(),
            Says::Hold { other, replaces } => Hello {
                min_version: 1,
                max_version: 1,
                nonce: NONCE + 1 + u64::from(other),
                wants: Wants::Hold,
                replaces,
                ..Hello::default()
            }
            .into(),
            Says::Changed => Changed {}.into(),
            Says::Descriptors(count) => return Some(Message::Descriptors(u16::from(count.max(1)))),
            Says::Bytes(kind, body) => return decode(kind, 0, 0, &body).ok(),
        };
        decode(message.kind(), 0, 0, &message.body()).ok()
    }
}

/// An entry that is plain and true.
pub(super) fn entry(number: u8) -> Entry {
    Entry {
        name: number.to_string(),
        kind: Kind::Raw,
        address: String::new(),
        requested: String::new(),
        path: None,
        path_inode: None,
        backlog: None,
        file: None,
        socket: None,
        retired: false,
    }
}
