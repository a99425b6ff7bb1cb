//! What a started version holds on to: the standard input that its starter keeps open and never writes to.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use tokio::net::unix::pipe;

/// Ends when the starter has let go of this process's standard input, or is dead.
pub(crate) async fn orphaned() {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let Ok(pipe) = stdin.and_then(pipe::Receiver::from_owned_fd) else {
        // Started by hand, so it ends by hand.
        return std::future::pending().await;
    };
    let mut byte = [0];
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut byte) {
            Ok(0) => return,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}
