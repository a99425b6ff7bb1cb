//! The process behind a puppet: one loop over stdin, the handoff and the listeners, without a thread.
//!
//! The handoff is driven by hand, as a pollable descriptor with `process`; the other faces have tests of their own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use heirloom::{
    Claim, Committing, Drained, Draining, Error, Event, Handoff, Joining, Kind, Lease, Reason, Serving, Starting,
    Stopper,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{MsgFlags, SockFlag, accept4, send};
use serde_json::{Value, json};

use crate::service::Service;

/// What the lines of a puppet begin with, among those of the test harness.
pub(crate) const MARK: &str = "@ ";
/// The code with which a puppet ends itself that was told `exit-on-term`.
pub(crate) const EXITED: i32 = 70;
/// The name of the listener that a service serves.
const SERVED: &str = "web";

/// Prints the open descriptors of this process, and ends it.
pub(crate) fn tell_descriptors() -> ! {
    println!("\n{MARK}{}", json!({"descriptors": descriptors()}));
    std::process::exit(0)
}

/// Each open descriptor with what it leads to, that of the look itself left out.
fn descriptors() -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        if link.to_str().is_some_and(|link| link.starts_with("/proc/") && link.ends_with("/fd")) {
            continue;
        }
        found.push(format!("{} {}", entry.file_name().display(), link.display()));
    }
    found.sort();
    found
}

/// The descriptors that a program which this process executes would inherit.
fn inheritable() -> Vec<String> {
    let closes = |number: &str| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_none_or(|flags| u32::from_str_radix(flags.trim(), 8).unwrap() & nix::libc::O_CLOEXEC as u32 != 0)
    };
    descriptors().into_iter().filter(|descriptor| !closes(descriptor.split(' ').next().unwrap())).collect()
}

/// Follows commands until stdin ends.
pub(crate) fn run() -> ! {
    let _ = env_logger::Builder::new()
        .filter_module("heirloom", log::LevelFilter::Debug)
        .format_timestamp_millis()
        .try_init();
    Actor::default().run()
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Joining(Joining),
    Starting(Starting),
    Committing(Committing),
    Serving(Serving),
    Draining(Draining),
}

enum Claimed {
    Tcp(Arc<TcpListener>),
    Udp(Arc<UdpSocket>),
    Unix(Arc<UnixListener>),
    Datagram(Arc<UnixDatagram>),
    Seqpacket(Arc<OwnedFd>),
    Raw(Arc<OwnedFd>),
    Connection(Arc<TcpStream>),
}

impl Claimed {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Claimed::Tcp(fd) => fd.as_fd(),
            Claimed::Udp(fd) => fd.as_fd(),
            Claimed::Unix(fd) => fd.as_fd(),
            Claimed::Datagram(fd) => fd.as_fd(),
            Claimed::Seqpacket(fd) | Claimed::Raw(fd) => fd.as_fd(),
            Claimed::Connection(fd) => fd.as_fd(),
        }
    }

    fn accepts(&self) -> bool {
        matches!(self, Claimed::Tcp(_) | Claimed::Unix(_) | Claimed::Seqpacket(_))
    }

    fn address(&self) -> Option<String> {
        match self {
            Claimed::Tcp(fd) => fd.local_addr().ok().map(|address| address.to_string()),
            Claimed::Udp(fd) => fd.local_addr().ok().map(|address| address.to_string()),
            _ => None,
        }
    }
}

type Answer = Result<Value, Error>;

#[derive(Default)]
struct Actor {
    stage: Stage,
    /// The command that began the start, with the options.
    options: Value,
    stopper: Option<Stopper>,
    claimed: BTreeMap<String, Claimed>,
    leases: Vec<Lease>,
    input: Vec<u8>,
    /// Whether the accept loop runs: it does between `serving` and `leave`, unless the options say otherwise.
    accepting: bool,
    cancel_after: Option<u64>,
    /// Serves what is claimed as `web`, where a test wants connections that are kept.
    service: Option<Service>,
    trap: Option<UnixListener>,
    knocking: Option<UnixStream>,
}

