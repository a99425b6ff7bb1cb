//! The HTTP server of the examples: hyper on tokio, with nothing between them and heirloom.
//!
//! `GET /` answers `{"version", "generation", "pid"}`, `GET /slow?ms=N` answers the same after N milliseconds.
//!
//! What a server has to do for a takeover that no client notices is here, and it is more than to stop accepting. A
//! connection that is kept alive may have its next request on the way at any moment, so closing it because it is idle
//! loses that request. It stays open until the client has been *told*: the next response carries `Connection: close`,
//! and the client makes its next connection to the successor.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use heirloom::tokio::{Drained, Serving, Starting, TcpListener};
use heirloom::{Handoff, Lease, Reason};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::args::ServerArgs;
use crate::failure::Failure;
use crate::shortage;

/// Serves until another version has taken over, or until `stop` ends, and what was in flight is finished.
///
/// `handoff` is what `args` say, and perhaps more. Each step is told to `tell` when it has happened.
pub(crate) async fn serve(
    args: &ServerArgs,
    mut handoff: Handoff,
    stop: impl Future<Output = ()> + Send + 'static,
    tell: impl Fn(Step),
) -> Result<(), Failure> {
    let stopper = handoff.stopper()?;
    // Works in every phase: a start and a warm-up are cancelled, a server stops accepting and drains.
    tokio::spawn(async move {
        stop.await;
        stopper.stop();
    });

    let mut starting = heirloom::tokio::start(handoff).await?;
    let web = starting.tcp_listener("web", args.listen)?;
    let predecessor = starting.inner().predecessor().map(|old| old.pid);
    tell(Step::Started { address: web.local_addr()?, predecessor });

    warm_up(&mut starting, args.warm_up).await?;

    let mut serving = starting.ready().await?;
    let life = watch::Sender::new(Life { generation: serving.generation(), phase: Phase::Serving });
    tell(Step::Owning { generation: serving.generation() });

    let desk = Desk { version: args.app_version.as_str().into(), life: life.subscribe() };
    loop {
        accept(&mut serving, &web, &desk).await?;
        let successor = serving.inner().left().is_some_and(Reason::is_served);
        let phase = if successor { Phase::Draining } else { Phase::Stopping };
        life.send_modify(|life| life.phase = phase);
        tell(Step::Leaving { successor });

        match serving.drain().await? {
            // Where the deadline has passed the rest is cut off by the end of the process: it was told `close` in
            // every response since, or it was idle all that time.
            Drained::Done(summary) => {
                tell(Step::Done { forced: summary.forced, in_flight: summary.in_flight });
                return Ok(());
            }
            // The successor died, so the service is ours again, under a new generation.
            Drained::Resumed(again) => {
                serving = again;
                life.send_replace(Life { generation: serving.generation(), phase: Phase::Serving });
                tell(Step::Resumed { generation: serving.generation() });
            }
        }
    }
}

/// What has happened in the life of one server.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Step {
    /// The listener is here: received from the predecessor with that pid, or from systemd, or bound.
    Started { address: SocketAddr, predecessor: Option<u32> },
    /// This process is the owner, under this generation.
    Owning { generation: u64 },
    /// It accepts no more: a successor does, or it was asked to stop.
    Leaving { successor: bool },
    /// The successor died and this process is the owner again.
    Resumed { generation: u64 },
    /// It is done; `forced` where the drain deadline came before the last connection had ended.
    Done { forced: bool, in_flight: u64 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Started { address, predecessor: Some(pid) } => {
                write!(f, "received the listener at {address} from pid {pid}")
            }
            Step::Started { address, predecessor: None } => write!(f, "has the listener at {address}"),
            Step::Owning { generation } => write!(f, "serving as generation {generation}"),
            Step::Leaving { successor: true } => f.write_str("a successor serves; finishing what is in flight"),
            Step::Leaving { successor: false } => f.write_str("stopping; finishing what is in flight"),
            Step::Resumed { generation } => write!(f, "the successor died; serving again as generation {generation}"),
            Step::Done { forced: false, .. } => f.write_str("done"),
            Step::Done { forced: true, in_flight } => write!(f, "the drain deadline cut off {in_flight} connections"),
        }
    }
}

