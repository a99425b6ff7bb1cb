//! What is told at the end of a run: a page for a person, or one object for a program.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::load::Tally;

/// One takeover. Each time counts from the start of the new process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Takeover {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// The new process has the listener.
    pub(crate) received: Duration,
    /// It has warmed up and is the owner.
    pub(crate) owner: Duration,
    /// A client has its first answer.
    pub(crate) first_answer: Duration,
    /// The old process has finished what it had in flight and exited with 0.
    pub(crate) old_gone: Duration,
    /// The longest latency of an answer, by whichever of the two.
    pub(crate) slowest: Duration,
}

/// A whole run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) takeovers: Vec<Takeover>,
    /// `None` where it failed before there was load.
    pub(crate) tally: Option<Tally>,
    /// What went wrong besides failed requests.
    pub(crate) errors: Vec<String>,
}

impl Report {
    /// Whether nobody noticed anything.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.tally.as_ref().is_some_and(|tally| tally.failed == 0)
    }

    /// The same for programs: times in milliseconds, latencies those of takeovers unless in `baseline`.
    pub(crate) fn json(&self) -> Value {
        let steps = self.takeovers.iter().map(|takeover| {
            json!({
                "from": takeover.from.to_string(),
                "to": takeover.to.to_string(),
                "received_ms": ms(takeover.received),
                "owner_ms": ms(takeover.owner),
                "first_answer_ms": ms(takeover.first_answer),
                "old_gone_ms": ms(takeover.old_gone),
                "slowest_ms": ms(takeover.slowest),
            })
        });
        let mut object = json!({
            "takeovers": self.takeovers.len(),
            "steps": steps.collect::<Vec<_>>(),
            "errors": self.errors,
        });
        if let (Value::Object(object), Some(tally)) = (&mut object, &self.tally) {
            object.insert("seconds".into(), tally.time.as_secs_f64().into());
            object.insert("requests".into(), tally.requests.into());
            object.insert("failed".into(), tally.failed.into());
            object.insert("failed_keep_alive".into(), tally.failed_keep_alive.into());
            object.insert("failed_by".into(), json!(tally.failed_by));
            object.insert("failures".into(), json!(tally.failures));
            object.insert("by_version".into(), json!(tally.by_version));
            object.append(&mut latencies(&tally.takeovers));
            object.insert("baseline".into(), Value::Object(latencies(&tally.calm)));
        }
        object
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.takeovers.is_empty() {
            writeln!(f, "versions    has the listener     owner  first answer  old one gone  slowest answer")?;
        }
        for takeover in &self.takeovers {
            let versions = format!("{} -> {}", takeover.from, takeover.to);
            write!(f, "{versions:<10}")?;
            write!(f, "{:>15.1} ms", ms(takeover.received))?;
            write!(f, "{:>7.1} ms", ms(takeover.owner))?;
            write!(f, "{:>11.1} ms", ms(takeover.first_answer))?;
            write!(f, "{:>11.1} ms", ms(takeover.old_gone))?;
            writeln!(f, "{:>13.2} ms", ms(takeover.slowest))?;
        }
        if let Some(tally) = &self.tally {
            self.write_tally(f, tally)?;
        }
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        Ok(())
    }
}

impl Report {
    fn write_tally(&self, f: &mut fmt::Formatter<'_>, tally: &Tally) -> fmt::Result {
        // Versions are numbers here, but the tally has them as the service gave them.
        let mut versions: Vec<_> = tally.by_version.iter().collect();
        versions.sort_by_key(|(version, _)| version.parse::<u32>().unwrap_or(u32::MAX));
        let versions: Vec<_> = versions.iter().map(|(version, count)| format!("{version}: {count}")).collect();

        writeln!(f)?;
        writeln!(f, "requests    {} in {:.1} s", tally.requests, tally.time.as_secs_f64())?;
        writeln!(f, "by version  {}", versions.join(", "))?;
        writeln!(f, "failed      {}, {} of them with keep-alive", tally.failed, tally.failed_keep_alive)?;
        for (by, count) in &tally.failed_by {
            writeln!(f, "            {by}: {count}")?;
        }
        for failure in &tally.failures {
            writeln!(f, "            {failure}")?;
        }
        writeln!(f)?;
        writeln!(f, "latency             p50        p99        max   answers")?;
        let rows = [("in takeovers", &tally.takeovers), ("without", &tally.calm)];
        // Who only loads knows of no takeovers.
        for (name, histogram) in rows.into_iter().filter(|(_, histogram)| !histogram.is_empty()) {
            write!(f, "{name:<12}")?;
            for micros in [histogram.value_at_quantile(0.5), histogram.value_at_quantile(0.99), histogram.max()] {
                write!(f, "{:>8.2} ms", ms(Duration::from_micros(micros)))?;
            }
            writeln!(f, "{:>10}", histogram.len())?;
        }
        Ok(())
    }
}

fn latencies(histogram: &Histogram<u64>) -> serde_json::Map<String, Value> {
    let at = |quantile| ms(Duration::from_micros(histogram.value_at_quantile(quantile)));
    let mut object = serde_json::Map::new();
    object.insert("answers".into(), histogram.len().into());
    object.insert("p50_ms".into(), at(0.5).into());
    object.insert("p99_ms".into(), at(0.99).into());
    object.insert("max_ms".into(), ms(Duration::from_micros(histogram.max())).into());
    object
}

/// Milliseconds with three decimals, which is what was measured.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
