//! `ctl stop`: asks the owner to leave, and waits until it has.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Client, Error, Phase, Status};
use serde_json::{Value, json};

use crate::args::Global;
use crate::failure::{FAILED, Failure, UNKNOWN};
use crate::follow::{self, PAUSE};
use crate::json;
use crate::printer::Printer;
use crate::status::who;
use crate::time;

/// How long it may take where nothing else is said: twice the usual drain deadline.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn run(global: &Global, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    let within = global.timeout_or(TIMEOUT);
    let until = Instant::now() + within;
    let unknown = |error: Error| Failure::from(error).or_unknown();

    let (mut client, mut last) = loop {
        match begin(socket, within) {
            Ok(begun) => break begun,
            // It left before it could answer: whoever comes after it is asked, if there is anybody.
            Err(Error::HungUp) if Instant::now() < until => {
                follow::wait(&mut [], Some(Instant::now() + PAUSE))?;
            }
            Err(error) => return Err(unknown(error)),
        }
    };
    printer.say(&format!("{} leaves, {} in flight", who(last.pid, &last.app_version), last.in_flight));

    // Until the process is gone; what it tells meanwhile is whether it goes because of this, or for a successor.
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match client.next(Some(left)) {
            Ok(Some(status)) => {
                let leaves_to_another = status.phase == Phase::Draining;
                last = status;
                if leaves_to_another {
                    break;
                }
            }
            Ok(None) => return Err(still_leaving(within, &last)),
            Err(Error::HungUp) => break,
            Err(error) => return Err(unknown(error)),
        }
    }
    let left = until.saturating_duration_since(Instant::now());
    match follow::ask(socket, left) {
        Err(Error::Nobody { .. }) => {
            let text = || format!("{} has left, nobody serves any more", who(last.pid, &last.app_version));
            let object = || json!({"stopped": true, "owner": json::owner(&last)});
            printer.print(text, object)?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) if status.pid == last.pid && status.generation == last.generation => {
            Err(still_leaving(within, &last))
        }
        // Nobody took over from it: who keeps the listeners has found them without an owner.
        Ok(status) if status.phase == Phase::Holding && last.phase != Phase::Draining => {
            let text = || {
                let (left, keeper) = (who(last.pid, &last.app_version), who(status.pid, &status.app_version));
                format!("{left} has left; {keeper} keeps the listeners, and connections wait for the next start\n")
            };
            let object = || json!({"stopped": true, "owner": json::owner(&last), "keeper": json::owner(&status)});
            printer.print(text, object)?;
            printer.hint("ctl stop again ends that one, too, and the service with it");
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) => Err(overtaken(&last, &status)),
        Err(Error::Deadline { .. }) => Err(still_leaving(within, &last)),
        Err(error) => Err(unknown(error)),
    }
}

/// Watches the owner, then asks it: so nothing that it tells of its leaving is missed.
fn begin(socket: &Path, within: Duration) -> Result<(Client, Status), Error> {
    let mut client = Client::connect(socket, within)?;
    client.watch()?;
    let silent = Error::Deadline { waiting_for: "an answer of the owner", after: within };
    let status = client.next(Some(within))?.ok_or(silent)?;
    client.stop()?;
    Ok((client, status))
}

fn still_leaving(within: Duration, last: &Status) -> Failure {
    let message = format!(
        "{} was asked to leave and is still there after {}, phase {}, {} in flight when it last told",
        who(last.pid, &last.app_version),
        time::duration(within),
        last.phase,
        last.in_flight,
    );
    Failure::new(UNKNOWN, "deadline", message)
        .hint("it leaves at its drain deadline at the latest; ctl status tells when")
}

fn overtaken(last: &Status, now: &Status) -> Failure {
    let message = format!(
        "{} has left, and its successor {} serves as generation {}",
        who(last.pid, &last.app_version),
        who(now.pid, &now.app_version),
        now.generation
    );
    let owner: Value = json::owner(now);
    Failure::new(FAILED, "overtaken", message).hint("ctl stop again, to end that one, too").key("owner", owner)
}
