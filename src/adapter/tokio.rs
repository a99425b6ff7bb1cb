//! The tokio face. Dropping any of its futures cancels what it waited for, and leaves nothing behind.
//!
//! A duplicate of the handoff's descriptor is registered with the runtime: no thread, no timer of tokio's.
//!
//! A server accepts in one of two ways. With a loop of its own it calls [`Serving::accept`]. A framework has its own
//! loop: it gets an [`Incoming`], is shut down by a future of [`Life`], and [`Serving::run`] does the rest beside it:
//!
//! ```no_run
//! # use heirloom::tokio::{Incoming, TcpListener};
//! # async fn a_framework(_: Incoming<TcpListener>, _shutdown: impl Future<Output = ()>) {}
//! # async fn serve() -> heirloom::Result<()> {
//! let mut starting = heirloom::tokio::start(heirloom::Handoff::at("/run/shop/handoff.sock")).await?;
//! let web = starting.tcp_listener("web", "0.0.0.0:8080")?;
//! let serving = starting.ready().await?;
//! let life = serving.life();
//! tokio::spawn(a_framework(serving.incoming(&web), life.closing()));
//! serving.run().await?; // until this process may exit
//! # Ok(())
//! # }
//! ```
//!
//! `examples/axum.rs` and `examples/grpc.rs` are whole programs.

mod incoming;
mod life;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

pub use self::incoming::{Incoming, Leased};
pub use self::life::Life;

use self::life::Teller;
use crate::drain::Summary;
use crate::error::{Error, Result};
use crate::handoff::{Handoff, Stopper};
use crate::protocol::predecessor::Reason;
use crate::serving::{Event, Lease};
use crate::starting::LastHolder;
use crate::status::PredecessorEnd;
use crate::sys;

/// Starts: as the successor of the process that serves, or as the first.
///
/// # Errors
/// As for [`Handoff::start`].
pub async fn start(handoff: Handoff) -> Result<Starting> {
    let mut joining = handoff.begin()?;
    let mut waiter = Waiter::on(&joining)?;
    loop {
        if joining.process()? {
            match joining.started() {
                Ok(inner) => return Ok(Starting { inner, waiter }),
                Err(early) => joining = early,
            }
        }
        waiter.readable().await?;
    }
}

/// A process that claims names and warms up; see [`crate::Starting`].
#[derive(Debug)]
pub struct Starting {
    inner: crate::Starting,
    waiter: Waiter,
}

impl Starting {
    /// The value behind this face: for everything that does not wait.
    pub fn inner(&mut self) -> &mut crate::Starting {
        &mut self.inner
    }

    /// The TCP listener of that name; see [`crate::Starting::tcp_listener`].
    ///
    /// # Errors
    /// As there.
    pub fn tcp_listener(&mut self, name: &str, address: impl ToSocketAddrs) -> Result<TcpListener> {
        self.inner().tcp_listener(name, address).map(TcpListener::from)
    }

    /// The Unix stream listener of that name; see [`crate::Starting::unix_listener`].
    ///
    /// # Errors
    /// As there.
    pub fn unix_listener(&mut self, name: &str, path: impl AsRef<Path>) -> Result<UnixListener> {
        self.inner().unix_listener(name, path).map(UnixListener::from)
    }

    /// Runs a future, a warm-up for example, while the control socket is answered and the predecessor is heard.
    ///
    /// # Errors
    /// The end of the attempt; then the future is dropped.
    pub async fn during<F: Future>(&mut self, future: F) -> Result<F::Output> {
        let mut future = std::pin::pin!(future);
        loop {
            self.inner.process()?;
            match race(self.waiter.readable(), future.as_mut()).await {
                Either::First(ready) => ready?,
                Either::Second(output) => return Ok(output),
            }
        }
    }

    /// Gives the attempt up, on purpose; see [`crate::Starting::abort`].
    ///
    /// # Errors
    /// As there.
    pub fn abort(self) -> std::result::Result<(), LastHolder> {
        self.inner.abort()
    }

