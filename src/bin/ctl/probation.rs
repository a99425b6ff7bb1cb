//! `ctl confirm` and `ctl rollback`: end a probation, forwards or back.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Status};
use serde_json::json;

use crate::args::{Global, RollbackArgs};
use crate::failure::{FAILED, Failure};
use crate::follow::{self, owns};
use crate::json;
use crate::printer::Printer;
use crate::status::who;

/// How long a word of the owner may take where nothing else is said.
const CONFIRM: Duration = Duration::from_secs(5);
/// And the way back: the application's release and the predecessor's commit are in it.
const ROLLBACK: Duration = Duration::from_secs(30);

pub(crate) fn confirm(global: &Global, printer: Printer) -> Result<ExitCode, Failure> {
    let within = global.timeout_or(CONFIRM);
    let (mut client, owner) = reach(global.socket()?, within).map_err(unknown)?;
    client.confirm().map_err(unknown)?;
    let text = || format!("{} stays, generation {}", who(owner.pid, &owner.app_version), owner.generation);
    printer.print(text, || json!({"confirmed": true, "owner": json::owner(&owner)}))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn rollback(global: &Global, args: &RollbackArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    let within = global.timeout_or(ROLLBACK);
    let until = Instant::now() + within;
    let (mut client, from) = reach(socket, within).map_err(unknown)?;
    let asked = client.roll_back(&args.reason);
    let to = match asked {
        // Where it died on the way the other one owns all the same; only the newest word on that counts.
        Ok(()) | Err(Error::HungUp) => {
            follow::ask(socket, until.saturating_duration_since(Instant::now())).map_err(unknown)?
        }
        Err(error) => return Err(unknown(error)),
    };
    if to.generation <= from.generation {
        let message = format!("{} still owns the service, generation {}", who(to.pid, &to.app_version), to.generation);
        return Err(Failure::new(FAILED, "hung-up", message));
    }
    let text = || {
        format!(
            "{} serves again as generation {}, after {}",
            who(to.pid, &to.app_version),
            to.generation,
            who(from.pid, &from.app_version)
        )
    };
    printer.print(text, || json!({"rolled_back": true, "from": json::owner(&from), "to": json::owner(&to)}))?;
    Ok(ExitCode::SUCCESS)
}

/// The owner, and a connection to it.
pub(crate) fn reach(socket: &Path, within: Duration) -> Result<(Client, Status), Error> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut client = Client::connect(socket, left)?;
        match client.status() {
            Ok(status) if owns(&status) => return Ok((client, status)),
            // It has just handed over: whoever owns now answers the next connection.
            Ok(_) | Err(Error::HungUp) if Instant::now() < until => {
                follow::wait(&mut [], Some(Instant::now() + follow::PAUSE))?;
            }
            Ok(_) => return Err(Error::Deadline { waiting_for: "an answer of the owner", after: within }),
            Err(error) => return Err(error),
        }
    }
}

fn unknown(error: Error) -> Failure {
    Failure::from(error).or_unknown()
}
