//! One generation of the service, in a process of its own, as a user of the library would write it: on tokio and hyper.
//!
//! It has one of each: a TCP listener for HTTP, whose connections are kept, a Unix listener for lines, and work that
//! must never run twice (see [`crate::ledger`]): a UDP socket, and a file that goes along as a raw entry.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use heirloom::tokio::{Accept, Drained, Serving, TcpListener, UnixListener};
use heirloom::{Event, Handoff, Lease};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, raise};
use nix::unistd::{Pid, getppid};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::HEAP;
use crate::args::ServerArgs;
use crate::clock;
use crate::failure::Failure;
use crate::ledger::Ledger;

/// How a generation is started: this program again.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Role {
    #[command(flatten)]
    server: ServerArgs,

    /// Process without which this one ends
    #[arg(long, value_name = "PID")]
    parent: i32,

    /// What becomes of it
    #[arg(long, value_enum)]
    conduct: Conduct,
}

/// What becomes of a process that has received everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Conduct {
    /// It takes over and serves.
    Serve,
    /// It takes over and does nothing else.
    Idle,
    /// It gives up.
    Withdraw,
    /// It dies.
    Die,
    /// It says that it is ready, and dies before it can know whether it may own.
    DieReady,
}

/// What it tells of itself, a line of JSON for each step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) event: String,
    /// When, in microseconds of [`clock::now`].
    pub(crate) at_us: u64,
    /// Which generation it is, or would be.
    pub(crate) generation: u64,
    /// Where its two sockets of the network are, for HTTP and for datagrams; with `started` alone.
    #[serde(default)]
    pub(crate) addresses: Vec<std::net::SocketAddr>,
}

impl Told {
    pub(crate) fn at(&self) -> Duration {
        Duration::from_micros(self.at_us)
    }
}

/// Lives until the next generation serves, or until SIGTERM, and finishes what is in flight.
pub(crate) async fn live(role: &Role) -> Result<(), Failure> {
    // Whoever started this may be killed at any moment, and takes it along.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != Pid::from_raw(role.parent) {
        return Err("nobody is there any more who started this".into());
    }
    let mut handoff = role.server.handoff().exclusive(true);
    match role.conduct {
        Conduct::Serve | Conduct::Idle => {}
        Conduct::Withdraw | Conduct::Die | Conduct::DieReady => return falter(role, handoff),
    }

    let stopper = handoff.stopper()?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        while terminate.recv().await.is_some() {
            stopper.stop();
        }
    });

    let mut starting = heirloom::tokio::start(handoff).await?;
    let web = starting.tcp_listener("web", role.server.listen)?;
    let lines = starting.unix_listener("lines", role.lines())?;
    let datagrams = starting.inner().udp_socket("datagrams", role.server.listen)?;
    let count = starting.inner().raw("count", make_count)?;
    let addresses = [web.local_addr()?, datagrams.local_addr()?];
    tell("started", starting.inner().generation(), &addresses);
    starting.during(tokio::time::sleep(role.server.warm_up)).await?;

    let mut serving = starting.ready().await?;
    if role.conduct == Conduct::Idle {
        tell("owning", serving.generation(), &[]);
        return pending().await;
    }
    let mut how = "owning";
    loop {
        let take = |how: &str, generation| {
            let ledger = Ledger::take(&datagrams, &count, generation)?;
            tell(how, generation, &[]);
            Ok(ledger)
        };
        serve(&mut serving, how, &web, &lines, take, &role.server.app_version).await?;
        tell("leaving", serving.generation(), &[]);
        how = "resumed";
        match serving.drain().await? {
            Drained::Done(summary) if summary.forced => {
                return Err(format!("the drain deadline cut off {} connections", summary.in_flight).into());
            }
            Drained::Done(_) => return Ok(()),
            Drained::Resumed(again) => serving = again,
        }
    }
}

impl Role {
    /// The path of the Unix listener: beside the control socket.
    fn lines(&self) -> PathBuf {
        self.server.control.with_file_name(LINES)
    }
}

/// The name of the Unix listener's path.
pub(crate) const LINES: &str = "lines.sock";

