//! Plays the deploy tool: replaces an HTTP server again and again while clients load it, and counts what they notice.
//!
//! ```text
//! cargo run --release --example blue_green
//! ```
//!
//! Version 1 starts as a process of its own, and clients load it at a fixed rate, half of them with a connection that
//! they keep, half with a new one for each request. After a calm stretch to compare with, version 2 starts beside it and
//! takes over, then version 3, and so on. At the end stand the steps of each takeover, the latencies in takeovers and
//! without, and how many requests failed. It should be none; the exit code is 1 otherwise.
//!
//! It needs nothing but cargo: it takes a free port, and a folder in the temp folder that it removes.
//!
//! A deploy tool of your own needs far less: start the new version, and wait until it serves. What is here beyond that
//! is the load, and the proof.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::timeout;

use crate::args::ServerArgs;
use crate::failure::Failure;
use crate::fleet::Fleet;
use crate::load::{ANSWER_WITHIN, Load, Plan};
use crate::report::{Report, Takeover};

#[path = "support/args.rs"]
mod args;
#[path = "support/async_signals.rs"]
mod async_signals;
#[path = "support/clock.rs"]
mod clock;
#[path = "support/failure.rs"]
mod failure;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/lifeline.rs"]
mod lifeline;
#[path = "support/load.rs"]
mod load;
#[path = "support/report.rs"]
mod report;
#[path = "support/service.rs"]
mod service;
#[path = "support/shortage.rs"]
mod shortage;

/// Replaces an HTTP server again and again under load, and counts what its clients notice
#[derive(Debug, Parser)]
#[command(name = "blue_green", args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,

    /// How often the server is replaced
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1000))]
    takeovers: u32,

    /// Requests a second, of all clients together
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// Clients that keep their connection for as long as the server lets them
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(0..=1000))]
    keep_alive: u32,

    /// Clients that open a new connection for each request
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(0..=1000))]
    new_connection: u32,

    /// Time between the end of one takeover and the start of the next
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = args::duration)]
    pause: Duration,

    /// Print one JSON object instead of tables; times are in milliseconds
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// What this program starts: cargo builds no other example beside it, so it brings the server with it.
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        server: ServerArgs,
    },

    /// Only load a service that something else replaces, until SIGTERM or Ctrl-C, and count what its clients notice
    Load {
        /// Where it serves
        #[arg(long, value_name = "ADDR")]
        address: SocketAddr,

        /// Requests a second, of all clients together
        #[arg(long, value_name = "N", default_value_t = 400, value_parser = value_parser!(u32).range(1..=100_000))]
        rate: u32,

        /// Clients that keep their connection for as long as the server lets them
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(0..=1000))]
        keep_alive: u32,

        /// Clients that open a new connection for each request
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(0..=1000))]
        new_connection: u32,

        /// A request without an answer for that long counts as failed
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::duration)]
        answer_within: Duration,

        /// Print one JSON object; times are in milliseconds
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut cli = Cli::parse();
    match cli.role.take() {
        Some(Role::Serve { server }) => serve(server).await,
        Some(Role::Load { address, rate, keep_alive, new_connection, answer_within, json }) => {
            check_clients(rate, keep_alive + new_connection);
            load_only(Plan { address, rate, keep_alive, new_connection, answer_within }, json).await
        }
        None => {
            check_clients(cli.rate, cli.keep_alive + cli.new_connection);
            deploy(cli).await
        }
    }
}

/// A client that comes by less often would find its idle connection cut off by the drain deadline.
fn check_clients(rate: u32, clients: u32) {
    if !(1..=rate).contains(&clients) {
        let message = "from one client to as many as there are requests a second";
        Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
    }
}

