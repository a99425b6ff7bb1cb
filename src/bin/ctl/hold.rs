//! `ctl hold`: has the owner refuse takeovers during an incident, or allow them again.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Hold, Status};
use serde_json::json;

use crate::args::{Global, HoldArgs};
use crate::failure::{FAILED, Failure};
use crate::follow::{self, PAUSE};
use crate::json;
use crate::printer::Printer;
use crate::status::held;
use crate::time;

/// How long the owner may take to answer where nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(global: &Global, args: &HoldArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    let within = global.timeout_or(TIMEOUT);
    let until = Instant::now() + within;
    let status = loop {
        let left = until.saturating_duration_since(Instant::now());
        match Client::connect(socket, left).and_then(|client| ask(client, args)) {
            Ok(status) => break status,
            // A takeover has just happened: its new owner is asked.
            Err(error) if is_passing(&error) && Instant::now() < until => {
                follow::wait(&mut [], Some(until.min(Instant::now() + PAUSE)))?;
            }
            Err(error @ Error::Deadline { .. }) => {
                let hint = "an owner that had read it already does it when it goes on: ctl status tells";
                return Err(Failure::from(error).or_unknown().hint(hint));
            }
            Err(error) => return Err(error.into()),
        }
    };
    let text = || match &status.hold {
        Some(hold) => format!("takeovers are refused: {}", held(hold)),
        None => "takeovers are allowed".to_owned(),
    };
    printer.print(text, || json!({"hold": status.hold.as_ref().map(json::hold)}))?;
    Ok(ExitCode::SUCCESS)
}

fn ask(mut client: Client, args: &HoldArgs) -> Result<Status, Error> {
    match &args.reason {
        Some(reason) => client.hold(reason, args.within)?,
        None => client.lift()?,
    }
    client.status()
}

fn is_passing(error: &Error) -> bool {
    match error {
        Error::HungUp => true,
        Error::Refused(why) => why.code == "draining",
        _ => false,
    }
}

/// A takeover that cannot be, as long as this lasts.
pub(crate) fn refused(hold: &Hold) -> Failure {
    Failure::new(FAILED, "held", format!("takeovers are held: {}", held(hold)))
        .hint(lift_hint(hold.left_ms))
        .key("hold", json::hold(hold))
}

/// What to do about a hold.
fn lift_hint(left_ms: Option<u64>) -> String {
    let after = left_ms.map(|left| format!(", or try again in {}", time::rough(Duration::from_millis(left))));
    format!("ctl hold --lift ends the hold{}", after.unwrap_or_default())
}
