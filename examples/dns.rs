//! A DNS server, on UDP, that is replaced while it runs: no question is lost, and none is answered twice.
//!
//! ```text
//! mkdir -m 700 /tmp/names
//! cargo run --example dns -- --control /tmp/names/handoff.sock --listen 127.0.0.1:5353 --app-version 1
//! dig @127.0.0.1 -p 5353 TXT who.example
//! ```
//!
//! It answers every question for a TXT record with its version, generation and pid, and knows nothing else. Start it
//! again in another shell, as `--app-version 2`, and ask again.
//!
//! A UDP socket has one queue for all processes that have it. Whoever reads must be the only one who does, or a question
//! ends in a process that is about to leave. That is what `exclusive` is for: this process is told to let go before
//! another owns, and what arrives in between waits in the queue.
//!
//! It is also a program with an event loop of its own: one poll(2) for the handoff and the socket.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use heirloom::{Drained, Event, Serving};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use simple_dns::rdata::{RData, TXT};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

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

/// A DNS server that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "dns")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("dns", serve(&Cli::parse().server))
}

fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let say = |what: &str| console::say(&args.app_version, what);
    let mut handoff = args.handoff().exclusive(true);
    signals::stop_on_signal(handoff.stopper()?)?;

    let mut starting = handoff.start()?;
    let questions = starting.udp_socket("dns", args.listen)?;
    starting.wait(args.warm_up)?;
    let mut serving = starting.ready()?;
    loop {
        let generation = serving.generation();
        say(&format!("serving {} as generation {generation}", questions.local_addr()?));
        let me = format!("version={} generation={generation} pid={}", args.app_version, std::process::id());
        answer_until_left(&mut serving, &questions, &me)?;
        // Nothing is in flight: each question was answered before the next was read.
        match serving.drain()? {
            Drained::Done(_) => {
                say("done");
                return Ok(());
            }
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// How many questions are answered before the handoff has its turn.
const IN_A_TURN: usize = 64;

/// Reads questions as long as this process is the one that may, and ends when it is told to leave.
fn answer_until_left(serving: &mut Serving, questions: &UdpSocket, me: &str) -> Result<(), Failure> {
    let mut mine = true;
    loop {
        while let Some(event) = serving.process()? {
            match event {
                Event::Release => {
                    // All that was read has been answered, so there is nothing to finish first.
                    mine = false;
                    serving.released()?;
                }
                Event::Resume => mine = true,
                Event::Leave(_) => {
                    // Without a `Release` nobody comes after this process: what waits is answered before it ends.
                    while mine && answer(questions, me)? {}
                    return Ok(());
                }
                Event::StandBy => mine = false,
                // To know that the predecessor is gone changes nothing here.
                _ => {}
            }
        }
        let mut turn = 0;
        while mine && turn < IN_A_TURN && answer(questions, me)? {
            turn += 1;
        }
        let mut waiting = vec![PollFd::new(serving.as_fd(), PollFlags::POLLIN)];
        if mine {
            waiting.push(PollFd::new(questions.as_fd(), PollFlags::POLLIN));
        }
        wait(&mut waiting)?;
    }
}

/// Answers the next question. `false`: there is none.
fn answer(questions: &UdpSocket, me: &str) -> io::Result<bool> {
    let mut buffer = [0; LARGEST];
    let (length, from) = match questions.recv_from(&mut buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
        Err(error) => return Err(error),
    };
    match reply(&buffer[..length], me) {
        Ok(Some(reply)) => send(questions, &reply, from)?,
        Ok(None) => {}
        Err(error) => log::debug!("from {from}: {error}"),
    }
    Ok(true)
}

/// The largest message that is read: what goes over UDP without an extension (RFC 1035, 2.3.4).
const LARGEST: usize = 512;

/// The answer to a message, where it is a question.
fn reply(message: &[u8], me: &str) -> simple_dns::Result<Option<Vec<u8>>> {
    let asked = Packet::parse(message)?;
    if asked.has_flags(PacketFlag::RESPONSE) {
        return Ok(None);
    }
    let mut reply = Packet::new_reply(asked.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    match asked.questions.as_slice() {
        [question] => {
            if matches!(question.qtype, QTYPE::TYPE(TYPE::TXT) | QTYPE::ANY) {
                let text = RData::TXT(TXT::new().with_string(me)?);
                reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 0, text));
            }
            reply.questions.push(question.clone());
        }
        _ => *reply.rcode_mut() = RCODE::FormatError,
    }
    reply.build_bytes_vec_compressed().map(Some)
}

/// Sends an answer, and waits for room where the kernel has none at the moment: the question is gone from the queue.
fn send(questions: &UdpSocket, reply: &[u8], to: SocketAddr) -> io::Result<()> {
    loop {
        match questions.send_to(reply, to) {
            Ok(_) => return Ok(()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => wait(&mut [PollFd::new(questions.as_fd(), PollFlags::POLLOUT)])?,
                ErrorKind::Interrupted => {}
                _ => {
                    // The way to this one client is blocked; that is no reason to leave the others.
                    log::debug!("to {to}: {error}");
                    return Ok(());
                }
            },
        }
    }
}

fn wait(descriptors: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(descriptors, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
