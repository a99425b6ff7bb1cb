//! Peers that want to hurt: the owner's memory and descriptors stay bounded, and a takeover beside them goes through.
//!
//! Each test tells its figures on stderr. Bounds are for what grows with the number of peers or of bytes, and generous;
//! how long something took is told and not judged.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sendfd::SendWithFd;
use serde_json::json;

use crate::gauge::Gauge;
use crate::peer::{ASK, HELLO, OFFER, Peer, READY, REFUSED, ROOM};
use crate::puppet::{PATIENCE, Puppet, Scene};
use crate::starting::settled;
use crate::visitor::visit;

/// How many clients an owner has at once.
const CLIENTS: usize = 64;
/// More memory than anything here has a right to, in kilobytes.
pub(crate) const SOME: u64 = 8 * 1024;
/// A connection and its pidfd.
const EACH: usize = 2;
/// What a takeover needs beside that, and a client that only asks.
pub(crate) const BESIDE: usize = 16;

/// A frame without a peer: number 0 of its connection.
fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"HRLM".to_vec();
    bytes.extend([kind, flags, 0, 0]);
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

fn ask_status() -> Vec<u8> {
    frame(ASK, 0, b"\x81\xa8question\xa6status")
}

#[track_caller]
fn takes_over(scene: &Scene, owner: &mut Puppet, gauge: &mut Gauge) -> Puppet {
    let began = Instant::now();
    let (next, address) = scene.serve("next", json!({}));
    gauge.note(format!("a takeover took {:?}", began.elapsed()));
    owner.event("leave");
    assert_eq!(visit(&address).pid, next.pid());
    next
}

/// An owner that stays where it is after a takeover, so that it can be looked at: it drains for as long as a lease is
/// held.
fn owner(scene: &Scene, more: serde_json::Value) -> Puppet {
    let (mut owner, _) = scene.serve("1", more);
    owner.ask(json!({"do": "lease"}));
    owner
}

#[test]
fn what_claims_to_be_huge_costs_nothing() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let before = owner.ask(json!({"do": "descriptors"}));
    let claimed = |kind: u8, length: u32| [b"HRLM", &[kind, 0, 0, 0][..], &length.to_be_bytes(), &[0; 4]].concat();
    let huge = |marker: u8| [&[marker][..], &[0xff; 4]].concat();
    // A field of a later version, with a value that claims to have four thousand million parts.
    let field = |value: &[u8]| [b"\x81\xa5newer", value].concat();
    let mut bombs = vec![claimed(HELLO, u32::MAX), claimed(ASK, 65_537), claimed(200, 1 << 31)];
    for marker in [0xc6, 0xc9, 0xdb, 0xdd, 0xdf] {
        bombs.push(frame(HELLO, 0, &huge(marker)));
        bombs.push(frame(HELLO, 0, &field(&huge(marker))));
        bombs.push(frame(HELLO, 0, &[b"\x81\xabapp_version", &huge(marker)[..]].concat()));
        bombs.push(frame(READY, 0, &[b"\x81\xa5bound", &huge(marker)[..]].concat()));
        bombs.push(frame(ASK, 0, &[b"\x81\xa8question", &huge(marker)[..]].concat()));
        // Each list claims as much again.
        bombs.push(frame(HELLO, 0, &field(&huge(marker).repeat(12_000))));
    }
    bombs.push(frame(HELLO, 0, &field(&[0x91; 60_000])));
    bombs.push(frame(HELLO, 0, &[&b"\xdf\x00\x00\x2a\x00"[..], &b"\xa5nonce\x01".repeat(8_000)].concat()));
    bombs.push(frame(ASK, 0, &[&b"\x81\xa8question\xa6status"[..], &[0xc0; 60_000]].concat()));
    let mut gauge = Gauge::of(&owner);
    for _ in 0..20 {
        for bomb in &bombs {
            let mut peer = Peer::connect(&scene);
            peer.send_bytes(bomb);
            while let Some((kind, body)) = peer.read() {
                assert_eq!((kind, &body["code"]), (REFUSED, &json!("protocol")), "{body}");
            }
            gauge.look();
        }
    }
    gauge.note(format!("{} bombs", 20 * bombs.len()));
    gauge.ask(&scene);
    assert_eq!(settled(&mut owner, &before), before);
    let _next = takes_over(&scene, &mut owner, &mut gauge);
    gauge.judge(BESIDE, SOME);
}