impl Actor {
    fn run(mut self) -> ! {
        // What the harness has written so far ends here.
        println!();
        loop {
            self.turn();
            self.accept();
            match &mut self.cancel_after {
                Some(0) => {
                    self.cancel_after = None;
                    self.stopper.iter().for_each(Stopper::stop);
                }
                Some(rounds) => *rounds -= 1,
                None => {}
            }
            let stdin = std::io::stdin();
            let mut waiting = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            match &self.stage {
                Stage::Joining(stage) => waiting.push(PollFd::new(stage.as_fd(), PollFlags::POLLIN)),
                Stage::Starting(stage) if !self.option("deaf") => {
                    waiting.push(PollFd::new(stage.as_fd(), PollFlags::POLLIN));
                }
                Stage::Committing(stage) => waiting.push(PollFd::new(stage.as_fd(), PollFlags::POLLIN)),
                Stage::Serving(stage) => waiting.push(PollFd::new(stage.as_fd(), PollFlags::POLLIN)),
                Stage::Draining(stage) => waiting.push(PollFd::new(stage.as_fd(), PollFlags::POLLIN)),
                Stage::Idle | Stage::Starting(_) => {}
            }
            if self.accepting {
                let listeners = self.accepted().map(|claimed| PollFd::new(claimed.fd(), PollFlags::POLLIN));
                waiting.extend(listeners);
            }
            // A cancel that is due comes, whether anything else does or not.
            let timeout = if self.cancel_after.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
            if poll(&mut waiting, timeout).is_err() {
                continue;
            }
            let spoken = waiting[0].any().unwrap_or(true);
            drop(waiting);
            // What happened before a command was sent is dealt with before that command.
            self.turn();
            if spoken {
                self.listen();
            }
        }
    }

