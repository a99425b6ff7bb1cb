//! A kept-alive service in a thread of a puppet: requests and answers, one a line, over the same connection.
//!
//! The handoff stays in the thread of [`crate::actor`]; so a test that counts the system calls of that thread counts
//! those of the handoff alone, whatever the load on the service is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use heirloom::Lease;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What a client asks on a connection that it keeps.
pub(crate) const ASK: &str = "ask\n";
/// What a client asks that wants one answer and the end.
pub(crate) const ONCE: &str = "once\n";
/// The last word of an answer after which the server closes: the client goes elsewhere with its next request.
pub(crate) const LAST: &str = "last";
/// What the log says before an accept and, where nothing was there, after it.
pub(crate) const ACCEPTING: &str = "?";
pub(crate) const NOTHING: &str = "-";

enum Order {
    /// Accept, and answer with this line. The lease is held until the last connection is gone after a [`Order::Leave`].
    Open(Arc<TcpListener>, String, Lease),
    /// Accept nothing more; each connection that is kept gets one more answer.
    Leave,
    /// Let go of everything at once.
    Close,
}

/// The handle of the thread.
pub(crate) struct Service {
    orders: Sender<Order>,
    bell: PipeWriter,
    connections: Arc<AtomicUsize>,
}

impl Service {
    /// One that writes into a log which connections it has accepted, by the port of the client: before each accept, that
    /// it is about to, and after it, what came.
    pub(crate) fn new(log: &Path) -> Service {
        let (sender, orders) = channel();
        let (ear, bell) = pipe().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let log = File::create(log).unwrap();
        let mut server = Server {
            orders,
            ear,
            log,
            count: connections.clone(),
            open: None,
            line: String::new(),
            lease: None,
            kept: BTreeMap::new(),
            next: 0,
        };
        thread::spawn(move || while server.turn() {});
        Service { orders: sender, bell, connections }
    }

    pub(crate) fn open(&mut self, listener: Arc<TcpListener>, line: String, lease: Lease) {
        self.order(Order::Open(listener, line, lease));
    }

    pub(crate) fn leave(&mut self) {
        self.order(Order::Leave);
    }

    pub(crate) fn close(&mut self) {
        self.order(Order::Close);
    }

    /// How many connections it has at the moment.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn order(&mut self, order: Order) {
        let _ = self.orders.send(order);
        let _ = self.bell.write_all(b"!");
    }
}

/// The thread itself.
struct Server {
    orders: Receiver<Order>,
    ear: PipeReader,
    log: File,
    count: Arc<AtomicUsize>,
    open: Option<Arc<TcpListener>>,
    line: String,
    lease: Option<Lease>,
    kept: BTreeMap<u64, (TcpStream, String)>,
    next: u64,
}

impl Server {
    /// One round; `false` where nobody gives orders any more.
    fn turn(&mut self) -> bool {
        self.count.store(self.kept.len(), Ordering::SeqCst);
        if self.open.is_none() && self.kept.is_empty() {
            self.lease = None;
        }
        let mut waiting = vec![PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
        waiting.extend(self.open.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        waiting.extend(self.kept.values().map(|(stream, _)| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        if poll(&mut waiting, PollTimeout::NONE).is_err() {
            return true;
        }
        let ready: Vec<bool> = waiting.iter().map(|one| one.any().unwrap_or(true)).collect();
        drop(waiting);
        let mut ready = ready.into_iter();
        let rung = ready.next().unwrap_or_default();
        let knocked = self.open.is_some() && ready.next().unwrap_or_default();
        let spoken: Vec<u64> =
            self.kept.keys().copied().zip(ready).filter(|(_, ready)| *ready).map(|(id, _)| id).collect();
        if rung && !self.obey() {
            return false;
        }
        for id in spoken {
            self.talk(id);
        }
        if knocked {
            self.accept();
        }
        true
    }

    fn obey(&mut self) -> bool {
        let mut rings = [0; 64];
        if !matches!(self.ear.read(&mut rings), Ok(1..)) {
            return false;
        }
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Open(listener, line, lease) => {
                    self.open = Some(listener);
                    self.line = line;
                    self.lease = Some(lease);
                }
                Order::Leave => self.open = None,
                Order::Close => {
                    self.open = None;
                    self.kept.clear();
                }
            }
        }
        true
    }

    fn accept(&mut self) {
        let Some(listener) = &self.open else { return };
        self.log.write_all(ACCEPTING.as_bytes()).unwrap();
        match listener.accept() {
            Ok((stream, client)) => {
                self.log.write_all(format!("{}\n", client.port()).as_bytes()).unwrap();
                stream.set_nonblocking(true).unwrap();
                self.kept.insert(self.next, (stream, String::new()));
                self.next += 1;
            }
            // The other side of a takeover took it.
            Err(_) => self.log.write_all(format!("{NOTHING}\n").as_bytes()).unwrap(),
        }
    }

    fn talk(&mut self, id: u64) {
        let Some((stream, heard)) = self.kept.get_mut(&id) else { return };
        let mut buffer = [0; 64];
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => heard.push_str(&String::from_utf8_lossy(&buffer[..count])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(0) | Err(_) => {
                self.kept.remove(&id);
                return;
            }
        }
        let asked = heard.as_str();
        let last = asked == ONCE || self.open.is_none();
        if asked != ONCE && asked != ASK {
            return; // Half a word.
        }
        heard.clear();
        let answer = if last { format!("{} {LAST}\n", self.line) } else { format!("{}\n", self.line) };
        if stream.write_all(answer.as_bytes()).is_err() || last {
            self.kept.remove(&id);
        }
    }
}
