//! `ctl rescue`: takes the service away from an owner that is stopped or wedged.

use std::process::ExitCode;
use std::time::Duration;

use heirloom::rescue::{Victim, Wreck};
use heirloom::{Entry, Error, Handoff};
use nix::errno::Errno;
use serde_json::json;

use crate::args::{Global, RescueArgs};
use crate::failure::{FAILED, Failure};
use crate::follow;
use crate::handoff::NAME;
use crate::json;
use crate::keeper;
use crate::listening;
use crate::printer::Printer;
use crate::program;
use crate::signals::Signals;
use crate::status::who;
use crate::table::table;

/// How long an owner may take to answer before it counts as wedged, where nothing else is said: as long as a peer waits
/// for a message of a handshake.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where Yama says who may trace whom.
const YAMA: &str = "/proc/sys/kernel/yama/ptrace_scope";

pub(crate) fn run(global: &Global, args: RescueArgs, printer: Printer) -> Result<ExitCode, Failure> {
    let socket = global.socket()?;
    if let Some(program) = args.command.first() {
        program::check(program)?;
    }
    let silent = match follow::ask(socket, global.timeout_or(TIMEOUT)) {
        Ok(owner) => {
            let who = who(owner.pid, &owner.app_version);
            return Err(Failure::new(FAILED, "healthy", format!("{who} answers: it needs no rescue"))
                .hint("replace it with ctl upgrade, or end it with ctl stop"));
        }
        Err(Error::Nobody { .. }) => false,
        Err(Error::Deadline { .. } | Error::HungUp) => true,
        Err(error) => return Err(error.into()),
    };
    let wreck = Wreck::find(socket).map_err(|error| match error {
        Error::Nobody { .. } if silent => {
            let message = "somebody has the service, and this user may not look at that process";
            Failure::new(FAILED, "denied", message).hint(tracing())
        }
        error => explained(error),
    })?;
    let entries: Vec<Entry> = wreck.entries().cloned().collect();
    if !args.command.is_empty() {
        // Before it is too late.
        entries.iter().try_for_each(|entry| listening::check_name(&entry.name))?;
    }
    let quiet = args.yes && !args.command.is_empty() && !printer.is_json();
    if quiet {
        printer.say(&headline(&wreck));
    } else {
        printer.print(|| text(&wreck, &entries), || object(&wreck, &entries))?;
    }
    if !args.yes {
        printer.say("nothing was changed: --yes does it");
        return Ok(ExitCode::SUCCESS);
    }
    let signals = Signals::take()?;
    let handoff = Handoff::at(socket).app_version(NAME).holding(args.command.is_empty()).drain_within(args.drain);
    let starting = handoff.rescue(wreck).map_err(explained)?;
    keeper::keep(starting, args.command, &entries, None, signals, printer)
}

/// What the kernel's refusal means here.
fn explained(error: Error) -> Failure {
    let errno = match &error {
        Error::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
        _ => None,
    };
    match errno {
        Some(Errno::EPERM | Errno::EACCES) => Failure::from(error).hint(tracing()),
        Some(Errno::ENOSYS) => Failure::from(error).hint("this takes Linux 5.6; end the process, and start anew"),
        _ if matches!(error, Error::Nobody { .. }) => Failure::nobody(
            error,
            "no process that this user can see has anything of it: start the service, or run as root",
        ),
        _ => error.into(),
    }
}

/// The right that the kernel asks for.
fn tracing() -> String {
    let yama = std::fs::read_to_string(YAMA).ok().filter(|scope| scope.trim() != "0");
    let yama = yama.map(|scope| format!(" (kernel.yama.ptrace_scope is {})", scope.trim())).unwrap_or_default();
    format!("run as root or with CAP_SYS_PTRACE: it takes the right to trace it{yama}")
}

fn headline(wreck: &Wreck) -> String {
    let source = wreck.source();
    let ends: Vec<String> = wreck.victims().map(|victim| format!("pid {}", victim.pid)).collect();
    let ends =
        if ends.is_empty() { "nobody owns, nobody is ended".to_owned() } else { format!("ends {}", ends.join(", ")) };
    format!("{} does not answer, {}; {ends}", who(source.pid, wreck.app_version()), state(source.state))
}

/// A state of a process, in words.
fn state(letter: char) -> String {
    let words = match letter {
        'T' => "stopped",
        't' => "stopped by a tracer",
        'D' => "in a system call that cannot be interrupted",
        'R' => "running",
        'S' => "asleep",
        'Z' | 'X' => "dead",
        _ => "in an unknown state",
    };
    format!("{words} ({letter})")
}

fn text(wreck: &Wreck, entries: &[Entry]) -> String {
    let rows = entries.iter().map(|entry| [entry.name.clone(), entry.kind.to_string(), entry.address.clone()]);
    let table = table(["NAME", "KIND", "ADDRESS"], rows);
    let also = "also taken: the lease and the control listener";
    format!("{}\n{also}\n\n{}", headline(wreck), if table.is_empty() { "no entries\n" } else { &table })
}

fn object(wreck: &Wreck, entries: &[Entry]) -> serde_json::Value {
    let victim = |victim: &Victim| json!({"pid": victim.pid, "state": victim.state.to_string()});
    let mut source = victim(wreck.source());
    source["app_version"] = wreck.app_version().into();
    json!({
        "source": source,
        "ends": wreck.victims().map(|ended| victim(&ended)).collect::<Vec<_>>(),
        "entries": entries.iter().map(json::entry).collect::<Vec<_>>(),
    })
}
