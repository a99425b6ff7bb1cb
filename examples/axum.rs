//! An axum server that is replaced while it runs.
//!
//! Start a version, and look at what answers:
//!
//! ```text
//! mkdir -m 700 /tmp/shop
//! cargo run --example axum -- --control /tmp/shop/handoff.sock --listen 127.0.0.1:8080 --app-version 1
//! curl http://127.0.0.1:8080/
//! ```
//!
//! Then start the next one beside it, as `--app-version 2`, with `curl http://127.0.0.1:8080/slow/5000` under way: that
//! request is still answered by version 1, which exits after it; a new `curl` talks to version 2.
//!
//! What axum does not know by itself is here: where its connections come from ([`Door`]), when idle ones may be closed
//! (`Life::closing`), and that a response may have to say goodbye ([`say_close`]). axum's graceful shutdown closes idle
//! connections at once, and a request that is on its way on one of them is lost. So it begins when the drain has ended,
//! and until then each client is told with its next response.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use clap::Parser;
use heirloom::tokio::{Incoming, Leased, Life, TcpListener};
use tokio::net::TcpStream;

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

/// An axum server that its next version replaces while it runs
#[derive(Debug, Parser)]
#[command(name = "axum")]
struct Cli {
    #[command(flatten)]
    server: ServerArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    env_logger::init();
    failure::exit_code("axum", serve(&Cli::parse().server).await)
}

async fn serve(args: &ServerArgs) -> Result<(), Failure> {
    let say = |what: &str| console::say(&args.app_version, what);
    let mut handoff = args.handoff();
    let stopper = handoff.stopper()?;
    tokio::spawn(async move {
        async_signals::signalled().await;
        stopper.stop();
    });

    let mut starting = heirloom::tokio::start(handoff).await?;
    let web = starting.tcp_listener("web", args.listen)?;
    // A real program loads its data here; the predecessor serves meanwhile.
    starting.during(tokio::time::sleep(args.warm_up)).await?;
    let serving = starting.ready().await?;
    say(&format!("serving {} as generation {}", web.local_addr()?, serving.generation()));

    let life = serving.life();
    let shop = Shop { version: args.app_version.clone(), life: life.clone() };
    let app = Router::new()
        .route("/", get(identity))
        .route("/slow/{ms}", get(slow))
        .layer(map_response_with_state(life.clone(), say_close))
        .with_state(shop);
    let door = Door(serving.incoming(&web)).tap_io(|connection| {
        if let Err(error) = connection.get_ref().set_nodelay(true) {
            log::debug!("TCP_NODELAY: {error}");
        }
    });
    // Served once, for as long as this process lives: while another one owns the service, the door stays shut.
    tokio::spawn(axum::serve(door, app).with_graceful_shutdown(life.closing()).into_future());

    let summary = serving.run().await?;
    if summary.forced {
        say(&format!("the drain deadline cut off {} connections", summary.in_flight));
    } else {
        say("done");
    }
    Ok(())
}

/// Where axum's connections come from. Each counts as in flight until axum drops it.
#[derive(Debug)]
struct Door(Incoming<TcpListener>);

impl axum::serve::Listener for Door {
    type Io = Leased<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Leased<TcpStream>, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(Some(accepted)) => return accepted,
                // Nothing comes any more. axum stops asking at its graceful shutdown, which begins now.
                Ok(None) => std::future::pending().await,
                Err(error) => {
                    // Too many files are open, most likely: the kernel tells nobody when there is room again.
                    log::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.listener().local_addr()
    }
}

/// Tells the client of a kept-alive connection, with the answer to its request, to make the next one to the successor.
async fn say_close(State(life): State<Life>, mut response: Response) -> Response {
    if life.left().is_some() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[derive(Clone, Debug)]
struct Shop {
    version: String,
    life: Life,
}

async fn identity(State(shop): State<Shop>) -> impl IntoResponse {
    let identity = serde_json::json!({
        "version": shop.version,
        "generation": shop.life.generation(),
        "pid": std::process::id(),
    });
    ([(CONTENT_TYPE, "application/json")], format!("{identity}\n"))
}

async fn slow(Path(ms): Path<u16>, shop: State<Shop>) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(ms.into())).await;
    identity(shop).await
}
