//! Older and newer peers, played from recorded bytes against the library over real sockets.
//!
//! The files in `recorded/` were written once by the encoder of version 1 and are never written again: every later
//! version has to read them, and to answer as version 1 did. A line that starts with `#` says what the bytes are; a name
//! in angle brackets stands for a number that only the running test knows, always nine bytes long.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use heirloom::{Client, Drained, Handoff, Phase, Reason, Starting, Stopper};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use sendfd::SendWithFd;
use socket2::SockRef;

use crate::puppet::PATIENCE;

const REFUSED: u8 = 2;
const OFFER: u8 = 3;
const ENTRIES: u8 = 4;
const ROOM: u8 = 5;
const DESCRIPTORS: u8 = 6;
const RELEASED: u8 = 10;
const ABORT: u8 = 15;
const TAKE_BACK: u8 = 17;
const HISTORY: u8 = 20;
const STATUS: u8 = 33;
const DONE: u8 = 35;

/// The nonce in the recorded hello.
const NONCE: u64 = 0x0123_4567_89ab_cdef;

/// The bytes of a file, with what stands in angle brackets replaced.
fn recorded(name: &str, numbers: &[(&str, u64)]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/recorded").join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('<') {
            let (_, number) = numbers.iter().find(|(token, _)| *token == line).unwrap_or_else(|| panic!("{line}"));
            bytes.push(0xcf);
            bytes.extend(number.to_be_bytes());
        } else {
            bytes.extend((0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()));
        }
    }
    bytes
}

/// A frame as it came.
#[derive(Debug)]
struct Frame {
    kind: u8,
    body: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Frame {
    /// A field of the body.
    fn field(&self, name: &str) -> serde_json::Value {
        assert_eq!(self.body[0] & 0xf0, 0x80, "a map");
        let fields: BTreeMap<String, serde_json::Value> = rmp_serde::from_slice(&self.body).unwrap();
        fields[name].clone()
    }

    fn code(&self) -> String {
        self.field("code").as_str().unwrap().to_owned()
    }
}

/// A stream that is read frame by frame, descriptors and all.
struct Peer {
    stream: UnixStream,
    heard: u32,
}

impl Peer {
    fn new(stream: UnixStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer { stream, heard: 0 }
    }

    fn connect(path: &Path) -> Peer {
        Peer::new(UnixStream::connect(path).unwrap())
    }

    /// Sends a recorded file. That the other side has hung up meanwhile is for the reader to find.
    fn say(&mut self, name: &str) -> &mut Peer {
        self.say_with(name, &[])
    }

    fn say_with(&mut self, name: &str, numbers: &[(&str, u64)]) -> &mut Peer {
        let _ = self.stream.write_all(&recorded(name, numbers));
        self
    }

    /// Sends a recorded header with descriptors on it.
    fn give(&mut self, name: &str, descriptors: &[BorrowedFd<'_>]) {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let _ = self.stream.send_with_fd(&recorded(name, &[]), &numbers);
    }

    /// The next frame; `None` at the end.
    fn hear(&mut self) -> Option<Frame> {
        let mut header = [0; 16];
        let descriptors = self.fill(&mut header)?;
        assert_eq!(&header[..4], b"HRLM");
        assert_eq!(header[5], 0, "version 1 sets no flags");
        assert_eq!(header[12..], self.heard.to_be_bytes(), "frames are counted");
        self.heard += 1;
        assert_eq!(usize::from(u16::from_be_bytes([header[6], header[7]])), descriptors.len());
        let mut body = vec![0; u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize];
        if !body.is_empty() {
            self.fill(&mut body)?;
        }
        Some(Frame { kind: header[4], body, descriptors })
    }

    #[track_caller]
    fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.hear().expect("a frame");
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// What comes until the end, by its kind.
    fn last_words(mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    fn fill(&mut self, mut space: &mut [u8]) -> Option<Vec<OwnedFd>> {
        let mut descriptors = Vec::new();
        let mut control = nix::cmsg_space!([RawFd; 253]);
        while !space.is_empty() {
            let mut slices = [IoSliceMut::new(space)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let count = match recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Ok(message) => {
                    for control in message.cmsgs().unwrap() {
                        if let ControlMessageOwned::ScmRights(numbers) = control {
                            descriptors.extend(numbers.into_iter().map(adopt));
                        }
                    }
                    message.bytes
                }
                // A peer that hangs up with unread bytes resets; what it had said is read before that.
                Err(nix::errno::Errno::ECONNRESET) => 0,
                Err(errno) => panic!("the other side is silent: {errno}"),
            };
            if count == 0 {
                return None;
            }
            space = &mut space[count..];
        }
        Some(descriptors)
    }
}

#[allow(unsafe_code, reason = "the kernel gives integers, and a test has no other way to take them")]
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed it for this very receive; nobody else knows the number yet.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Waits for something that another thread is about to do.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "in vain: {what}");
        thread::yield_now();
    }
}

