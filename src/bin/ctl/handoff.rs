//! `ctl handoff`: a takeover that stops before it counts, to see whether a successor would get sound descriptors.

use std::process::ExitCode;
use std::time::Duration;

use heirloom::{Check, Entry, Handoff, Rehearsal};
use serde_json::{Value, json};

use crate::args::{Global, HandoffArgs};
use crate::failure::{FAILED, Failure};
use crate::json;
use crate::printer::Printer;
use crate::status::who;
use crate::table::table;

/// How long a start may take where nothing else is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// What ctl calls itself to a predecessor or a successor.
pub(crate) const NAME: &str = concat!("ctl ", env!("CARGO_PKG_VERSION"));

pub(crate) fn run(global: &Global, args: &HandoffArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let handoff = Handoff::at(global.socket()?)
        .app_version(NAME)
        .allow_shared_folder(args.allow_shared_folder)
        .start_within(global.timeout_or(TIMEOUT));
    let rehearsal = handoff.rehearse()?;
    let shown = chosen(&rehearsal, &args.name)?;
    printer.print(|| text(&rehearsal, &shown), || object(&rehearsal, &shown))?;
    if rehearsal.passed() {
        return Ok(ExitCode::SUCCESS);
    }
    if !printer.is_json() {
        printer.say("a successor would not take these descriptors as they are");
    }
    Ok(ExitCode::from(FAILED))
}

type Checked<'a> = (&'a Entry, &'a [Check]);

/// All entries, or those that were asked for, in the order of their names.
fn chosen<'a>(rehearsal: &'a Rehearsal, names: &[String]) -> Result<Vec<Checked<'a>>, Failure> {
    let unknown = names.iter().find(|name| !rehearsal.entries().any(|(entry, _)| entry.name == **name));
    if let Some(name) = unknown {
        let known: Vec<&str> = rehearsal.entries().map(|(entry, _)| entry.name.as_str()).collect();
        return Err(Failure::new(FAILED, "unknown-name", format!("the service has no entry named {name:?}"))
            .hint(format!("it has: {}", known.join(", "))));
    }
    Ok(rehearsal.entries().filter(|(entry, _)| names.is_empty() || names.contains(&entry.name)).collect())
}

fn text(rehearsal: &Rehearsal, shown: &[Checked<'_>]) -> String {
    let mut text = String::new();
    if let Some(predecessor) = rehearsal.predecessor() {
        let who = who(predecessor.pid, &predecessor.app_version);
        text.push_str(&format!("generation {}, {who}\n\n", predecessor.generation));
    }
    let rows = shown
        .iter()
        .map(|(entry, checks)| [entry.name.clone(), entry.kind.to_string(), entry.address.clone(), found(checks)]);
    let table = table(["NAME", "KIND", "ADDRESS", "CHECKS"], rows);
    text.push_str(if table.is_empty() { "no entries\n" } else { &table });
    text
}

/// `all ok`, or what is not.
fn found(checks: &[Check]) -> String {
    let failed: Vec<String> = checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: expected {}, found {}", check.check, check.expected, check.found))
        .collect();
    if failed.is_empty() { "all ok".to_owned() } else { failed.join("; ") }
}

fn object(rehearsal: &Rehearsal, shown: &[Checked<'_>]) -> Value {
    json!({
        "predecessor": rehearsal.predecessor().map(json::predecessor),
        "passed": rehearsal.passed(),
        "entries": shown.iter().map(|(entry, checks)| json::checked(entry, checks)).collect::<Vec<_>>(),
    })
}
