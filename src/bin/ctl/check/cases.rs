//! Every misbehaviour by its name: the one table behind the run, `--list`, `--only` and the completions.

use clap::builder::PossibleValuesParser;

use super::broken::{self, Broken};
use super::flood::Flood;
use super::stall::Stall;
use super::successor::{Leaving, Step};

/// One misbehaviour.
#[derive(Debug)]
pub(crate) struct Case {
    /// Stable: scripts choose by it.
    pub(crate) name: &'static str,
    /// What it does, on one line.
    pub(crate) what: &'static str,
    pub(crate) deed: Deed,
}

/// What a case does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    /// Goes the way of a successor to this step, and leaves it there.
    Leave(Step, Leaving),
    /// Goes the way of a successor to this step, and then sends what is no good.
    Break(Step, Broken),
    Stall(Stall),
    Flood(Flood),
}

impl Case {
    /// Whether nobody but the owner's own control code can notice it: neither the application, nor another client.
    pub(crate) fn is_gentle(&self) -> bool {
        match self.deed {
            Deed::Leave(step, _) | Deed::Break(step, _) => step < Step::Ready,
            Deed::Flood(flood) => flood != Flood::Silent,
            Deed::Stall(_) => true,
        }
    }
}

/// For `--only`: the names, so that a wrong one is told from a right one, and shells complete them.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(CASES.iter().map(|case| case.name))
}

/// The steps of a successor, each left in three ways; then the others.
macro_rules! cases {
    (
        leave { $($step:ident $word:literal $text:literal;)* }
        break { $($broken_name:literal $broken_what:literal $broken_after:ident $broken:expr;)* }
        stall { $($stall_name:literal $stall_what:literal $stall:ident;)* }
        flood { $($flood_name:literal $flood_what:literal $flood:ident;)* }
    ) => {
        pub(crate) const CASES: &[Case] = &[
            $(Case {
                name: concat!("die-", $word),
                what: concat!($text, ", and its process is killed"),
                deed: Deed::Leave(Step::$step, Leaving::Die),
            },)*
            $(Case {
                name: concat!("close-", $word),
                what: concat!($text, ", and closes the connection"),
                deed: Deed::Leave(Step::$step, Leaving::Close),
            },)*
            $(Case {
                name: concat!("abort-", $word),
                what: concat!($text, ", and aborts"),
                deed: Deed::Leave(Step::$step, Leaving::Abort),
            },)*
            $(Case { name: $broken_name, what: $broken_what, deed: Deed::Break(Step::$broken_after, $broken) },)*
            $(Case { name: $stall_name, what: $stall_what, deed: Deed::Stall(Stall::$stall) },)*
            $(Case { name: $flood_name, what: $flood_what, deed: Deed::Flood(Flood::$flood) },)*
        ];
    };
}

cases! {
    leave {
        Connected "connected" "connects";
        Hello "hello" "asks for a takeover";
        Offer "offer" "reads the offer";
        Manifest "manifest" "reads the whole list of entries";
        Room "room" "says that it has room for the descriptors";
        Descriptors "descriptors" "receives descriptors and does not acknowledge them";
        Ack "ack" "acknowledges all descriptors";
        Progress "progress" "tells how far its warm-up is";
        Ready "ready" "says that it is ready";
        Released "released" "is told that the owner lock is free, does not take it";
    }
    break {
        "bad-magic" "sends another protocol" Connected broken::ANOTHER_PROTOCOL;
        "unknown-kind" "sends a frame of an unknown kind" Connected broken::UNKNOWN_KIND;
        "absurd-length" "announces a body of 4 GiB" Connected broken::ABSURD_LENGTH;
        "long-body" "sends a body that is one byte too long" Connected broken::LONG_BODY;
        "deep-body" "sends a body that is nested too deep" Connected broken::DEEP_BODY;
        "trailing-bytes" "sends bytes after the end of a body" Connected broken::TRAILING_BYTES;
        "truncated-frame" "closes in the middle of a frame" Connected broken::TRUNCATED_FRAME;
        "wrong-sequence" "sends a frame out of its sequence" Connected broken::WRONG_SEQUENCE;
        "stray-descriptors" "sends descriptors where none belong" Connected broken::STRAY_DESCRIPTORS;
        "unknown-question" "asks an unknown question" Connected broken::UNKNOWN_QUESTION;
        "hello-empty" "sends a hello without any field" Connected broken::HELLO_EMPTY;
        "hello-no-nonce" "sends a hello with a nonce of 0" Connected broken::HELLO_NO_NONCE;
        "hello-no-common-version" "speaks versions of a far future alone" Connected broken::HELLO_FAR_VERSIONS;
        "hello-reversed-versions" "speaks versions 3 to 1" Connected broken::HELLO_REVERSED;
        "hello-unknown-wish" "wants something unknown" Connected broken::HELLO_UNKNOWN_WISH;
        "hello-twice" "asks for a takeover twice" Manifest broken::HELLO;
        "early-ready" "is ready before it has asked" Connected broken::READY;
        "early-ack" "acknowledges what was not sent" Manifest broken::ACK;
        "early-progress" "tells of a warm-up before it has anything" Manifest broken::PROGRESS;
        "too-little-room" "has room for one descriptor" Manifest broken::LITTLE_ROOM;
        "broken-offer" "answers the offer with another protocol" Manifest broken::ANOTHER_PROTOCOL;
        "false-ack" "acknowledges more than was sent" Room broken::FALSE_ACK;
        "room-twice" "says twice that it has room" Room broken::ROOM;
        "late-room" "says that it has room during its warm-up" Ack broken::ROOM;
        "late-ack" "acknowledges again during its warm-up" Ack broken::ACK;
        "broken-warm-up" "sends another protocol during its warm-up" Ack broken::ANOTHER_PROTOCOL;
        "late-progress" "tells of a warm-up after it was ready" Ready broken::PROGRESS;
        "ready-twice" "is ready again when it could own" Released broken::READY;
    }
    stall {
        "stall-silent" "connects and says nothing" Silent;
        "stall-half-header" "stops in the middle of a header" HalfHeader;
        "stall-byte-by-byte" "asks for a status, one byte at a time" ByteByByte;
        "stall-hello" "asks for a takeover and then says nothing" Hello;
        "stall-room" "says that it has room, then neither reads nor speaks" Room;
        "stall-watch" "watches, and reads nothing of many changes" Watch;
    }
    flood {
        "flood-connects" "connects and closes, 200 times" Connects;
        "flood-silent" "holds 64 silent connections at once; a status and a rehearsal go on beside them" Silent;
        "flood-questions" "asks 200 questions at once and reads no answer" Questions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_each_is_there_once() {
        let mut names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        let word = |name: &&str| name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-');
        assert!(names.iter().all(word), "{names:?}");
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn what_an_application_can_notice_is_not_gentle() {
        let rough: Vec<&str> = CASES.iter().filter(|case| !case.is_gentle()).map(|case| case.name).collect();
        let expected = [
            "die-ready",
            "die-released",
            "close-ready",
            "close-released",
            "abort-ready",
            "abort-released",
            "late-progress",
            "ready-twice",
            "flood-silent",
        ];
        assert_eq!(rough, expected);
    }
}
