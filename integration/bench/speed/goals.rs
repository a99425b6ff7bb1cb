//! What should hold, and whether it does.

use std::fmt;

use serde::Serialize;

use crate::figure::Spread;
use crate::kind::Kind;
use crate::report::Report;
use crate::takeovers::Takeover;

/// What a figure should be.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) sense: Sense,
    pub(crate) goal: f64,
    pub(crate) unit: &'static str,
    pub(crate) found: Spread,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Sense {
    #[serde(rename = "at most")]
    AtMost,
    #[serde(rename = "at least")]
    AtLeast,
}

/// Judged by the whole spread: a goal that lies inside it is neither met nor missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Met,
    Undecided,
    #[serde(rename = "not met")]
    NotMet,
}

impl Goal {
    fn at_most(what: impl Into<String>, goal: f64, unit: &'static str, found: Spread) -> Goal {
        let verdict = Verdict::of(found.high <= goal, found.low > goal);
        Goal { what: what.into(), sense: Sense::AtMost, goal, unit, found, verdict }
    }

    fn at_least(what: impl Into<String>, goal: f64, unit: &'static str, found: Spread) -> Goal {
        let verdict = Verdict::of(found.low >= goal, found.high < goal);
        Goal { what: what.into(), sense: Sense::AtLeast, goal, unit, found, verdict }
    }

    /// As it is told.
    pub(crate) fn wanted(&self) -> String {
        format!("{} {}{}", self.sense, self.goal, self.unit)
    }
}

impl Verdict {
    fn of(met: bool, missed: bool) -> Verdict {
        match (met, missed) {
            (true, _) => Verdict::Met,
            (_, true) => Verdict::NotMet,
            _ => Verdict::Undecided,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Met => "met",
            Verdict::Undecided => "undecided",
            Verdict::NotMet => "not met",
        })
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sense::AtMost => "at most",
            Sense::AtLeast => "at least",
        })
    }
}

/// All goals of what was measured.
pub(crate) fn of(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    let listeners = |count| {
        report.takeovers.iter().find(move |takeover| takeover.kind == Kind::Listener && takeover.count == count)
    };
    if let Some(ratio) = listeners(1).and_then(|takeover| takeover.whole.ratio()) {
        goals.push(Goal::at_most("a takeover of one listener, in bare round trips", 4.0, "", ratio));
    }
    if let Some(many) = listeners(10_000) {
        goals.extend(descriptors(many));
    }
    for stream in &report.streams {
        if let Some(part) = stream.received.part() {
            let what = format!("stream of {} descriptors, of the bare rate", grouped(stream.count));
            goals.push(Goal::at_least(what, 80.0, " %", part));
        }
    }
    for answers in &report.answers {
        let within = if answers.listeners == 1 { 3.0 } else { 20.0 };
        let what = match answers.listeners {
            1 => "first answer of a new version, after its start".to_owned(),
            many => format!("the same with {} listeners", grouped(many)),
        };
        goals.push(Goal::at_most(what, within, " ms", answers.after));
    }
    goals.extend(report.latencies.as_ref().map(|latencies| {
        let failed = latencies.failed as f64;
        Goal::at_most("failures under load", 0.0, "", Spread { low: failed, median: failed, high: failed })
    }));
    if let Some(ratio) = report.latencies.as_ref().and_then(|latencies| latencies.all.percentiles.last()?.ratio()) {
        goals.push(Goal::at_most("p99.9 with a takeover each second, against without", 1.5, " times", ratio));
    }
    if let Some(idle) = &report.idle {
        goals.push(Goal::at_most("wake-ups of an idle owner a second", 0.0, "", idle.wakes));
        goals.push(Goal::at_most("system calls of an idle owner a second", 0.0, "", idle.runs));
        if let Some(more) = idle.own.more() {
            goals.push(Goal::at_most(
                "memory of its own of an idle owner, beyond a plain server's",
                1024.0,
                " KiB",
                more,
            ));
        }
        if let Some(more) = idle.resident.more() {
            goals.push(Goal::at_most("the same with its pages of the program", 1024.0, " KiB", more));
        }
    }
    goals
}

/// Those of many descriptors at once.
fn descriptors(many: &Takeover) -> Vec<Goal> {
    let mut goals = Vec::new();
    if let Some(part) = many.received.part() {
        goals.push(Goal::at_least("10,000 listeners received, list and all, of the bare rate", 80.0, " %", part));
    }
    if let Some(part) = many.whole.part() {
        goals.push(Goal::at_least("the same until all are checked, claimed and owned", 80.0, " %", part));
    }
    if let Some(open) = Spread::of(&many.open) {
        // A process has some of its own: its streams, the family's, what it waits with.
        goals.push(Goal::at_most("descriptors of a process for each of 10,000 entries", 1.01, "", open));
    }
    goals
}

/// With a comma after each thousand.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        (0..digits.len()).rev().step_by(3).map(|end| &digits[end.saturating_sub(2)..=end]).collect();
    groups.into_iter().rev().collect::<Vec<_>>().join(",")
}
