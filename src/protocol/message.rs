//! The messages: one kind byte and one plain struct each. What a peer sends is checked here, once.

use std::sync::Arc;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::history::{TakeoverRecord, shorten};
use crate::hold::Hold;
use crate::manifest::{Entry, MAX_ENTRIES, StateKind, check_name};
use crate::status::{DrainStatus, ListenerStatus, Status};
use crate::wire::{Fault, Frame, OPTIONAL, decode_body, encode_body};
use crate::words::words;

/// The protocol versions that this crate speaks.
pub(crate) const VERSIONS: (u32, u32) = (1, 1);
/// The most entries in one frame; the sender stays under 64 KiB as well.
pub(crate) const MAX_PER_FRAME: usize = 4096;
/// The most names of each kind that a report on the wire lists, and their bytes: three such lists fit one frame.
const MAX_REPORTED: usize = 256;
const MAX_REPORTED_BYTES: usize = 16 * 1024;
/// The most keepers in a status: more than an owner lets in.
const MAX_KEEPERS: usize = 64;
/// The longest text for people, in bytes: several of them fit one frame, also those that came from somebody else.
const MAX_TEXT: usize = 1024;

/// Cuts a text for people to what may be sent on.
pub(crate) fn cut(text: String) -> String {
    shorten(text, MAX_TEXT)
}

words! {
    /// What a successor wants of the owner.
    #[derive(Default)]
    pub(crate) enum Wants {
        /// Everything, and to become the owner.
        #[default]
        Takeover = "takeover",
        /// The entries alone, for a look; then it aborts.
        Rehearsal = "rehearsal",
        /// Everything, to keep it beside the owner.
        Hold = "hold",
    }
}

/// The first message of a successor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) min_version: u32,
    pub(crate) max_version: u32,
    /// Random: names this takeover in the lock file.
    pub(crate) nonce: u64,
    #[serde(default)]
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) app_version: String,
    #[serde(default)]
    pub(crate) wants: Wants,
    #[serde(default)]
    pub(crate) network_namespace: Option<u64>,
    /// It takes a [`State`], if there is one.
    #[serde(default)]
    pub(crate) state: bool,
    /// It takes a [`History`].
    #[serde(default)]
    pub(crate) history: bool,
    /// It takes the drain links of its predecessor, and of those before it that still drain.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) drain_links: bool,
    /// For how long it asks the predecessor to stand by after the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probation_ms: Option<u64>,
    /// It takes a [`Held`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) hold: bool,
    /// Once it has everything, those that have kept it so far may leave.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) replaces: bool,
}

/// What the owner will send, and how long it will wait for what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The version chosen from the range of the `Hello`.
    pub(crate) version: u32,
    /// The owner's generation.
    pub(crate) generation: u64,
    /// How many entries the `Entries` frames hold together.
    pub(crate) entries: u32,
    /// How many descriptors come: the entries, and before them what belongs to the family.
    pub(crate) descriptors: u32,
    #[serde(default)]
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) app_version: String,
    /// The longest that the owner takes from `Ready` to `Released`.
    pub(crate) release_ms: u64,
    /// How long the owner waits for `Owning` after `Released`.
    pub(crate) commit_ms: u64,
    /// The longest silence while the successor warms up.
    pub(crate) stall_ms: u64,
    /// The longest warm-up in all.
    pub(crate) warm_up_ms: u64,
    /// The backlog of the control socket: the new owner listens with it again.
    #[serde(default)]
    pub(crate) backlog: Option<u32>,
    /// Device and inode of the control path, as its maker recorded them.
    #[serde(default)]
    pub(crate) path_inode: Option<(u64, u64)>,
    /// The state that will come before `Released`, where the successor takes one.
    #[serde(default)]
    pub(crate) state: Option<StateKind>,
    /// How many descriptors may be under way without an `Ack`.
    #[serde(default)]
    pub(crate) window: Option<u32>,
    /// For how long the owner will stand by after the commit, where the successor wants that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probation_ms: Option<u64>,
    /// It takes a [`Held`], too, while it drains.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) hold: bool,
}