    /// Says that this process is ready, and waits until it owns.
    ///
    /// # Errors
    /// As for [`crate::Starting::ready`].
    pub async fn ready(self) -> Result<Serving> {
        let mut committing = self.inner.begin_ready()?;
        let mut waiter = self.waiter;
        loop {
            if committing.process()? {
                match committing.serving() {
                    Ok(inner) => {
                        let teller = Teller::new(inner.generation(), inner.driver.wake().clone());
                        return Ok(Serving { inner, waiter, teller });
                    }
                    Err(early) => committing = early,
                }
            }
            waiter.readable().await?;
        }
    }
}

/// The owner of the service; see [`crate::Serving`].
#[derive(Debug)]
pub struct Serving {
    inner: crate::Serving,
    waiter: Waiter,
    teller: Teller,
}

impl Serving {
    /// The value behind this face: for everything that does not wait. An event that is taken from it by hand is not told
    /// to any [`Life`] or [`Incoming`].
    pub fn inner(&mut self) -> &mut crate::Serving {
        &mut self.inner
    }

    /// The generation that this process owns, or owned last.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.generation()
    }

    /// Why this process has been told to leave; `None` while it serves.
    #[must_use]
    pub fn left(&self) -> Option<Reason> {
        self.inner.left()
    }

    /// Counts as in flight until it is dropped.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.inner.lease()
    }

    /// A handle that asks this process to leave, from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.inner.stopper()
    }

    /// What this process is at, for other tasks.
    #[must_use]
    pub fn life(&self) -> Life {
        self.teller.life().clone()
    }

    /// The connections of a listener, for a server that accepts by itself. Meanwhile this value is waited on, by
    /// [`run`](Serving::run) or [`until_left`](Serving::until_left).
    #[must_use]
    pub fn incoming<L: Accept + Clone>(&self, listener: &L) -> Incoming<L> {
        Incoming::new(listener.clone(), self.life())
    }

    /// Does all that a process has to do whose connections are accepted from an [`Incoming`]: waits until it is told to
    /// leave, drains, and takes the service up again should its successor die. What comes back is the end: exit.
    ///
    /// [`Event::Release`] is answered at once, as in [`accept`](Serving::accept).
    ///
    /// # Errors
    /// As for [`crate::Serving::process`].
    pub async fn run(mut self) -> Result<Summary> {
        loop {
            self.until_left().await?;
            match self.drain().await? {
                Drained::Done(summary) => return Ok(summary),
                Drained::Resumed(again) => self = again,
            }
        }
    }

    /// Waits until this process is told to leave: then [`drain`](Serving::drain). The first half of
    /// [`run`](Serving::run), for a server that is made anew when the service comes back. Safe to cancel.
    ///
    /// # Errors
    /// As for [`crate::Serving::process`].
    pub async fn until_left(&mut self) -> Result<Reason> {
        loop {
            if let Some(reason) = self.inner.left() {
                return Ok(reason);
            }
            if self.event().await? == Event::Release {
                self.inner.released()?;
            }
        }
    }

    /// Waits until the process has ended from which this one has taken the service over, for so long at most; see
    /// [`crate::Serving::wait_for_predecessor`]. Safe to cancel.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_for_predecessor(&mut self, within: Duration) -> Result<Option<PredecessorEnd>> {
        self.inner.driver.await_elder(within)?;
        loop {
            if let Some(end) = self.inner.driver.look_for_elder()? {
                return Ok(end);
            }
            self.waiter.readable().await?;
        }
    }

    /// The next event, where the accept loop is somebody else's. Safe to cancel.
    ///
    /// # Errors
    /// As for [`crate::Serving::process`].
    pub async fn event(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.process()? {
                return Ok(event);
            }
            self.waiter.readable().await?;
        }
    }

    /// The next event that is there already; every [`Life`] hears of it.
    fn process(&mut self) -> Result<Option<Event>> {
        let event = self.inner.process()?;
        match event {
            Some(Event::StandBy) => self.teller.stands_by(),
            Some(Event::Resume) => self.teller.resumed(self.inner.generation()),
            Some(Event::Leave(reason)) => self.teller.left(reason),
            Some(Event::Release | Event::PredecessorGone(_)) | None => {}
        }
        Ok(event)
    }

    /// The next connection; `None` when somebody else serves now, or a stop was asked for: then
    /// [`drain`](Serving::drain). Safe to cancel.
    ///
    /// Standing by and resuming are dealt with in here, and [`Event::Release`] is answered at once: a program with
    /// exclusive work uses [`event`](Serving::event).
    ///
    /// # Errors
    /// As for [`crate::Serving::accept`].
    pub async fn accept<L: Accept>(&mut self, listener: &L) -> Result<Option<(L::Stream, L::Address)>> {
        loop {
            while let Some(event) = self.process()? {
                if event == Event::Release {
                    self.inner.released()?;
                }
            }
            let accepted = match self.inner.left() {
                Some(reason) if reason.is_served() => {
                    listener.forget();
                    return Ok(None);
                }
                None if self.inner.stands_by() => {
                    listener.forget();
                    self.waiter.readable().await?;
                    continue;
                }
                // Nobody comes after this process: what waits in the queue is served before it closes.
                Some(_) => match listener.accept_now() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    accepted => accepted,
                },
                None => match race(self.waiter.readable(), listener.accept()).await {
                    Either::First(ready) => {
                        ready?;
                        continue;
                    }
                    Either::Second(accepted) => accepted,
                },
            };
            match accepted {
                Ok(accepted) => return Ok(Some(accepted)),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(Error::io("accept a connection", error)),
                },
            }
        }
    }

    /// Waits until nothing is in flight any more, or until the drain deadline; see [`crate::Serving::drain`].
    ///
    /// # Errors
    /// As there.
    pub async fn drain(self) -> Result<Drained> {
        let (teller, mut waiter) = (self.teller, self.waiter);
        if self.inner.left().is_none() {
            teller.left(Reason::Stopped);
        }
        let mut draining = self.inner.begin_drain()?;
        loop {
            if draining.process()? {
                match draining.drained() {
                    Ok(crate::Drained::Done(summary)) => return Ok(Drained::Done(summary)),
                    Ok(crate::Drained::Resumed(inner)) => {
                        teller.resumed(inner.generation());
                        return Ok(Drained::Resumed(Serving { inner, waiter, teller }));
                    }
                    Err(early) => draining = early,
                }
            }
            waiter.readable().await?;
        }
    }
}