/// Memory for what a header announces is there before its body: as many as may be at once are the most there is.
#[test]
fn bodies_that_never_come() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let mut gauge = Gauge::of(&owner);
    let crowd: Vec<Peer> = (0..4 * CLIENTS)
        .map(|_| {
            let mut peer = Peer::connect(&scene);
            peer.send_bytes(&frame(HELLO, 0, &[0; 65_536])[..65_000]);
            gauge.look();
            peer
        })
        .collect();
    gauge.ask(&scene);
    let _next = takes_over(&scene, &mut owner, &mut gauge);
    drop(crowd);
    gauge.judge(EACH * CLIENTS + BESIDE, SOME + CLIENTS as u64 * 64);
}

/// Descriptors on what carries none. Newer kernels refuse them at the sender (`SO_PASSRIGHTS`), the owner everywhere.
#[test]
fn descriptors_where_none_belong() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let before = owner.ask(json!({"do": "descriptors"}));
    let null = std::fs::File::open("/dev/null").unwrap();
    let numbers = |count: usize| -> Vec<RawFd> { vec![null.as_raw_fd(); count] };
    let mut gauge = Gauge::of(&owner);
    let (mut sent, mut refused) = (0, 0);
    let hello = rmp_serde::to_vec_named(&Peer::hello()).unwrap();
    for round in 0..CLIENTS {
        for count in [1, 3, 253] {
            // As a client, with a hello, with a header that announces them, with the first byte of one, and as an heir
            // that is ready.
            let first: [(&[u8], bool); 5] = [
                (&ask_status(), false),
                (&frame(HELLO, 0, &hello), false),
                (b"HRLM\x06\0\0\xfd\0\0\0\0\0\0\0\0", false),
                (b"H", false),
                (&[], true),
            ];
            for (bytes, heir) in first {
                if heir && round > 0 {
                    continue;
                }
                let mut peer = Peer::connect(&scene);
                let bytes = if heir {
                    peer.receive_all();
                    let mut bytes = peer.header(READY, 0, 1);
                    bytes.push(0x80);
                    bytes
                } else {
                    bytes.to_vec()
                };
                match peer.stream().send_with_fd(&bytes, &numbers(count)) {
                    Ok(_) => sent += 1,
                    Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
                gauge.look();
            }
        }
    }
    gauge.note(format!("{sent} times sent, {refused} times refused by the kernel"));
    gauge.ask(&scene);
    assert_eq!(settled(&mut owner, &before), before);
    let _next = takes_over(&scene, &mut owner, &mut gauge);
    gauge.judge(EACH * CLIENTS + BESIDE, SOME);
}

/// What is sent before the owner has so much as accepted must not slip in.
#[test]
fn descriptors_that_were_sent_before_the_owner_looked() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let before = owner.ask(json!({"do": "descriptors"}));
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut gauge = Gauge::of(&owner);
    owner.freeze();
    let crowd: Vec<(Peer, bool)> = (0..CLIENTS)
        .map(|_| {
            let peer = Peer::connect(&scene);
            let sent = peer.stream().send_with_fd(b"HRLM", &[null.as_raw_fd(); 50]);
            (peer, sent.is_ok())
        })
        .collect();
    owner.thaw();
    gauge.note(format!("{} times sent", crowd.iter().filter(|(_, sent)| *sent).count()));
    // Every connection has been looked at once this answer is here.
    gauge.ask(&scene);
    drop(crowd);
    assert_eq!(settled(&mut owner, &before), before);
    gauge.judge(EACH * CLIENTS + BESIDE, SOME);
}

/// A service whose manifest and status are longer than a socket buffer.
fn large() -> serde_json::Value {
    with(4000)
}

fn with(entries: usize) -> serde_json::Value {
    json!({"claims": [
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "null", "name": "a raw entry with a name that is long enough to make a long status", "count": entries},
    ]})
}