    /// Reads what there is of commands, and follows them.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        match nix::unistd::read(std::io::stdin(), &mut buffer) {
            Ok(0) => std::process::exit(0),
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(_) => return,
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let command: Value = serde_json::from_slice(&line).unwrap();
            match self.follow(&command) {
                Ok(answer) => say(&json!({"ok": answer})),
                Err(error) => say(&json!({"error": describe(&error)})),
            }
            self.turn();
            self.accept();
        }
    }

    fn follow(&mut self, command: &Value) -> Answer {
        let text = |key: &str| command[key].as_str().unwrap_or_default().to_owned();
        match command["do"].as_str().unwrap() {
            "nothing" => {}
            "begin" => return self.begin(command),
            "claim" => return self.claim(command),
            "remove" => {
                let removed = self.serving().remove(&text("name"))?;
                if removed {
                    // What waits is answered before the listener is closed.
                    self.accept();
                    self.claimed.remove(&text("name"));
                }
                return Ok(json!(removed));
            }
            "entries" => {
                let entries: Vec<_> = self.serving().entries().map(|entry| json!(entry)).collect();
                return Ok(json!(entries));
            }
            "inherited-of" => {
                let found = self.starting().inherited_of(&Kind::from(text("kind")))?;
                return Ok(json!(found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()));
            }
            "progress" => match &mut self.stage {
                Stage::Starting(starting) => starting.progress(&text("text"))?,
                _ => return Ok(json!(false)),
            },
            "ready" => {
                let Stage::Starting(starting) = std::mem::take(&mut self.stage) else { panic!("not starting") };
                self.stage = Stage::Committing(starting.begin_ready()?);
            }
            "released" => self.serving().released()?,
            // As much state as that, of one byte again and again; or what it says.
            "release-with" => {
                let mut snapshot = self.serving().snapshot()?;
                if command["checksum"] == false {
                    snapshot = snapshot.without_checksum();
                }
                match command["length"].as_u64() {
                    Some(length) => {
                        std::io::copy(&mut std::io::repeat(b'x').take(length), &mut snapshot).unwrap();
                    }
                    None => snapshot.write_all(text("text").as_bytes()).unwrap(),
                }
                self.serving().released_with(snapshot)?;
            }
            "cannot-release" => self.serving().cannot_release(&text("why"))?,
            "take-state" => {
                let versions =
                    command["from"].as_u64().unwrap_or(1) as u32..=command["to"].as_u64().unwrap_or(1) as u32;
                let Some(mut state) = self.serving().take_state(&text("schema"), versions) else {
                    return Ok(Value::Null);
                };
                let (length, mut begin) = (state.len(), Vec::new());
                state.by_ref().take(100).read_to_end(&mut begin).unwrap();
                return Ok(json!({"length": length, "text": String::from_utf8_lossy(&begin)}));
            }
            "lease" => {
                let lease = self.serving().lease();
                self.leases.push(lease);
            }
            "end-lease" => drop(self.leases.pop()),
            "predecessor" => {
                let serving = self.serving();
                return Ok(json!({"drains": serving.predecessor(), "end": serving.predecessor_end()}));
            }
            "wait-for-predecessor" => {
                let within = Duration::from_millis(command["within_ms"].as_u64().unwrap());
                tell("waiting", json!({}));
                return Ok(json!(self.serving().wait_for_predecessor(within)?));
            }
            "drain" => {
                let Stage::Serving(serving) = std::mem::take(&mut self.stage) else { panic!("not serving") };
                self.accepting = false;
                self.stage = Stage::Draining(serving.begin_drain()?);
            }
            "stop" => self.serving().stop()?,
            "confirm" => self.serving().confirm()?,
            "give-back" => self.serving().give_back(&text("reason"))?,
            "cancel" => self.stopper.iter().for_each(Stopper::stop),
            // Cancels after so many rounds of the loop, whatever the stage is by then.
            "cancel-after" => self.cancel_after = command["rounds"].as_u64(),
            "drop" => self.clear(),
            "abort" => {
                let Stage::Starting(starting) = std::mem::take(&mut self.stage) else { panic!("not starting") };
                match starting.abort() {
                    Ok(()) => self.clear(),
                    Err(last) => {
                        self.stage = Stage::Starting(*last.0);
                        return Ok(json!({"last_holder": true}));
                    }
                }
            }
            "accept" => self.accepting = command["on"].as_bool().unwrap(),
            "options" => crate::puppet::merge(&mut self.options, command.clone()),
            "socket" => return Ok(socket(self.claimed[&text("name")].fd())),
            "report" => return Ok(json!(self.report())),
            "status" => return Ok(json!(self.status())),
            "is-owner" => return Ok(json!(matches!(&self.stage, Stage::Serving(serving) if serving.is_owner()))),
            "chdir" => std::env::set_current_dir(text("folder")).unwrap(),
            "descriptors" => return Ok(json!(descriptors())),
            "inheritable" => return Ok(json!(inheritable())),
            "child" => return Ok(child()),
            "service" => self.service = Some(Service::new(text("log").as_ref())),
            "connections" => return Ok(json!(self.service.as_ref().map(Service::connections))),
            // SIGTERM becomes an exit of this process by itself.
            "exit-on-term" => {
                let at_once = Arc::new(std::sync::atomic::AtomicBool::new(true));
                let term = signal_hook::consts::SIGTERM;
                signal_hook::flag::register_conditional_shutdown(term, EXITED, at_once).unwrap();
            }
            "thread" => return Ok(json!(nix::unistd::gettid().as_raw())),
            "state" => return Ok(self.state()),
            "limit" => {
                let (soft, hard) = (command["soft"].as_u64().unwrap(), command["hard"].as_u64().unwrap());
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            }
            // Gives the rights of root up, for good.
            "become" => {
                let id = command["uid"].as_u64().unwrap() as u32;
                let (user, group) = (nix::unistd::Uid::from_raw(id), nix::unistd::Gid::from_raw(id));
                nix::unistd::setgroups(&[]).unwrap();
                nix::unistd::setresgid(group, group, group).unwrap();
                nix::unistd::setresuid(user, user, user).unwrap();
            }
            // Listens where a service should, as a stranger might, and tells what comes.
            "lurk" => self.trap = Some(UnixListener::bind(text("path")).unwrap()),
            "caught" => return Ok(json!(self.caught())),
            // Connects as no well-behaved program does, says something, and later tells what it heard.
            "knock" => {
                let mut stream = UnixStream::connect(text("path")).unwrap();
                stream.write_all(&[b'x'; 1000]).unwrap();
                self.knocking = Some(stream);
            }
            "heard" => {
                let mut bytes = Vec::new();
                // It is reset where the bytes were not read.
                let _ = self.knocking.take().unwrap().read_to_end(&mut bytes);
                return Ok(json!(String::from_utf8_lossy(&bytes)));
            }
            "fork" => return Ok(self.fork()),
            "receive" => return Ok(json!(self.receive(&text("name")))),
            "read" => return Ok(json!(self.read(&text("name")))),
            "write" => self.write(&text("name"), text("text").as_bytes()),
            "unclaim" => drop(self.claimed.remove(&text("name"))),
            "exit" => std::process::exit(command["code"].as_i64().unwrap_or(0) as i32),
            other => panic!("no command {other:?}"),
        }
        Ok(json!(true))
    }

    fn begin(&mut self, command: &Value) -> Answer {
        self.options = command.clone();
        let mut handoff = Handoff::at(command["path"].as_str().unwrap())
            .app_version(command["version"].as_str().unwrap_or("0"))
            .exclusive(self.option("exclusive"))
            .systemd(self.option("systemd"))
            .allow_shared_folder(self.option("allow_shared_folder"))
            .process_stays(self.option("process_stays"))
            .allow_foreign_network_namespace(self.option("allow_foreign_network_namespace"));
        if let Some(schema) = command["state"]["schema"].as_str() {
            handoff = handoff.state(schema, command["state"]["version"].as_u64().unwrap_or(1) as u32);
        }
        let duration = |key: &str| command[key].as_u64().map(Duration::from_millis);
        if let Some(limit) = duration("drain_ms") {
            handoff = handoff.drain_within(limit);
        }
        if let Some(limit) = duration("start_ms") {
            handoff = handoff.start_within(limit);
        }
        if let Some(limit) = duration("progress_ms") {
            handoff = handoff.progress_within(limit);
        }
        if let Some(limit) = duration("warm_up_ms") {
            handoff = handoff.warm_up_within(limit);
        }
        if let Some(limit) = duration("release_ms") {
            handoff = handoff.release_within(limit);
        }
        if let Some(time) = duration("probation_ms") {
            handoff = handoff.probation(time);
        }
        handoff = handoff
            .demand_probation(self.option("demand_probation"))
            .takeover_confirms(self.option("takeover_confirms"));
        if let Some(path) = command["pid_file"].as_str() {
            handoff = handoff.pid_file(path);
        }
        for uid in command["allow_uids"].as_array().into_iter().flatten() {
            handoff = handoff.allow_uid(uid.as_u64().unwrap() as u32);
        }
        for gid in command["allow_gids"].as_array().into_iter().flatten() {
            handoff = handoff.allow_gid(gid.as_u64().unwrap() as u32);
        }
        let stopper = handoff.stopper()?;
        let joining = if self.option("rehearsal") { handoff.begin_rehearsal()? } else { handoff.begin()? };
        self.stopper = Some(stopper);
        self.stage = Stage::Joining(joining);
        Ok(json!(true))
    }

    fn claim(&mut self, wanted: &Value) -> Answer {
        let name = wanted["name"].as_str().unwrap();
        let address = wanted["address"].as_str().unwrap_or_default();
        let content = wanted["content"].as_str().unwrap_or_default().to_owned();
        let count = wanted["count"].as_u64();
        if let Some(count) = count {
            let mut one = wanted.clone();
            one.as_object_mut().unwrap().remove("count");
            for number in 0..count {
                one["name"] = json!(format!("{name}-{number:04}"));
                self.claim(&one)?;
            }
            return Ok(json!(true));
        }
        if wanted["kind"] == "pipe" {
            return self.claim_pipe(name);
        }
        let claim = match &mut self.stage {
            Stage::Starting(starting) => starting.claim(name),
            Stage::Serving(serving) => serving.claim(name),
            _ => panic!("neither starting nor serving"),
        };
        let claim = with_options(claim, wanted);
        let size = wanted["size"].as_u64().unwrap_or(1) as usize;
        match wanted["kind"].as_str().unwrap() {
            "tcp-group" => {
                let group = claim.tcp_group(address, size)?;
                let sockets = group.sockets().iter().cloned().map(Claimed::Tcp).enumerate();
                self.claimed.extend(sockets.map(|(index, socket)| (format!("{name}#{index}"), socket)));
                return Ok(json!(group.members().len()));
            }
            "udp-group" => {
                let group = claim.udp_group(address, size)?;
                let sockets = group.sockets().iter().cloned().map(Claimed::Udp).enumerate();
                self.claimed.extend(sockets.map(|(index, socket)| (format!("{name}#{index}"), socket)));
                return Ok(json!(group.members().len()));
            }
            _ => {}
        }
        let claimed = match wanted["kind"].as_str().unwrap() {
            "tcp" => Claimed::Tcp(claim.tcp(address)?),
            "udp" => Claimed::Udp(claim.udp(address)?),
            "unix" => Claimed::Unix(claim.unix(address)?),
            "unix-datagram" => Claimed::Datagram(claim.unix_datagram(address)?),
            "seqpacket" => Claimed::Seqpacket(claim.seqpacket(address)?),
            // Made by the application itself, in its own way.
            "own-tcp" => Claimed::Tcp(claim.made(Kind::TcpListener, || TcpListener::bind(address))?),
            "own-unix" => Claimed::Unix(claim.made(Kind::UnixListener, || UnixListener::bind(address))?),
            "wrong" => Claimed::Raw(claim.made(Kind::Udp, || TcpListener::bind(address).map(OwnedFd::from))?),
            "connection" => Claimed::Connection(claim.raw(|| TcpStream::connect(address))?),
            "memfd" => Claimed::Raw(claim.raw(|| {
                let memfd = nix::sys::memfd::memfd_create("puppet", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
                std::fs::File::from(memfd.try_clone()?).write_all_at(content.as_bytes(), 0)?;
                Ok(memfd)
            })?),
            "null" => Claimed::Raw(claim.raw(|| Ok(std::fs::File::open("/dev/null")?.into()))?),
            "inherited" => match claim.inherited()? {
                Some(fd) => Claimed::Raw(fd),
                None => return Ok(json!(false)),
            },
            other => panic!("no kind {other:?}"),
        };
        let address = claimed.address();
        self.claimed.insert(name.to_owned(), claimed);
        Ok(json!({"address": address}))
    }

    /// Both ends, as `NAME-read` and `NAME-write`.
    fn claim_pipe(&mut self, name: &str) -> Answer {
        let mut ends = [None, None];
        for (end, which) in ["read", "write"].iter().enumerate() {
            let name = format!("{name}-{which}");
            let fd = self.starting().raw(&name, || {
                if ends[end].is_none() {
                    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                    ends = [Some(read), Some(write)];
                }
                Ok(ends[end].take().unwrap())
            })?;
            self.claimed.insert(name, Claimed::Raw(fd));
        }
        Ok(json!(true))
    }

    /// Does what can be done without waiting, and tells what came of it.
    fn turn(&mut self) {
        loop {
            match std::mem::take(&mut self.stage) {
                Stage::Idle => return,
                Stage::Joining(mut joining) => match joining.process() {
                    Ok(false) => return self.stage = Stage::Joining(joining),
                    Ok(true) => {
                        let Ok(starting) = joining.started() else { panic!("started is not started") };
                        self.started(starting);
                    }
                    Err(error) => {
                        drop(joining);
                        return self.failed(&error);
                    }
                },
                Stage::Starting(mut starting) => {
                    if !self.option("deaf")
                        && let Err(error) = starting.process()
                    {
                        // First let go, then tell: a test looks at what is left.
                        drop(starting);
                        return self.failed(&error);
                    }
                    return self.stage = Stage::Starting(starting);
                }
                Stage::Committing(mut committing) => match committing.process() {
                    Ok(false) => return self.stage = Stage::Committing(committing),
                    Ok(true) => {
                        let Ok(serving) = committing.serving() else { panic!("serving is not serving") };
                        let addresses: BTreeMap<&str, String> = self
                            .claimed
                            .iter()
                            .filter_map(|(name, claimed)| Some((name.as_str(), claimed.address()?)))
                            .collect();
                        tell("serving", json!({"generation": serving.generation(), "addresses": addresses}));
                        self.accepting = self.options["accept"].as_bool().unwrap_or(true);
                        self.stage = Stage::Serving(serving);
                        self.serve();
                    }
                    Err(error) => {
                        drop(committing);
                        return self.failed(&error);
                    }
                },
                Stage::Serving(mut serving) => match serving.process() {
                    Ok(None) => return self.stage = Stage::Serving(serving),
                    Ok(Some(event)) => {
                        self.stage = Stage::Serving(serving);
                        if let Err(error) = self.told(event) {
                            return self.failed(&error);
                        }
                    }
                    Err(error) => {
                        drop(serving);
                        return self.failed(&error);
                    }
                },
                Stage::Draining(mut draining) => match draining.process() {
                    Ok(false) => return self.stage = Stage::Draining(draining),
                    Ok(true) => match draining.drained() {
                        Ok(Drained::Done(summary)) => {
                            self.clear();
                            tell("drained", json!({"forced": summary.forced, "in_flight": summary.in_flight}));
                            if self.options["exit"].as_bool().unwrap_or(true) {
                                std::process::exit(0);
                            }
                        }
                        Ok(Drained::Resumed(serving)) => {
                            tell("resumed", json!({"generation": serving.generation()}));
                            self.accepting = self.options["accept"].as_bool().unwrap_or(true);
                            self.stage = Stage::Serving(serving);
                            self.serve();
                        }
                        Err(_) => panic!("drained is not drained"),
                    },
                    Err(error) => {
                        drop(draining);
                        return self.failed(&error);
                    }
                },
            }
        }
    }

    /// Everything is here: claims and gets ready, where the options say so.
    fn started(&mut self, starting: Starting) {
        let entries: Vec<&str> = starting.entries().map(|entry| entry.name.as_str()).collect();
        let retired: Vec<bool> = starting.entries().map(|entry| entry.retired).collect();
        let failed = starting
            .entries()
            .flat_map(|entry| starting.checks(&entry.name))
            .filter(|check| !check.ok)
            .map(|check| json!(check))
            .collect::<Vec<_>>();
        tell(
            "started",
            json!({
                "generation": starting.generation(),
                "predecessor": starting.predecessor(),
                "entries": entries,
                "retired": retired,
                "failed_checks": failed,
            }),
        );
        self.stage = Stage::Starting(starting);
        if self.option("rehearsal") {
            return;
        }
        for claim in self.options["claims"].as_array().cloned().unwrap_or_default() {
            if let Err(error) = self.claim(&claim) {
                return self.failed(&error);
            }
        }
        if self.option("ready") {
            let Stage::Starting(starting) = std::mem::take(&mut self.stage) else { return };
            match starting.begin_ready() {
                Ok(committing) => self.stage = Stage::Committing(committing),
                Err(error) => self.failed(&error),
            }
        }
    }

    fn told(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Release => {
                tell("release", json!({}));
                if self.options["release"].as_bool().unwrap_or(true) {
                    self.serving().released()?;
                }
            }
            Event::StandBy => {
                self.accepting = false;
                self.service.iter_mut().for_each(Service::leave);
                tell("stand-by", json!({}));
            }
            Event::Resume => {
                tell("resume", json!({"generation": self.serving().generation()}));
                self.accepting = self.options["accept"].as_bool().unwrap_or(true);
                self.serve();
            }
            Event::Leave(reason) => {
                let stopped = reason == Reason::Stopped;
                if stopped {
                    // Nobody comes after this process.
                    self.accept();
                }
                self.accepting = false;
                self.service.iter_mut().for_each(Service::leave);
                let reason = match reason {
                    Reason::Stopped => "stopped",
                    Reason::RolledBack => "rolled-back",
                    _ => "successor",
                };
                tell("leave", json!({"reason": reason}));
                if self.options["drain"].as_bool().unwrap_or(true) {
                    let Stage::Serving(serving) = std::mem::take(&mut self.stage) else { return Ok(()) };
                    self.stage = Stage::Draining(serving.begin_drain()?);
                }
            }
            Event::PredecessorGone(end) => tell("predecessor-gone", json!({"end": end})),
            other => tell("event", json!({"what": format!("{other:?}")})),
        }
        Ok(())
    }

    fn failed(&mut self, error: &Error) {
        self.clear();
        tell("failed", describe(error));
    }

    /// Lets go of everything.
    fn clear(&mut self) {
        self.stage = Stage::Idle;
        self.service.iter_mut().for_each(Service::close);
        self.claimed.clear();
        self.stopper = None;
        self.accepting = false;
    }

    /// Takes what waits and answers each with a line: version, generation, pid.
    fn accept(&mut self) {
        if !self.accepting {
            return;
        }
        let Stage::Serving(serving) = &self.stage else { return };
        let version = self.options["version"].as_str().unwrap_or_default();
        let line = format!("{version} {} {}\n", serving.generation(), std::process::id());
        for claimed in self.accepted() {
            while let Ok(stream) = accept4(claimed.fd(), SockFlag::SOCK_CLOEXEC) {
                let _ = send(std::os::fd::AsRawFd::as_raw_fd(&stream), line.as_bytes(), MsgFlags::MSG_NOSIGNAL);
            }
        }
    }

    /// The listeners that are accepted from here, and not by the service.
    fn accepted(&self) -> impl Iterator<Item = &Claimed> {
        let served = self.service.as_ref().map(|_| SERVED);
        self.claimed
            .iter()
            .filter(move |(name, claimed)| Some(name.as_str()) != served && claimed.accepts())
            .map(|(_, claimed)| claimed)
    }

    /// Gives the listener to the service, with a lease for as long as it has connections.
    fn serve(&mut self) {
        let (Some(service), Stage::Serving(serving)) = (&mut self.service, &self.stage) else { return };
        let Some(Claimed::Tcp(listener)) = self.claimed.get(SERVED) else { return };
        let version = self.options["version"].as_str().unwrap_or_default();
        let line = format!("{version} {} {}", serving.generation(), std::process::id());
        service.open(listener.clone(), line, serving.lease());
    }

    /// Where this process is in its life, at any stage of it.
    fn state(&self) -> Value {
        let served = self.claimed.get(SERVED);
        let address = served.and_then(Claimed::address);
        // An address may be had anew, by chance.
        let inode = served.and_then(|claimed| nix::sys::stat::fstat(claimed.fd()).ok()).map(|stat| stat.st_ino);
        let (stage, status) = match &self.stage {
            Stage::Idle => ("idle", None),
            Stage::Joining(_) => ("joining", None),
            Stage::Starting(starting) => ("starting", Some(starting.status())),
            Stage::Committing(_) => ("committing", None),
            Stage::Serving(serving) => ("serving", Some(serving.status())),
            Stage::Draining(_) => ("draining", None),
        };
        let owner = matches!(&self.stage, Stage::Serving(serving) if serving.is_owner());
        json!({"stage": stage, "owner": owner, "status": status, "address": address, "inode": inode})
    }

    /// How many bytes the next one who connects to the trap sends before he hangs up. He is told something that he must
    /// not read.
    fn caught(&self) -> usize {
        let (mut stream, _) = self.trap.as_ref().unwrap().accept().unwrap();
        let _ = stream.write_all(&[b'x'; 100]);
        let mut bytes = Vec::new();
        // It is reset where the bytes were not read.
        let _ = stream.read_to_end(&mut bytes);
        bytes.len()
    }

    /// What the calls of an owner come to in a forked child, which then drops everything that it has of the handoff.
    #[allow(unsafe_code, reason = "there is no other way to be a forked child")]
    fn fork(&mut self) -> Value {
        // SAFETY: this process has one thread beside the idle one of the test harness, so the child finds every lock
        // of the C library as it should be.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                json!(format!("{status:?}").contains("Exited"))
            }
            nix::unistd::ForkResult::Child => {
                let mut codes = Vec::new();
                let mut note = |error: Option<Error>| codes.push(error.map(|error| error.code().to_owned()));
                note(self.serving().process().err());
                note(self.serving().stop().err());
                note(self.serving().released().err());
                if let Stage::Serving(serving) = std::mem::take(&mut self.stage) {
                    note(serving.begin_drain().err());
                }
                self.clear();
                tell("forked", json!({"codes": codes}));
                // SAFETY: ends this process at once; the parent's handlers are not for it.
                unsafe { nix::libc::_exit(0) }
            }
        }
    }

    fn receive(&self, name: &str) -> Option<String> {
        let mut buffer = [0; 1500];
        let count = match &self.claimed[name] {
            Claimed::Udp(socket) => socket.recv(&mut buffer),
            Claimed::Datagram(socket) => socket.recv(&mut buffer),
            _ => panic!("{name:?} has no datagrams"),
        };
        Some(String::from_utf8_lossy(&buffer[..count.ok()?]).into_owned())
    }

    fn file(&self, name: &str) -> std::fs::File {
        self.claimed[name].fd().try_clone_to_owned().unwrap().into()
    }

    /// All of a memfd, or what a pipe gives at once.
    fn read(&self, name: &str) -> String {
        let mut file = self.file(name);
        let mut buffer = [0; 1500];
        let count = if file.metadata().unwrap().is_file() {
            file.read_at(&mut buffer, 0).unwrap()
        } else {
            file.read(&mut buffer).unwrap()
        };
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        self.file(name).write_all(bytes).unwrap();
    }

    fn report(&self) -> heirloom::Report {
        match &self.stage {
            Stage::Starting(starting) => starting.report().clone(),
            Stage::Serving(serving) => serving.report().clone(),
            _ => panic!("no report"),
        }
    }

    fn status(&self) -> heirloom::Status {
        match &self.stage {
            Stage::Starting(starting) => starting.status(),
            Stage::Serving(serving) => serving.status(),
            _ => panic!("no status"),
        }
    }

    fn option(&self, key: &str) -> bool {
        self.options[key].as_bool().unwrap_or(false)
    }

    fn starting(&mut self) -> &mut Starting {
        match &mut self.stage {
            Stage::Starting(starting) => starting,
            _ => panic!("not starting"),
        }
    }

    fn serving(&mut self) -> &mut Serving {
        match &mut self.stage {
            Stage::Serving(serving) => serving,
            _ => panic!("not serving"),
        }
    }
}

