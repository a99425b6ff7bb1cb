//! An HTTP server that ecdysis replaces: SIGHUP starts the next process.

mod http;

use std::env::args;

use ::ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address = args().nth(1).expect("an address").parse().expect("an address");
    let mut builder = TokioEcdysisBuilder::new(SignalKind::hangup()).expect("a signal handler");
    builder.set_pid_file(args().nth(2).expect("a pid file"));
    builder.stop_on_signal(SignalKind::terminate()).expect("a signal handler");
    let incoming = builder.build_listen_tcp(StopOnShutdown::Yes, address, |socket, address| {
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    });
    let mut incoming = incoming.expect("a listener");
    let (_ecdysis, replaced) = builder.ready().expect("to be ready");
    let leaving = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let mut replaced = std::pin::pin!(replaced);
    loop {
        tokio::select! {
            stream = incoming.next() => match stream {
                Some(Ok(stream)) => { connections.spawn(http::serve(stream, leaving.subscribe())); }
                Some(Err(_)) => {}
                None => break,
            },
            _ = &mut replaced => break,
        }
        while connections.try_join_next().is_some() {}
    }
    leaving.send_replace(true);
    let _ = tokio::time::timeout(http::DRAIN, connections.join_all()).await;
}