/// Says as much as fits, without waiting.
fn stuff(peer: &Peer, bytes: &[u8]) -> usize {
    peer.stream().set_nonblocking(true).unwrap();
    let mut stuffed = 0;
    while let Ok(count @ 1..) = peer.stream().write_some(bytes) {
        stuffed += count;
    }
    peer.stream().set_nonblocking(false).unwrap();
    stuffed
}

/// Writing through a shared reference.
trait WriteSome {
    fn write_some(&self, bytes: &[u8]) -> std::io::Result<usize>;
}

impl WriteSome for UnixStream {
    fn write_some(&self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut stream = self;
        stream.write(bytes)
    }
}

/// Questions without end, and not one answer is read.
#[test]
fn clients_that_ask_and_never_read() {
    let scene = Scene::new();
    let (mut owner, _) = scene.serve("1", large());
    let before = owner.ask(json!({"do": "descriptors"}));
    let mut gauge = Gauge::of(&owner);
    // One question after the other, each with its number.
    let questions = |first: u32| -> Vec<u8> {
        (first..first + 5000)
            .flat_map(|number| {
                let mut question = ask_status();
                question[12..16].copy_from_slice(&number.to_be_bytes());
                question
            })
            .collect()
    };
    let questions = questions(0);
    let crowd: Vec<Peer> = (0..CLIENTS - 1)
        .map(|_| {
            let peer = Peer::connect(&scene);
            stuff(&peer, &questions);
            gauge.look();
            peer
        })
        .collect();
    gauge.ask(&scene);
    gauge.ask(&scene);
    // They are hung up on at the deadline, and until then nothing turns in a circle.
    let (cpu, began) = (gauge.cpu(), Instant::now());
    crowd.iter().for_each(Peer::is_hung_up_on);
    let used = gauge.cpu() - cpu;
    gauge.note(format!("all hung up on after {:?} and {used:?} of processor time", began.elapsed()));
    assert!(used < Duration::from_secs(1), "it spins: {used:?}");
    drop(crowd);
    assert_eq!(settled(&mut owner, &before), before);
    // Each has one answer of some hundred kilobytes to get, and no more than that.
    gauge.judge(EACH * CLIENTS + BESIDE, SOME + CLIENTS as u64 * 1024);
}

#[test]
fn a_watcher_that_never_reads() {
    let scene = Scene::new();
    let owner = owner(&scene, large());
    let mut gauge = Gauge::of(&owner);
    let mut watchers: Vec<Peer> = (0..8)
        .map(|_| {
            let mut peer = Peer::connect(&scene);
            peer.send(ASK, &json!({"question": "watch"}));
            peer
        })
        .collect();
    let mut heir = scene.warm("2", json!({}));
    // Each is a change that every watcher is to hear of.
    for number in 0..500 {
        heir.ask(json!({"do": "progress", "text": number.to_string()}));
        if number % 50 == 0 {
            gauge.ask(&scene);
        }
    }
    drop(heir);
    drop(watchers.drain(..));
    gauge.judge(EACH * 8 + BESIDE, SOME + 8 * 1024);
}

/// Who pauses misses what is over by then, and not how it is in the end.
#[test]
fn a_watcher_that_reads_late_hears_the_last_status() {
    // Statuses of which the socket takes all, most, or a part.
    for entries in [200, 1200, 1800, 2400, 4000] {
        let scene = Scene::new();
        let _owner = owner(&scene, with(entries));
        let mut watcher = Peer::connect(&scene);
        watcher.send(ASK, &json!({"question": "watch"}));
        let mut heir = scene.warm("2", json!({}));
        for number in 0..100 {
            heir.ask(json!({"do": "progress", "text": format!("step {number}")}));
        }
        loop {
            let (_, body) = watcher.read().expect("hung up on");
            if body.to_string().contains("step 99") {
                break;
            }
        }
    }
}