/// A part of the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Entries {
    #[serde(deserialize_with = "bounded")]
    pub(crate) entries: Vec<Arc<Entry>>,
}

/// The successor has room for all descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Room {
    pub(crate) descriptors: u32,
}

/// All descriptors of one frame arrived and are what they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Ack {
    /// How many descriptors have been received and checked so far, all together.
    pub(crate) descriptors: u32,
}

/// The warm-up goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Progress {
    #[serde(default)]
    pub(crate) text: String,
}

/// The successor is ready to own. The names are cut to a number; the counts are whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Ready {
    #[serde(default)]
    pub(crate) adopted: u32,
    #[serde(default, deserialize_with = "bounded")]
    pub(crate) bound: Vec<String>,
    #[serde(default, deserialize_with = "bounded")]
    pub(crate) dropped: Vec<String>,
    #[serde(default, deserialize_with = "bounded")]
    pub(crate) missing: Vec<String>,
}

impl Ready {
    /// Leaves out the names that one frame has no room for.
    pub(crate) fn cut(mut self) -> Ready {
        for names in [&mut self.bound, &mut self.dropped, &mut self.missing] {
            cut_names(names);
        }
        self
    }
}

/// Leaves out the names that a report on the wire has no room for.
pub(crate) fn cut_names(names: &mut Vec<String>) {
    let mut bytes = 0;
    let fitting = names.iter().take(MAX_REPORTED).take_while(|name| {
        bytes += name.len() + 3;
        bytes <= MAX_REPORTED_BYTES
    });
    names.truncate(fitting.count());
}

/// The application's state: one descriptor follows, and an `Ack` that counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) schema: String,
    pub(crate) version: u32,
    /// In bytes.
    pub(crate) length: u64,
    /// CRC-32 (IEEE) of all bytes, where the writer did not do without.
    #[serde(default)]
    pub(crate) checksum: Option<u32>,
}

/// To a process that keeps the entries: they are others now, or the control listener is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Changed {}

/// The owner lock is free, for this takeover alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Released {
    pub(crate) nonce: u64,
}

/// The successor holds the owner lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Owning {
    pub(crate) generation: u64,
    /// It is on probation for so long, as it was offered: [`Confirmed`] or [`TakeBack`] will end that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probation_ms: Option<u64>,
}

/// The owner lock is free again, for the predecessor that stands by alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct TakeBack {
    /// That of the takeover that is undone.
    pub(crate) nonce: u64,
    /// Why, for people.
    #[serde(default)]
    pub(crate) reason: String,
    /// Entries that the predecessor does not have: they end with the successor.
    #[serde(default, deserialize_with = "bounded")]
    pub(crate) lost: Vec<String>,
}

/// The predecessor may drain: nobody will ask it back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Confirmed {}

/// How far the predecessor is with what it had in flight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Draining {
    #[serde(default)]
    pub(crate) in_flight: u64,
    /// Until the drain deadline.
    #[serde(default)]
    pub(crate) left_ms: Option<u64>,
    /// For how long the oldest of it has been going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) oldest_ms: Option<u64>,
    /// The number of the last [`Steer`] that was obeyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) obeyed: Option<u64>,
}

/// The predecessor's last words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Bye {
    /// Whether the drain deadline ended what was in flight.
    #[serde(default)]
    pub(crate) forced: bool,
    #[serde(default)]
    pub(crate) in_flight: u64,
    /// The process lives on, and has to do with the service in another way, or in none.
    #[serde(default)]
    pub(crate) stays: bool,
}

/// A process that drains, and whose drain link follows, with its pidfd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Drainer {
    pub(crate) drain: DrainStatus,
    /// Its last word, where it has said it: whether its drain was forced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) forced: Option<bool>,
}

