//! What is told at the end of a run: tables for a person, one object for a program, and a picture.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::answers::FirstAnswer;
use crate::failure::Failure;
use crate::figure::{Goal, Paired, Spread};
use crate::idle::Idle;
use crate::kind::Kind;
use crate::latency::{Latencies, PERCENTILES};
use crate::picture;
use crate::questions::Questions;
use crate::states::StateTaken;
use crate::takeovers::Takeover;

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) limit: usize,
    pub(crate) takeovers: Vec<Takeover>,
    pub(crate) questions: Vec<Questions>,
    pub(crate) states: Vec<StateTaken>,
    pub(crate) answers: Vec<FirstAnswer>,
    pub(crate) idle: Option<Idle>,
    pub(crate) latencies: Option<Latencies>,
    pub(crate) errors: Vec<String>,
    pub(crate) took: Duration,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        let answered = self.answers.iter().all(|answers| answers.failed == 0);
        self.errors.is_empty() && answered && self.latencies.as_ref().is_none_or(|latencies| latencies.failed == 0)
    }

    /// What should hold, and whether it does.
    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let listeners = |count| {
            self.takeovers.iter().find(move |takeover| takeover.kind == Kind::Listener && takeover.count == count)
        };
        if let Some(ratio) = listeners(1).and_then(|takeover| takeover.whole.ratio()) {
            goals.push(Goal::at_most("a takeover of one listener against the bare round trip", "times", 4.0, ratio));
        }
        if let Some(ratio) = listeners(10_000).and_then(|takeover| takeover.whole.ratio()) {
            goals.push(Goal::at_most("10,000 listeners against the bare descriptors", "times", 1.25, ratio));
        }
        for answers in &self.answers {
            let within = if answers.listeners == 1 { 3.0 } else { 20.0 };
            let what = format!("first answer of a new version with {} listeners", answers.listeners);
            goals.push(Goal::at_most(what, "ms", within, answers.after));
        }
        if let Some(ratio) = self.latencies.as_ref().and_then(|latencies| latencies.percentiles.last()?.ratio()) {
            goals.push(Goal::at_most("p99.9 with a takeover each second against without", "times", 1.5, ratio));
        }
        if let Some(idle) = &self.idle {
            goals.push(Goal::at_most("wake-ups of an idle owner", "a second", 0.0, idle.wakes));
            if let (Some(ours), Some(plain)) = (idle.own.ours(), idle.own.floor()) {
                let more = Spread {
                    low: ours.low - plain.low,
                    median: ours.median - plain.median,
                    high: ours.high - plain.high,
                };
                goals.push(Goal::at_most("memory of an idle owner beyond a plain server", "KiB", 1024.0, more));
            }
        }
        goals
    }

    pub(crate) fn json(&self) -> Value {
        let paired = |paired: &Paired| json!({"ours": paired.ours(), "floor": paired.floor(), "ratio": paired.ratio()});
        json!({
            "open_files": self.limit,
            "takeovers": self.takeovers.iter().map(|takeover| json!({
                "kind": takeover.kind.argument(), "count": takeover.count, "us": paired(&takeover.whole),
                "claims_us": Spread::of(&takeover.claims),
            })).collect::<Vec<_>>(),
            "questions": self.questions.iter().map(|questions| json!({
                "listeners": questions.listeners, "status_us": questions.status, "rehearsal_us": questions.rehearsal,
            })).collect::<Vec<_>>(),
            "states": self.states.iter().map(|state| json!({
                "bytes": state.bytes, "checksum": state.checked, "us": state.whole,
            })).collect::<Vec<_>>(),
            "first_answers": self.answers.iter().map(|answers| json!({
                "listeners": answers.listeners, "ms": answers.after, "longest_ms": answers.longest,
                "asked": answers.asked, "failed": answers.failed,
            })).collect::<Vec<_>>(),
            "idle": self.idle.as_ref().map(|idle| json!({
                "wakes_a_second": idle.wakes, "own_kib": paired(&idle.own), "resident_kib": paired(&idle.resident),
                "start_ms": paired(&idle.start),
            })),
            "latency": self.latencies.as_ref().map(|latencies| json!({
                "percentiles_ms": PERCENTILES.iter().zip(&latencies.percentiles)
                    .map(|(percentile, ms)| (format!("p{percentile}"), paired(ms))).collect::<serde_json::Map<_, _>>(),
                "longest_ms": paired(&latencies.longest), "requests": latencies.requests, "failed": latencies.failed,
                "takeovers": latencies.takeovers,
            })),
            "goals": self.goals(),
            "errors": self.errors,
            "took_s": self.took.as_secs(),
        })
    }

    /// Writes the object and the picture.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("speed.json"), format!("{:#}\n", self.json()))?;
        if let Some(latencies) = &self.latencies {
            picture::draw(latencies, &folder.join("latency.svg"))?;
        }
        Ok(())
    }
}