/// What the kernel says of a socket's options.
fn socket(fd: BorrowedFd<'_>) -> Value {
    let socket = socket2::SockRef::from(&fd);
    json!({
        "only_v6": socket.only_v6().ok(),
        "reuse_address": socket.reuse_address().ok(),
        "reuse_port": socket.reuse_port().ok(),
        "receive_buffer": socket.recv_buffer_size().ok(),
        "nonblocking": socket.nonblocking().ok(),
    })
}

/// The options of a socket that a command names.
fn with_options<'a>(mut claim: Claim<'a>, wanted: &Value) -> Claim<'a> {
    if let Some(backlog) = wanted["backlog"].as_u64() {
        claim = claim.backlog(backlog as u32);
    }
    if let Some(only) = wanted["only_v6"].as_bool() {
        claim = claim.only_v6(only);
    }
    if let Some(reuse) = wanted["reuse_address"].as_bool() {
        claim = claim.reuse_address(reuse);
    }
    if let Some(reuse) = wanted["reuse_port"].as_bool() {
        claim = claim.reuse_port(reuse);
    }
    if let Some(seconds) = wanted["defer_accept"].as_u64() {
        claim = claim.defer_accept(Duration::from_secs(seconds));
    }
    if let Some(pending) = wanted["fast_open"].as_u64() {
        claim = claim.fast_open(pending as u32);
    }
    if let Some(bits) = wanted["mode"].as_u64() {
        claim = claim.mode(bits as u32);
    }
    if let Some(retries) = wanted["syn_retries"].as_u64() {
        claim = claim.configure(move |socket| set_syn_retries(socket, retries as i32));
    }
    if let Some(bytes) = wanted["receive_buffer"].as_u64() {
        claim = claim.configure(move |socket| socket2::SockRef::from(&socket).set_recv_buffer_size(bytes as usize));
    }
    claim
}

