//! A server at a path, for programs on the same machine, that is replaced while it runs.
//!
//! ```text
//! mkdir -m 700 /tmp/local
//! cargo run --example unix -- --control /tmp/local/handoff.sock --listen /tmp/local/app.sock --app-version 1
//! nc -U /tmp/local/app.sock
//! ```
//!
//! It answers each line with its version, its generation, the user that asked, and the line. Start it again in a third
//! shell, as `--app-version 2`: the path leads to the same socket all the time, and only the last version removes it.
//!
//! Its protocol has the word that `blocking.rs` lacks: each answer begins with `stay` or with `again`, and after `again`
//! the connection ends and the client connects anew. So a connection that is idle in a takeover costs nobody anything:
//! it stays open until its next line, and that is answered by version 1.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use heirloom::{Drained, Lease, Serving};
use nix::sys::socket::{getsockopt, sockopt};

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

/// A server at a path that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "unix")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs<PathBuf>,
}

fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("unix", serve(&Cli::parse().server))
}

fn serve(args: &ServerArgs<PathBuf>) -> Result<(), Failure> {
    let mut handoff = args.handoff();
    signals::stop_on_signal(handoff.stopper()?)?;

    let mut starting = handoff.start()?;
    // Any user may connect; the kernel says who it is.
    let local = starting.claim("local").mode(0o666).unix(&args.listen)?;
    starting.wait(args.warm_up)?;
    let mut serving = starting.ready()?;

    let desk = Arc::new(Desk { version: args.app_version.clone(), generation: AtomicU64::new(0) });
    loop {
        desk.generation.store(serving.generation(), Ordering::Relaxed);
        desk.say(&format!("serving {} as generation {}", args.listen.display(), serving.generation()));
        desk.accept(&mut serving, &local)?;
        desk.say("finishing what is in flight");
        match serving.drain()? {
            Drained::Done(summary) if summary.forced => {
                desk.say(&format!("the drain deadline cut off {} connections", summary.in_flight));
                return Ok(());
            }
            Drained::Done(_) => {
                desk.say("done");
                return Ok(());
            }
            // The successor died, so the service is ours again, under a new generation.
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// What all threads share.
#[derive(Debug)]
struct Desk {
    version: String,
    generation: AtomicU64,
}

impl Desk {
    fn say(&self, what: &str) {
        console::say(&self.version, what);
    }

    /// Accepts until somebody else serves, or until stop was asked.
    fn accept(self: &Arc<Desk>, serving: &mut Serving, local: &Arc<UnixListener>) -> heirloom::Result<()> {
        loop {
            let stream = match serving.accept(local) {
                Ok(Some((stream, _))) => stream,
                Ok(None) => return Ok(()),
                Err(error) if error.is_shortage() => {
                    log::warn!("{error}");
                    thread::sleep(shortage::PAUSE);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let lease = serving.lease();
            let desk = Arc::clone(self);
            let thread = thread::Builder::new().spawn(move || {
                if let Err(error) = desk.answer(&stream, &lease) {
                    log::debug!("connection: {error}");
                }
            });
            if let Err(error) = thread {
                log::warn!("connection dropped, no thread for it: {error}");
            }
        }
    }

    /// Answers line by line until the client is done, or has been told to connect again.
    fn answer(&self, mut stream: &UnixStream, lease: &Lease) -> io::Result<()> {
        let user = getsockopt(stream, sockopt::PeerCredentials)?.uid();
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
            if line.len() as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            let again = lease.draining();
            let word = if again { "again" } else { "stay" };
            let generation = self.generation.load(Ordering::Relaxed);
            let mut response = format!("{word} {} {generation} uid={user} ", self.version).into_bytes();
            response.append(&mut line);
            stream.write_all(&response)?;
            if again {
                break;
            }
        }
        Ok(())
    }
}

/// The longest line that is read, in bytes with its end: a client must not fill the memory.
const LONGEST_LINE: u64 = 64 * 1024;
