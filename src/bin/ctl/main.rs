//! `ctl`: sees and steers a service that hands its listeners over, through its control socket.
//!
//! `args` is the one table behind parsing, `--help`, completions and the man page. Each command is a file of its own;
//! what they share: `follow` (a service, whoever owns it), `table`, `json` and `time` (how things look), `printer` (where
//! they go), `failure` (how a run ends), `signals`, `session`, `listening` and `init` (child processes).

mod args;
mod check;
mod completions;
mod drain;
mod failure;
mod follow;
mod handoff;
mod history;
mod hold;
mod init;
mod json;
mod keep;
mod keeper;
mod listening;
mod man;
mod output;
mod printer;
mod probation;
mod program;
mod reentry;
mod rescue;
mod session;
mod signals;
mod status;
mod steps;
mod stop;
mod table;
mod time;
mod upgrade;
mod verdict;
mod wait;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use log::LevelFilter;

use crate::args::{Cli, Command};
use crate::failure::{Failure, USAGE};
use crate::printer::Printer;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(failure) = reentry::enter(&arguments) {
        return failure.tell(Printer::new(false));
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misused(&arguments, &error),
    };
    let printer = Printer::new(cli.global.json);
    if init::is_first() {
        return init::run(&arguments, &cli.command).unwrap_or_else(|failure| failure.tell(printer));
    }
    log_to_stderr(&cli);
    match run(cli, printer) {
        Ok(code) => code,
        Err(failure) => failure.tell(printer),
    }
}

fn run(cli: Cli, printer: Printer) -> Result<ExitCode, Failure> {
    let global = cli.global;
    match cli.command {
        Command::Check(args) => check::run(&global, &args, printer),
        Command::Drain(args) => drain::run(&global, &args.command, printer),
        Command::Handoff(args) if args.commit => keeper::run(&global, args, printer),
        Command::Handoff(args) => handoff::run(&global, &args, printer),
        Command::History(args) => history::run(&global, &args, printer),
        Command::Hold(args) => hold::run(&global, &args, printer),
        Command::Rescue(args) => rescue::run(&global, args, printer),
        Command::Keep(args) => keep::run(&global, &args, printer),
        Command::Status(args) => status::run(&global, &args, printer),
        Command::Upgrade(args) => upgrade::run(&global, &args, printer),
        Command::Wait(args) => wait::run(&global, &args, printer),
        Command::Confirm => probation::confirm(&global, printer),
        Command::Rollback(args) => probation::rollback(&global, &args, printer),
        Command::Stop => stop::run(&global, printer),
        Command::Completions { shell } => completions::run(shell, printer),
        Command::Man => man::run(printer),
    }
}

/// `--help` and `--version` come here too: clap counts them as errors that go to stdout and end well.
fn misused(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let mut ours = arguments.iter().take_while(|argument| *argument != "--");
    if !help && ours.any(|argument| argument == "--json") {
        let text = error.render().to_string();
        // What is missing stands below the first line, each in one of its own.
        let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let message = lines.join(" ");
        return Failure::usage(message.trim_start_matches("error: ")).tell(Printer::new(true));
    }
    // Where it cannot be written there is nobody to tell.
    let _ = error.print();
    let _ = std::io::stdout().flush();
    if help { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
}

/// The library's own words go to stderr: warnings, or more with `-v`; none of them unasked beside `--json`.
fn log_to_stderr(cli: &Cli) {
    let level = match (cli.global.verbose, cli.global.json) {
        (0, true) => LevelFilter::Off,
        (0, false) => LevelFilter::Warn,
        (1, _) => LevelFilter::Info,
        (2, _) => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .format(|line, record| writeln!(line, "ctl: {}: {}", record.level().as_str().to_lowercase(), record.args()))
        .init();
}
