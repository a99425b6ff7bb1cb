//! A server without a runtime: blocking, with a thread for each connection, replaced while it runs.
//!
//! It answers each line with its version, its generation and the line:
//!
//! ```text
//! mkdir -m 700 /tmp/lines
//! cargo run --example blocking -- --control /tmp/lines/handoff.sock --listen 127.0.0.1:7000 --app-version 1
//! nc 127.0.0.1 7000
//! ```
//!
//! Start it again in a third shell, as `--app-version 2`: what `nc` says is still answered by version 1, which stays
//! until that connection ends or its `--drain` is over; a new `nc` talks to version 2. Ctrl-C makes a version leave
//! without a successor, and a second Ctrl-C makes it do so at once.
//!
//! Its protocol has no word for "connect again", so a connection that outlasts the drain is cut off. A protocol of
//! your own should have one: see `support/service.rs`, where it is `Connection: close`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use heirloom::{Drained, Serving};

use crate::args::ServerArgs;
use crate::failure::Failure;

#[path = "support/args.rs"]
mod args;
#[path = "support/console.rs"]
mod console;
#[path = "support/failure.rs"]
mod failure;
#[path = "support/shortage.rs"]
mod shortage;
#[path = "support/signals.rs"]
mod signals;

/// A server of lines that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "blocking")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("blocking", serve(&Cli::parse().server))
}

fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let mut handoff = args.handoff();
    signals::stop_on_signal(handoff.stopper()?)?;

    let mut starting = handoff.start()?;
    let lines = starting.tcp_listener("lines", args.listen)?;
    starting.progress("warming up")?;
    // A real program loads its data here and calls `progress` now and then; this one has nothing to load.
    starting.wait(args.warm_up)?;
    let mut serving = starting.ready()?;

    let service = Arc::new(Service { version: args.app_version.clone(), generation: AtomicU64::new(0) });
    loop {
        service.generation.store(serving.generation(), Ordering::Relaxed);
        service.say(&format!("serving {} as generation {}", lines.local_addr()?, serving.generation()));
        service.accept(&mut serving, &lines)?;
        service.say("finishing what is in flight");

        // The threads answer on meanwhile, and their leases tell when the last of them has ended.
        match serving.drain()? {
            Drained::Done(summary) if summary.forced => {
                service.say(&format!("the drain deadline cut off {} connections", summary.in_flight));
                return Ok(());
            }
            Drained::Done(_) => {
                service.say("done");
                return Ok(());
            }
            // The successor died, so the service is ours again, under a new generation.
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// What all threads share.
#[derive(Debug)]
struct Service {
    version: String,
    generation: AtomicU64,
}

impl Service {
    fn say(&self, what: &str) {
        console::say(&self.version, what);
    }

    /// Accepts until somebody else serves, or until stop was asked.
    fn accept(self: &Arc<Service>, serving: &mut Serving, lines: &Arc<TcpListener>) -> heirloom::Result<()> {
        loop {
            let (stream, from) = match serving.accept(lines) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return Ok(()),
                Err(error) if error.is_shortage() => {
                    log::warn!("{error}");
                    thread::sleep(shortage::PAUSE);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let lease = serving.lease();
            let service = Arc::clone(self);
            let thread = thread::Builder::new().spawn(move || {
                if let Err(error) = service.answer(&stream) {
                    log::debug!("connection from {from}: {error}");
                }
                // Only now: what was answered is with the kernel, which delivers it even when this process has ended.
                drop(lease);
            });
            if let Err(error) = thread {
                log::warn!("connection from {from} dropped, no thread for it: {error}");
            }
        }
    }

    /// Answers line by line until the client is done.
    fn answer(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
            if line.len() as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            let generation = self.generation.load(Ordering::Relaxed);
            let mut response = format!("{} {generation} ", self.version).into_bytes();
            response.append(&mut line);
            stream.write_all(&response)?;
        }
        Ok(())
    }
}

/// The longest line that is read, in bytes with its end: a client must not fill the memory.
const LONGEST_LINE: u64 = 64 * 1024;