#[test]
fn an_heir_that_never_reads() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", large());
    let before = owner.ask(json!({"do": "descriptors"}));
    let mut gauge = Gauge::of(&owner);
    for _ in 0..2 {
        let mut peer = Peer::connect(&scene);
        let began = Instant::now();
        peer.send(HELLO, &Peer::hello());
        scene.status_where(|status| status.takeover.is_some());
        gauge.ask(&scene);
        scene.status_where(|status| status.takeover.is_none());
        gauge.note(format!("it was given up after {:?}", began.elapsed()));
        assert_eq!(visit(&address).pid, owner.pid());
    }
    assert_eq!(settled(&mut owner, &before), before);
    owner.ask(json!({"do": "lease"}));
    let (next, _) = scene.serve("next", large());
    owner.event("leave");
    drop(next);
    gauge.judge(EACH * CLIENTS + BESIDE, SOME + 4 * 1024);
}

/// Peers that say one byte at each beat, in a thread of their own; who is hung up on comes again.
struct Drip {
    stop: Sender<()>,
    beats: Receiver<()>,
    thread: JoinHandle<usize>,
}

impl Drip {
    /// A beat is shorter than a second, so that a test need not wait for long.
    const BEAT: Duration = Duration::from_millis(50);

    fn begin(scene: &Scene, count: usize, bytes: Vec<u8>) -> Drip {
        let (stop, stopped) = channel();
        let (beat, beats) = channel();
        let path = scene.control();
        let connect = move || UnixStream::connect(&path).ok();
        let mut peers: Vec<(Option<UnixStream>, usize)> = (0..count).map(|_| (connect(), 0)).collect();
        let thread = thread::spawn(move || {
            let mut hung_up = 0;
            while stopped.recv_timeout(Drip::BEAT) == Err(RecvTimeoutError::Timeout) {
                for (stream, said) in &mut peers {
                    // The last byte is never said.
                    let at = (*said).min(bytes.len() - 2);
                    let alive = stream.as_ref().is_some_and(|stream| stream.write_some(&bytes[at..=at]).is_ok());
                    *said += 1;
                    if !alive {
                        hung_up += 1;
                        (*stream, *said) = (connect(), 0);
                    }
                }
                let _ = beat.send(());
            }
            hung_up
        });
        Drip { stop, beats, thread }
    }

    /// Waits until each has said so many bytes more.
    fn goes_on(&self, beats: usize) {
        self.beats.iter().take(beats).for_each(drop);
    }

    /// Ends it, and says how many times one of them was hung up on.
    fn end(self) -> usize {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// None of them ever finishes a frame, so each has been silent for longer than the successor: it is never the one that
/// has to go.
#[test]
fn a_takeover_beside_as_many_that_drip_as_there_may_be() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({"exclusive": true}));
    let mut gauge = Gauge::of(&owner);
    let hello = frame(HELLO, 0, &rmp_serde::to_vec_named(&Peer::hello()).unwrap());
    let drip = Drip::begin(&scene, CLIENTS, hello);
    drip.goes_on(3);
    gauge.ask(&scene);
    // Warming up for a while: it is not pushed out either while it is silent and all others talk.
    let mut next = scene.warm("2", json!({}));
    drip.goes_on(10);
    gauge.ask(&scene);
    let began = Instant::now();
    next.ask(json!({"do": "ready"}));
    next.event("serving");
    gauge.note(format!("from ready to serving it took {:?}", began.elapsed()));
    owner.event("leave");
    drip.goes_on(3);
    gauge.note(format!("{} times hung up on one that drips", drip.end()));
    gauge.judge(EACH * CLIENTS + BESIDE, SOME);
}

