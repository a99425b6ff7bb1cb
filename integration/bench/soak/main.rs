//! A service that is replaced a thousand times in a row under load, and must not fail, leak or slow down by it.
//!
//! ```text
//! cargo bench --bench soak -- --takeovers 1000
//! ```
//!
//! Each generation is a process of its own ([`server`]). Three things are done again and again ([`phase`]):
//!
//! - **takeovers**: a new process takes over, and the old one leaves;
//! - **withdrawals**: one and the same owner is looked at, rehearsed with, and its successors give up or die;
//! - **resumes**: the successors of one and the same owner die once they own, and it owns again.
//!
//! After each round everything is looked at that could pile up, and at the end each figure is told with its slope
//! ([`trend`]). The exit code is 1 where a request failed, where descriptors, files or children were not the same after
//! each round, or where memory or heap grew; times are told and never judged.

#![allow(clippy::print_stderr, missing_docs, reason = "a program")]

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, value_parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::phase::{KEEP_ALIVE, Kind, NEW_CONNECTION, Phase, Service};
use crate::report::Report;
use crate::server::Role;
use crate::stage::Stage;

#[path = "../../../examples/support/args.rs"]
mod args;
mod clients;
#[path = "../../../examples/support/clock.rs"]
mod clock;
#[path = "../../../examples/support/failure.rs"]
mod failure;
mod figures;
mod holdings;
mod ledger;
#[path = "../../../examples/support/load.rs"]
mod load;
mod phase;
mod report;
mod server;
mod stage;
mod trend;

/// Replaces a service again and again under load: nothing may fail, and nothing may grow
#[derive(Debug, Parser)]
#[command(name = "soak", args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Takeovers in a row
    #[arg(long, value_name = "N", default_value_t = 1000)]
    takeovers: u32,

    /// Rounds of successors that give up or die before they own; as many as takeovers unless told otherwise
    #[arg(long, value_name = "N")]
    withdrawals: Option<u32>,

    /// Successors that die once they own; as many as takeovers unless told otherwise
    #[arg(long, value_name = "N")]
    resumes: Option<u32>,

    /// Requests a second
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = value_parser!(u32).range(FEWEST..=10_000))]
    rate: u32,

    /// Time for all of it
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = args::duration)]
    within: Duration,

    /// Print one JSON object instead of tables; times are in milliseconds
    #[arg(long)]
    json: bool,

    /// Given by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Every generation tells how much it has on its heap: a leak of a few bytes a round is no page for long.
#[global_allocator]
static HEAP: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

#[derive(Debug, Subcommand)]
enum Command {
    /// What this program starts: one generation of the service.
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        role: Role,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut runtime = match cli.command {
        // As small as a server can be: it is started a few thousand times.
        Some(Command::Serve { .. }) => tokio::runtime::Builder::new_current_thread(),
        None => tokio::runtime::Builder::new_multi_thread(),
    };
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> ExitCode {
    if let Some(Command::Serve { role }) = cli.command {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
        return failure::exit_code("soak", server::live(&role).await);
    }
    let mut stage = match Stage::new() {
        Ok(stage) => stage,
        Err(error) => {
            eprintln!("soak: cannot make a folder in the temp folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let began = Instant::now();
    let mut phases = Vec::new();
    let ended = tokio::select! {
        ended = timeout(cli.within, soak(&cli, &mut stage, &mut phases)) => match ended {
            Ok(ended) => ended,
            Err(_) => Err(format!("not done within {:?}", cli.within).into()),
        },
        interrupted = interrupted() => interrupted,
    };
    // The logs are worth reading as they are at this moment, and no process is missed after it.
    let logs = ended.is_err().then(|| stage.logs());
    for phase in &mut phases {
        phase.end().await;
    }
    stage.clear().await;
    let errors = ended.err().map(|error| error.to_string()).into_iter().collect();
    let report = Report { phases, errors, time: began.elapsed() };

    if let Some(logs) = logs {
        eprint!("{logs}");
    }
    // Whoever has stopped reading gets the exit code all the same.
    let _ = if cli.json { writeln!(io::stdout(), "{:#}", report.json()) } else { write!(io::stdout(), "{report}") };
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn soak(cli: &Cli, stage: &mut Stage, phases: &mut Vec<Phase>) -> Result<(), Failure> {
    let mut service = Service::start(stage).await?;
    for (kind, rounds) in [
        (Kind::Takeovers, cli.takeovers),
        (Kind::Withdrawals, cli.withdrawals.unwrap_or(cli.takeovers)),
        (Kind::Resumes, cli.resumes.unwrap_or(cli.takeovers)),
    ] {
        if rounds > 0 {
            phases.push(Phase::begin(kind, stage, &service, cli.rate)?);
            if let Some(phase) = phases.last_mut() {
                phase.run(rounds, stage, &mut service).await?;
                phase.end().await;
            }
        }
    }
    service.stop(stage).await
}

/// Ends with an error when SIGTERM or Ctrl-C asks for the end.
async fn interrupted() -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Err("interrupted".into())
}

const EXIT_CODES: &str = "Exit codes: 0 nothing failed and nothing grew; 1 otherwise; 2 usage.";

/// Each client comes by once a second at least: an idle connection would be cut off by the end of a drain otherwise.
const FEWEST: i64 = (KEEP_ALIVE + NEW_CONNECTION) as i64;
