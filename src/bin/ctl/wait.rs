//! `ctl wait`: until the service is where it should be.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use heirloom::{Error, Status};

use crate::args::{Global, WaitArgs};
use crate::failure::{FAILED, Failure};
use crate::follow::{Follow, News, is_ready, owns};
use crate::json;
use crate::printer::Printer;
use crate::status;
use crate::time;

/// How long where nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn run(global: &Global, args: &WaitArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let within = global.timeout_or(TIMEOUT);
    let until = Instant::now() + within;
    let mut follow = Follow::new(global.socket()?);
    let mut last = Seen::Nothing;
    let mut asked_again = None;
    loop {
        match follow.news()? {
            Some(News::Status(status)) if is_so(args, &status) => {
                // Who listens is told as it was when the connection was made: before this owner listened, perhaps.
                if args.here && asked_again != Some(status.generation) {
                    asked_again = Some(status.generation);
                    follow.reconnect();
                    continue;
                }
                if args.here && follow.peer_pid().is_none() {
                    last = Seen::Elsewhere(status);
                    continue;
                }
                printer.print(|| status::brief(&status), || json::status(&status))?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(News::Status(status)) => last = Seen::Status(status),
            // It may come yet.
            Some(News::Nobody(error)) => last = Seen::Nobody(error),
            None if Instant::now() >= until => return Err(in_vain(within, last)),
            None => follow.wait(&[], Some(until))?,
        }
    }
}

/// The last that was seen of the service.
enum Seen {
    /// Somebody listens, and did not answer.
    Nothing,
    Nobody(Error),
    Status(Status),
    /// It is so, and the owner lives in another pid namespace.
    Elsewhere(Status),
}

fn is_so(args: &WaitArgs, status: &Status) -> bool {
    match args.generation {
        Some(generation) => owns(status) && status.generation >= generation,
        None if args.drained => owns(status) && status::drainers(status).is_empty() && status.probation.is_none(),
        None => is_ready(status),
    }
}

fn in_vain(within: Duration, last: Seen) -> Failure {
    let waited = format!("waited {} in vain", time::duration(within));
    match last {
        Seen::Nobody(error) => Failure::from(error).before(&waited),
        Seen::Nothing => Failure::new(FAILED, "deadline", format!("{waited}: the owner does not answer")),
        Seen::Elsewhere(last) => {
            let brief = status::brief(&last);
            Failure::new(FAILED, "elsewhere", format!("{waited}: the owner is in another pid namespace: {brief}"))
        }
        Seen::Status(last) => Failure::new(FAILED, "deadline", format!("{waited}: {}", status::brief(&last))),
    }
}
