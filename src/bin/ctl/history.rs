//! `ctl history`: what became of the last takeovers.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Side, TakeoverRecord};
use serde_json::{Value, json};

use crate::args::{Global, HistoryArgs};
use crate::failure::Failure;
use crate::follow::{self, PAUSE};
use crate::json;
use crate::printer::Printer;
use crate::status::who;
use crate::table::{clean, table};
use crate::time;

/// How long the owner may take to answer where nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(global: &Global, args: &HistoryArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let records =
        ask(global.socket()?, global.timeout_or(TIMEOUT)).map_err(|error| Failure::from(error).or_unknown())?;
    let newest = args.limit.map_or(0, |limit| records.len().saturating_sub(limit));
    let records = &records[newest..];
    let object = || json!({"takeovers": records.iter().map(record).collect::<Vec<_>>()});
    printer.print(|| text(records), object)?;
    Ok(ExitCode::SUCCESS)
}

/// The history of the owner, whoever that is in the end.
fn ask(socket: &Path, within: Duration) -> Result<Vec<TakeoverRecord>, Error> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match Client::connect(socket, left).and_then(|mut client| client.history()) {
            // It left before it could answer: whoever comes after it is asked, if there is anybody.
            Err(Error::HungUp) if Instant::now() < until => follow::wait(&mut [], Some(Instant::now() + PAUSE))?,
            answer => return answer,
        }
    }
}

fn record(record: &TakeoverRecord) -> Value {
    json!({
        "began": time::timestamp(record.began),
        "outcome": record.outcome,
        "from": record.from.as_ref().map(json::side),
        "to": record.to.as_ref().map(json::side),
        "took": milliseconds(record.took_ms),
        "steps": record.steps.iter().map(|step| json!({"step": step.step, "at_ms": step.at_ms})).collect::<Vec<_>>(),
        "cause": record.cause.as_ref().map(|cause| json!({"code": cause.code, "message": cause.message})),
        "count": record.count,
        "last": time::timestamp(record.last),
    })
}

fn text(records: &[TakeoverRecord]) -> String {
    if records.is_empty() {
        return "nothing is remembered".to_owned();
    }
    let rows = records.iter().map(|record| {
        [
            time::timestamp(record.began).unwrap_or_default(),
            record.outcome.clone(),
            side(record.from.as_ref()),
            side(record.to.as_ref()),
            milliseconds(record.took_ms),
            details(record),
        ]
    });
    table(["BEGAN", "OUTCOME", "FROM", "TO", "TOOK", "DETAILS"], rows)
}

fn side(side: Option<&Side>) -> String {
    let Some(side) = side else { return String::new() };
    let generation = side.generation.map(|generation| format!("{generation}: ")).unwrap_or_default();
    format!("{generation}{}", who(side.pid, &side.app_version))
}

/// Why, how often, and when it came to which step.
fn details(record: &TakeoverRecord) -> String {
    let cause = record.cause.iter().map(|cause| match clean(&cause.message) {
        message if message.is_empty() => clean(&cause.code),
        message => format!("{}: {message}", clean(&cause.code)),
    });
    let last = time::timestamp(record.last).unwrap_or_default();
    let count = (record.count > 1).then(|| format!("{} times, the last at {last}", record.count));
    let steps = record.steps.iter().map(|step| format!("{} {}", clean(&step.step), milliseconds(step.at_ms)));
    let steps = steps.collect::<Vec<_>>().join(", ");
    cause.chain(count).chain((!steps.is_empty()).then_some(steps)).collect::<Vec<_>>().join("; ")
}

fn milliseconds(milliseconds: u64) -> String {
    time::duration(Duration::from_millis(milliseconds))
}