/// What a drain came to; see [`crate::Drained`].
#[derive(Debug)]
#[must_use = "a service may have come back: accept again"]
pub enum Drained {
    /// Nothing is left to do: exit.
    Done(Summary),
    /// The successor died, and this process owns again. Accept.
    Resumed(Serving),
}

/// A listener that [`Serving::accept`] knows how to accept from.
pub trait Accept {
    /// What an accepted connection is.
    type Stream;
    /// Where it comes from.
    type Address;

    /// Waits for a connection. Safe to cancel.
    ///
    /// # Errors
    /// Whatever accept(2) says.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Address)>> + Send;

    /// accept(2), without waiting.
    ///
    /// # Errors
    /// `WouldBlock` where nothing waits; whatever accept(2) says.
    fn accept_now(&self) -> io::Result<(Self::Stream, Self::Address)>;

    /// Stops waiting: another process serves. A later accept waits again.
    fn forget(&self);
}

/// A TCP listener that waits with the runtime. Clones share the one descriptor.
#[derive(Clone, Debug)]
pub struct TcpListener {
    registration: Arc<Registration<std::net::TcpListener>>,
}

impl TcpListener {
    /// Where it is bound.
    ///
    /// # Errors
    /// Whatever getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.registration.shared.local_addr()
    }
}

impl From<Arc<std::net::TcpListener>> for TcpListener {
    /// A listener that was claimed through [`Starting::inner`] or [`Serving::inner`].
    fn from(shared: Arc<std::net::TcpListener>) -> TcpListener {
        TcpListener { registration: Registration::of(shared) }
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Address = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let io = self.registration.io()?;
        let (stream, address) = io.async_io(Interest::READABLE, |listener| listener.accept()).await?;
        Ok((tcp(stream)?, address))
    }