/// How often a warm-up says how far it is.
const WARM_UP_STEPS: u32 = 4;

/// The longest time that `/slow` may be asked for, in milliseconds.
const LONGEST_SLOW: u64 = 60_000;

/// What the connections must know about the process that they are in.
#[derive(Clone, Copy, Debug)]
struct Life {
    generation: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// A successor accepts: clients are sent there as they come by.
    Draining,
    /// Perhaps nobody else serves: an idle connection is closed, and not kept until its client comes by again. One that
    /// has not had its first request yet is not idle: its client was told that it is connected, and gets an answer.
    Stopping,
}

/// What answers requests: one for each connection, all alike.
#[derive(Clone, Debug)]
struct Desk {
    version: Arc<str>,
    life: watch::Receiver<Life>,
}

/// Stands for whatever a real server loads. The predecessor serves meanwhile, and hears how far it is.
async fn warm_up(starting: &mut Starting, time: Duration) -> Result<(), heirloom::Error> {
    if time.is_zero() {
        // Four sleeps of no time at all are four ticks of the timer, of a millisecond each.
        return Ok(());
    }
    for step in 0..WARM_UP_STEPS {
        starting.inner().progress(&format!("warming up {}%", step * 100 / WARM_UP_STEPS))?;
        starting.during(tokio::time::sleep(time / WARM_UP_STEPS)).await?;
    }
    Ok(())
}

/// Accepts until somebody else serves, or until stop was asked.
async fn accept(serving: &mut Serving, web: &TcpListener, desk: &Desk) -> Result<(), Failure> {
    loop {
        let (stream, from) = match serving.accept(web).await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => return Ok(()),
            Err(error) if error.is_shortage() => {
                log::warn!("{error}");
                tokio::time::sleep(shortage::PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let lease = serving.lease();
        let desk = desk.clone();
        tokio::spawn(async move {
            if let Err(error) = desk.connection(stream, lease).await {
                log::debug!("connection from {from}: {error}");
            }
        });
    }
}

/// How long a stop waits for the first request of a connection: as long as that can be on its way.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(2);

impl Desk {
    /// Answers all requests of one connection. The lease keeps the process alive until the last response has left.
    async fn connection(self, stream: TcpStream, _lease: Lease) -> Result<(), Failure> {
        stream.set_nodelay(true)?;
        let mut life = self.life.clone();
        let asked = watch::Sender::new(false);
        let mut first = asked.subscribe();
        let requests = service_fn(|request| {
            asked.send_replace(true);
            self.answer(request)
        });
        let stopping = async {
            let _ = life.wait_for(|life| life.phase == Phase::Stopping).await;
            // hyper's graceful shutdown would close a connection on which nothing has been read, too. A client that never
            // asks must not put off the end.
            let _ = tokio::time::timeout(FIRST_REQUEST_WITHIN, first.wait_for(|asked| *asked)).await;
        };
        let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), requests));
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            // Not for `Draining`: hyper's graceful shutdown closes an idle connection at once, and a request that
            // its client has just sent would be lost though somebody serves.
            () = stopping => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let status = match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => StatusCode::OK,
            (&Method::GET, "/slow") => match slowness(request.uri().query()) {
                Some(time) => {
                    tokio::time::sleep(time).await;
                    StatusCode::OK
                }
                None => StatusCode::BAD_REQUEST,
            },
            _ => StatusCode::NOT_FOUND,
        };

        // Read now and not before the sleep: a takeover in between must be in this response.
        let life = *self.life.borrow();
        let body = if status == StatusCode::OK {
            let identity = serde_json::json!({
                "version": &*self.version,
                "generation": life.generation,
                "pid": std::process::id(),
            });
            format!("{identity}\n")
        } else {
            String::new()
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if life.phase != Phase::Serving {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// The time that the query of `/slow` asks for, where it is one and not too long.
fn slowness(query: Option<&str>) -> Option<Duration> {
    let ms: u64 = query?.split('&').find_map(|pair| pair.strip_prefix("ms="))?.parse().ok()?;
    (ms <= LONGEST_SLOW).then(|| Duration::from_millis(ms))
}
