//! What became of the last takeovers: who, when, how far each came. The answer to `ctl history`, on the wire and as JSON.

use serde::{Deserialize, Serialize};

use crate::error::Refusal;

/// How many records are kept.
const MAX_RECORDS: usize = 32;
/// How many of them may be refusals, and how many failures: peers that come again and again push out their own kind, and
/// never what changed the owner.
const MAX_IN_VAIN: usize = 8;
/// The most steps of one record.
const MAX_STEPS: usize = 12;
/// The longest text of a record, in bytes; all records together fit one frame.
const MAX_MESSAGE: usize = 256;
/// The longest version of an application in a record, in bytes.
const MAX_VERSION: usize = 64;
/// The longest word of a record, in bytes.
const MAX_WORD: usize = 32;

/// One process of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Side {
    /// The generation that it owned or came to own; `None` where it never did.
    #[serde(default)]
    pub generation: Option<u64>,
    /// The pid that it gave for itself, in its own pid namespace; 0 is unknown.
    #[serde(default)]
    pub pid: u32,
    /// The application version that it gave, cut to 64 bytes.
    #[serde(default)]
    pub app_version: String,
}

/// When a record came to one of its steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepTime {
    /// The words of a status (`offered`, `sending`, `warming-up`, `releasing`, `released`, `silent`), then `owning` and
    /// `serving`, and, of the predecessor, `drained` where it said so and `gone` where it went without a word. A start
    /// begins with `starting`. A newer owner may have others.
    pub step: String,
    /// Since the record began, in milliseconds.
    #[serde(default)]
    pub at_ms: u64,
}

/// Why something came to nothing, or went another way than usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cause {
    /// A code of a refusal or of an abort ([`protocol`](crate::protocol#codes)), or `died`, `link-lost`,
    /// `predecessor-died`, `rolled-back`.
    pub code: String,
    /// One sentence for a person, cut to 256 bytes.
    #[serde(default)]
    pub message: String,
}

/// One takeover, or another change of what a service does, as the process saw it that then owned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TakeoverRecord {
    /// When it began, Unix time in milliseconds.
    pub began: u64,
    /// `taken-over`: the successor owned. `refused`: nothing was offered to it. `failed`: the owner served on.
    /// `cold-start`: nobody served before. `resumed`: the predecessor took the service back. `stopped`: the owner was
    /// asked to leave. A newer owner may have others.
    pub outcome: String,
    /// Who owned before; `None` where nobody did.
    #[serde(default)]
    pub from: Option<Side>,
    /// Who owned after it, or wanted to; `None` where nobody was to.
    #[serde(default)]
    pub to: Option<Side>,
    /// How far it came, and when.
    #[serde(default)]
    pub steps: Vec<StepTime>,
    /// How long it took to its outcome, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// Why it was refused, failed, or was not like others.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// How often it happened, one time after the other in the same way: refusals and failures alone. The rest is of the
    /// last time, but for `began`.
    #[serde(default = "once")]
    pub count: u32,
    /// When it began the last time, Unix time in milliseconds.
    #[serde(default)]
    pub last: u64,
}

fn once() -> u32 {
    1
}

/// What a takeover came to, as a word of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    TakenOver,
    Refused,
    Failed,
    ColdStart,
    Resumed,
    Stopped,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::TakenOver => "taken-over",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::ColdStart => "cold-start",
            Outcome::Resumed => "resumed",
            Outcome::Stopped => "stopped",
        }
    }
}

impl From<&Refusal> for Cause {
    fn from(why: &Refusal) -> Cause {
        Cause { code: why.code.clone(), message: why.message.clone() }
    }
}

impl TakeoverRecord {
    /// One that has just begun.
    pub(crate) fn begin(began: u64, from: Option<Side>, to: Option<Side>) -> TakeoverRecord {
        TakeoverRecord { began, last: began, from, to, count: 1, ..TakeoverRecord::default() }
    }

    /// It has come to a step. Does nothing where it was at that one already.
    pub(crate) fn step(&mut self, step: &str, at_ms: u64) {
        if self.steps.last().is_none_or(|last| last.step != step) && self.steps.len() < MAX_STEPS {
            self.steps.push(StepTime { step: step.to_owned(), at_ms });
        }
    }

    /// It has come to its end.
    pub(crate) fn end(mut self, outcome: Outcome, took_ms: u64, cause: Option<Cause>) -> TakeoverRecord {
        self.outcome = outcome.as_str().to_owned();
        self.took_ms = took_ms;
        self.cause = cause;
        self
    }

    fn is(&self, outcome: Outcome) -> bool {
        self.outcome == outcome.as_str()
    }

    /// Cut to what may be kept and sent on, whoever it came from.
    fn cut(mut self) -> TakeoverRecord {
        self.outcome = shorten(self.outcome, MAX_WORD);
        for side in [&mut self.from, &mut self.to].into_iter().flatten() {
            side.app_version = shorten(std::mem::take(&mut side.app_version), MAX_VERSION);
        }
        self.steps.truncate(MAX_STEPS);
        for step in &mut self.steps {
            step.step = shorten(std::mem::take(&mut step.step), MAX_WORD);
        }
        if let Some(cause) = &mut self.cause {
            cause.code = shorten(std::mem::take(&mut cause.code), MAX_WORD);
            cause.message = shorten(std::mem::take(&mut cause.message), MAX_MESSAGE);
        }
        self
    }

    /// Whether this is the same thing once more.
    fn repeats(&self, other: &TakeoverRecord) -> bool {
        fn furthest(record: &TakeoverRecord) -> Option<&str> {
            record.steps.last().map(|step| step.step.as_str())
        }
        let version = |side: &Option<Side>| side.as_ref().map(|side| side.app_version.clone());
        (self.is(Outcome::Refused) || self.is(Outcome::Failed))
            && (&self.outcome, &self.from, &self.cause) == (&other.outcome, &other.from, &other.cause)
            && version(&self.to) == version(&other.to)
            && furthest(self) == furthest(other)
    }
}

