//! HTTP clients that load a service at a fixed rate and count what a client would notice.
//!
//! The load is open: each client sends by a schedule that does not wait for the server, and each latency counts from
//! the moment at which the request was *due*. A server that stops for a second is charged for all that should have
//! happened in it, and not for one slow answer only.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST, HeaderMap};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clock::{self, Metronome};

/// What to load, and how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    /// Requests a second, of all clients together.
    pub(crate) rate: u32,
    /// Clients that keep one connection each, for as long as the server lets them.
    pub(crate) keep_alive: u32,
    /// Clients that open a connection for each request.
    pub(crate) new_connection: u32,
    /// A request without an answer for that long is given up and counted as failed.
    pub(crate) answer_within: Duration,
}

impl Plan {
    /// Whether this client of all of them, from 0 on, is one that keeps its connection: they are spread evenly.
    fn keeps(&self, client: u32) -> bool {
        let (kept, all) = (u64::from(self.keep_alive), u64::from(self.keep_alive) + u64::from(self.new_connection));
        let before = |clients: u64| clients * kept / all;
        before(u64::from(client) + 1) > before(client.into())
    }
}

/// The running load.
#[derive(Debug)]
pub(crate) struct Load {
    ledger: Arc<Ledger>,
    clients: JoinSet<()>,
    metronome: Metronome,
    since: Duration,
}

impl Load {
    /// Starts all clients, which take turns in the schedule, and so do the two kinds: where one came after the other, a
    /// new version would wait half a round for the first connection that it could answer on.
    pub(crate) fn start(plan: Plan) -> io::Result<Load> {
        let ledger = Arc::new(Ledger::new().map_err(io::Error::other)?);
        let (metronome, beats) = Metronome::start(plan.rate, plan.keep_alive + plan.new_connection)?;
        let mut clients = JoinSet::new();
        for (n, beats) in (0..).zip(beats) {
            let client = Client { plan, keeps: plan.keeps(n), kept: None };
            clients.spawn(client.run(beats, Arc::clone(&ledger)));
        }
        Ok(Load { ledger, clients, metronome, since: clock::now() })
    }

    /// Counts the requests from now on as touched by a takeover.
    pub(crate) fn takeover_begins(&self) {
        let mut count = self.ledger.count();
        count.in_takeover = true;
        count.window.reset();
    }

    /// Counts the requests from now on as calm again, and tells the latencies of this takeover, in microseconds.
    pub(crate) fn takeover_ends(&self) -> Histogram<u64> {
        let mut count = self.ledger.count();
        count.in_takeover = false;
        count.window.clone()
    }

    /// Takes note that a version has exited: no request that is sent from now on can get a good answer from it.
    pub(crate) fn has_left(&self, version: &str) {
        self.ledger.count().left.insert(version.to_owned(), clock::now());
    }

    /// Waits for the first answer of a version and tells when it came.
    pub(crate) async fn first_answer(&self, version: &str) -> Duration {
        let mut firsts = self.ledger.firsts.subscribe();
        match firsts.wait_for(|firsts| firsts.contains_key(version)).await {
            Ok(firsts) => firsts[version],
            Err(_) => unreachable!("the ledger holds the sender, and this holds the ledger"),
        }
    }

    /// How many versions have answered.
    #[allow(dead_code, reason = "who replaces what does not know its versions by name asks this")]
    pub(crate) fn versions(&self) -> usize {
        self.ledger.firsts.borrow().len()
    }

    /// Waits until more than these versions have answered, and tells when the newest of them did first.
    #[allow(dead_code, reason = "who replaces what does not know its versions by name asks this")]
    pub(crate) async fn another_answers(&self, known: usize) -> Duration {
        let mut firsts = self.ledger.firsts.subscribe();
        match firsts.wait_for(|firsts| firsts.len() > known).await {
            Ok(firsts) => firsts.values().max().copied().unwrap_or_default(),
            Err(_) => unreachable!("the ledger holds the sender, and this holds the ledger"),
        }
    }

