//! A gRPC server, on tonic, that is replaced while it runs.
//!
//! ```text
//! mkdir -m 700 /tmp/health
//! cargo run --example grpc -- --control /tmp/health/handoff.sock --listen 127.0.0.1:50051 --app-version 1
//! grpcurl -plaintext 127.0.0.1:50051 grpc.health.v1.Health/Check
//! ```
//!
//! It speaks the health protocol of gRPC, so that any client of that does (`grpcurl` needs its `.proto`: `-import-path`,
//! `-proto`), and says who answers in the metadata. Start it again in another shell, as `--app-version 2`.
//!
//! HTTP/2 has a word for "no more on this connection": `GOAWAY`, which tonic sends when its shutdown begins. Calls that
//! are on their way are still answered, and the client's next one goes to a new connection, which the successor accepts.
//! So the shutdown begins at once, unlike in `axum.rs`. A stream that would never end by itself has to be ended by the
//! server: see [`Desk::watch`].
//!
//! There is a moment in which a client has a call of its own in hand for a connection that has just said goodbye. No
//! server has seen that call, and gRPC has the client make it again without a word. A client on tonic has to do that
//! itself: the error's sources have a `hyper::Error` that `is_canceled`, or an `h2::Error` that `is_go_away`.

use std::io;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_util::stream::{self, Stream, StreamExt};
use heirloom::Stopper;
use heirloom::tokio::{Drained, Incoming, Life, TcpListener};
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::args::ServerArgs;
use crate::failure::Failure;

#[path = "support/args.rs"]
mod args;
#[path = "support/async_signals.rs"]
mod async_signals;
#[path = "support/console.rs"]
mod console;
#[path = "support/failure.rs"]
mod failure;

/// A gRPC server that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "grpc")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("grpc", serve(&Cli::parse().server).await)
}

async fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let say = |what: &str| console::say(&args.app_version, what);
    let version = args.app_version.parse()?;
    let mut handoff = args.handoff();
    let stopper = handoff.stopper()?;
    tokio::spawn({
        let stopper = stopper.clone();
        async move {
            async_signals::signalled().await;
            stopper.stop();
        }
    });

    let mut starting = heirloom::tokio::start(handoff).await?;
    let calls = starting.tcp_listener("grpc", args.listen)?;
    starting.during(tokio::time::sleep(args.warm_up)).await?;
    let mut serving = starting.ready().await?;
    let desk = Desk { version, life: serving.life() };
    loop {
        say(&format!("serving {} as generation {}", calls.local_addr()?, serving.generation()));
        tokio::spawn(answer(desk.clone(), serving.incoming(&calls), stopper.clone()));
        serving.until_left().await?;
        say("finishing what is in flight");
        match serving.drain().await? {
            Drained::Done(summary) => {
                say(if summary.forced { "the drain deadline cut off what was in flight" } else { "done" });
                return Ok(());
            }
            // The successor died, so the service is ours again. That server has said goodbye: it takes a new one.
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// Serves from here to the last answer. One lease covers all of it: tonic's future ends when its last connection has.
async fn answer(desk: Desk, incoming: Incoming<TcpListener>, stopper: Stopper) {
    let lease = desk.life.lease();
    let shutdown = desk.life.leaving();
    let router = Server::builder().add_service(HealthServer::new(desk));
    if let Err(error) = router.serve_with_incoming_shutdown(connections(incoming), shutdown).await {
        log::error!("{error}");
        stopper.stop();
    }
    drop(lease);
}

/// The connections as tonic wants them.
fn connections(incoming: Incoming<TcpListener>) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(incoming, |mut incoming| async move {
        loop {
            match incoming.accept().await {
                Ok(accepted) => {
                    let (leased, _) = accepted?;
                    let (stream, _) = leased.into_parts();
                    return Some((stream.set_nodelay(true).map(|()| stream), incoming));
                }
                Err(error) => {
                    // Too many files are open, most likely. tonic would ask again at once.
                    log::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}

/// What answers calls.
#[derive(Clone, Debug)]
struct Desk {
    version: MetadataValue<Ascii>,
    life: Life,
}

impl Desk {
    fn sign<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        let metadata = response.metadata_mut();
        metadata.insert("version", self.version.clone());
        metadata.insert("generation", self.life.generation().into());
        metadata.insert("pid", std::process::id().into());
        response
    }
}

fn status(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Desk {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(self.sign(status(ServingStatus::Serving)))
    }

    /// Says that this server serves, and when it leaves, that it does no more; then the stream ends, and its client asks
    /// the successor. Where nobody ended it, the drain would wait for it until the deadline.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let leaving = self.life.leaving();
        let first = stream::iter([Ok(status(ServingStatus::Serving))]);
        let last = stream::once(async {
            leaving.await;
            Ok(status(ServingStatus::NotServing))
        });
        Ok(self.sign(Box::pin(first.chain(last))))
    }
}
