//! What is told at the end of a run: tables for a person, one object for a program, a page, and a picture.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::answers::FirstAnswer;
use crate::failure::Failure;
use crate::figure::{Paired, Spread};
use crate::goals::{self, Goal, Verdict, grouped};
use crate::idle::Idle;
use crate::latency::{Latencies, PERCENTILES, Seen};
use crate::questions::Questions;
use crate::resumes::Resumes;
use crate::states::StateTaken;
use crate::stream::Stream;
use crate::table::Table;
use crate::takeovers::Takeover;
use crate::{machine, picture};

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) limit: u64,
    pub(crate) takeovers: Vec<Takeover>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) questions: Vec<Questions>,
    pub(crate) states: Vec<StateTaken>,
    pub(crate) answers: Vec<FirstAnswer>,
    pub(crate) resumes: Option<Resumes>,
    pub(crate) idle: Option<Idle>,
    pub(crate) latencies: Option<Latencies>,
    pub(crate) errors: Vec<String>,
    pub(crate) took: Duration,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty()
            && self.answers.iter().all(|answers| answers.failed == 0)
            && self.resumes.as_ref().is_none_or(Resumes::is_clean)
            && self.latencies.as_ref().is_none_or(|latencies| latencies.failed == 0)
    }

    pub(crate) fn json(&self) -> Value {
        let paired = |paired: &Paired| json!({"ours": paired.ours(), "floor": paired.floor(), "ratio": paired.ratio()});
        let seen = |seen: &Seen| {
            let names = PERCENTILES.iter().map(|percentile| format!("p{percentile}_ms"));
            let percentiles = names.zip(seen.percentiles.iter().map(paired));
            percentiles.chain([("longest_ms".to_owned(), paired(&seen.longest))]).collect::<serde_json::Map<_, _>>()
        };
        json!({
            "date": machine::today(),
            "machine": machine::words(),
            "open_files": self.limit,
            "takeovers": self.takeovers.iter().map(|takeover| json!({
                "kind": takeover.kind.argument(), "count": takeover.count, "us": paired(&takeover.whole),
                "received_us": paired(&takeover.received), "claims_us": Spread::of(&takeover.claims),
                "open_per_entry": Spread::of(&takeover.open),
            })).collect::<Vec<_>>(),
            "streams": self.streams.iter().map(|stream| json!({
                "count": stream.count, "received_us": paired(&stream.received), "us": Spread::of(&stream.whole),
            })).collect::<Vec<_>>(),
            "questions": self.questions.iter().map(|questions| json!({
                "listeners": questions.listeners, "status_us": questions.status, "rehearsal_us": questions.rehearsal,
            })).collect::<Vec<_>>(),
            "states": self.states.iter().map(|state| json!({
                "bytes": state.bytes, "checksum": state.checked, "wrote_us": state.wrote,
                "handed_over_us": state.handed_over,
            })).collect::<Vec<_>>(),
            "first_answers": self.answers.iter().map(|answers| json!({
                "listeners": answers.listeners, "ms": answers.after, "dip_ms": answers.dip,
                "longest_ms": answers.longest, "asked": answers.asked, "failed": answers.failed,
            })).collect::<Vec<_>>(),
            "resumes": self.resumes.as_ref().map(|resumes| json!({
                "ms": resumes.after, "kills": resumes.kills, "failed": resumes.failed,
            })),
            "idle": self.idle.as_ref().map(|idle| json!({
                "wakes_a_second": idle.wakes, "runs_a_second": idle.runs, "own_kib": paired(&idle.own),
                "resident_kib": paired(&idle.resident), "start_ms": paired(&idle.start),
            })),
            "latency": self.latencies.as_ref().map(|latencies| json!({
                "all": seen(&latencies.all), "new_connections": seen(&latencies.new_connections),
                "kept_alive": seen(&latencies.kept_alive), "requests": latencies.requests,
                "failed": latencies.failed, "takeovers": latencies.takeovers,
            })),
            "goals": goals::of(self),
            "errors": self.errors,
            "took_s": self.took.as_secs(),
        })
    }

    /// Writes the object, the page and the picture.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("speed.json"), format!("{:#}\n", self.json()))?;
        fs::write(folder.join("speed.md"), self.markdown())?;
        if let Some(latencies) = &self.latencies {
            picture::draw(latencies, &folder.join("latency.svg"))?;
        }
        Ok(())
    }

    /// As a page has it.
    pub(crate) fn markdown(&self) -> String {
        let head = self.head();
        let tables: Vec<String> = self.tables().iter().filter(|table| !table.is_empty()).map(Table::markdown).collect();
        format!("{head}\n\n{}", tables.join("\n"))
    }

    fn head(&self) -> String {
        format!(
            "{}, on {}. Medians, and the quartiles around them; what is compared was measured in turn.",
            machine::today(),
            machine::words()
        )
    }

    fn tables(&self) -> [Table; 5] {
        [self.handovers(), self.streams(), self.others(), self.latency(), self.verdicts()]
    }

    /// What is handed over, against the bare system calls.
    fn handovers(&self) -> Table {
        let mut table = Table::new(["handed over", "heirloom, ms", "received", "claimed", "bare, ms", "times"]);
        for takeover in &self.takeovers {
            table.row([
                takeover.kind.words(takeover.count),
                millis(takeover.whole.ours()),
                millis(takeover.received.ours()),
                millis(Spread::of(&takeover.claims)),
                millis(takeover.whole.floor()),
                cell(takeover.whole.ratio()),
            ]);
        }
        table
    }

    /// What goes on and on to a receiver that keeps nothing.
    fn streams(&self) -> Table {
        let mut table =
            Table::new(["stream of", "heirloom, a second", "bare, a second", "of bare", "with the list, ms"]);
        for stream in &self.streams {
            let rate = |took: Option<Spread>| took.map_or_else(|| "-".to_owned(), |took| rate(stream.count, took));
            table.row([
                format!("{} descriptors", grouped(stream.count)),
                rate(stream.received.ours()),
                rate(stream.received.floor()),
                cell(stream.received.part()) + " %",
                millis(Spread::of(&stream.whole)),
            ]);
        }
        table
    }

    /// What takes a time of its own, or costs something.
    fn others(&self) -> Table {
        let mut table = Table::new(["what else", "found"]);
        for questions in &self.questions {
            let listeners = named(questions.listeners);
            table.row([format!("a status, {listeners}"), millis(Some(questions.status)) + " ms"]);
            table.row([format!("a rehearsal, {listeners}"), millis(Some(questions.rehearsal)) + " ms"]);
        }
        for state in &self.states {
            let how = if state.checked { "with a checksum" } else { "without" };
            let took = millis(Some(state.handed_over));
            let wrote = millis(Some(state.wrote));
            table.row([
                format!("a state of {}, {how}, from written to had", size(state.bytes)),
                format!("{took} ms; the application wrote it in {wrote} ms"),
            ]);
        }
        for answers in &self.answers {
            let FirstAnswer { listeners, after, dip, longest, asked, failed } = answers;
            let listeners = named(*listeners);
            table.row([
                format!("first answer after the start, {listeners}"),
                format!("{after} ms; of {asked} requests {failed} failed, the longest waited {longest} ms"),
            ]);
            table.row([format!("from ready to the first accept, {listeners}"), format!("{dip} ms")]);
        }
        if let Some(Resumes { after, kills, failed }) = &self.resumes {
            table.row([
                "kill -9 of an owner on probation to the first answer".to_owned(),
                format!("{after} ms; {failed} requests in the hands of {kills} killed ones failed"),
            ]);
        }
        if let Some(idle) = &self.idle {
            let kib = |paired: &Paired| format!("{} KiB, {} without", cell(paired.ours()), cell(paired.floor()));
            table.row(["an idle owner wakes a second".to_owned(), idle.wakes.to_string()]);
            table.row(["and runs, so that it could call the system".to_owned(), idle.runs.to_string()]);
            table.row(["its memory of its own".to_owned(), kib(&idle.own)]);
            table.row(["resident in all".to_owned(), kib(&idle.resident)]);
            table.row([
                "serves after".to_owned(),
                format!("{} ms, {} without", cell(idle.start.ours()), cell(idle.start.floor())),
            ]);
        }
        table
    }

    fn latency(&self) -> Table {
        let mut table = Table::new(["latency", "takeover each second, ms", "none, ms", "times"]);
        let Some(latencies) = &self.latencies else { return table };
        let kinds = [&latencies.all, &latencies.new_connections, &latencies.kept_alive];
        for seen in kinds {
            let rows = PERCENTILES.iter().map(|percentile| format!("p{percentile}")).zip(&seen.percentiles);
            for (name, paired) in rows.chain([("longest".to_owned(), &seen.longest)]) {
                table.row([
                    format!("{}: {name}", seen.by),
                    cell(paired.ours()),
                    cell(paired.floor()),
                    cell(paired.ratio()),
                ]);
            }
        }
        let Latencies { requests, failed, takeovers, .. } = latencies;
        table.row([
            format!("failed of {} requests", grouped(usize::try_from(*requests).unwrap_or(usize::MAX))),
            format!("{failed} in {takeovers} takeovers"),
            String::new(),
            String::new(),
        ]);
        table
    }

    fn verdicts(&self) -> Table {
        let mut table = Table::new(["goal", "wanted", "found", "verdict"]);
        for goal in goals::of(self) {
            let found = format!("{}{}", goal.found, goal.unit);
            table.row([goal.what.clone(), goal.wanted(), found, goal.verdict.to_string()]);
        }
        table
    }
}

/// A spread, or a dash.
fn cell(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| spread.to_string())
}

/// Microseconds as milliseconds.
fn millis(spread: Option<Spread>) -> String {
    cell(spread.map(|spread| spread.scaled(1e-3)))
}

/// How many a second, in words.
fn rate(count: usize, took_us: Spread) -> String {
    match count as f64 * 1e6 / took_us.median {
        rate if rate >= 1e6 => format!("{:.2} million", rate / 1e6),
        rate => grouped(rate as usize),
    }
}

fn named(listeners: usize) -> String {
    if listeners == 1 { "1 listener".to_owned() } else { format!("{} listeners", grouped(listeners)) }
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{} GiB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.head())?;
        for table in self.tables().iter().filter(|table| !table.is_empty()) {
            write!(f, "\n{table}")?;
        }
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        let goals: Vec<Goal> = goals::of(self);
        let count = |verdict| goals.iter().filter(|goal| goal.verdict == verdict).count();
        let (met, undecided) = (count(Verdict::Met), count(Verdict::Undecided));
        writeln!(
            f,
            "\n{met} of {} goals are met, {undecided} undecided; it took {} s",
            goals.len(),
            self.took.as_secs()
        )
    }
}