/// A byte now and then is no message: the deadline of the handshake comes all the same, for a client and for an heir.
#[test]
fn who_drips_is_hung_up_on_at_the_deadline() {
    let scene = Scene::new();
    let (mut owner, address) = scene.serve("1", json!({}));
    let before = owner.ask(json!({"do": "descriptors"}));
    let mut gauge = Gauge::of(&owner);
    let mut heir = Peer::connect(&scene);
    heir.send(HELLO, &Peer::hello());
    heir.expect(OFFER);
    let body = rmp_serde::to_vec_named(&json!({"descriptors": 5, "a field of a later version": vec![0; 400]})).unwrap();
    let room = [heir.header(ROOM, 0, body.len() as u32), body].concat();
    let mut client = Peer::connect(&scene);
    let question = frame(HELLO, 0, &[0; 1000]);
    let began = Instant::now();
    let mut ended = [None, None];
    for at in 0.. {
        for (which, (peer, bytes)) in [(&mut heir, &room), (&mut client, &question)].into_iter().enumerate() {
            if ended[which].is_none() && (at >= bytes.len() || peer.stream().write_some(&bytes[at..=at]).is_err()) {
                ended[which] = Some((at, began.elapsed()));
            }
        }
        if ended.iter().all(Option::is_some) {
            break;
        }
        // The beat: nothing is heard meanwhile, or what is heard is the end.
        client.hears_nothing_for(Drip::BEAT);
        gauge.look();
        assert!(began.elapsed() < PATIENCE);
    }
    for (who, ended) in ["heir", "client"].into_iter().zip(ended) {
        let (bytes, after) = ended.unwrap();
        assert!(bytes < 400, "the {who} came to the end of its bytes");
        gauge.note(format!("the {who} was hung up on after {after:?} and {bytes} bytes"));
    }
    scene.status_where(|status| status.takeover.is_none());
    assert_eq!(visit(&address).pid, owner.pid());
    drop((heir, client));
    assert_eq!(settled(&mut owner, &before), before);
    gauge.judge(BESIDE, SOME);
}

