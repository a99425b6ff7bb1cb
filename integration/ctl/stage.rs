//! What a test of `ctl` acts on: a place, a service in a thread of the test, and runs of the program.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use heirloom::{Client, Drained, Handoff, Serving, Status, Stopper};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::puppet::{PATIENCE, skip};

/// The program.
pub(crate) const CTL: &str = env!("CARGO_BIN_EXE_ctl");

/// A folder of its own, with the path of a control socket in it.
pub(crate) struct Place {
    pub(crate) folder: Arc<TempDir>,
    pub(crate) socket: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        let folder = Arc::new(TempDir::new().unwrap());
        let socket = folder.path().join("control.sock");
        Place { folder, socket }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CTL);
        // Not by the environment: what ctl starts shall have it from ctl.
        command.arg("--socket").arg(&self.socket).args(arguments).env_remove("HEIRLOOM_SOCKET");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        Running::new(&mut self.command(arguments))
    }

    /// A process that serves in this one: it answers a connection with its version and waits for a line.
    pub(crate) fn serve(&self, version: &str) -> Service {
        Service::at(Place { folder: self.folder.clone(), socket: self.socket.clone() }, version, "web")
    }

    #[track_caller]
    pub(crate) fn status_where(&self, is: impl Fn(&Status) -> bool) -> Status {
        eventually(|| {
            let mut client = Client::connect(&self.socket, PATIENCE).ok()?;
            client.status().ok().filter(&is)
        })
    }
}

/// A generation of a service, in a thread.
pub(crate) struct Service {
    pub(crate) place: Place,
    stopper: Stopper,
    pub(crate) address: SocketAddr,
    pub(crate) admin: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub(crate) fn start() -> Service {
        Service::named("web")
    }

    pub(crate) fn named(name: &str) -> Service {
        Service::at(Place::new(), "one", name)
    }

    fn at(place: Place, version: &str, name: &str) -> Service {
        // The process is the test's own.
        let mut handoff = Handoff::at(&place.socket).app_version(version).process_stays(true);
        let stopper = handoff.stopper().unwrap();
        let (sender, receiver) = channel();
        let (admin, file) = (place.path("admin.sock"), place.path("file"));
        let (name, version) = (name.to_owned(), version.to_owned());
        let thread = thread::spawn(move || {
            let mut starting = handoff.start().unwrap();
            let web = starting.tcp_listener(&name, "127.0.0.1:0").unwrap();
            let admin = starting.unix_listener("admin", admin).unwrap();
            starting.raw("file", || Ok(std::fs::File::create(file)?.into())).unwrap();
            let mut serving = starting.ready().unwrap();
            sender.send((web.local_addr().unwrap(), admin)).unwrap();
            loop {
                accept(&mut serving, &web, &version);
                match serving.drain().unwrap() {
                    Drained::Resumed(again) => serving = again,
                    _ => return,
                }
            }
        });
        let (address, admin) = receiver.recv_timeout(PATIENCE).unwrap();
        Service { place, stopper, address, admin, thread: Some(thread) }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        self.place.run(arguments)
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        self.place.spawn(arguments)
    }

    /// Runs a command that must succeed, with `--json`.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let run = self.run(&[&["--json"], arguments].concat());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{}", run.stdout);
        run.json()
    }

    pub(crate) fn status(&self) -> Status {
        self.place.status_where(|_| true)
    }

    /// A later generation: `ctl` itself, once it owns.
    #[track_caller]
    pub(crate) fn keeper(&self, arguments: &[&str]) -> Running {
        let mut keeper = self.spawn(&[&["handoff", "--commit"], arguments].concat());
        assert!(keeper.line().starts_with("generation"), "{}", keeper.stderr());
        keeper
    }

    /// Waits until this generation has drained: until then it takes the service back from a successor that ends.
    #[track_caller]
    pub(crate) fn left(&self) {
        eventually(|| self.thread.as_ref()?.is_finished().then_some(()));
    }

    /// What the owner answers.
    pub(crate) fn visit(&self) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A connection that is in flight until a line is written to it.
    pub(crate) fn hold(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }

    /// Of the entries, in the order of their names.
    pub(crate) fn inodes(&self) -> [u64; 3] {
        let of = |fd: std::os::fd::BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let file = std::fs::metadata(self.place.path("file")).unwrap().ino();
        [of(self.admin.as_fd()), file, self.web_inode()]
    }

    /// The kernel lists the sockets of this network namespace with their inodes (proc_net_tcp(5)).
    fn web_inode(&self) -> u64 {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let local = format!("0100007F:{:04X}", self.address.port());
        let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let listener = table.lines().map(fields).find(|fields| fields[1] == local && fields[3] == "0A").unwrap();
        listener[9].parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(thread::panicking() || ended.is_ok(), "the service failed");
        }
        // What an upgrade started belongs to nobody: it is stopped where it serves.
        while let Ok(mut owner) = Client::connect(&self.place.socket, PATIENCE) {
            let stopped = owner.stop().and_then(|()| owner.watch());
            while stopped.is_ok() && matches!(owner.next(Some(PATIENCE)), Ok(Some(_))) {}
            if stopped.is_err() {
                break;
            }
        }
    }
}

