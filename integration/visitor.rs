//! Clients of the service that the puppets are: one that asks once, and one that never stops.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::puppet::PATIENCE;

/// What an owner says to each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) generation: u64,
    pub(crate) pid: u32,
}

impl Answer {
    fn parse(line: &str) -> Answer {
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap_or_else(|| panic!("an answer of {line:?}"));
        Answer { version: next().to_owned(), generation: next().parse().unwrap(), pid: next().parse().unwrap() }
    }
}

/// Connects and waits for the answer.
#[track_caller]
pub(crate) fn visit(address: &str) -> Answer {
    answer(TcpStream::connect(address).unwrap())
}

#[track_caller]
pub(crate) fn visit_unix(path: impl AsRef<Path>) -> Answer {
    answer_unix(UnixStream::connect(path).unwrap())
}

/// The answer to a connection that was made before.
#[track_caller]
pub(crate) fn answer(mut stream: TcpStream) -> Answer {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    Answer::parse(&line)
}

#[track_caller]
pub(crate) fn answer_unix(mut stream: UnixStream) -> Answer {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    Answer::parse(&line)
}

/// What came of many connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) served: u64,
    /// By the generation that answered.
    pub(crate) by: BTreeMap<u64, u64>,
    pub(crate) refused: u64,
    pub(crate) reset: u64,
    /// Accepted, and closed without an answer: what a killed process had in hand.
    pub(crate) cut: u64,
    pub(crate) other: Vec<String>,
}

/// A client that opens one connection after the other.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<Tally>>,
}

impl Load {
    /// The most connections, so that no table of the kernel overflows, and the longest life.
    const MOST: u64 = 60_000;
    const LONGEST: Duration = Duration::from_secs(60);

    pub(crate) fn on(address: &str) -> Load {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, address) = (stop.clone(), served.clone(), address.to_owned());
        let thread = std::thread::spawn(move || {
            let end = Instant::now() + Load::LONGEST;
            let mut tally = Tally::default();
            while !stopped.load(Ordering::SeqCst) && Instant::now() < end && tally.served < Load::MOST {
                Load::once(&address, &mut tally);
                counted.store(tally.served, Ordering::SeqCst);
                // Some thousand connections a second are load enough.
                if tally.served.is_multiple_of(4) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            tally
        });
        Load { stop, served, thread: Some(thread) }
    }

    fn once(address: &str, tally: &mut Tally) {
        let outcome = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut line = String::new();
            stream.read_to_string(&mut line)?;
            // Closes without TIME_WAIT: both sides have said all.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(line)
        });
        match outcome {
            Ok(line) if line.is_empty() => tally.cut += 1,
            Ok(line) => {
                tally.served += 1;
                *tally.by.entry(Answer::parse(&line).generation).or_default() += 1;
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => tally.refused += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => tally.reset += 1,
            Err(error) => tally.other.push(error.to_string()),
        }
    }

    /// Waits until so many more connections were served.
    #[track_caller]
    pub(crate) fn flows(&self, more: u64) {
        let from = self.served.load(Ordering::SeqCst);
        let end = Instant::now() + PATIENCE;
        while self.served.load(Ordering::SeqCst) < from + more {
            let over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!over && Instant::now() < end, "the load stands still at {from}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Whether somebody listens there, by the kernel's table: who connects to find out fills the queue of one that nobody
/// serves.
pub(crate) fn is_listening(address: &str) -> bool {
    let address: std::net::SocketAddr = address.parse().unwrap();
    let sockets = procfs::net::tcp().unwrap();
    sockets.iter().any(|socket| socket.state == procfs::net::TcpState::Listen && socket.local_address == address)
}

/// The same of a Unix socket.
pub(crate) fn is_listening_unix(path: &Path) -> bool {
    let sockets = procfs::net::unix().unwrap();
    sockets.iter().any(|socket| {
        socket.state == procfs::net::UnixState::UNCONNECTED && socket.path.as_deref().is_some_and(|found| found == path)
    })
}