/// A folder with a control path in it.
struct Scene {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handoff.sock");
        Scene { _folder: folder, path }
    }

    fn lock_file(&self) -> File {
        let path = self.path.with_extension("sock.lock");
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    /// A process of this library that tries to get in.
    fn start(&self) -> heirloom::Result<Starting> {
        self.handoff().start()
    }

    fn start_on_probation(&self) -> heirloom::Result<Starting> {
        self.handoff().probation(Duration::from_secs(60)).start()
    }

    fn handoff(&self) -> Handoff {
        Handoff::at(&self.path).app_version("3").start_within(PATIENCE)
    }
}

/// A real owner, in a thread.
struct Owner {
    stopper: Stopper,
    thread: Option<JoinHandle<Option<Reason>>>,
    address: std::net::SocketAddr,
}

impl Owner {
    fn serve(mut starting: Starting) -> Owner {
        let web = starting.tcp_listener("web", "127.0.0.1:0").unwrap();
        let address = web.local_addr().unwrap();
        let mut serving = starting.ready().unwrap();
        let stopper = serving.stopper();
        let thread = thread::spawn(move || {
            while let Some((mut stream, _)) = serving.accept(&web).unwrap() {
                let _ = stream.write_all(serving.generation().to_string().as_bytes());
            }
            let left = serving.left();
            match serving.drain().unwrap() {
                Drained::Done(_) => left,
                Drained::Resumed(_) => panic!("nobody died here"),
            }
        });
        Owner { stopper, thread: Some(thread), address }
    }