fn make_count() -> io::Result<OwnedFd> {
    Ok(memfd_create("count", MFdFlags::MFD_CLOEXEC)?)
}

/// A successor that never gets to own. On the blocking face: so it is certain that it does nothing after `Ready`.
fn falter(role: &Role, handoff: Handoff) -> Result<(), Failure> {
    let mut starting = handoff.start()?;
    let web = starting.tcp_listener("web", role.server.listen)?;
    let _lines = starting.unix_listener("lines", role.lines())?;
    let datagrams = starting.udp_socket("datagrams", role.server.listen)?;
    let _count = starting.raw("count", make_count)?;
    tell("started", starting.generation(), &[web.local_addr()?, datagrams.local_addr()?]);
    match role.conduct {
        Conduct::DieReady => {
            let _said = starting.begin_ready()?;
            raise(Signal::SIGKILL)?;
        }
        Conduct::Die => raise(Signal::SIGKILL)?,
        Conduct::Withdraw | Conduct::Serve | Conduct::Idle => starting.abort()?,
    }
    Ok(())
}

/// Serves until somebody else does, or until it is asked to stop.
async fn serve(
    serving: &mut Serving,
    how: &str,
    web: &TcpListener,
    lines: &UnixListener,
    take: impl Fn(&str, u64) -> Result<Ledger, Failure>,
    version: &str,
) -> Result<(), Failure> {
    let version: Arc<str> = version.into();
    let mut ledger = Some(take(how, serving.generation())?);
    loop {
        tokio::select! {
            event = serving.event() => match event? {
                Event::Release => {
                    ledger = None;
                    serving.inner().released()?;
                }
                // The successor that was ready has died.
                Event::Resume => ledger = Some(take("resumed", serving.generation())?),
                Event::Leave(_) => break,
                _ => {}
            },
            accepted = web.accept() => {
                tokio::spawn(answer_requests(accepted?.0, serving.lease(), version.clone()));
            }
            accepted = lines.accept() => {
                tokio::spawn(answer_lines(accepted?.0, serving.lease(), version.clone()));
            }
            ready = ready(ledger.as_ref()) => {
                ready?;
                if let Some(ledger) = &mut ledger {
                    ledger.tick()?;
                }
            }
        }
    }
    web.forget();
    lines.forget();
    Ok(())
}

async fn ready(ledger: Option<&Ledger>) -> io::Result<()> {
    match ledger {
        Some(ledger) => ledger.ready().await,
        None => pending().await,
    }
}

/// Answers all requests of one connection. A client that keeps it is sent to the successor with its next answer.
async fn answer_requests(stream: TcpStream, lease: Lease, version: Arc<str>) {
    let answer = |_: Request<Incoming>| {
        let mut response = Response::new(Full::new(Bytes::from(json!({ "version": &*version }).to_string())));
        if lease.draining() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        async { Ok::<_, Infallible>(response) }
    };
    let _ = stream.set_nodelay(true);
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await {
        log::warn!("a connection: {error}");
    }
}

/// Answers each line until the client has no more of them: with the version, or with what is on the heap, in bytes.
async fn answer_lines(stream: UnixStream, _lease: Lease, version: Arc<str>) {
    let answered = async {
        let mut lines = BufReader::new(stream).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = if line == "heap" { HEAP.current_usage().to_string() } else { version.to_string() };
            lines.get_mut().write_all(format!("{answer}\n").as_bytes()).await?;
        }
        io::Result::Ok(())
    };
    if let Err(error) = answered.await {
        log::warn!("a connection of lines: {error}");
    }
}

fn tell(event: &str, generation: u64, addresses: &[std::net::SocketAddr]) {
    let at_us = u64::try_from(clock::now().as_micros()).unwrap_or(u64::MAX);
    let told = Told { event: event.to_owned(), at_us, generation, addresses: addresses.to_vec() };
    log::info!("{event}, generation {generation}");
    // Where nobody reads any more, this process does not live much longer.
    let _ = writeln!(io::stdout(), "{}", json!(told));
}