words! {
    /// What is to become of a drain.
    pub(crate) enum Order {
        /// Its deadline moves.
        Extend = "extend",
        /// Its deadline has passed.
        Finish = "finish",
    }
}

/// What the owner wants of a process that drains.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Steer {
    /// Random: comes back when it was obeyed.
    pub(crate) number: u64,
    pub(crate) order: Order,
    /// By how much the deadline moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by_ms: Option<u64>,
}

words! {
    /// What a control client asks. `Status`, `Watch` and `History` change nothing.
    pub(crate) enum Question {
        /// One status.
        Status = "status",
        /// A status now and after each change.
        Watch = "watch",
        /// Leave without a successor.
        Stop = "stop",
        /// End a probation: the predecessor may drain.
        Confirm = "confirm",
        /// End a probation: the predecessor takes the service back.
        Rollback = "rollback",
        /// Stand by after the next takeover, as long as this client is connected when it begins.
        Probation = "probation",
        /// The last takeovers.
        History = "history",
        /// Move the deadline of those who drain.
        ExtendDrain = "extend-drain",
        /// End the drain of those who drain, now.
        FinishDrain = "finish-drain",
        /// Refuse takeovers, until the hold ends or is lifted.
        Hold = "hold",
        /// Refuse them no longer.
        Lift = "lift",
    }
}

impl Question {
    /// Whether it is more than a question: whoever gives an order waits to hear what becomes of it.
    pub(crate) fn is_order(self) -> bool {
        !matches!(self, Question::Status | Question::Watch | Question::History)
    }
}

/// The first message of a control client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) question: Question,
    /// Why, for people: of `Rollback`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// For how long: of `Probation`; `None` takes the wish back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probation_ms: Option<u64>,
    /// By how much: of `ExtendDrain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by_ms: Option<u64>,
    /// Whose: of `ExtendDrain` and `FinishDrain`; nothing means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    /// Of `Hold`. Who set it, and when, is the owner's to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<Hold>,
}

impl From<Question> for Ask {
    fn from(question: Question) -> Ask {
        let (probation_ms, by_ms, generation, hold) = (None, None, None, None);
        Ask { question, reason: String::new(), probation_ms, by_ms, generation, hold }
    }
}

/// The hold of the service has changed: for the other side of a takeover that cannot be called off any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Held {
    #[serde(default)]
    pub(crate) hold: Option<Hold>,
}

/// A part of the listeners of a status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Listeners {
    #[serde(deserialize_with = "bounded")]
    pub(crate) listeners: Vec<ListenerStatus>,
}

/// The last takeovers: for who asks, and for a successor that carries them on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(deserialize_with = "bounded")]
    pub(crate) takeovers: Vec<TakeoverRecord>,
}

/// What was asked is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Done {}

/// Reads a list and gives up at the limit, before anything is allocated for what is beyond it.
fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Bounded<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {MAX_PER_FRAME}")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX_PER_FRAME {
                    return Err(serde::de::Error::custom("too many items"));
                }
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Bounded(std::marker::PhantomData))
}

