//! Clients beside the HTTP load: one that opens a connection of lines again and again, and one that sends datagrams and
//! holds the answers against each other.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UdpSocket, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::failure::Failure;
use crate::ledger::{Entry, LENGTH};
use crate::load::{CUT, LATE, REFUSED, RESET, WRONG};

/// The running clients.
#[derive(Debug)]
pub(crate) struct Clients {
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What they have seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) lines: u64,
    pub(crate) datagrams: u64,
    pub(crate) failed_by: BTreeMap<&'static str, u64>,
    /// The first few failures in words.
    pub(crate) failures: Vec<String>,
}

/// Two processes did what one may do: datagrams were counted twice, or by one that owned no more.
pub(crate) const TWO_WRITERS: &str = "two writers";

impl Clients {
    pub(crate) fn start(lines: PathBuf, datagrams: SocketAddr) -> Clients {
        let seen = Arc::<Mutex<Seen>>::default();
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(send_lines(lines, Arc::clone(&seen), stop.subscribe()));
        tasks.spawn(send_datagrams(datagrams, Arc::clone(&seen), stop.subscribe()));
        Clients { seen, stop, tasks }
    }

    /// Lets each client end what it has begun, and tells what was seen.
    pub(crate) async fn finish(mut self) -> Seen {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the next turn; `false` where there is none.
async fn turn(turns: &mut tokio::time::Interval, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        biased;
        _ = stop.changed() => false,
        _ = turns.tick() => true,
    }
}

fn turns(period: Duration) -> tokio::time::Interval {
    let mut turns = interval(period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns
}

/// A new connection each time, with one line.
async fn send_lines(path: PathBuf, seen: Arc<Mutex<Seen>>, mut stop: watch::Receiver<bool>) {
    let mut turns = turns(LINE_EVERY);
    while turn(&mut turns, &mut stop).await {
        let answer = timeout(ANSWER_WITHIN, ask(&path, "version")).await;
        let mut seen = lock(&seen);
        seen.lines += 1;
        match answer {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => seen.fails(kind(&error), format!("a line: {error}")),
            Err(_) => seen.fails(LATE, format!("a line: no answer within {ANSWER_WITHIN:?}")),
        }
    }
}

/// Asks one question on a new connection. All answers are numbers.
pub(crate) async fn ask(path: &Path, question: &str) -> io::Result<u64> {
    let mut stream = BufReader::new(UnixStream::connect(path).await?);
    stream.write_all(format!("{question}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    match answer.trim_end().parse() {
        Ok(number) if answer.ends_with('\n') => Ok(number),
        _ if answer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer is {answer:?}"))),
    }
}

/// One datagram at a time. Each is answered with a count: it must be the next one, and its generation no earlier one.
///
/// This client is the only one, and none of its datagrams is ever read by a process that is killed: so not one may be
/// lost, nor counted twice.
async fn send_datagrams(to: SocketAddr, seen: Arc<Mutex<Seen>>, mut stop: watch::Receiver<bool>) {
    let mut turns = turns(DATAGRAM_EVERY);
    let mut last = None;
    let socket = match connected(to).await {
        Ok(socket) => socket,
        Err(error) => return lock(&seen).fails(WRONG, format!("a datagram's socket: {error}")),
    };
    while turn(&mut turns, &mut stop).await {
        let answer = timeout(ANSWER_WITHIN, one_datagram(&socket)).await;
        let mut seen = lock(&seen);
        seen.datagrams += 1;
        let entry = match answer {
            Ok(Ok(entry)) => entry,
            Ok(Err(error)) => {
                seen.fails(kind(&error), format!("a datagram: {error}"));
                continue;
            }
            Err(_) => {
                seen.fails(LATE, format!("a datagram: no answer within {ANSWER_WITHIN:?}"));
                continue;
            }
        };
        if let Some(last) = last.replace(entry)
            && (entry.count != last.count + 1 || entry.generation < last.generation)
        {
            seen.fails(TWO_WRITERS, format!("a datagram: {entry} came after {last}"));
        }
    }
}

async fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(to).await?;
    Ok(socket)
}

async fn one_datagram(socket: &UdpSocket) -> io::Result<Entry> {
    socket.send(b"!").await?;
    let mut bytes = [0; LENGTH];
    match socket.recv(&mut bytes).await? {
        LENGTH => Ok(Entry::from_bytes(bytes)),
        length => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer has {length} bytes"))),
    }
}

impl Seen {
    fn fails(&mut self, kind: &'static str, words: String) {
        *self.failed_by.entry(kind).or_default() += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(words);
        }
    }
}

fn kind(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => REFUSED,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => RESET,
        io::ErrorKind::UnexpectedEof => CUT,
        _ => WRONG,
    }
}

/// A connection that keeps its server busy: it is answered once, and never ends of itself.
#[derive(Debug)]
pub(crate) struct Anchor(BufReader<UnixStream>);

impl Anchor {
    pub(crate) async fn cast(path: PathBuf) -> io::Result<Anchor> {
        let mut stream = BufReader::new(UnixStream::connect(path).await?);
        stream.write_all(b"version\n").await?;
        stream.read_line(&mut String::new()).await?;
        Ok(Anchor(stream))
    }

    /// Ends it, once it is sure that its server had not.
    pub(crate) async fn weigh(self) -> Result<(), Failure> {
        let Anchor(mut stream) = self;
        stream.write_all(b"version\n").await?;
        match stream.read(&mut [0; 16]).await? {
            0 => Err("a connection was cut off by the server that should have kept it".into()),
            _ => Ok(()),
        }
    }
}

/// A new connection of lines comes that often.
const LINE_EVERY: Duration = Duration::from_millis(50);

/// A datagram comes that often.
const DATAGRAM_EVERY: Duration = Duration::from_millis(5);

/// A client without an answer for that long gives up.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How many failures are kept in words.
const FAILURES_KEPT: usize = 10;