    /// Lets each client make the requests that are due, and tells what was counted.
    pub(crate) async fn finish(mut self) -> Tally {
        self.metronome.stop();
        let time = clock::now() - self.since;
        let all = async { while self.clients.join_next().await.is_some() {} };
        let late = timeout(FINISH_WITHIN, all).await.is_err();

        let mut tally = self.ledger.count().tally.clone();
        tally.time = time;
        if late {
            // The service hangs, and each of them waits in vain for one answer after the other.
            tally.failed += 1;
            *tally.failed_by.entry(LATE).or_default() += 1;
            tally.failures.push("the clients could not make all requests in time".to_owned());
        }
        tally
    }
}

/// What all clients together have seen.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// How long there was load.
    pub(crate) time: Duration,
    /// Requests that were sent, or could not be.
    pub(crate) requests: u64,
    /// Those of them that got no whole, good answer.
    pub(crate) failed: u64,
    /// Those of the failed ones whose client keeps its connection.
    pub(crate) failed_keep_alive: u64,
    /// The failed ones by what their client met: [`REFUSED`], [`RESET`], [`CUT`], [`LATE`], [`WRONG`].
    pub(crate) failed_by: BTreeMap<&'static str, u64>,
    /// Good answers by the version that gave them.
    pub(crate) by_version: BTreeMap<String, u64>,
    /// The first few failures in words.
    pub(crate) failures: Vec<String>,
    /// Latencies of good answers away from takeovers, in microseconds.
    pub(crate) calm: Histogram<u64>,
    /// Latencies of good answers to requests that a takeover touched, in microseconds.
    pub(crate) takeovers: Histogram<u64>,
    /// All of these again, by what kind of client asked.
    pub(crate) new_connections: Histogram<u64>,
    pub(crate) kept_alive: Histogram<u64>,
}

/// How many failures are kept in words: enough to see a pattern in.
const FAILURES_KEPT: usize = 10;

/// How long a request may go without an answer where nothing else is said.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long the clients may take for what is due at the end.
const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// What takes longer counts as this, in microseconds: a minute.
const LONGEST_LATENCY: u64 = 60_000_000;

/// Three digits: as exact as anybody reads a latency.
const DIGITS: u8 = 3;

/// Nobody listened.
pub(crate) const REFUSED: &str = "refused";

/// The connection was reset, or closed before the request had left.
pub(crate) const RESET: &str = "reset";

/// The connection ended before the answer did.
pub(crate) const CUT: &str = "cut";

/// There was no answer in time.
pub(crate) const LATE: &str = "late";

/// The answer was not the one to expect, or came from a version that had left; whatever else went wrong, too.
pub(crate) const WRONG: &str = "wrong";

/// Where the clients write down what they see.
#[derive(Debug)]
struct Ledger {
    count: Mutex<Count>,
    /// When each version answered first.
    firsts: watch::Sender<BTreeMap<String, Duration>>,
}

#[derive(Debug)]
struct Count {
    tally: Tally,
    in_takeover: bool,
    /// Latencies of the takeover that goes on, or was the last.
    window: Histogram<u64>,
    /// When each version exited.
    left: BTreeMap<String, Duration>,
}

