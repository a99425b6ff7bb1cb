//! The examples, as the processes that they are, under load through takeovers: what their clients see is the test.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::puppet::PATIENCE;

/// The program of an example, which `cargo test` builds beside this one.
fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is missing: `cargo test` builds it, and so does `cargo build --examples`", name);
    program
}

/// A folder for one family, and how its versions are started.
struct Family {
    folder: tempfile::TempDir,
    name: &'static str,
    listen: String,
    drain: &'static str,
    versions: usize,
}

impl Family {
    fn of(name: &'static str) -> Family {
        let folder = tempfile::tempdir().unwrap();
        Family { folder, name, listen: "127.0.0.1:0".to_owned(), drain: "20s", versions: 0 }
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("handoff.sock")
    }

    /// Starts the next version, and waits until it serves.
    #[track_caller]
    fn next(&mut self) -> Version {
        self.next_at("serving ")
    }

    /// The same, where these words stand before its address.
    #[track_caller]
    fn next_at(&mut self, words: &str) -> Version {
        self.versions += 1;
        let mut child = Command::new(program(self.name))
            .arg("--control")
            .arg(self.control())
            .args(["--listen", &self.listen, "--drain", self.drain, "--app-version", &self.versions.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut version = Version { child, lines, address: String::new() };
        let line = version.says(words);
        version.address = line.split(words).nth(1).unwrap().split(' ').next().unwrap().to_owned();
        version
    }
}

/// A running version.
struct Version {
    child: Child,
    lines: Receiver<String>,
    address: String,
}

impl Version {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn inet(&self) -> SocketAddr {
        self.address.parse().unwrap()
    }

    /// The next line that has this in it.
    #[track_caller]
    fn says(&self, words: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            match line {
                Ok(line) if line.contains(words) => return line,
                Ok(_) => {}
                Err(error) => panic!("it never said {words:?}: {error}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    fn finishes(mut self) {
        self.says("done");
        assert!(self.ends().success());
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What clients have seen so far.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answers: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Seen {
    fn note(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => drop(self.answers.fetch_add(1, Ordering::SeqCst)),
            Err(failure) => self.failures.lock().unwrap().push(failure),
        }
    }

    /// Waits until there were so many more answers.
    #[track_caller]
    fn flows(&self, more: usize) {
        let (from, end) = (self.answers.load(Ordering::SeqCst), Instant::now() + PATIENCE);
        while self.answers.load(Ordering::SeqCst) < from + more {
            assert!(Instant::now() < end, "the load stands still: {:?}", self.failures.lock().unwrap());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Clients in threads, each of which does the same again and again.
struct Load {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn new() -> Load {
        Load { seen: Arc::default(), threads: Vec::new() }
    }

    /// Adds a client, which pauses between two requests.
    fn client(&mut self, pause: Duration, mut request: impl FnMut() -> Result<(), String> + Send + 'static) {
        let seen = self.seen.clone();
        self.threads.push(thread::spawn(move || {
            while !seen.stop.load(Ordering::SeqCst) {
                seen.note(request());
                thread::sleep(pause);
            }
        }));
    }

    /// Ends the load: how many answers there were, and no failure.
    #[track_caller]
    fn ends_well(self) -> usize {
        self.seen.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let failures = self.seen.failures.lock().unwrap();
        let answers = self.seen.answers.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "{} of {} failed: {:?}", failures.len(), answers + failures.len(), failures);
        answers
    }
}

/// A client of HTTP/1.1 that keeps its connection until it is told not to, and tries nothing twice: a client with retries
/// would hide what this is about.
struct Keeper {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

#[derive(Debug)]
struct Answer {
    identity: serde_json::Value,
    /// The server said `Connection: close`.
    last: bool,
}

impl Keeper {
    fn of(address: SocketAddr) -> Keeper {
        Keeper { address, stream: None }
    }

    fn get(&mut self, path: &str) -> std::io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n").as_bytes())?;
        let (mut length, mut last, mut line) = (0, false, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            match line.split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("connection", "close")) => last = true,
                None if line.is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if !last {
            self.stream = Some(stream);
        }
        Ok(Answer { identity: serde_json::from_slice(&body)?, last })
    }
}

/// A load of kept-alive and of new connections.
fn http_load(address: SocketAddr) -> Load {
    let mut load = Load::new();
    for number in 0..6 {
        let mut keeper = Keeper::of(address);
        // Different pauses: in every takeover some are idle, and some in the middle of a request.
        load.client(Duration::from_millis(1 + number * 4), move || match keeper.get("/") {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("kept alive: {error}")),
        });
    }
    for _ in 0..2 {
        load.client(Duration::from_millis(2), move || {
            Keeper::of(address).get("/").map(drop).map_err(|error| format!("new connection: {error}"))
        });
    }
    load
}

/// Idle connections stay open until their next request, which is answered with `Connection: close`.
#[test]
fn axum_loses_no_request_in_ten_takeovers() {
    let mut family = Family::of("axum");
    let mut current = family.next();
    let address = current.inet();
    let load = http_load(address);
    for _ in 0..10 {
        load.seen.flows(50);
        let slow = thread::spawn(move || Keeper::of(address).get("/slow/150").unwrap());
        let mut idle = Keeper::of(address);
        let before = idle.get("/").unwrap();
        assert!(!before.last);
        let old = std::mem::replace(&mut current, family.next());
        // Its request is on its way long after the successor has begun to serve.
        load.seen.flows(50);
        let told = idle.get("/").unwrap();
        assert_eq!((&told.identity["pid"], told.last), (&before.identity["pid"], true));
        let moved = idle.get("/").unwrap();
        assert_eq!((&moved.identity["pid"], moved.last), (&current.pid().into(), false));
        assert_eq!(slow.join().unwrap().identity["pid"], old.pid());
        old.finishes();
    }
    let answers = load.ends_well();
    println!("axum: {answers} requests in 10 takeovers");
}

#[test]
fn axum_is_done_with_idle_connections_at_the_drain_deadline_and_at_once_after_a_stop() {
    let mut family = Family::of("axum");
    family.drain = "300ms";
    let mut old = family.next();
    let mut idle = Keeper::of(old.inet());
    idle.get("/").unwrap();
    let new = family.next();
    old.says("the drain deadline cut off 1 connections");
    assert!(old.ends().success());
    assert!(idle.get("/").is_err());

    family.drain = "60s";
    let newest = family.next();
    new.finishes();
    let mut idle = Keeper::of(newest.inet());
    idle.get("/").unwrap();
    newest.signal(Signal::SIGTERM);
    newest.finishes();
}

/// The successor dies while this one drains: the same call of `axum::serve` accepts again.
#[test]
fn axum_takes_the_service_up_again() {
    let mut family = Family::of("axum");
    let first = family.next();
    let address = first.inet();
    let mut idle = Keeper::of(address);
    idle.get("/").unwrap();
    let mut second = family.next();
    // Both accept for a moment, until the first has heard that the second owns.
    let end = Instant::now() + PATIENCE;
    while Keeper::of(address).get("/").unwrap().identity["generation"] != 2 {
        assert!(Instant::now() < end, "the second never answers");
    }
    second.signal(Signal::SIGKILL);
    second.ends();
    let again = Keeper::of(address).get("/").unwrap();
    assert_eq!((&again.identity["pid"], &again.identity["generation"]), (&first.pid().into(), &3.into()));
    assert!(!idle.get("/").unwrap().last, "this connection is not on its way out any more");
    drop(idle);
    let third = family.next();
    first.finishes();
    drop(third);
}

/// A stop closes connections that are idle. One whose first request has not arrived is none of them: it was accepted, so
/// its client is answered.
#[test]
fn http_answers_the_first_request_of_all_that_it_accepted_before_a_stop() {
    let mut family = Family::of("http");
    family.drain = "60s";
    let server = family.next_at("has the listener at ");
    server.says("serving as");
    let mut idle = Keeper::of(server.inet());
    idle.get("/").unwrap();
    let mut silent = TcpStream::connect(server.inet()).unwrap();
    let mut begun = TcpStream::connect(server.inet()).unwrap();
    begun.write_all(b"GET / HTTP").unwrap();
    let accepted = || heirloom::Client::connect(family.control(), PATIENCE).unwrap().status().unwrap().in_flight;
    let end = Instant::now() + PATIENCE;
    while accepted() < 3 {
        assert!(Instant::now() < end, "it accepted {} of 3", accepted());
    }
    server.signal(Signal::SIGTERM);
    server.says("stopping");
    let error = idle.stream.as_mut().unwrap().read(&mut [0]);
    assert_eq!(error.unwrap(), 0, "an idle connection ends at once");
    silent.write_all(b"GET / HTTP").unwrap();
    for mut stream in [begun, silent] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"/1.1\r\nhost: shop\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let answer = answer.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer:?}");
    }
    server.finishes();
}

mod grpc {
    use super::*;
    use futures_util::StreamExt;
    use tonic::transport::{Channel, Endpoint};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;

    /// Whether no server has seen a call: its connection said goodbye while the call was still in the client. gRPC has such
    /// calls made again without a word; tonic leaves that to its user.
    fn unseen(status: &tonic::Status) -> bool {
        let first = std::error::Error::source(status);
        std::iter::successors(first, |error| error.source()).any(|error| {
            error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
                || error.downcast_ref::<h2::Error>().is_some_and(|error| error.is_go_away() && error.is_remote())
        })
    }

    /// Calls, on a connection that is kept or on a new one each time. Whatever has left it must be answered.
    async fn client(endpoint: Endpoint, keeps: bool, pause: Duration, seen: Arc<Seen>) -> u32 {
        let (mut kept, mut again) = (None::<HealthClient<Channel>>, 0);
        while !seen.stop.load(Ordering::SeqCst) {
            let outcome = async {
                let mut client = match kept.take() {
                    Some(client) => client,
                    None => HealthClient::new(endpoint.connect().await.map_err(|error| format!("connect: {error:?}"))?),
                };
                let mut called = client.check(HealthCheckRequest::default()).await;
                if called.as_ref().is_err_and(unseen) {
                    again += 1;
                    called = client.check(HealthCheckRequest::default()).await;
                }
                called.map_err(|status| format!("{status:?}"))?;
                kept = keeps.then_some(client);
                Ok(())
            };
            seen.note(outcome.await);
            tokio::time::sleep(pause).await;
        }
        again
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tonic_loses_no_call_in_ten_takeovers() {
        let mut family = Family::of("grpc");
        let mut current = family.next();
        let endpoint = Endpoint::from_shared(format!("http://{}", current.address)).unwrap();
        let load = Load::new();
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..6 {
            let pause = Duration::from_millis(1 + number * 3);
            clients.spawn(client(endpoint.clone(), number > 0, pause, load.seen.clone()));
        }
        let mut watcher = HealthClient::new(endpoint.connect().await.unwrap());
        for _ in 0..10 {
            let mut watch = watcher.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
            let first = watch.next().await.unwrap().unwrap();
            assert_eq!(first.status(), ServingStatus::Serving);
            let (old, next) = tokio::task::block_in_place(|| {
                load.seen.flows(50);
                (current, family.next())
            });
            current = next;
            let last = watch.next().await.unwrap().unwrap();
            assert_eq!(last.status(), ServingStatus::NotServing);
            assert!(watch.next().await.is_none());
            tokio::task::block_in_place(|| {
                old.finishes();
                load.seen.flows(50);
            });
        }
        load.seen.stop.store(true, Ordering::SeqCst);
        let again: u32 = clients.join_all().await.iter().sum();
        let answers = load.ends_well();
        println!("grpc: {answers} calls in 10 takeovers, {again} of them made again");
    }
}

/// Asks numbered questions, a bounded number at a time, so that no queue can overflow; and counts the answers to each.
struct Asker {
    socket: UdpSocket,
    /// Questions by number, for which there is no answer yet.
    open: BTreeSet<u16>,
    /// By number, the generations that answered.
    answered: HashMap<u16, Vec<u64>>,
    /// The generations in the order of their answers.
    order: Vec<u64>,
    next: u16,
}

impl Asker {
    /// Questions under way: far less than the 200 KiB or so of a receive buffer hold, at under 1 KiB each.
    const AT_ONCE: usize = 32;

    fn of(address: SocketAddr) -> Asker {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        Asker { socket, open: BTreeSet::new(), answered: HashMap::new(), order: Vec::new(), next: 0 }
    }

    /// Keeps so many questions under way until it is told to stop, then waits for what is open.
    fn ask(mut self, seen: &Seen) -> Asker {
        use simple_dns::{CLASS, Name, Packet, Question, TYPE};
        let mut buffer = [0; 512];
        loop {
            let over = seen.stop.load(Ordering::SeqCst) || self.next == u16::MAX;
            while !over && self.open.len() < Asker::AT_ONCE && self.next < u16::MAX {
                let mut packet = Packet::new_query(self.next);
                let name = format!("q{}.example", self.next);
                let question = Question::new(Name::new(&name).unwrap(), TYPE::TXT.into(), CLASS::IN.into(), false);
                packet.questions.push(question);
                self.open.insert(self.next);
                self.socket.send(&packet.build_bytes_vec().unwrap()).unwrap();
                self.next += 1;
            }
            // Answers that come twice come late: after the last one, a moment's silence is waited for.
            let patience = if self.open.is_empty() { Duration::from_millis(200) } else { PATIENCE };
            self.socket.set_read_timeout(Some(patience)).unwrap();
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer = Packet::parse(&buffer[..length]).unwrap();
                    self.open.remove(&answer.id());
                    let simple_dns::rdata::RData::TXT(text) = &answer.answers[0].rdata else { panic!("{answer:?}") };
                    let text = String::try_from(text.clone()).unwrap();
                    let generation = text.split("generation=").nth(1).unwrap().split(' ').next().unwrap();
                    let generation = generation.parse().unwrap();
                    self.answered.entry(answer.id()).or_default().push(generation);
                    self.order.push(generation);
                    seen.note(Ok(()));
                }
                Err(_) => return self,
            }
            // Some thousand questions a second are load enough.
            if self.next.is_multiple_of(8) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// No datagram is lost, none is answered twice, and the socket has one reader at a time: no version answers after its
/// successor has begun.
#[test]
fn dns_answers_each_question_once_in_a_hundred_takeovers() {
    let mut family = Family::of("dns");
    let mut current = family.next();
    let address = current.inet();
    let seen = Arc::new(Seen::default());
    let asking = thread::spawn({
        let seen = seen.clone();
        move || Asker::of(address).ask(&seen)
    });
    for _ in 0..100 {
        seen.flows(20);
        std::mem::replace(&mut current, family.next()).finishes();
    }
    seen.flows(20);
    seen.stop.store(true, Ordering::SeqCst);
    let asker = asking.join().unwrap();
    assert!(asker.next < u16::MAX, "the questions ran out before the takeovers");
    assert!(asker.open.is_empty(), "lost: {:?}", asker.open);
    let twice: Vec<_> = asker.answered.iter().filter(|(_, answers)| answers.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(asker.answered.len(), usize::from(asker.next));
    assert!(asker.order.is_sorted(), "two generations read at once");
    assert_eq!(asker.order.last(), Some(&101));
    println!("dns: {} questions in 100 takeovers", asker.next);
}

/// What waits in the queue of a socket that is stopped is answered before the end.
#[test]
fn dns_answers_what_waits_before_it_stops() {
    let mut family = Family::of("dns");
    let only = family.next();
    let mut asker = Asker::of(only.inet());
    only.signal(Signal::SIGSTOP);
    for _ in 0..10 {
        let packet = simple_dns::Packet::new_query(asker.next);
        asker.socket.send(&packet.build_bytes_vec().unwrap()).unwrap();
        asker.next += 1;
    }
    only.signal(Signal::SIGTERM);
    only.signal(Signal::SIGCONT);
    only.finishes();
    asker.socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    let answers = std::iter::from_fn(|| asker.socket.recv(&mut buffer).ok()).count();
    assert_eq!(answers, 10);
}

/// A client of the protocol of `examples/unix.rs`: keeps its connection until it is told to connect again.
struct LineKeeper {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl LineKeeper {
    fn ask(&mut self, line: &str) -> std::io::Result<String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(&self.path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        if !answer.ends_with(&format!(" {line}\n")) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if answer.starts_with("stay ") {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}

#[test]
fn unix_loses_no_line_in_ten_takeovers_and_leaves_no_path() {
    let mut family = Family::of("unix");
    let path = family.folder.path().join("app.sock");
    family.listen = path.to_str().unwrap().to_owned();
    let mut current = family.next();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let first = inode(&path);
    let mut load = Load::new();
    for number in 0..6 {
        let mut keeper = LineKeeper { path: path.clone(), stream: None };
        load.client(Duration::from_millis(1 + number * 4), move || {
            if number < 2 {
                keeper.stream = None;
            }
            keeper.ask("hello").map(drop).map_err(|error| format!("client {number}: {error}"))
        });
    }
    for _ in 0..10 {
        load.seen.flows(50);
        std::mem::replace(&mut current, family.next()).finishes();
    }
    assert_eq!(inode(&path), first, "the path leads to the same socket all the time");
    let uid = format!(" uid={} hello\n", nix::unistd::getuid());
    let mut keeper = LineKeeper { path: path.clone(), stream: None };
    assert_eq!(keeper.ask("hello").unwrap(), format!("stay 11 11{uid}"));
    drop(keeper);
    let answers = load.ends_well();
    println!("unix: {answers} lines in 10 takeovers");
    current.signal(Signal::SIGTERM);
    current.finishes();
    assert!(!path.exists());
}
