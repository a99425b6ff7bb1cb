//! Connections for a server whose accept loop is its own: [`Incoming`].

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::life::{Life, Phase, Turn};
use super::{Accept, Either, race};
use crate::serving::Lease;

/// The connections of one listener, for a server that wants to accept by itself, such as axum's or tonic's. Made by
/// [`Serving::incoming`](super::Serving::incoming), which is waited on beside it.
#[derive(Debug)]
pub struct Incoming<L: Accept> {
    listener: L,
    life: Life,
    turns: watch::Receiver<Turn>,
    /// Whether this one is among those for whom a stop waits.
    counted: bool,
}

impl<L: Accept> Incoming<L> {
    pub(super) fn new(listener: L, life: Life) -> Incoming<L> {
        let counted = life.open();
        Incoming { listener, turns: life.turns(), life, counted }
    }

    /// What it accepts from.
    #[must_use]
    pub fn listener(&self) -> &L {
        &self.listener
    }

    /// The next connection, which counts as in flight until it is dropped. Safe to cancel.
    ///
    /// While another process serves, this waits; should that one die, it goes on. `None`: there is nothing more to accept,
    /// since this process was stopped and the queue is empty, or its drain is over. A stop waits for that `None`, or for
    /// the drop of this value, as it waits for what is in flight.
    ///
    /// # Errors
    /// Whatever accept(2) says but for errors of the one connection. After `EMFILE` or `ENFILE`, wait a little. `EINVAL` is
    /// what a new listener says that another program was faster with after the commit: the report has it as missing.
    pub async fn accept(&mut self) -> io::Result<Option<(Leased<L::Stream>, L::Address)>> {
        loop {
            let phase = self.turns.borrow_and_update().phase();
            let accepted = match phase {
                Phase::Accepts => {
                    self.counted = self.counted || self.life.open();
                    match race(self.turns.changed(), next(&self.listener, &self.life)).await {
                        Either::First(_) => continue,
                        Either::Second(accepted) => accepted,
                    }
                }
                Phase::Waits => {
                    self.listener.forget();
                    // Fails only where this value has no life any more, and it has one.
                    let _ = self.turns.changed().await;
                    continue;
                }
                Phase::Empties => {
                    let lease = self.life.lease();
                    match self.listener.accept_now() {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.close();
                            return Ok(None);
                        }
                        accepted => accepted.map(|(stream, address)| (Leased { stream, lease }, address)),
                    }
                }
                Phase::Over => {
                    self.close();
                    return Ok(None);
                }
            };
            match accepted {
                Ok(accepted) => return Ok(Some(accepted)),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn close(&mut self) {
        self.listener.forget();
        if std::mem::take(&mut self.counted) {
            self.life.close();
        }
    }
}

impl<L: Accept> Drop for Incoming<L> {
    fn drop(&mut self) {
        self.close();
    }
}

/// The next connection, with its lease. The lease is older than the last look at whether this process still accepts: so
/// a drain either sees it, or nothing is accepted under it.
async fn next<L: Accept>(listener: &L, life: &Life) -> io::Result<(Leased<L::Stream>, L::Address)> {
    let mut accept = pin!(listener.accept());
    std::future::poll_fn(|context| {
        let lease = life.lease();
        if !life.accepts() {
            // Whoever races this is woken by the very change.
            return Poll::Pending;
        }
        let (stream, address) = ready!(accept.as_mut().poll(context))?;
        Poll::Ready(Ok((Leased { stream, lease }, address)))
    })
    .await
}

/// A connection that counts as in flight until it is dropped.
#[derive(Debug)]
pub struct Leased<S> {
    stream: S,
    lease: Lease,
}

impl<S> Leased<S> {
    /// The connection itself.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The connection and its lease, for a server that keeps the two side by side.
    #[must_use]
    pub fn into_parts(self) -> (S, Lease) {
        (self.stream, self.lease)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Leased<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Leased<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, from)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