/// The records of a family, the newest last, as many as are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    records: Vec<TakeoverRecord>,
}

impl History {
    pub(crate) fn records(&self) -> &[TakeoverRecord] {
        &self.records
    }

    /// What somebody else has kept.
    pub(crate) fn of(records: Vec<TakeoverRecord>) -> History {
        let mut history = History { records: records.into_iter().map(TakeoverRecord::cut).collect() };
        history.forget();
        history
    }

    /// Adds one, and forgets the oldest where there are too many. What is like an earlier one of the same owner is
    /// counted there.
    pub(crate) fn push(&mut self, record: TakeoverRecord) {
        let record = record.cut();
        if let Some(earlier) = self.records.iter_mut().rev().find(|earlier| record.repeats(earlier)) {
            let (began, count) = (earlier.began, earlier.count.saturating_add(1));
            *earlier = TakeoverRecord { began, count, ..record };
            return;
        }
        self.records.push(record);
        self.forget();
    }

    /// The newest with this outcome, where its owner is of that generation.
    pub(crate) fn newest(&mut self, outcome: Outcome, generation: u64) -> Option<&mut TakeoverRecord> {
        let owned = |record: &TakeoverRecord| record.to.as_ref().and_then(|to| to.generation) == Some(generation);
        self.records.iter_mut().rev().find(|record| record.is(outcome) && owned(record))
    }

    fn forget(&mut self) {
        for outcome in [Outcome::Refused, Outcome::Failed] {
            let many = self.records.iter().filter(|record| record.is(outcome)).count();
            let mut over = many.saturating_sub(MAX_IN_VAIN);
            self.records.retain(|record| {
                let kept = over == 0 || !record.is(outcome);
                over -= usize::from(!kept);
                kept
            });
        }
        self.records.drain(..self.records.len().saturating_sub(MAX_RECORDS));
    }
}

/// Cuts a text for people to what may be sent on.
///
/// Control characters go: such a text may end up in somebody's terminal.
pub(crate) fn shorten(mut text: String, bytes: usize) -> String {
    text.retain(|character| !character.is_control());
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(generation: Option<u64>, version: &str) -> Option<Side> {
        Some(Side { generation, pid: 1, app_version: version.to_owned() })
    }

    fn refused(at: u64, version: &str, code: &str) -> TakeoverRecord {
        let cause = Some(Cause { code: code.to_owned(), message: String::new() });
        TakeoverRecord::begin(at, side(Some(1), "1"), side(None, version)).end(Outcome::Refused, 0, cause)
    }

    fn taken_over(generation: u64) -> TakeoverRecord {
        let record = TakeoverRecord::begin(generation, side(Some(generation - 1), "1"), side(Some(generation), "2"));
        record.end(Outcome::TakenOver, 5, None)
    }

    #[test]
    fn a_long_chain_keeps_its_newest() {
        let mut history = History::default();
        for generation in 2..102 {
            history.push(taken_over(generation));
        }
        assert_eq!(history.records().len(), MAX_RECORDS);
        assert_eq!(history.records().last().unwrap().began, 101);
        assert_eq!(history.records()[0].began, 70);
    }

    #[test]
    fn the_same_refusal_is_counted_and_other_ones_push_out_none_but_refusals() {
        let mut history = History::default();
        history.push(taken_over(2));
        for at in 0..1000 {
            history.push(refused(at, "2", "busy"));
        }
        assert_eq!(history.records().len(), 2);
        let counted = &history.records()[1];
        assert_eq!((counted.count, counted.began, counted.last), (1000, 0, 999));
        for at in 0..1000 {
            history.push(refused(at, &at.to_string(), "busy"));
        }
        assert_eq!(history.records().len(), 1 + MAX_IN_VAIN);
        assert_eq!(history.records()[0], taken_over(2));
        assert_eq!(history.records().last().unwrap().last, 999);
    }

    #[test]
    fn two_that_take_turns_are_counted_each() {
        let mut history = History::default();
        for at in 0..100 {
            history.push(refused(at, "2", if at % 2 == 0 { "busy" } else { "starting" }));
        }
        assert_eq!(history.records().iter().map(|record| record.count).collect::<Vec<_>>(), [50, 50]);
    }

    #[test]
    fn what_changed_the_owner_is_never_counted_together() {
        let mut history = History::default();
        history.push(taken_over(2));
        history.push(taken_over(2));
        assert_eq!(history.records().len(), 2);
    }

    #[test]
    fn what_others_have_kept_is_cut_and_unknown_words_stay() {
        let long = "é".repeat(1000);
        let mut record = TakeoverRecord { outcome: "beamed\u{7}-up".to_owned(), ..taken_over(2) };
        record.to.as_mut().unwrap().app_version = long.clone();
        record.cause = Some(Cause { code: long.clone(), message: long.clone() });
        record.steps = vec![StepTime { step: long, at_ms: u64::MAX }; 100];
        let history = History::of(vec![record; 100]);
        assert_eq!(history.records().len(), MAX_RECORDS);
        let kept = &history.records()[0];
        assert_eq!(kept.outcome, "beamed-up");
        assert_eq!((kept.steps.len(), kept.steps[0].step.len()), (MAX_STEPS, MAX_WORD));
        assert_eq!(kept.to.as_ref().unwrap().app_version.len(), MAX_VERSION);
        assert_eq!(kept.cause.as_ref().unwrap().message.len(), MAX_MESSAGE);
    }
}