/// The deploy tool: runs it all, tells how it went, and leaves nothing behind.
async fn deploy(cli: Cli) -> ExitCode {
    let json = cli.json;
    let fleet = match Fleet::new() {
        Ok(fleet) => fleet,
        Err(error) => {
            eprintln!("blue_green: cannot make a folder in the temp folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut deployment = Deployment::new(cli, fleet);
    let outcome = tokio::select! {
        outcome = deployment.run() => Some(outcome),
        () = async_signals::signalled() => None,
    };
    print(&deployment.end(outcome).await, json)
}

fn print(report: &Report, json: bool) -> ExitCode {
    // Whoever has stopped reading gets the exit code all the same.
    let _ = if json { writeln!(io::stdout(), "{:#}", report.json()) } else { write!(io::stdout(), "{report}") };
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The clients alone.
async fn load_only(plan: Plan, json: bool) -> ExitCode {
    let load = match Load::start(plan) {
        Ok(load) => load,
        Err(error) => {
            eprintln!("blue_green: cannot start the clients: {error}");
            return ExitCode::FAILURE;
        }
    };
    async_signals::signalled().await;
    let tally = load.finish().await;
    print(&Report { takeovers: Vec::new(), tally: Some(tally), errors: Vec::new() }, json)
}

/// A run, and what it needs to be ended whole at any point.
#[derive(Debug)]
struct Deployment {
    cli: Cli,
    fleet: Fleet,
    load: Option<Load>,
    takeovers: Vec<Takeover>,
    bar: ProgressBar,
}

impl Deployment {
    fn new(cli: Cli, fleet: Fleet) -> Deployment {
        let bar = ProgressBar::new(u64::from(cli.takeovers));
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} takeovers  {msg}") {
            bar.set_style(style);
        }
        Deployment { cli, fleet, load: None, takeovers: Vec::new(), bar }
    }

    async fn run(&mut self) -> Result<(), Failure> {
        launch(&mut self.fleet, 1)?;
        let started = self.fleet.newest_tells("started").await?;
        let address = started.address.ok_or("version 1 did not tell its address")?;
        self.fleet.newest_tells("owning").await?;

        let Cli { rate, keep_alive, new_connection, takeovers, pause, .. } = self.cli;
        let load = self.load.insert(Load::start(Plan {
            address,
            rate,
            keep_alive,
            new_connection,
            answer_within: ANSWER_WITHIN,
        })?);
        self.bar.set_message("a calm stretch first");
        tokio::time::sleep(CALM_FIRST).await;

        for version in 2..=takeovers + 1 {
            self.bar.set_message(format!("version {version} starts"));
            self.takeovers.push(take_over(&mut self.fleet, load, version, address).await?);
            self.bar.inc(1);
            self.bar.set_message(format!("version {version} serves"));
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Ends the clients, then the last version, and sums up. There is no outcome where it was interrupted.
    async fn end(mut self, outcome: Option<Result<(), Failure>>) -> Report {
        self.bar.finish_and_clear();
        let interrupted = outcome.is_none();
        let mut errors = match outcome {
            Some(Ok(())) => Vec::new(),
            Some(Err(error)) => vec![error.to_string()],
            None => vec!["interrupted".to_owned()],
        };
        let tally = match self.load {
            Some(load) => Some(load.finish().await),
            None => None,
        };
        errors.extend(self.fleet.end().await);

        let report = Report { takeovers: self.takeovers, tally, errors };
        if !report.is_clean() && !interrupted {
            eprint!("{}", self.fleet.logs(self.cli.takeovers + 1));
        }
        report
    }
}

/// One takeover, from the start of the new process to the end of the old one.
async fn take_over(fleet: &mut Fleet, load: &Load, version: u32, address: SocketAddr) -> Result<Takeover, Failure> {
    load.takeover_begins();
    let spawned = clock::now();
    launch(fleet, version)?;
    let received = fleet.newest_tells("started").await?;
    if received.address != Some(address) {
        return Err(format!("version {version} did not receive the listener at {address}").into());
    }
    let owner = fleet.newest_tells("owning").await?;
    let Ok(first_answer) = timeout(FIRST_ANSWER_WITHIN, load.first_answer(&version.to_string())).await else {
        return Err(format!("version {version} answered nobody within {FIRST_ANSWER_WITHIN:?}").into());
    };
    let old_gone = fleet.oldest_leaves().await?;
    load.has_left(&(version - 1).to_string());
    Ok(Takeover {
        from: version - 1,
        to: version,
        received: received.at() - spawned,
        owner: owner.at() - spawned,
        first_answer: first_answer - spawned,
        old_gone: old_gone - spawned,
        slowest: Duration::from_micros(load.takeover_ends().max()),
    })
}

/// Starts this program as a version of the server.
fn launch(fleet: &mut Fleet, version: u32) -> Result<(), Failure> {
    let version = version.to_string();
    let control = fleet.control();
    let control = control.to_str().ok_or("the path of the temp folder is not UTF-8")?;
    // Only version 1 binds, whichever port is free; the others get that very listener by its name.
    let service = ["serve", "--control", control, "--listen", "127.0.0.1:0", "--app-version", &version];
    let pace = ["--warm-up", WARM_UP, "--drain", DRAIN];
    fleet.launch(&version, service.into_iter().chain(pace))?;
    Ok(())
}

/// The server: one version, in a process of its own, which tells its steps as lines of JSON.
async fn serve(server: ServerArgs) -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let stop = async {
        tokio::select! {
            () = async_signals::signalled() => {}
            () = lifeline::orphaned() => {}
        }
    };
    failure::exit_code("blue_green", service::serve(&server, server.handoff(), stop, tell).await)
}

/// Tells the deploy tool of a step, with the time at which it happened.
fn tell(step: service::Step) {
    log::info!("{step}");
    let mut line = json!(step);
    line["at_us"] = json!(u64::try_from(clock::now().as_micros()).unwrap_or(u64::MAX));
    // Nobody reads it where the deploy tool is gone: the end of its lifeline is what this process acts on.
    let _ = writeln!(io::stdout(), "{line}");
}

const EXIT_CODES: &str = "Exit codes: 0 no request failed and every version left well; 1 otherwise; 2 usage.";

/// The stretch without takeovers at the start.
const CALM_FIRST: Duration = Duration::from_secs(2);

/// How long a client may wait for the first answer of a version that owns the service.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Long enough to see in the steps that the old version serves meanwhile.
const WARM_UP: &str = "100ms";

/// Longer than any client leaves its connection idle: each sends once a second at least.
const DRAIN: &str = "5s";
