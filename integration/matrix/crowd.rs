//! Clients of the service, for as long as a cell lasts: one opens a connection for each request, one keeps its own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::puppet::PATIENCE;
use crate::service::{ACCEPTING, ASK, LAST, NOTHING, ONCE};

/// A request without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    /// The client's port; `None` where it came to no connection.
    pub(crate) port: Option<u16>,
    pub(crate) what: &'static str,
    kept: bool,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.kept { "a kept connection" } else { "a new connection" };
        write!(f, "{whose} (port {:?}): {}", self.port.unwrap_or_default(), self.what)
    }
}

/// The clients.
pub(crate) struct Crowd {
    stop: Arc<AtomicBool>,
    served: [Arc<AtomicU64>; 2],
    threads: Vec<JoinHandle<Vec<Lost>>>,
}

/// How long the clients ask one request after the other: a takeover is over by then, and what is left is a deadline.
const BUSY: Duration = Duration::from_millis(400);
/// Their pace meanwhile, and afterwards, when many cells do nothing but wait.
const PACES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(25)];

impl Crowd {
    pub(crate) fn on(address: &str) -> Crowd {
        Crowd::busy_for(address, BUSY)
    }

    /// Clients that keep up their pace for so long.
    pub(crate) fn busy_for(address: &str, busy: Duration) -> Crowd {
        let stop = Arc::new(AtomicBool::new(false));
        let served = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        let threads = [false, true].map(|kept| {
            let (stop, served, address) = (stop.clone(), served[usize::from(kept)].clone(), address.to_owned());
            let mut client = Client { address, kept, connection: None };
            thread::spawn(move || {
                let began = Instant::now();
                let mut lost = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    match client.ask() {
                        Ok(()) => drop(served.fetch_add(1, Ordering::SeqCst)),
                        Err(failure) => lost.push(failure),
                    }
                    thread::sleep(PACES[usize::from(began.elapsed() > busy)]);
                }
                lost
            })
        });
        Crowd { stop, served, threads: threads.into() }
    }

    /// Waits until each client has had so many more answers.
    #[track_caller]
    pub(crate) fn flows(&self, more: u64) {
        let now = || self.served.each_ref().map(|served| served.load(Ordering::SeqCst));
        let (from, end) = (now(), Instant::now() + PATIENCE);
        while now().iter().zip(from).any(|(now, from)| *now < from + more) {
            assert!(Instant::now() < end, "the clients get no answers: {from:?}, {:?}", now());
            thread::sleep(PACES[0]);
        }
    }

    /// How many answers the clients have had in all.
    pub(crate) fn served(&self) -> u64 {
        self.served.iter().map(|served| served.load(Ordering::SeqCst)).sum()
    }

    /// Waits for the answer to what each client has asked, and gives what was lost in all.
    pub(crate) fn stop(mut self) -> Vec<Lost> {
        self.stop.store(true, Ordering::SeqCst);
        std::mem::take(&mut self.threads).into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct Client {
    address: String,
    kept: bool,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    fn ask(&mut self) -> Result<(), Lost> {
        let kept = self.kept;
        let lost = |port, what| Lost { port, what, kept };
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(&self.address).map_err(|error| lost(None, word(error.kind())))?;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // No TIME_WAIT of so many connections; whoever closes has had his answer, or none comes.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                BufReader::new(stream)
            }
        };
        let port = connection.get_ref().local_addr().ok().map(|address| address.port());
        let request = if kept { ASK } else { ONCE };
        let mut answer = String::new();
        let done = connection
            .get_mut()
            .write_all(request.as_bytes())
            .and_then(|()| connection.read_line(&mut answer))
            .map_err(|error| lost(port, word(error.kind())))?;
        if done == 0 {
            return Err(lost(port, "closed without an answer"));
        }
        if kept && !answer.trim_end().ends_with(LAST) {
            self.connection = Some(connection);
        }
        Ok(())
    }
}

fn word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time",
        _ => "broken",
    }
}

/// What a process had accepted, by its own log.
pub(crate) struct Accepted {
    ports: BTreeSet<u16>,
    /// It was at an accept when it ended: one more, whose port it could not write down.
    one_more: bool,
}

impl Accepted {
    pub(crate) fn of(log: &Path) -> Accepted {
        let text = std::fs::read_to_string(log).unwrap();
        let entries = text.split(ACCEPTING).filter(|entry| !entry.is_empty());
        let ports = entries.map(str::trim_end).filter(|entry| *entry != NOTHING).map(|port| port.parse().unwrap());
        Accepted { ports: ports.collect(), one_more: text.ends_with(ACCEPTING) }
    }

    /// Whether this loss is that of a connection which the process had in its hands.
    pub(crate) fn explains(&mut self, lost: &Lost) -> bool {
        let Some(port) = lost.port.filter(|_| lost.what != "no answer in time") else { return false };
        self.ports.contains(&port) || std::mem::take(&mut self.one_more)
    }
}
