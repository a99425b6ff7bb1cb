//! What is told at the end of a run: tables for a person, or one object for a program.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::clients::{Seen, TWO_WRITERS};
use crate::figures::{Figure, Rule};
use crate::load::{CUT, LATE, REFUSED, RESET, Tally, WRONG};
use crate::phase::Phase;

/// A whole run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) phases: Vec<Phase>,
    /// What went wrong besides failed requests and figures that grow.
    pub(crate) errors: Vec<String>,
    pub(crate) time: Duration,
}

impl Report {
    /// Whether nothing failed and nothing grew.
    pub(crate) fn is_clean(&self) -> bool {
        let clean = |phase: &Phase| failed(phase) == Some(0) && !phase.figures.all.iter().any(Figure::fails);
        self.errors.is_empty() && self.phases.iter().all(clean)
    }

    /// The same for programs: times in milliseconds, memory in KiB, slopes in 1,000 rounds.
    pub(crate) fn json(&self) -> Value {
        let phases: Vec<Value> = self.phases.iter().map(phase_json).collect();
        json!({
            "clean": self.is_clean(),
            "seconds": self.time.as_secs_f64(),
            "phases": phases,
            "errors": self.errors,
        })
    }
}

fn phase_json(phase: &Phase) -> Value {
    let figures = phase.figures.all.iter().filter_map(|figure| {
        let (trend, verdict) = figure.judge()?;
        Some(json!({
            "name": figure.name,
            "unit": figure.unit,
            "first": trend.first,
            "median": trend.median,
            "last": trend.last,
            "min": trend.min,
            "max": trend.max,
            "slope": trend.slope * ROUNDS,
            "slope_low": trend.low * ROUNDS,
            "slope_high": trend.high * ROUNDS,
            "verdict": verdict.word(),
            "fails": figure.fails(),
        }))
    });
    let mut object = json!({
        "name": phase.kind.name(),
        "rounds": phase.figures.rounds(),
        "figures": figures.collect::<Vec<_>>(),
    });
    if let Some((tally, seen)) = &phase.seen {
        object["seconds"] = tally.time.as_secs_f64().into();
        object["requests"] = tally.requests.into();
        object["lines"] = seen.lines.into();
        object["datagrams"] = seen.datagrams.into();
        object["failed"] = failed(phase).into();
        object["failed_by"] = json!(failed_by(tally, seen));
        object["failed_keep_alive"] = tally.failed_keep_alive.into();
        object["failures"] = json!(words(tally, seen).collect::<Vec<_>>());
        object["answered_by"] = tally.by_version.len().into();
        object["latency"] = latency_json(&tally.takeovers);
        object["latency_calm"] = latency_json(&tally.calm);
    }
    object
}

fn latency_json(histogram: &Histogram<u64>) -> Value {
    let [p50, p99, max] = quantiles(histogram);
    json!({ "answers": histogram.len(), "p50_ms": p50, "p99_ms": p99, "max_ms": max })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for phase in &self.phases {
            write_phase(f, phase)?;
            writeln!(f)?;
        }
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        let clean = if self.is_clean() { "nothing failed, nothing grew" } else { "FAILED" };
        writeln!(f, "{clean}, in {:.1} s", self.time.as_secs_f64())
    }
}

fn write_phase(f: &mut fmt::Formatter<'_>, phase: &Phase) -> fmt::Result {
    writeln!(f, "== {} {}", phase.figures.rounds(), phase.kind.name())?;
    if let Some((tally, seen)) = &phase.seen {
        write!(f, "{} requests, {} lines, {} datagrams", tally.requests, seen.lines, seen.datagrams)?;
        writeln!(f, " in {:.1} s, answered by {} versions", tally.time.as_secs_f64(), tally.by_version.len())?;
        let failed = failed_by(tally, seen);
        let kinds: Vec<_> = failed.iter().map(|(by, count)| format!("{by} {count}")).collect();
        writeln!(f, "failed: {}; {} with keep-alive", kinds.join(", "), tally.failed_keep_alive)?;
        for failure in words(tally, seen) {
            writeln!(f, "  {failure}")?;
        }
        for (name, histogram) in [("in rounds", &tally.takeovers), ("calm", &tally.calm)] {
            let [p50, p99, max] = quantiles(histogram);
            write!(f, "latency {name:<10} p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms")?;
            writeln!(f, " of {} answers", histogram.len())?;
        }
    }
    if phase.figures.rounds() == 0 {
        return Ok(());
    }
    write!(f, "\n{:<36}{:>9}{:>9}{:>9}{:>9}{:>9}", "figure", "first", "median", "last", "min", "max")?;
    writeln!(f, "{:>10}  {:<23} verdict", "slope", "(99 % interval)")?;
    for figure in &phase.figures.all {
        write_figure(f, figure)?;
    }
    Ok(())
}

fn write_figure(f: &mut fmt::Formatter<'_>, figure: &Figure) -> fmt::Result {
    let Some((trend, verdict)) = figure.judge() else { return Ok(()) };
    let name = if figure.unit.is_empty() { figure.name.clone() } else { format!("{}, {}", figure.name, figure.unit) };
    write!(f, "{name:<36}")?;
    let digits = if figure.unit == "ms" { 2 } else { 0 };
    for value in [trend.first, trend.median, trend.last, trend.min, trend.max] {
        write!(f, "{value:>9.digits$}")?;
    }
    let [slope, low, high] = [trend.slope, trend.low, trend.high].map(|slope| slope * ROUNDS + 0.0);
    let interval = format!("({low:+.2} to {high:+.2})");
    write!(f, "{slope:>+10.2}  {interval:<23} {}", verdict.word())?;
    match figure.rule {
        _ if figure.fails() => writeln!(f, ": FAILS"),
        Rule::Told => writeln!(f, ", not judged"),
        Rule::Same | Rule::Within(_) => writeln!(f),
    }
}

/// How many requests, lines and datagrams failed; `None` where the clients have not ended.
fn failed(phase: &Phase) -> Option<u64> {
    phase.seen.as_ref().map(|(tally, seen)| failed_by(tally, seen).values().sum())
}

/// By what their client met, the zeros included.
fn failed_by(tally: &Tally, seen: &Seen) -> BTreeMap<&'static str, u64> {
    let mut all: BTreeMap<_, _> = [REFUSED, RESET, CUT, LATE, WRONG, TWO_WRITERS].map(|by| (by, 0)).into();
    for (by, count) in tally.failed_by.iter().chain(&seen.failed_by) {
        *all.entry(by).or_default() += count;
    }
    all
}

fn words<'a>(tally: &'a Tally, seen: &'a Seen) -> impl Iterator<Item = &'a String> {
    tally.failures.iter().chain(&seen.failures)
}

/// Median, 99 % and the longest, in milliseconds.
fn quantiles(histogram: &Histogram<u64>) -> [f64; 3] {
    [0.5, 0.99, 1.0].map(|quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0)
}

/// Slopes are told for as many rounds.
const ROUNDS: f64 = 1000.0;
