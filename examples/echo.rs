//! A server with an event loop of its own, on mio: heirloom is one more descriptor in it.
//!
//! It echoes bytes:
//!
//! ```text
//! mkdir -m 700 /tmp/echo
//! cargo run --example echo -- --control /tmp/echo/handoff.sock --listen 127.0.0.1:7007 --app-version 1
//! nc 127.0.0.1 7007
//! ```
//!
//! Start it again in a third shell, as `--app-version 2`: version 1 goes on to echo what `nc` says until that
//! connection ends or its `--drain` is over; a new `nc` talks to version 2.
//!
//! What such a loop has to do for it: process the handoff when it is readable, stop accepting at `Leave` and
//! `StandBy`, start again at `Resume`; and after `Leave` go on with the connections until the drain says that it is
//! over.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use heirloom::mio::Listener;
use heirloom::{Drained, Draining, Event, Lease, Serving};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

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

/// A server of echoes that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "echo")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("echo", serve(&Cli::parse().server))
}

fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let mut handoff = args.handoff();
    signals::stop_on_signal(handoff.stopper()?)?;

    // These three wait, which is all that this program can do by then. One that serves something else meanwhile uses
    // `begin` and `begin_ready`, and has their descriptors in its loop as well.
    let mut starting = handoff.start()?;
    let listener = starting.tcp_listener("echo", args.listen)?;
    starting.wait(args.warm_up)?;
    let mut serving = starting.ready()?;

    let say = |what: &str| console::say(&args.app_version, what);
    let mut echo = Echo::new(listener)?;
    loop {
        say(&format!("serving {} as generation {}", echo.listener.local_addr()?, serving.generation()));
        echo.serve(&mut serving)?;
        say("finishing what is in flight");
        match echo.drain(serving.begin_drain()?)? {
            Drained::Done(summary) if summary.forced => {
                say(&format!("the drain deadline cut off {} connections", summary.in_flight));
                return Ok(());
            }
            Drained::Done(_) => {
                say("done");
                return Ok(());
            }
            // The successor died, so the service is ours again, under a new generation.
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// The event loop and what is in it.
struct Echo {
    poll: Poll,
    listener: Listener<TcpListener>,
    /// Whether the listener is registered.
    accepting: bool,
    /// Whether the last attempt to accept found no descriptor left: it is tried again when one comes free.
    starved: bool,
    connections: HashMap<Token, Connection>,
    next_token: usize,
}

const HANDOFF: Token = Token(0);
const LISTENER: Token = Token(1);
const FIRST_CONNECTION: usize = 2;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;

impl Echo {
    fn new(listener: Arc<TcpListener>) -> io::Result<Echo> {
        Ok(Echo {
            poll: Poll::new()?,
            listener: Listener(listener),
            accepting: false,
            starved: false,
            connections: HashMap::new(),
            next_token: FIRST_CONNECTION,
        })
    }

    /// Serves until this process has left the service.
    fn serve(&mut self, serving: &mut Serving) -> Result<(), Failure> {
        self.poll.registry().register(serving, HANDOFF, Interest::READABLE)?;
        self.resume(serving)?;
        let mut events = Events::with_capacity(EVENTS);
        while serving.left().is_none() {
            self.wait(&mut events)?;
            for event in &events {
                match event.token() {
                    HANDOFF => self.process(serving)?,
                    LISTENER => self.accept(serving)?,
                    token => {
                        if self.pump(token)? && self.starved {
                            self.accept(serving)?;
                        }
                    }
                }
            }
        }
        self.poll.registry().deregister(serving)?;
        Ok(())
    }

    /// Does what the handoff asks for, until it asks for nothing more.
    fn process(&mut self, serving: &mut Serving) -> Result<(), Failure> {
        while let Some(event) = serving.process()? {
            match event {
                Event::Leave(reason) => {
                    if !reason.is_served() {
                        // Nobody comes after this process: what waits in the queue is served before it closes.
                        self.accept(serving)?;
                    }
                    self.pause()?;
                }
                // The successor serves on probation: it may yet be our turn again.
                Event::StandBy => self.pause()?,
                Event::Resume => self.resume(serving)?,
                // `Release` comes only to who has said that it has exclusive work.
                _ => {}
            }
        }
        Ok(())
    }

    /// Echoes what is still in flight. The deadline is the handoff's, and so is the count of leases: its descriptor
    /// becomes readable when it is over.
    fn drain(&mut self, mut draining: Draining) -> Result<Drained, Failure> {
        self.poll.registry().register(&mut draining, HANDOFF, Interest::READABLE)?;
        let mut events = Events::with_capacity(EVENTS);
        let mut over = draining.process()?;
        loop {
            if over {
                self.poll.registry().deregister(&mut draining)?;
                match draining.drained() {
                    Ok(drained) => return Ok(drained),
                    Err(_) => unreachable!("it has just said that it is over"),
                }
            }
            self.wait(&mut events)?;
            for event in &events {
                match event.token() {
                    HANDOFF => over = draining.process()?,
                    token => {
                        self.pump(token)?;
                    }
                }
            }
        }
    }

    /// Waits for events, for as long as it takes.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        loop {
            match self.poll.poll(events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                polled => return polled,
            }
        }
    }

    /// Stops accepting. Connections that wait in the queue are the successor's: it has the same listener.
    fn pause(&mut self) -> io::Result<()> {
        if self.accepting {
            self.poll.registry().deregister(&mut self.listener)?;
            self.accepting = false;
        }
        Ok(())
    }

    /// Accepts, from what came while nobody did.
    fn resume(&mut self, serving: &Serving) -> io::Result<()> {
        if !self.accepting {
            self.poll.registry().register(&mut self.listener, LISTENER, Interest::READABLE)?;
            self.accepting = true;
        }
        self.accept(serving)
    }

    /// Accepts until it would block: mio reports a listener once, and not again for what was left in the queue.
    fn accept(&mut self, serving: &Serving) -> io::Result<()> {
        self.starved = false;
        // An event of the same batch may come after the pause.
        while self.accepting {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The client, or a signal. The queue goes on after it.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => continue,
                // Mostly EMFILE: no reason to end the service for those who are in it.
                Err(error) => {
                    log::warn!("accept: {error}");
                    self.starved = true;
                    break;
                }
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let mut stream = TcpStream::from_std(stream);
            let token = Token(self.next_token);
            self.next_token += 1;
            self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            self.connections.insert(token, Connection { stream, unsent: Vec::new(), _lease: serving.lease() });
        }
        Ok(())
    }

    /// Moves one connection on, and forgets it with its lease when it has ended: then it gives `true`.
    fn pump(&mut self, token: Token) -> io::Result<bool> {
        // An event of the same batch may come after the end.
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(false) };
        let ended = match connection.pump() {
            Ok(Pumped::Blocked) => false,
            Ok(Pumped::Busy) => {
                // Asks for another event, since there will be none of itself for what is readable already.
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().reregister(&mut connection.stream, token, interest)?;
                false
            }
            Ok(Pumped::Ended) => true,
            Err(error) => {
                log::debug!("connection: {error}");
                true
            }
        };
        if ended {
            self.connections.remove(&token);
        }
        Ok(ended)
    }
}

/// One client. Its lease is what a drain waits for.
struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
    _lease: Lease,
}

/// How far a connection came.
enum Pumped {
    /// It waits for the client.
    Blocked,
    /// It had its share, and there is more.
    Busy,
    /// The client has said all, and got it back.
    Ended,
}

/// How often one connection reads before it is another's turn: whoever talks without a pause must not keep the loop
/// from the handoff.
const READS: usize = 16;

/// How much is read at once, in bytes.
const READ: usize = 16 * 1024;

impl Connection {
    fn pump(&mut self) -> io::Result<Pumped> {
        let mut buffer = [0; READ];
        for _ in 0..READS {
            // Reads nothing more before the client takes what it has said: so a connection needs no more than one buffer.
            while !self.unsent.is_empty() {
                match self.stream.write(&self.unsent) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => drop(self.unsent.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Pumped::Blocked),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Pumped::Ended),
                Ok(count) => self.unsent.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Pumped::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Pumped::Busy)
    }
}