    /// What a client of the service hears: the generation that serves it.
    fn visit(&self) -> String {
        let mut answer = String::new();
        let mut stream = std::net::TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Why it left.
    fn left(mut self) -> Option<Reason> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[track_caller]
fn assert_serves(scene: &Scene, owner: &Owner) {
    let mut client = Client::connect(&scene.path, PATIENCE).unwrap();
    eventually("the owner is as before", || client.status().unwrap().takeover.is_none());
    let status = client.status().unwrap();
    assert_eq!((status.phase, status.generation), (Phase::Serving, 1));
    assert_eq!(owner.visit(), "1");
}

/// Plays each file to one owner, and then takes over for real.
#[track_caller]
fn play(cases: &[(&str, &[(u8, &str)])]) {
    let scene = Scene::new();
    let owner = Owner::serve(scene.start().unwrap());
    for (name, expected) in cases {
        let mut peer = Peer::connect(&scene.path);
        peer.say(name);
        for (kind, code) in *expected {
            let frame = peer.hear().unwrap_or_else(|| panic!("{name}: the end instead of kind {kind}"));
            assert_eq!(frame.kind, *kind, "{name}: {frame:?}");
            match *kind {
                REFUSED | ABORT => assert_eq!(frame.code(), *code, "{name}: {frame:?}"),
                OFFER => assert_eq!(frame.field("version"), 1, "{name}"),
                _ => {}
            }
        }
        if expected.last().is_none_or(|(kind, _)| matches!(*kind, REFUSED | ABORT)) {
            let _ = peer.stream.shutdown(std::net::Shutdown::Write);
            assert!(peer.hear().is_none(), "{name}: the owner closes");
        }
        drop(peer);
        assert_serves(&scene, &owner);
    }
    let next = Owner::serve(scene.start().unwrap());
    assert_eq!(next.visit(), "2");
    assert_eq!(owner.left(), Some(Reason::Successor));
}

/// What is kept open while the two of them talk.
const OFFERED: &[(u8, &str)] = &[(OFFER, ""), (ENTRIES, "")];

const fn refused(code: &'static str) -> (u8, &'static str) {
    (REFUSED, code)
}

#[test]
fn a_recorded_hold_is_set_and_lifted() {
    play(&[
        ("client-ask-hold", &[(DONE, "")]),
        ("client-hello", &[refused("held")]),
        ("client-rehearsal", OFFERED),
        ("client-ask-lift", &[(DONE, "")]),
    ]);
}

#[test]
fn hellos_of_other_versions_are_understood() {
    play(&[
        ("client-hello", OFFERED),
        ("client-rehearsal", OFFERED),
        ("client-hello-shortest", OFFERED),
        ("client-hello-unknown-fields", OFFERED),
        ("client-hello-versions-1-to-9", OFFERED),
        ("client-hello-all-flags", OFFERED),
        ("client-unknown-optional", OFFERED),
        ("client-hello-versions-2-to-9", &[refused("version")]),
        ("client-hello-version-0", &[refused("version")]),
        ("client-hello-unknown-wish", &[refused("unsupported")]),
        ("client-ask-unknown", &[refused("unsupported")]),
        ("client-ask-status", &[(STATUS, "")]),
        ("client-ask-extend-drain", &[refused("no-drain")]),
        ("client-ask-history", &[(HISTORY, "")]),
    ]);
}

#[test]
fn broken_bodies_are_refused() {
    let protocol: &[(u8, &str)] = &[refused("protocol")];
    play(&[
        ("client-hello-versions-reversed", protocol),
        ("client-hello-positional", protocol),
        ("client-hello-trailing", protocol),
        ("client-hello-no-nonce", protocol),
        ("client-hello-nonce-of-text", protocol),
        ("client-hello-nonce-twice", protocol),
        ("client-hello-deep", protocol),
        ("client-hello-huge", protocol),
        ("client-hello-empty", protocol),
    ]);
}

#[test]
fn broken_frames_are_refused() {
    let protocol: &[(u8, &str)] = &[refused("protocol")];
    play(&[
        ("client-hello-sequence-1", protocol),
        ("client-hello-lost-descriptor", protocol),
        ("client-unknown-kind", protocol),
        ("client-body-too-long", protocol),
        ("client-too-many-descriptors", protocol),
        ("client-magic", protocol),
        ("client-http", protocol),
        ("client-half-a-header", &[]),
        ("client-half-a-frame", &[]),
    ]);
}

#[test]
fn messages_out_of_order_end_what_they_belong_to() {
    let aborted = |code| [(OFFER, ""), (ENTRIES, ""), (ABORT, code)];
    play(&[
        ("client-ready-first", &[refused("protocol")]),
        ("client-offer", &[refused("protocol")]),
        ("client-hello-twice", &aborted("protocol")),
        ("client-little-room", &aborted("no-room")),
        ("client-early-ack", &aborted("protocol")),
        ("client-rehearsal-ready", &aborted("protocol")),
    ]);
}

/// Descriptors have no place in what a client sends. Linux 6.16 refuses them at the sender; before it the owner does.
#[test]
fn descriptors_of_a_client_are_refused() {
    let scene = Scene::new();
    let owner = Owner::serve(scene.start().unwrap());
    let null = File::open("/dev/null").unwrap();
    let mut peer = Peer::connect(&scene.path);
    // The owner has accepted once it has answered.
    peer.say("client-ask-status").expect(STATUS);
    let header = recorded("owner-descriptors-5", &[]);
    match peer.stream.send_with_fd(&header, &[null.as_raw_fd(); 5]) {
        Ok(_) => {
            let words = peer.last_words();
            assert!(words.iter().any(|frame| frame.kind == REFUSED && frame.code() == "protocol"), "{words:?}");
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
    }
    assert_serves(&scene, &owner);
}

fn range(byte: i64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Tries an open file description lock on one byte.
fn lock(file: impl AsFd, byte: i64, kind: libc::c_int) -> bool {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(byte, kind))).is_ok()
}

/// The line in the lock file.
fn line(generation: u64, nonce: u64) -> String {
    format!("{:79}\n", format!("heirloom 1 generation {generation:020} nonce {nonce:016x}"))
}

/// Somebody was stopped in the moment in which it held byte 1 exclusively: no takeover waits for him.
#[test]
fn a_stopped_holder_of_byte_1_keeps_nobody_from_a_takeover() {
    let scene = Scene::new();
    let mut owner = Owner::serve(scene.start().unwrap());
    let file = scene.lock_file();
    assert!(lock(&file, 1, libc::F_WRLCK));
    let next = Owner::serve(scene.start().unwrap());
    assert_eq!(owner.thread.take().unwrap().join().unwrap(), Some(Reason::Successor));
    drop(next);
}

/// A successor that knows nothing but `wire.md` takes over from this library.
#[test]
fn a_successor_from_bytes_becomes_the_owner() {
    let scene = Scene::new();
    let owner = Owner::serve(scene.start().unwrap());
    let mut peer = Peer::connect(&scene.path);
    peer.say("client-hello");
    let offer = peer.expect(OFFER);
    assert_eq!(
        (offer.field("generation"), offer.field("entries"), offer.field("descriptors")),
        (1.into(), 1.into(), 5.into())
    );
    peer.expect(ENTRIES);
    peer.say("successor-room");
    let mut first = peer.expect(DESCRIPTORS);
    let [pidfd, lease, description, control, web] = first.descriptors.split_off(0).try_into().unwrap();
    assert!(lock(&description, 1, libc::F_RDLCK), "byte 1 is shared");
    assert!(!lock(&description, 0, libc::F_WRLCK), "byte 0 is the owner's");
    assert_eq!(std::fs::read_to_string(scene.path.with_extension("sock.lock")).unwrap(), line(1, NONCE));
    peer.say("successor-ready");
    assert_eq!(peer.expect(RELEASED).field("nonce"), NONCE);
    assert!(lock(&description, 0, libc::F_WRLCK), "the commit");
    let file = File::from(description);
    assert_eq!(std::fs::read_to_string(scene.path.with_extension("sock.lock")).unwrap(), line(1, NONCE));
    file.write_all_at(line(2, 0).as_bytes(), 0).unwrap();
    peer.say("successor-owning");
    assert!(lock(&file, 1, libc::F_UNLCK));
    let words = peer.last_words();
    assert_eq!(words.last().map(|frame| frame.kind), Some(14), "bye: {words:?}");
    assert_eq!(owner.left(), Some(Reason::Successor));
    // The listener is this process's now: nobody else has it.
    let web = TcpListener::from(web);
    web.set_nonblocking(false).unwrap();
    let _client = std::net::TcpStream::connect(web.local_addr().unwrap()).unwrap();
    web.accept().unwrap();
    // And whoever comes finds a family that lives, with an owner that does not answer: it must not found another.
    assert!(scene.lock_file().try_lock().is_err(), "the lease is held");
    drop((pidfd, lease, control, file));
    let next = Owner::serve(scene.start().unwrap());
    assert_eq!(next.visit(), "3");
}

/// An owner that knows nothing but `wire.md`: it holds lease and byte 0, listens, and has one pipe and one socket.
struct Elder {
    scene: Scene,
    listener: UnixListener,
    lease: File,
    own: File,
    description: File,
    /// What stands for its pidfd: becomes readable when the other end is closed, as a pidfd does at a death.
    alive: (OwnedFd, OwnedFd),
    pipe: (OwnedFd, OwnedFd),
    socket: (UnixStream, UnixStream),
}

/// The generation in the recorded offers.
const GENERATION: u64 = 7;

impl Elder {
    fn new() -> Elder {
        let scene = Scene::new();
        let lease = scene.lock_file();
        lease.try_lock().unwrap();
        let own = scene.lock_file();
        assert!(lock(&own, 0, libc::F_WRLCK));
        own.write_all_at(line(GENERATION, 0).as_bytes(), 0).unwrap();
        let listener = UnixListener::bind(&scene.path).unwrap();
        let description = scene.lock_file();
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        Elder {
            listener,
            lease,
            own,
            description,
            alive: pipe(),
            pipe: pipe(),
            socket: UnixStream::pair().unwrap(),
            scene,
        }
    }

    fn first_four(&self) -> [BorrowedFd<'_>; 4] {
        [self.alive.0.as_fd(), self.lease.as_fd(), self.description.as_fd(), self.listener.as_fd()]
    }

    /// What the recorded bytes leave open.
    fn numbers(&self, socket: bool, nonce: u64) -> Vec<(&'static str, u64)> {
        let fd = if socket { self.socket.0.as_fd() } else { self.pipe.0.as_fd() };
        let stat = File::from(fd.try_clone_to_owned().unwrap()).metadata().unwrap();
        let cookie = if socket { SockRef::from(&self.socket.0).cookie().unwrap() } else { 0 };
        vec![
            ("<device>", stat.dev()),
            ("<inode>", stat.ino()),
            ("<other>", stat.ino() + 1),
            ("<cookie>", cookie),
            ("<nonce>", nonce),
        ]
    }

    /// Accepts one connection and hears its hello.
    fn greet(&self) -> (Peer, u64) {
        let (stream, _) = self.listener.accept().unwrap();
        let mut peer = Peer::new(stream);
        let hello = peer.expect(1);
        let nonce = hello.field("nonce").as_u64().unwrap();
        self.own.write_all_at(line(GENERATION, nonce).as_bytes(), 0).unwrap();
        (peer, nonce)
    }

    /// Closes everything, and finds that nobody else has any of it: what a successor drops is closed, not kept.
    fn assert_nothing_was_kept(self) {
        let Elder { scene, listener, lease, own, description, alive, pipe, socket } = self;
        drop((listener, lease, own, description, alive.0, pipe.0, socket.0));
        let left = |fd: BorrowedFd<'_>, flag: PollFlags| {
            let mut polled = [PollFd::new(fd, flag)];
            poll(&mut polled, PollTimeout::ZERO).unwrap();
            !polled[0].revents().unwrap().intersects(PollFlags::POLLERR | PollFlags::POLLHUP)
        };
        // A child of another test may hold copies between fork and exec.
        eventually("the pidfd is closed", || !left(alive.1.as_fd(), PollFlags::POLLOUT));
        eventually("the pipe is closed", || !left(pipe.1.as_fd(), PollFlags::POLLOUT));
        eventually("the socket is closed", || !left(socket.1.as_fd(), PollFlags::POLLIN));
        eventually("the control listener is closed", || UnixStream::connect(&scene.path).is_err());
        let file = scene.lock_file();
        eventually("the lease is closed", || file.try_lock().is_ok());
        eventually("the lock description is closed", || lock(&file, 0, libc::F_WRLCK) && lock(&file, 1, libc::F_WRLCK));
    }
}

/// How an elder goes on after the manifest.
type Rest = fn(&Elder, &mut Peer);

/// Plays an offer to a successor of this library, which must fail with that code, say the other to the elder, and keep
/// nothing.
#[track_caller]
fn fails(offer: &str, rest: Rest, code: &str, told: Option<&str>) {
    let elder = Elder::new();
    let (words, failure) = thread::scope(|scope| {
        let playing = scope.spawn(|| {
            let (mut peer, nonce) = elder.greet();
            let socket = offer.contains("socket") || SOCKET_LIES.contains(&offer);
            peer.say_with(offer, &elder.numbers(socket, nonce));
            rest(&elder, &mut peer);
            peer.last_words()
        });
        let failure = elder.scene.start().and_then(claim_all).expect_err(offer);
        (playing.join().unwrap(), failure)
    });
    assert_eq!(failure.code(), code, "{offer}: {failure}");
    let abort = words.iter().find(|frame| frame.kind == ABORT).map(Frame::code);
    assert_eq!(abort.as_deref(), told, "{offer}: {words:?}");
    elder.assert_nothing_was_kept();
}

/// Asks for everything that came: what it really is shows by that.
fn claim_all(mut starting: Starting) -> heirloom::Result<()> {
    let names: Vec<String> = starting.entries().map(|entry| entry.name.clone()).collect();
    names.iter().try_for_each(|name| starting.inherited(name).map(drop))
}

/// Says nothing more.
fn silence(_: &Elder, _: &mut Peer) {}

/// Waits for room, and sends the family's four and a pipe.
fn pipe(elder: &Elder, peer: &mut Peer) {
    if peer.hear().is_some_and(|frame| frame.kind == ROOM) {
        let [pidfd, lease, lock, control] = elder.first_four();
        peer.give("owner-descriptors-5", &[pidfd, lease, lock, control, elder.pipe.0.as_fd()]);
    }
}

/// The same with a socket.
fn socket(elder: &Elder, peer: &mut Peer) {
    if peer.hear().is_some_and(|frame| frame.kind == ROOM) {
        let [pidfd, lease, lock, control] = elder.first_four();
        peer.give("owner-descriptors-5", &[pidfd, lease, lock, control, elder.socket.0.as_fd()]);
    }
}

const SOCKET_LIES: &[&str] =
    &["lie-cookie", "lie-family", "lie-type", "lie-listening", "lie-address", "lie-kind-of-a-socket"];

#[test]
fn offers_that_cannot_be_are_a_broken_protocol() {
    let protocol = Some("protocol");
    fails("owner-version-2", silence, "protocol", Some("version"));
    fails("owner-version-0", silence, "protocol", Some("version"));
    for offer in [
        "owner-numbers-disagree",
        "owner-fewer-descriptors",
        "owner-a-million-and-one",
        "owner-last-generation",
        "owner-offer-positional",
        "owner-offer-trailing",
        "owner-offer-deep",
        "owner-offer-descriptor",
        "owner-offer-twice",
        "owner-entries-first",
        "owner-offer-sequence-1",
        "owner-offer-unknown-kind",
    ] {
        fails(offer, silence, "protocol", protocol);
    }
}

#[test]
fn manifests_that_cannot_be_are_a_broken_protocol() {
    for offer in [
        "owner-name-twice",
        "owner-name-twice-apart",
        "owner-name-empty",
        "owner-name-control",
        "owner-name-long",
        "owner-more-entries",
        "owner-no-entries",
        "owner-many-entries",
    ] {
        fails(offer, silence, "protocol", Some("protocol"));
    }
}

#[test]
fn each_lie_about_a_descriptor_is_found() {
    for offer in ["lie-file-type", "lie-inode", "lie-kind-of-a-pipe"] {
        fails(offer, pipe, "mismatch", Some("mismatch"));
    }
    for offer in SOCKET_LIES {
        fails(offer, socket, "mismatch", Some("mismatch"));
    }
}

#[test]
fn descriptors_in_the_wrong_number_are_a_broken_protocol() {
    let protocol = Some("protocol");
    let fewer: Rest = |elder, peer| {
        peer.expect(ROOM);
        peer.give("owner-descriptors-5", &elder.first_four());
    };
    fails("owner-offer", fewer, "protocol", protocol);
    let more: Rest = |elder, peer| {
        peer.expect(ROOM);
        let [pidfd, lease, lock, control] = elder.first_four();
        let pipe = elder.pipe.0.as_fd();
        peer.give("owner-descriptors-5", &[pidfd, lease, lock, control, pipe, pipe]);
    };
    fails("owner-offer", more, "protocol", protocol);
    let announced: Rest = |elder, peer| {
        peer.expect(ROOM);
        let [pidfd, lease, lock, control] = elder.first_four();
        let pipe = elder.pipe.0.as_fd();
        peer.give("owner-descriptors-6", &[pidfd, lease, lock, control, pipe, pipe]);
    };
    fails("owner-offer", announced, "protocol", protocol);
    let three: Rest = |elder, peer| {
        peer.expect(ROOM);
        peer.give("owner-descriptors-3", &elder.first_four()[..3]);
    };
    fails("owner-offer", three, "protocol", protocol);
    let none: Rest = |_, peer| {
        peer.expect(ROOM);
        peer.say("owner-descriptors-0");
    };
    fails("owner-offer", none, "protocol", protocol);
    let with_body: Rest = |elder, peer| {
        peer.expect(ROOM);
        let [pidfd, lease, lock, control] = elder.first_four();
        peer.give("owner-descriptors-body", &[pidfd, lease, lock, control, elder.pipe.0.as_fd()]);
    };
    fails("owner-offer", with_body, "protocol", protocol);
}

#[test]
fn a_family_that_is_none_is_a_broken_protocol() {
    let protocol = Some("protocol");
    let foreign_lease: Rest = |elder, peer| {
        peer.expect(ROOM);
        let [pidfd, _, lock, control] = elder.first_four();
        let other = File::open("/dev/null").unwrap();
        peer.give("owner-descriptors-5", &[pidfd, other.as_fd(), lock, control, elder.pipe.0.as_fd()]);
    };
    fails("owner-offer", foreign_lease, "protocol", protocol);
    let deaf_control: Rest = |elder, peer| {
        peer.expect(ROOM);
        let [pidfd, lease, lock, _] = elder.first_four();
        peer.give("owner-descriptors-5", &[pidfd, lease, lock, elder.socket.0.as_fd(), elder.pipe.0.as_fd()]);
    };
    fails("owner-offer", deaf_control, "protocol", protocol);
}

/// Offers of newer owners are read all the same, and nothing of what is read stays when the application gives up.
#[test]
fn offers_of_other_versions_are_understood() {
    let later: Rest = |elder, peer| {
        peer.expect(ROOM);
        let [pidfd, lease, lock, control] = elder.first_four();
        peer.give("owner-descriptors-5-later", &[pidfd, lease, lock, control, elder.pipe.0.as_fd()]);
    };
    let cases: [(&str, Rest); 6] = [
        ("owner-offer", pipe),
        ("owner-offer-shortest", pipe),
        ("owner-offer-unknown-fields", pipe),
        ("owner-offer-unknown-optional", later),
        ("owner-unknown-kind", pipe),
        ("owner-socket", socket),
    ];
    for (offer, rest) in cases {
        let elder = Elder::new();
        thread::scope(|scope| {
            let playing = scope.spawn(|| {
                let (mut peer, nonce) = elder.greet();
                peer.say_with(offer, &elder.numbers(offer == "owner-socket", nonce));
                rest(&elder, &mut peer);
                peer.last_words()
            });
            let starting = elder.scene.start().unwrap_or_else(|error| panic!("{offer}: {error}"));
            assert_eq!(starting.generation(), GENERATION + 1);
            let entries: Vec<_> = starting.entries().collect();
            assert_eq!(entries.len(), 1, "{offer}");
            if offer == "owner-unknown-kind" {
                assert_eq!(entries[0].kind.as_str(), "quic-path", "it is passed on as it is");
            }
            drop(starting);
            playing.join().unwrap();
        });
        elder.assert_nothing_was_kept();
    }
}

#[test]
fn refusals_are_passed_on_and_starting_is_waited_for() {
    let elder = Elder::new();
    let failure = thread::scope(|scope| {
        scope.spawn(|| {
            for refusal in ["owner-refused-starting", "owner-refused-starting", "owner-refused-unknown-code"] {
                let (mut peer, _) = elder.greet();
                peer.say(refusal);
            }
        });
        elder.scene.start().map(drop).unwrap_err()
    });
    assert_eq!(failure.code(), "eclipse");
    assert!(failure.to_string().contains("the moon is in the way"), "{failure}");
    elder.assert_nothing_was_kept();
}

#[test]
fn an_owner_that_ends_the_takeover_is_quoted() {
    let elder = Elder::new();
    let failure = thread::scope(|scope| {
        scope.spawn(|| elder.greet().0.say("owner-abort").hear());
        elder.scene.start().map(drop).unwrap_err()
    });
    assert_eq!(failure.code(), "stopping", "{failure}");
    elder.assert_nothing_was_kept();
}

/// A predecessor's part with this offer, until it has let go.
fn release(elder: &Elder, offer: &str) -> (Peer, u64) {
    let (mut peer, nonce) = elder.greet();
    assert!(lock(&elder.own, 1, libc::F_RDLCK));
    peer.say_with(offer, &elder.numbers(false, nonce));
    pipe(elder, &mut peer);
    assert_eq!(peer.expect(7).field("descriptors"), 5);
    let ready = std::iter::from_fn(|| peer.hear()).find(|frame| frame.kind == 9).unwrap();
    assert_eq!(ready.field("adopted"), 1);
    assert!(lock(&elder.own, 0, libc::F_UNLCK));
    peer.say_with("owner-released", &[("<nonce>", nonce)]);
    (peer, nonce)
}

/// A predecessor that knows nothing but `wire.md` hands over to this library.
#[test]
fn a_predecessor_from_bytes_hands_over() {
    let elder = Arc::new(Elder::new());
    let playing = thread::spawn({
        let elder = elder.clone();
        move || {
            let (mut peer, _) = release(&elder, "owner-offer");
            assert_eq!(peer.expect(11).field("generation"), GENERATION + 1);
            peer.expect(12);
            assert!(lock(&elder.own, 1, libc::F_UNLCK));
            assert!(!lock(&elder.own, 0, libc::F_WRLCK), "the successor owns");
            peer.say("owner-bye");
            peer
        }
    });
    let mut starting = elder.scene.start().unwrap();
    let inherited = starting.inherited("pipe").unwrap().unwrap();
    let mut serving = starting.ready().unwrap();
    let peer = playing.join().unwrap();
    assert!(serving.is_owner());
    assert_eq!(serving.generation(), GENERATION + 1);
    // It was told of nothing before its own takeover.
    assert_eq!(told_history(&elder.scene, &mut serving), ["taken-over"]);
    let written = std::fs::read_to_string(elder.scene.path.with_extension("sock.lock")).unwrap();
    assert_eq!(written, line(GENERATION + 1, 0));
    assert_eq!(
        std::fs::metadata(format!("/proc/self/fd/{}", inherited.as_raw_fd())).unwrap().mode() & 0o170_000,
        0o010_000
    );
    // What it heard after the commit is in its status, until the predecessor is gone.
    let told = |serving: &mut heirloom::Serving| {
        serving.process().unwrap();
        serving.status().predecessor
    };
    eventually("draining and bye are heard", || told(&mut serving).is_some_and(|drain| drain.in_flight == Some(0)));
    drop(peer);
    let elder = Arc::into_inner(elder).unwrap();
    drop(elder.alive.1);
    eventually("the end of the predecessor is noticed", || told(&mut serving).is_none());
}

/// An older version stands by, which knows of no hold: it is told of none, and the way back is open all the same.
#[test]
fn a_predecessor_that_knows_no_hold_takes_back_during_one() {
    let elder = Arc::new(Elder::new());
    let playing = thread::spawn({
        let elder = elder.clone();
        move || {
            let (mut peer, nonce) = release(&elder, "owner-offer-probation");
            assert_eq!(peer.expect(11).field("probation_ms"), 60_000);
            // Nothing in between: no word of the hold that has begun meanwhile.
            let back = peer.expect(TAKE_BACK);
            assert_eq!((back.field("nonce"), back.field("reason")), (nonce.into(), "too slow".into()));
            assert!(lock(&elder.own, 0, libc::F_WRLCK), "it has the lock back");
            peer
        }
    });
    let mut starting = elder.scene.start_on_probation().unwrap();
    starting.inherited("pipe").unwrap().unwrap();
    let mut serving = starting.ready().unwrap();
    let path = elder.scene.path.clone();
    let asking = thread::spawn(move || {
        let mut client = Client::connect(path, PATIENCE).unwrap();
        client.hold("an incident", None).unwrap();
        client.status().unwrap().hold.unwrap().reason
    });
    eventually("the hold is set", || {
        serving.process().unwrap();
        asking.is_finished()
    });
    assert_eq!(asking.join().unwrap(), "an incident");
    serving.give_back("too slow").unwrap();
    eventually("the service is given back", || {
        serving.process().unwrap();
        playing.is_finished()
    });
    let _peer = playing.join().unwrap();
    assert!(!serving.is_owner());
}

/// What a new owner remembers, by its outcomes.
fn told_history(scene: &Scene, serving: &mut heirloom::Serving) -> Vec<String> {
    let path = scene.path.clone();
    let asking = thread::spawn(move || Client::connect(path, PATIENCE).unwrap().history().unwrap());
    eventually("the history is told", || {
        serving.process().unwrap();
        asking.is_finished()
    });
    asking.join().unwrap().into_iter().map(|record| record.outcome).collect()
}

/// A newer predecessor tells of things that this version has no word for: they are kept, and told as they are.
#[test]
fn a_history_of_another_version_is_carried_on() {
    let elder = Arc::new(Elder::new());
    let playing = thread::spawn({
        let elder = elder.clone();
        move || {
            let (mut peer, nonce) = elder.greet();
            peer.say_with("owner-offer", &elder.numbers(false, nonce));
            peer.say("owner-history");
            peer.expect(ROOM);
            let [pidfd, lease, lock, control] = elder.first_four();
            peer.give("owner-descriptors-5-later", &[pidfd, lease, lock, control, elder.pipe.0.as_fd()]);
            std::iter::from_fn(|| peer.hear()).find(|frame| frame.kind == 9).unwrap();
            assert!(self::lock(&elder.own, 0, libc::F_UNLCK));
            peer.say_with("owner-released-later", &[("<nonce>", nonce)]);
            peer.expect(11);
            peer
        }
    });
    let starting = elder.scene.start().unwrap();
    let mut serving = starting.ready().unwrap();
    drop(playing.join().unwrap());
    assert_eq!(told_history(&elder.scene, &mut serving), ["beamed-up", "taken-over"]);
}

/// An owner of before the history does not know the question.
#[test]
fn an_owner_that_keeps_no_history_says_so() {
    let elder = Elder::new();
    let failure = thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = Peer::new(elder.listener.accept().unwrap().0);
            assert_eq!(peer.expect(32).field("question"), "history");
            peer.say("owner-refused-unsupported");
        });
        Client::connect(&elder.scene.path, PATIENCE).unwrap().history().unwrap_err()
    });
    assert_eq!(failure.code(), "unsupported");
}

/// A recording that no test plays would prove nothing.
#[test]
fn every_recording_is_played() {
    let source = include_str!("recorded.rs");
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/recorded")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(source.contains(&format!("\"{name}\"")), "{name} is never played");
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("# "), "{name} does not say what it is");
    }
}