/// `TCP_SYNCNT`: how often the kernel answers a client again that does not finish its handshake.
#[allow(unsafe_code, reason = "no crate at hand has this option")]
fn set_syn_retries(socket: BorrowedFd<'_>, retries: i32) -> std::io::Result<()> {
    use nix::libc;
    if socket2::SockRef::from(&socket).r#type()? != socket2::Type::STREAM {
        return Ok(());
    }
    // SAFETY: `retries` is readable for its size.
    let done = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const retries).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// What a program that this process executes inherits, as it tells itself.
fn child() -> Value {
    let output = crate::puppet::command("child").stdin(std::process::Stdio::null()).output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = output.lines().find_map(|line| line.strip_prefix(MARK)).unwrap();
    serde_json::from_str::<Value>(line).unwrap()["descriptors"].clone()
}

fn describe(error: &Error) -> Value {
    let refusal = match error {
        Error::Refused(refusal) | Error::GaveUp(refusal) => json!(refusal),
        _ => Value::Null,
    };
    json!({
        "kind": format!("{error:?}").split([' ', '(', '{']).next(),
        "code": error.code(),
        "message": error.to_string(),
        "hint": error.hint(),
        "refusal": refusal,
    })
}

pub(crate) fn tell(event: &str, mut with: Value) {
    with["event"] = json!(event);
    say(&with);
}

fn say(line: &Value) {
    println!("{MARK}{line}");
    let _ = std::io::stdout().flush();
}
