//! One row of the table that `integration/bench/peers/run` prints: a service is replaced again and again by whatever
//! command replaces it, under the load of the same clients that this crate's own benchmark has.
//!
//! Stretches with a takeover every so often and stretches without come in turn. The service answers with JSON in which
//! `version` tells its process from the others.

#![allow(clippy::print_stderr, clippy::print_stdout, missing_docs, reason = "a program")]

use std::net::SocketAddr;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::failure::Failure;
use crate::figure::{Paired, Spread};
use crate::load::{ANSWER_WITHIN, Load, Plan, Tally};

#[path = "../../../examples/support/args.rs"]
#[allow(dead_code, reason = "the servers are told more")]
mod args;
#[path = "../../../examples/support/clock.rs"]
mod clock;
#[allow(dead_code, reason = "this program tells of its errors itself")]
#[path = "../../../examples/support/failure.rs"]
mod failure;
#[allow(dead_code, reason = "the benchmark of this crate tells more")]
#[path = "../speed/figure.rs"]
mod figure;
#[allow(dead_code, reason = "the deploy tool asks for more of it")]
#[path = "../../../examples/support/load.rs"]
mod load;

/// Loads a service, replaces it meanwhile, and prints a row of a table
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Cli {
    /// What the row is called
    #[arg(long, required_unless_present = "head")]
    name: Option<String>,

    /// Where it serves
    #[arg(long, required_unless_present = "head")]
    address: Option<SocketAddr>,

    /// Shell command that replaces it; the time counts from its start
    #[arg(long, required_unless_present = "head")]
    trigger: Option<String>,

    /// What the application does on shutdown, for the row
    #[arg(long, default_value = "")]
    shutdown: String,

    /// Requests a second
    #[arg(long, default_value_t = 2000)]
    rate: u32,

    /// Pairs of a stretch with takeovers and one without
    #[arg(long, default_value_t = 3)]
    pairs: u32,

    /// How long each stretch is
    #[arg(long, default_value = "10s", value_parser = args::duration)]
    stretch: Duration,

    /// From one takeover to the next
    #[arg(long, default_value = "2s", value_parser = args::duration)]
    every: Duration,

    /// Print the head of the table and nothing else
    #[arg(long)]
    head: bool,

    /// Given by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const HEAD: &str = "\
| | first answer after the trigger, ms | failed on new connections | on kept-alive ones | p99.9, ms | its own without, ms | times | on shutdown its application |
|---|---|---|---|---|---|---|---|";

/// Clients of each kind.
const CLIENTS: u32 = 16;
/// How long a new version may take to its first answer.
const NEW_VERSION_WITHIN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.head {
        println!("{HEAD}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let row = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(row(&cli)));
    match row {
        Ok(row) => {
            println!("{row}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn row(cli: &Cli) -> Result<String, Failure> {
    let (Some(name), Some(address), Some(trigger)) = (&cli.name, cli.address, &cli.trigger) else {
        return Err("name, address and trigger are missing".into());
    };
    let plan =
        Plan { address, rate: cli.rate, keep_alive: CLIENTS, new_connection: CLIENTS, answer_within: ANSWER_WITHIN };
    let (mut tail, mut firsts, mut failed) = (Paired::default(), Vec::new(), Failed::default());
    for _ in 0..cli.pairs {
        let load = Load::start(plan)?;
        sleep(cli.stretch).await;
        let calm = load.finish().await;

        let load = Load::start(plan)?;
        load.takeover_begins();
        let began = Instant::now();
        let mut due = began + cli.every / 2;
        while due < began + cli.stretch {
            sleep_until(due).await;
            due += cli.every;
            let known = load.versions();
            let triggered = clock::now();
            let mut replacing = shell(trigger)?;
            let first = timeout(NEW_VERSION_WITHIN, load.another_answers(known)).await;
            let first = first.map_err(|_| format!("no new version answered within {NEW_VERSION_WITHIN:?}"))?;
            firsts.push(first.saturating_sub(triggered).as_secs_f64() * 1e3);
            let status = replacing.wait().await?;
            if !status.success() {
                return Err(format!("the trigger ended with {status}").into());
            }
        }
        sleep_until(began + cli.stretch).await;
        let busy = load.finish().await;
        tail.enter(p999(&busy)?, p999(&calm)?);
        failed.add(&calm);
        failed.add(&busy);
        for failure in calm.failures.iter().map(|failure| format!("without takeovers: {failure}")).chain(busy.failures)
        {
            eprintln!("peers: {name}: {failure}");
        }
    }
    let cell = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), |spread| spread.to_string());
    Ok(format!(
        "| {name} | {} | {} of {} | {} of {} | {} | {} | {} | {} |",
        cell(Spread::of(&firsts)),
        failed.new_connections,
        failed.asked_anew,
        failed.kept_alive,
        failed.asked_again,
        cell(tail.ours()),
        cell(tail.floor()),
        cell(tail.ratio()),
        cli.shutdown,
    ))
}

fn shell(command: &str) -> std::io::Result<tokio::process::Child> {
    Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// The failures of all stretches.
#[derive(Debug, Default)]
struct Failed {
    new_connections: u64,
    asked_anew: u64,
    kept_alive: u64,
    asked_again: u64,
}

impl Failed {
    fn add(&mut self, tally: &Tally) {
        let anew = tally.failed - tally.failed_keep_alive;
        self.new_connections += anew;
        self.kept_alive += tally.failed_keep_alive;
        self.asked_anew += anew + tally.new_connections.len();
        self.asked_again += tally.failed_keep_alive + tally.kept_alive.len();
    }
}

/// In milliseconds.
fn p999(tally: &Tally) -> Result<f64, Failure> {
    let mut all: Histogram<u64> = tally.new_connections.clone();
    all.add(&tally.kept_alive)?;
    Ok(all.value_at_percentile(99.9) as f64 / 1e3)
}
