//! `ctl drain`: sees and steers processes that finish what they had in flight.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, DrainStatus, Error, Phase, Status};
use serde_json::{Value, json};

use crate::args::{DrainCommand, Global};
use crate::failure::Failure;
use crate::follow::{self, PAUSE};
use crate::json;
use crate::printer::Printer;
use crate::status;
use crate::table::{clean, table};
use crate::time;

/// How long the owner may take to answer where nothing else is said: longer than those who drain have to obey.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(global: &Global, command: &DrainCommand, printer: Printer) -> Result<ExitCode, Failure> {
    let (socket, within) = (global.socket()?, global.timeout_or(TIMEOUT));
    let done = match *command {
        DrainCommand::Status => None,
        DrainCommand::Extend { by, generation } => {
            steer(socket, within, |client| client.extend_drain(by, generation))?;
            printer.say(&format!("the drain deadline has moved by {}", time::duration(by)));
            Some(("extended", json!(time::duration(by))))
        }
        DrainCommand::Finish { generation } => {
            steer(socket, within, |client| client.finish_drain(generation))?;
            printer.say("it was told to end its drain now, whatever is in flight");
            Some(("finished", json!(true)))
        }
    };
    let status = match follow::ask(socket, within) {
        // An owner that was stopping, and had nothing more to wait for.
        Err(Error::Nobody { .. }) if done.is_some() => None,
        status => Some(status.map_err(|error| Failure::from(error).or_unknown())?),
    };
    let rows = status.as_ref().map(drainers).unwrap_or_default();
    let object = || {
        let mut object = json!({"drainers": rows.iter().map(Drain::json).collect::<Vec<_>>()});
        if let Some((key, value)) = &done {
            object[*key] = value.clone();
        }
        object
    };
    if rows.is_empty() && !printer.is_json() {
        // An empty list has no table.
        if done.is_none() {
            printer.say("nobody drains");
        }
        return Ok(ExitCode::SUCCESS);
    }
    printer.print(|| text(&rows), object)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the owner, whoever that is in the end, until it was obeyed.
fn steer(socket: &Path, within: Duration, order: impl Fn(&mut Client) -> Result<(), Error>) -> Result<(), Failure> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match Client::connect(socket, left).and_then(|mut client| order(&mut client)) {
            // It has handed over meanwhile: whoever owns now is asked.
            Err(Error::Refused(why)) if why.code == "draining" && Instant::now() < until => {
                follow::wait(&mut [], Some(Instant::now() + PAUSE))?;
            }
            // Whether it had passed it on, nobody knows.
            Err(Error::HungUp) => return Err(Failure::from(Error::HungUp).unknown()),
            answer => return answer.map_err(|error| Failure::from(error).or_unknown()),
        }
    }
}

/// A process that drains, for a row.
struct Drain {
    pid: u32,
    app_version: String,
    generation: Option<u64>,
    in_flight: Option<u64>,
    oldest_ms: Option<u64>,
    left_ms: Option<u64>,
}

impl Drain {
    fn of(drain: &DrainStatus) -> Drain {
        Drain {
            pid: drain.who.pid,
            app_version: drain.who.app_version.clone(),
            generation: drain.generation,
            in_flight: drain.in_flight,
            oldest_ms: drain.oldest_ms,
            left_ms: drain.left_ms,
        }
    }

    fn json(&self) -> Value {
        json!({
            "pid": json::pid(self.pid),
            "app_version": self.app_version,
            "generation": self.generation,
            "in_flight": self.in_flight,
            "oldest": json::milliseconds(self.oldest_ms),
            "left": json::milliseconds(self.left_ms),
        })
    }
}

/// Who drains: an owner that was asked to stop, then its predecessor, then those before it.
fn drainers(status: &Status) -> Vec<Drain> {
    let own = (status.phase == Phase::Stopping).then(|| Drain {
        pid: status.pid,
        app_version: status.app_version.clone(),
        generation: Some(status.generation),
        in_flight: Some(status.in_flight),
        oldest_ms: None,
        left_ms: status.left_ms,
    });
    own.into_iter().chain(status::drainers(status).iter().map(Drain::of)).collect()
}

fn text(rows: &[Drain]) -> String {
    let rows = rows.iter().map(|drain| {
        let rough = |ms: Option<u64>| ms.map(|ms| time::rough(Duration::from_millis(ms))).unwrap_or_default();
        [
            drain.generation.map(|generation| generation.to_string()).unwrap_or_default(),
            json::pid(drain.pid).map(|pid| pid.to_string()).unwrap_or_default(),
            clean(&drain.app_version),
            drain.in_flight.map(|in_flight| in_flight.to_string()).unwrap_or_default(),
            rough(drain.oldest_ms),
            rough(drain.left_ms),
        ]
    });
    table(["GENERATION", "PID", "VERSION", "IN FLIGHT", "OLDEST", "LEFT"], rows)
}