fn accept(serving: &mut Serving, web: &Arc<TcpListener>, version: &str) {
    while let Some((mut stream, _)) = serving.accept(web).unwrap() {
        let lease = serving.lease();
        let version = version.to_owned();
        thread::spawn(move || {
            // A connection that says nothing is in flight; its end counts as a line.
            let _ = stream.write_all(version.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = BufReader::new(stream).read_line(&mut String::new());
            drop(lease);
        });
    }
}

/// A run of a program that has ended.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Run {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one object on one line: {:?} {}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// A run that goes on. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<BufReader<ChildStderr>>,
}

impl Running {
    pub(crate) fn new(command: &mut Command) -> Running {
        Running::with_output(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// With its output where the test has led it.
    pub(crate) fn with_output(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = child.stderr.take().map(BufReader::new);
        Running { child, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The next line of its stdout; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        line_of(self.stdout.as_mut().unwrap()).trim_end().to_owned()
    }

    #[track_caller]
    pub(crate) fn object(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}; {}", self.stderr()))
    }

    pub(crate) fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        rest
    }

    #[track_caller]
    pub(crate) fn code(&mut self) -> i32 {
        let status = eventually(|| self.child.try_wait().unwrap());
        status.code().unwrap_or_else(|| panic!("{status}"))
    }

    /// Whether a signal that nobody can catch has ended it.
    #[track_caller]
    pub(crate) fn killed(&mut self) -> bool {
        let status = eventually(|| self.child.try_wait().unwrap());
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::SIGKILL as i32)
    }

    /// The next line of its stderr.
    pub(crate) fn talk(&mut self) -> String {
        line_of(self.stderr.as_mut().unwrap())
    }

    /// All that it still said on stderr, once it has ended.
    pub(crate) fn stderr(&mut self) -> String {
        let mut text = String::new();
        let ended = self.child.try_wait().unwrap().is_some();
        if let Some(stderr) = self.stderr.as_mut().filter(|_| ended) {
            stderr.read_to_string(&mut text).unwrap();
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next line of an output; empty at its end. A program that says nothing fails the test, and does not hang it.
#[track_caller]
fn line_of(output: &mut BufReader<impl Read + AsFd>) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if output.buffer().is_empty() {
            let timeout = PollTimeout::try_from(PATIENCE).unwrap();
            let ready = poll(&mut [PollFd::new(output.get_ref().as_fd(), PollFlags::POLLIN)], timeout).unwrap();
            assert!(ready > 0, "waited in vain for a line after {:?}", String::from_utf8_lossy(&line));
        }
        let available = output.fill_buf().unwrap();
        if available.is_empty() {
            break;
        }
        let taken = available.iter().position(|byte| *byte == b'\n').map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..taken]);
        output.consume(taken);
    }
    String::from_utf8(line).unwrap()
}

/// Those of these signals that are not ignored here: what starts the tests in the background ignores SIGINT, a program
/// inherits that, and `ctl` leaves it so.
pub(crate) fn heeded(signals: &[Signal]) -> Vec<Signal> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    let (ignored, heeded): (Vec<_>, Vec<_>) =
        signals.iter().partition(|signal| ignored & (1 << (**signal as i32 - 1)) != 0);
    if !ignored.is_empty() {
        skip(&format!("{ignored:?}, which whatever started the tests ignores"));
    }
    heeded
}

/// Asks until there is an answer: for what has no event that a test could wait for.
#[track_caller]
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether there is a process of that number, a dead one that nobody has reaped included.
pub(crate) fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}
