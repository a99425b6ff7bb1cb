//! An HTTP server that is replaced while it runs, on hyper and tokio.
//!
//! Start a version, and look at what answers:
//!
//! ```text
//! mkdir -m 700 /tmp/shop
//! cargo run --example http -- --control /tmp/shop/handoff.sock --listen 127.0.0.1:8080 --app-version 1
//! curl http://127.0.0.1:8080/
//! ```
//!
//! Then, in a second shell, start the next one beside it. It takes over; the first one finishes what it has in flight
//! and exits:
//!
//! ```text
//! cargo run --example http -- --control /tmp/shop/handoff.sock --listen 127.0.0.1:8080 --app-version 2
//! ```
//!
//! Try it with `curl "http://127.0.0.1:8080/slow?ms=5000"` under way, with `--warm-up 10s` and a Ctrl-C in it, and the
//! other way round: version 1 may follow version 2. `RUST_LOG=info` shows what heirloom does meanwhile.
//!
//! `support/service.rs` is the server; `blue_green` puts it under load.

use std::cell::Cell;
use std::process::ExitCode;

use clap::Parser;
use tokio::sync::watch;

#[path = "support/args.rs"]
mod args;
#[path = "support/async_signals.rs"]
mod async_signals;
#[path = "support/console.rs"]
mod console;
#[path = "support/failure.rs"]
mod failure;
#[path = "support/service.rs"]
mod service;
#[path = "support/shortage.rs"]
mod shortage;

/// An HTTP server that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "http")]
struct Cli {
    #[command(flatten)]
    server: args::ServerArgs,

    /// Once another version serves, do nothing until SIGTERM or Ctrl-C: for Kubernetes, which starts again whatever ends
    #[arg(long)]
    linger: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    env_logger::init();
    let Cli { server, linger } = Cli::parse();
    let told_to_leave = watch::Sender::new(false);
    let (mut stop, mut leave) = (told_to_leave.subscribe(), told_to_leave.subscribe());
    tokio::spawn(async move {
        async_signals::signalled().await;
        told_to_leave.send_replace(true);
    });
    let replaced = Cell::new(false);
    let tell = |step| {
        if let service::Step::Leaving { successor } = step {
            replaced.set(successor);
        }
        console::say(&server.app_version, step);
    };
    let stopped = async move {
        let _ = stop.wait_for(|told| *told).await;
    };
    let end = service::serve(&server, server.handoff().process_stays(linger), stopped, tell).await;
    if linger && end.is_ok() && replaced.get() {
        // Nothing of the service is held any more: started again, this version would take it back.
        let _ = leave.wait_for(|told| *told).await;
    }
    failure::exit_code("http", end)
}
