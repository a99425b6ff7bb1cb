//! How fast a takeover is, and what it costs: against the bare system calls, and against no takeover at all.
//!
//! ```text
//! cargo bench --bench speed
//! ```
//!
//! Every comparison is made round by round in turn in the same run, and told as a ratio with its quartiles, since no
//! two runs meet the same machine. Nothing is judged by its time: the exit code is 1 only where something failed. It
//! also writes into the folder of `--out`: `speed.json`, the tables as they stand in the README (`speed.md`), and the
//! picture (`latency.svg`).

#![allow(clippy::print_stderr, clippy::print_stdout, missing_docs, reason = "a program")]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use crate::failure::Failure;
use crate::kind::Kind;
use crate::report::Report;

mod answers;
#[path = "../../../examples/support/args.rs"]
mod args;
#[path = "../../../examples/support/async_signals.rs"]
mod async_signals;
mod bare;
mod client;
#[path = "../../../examples/support/clock.rs"]
mod clock;
#[path = "../../../examples/support/failure.rs"]
mod failure;
mod figure;
#[allow(dead_code, reason = "the deploy tool tells more of its versions")]
#[path = "../../../examples/support/fleet.rs"]
mod fleet;
mod generation;
mod goals;
mod idle;
mod kind;
mod latency;
#[path = "../../../examples/support/lifeline.rs"]
mod lifeline;
#[allow(dead_code, reason = "the deploy tool asks for more of it")]
#[path = "../../../examples/support/load.rs"]
mod load;
mod machine;
mod picture;
mod process;
mod questions;
mod report;
mod resumes;
#[path = "../../../examples/support/service.rs"]
mod service;
#[path = "../../../examples/support/shortage.rs"]
mod shortage;
mod states;
mod stream;
mod table;
mod takeovers;

/// Measures takeovers against the bare system calls, and against no takeover
#[derive(Debug, Parser)]
#[command(name = "speed", args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,

    /// A few rounds of each, to see that it runs
    #[arg(long)]
    quick: bool,

    /// Only these parts
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,

    /// Folder for speed.json, speed.md and latency.svg
    #[arg(long, value_name = "FOLDER", default_value = "target/speed")]
    out: PathBuf,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,

    /// Print the tables as Markdown
    #[arg(long, conflicts_with = "json")]
    markdown: bool,

    /// Given by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Takeovers,
    Streams,
    Questions,
    States,
    Answers,
    Resumes,
    Idle,
    Latency,
}

/// What this program starts itself as.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Bare(bare::Role),
    #[command(hide = true)]
    BareStream(bare::StreamRole),
    #[command(hide = true)]
    Many(stream::Role),
    #[command(hide = true)]
    Generation(generation::Role),
    #[command(hide = true)]
    Idle(idle::Role),
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        server: args::ServerArgs,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.role {
        Some(Role::Bare(role)) => failure::exit_code("speed", raise_limit().and_then(|_| bare::live(&role))),
        Some(Role::BareStream(role)) => {
            failure::exit_code("speed", raise_limit().and_then(|limit| bare::stream(&role, limit)))
        }
        Some(Role::Many(role)) => failure::exit_code("speed", raise_limit().and_then(|_| stream::live(&role))),
        Some(Role::Generation(role)) => {
            failure::exit_code("speed", raise_limit().and_then(|_| generation::live(&role)))
        }
        Some(Role::Idle(role)) => failure::exit_code("speed", idle::live(&role)),
        Some(Role::Serve { server }) => failure::exit_code("speed", serve(&server)),
        None => run(&cli),
    }
}

