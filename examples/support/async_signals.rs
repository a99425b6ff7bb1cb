//! The two signals that ask a program to leave, for programs on tokio.

use std::future::pending;

use tokio::signal::unix::{SignalKind, signal};

/// Ends when SIGTERM or Ctrl-C asks for it.
pub(crate) async fn signalled() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without handlers the kernel's default ends the process, which is what was asked for.
        _ => pending().await,
    }
}