    fn accept_now(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = self.registration.shared.accept()?;
        Ok((tcp(stream)?, address))
    }

    fn forget(&self) {
        self.registration.forget();
    }
}

fn tcp(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// A Unix stream listener that waits with the runtime. Clones share the one descriptor.
#[derive(Clone, Debug)]
pub struct UnixListener {
    registration: Arc<Registration<std::os::unix::net::UnixListener>>,
}

impl From<Arc<std::os::unix::net::UnixListener>> for UnixListener {
    /// A listener that was claimed through [`Starting::inner`] or [`Serving::inner`].
    fn from(shared: Arc<std::os::unix::net::UnixListener>) -> UnixListener {
        UnixListener { registration: Registration::of(shared) }
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    type Address = std::os::unix::net::SocketAddr;

    async fn accept(&self) -> io::Result<(UnixStream, std::os::unix::net::SocketAddr)> {
        let io = self.registration.io()?;
        let (stream, address) = io.async_io(Interest::READABLE, |listener| listener.accept()).await?;
        Ok((unix(stream)?, address))
    }

    fn accept_now(&self) -> io::Result<(UnixStream, std::os::unix::net::SocketAddr)> {
        let (stream, address) = self.registration.shared.accept()?;
        Ok((unix(stream)?, address))
    }

    fn forget(&self) {
        self.registration.forget();
    }
}

fn unix(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// A listener's registration with the runtime, made at its first accept and not before: a socket that is bound and does
/// not yet listen reports a hang-up, which tokio keeps for ever, and every later wait would end at once.
///
/// It is taken back when another process serves: an epoll entry of this one would be woken for that one's connections. An
/// accept that still waits keeps it until then, and whoever accepts anew meanwhile shares it: there is one to a descriptor.
#[derive(Debug)]
struct Registration<T: AsRawFd> {
    shared: Arc<T>,
    io: Mutex<Registered<T>>,
}

#[derive(Debug)]
struct Registered<T: AsRawFd> {
    kept: Option<Arc<AsyncFd<Arc<T>>>>,
    last: Weak<AsyncFd<Arc<T>>>,
}

impl<T: AsFd + AsRawFd> Registration<T> {
    fn of(shared: Arc<T>) -> Arc<Registration<T>> {
        Arc::new(Registration { shared, io: Mutex::new(Registered { kept: None, last: Weak::new() }) })
    }

    fn io(&self) -> io::Result<Arc<AsyncFd<Arc<T>>>> {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        let registered = match io.last.upgrade() {
            Some(registered) => registered,
            None => Arc::new(sys::register(self.shared.clone())?),
        };
        io.last = Arc::downgrade(&registered);
        io.kept = Some(registered.clone());
        Ok(registered)
    }

    fn forget(&self) {
        self.io.lock().unwrap_or_else(PoisonError::into_inner).kept = None;
    }
}

enum Either<A, B> {
    First(A),
    Second(B),
}

/// Whichever is ready first; the first is asked first. tokio's macro for this would bring a proc-macro crate along.
async fn race<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> Either<A, B> {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(output));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// The handoff's descriptor, registered with the runtime: a duplicate, so that the stages can be moved and lent freely.
#[derive(Debug)]
struct Waiter {
    io: AsyncFd<OwnedFd>,
}

impl Waiter {
    fn on(stage: &impl AsFd) -> Result<Waiter> {
        let registering = |error| Error::io("register with the runtime", error);
        let duplicate = stage.as_fd().try_clone_to_owned().map_err(registering)?;
        Ok(Waiter { io: sys::register(duplicate).map_err(registering)? })
    }

    /// Waits until the handoff has something to do. The readiness is taken back before it is processed: whatever comes
    /// later is a new edge.
    async fn readable(&mut self) -> Result<()> {
        let ready = self.io.readable().await;
        let mut guard = ready.map_err(|error| Error::io("wait for the runtime", error))?;
        guard.clear_ready();
        Ok(())
    }
}