/// A spread, or a dash.
fn cell(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| spread.to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Medians, and the quartiles around them.\n")?;
        if !self.takeovers.is_empty() {
            writeln!(f, "{:32}{:28}{:28}{:24}claims, ms", "takeover of", "ms", "bare, ms", "times")?;
            for takeover in &self.takeovers {
                let ms = |spread: Option<Spread>| cell(spread.map(|spread| spread.scaled(1e-3)));
                let what = format!("{} {}", takeover.count, takeover.kind.word());
                let (ours, floor) = (ms(takeover.whole.ours()), ms(takeover.whole.floor()));
                let (ratio, claims) = (cell(takeover.whole.ratio()), ms(Spread::of(&takeover.claims)));
                writeln!(f, "{what:32}{ours:28}{floor:28}{ratio:24}{claims}")?;
            }
            writeln!(f)?;
        }
        for questions in &self.questions {
            let (status, rehearsal) = (questions.status.scaled(1e-3), questions.rehearsal.scaled(1e-3));
            writeln!(f, "with {} listeners: a status {status} ms, a rehearsal {rehearsal} ms", questions.listeners)?;
        }
        for state in &self.states {
            let how = if state.checked { "with a checksum" } else { "without" };
            let whole = state.whole.scaled(1e-3);
            writeln!(f, "a takeover with a state of {} bytes, {how}: {whole} ms, the writing included", state.bytes)?;
        }
        for answers in &self.answers {
            let FirstAnswer { listeners, after, longest, asked, failed } = answers;
            writeln!(
                f,
                "with {listeners} listeners: first answer after {after} ms; a client waited {longest} ms at most;"
            )?;
            writeln!(f, "    {asked} asked, {failed} failed")?;
        }
        if let Some(idle) = &self.idle {
            let kib = |paired: &Paired| format!("{} KiB against {}", cell(paired.ours()), cell(paired.floor()));
            writeln!(f, "idle: {} wake-ups a second", idle.wakes)?;
            writeln!(f, "    memory of its own {}; resident {}", kib(&idle.own), kib(&idle.resident))?;
            writeln!(f, "    serves after {} ms against {}", cell(idle.start.ours()), cell(idle.start.floor()))?;
        }
        if let Some(latencies) = &self.latencies {
            let Latencies { requests, failed, takeovers, .. } = latencies;
            writeln!(f, "\n{:12}{:28}{:28}times", "latency", "with takeovers, ms", "without, ms")?;
            let rows = PERCENTILES.iter().map(|percentile| format!("p{percentile}")).zip(&latencies.percentiles);
            for (name, paired) in rows.chain([("longest".to_owned(), &latencies.longest)]) {
                let (ours, floor, ratio) = (cell(paired.ours()), cell(paired.floor()), cell(paired.ratio()));
                writeln!(f, "{name:12}{ours:28}{floor:28}{ratio}")?;
            }
            writeln!(f, "{requests} requests, {takeovers} takeovers, {failed} failed")?;
        }
        writeln!(f)?;
        for goal in self.goals() {
            writeln!(f, "{goal}")?;
        }
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        writeln!(f, "took {} s", self.took.as_secs())
    }
}