/// Ten thousand, from four sides at once, while the application has its turns and a takeover goes through.
#[test]
fn ten_thousand_connections_that_come_and_go() {
    const EACH_SIDE: usize = 2500;
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let before = owner.ask(json!({"do": "descriptors"}));
    let mut gauge = Gauge::of(&owner);
    let began = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let sides: Vec<JoinHandle<()>> = (0..4)
        .map(|side| {
            let (path, done) = (scene.control(), done.clone());
            thread::spawn(move || {
                for number in 0..EACH_SIDE {
                    let mut stream = UnixStream::connect(&path).unwrap();
                    match (side + number) % 4 {
                        0 => {}
                        // It goes with the answer unread.
                        1 => drop(stream.write_all(&ask_status())),
                        // It says something, and goes at once with what the owner has not read.
                        2 => drop(stream.write_all(&[b'x'; 3000])),
                        _ => drop(stream.write_all(b"HRLM\x01")),
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    let mut turns = 0;
    while done.load(Ordering::SeqCst) < 2 * EACH_SIDE {
        let asked = Instant::now();
        owner.ask(json!({"do": "nothing"}));
        longest = longest.max(asked.elapsed());
        turns += 1;
        gauge.look();
    }
    gauge.ask(&scene);
    let next = takes_over(&scene, &mut owner, &mut gauge);
    let left = 4 * EACH_SIDE - done.load(Ordering::SeqCst);
    sides.into_iter().for_each(|side| side.join().unwrap());
    gauge.note(format!("the owner's application had {turns} turns in the first half and waited {longest:?} at most"));
    gauge.note(format!("all had come and gone after {:?}, {left} of them after the takeover", began.elapsed()));
    drop(next);
    owner.event("resumed");
    assert_eq!(settled(&mut owner, &before), before);
    gauge.judge(EACH * CLIENTS + BESIDE, SOME);
}

/// Frames of a later version that may be skipped, as fast as they go: whoever else is there has his turn.
#[test]
fn peers_that_never_stop_talking() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let mut gauge = Gauge::of(&owner);
    let stop = Arc::new(AtomicBool::new(false));
    let talkers: Vec<JoinHandle<u64>> = (0..4)
        .map(|_| {
            let (path, stop) = (scene.control(), stop.clone());
            thread::spawn(move || {
                let mut bytes = 0;
                let end = Instant::now() + PATIENCE;
                let mut stream = UnixStream::connect(&path).unwrap();
                let mut number = 0u32;
                while !stop.load(Ordering::SeqCst) && Instant::now() < end {
                    let mut skipped = frame(200, 1, &[0x80; 60_000]);
                    skipped[12..16].copy_from_slice(&number.to_be_bytes());
                    // The next owner does not know it.
                    if stream.write_all(&skipped).is_err() {
                        break;
                    }
                    number += 1;
                    bytes += skipped.len() as u64;
                }
                bytes
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let asked = Instant::now();
        owner.ask(json!({"do": "nothing"}));
        longest = longest.max(asked.elapsed());
        gauge.ask(&scene);
    }
    let _next = takes_over(&scene, &mut owner, &mut gauge);
    stop.store(true, Ordering::SeqCst);
    let bytes: u64 = talkers.into_iter().map(|talker| talker.join().unwrap()).sum();
    gauge.note(format!("{} MB were said beside; the application waited {longest:?} at most", bytes / 1_000_000));
    gauge.judge(BESIDE + 8, SOME);
}

/// Connects until the queue is full, and says nothing.
fn fill_the_queue(scene: &Scene) -> Vec<socket2::Socket> {
    let address = socket2::SockAddr::unix(scene.control()).unwrap();
    let mut crowd = Vec::new();
    loop {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&address) {
            Ok(()) => crowd.push(socket),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return crowd,
            Err(error) => panic!("{error}"),
        }
        assert!(crowd.len() < 10_000, "a queue without an end");
    }
}

/// An owner that is stopped while its queue fills up: who starts is told what is the matter.
#[test]
fn a_full_queue_before_an_owner_that_is_stopped() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let before = owner.ask(json!({"do": "descriptors"}));
    let mut gauge = Gauge::of(&owner);
    owner.freeze();
    let crowd = fill_the_queue(&scene);
    gauge.note(format!("{} in the queue", crowd.len()));
    let mut second = Puppet::new();
    second.ask(scene.begin("2", json!({"start_ms": 1500})));
    let error = second.failure();
    assert_eq!(error["code"], "unresponsive", "{error}");
    assert!(error["message"].as_str().unwrap().contains(&owner.pid().to_string()), "{error}");
    owner.thaw();
    gauge.ask(&scene);
    // And with all of them still there, the next one gets in.
    let next = takes_over(&scene, &mut owner, &mut gauge);
    drop((crowd, next));
    owner.event("resumed");
    assert_eq!(settled(&mut owner, &before), before);
    gauge.judge(EACH * CLIENTS + BESIDE, SOME);
}

/// The descriptors of an owner are used up, to the last: clients wait, nothing spins, and a takeover is still possible.
#[test]
fn an_owner_without_a_descriptor_left_hands_over() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let mut gauge = Gauge::of(&owner);
    let open = gauge.look() as u64;
    owner.ask(json!({"do": "limit", "soft": open, "hard": 4096}));
    let crowd: Vec<Peer> = (0..CLIENTS / 4).map(|_| Peer::connect(&scene)).collect();
    gauge.ask(&scene);
    let _next = takes_over(&scene, &mut owner, &mut gauge);
    drop(crowd);
    gauge.judge(BESIDE, SOME);
}

/// Not even the spare ones are any use: as soon as there is one, the takeover goes through.
#[test]
fn an_owner_that_may_not_open_anything_waits_and_does_not_spin() {
    let scene = Scene::new();
    let mut owner = owner(&scene, json!({}));
    let mut gauge = Gauge::of(&owner);
    owner.ask(json!({"do": "limit", "soft": 3, "hard": 4096}));
    let crowd: Vec<Peer> = (0..10).map(|_| Peer::connect(&scene)).collect();
    let mut second = Puppet::new();
    second.tell(&scene.begin("2", json!({})));
    let (cpu, began) = (gauge.cpu(), Instant::now());
    assert!(crowd[0].hears_nothing_for(Duration::from_secs(2)));
    let used = gauge.cpu() - cpu;
    gauge.note(format!("{used:?} of processor time in {:?} of the shortage", began.elapsed()));
    assert!(used < Duration::from_millis(400), "it spins: {used:?}");
    owner.ask(json!({"do": "nothing"}));
    let freed = Instant::now();
    owner.ask(json!({"do": "limit", "soft": 1024, "hard": 4096}));
    second.event("serving");
    gauge.note(format!("a takeover took {:?} after it", freed.elapsed()));
    owner.event("leave");
    drop(crowd);
    gauge.judge(EACH * 12 + BESIDE, SOME);
}