fn run(cli: &Cli) -> ExitCode {
    let mut report = Report::default();
    let began = Instant::now();
    if let Err(error) = measure(cli, &mut report) {
        report.errors.push(error.to_string());
    }
    report.took = began.elapsed();
    if let Err(error) = report.write(&cli.out) {
        report.errors.push(format!("{}: {error}", cli.out.display()));
    }
    // Whoever has stopped reading gets the exit code all the same.
    let _ = match cli {
        Cli { json: true, .. } => writeln!(io::stdout(), "{:#}", report.json()),
        Cli { markdown: true, .. } => write!(io::stdout(), "{}", report.markdown()),
        _ => write!(io::stdout(), "{report}"),
    };
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(cli: &Cli, report: &mut Report) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("heirloom-speed-").tempdir()?;
    let folder = folder.path();
    report.limit = raise_limit()?;
    let limit = usize::try_from(report.limit)?;
    let wanted = |part| cli.only.is_empty() || cli.only.contains(&part);
    let rounds = |many: usize| if cli.quick { 3 } else { many };
    let say = |what: &str| eprintln!("speed: {what}");
    if wanted(Part::Takeovers) {
        let most = limit.saturating_sub(SPARE).min(MOST);
        let counts: &[usize] = if cli.quick { &[1, 253, 1000] } else { &[1, 16, 253, 1000, 10_000, most] };
        for kind in [Kind::Listener, Kind::Connection, Kind::Memfd] {
            // Not with each kind: the number of descriptors is what counts.
            let few = [1, 1000, 10_000];
            for count in counts.iter().copied().filter(|count| kind == Kind::Listener || few.contains(count)) {
                if count > most {
                    continue;
                }
                say(&format!("takeovers of {}", kind.words(count)));
                let many = if count >= 10_000 { 8 } else { 30 };
                report.takeovers.push(takeovers::measure(folder, kind, count, rounds(many))?);
            }
        }
    }
    if wanted(Part::Streams) {
        let counts: &[usize] = if cli.quick { &[10_000] } else { &[10_000, 100_000, 1_000_000] };
        for count in counts.iter().copied() {
            say(&format!("a stream of {} descriptors", goals::grouped(count)));
            let many = if count > 100_000 { 4 } else { 16 };
            report.streams.push(stream::measure(folder, count, rounds(many), report.limit)?);
        }
    }
    if wanted(Part::Questions) {
        for listeners in [1, 1000] {
            say(&format!("a status and a rehearsal with {listeners} listeners"));
            report.questions.push(questions::measure(folder, listeners, rounds(30))?);
        }
    }
    if wanted(Part::States) {
        let sizes: &[u64] = if cli.quick { &[1 << 10, 1 << 20] } else { &[1 << 10, 1 << 20, 1 << 30] };
        for (bytes, checked) in sizes.iter().flat_map(|bytes| [(*bytes, true), (*bytes, false)]) {
            say(&format!("a state of {bytes} bytes"));
            let many = if bytes > 1 << 25 { 3 } else { 20 };
            report.states.push(states::measure(folder, bytes, checked, rounds(many))?);
        }
    }
    if wanted(Part::Answers) {
        let counts: &[usize] = if cli.quick { &[1] } else { &[1, 10_000] };
        for listeners in counts.iter().copied().filter(|count| count + SPARE <= limit) {
            say(&format!("first answers with {listeners} listeners"));
            let many = if listeners == 1 { 30 } else { 8 };
            report.answers.push(answers::measure(folder, listeners, rounds(many))?);
        }
    }
    if wanted(Part::Resumes) {
        say("kill -9 of owners on probation");
        report.resumes = Some(resumes::measure(folder, rounds(20))?);
    }
    if wanted(Part::Idle) {
        say("an idle service");
        report.idle = Some(idle::measure(folder, rounds(5))?);
    }
    if wanted(Part::Latency) {
        say("latency, with a takeover each second and without");
        let (pairs, seconds) = if cli.quick { (1, 3) } else { (5, 10) };
        let extent = latency::Extent { pairs, stretch: Duration::from_secs(seconds), rate: RATE };
        report.latencies = Some(runtime()?.block_on(latency::measure(extent))?);
    }
    Ok(())
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// One version of the HTTP service.
fn serve(server: &args::ServerArgs) -> Result<(), Failure> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let stop = async {
            tokio::select! {
                () = async_signals::signalled() => {}
                () = lifeline::orphaned() => {}
            }
        };
        service::serve(server, server.handoff(), stop, |step| {
            let mut line = serde_json::json!(step);
            line["at_us"] = serde_json::json!(u64::try_from(clock::now().as_micros()).unwrap_or(u64::MAX));
            let _ = writeln!(io::stdout(), "{line}");
        })
        .await
    })
}

/// Raises the soft limit on open files to the hard one, and tells it.
fn raise_limit() -> Result<u64, Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Descriptors that a process of the bench has beside the entries.
const SPARE: usize = 200;
/// More entries than any service has.
const MOST: usize = 20_000;
/// Requests a second, of all clients together.
const RATE: u32 = 2000;

const EXIT_CODES: &str = "Exit codes: 0 nothing failed; 1 otherwise; 2 usage. Times are told, and never judged.";