/// One list makes the enum, the kind bytes, the encoder and the decoder, so that they cannot disagree.
macro_rules! messages {
    ($($(#[$doc:meta])* $kind:literal $name:ident $word:literal;)*) => {
        /// Every message, by name.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Message {
            $($(#[$doc])* $name($name),)*
            /// Descriptors ride on this header; it has no body.
            Descriptors(u16),
            /// A kind of a newer version that may be skipped.
            Unknown(u8),
        }

        $(impl From<$name> for Message {
            fn from(body: $name) -> Message {
                Message::$name(body)
            }
        })*

        impl Message {
            /// The kind byte on the wire.
            pub(crate) fn kind(&self) -> u8 {
                match self {
                    $(Message::$name(_) => $kind,)*
                    Message::Descriptors(_) => DESCRIPTORS,
                    Message::Unknown(kind) => *kind,
                }
            }

            /// Its name in the log.
            pub(crate) fn word(&self) -> &'static str {
                match self {
                    $(Message::$name(_) => $word,)*
                    Message::Descriptors(_) => "descriptors",
                    Message::Unknown(_) => "unknown",
                }
            }

            /// The body; empty for the kinds that have none.
            pub(crate) fn body(&self) -> Vec<u8> {
                match self {
                    $(Message::$name(body) => encode_body(body),)*
                    Message::Descriptors(_) | Message::Unknown(_) => Vec::new(),
                }
            }

            /// Reads a frame into a message.
            pub(crate) fn decode(frame: &Frame) -> Result<Message, Fault> {
                if frame.header.kind != DESCRIPTORS && frame.header.descriptors != 0 {
                    return Err(Fault::UnexpectedDescriptors);
                }
                let message = match frame.header.kind {
                    $($kind => Message::$name(decode_body($word, &frame.body)?),)*
                    DESCRIPTORS if !frame.body.is_empty() => return Err(Fault::TrailingBytes),
                    DESCRIPTORS if frame.header.descriptors == 0 => return Err(Fault::UnexpectedDescriptors),
                    DESCRIPTORS => Message::Descriptors(frame.header.descriptors),
                    kind if frame.header.flags & OPTIONAL != 0 => Message::Unknown(kind),
                    kind => return Err(Fault::UnknownKind(kind)),
                };
                message.check()?;
                Ok(message)
            }
        }
    };
}

/// The kind that carries descriptors.
const DESCRIPTORS: u8 = 6;

messages! {
    1 Hello "hello";
    2 Refused "refused";
    3 Offer "offer";
    4 Entries "entries";
    5 Room "room";
    7 Ack "ack";
    8 Progress "progress";
    9 Ready "ready";
    10 Released "released";
    11 Owning "owning";
    12 Confirmed "confirmed";
    13 Draining "draining";
    14 Bye "bye";
    15 Abort "abort";
    16 State "state";
    17 TakeBack "take-back";
    20 History "history";
    21 Held "held";
    24 Drainer "drainer";
    25 Steer "steer";
    22 Changed "changed";
    32 Ask "ask";
    33 Status "status";
    34 Listeners "listeners";
    35 Done "done";
}

/// Refused before anything was offered.
pub(crate) type Refused = Refusal;
/// The end of a takeover before its commit, by either side: the same words as a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Abort(pub(crate) Refusal);

impl Message {
    /// What serde cannot check.
    fn check(&self) -> Result<(), Fault> {
        match self {
            Message::Offer(offer) if offer.entries > MAX_ENTRIES => Err(Fault::Body("offer")),
            Message::Offer(offer) if offer.descriptors < offer.entries => Err(Fault::Body("offer")),
            // A client keeps what it is told until all of it is there.
            Message::Status(status) if status.listener_count > MAX_ENTRIES => Err(Fault::Body("status")),
            Message::Status(status) if status.drainers.len() > MAX_PER_FRAME => Err(Fault::Body("status")),
            Message::Status(status) if status.keepers.len() > MAX_KEEPERS => Err(Fault::Body("status")),
            // The successor's generation is the next one.
            Message::Offer(offer) if offer.generation == u64::MAX => Err(Fault::Body("offer")),
            // 0 in the lock file means that nobody is at it.
            Message::Hello(hello) if hello.nonce == 0 => Err(Fault::Body("hello")),
            Message::Hello(hello) if hello.min_version > hello.max_version => Err(Fault::Body("hello")),
            Message::State(state) if check_name(&state.schema).is_err() => Err(Fault::Body("state")),
            Message::Entries(list) if list.entries.is_empty() => Err(Fault::Body("entries")),
            Message::Entries(list) if list.entries.iter().any(|entry| check_name(&entry.name).is_err()) => {
                Err(Fault::Body("entries"))
            }
            _ => Ok(()),
        }
    }
}