impl Ledger {
    fn new() -> Result<Ledger, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_LATENCY, DIGITS);
        let tally = Tally {
            time: Duration::ZERO,
            requests: 0,
            failed: 0,
            failed_keep_alive: 0,
            failed_by: BTreeMap::new(),
            by_version: BTreeMap::new(),
            failures: Vec::new(),
            calm: histogram()?,
            takeovers: histogram()?,
            new_connections: histogram()?,
            kept_alive: histogram()?,
        };
        let window = Histogram::new_from(&tally.takeovers);
        let count = Mutex::new(Count { tally, in_takeover: false, window, left: BTreeMap::new() });
        Ok(Ledger { count, firsts: watch::Sender::default() })
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        // Numbers are whole after each addition, so they are worth reading even after a panic elsewhere.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters one request, which was due at `due` and sent at `sent`; `touched` where a takeover was going on then.
    fn enter(&self, client: &Client, due: Duration, sent: Duration, touched: bool, answer: Result<String, Miss>) {
        let at = clock::now();
        let latency = at - due;
        let mut count = self.count();
        let touched = touched || count.in_takeover;
        count.tally.requests += 1;
        let answer = answer.and_then(|version| match count.left.get(&version) {
            Some(left) if *left < sent => {
                Err(Miss { kind: WRONG, words: format!("answered by version {version}, which had left") })
            }
            _ => Ok(version),
        });
        match answer {
            Ok(version) => {
                if touched {
                    count.window.saturating_record(micros(latency));
                    count.tally.takeovers.saturating_record(micros(latency));
                } else {
                    count.tally.calm.saturating_record(micros(latency));
                }
                let kind = if client.keeps { &mut count.tally.kept_alive } else { &mut count.tally.new_connections };
                kind.saturating_record(micros(latency));
                let answers = count.tally.by_version.entry(version.clone()).or_default();
                *answers += 1;
                if *answers == 1 {
                    self.firsts.send_modify(|firsts| {
                        firsts.insert(version, at);
                    });
                }
            }
            Err(Miss { kind: by, words }) => {
                count.tally.failed += 1;
                count.tally.failed_keep_alive += u64::from(client.keeps);
                *count.tally.failed_by.entry(by).or_default() += 1;
                if count.tally.failures.len() < FAILURES_KEPT {
                    let kind = if client.keeps { "keep-alive" } else { "new connection" };
                    let when = if touched { "in a takeover" } else { "in a calm stretch" };
                    count.tally.failures.push(format!("{kind}, {when}: {words}"));
                }
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Why a request got no whole, good answer.
#[derive(Debug)]
struct Miss {
    kind: &'static str,
    words: String,
}

impl<E: Error + 'static> From<E> for Miss {
    /// An error with all its causes: hyper's own words alone say little.
    fn from(error: E) -> Miss {
        let causes: Vec<&dyn Error> =
            std::iter::successors(Some(&error as &dyn Error), |&error| error.source()).collect();
        let words = causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let io = causes.iter().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let hyper = causes.iter().find_map(|cause| cause.downcast_ref::<hyper::Error>());
        let kind = match io {
            Some(ErrorKind::ConnectionRefused) => REFUSED,
            Some(ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe) => RESET,
            Some(ErrorKind::UnexpectedEof) => CUT,
            _ if hyper.is_some_and(hyper::Error::is_incomplete_message) => CUT,
            _ if hyper.is_some_and(hyper::Error::is_canceled) => RESET,
            _ => WRONG,
        };
        Miss { kind, words }
    }
}

/// One client, with at most one request under way.
#[derive(Debug)]
struct Client {
    plan: Plan,
    /// Whether it uses a connection for as long as the server lets it.
    keeps: bool,
    kept: Option<Sender>,
}

type Sender = SendRequest<Empty<Bytes>>;

impl Client {
    async fn run(mut self, mut beats: UnboundedReceiver<Duration>, ledger: Arc<Ledger>) {
        while let Some(due) = beats.recv().await {
            let touched = ledger.count().in_takeover;
            let sent = clock::now();
            let within = self.plan.answer_within;
            let answer = match timeout(within, self.ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(Miss { kind: LATE, words: format!("no answer within {within:?}") }),
            };
            ledger.enter(&self, due, sent, touched, answer);
        }
    }

    /// Makes one request and tells which version answered.
    ///
    /// A kept connection is used without a look at whether it still stands, and nothing is tried twice: what a smart
    /// pool would hide from its user is what is counted here.
    async fn ask(&mut self) -> Result<String, Miss> {
        let mut sender = match self.kept.take() {
            Some(sender) => sender,
            None => connect(self.plan.address).await?,
        };
        let mut request = Request::get("/").header(HOST, self.plan.address.to_string());
        if !self.keeps {
            // It is the server that closes then, so that neither side has to cut anything off.
            request = request.header(CONNECTION, "close");
        }
        if sender.ready().await.is_err() {
            return Err(Miss { kind: RESET, words: "the server had closed the connection".to_owned() });
        }
        let response = sender.send_request(request.body(Empty::new())?).await?;
        if response.status() != StatusCode::OK {
            return Err(Miss { kind: WRONG, words: format!("answered with {}", response.status()) });
        }
        let closes = says_close(response.headers());
        let body = response.into_body().collect().await?.to_bytes();
        let answer: Answer = serde_json::from_slice(&body)?;
        if self.keeps && !closes {
            self.kept = Some(sender);
        }
        Ok(answer.version)
    }
}

/// What of the service's answer matters here.
#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
}

async fn connect(address: SocketAddr) -> Result<Sender, Miss> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with its sender or with the server; an error of it reaches the request that it hits.
    tokio::spawn(connection);
    Ok(sender)
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}
