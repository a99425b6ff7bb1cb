//! A counter that goes on counting in the next version: each connection gets one number, and each number is given once.
//!
//! ```text
//! mkdir -m 700 /tmp/counter
//! cargo run --example counter -- --control /tmp/counter/handoff.sock --listen 127.0.0.1:7000 --app-version 1
//! nc 127.0.0.1 7000
//! ```
//!
//! Start it again in a third shell, as `--app-version 2`, and go on asking: the numbers go on. The count is exclusive
//! work: it stops at `Release`, travels as it is then, and is gone on with by whoever owns. What comes meanwhile waits in
//! the accept queue for some microseconds.
//!
//! With `--probation 5m` the old version stands by for so long: `ctl rollback` brings it back with the count as it is then.
//!
//! What it does not do is to write to disk: should a version be killed, the one that comes after it begins where the last
//! takeover was. A count that must survive that belongs in a file, which follows the same lock.

use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use heirloom::{Drained, Event, Reason, Serving};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::args::ServerArgs;
use crate::failure::Failure;

#[path = "support/args.rs"]
mod args;
#[path = "support/console.rs"]
mod console;
#[path = "support/failure.rs"]
mod failure;
#[path = "support/signals.rs"]
mod signals;

/// What the state is written in. A version that changes `Count` so that older ones cannot read it counts this up, and
/// reads the old ones as well.
const SCHEMA: (&str, u32) = ("counter", 1);
/// The longest that a client may take to take his number.
const PATIENCE: Duration = Duration::from_secs(1);

/// A counter that its next version goes on with
#[derive(Debug, Parser)]
#[command(name = "counter")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
}

/// The state.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Count {
    given: u64,
}

fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("counter", serve(&Cli::parse().server))
}

fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let (schema, version) = SCHEMA;
    let mut handoff = args.handoff().state(schema, version);
    signals::stop_on_signal(handoff.stopper()?)?;
    let mut starting = handoff.start()?;
    let listener = starting.tcp_listener("count", args.listen)?;
    starting.wait(args.warm_up)?;
    let mut serving = starting.ready()?;
    let mut count = match serving.take_state(schema, 1..=version).map(|state| state.decode()) {
        Some(Ok(count)) => count,
        Some(Err(error)) => {
            serving.starts_cold(&error.to_string());
            Count::default()
        }
        None => Count::default(),
    };
    loop {
        let address = listener.local_addr()?;
        console::say(&args.app_version, format!("counting on from {} at {address}", count.given));
        count_on(&mut serving, &listener, &mut count)?;
        match serving.drain()? {
            Drained::Done(_) => return Ok(()),
            // The successor died, and what it had counted died with it.
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// Counts until somebody else does, or until stop was asked.
fn count_on(serving: &mut Serving, listener: &TcpListener, count: &mut Count) -> Result<(), Failure> {
    let mut counting = true;
    loop {
        while let Some(event) = serving.process()? {
            match event {
                Event::Release => {
                    counting = false;
                    hand_on(serving, count)?;
                }
                Event::Resume => {
                    counting = true;
                    take_back(serving, count);
                }
                Event::Leave(reason) => {
                    // Nobody comes after a stop: who waits gets a number before the listener closes.
                    while reason == Reason::Stopped && give_one(listener, count)? {}
                    return Ok(());
                }
                _ => {}
            }
        }
        if counting && give_one(listener, count)? {
            continue;
        }
        let mut waiting = vec![PollFd::new(serving.as_fd(), PollFlags::POLLIN)];
        if counting {
            waiting.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Where a successor on probation has given the service back, it has given its count back as well.
fn take_back(serving: &mut Serving, count: &mut Count) {
    let (schema, version) = SCHEMA;
    match serving.take_state(schema, 1..=version).map(|state| state.decode()) {
        Some(Ok(theirs)) => *count = theirs,
        Some(Err(error)) => serving.starts_cold(&error.to_string()),
        None => {}
    }
}

/// The count as it is now goes to the next version. Where it cannot be written down, this one counts on.
fn hand_on(serving: &mut Serving, count: &Count) -> heirloom::Result<()> {
    let written = serving.snapshot().map_err(|error| error.to_string()).and_then(|mut snapshot| {
        snapshot.encode(count).map_err(|error| error.to_string())?;
        Ok(snapshot)
    });
    match written {
        Ok(snapshot) => serving.released_with(snapshot),
        Err(why) => serving.cannot_release(&why),
    }
}

/// Gives the next number to the next client; `false` where nobody waits.
fn give_one(listener: &TcpListener, count: &mut Count) -> std::io::Result<bool> {
    let mut stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionAborted => return Ok(true),
        Err(error) => return Err(error),
    };
    count.given += 1;
    stream.set_write_timeout(Some(PATIENCE))?;
    if let Err(error) = writeln!(stream, "{}", count.given) {
        log::debug!("number {} was not taken: {error}", count.given);
    }
    Ok(true)
}
