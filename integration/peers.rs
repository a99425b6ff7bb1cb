//! Peers that are broken, hostile or silent: the owner serves on, and never does what only an owner may without the lock.

use std::time::{Duration, Instant};

use heirloom::{Client, Error, Phase};
use sendfd::SendWithFd;
use serde_json::{Value, json};

use crate::ctl::stage::eventually;
use crate::peer::{ABORT, ACK, ASK, CONFIRMED, HELLO, OFFER, OWNING, Peer, READY, REFUSED, ROOM};
use crate::puppet::{PATIENCE, Puppet, Scene};
use crate::starting::settled;
use crate::visitor::visit;

fn owns(puppet: &mut Puppet) -> bool {
    puppet.ask(json!({"do": "is-owner"}))["ok"] == true
}

/// Waits until the process owns: a lock has no event, so it is asked.
#[track_caller]
fn owns_again(puppet: &mut Puppet) {
    let end = Instant::now() + PATIENCE;
    while !owns(puppet) {
        assert!(Instant::now() < end, "it never owned again");
    }
}

#[track_caller]
fn hands_over(scene: &Scene, owner: &mut Puppet, address: &str) {
    let (next, _) = scene.serve("next", json!({}));
    assert_eq!(owner.exit_code(), Some(0));
    assert_eq!(visit(address).pid, next.pid());
}

/// It holds the lock and does not say so: streams are accepted on, and nothing else is done.
#[test]
fn a_successor_that_holds_the_lock_in_silence() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true}));
    let mut peer = Peer::connect(&scene);
    peer.get_released();
    let lock = Peer::lock(&scene, 0).unwrap();
    // Longer than the commit deadline.
    assert!(peer.hears_nothing_for(Duration::from_millis(2600)));
    assert!(!owns(&mut first));
    assert_eq!(visit(&address).pid, first.pid());
    assert!(first.events().iter().all(|event| event["event"] != "resume" && event["event"] != "leave"));
    // It speaks at last.
    peer.send(OWNING, &json!({"generation": 2}));
    peer.send(CONFIRMED, &json!({}));
    assert_eq!(first.event("leave")["reason"], "successor");
    assert_eq!(first.exit_code(), Some(0));
    drop(lock);
}

#[test]
fn a_successor_that_dies_with_the_lock_in_hand() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true}));
    let mut peer = Peer::connect(&scene);
    peer.get_released();
    let lock = Peer::lock(&scene, 0).unwrap();
    assert!(!owns(&mut first));
    drop((peer, lock));
    first.event("resume");
    owns_again(&mut first);
    assert_eq!(scene.status().pid, first.pid());
    hands_over(&scene, &mut first, &address);
}

#[test]
fn a_successor_that_never_takes_the_lock() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true}));
    let mut peer = Peer::connect(&scene);
    peer.get_released();
    let abort = peer.expect(ABORT);
    assert_eq!(abort["code"], "commit");
    assert_eq!(first.event("resume")["generation"], 1);
    assert!(owns(&mut first));
    assert!(Peer::lock(&scene, 0).is_none(), "too late");
    hands_over(&scene, &mut first, &address);
}

/// What a peer says is no proof: the lock is.
#[test]
fn a_successor_that_says_it_owns_and_does_not() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut peer = Peer::connect(&scene);
    peer.get_released();
    peer.send(OWNING, &json!({"generation": 2}));
    peer.send(CONFIRMED, &json!({}));
    // Whatever it was told, the process ends as the owner: nobody else is.
    first.first_of(&["resume", "resumed"]);
    owns_again(&mut first);
    assert_eq!(visit(&address).pid, first.pid());
    drop(peer);
    hands_over(&scene, &mut first, &address);
}

#[test]
fn a_successor_that_withdraws_after_the_release() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({"exclusive": true}));
    let mut peer = Peer::connect(&scene);
    peer.get_released();
    peer.send(ABORT, &json!({"code": "cancelled"}));
    first.event("resume");
    assert!(owns(&mut first));
    hands_over(&scene, &mut first, &address);
}

#[test]
fn a_hello_and_then_silence_ends_at_the_deadline_of_the_handshake() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut peer = Peer::connect(&scene);
    peer.send(HELLO, &Peer::hello());
    peer.expect(OFFER);
    scene.status_where(|status| status.takeover.is_none());
    assert!(owns(&mut first));
    hands_over(&scene, &mut first, &address);
}

#[test]
fn steps_out_of_order_end_the_takeover_and_nothing_else() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    let wrong: [(u8, Value); 7] = [
        // What nobody knows ends the takeover as well: the one who said it is hung up on.
        (ASK, json!({"question": "of a later version"})),
        (HELLO, Peer::hello()),
        (READY, json!({})),
        (OWNING, json!({"generation": 2})),
        (ACK, json!({"descriptors": 5})),
        (ROOM, json!({"descriptors": 1})),
        (CONFIRMED, json!({})),
    ];
    for (kind, body) in wrong {
        let mut peer = Peer::connect(&scene);
        peer.send(HELLO, &Peer::hello());
        peer.expect(OFFER);
        peer.send(kind, &body);
        let mut last = None;
        while let Some(frame) = peer.read() {
            last = Some(frame);
        }
        let (last, why) = last.unwrap();
        assert!(last == ABORT || last == REFUSED, "{kind}: {last} {why}");
        assert!(owns(&mut first));
        assert_eq!(visit(&address).pid, first.pid());
    }
    for descriptors in [0, 6, 1000] {
        let mut peer = Peer::connect(&scene);
        peer.receive_all();
        peer.send(ACK, &json!({"descriptors": descriptors}));
        assert_eq!(peer.read().unwrap().0, ABORT);
    }
    assert_eq!(settled(&mut first, &before), before);
    hands_over(&scene, &mut first, &address);
}

#[test]
fn garbage_is_answered_or_hung_up_on_and_a_takeover_beside_it_goes_on() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm("2", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    let deep = |depth: usize| {
        let mut body = b"\x81\xa1x".to_vec();
        body.extend(std::iter::repeat_n(0x91, depth));
        body.push(0xc0);
        body
    };
    let framed = |kind: u8, body: &[u8]| {
        let mut bytes = b"HRLM".to_vec();
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    };
    let mut many = Vec::new();
    many.extend([0xdd, 0xff, 0xff, 0xff, 0xff]);
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0; 16],
        vec![0xff; 100_000],
        framed(200, b"\x80"),
        framed(0, b"\x80"),
        framed(HELLO, b"\x80"),
        framed(HELLO, &[]),
        framed(HELLO, &deep(5_000)),
        framed(HELLO, &many),
        framed(32, b"\x80"),
        framed(32, b"\x81\xa8question\xa5boooo"),
        framed(6, &[]),
        // A body that is too long, a wrong sequence number, more descriptors than come.
        [b"HRLM\x20\0\0\0".as_slice(), &65_537u32.to_be_bytes(), &[0; 4]].concat(),
        [b"HRLM\x20\0\0\0".as_slice(), &0u32.to_be_bytes(), &[0, 0, 0, 9]].concat(),
        [b"HRLM\x20\0\0\xff".as_slice(), &0u32.to_be_bytes(), &[0; 4]].concat(),
        [b"HRLM\x06\0\0\x03".as_slice(), &0u32.to_be_bytes(), &[0; 4]].concat(),
    ];
    for (number, bytes) in garbage.iter().enumerate() {
        let mut peer = Peer::connect(&scene);
        peer.send_bytes(bytes);
        while let Some((kind, body)) = peer.read() {
            assert_eq!(kind, REFUSED, "{number}: {body}");
        }
        assert!(owns(&mut first), "{number}");
    }
    // Half a header, and then nothing.
    for cut in [1, 15, 17] {
        let mut peer = Peer::connect(&scene);
        peer.send_bytes(&framed(32, b"\x80\x80\x80")[..cut]);
    }
    assert_eq!(settled(&mut first, &before), before);
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    assert_eq!(visit(&address).pid, second.pid());
}

#[test]
fn descriptors_that_nobody_asked_for_are_refused_and_closed() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    let before = first.ask(json!({"do": "descriptors"}));
    let null = std::fs::File::open("/dev/null").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&null);
    for announced in [0, 3] {
        let mut peer = Peer::connect(&scene);
        let header = peer.header(6, announced, 0);
        // Newer kernels refuse to send them, where the owner asked for that.
        let _ = peer.stream().send_with_fd(&header, &[number; 3]);
        peer.send(32, &json!({"question": "status"}));
        let mut peer = Peer::connect(&scene);
        let mut header = peer.header(32, 0, 100);
        header.truncate(8);
        let _ = peer.stream().send_with_fd(&header, &[number]);
    }
    assert!(owns(&mut first));
    assert_eq!(settled(&mut first, &before), before);
}

#[test]
fn versions_are_negotiated_as_a_range() {
    let scene = Scene::new();
    let (_first, _) = scene.serve("1", json!({}));
    let with = |more: Value| {
        let mut hello = Peer::hello();
        crate::puppet::merge(&mut hello, more);
        let mut peer = Peer::connect(&scene);
        peer.send(HELLO, &hello);
        let answer = peer.read().unwrap();
        drop(peer);
        scene.status_where(|status| status.takeover.is_none());
        answer
    };
    let (kind, refusal) = with(json!({"min_version": 2, "max_version": 9}));
    assert_eq!((kind, &refusal["code"]), (REFUSED, &json!("version")), "{refusal}");
    let (kind, offer) =
        with(json!({"min_version": 0, "max_version": 9, "a field of a later version": [1, 2, {"x": 3}]}));
    assert_eq!((kind, &offer["version"]), (OFFER, &json!(1)));
    let (kind, refusal) = with(json!({"min_version": 3, "max_version": 1}));
    assert_eq!((kind, &refusal["code"]), (REFUSED, &json!("protocol")), "{refusal}");
    let (kind, refusal) = with(json!({"wants": "something of a later version"}));
    assert_eq!((kind, &refusal["code"]), (REFUSED, &json!("unsupported")), "{refusal}");
}

#[test]
fn a_crowd_of_silent_clients_delays_no_takeover() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let crowd: Vec<Peer> = (0..120).map(|_| Peer::connect(&scene)).collect();
    hands_over(&scene, &mut first, &address);
    drop(crowd);
}

/// Whoever looks at the lock exclusively must not get in between a release and its commit.
#[test]
fn a_third_process_that_wants_the_lock_waits_for_byte_one() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    assert!(Peer::lock(&scene, 0).is_none(), "the owner has byte 0");
    assert!(Peer::lock(&scene, 1).is_some(), "and no takeover is under way");
    let second = scene.warm("2", json!({}));
    assert!(Peer::lock(&scene, 1).is_none(), "both parties share byte 1");
    drop(second);
    scene.status_where(|status| status.takeover.is_none());
    assert!(Peer::lock(&scene, 1).is_some());
    assert!(owns(&mut first));
}

/// Somebody else's server at the path, or a broken owner: the start fails with a reason, and keeps nothing.
#[test]
fn an_owner_that_talks_nonsense_is_not_followed() {
    let scene = Scene::new();
    let listener = std::os::unix::net::UnixListener::bind(scene.control()).unwrap();
    let mut puppet = Puppet::new();
    let before = puppet.ask(json!({"do": "descriptors"}));
    let nonsense: [(&[u8], &[&str]); 6] = [
        (b"", &["occupied"]),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", &["protocol"]),
        (b"HRLM\x03\0\0\0\0\0\0\x01\0\0\0\0\x80", &["protocol"]),
        (b"HRLM\x0a\0\0\0\0\0\0\x01\0\0\0\0\x80", &["protocol"]),
        (b"HRLM\x06\0\0\x04\0\0\0\0\0\0\0\0", &["protocol"]),
        (b"HRLM\xf0\0\0\0\0\0\0\x01\0\0\0\0\x80", &["protocol"]),
    ];
    for (number, (bytes, codes)) in nonsense.into_iter().enumerate() {
        puppet.ask(scene.begin("1", json!({})));
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        if bytes.is_empty() {
            drop(stream);
        }
        let error = puppet.failure();
        assert!(codes.contains(&error["code"].as_str().unwrap()), "{number}: {error}");
        assert_eq!(puppet.ask(json!({"do": "descriptors"})), before, "{number}");
        // What came after the hello has been heard, whatever it was.
        listener.set_nonblocking(true).unwrap();
        while listener.accept().is_ok() {}
        listener.set_nonblocking(false).unwrap();
    }
}

/// His time was up while the owner was stopped, and he has told people that nothing came of it.
#[test]
fn an_order_of_a_client_that_has_hung_up_is_not_followed() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    type Order = fn(&mut Client) -> Result<(), Error>;
    let orders: [Order; 4] =
        [Client::stop, Client::lift, |client| client.hold("too late", None), |client| client.finish_drain(None)];
    first.freeze();
    for order in orders {
        let mut client = Client::connect(scene.control(), Duration::from_millis(50)).unwrap();
        assert_eq!(order(&mut client).unwrap_err().code(), "deadline");
    }
    first.thaw();
    let status = scene.status();
    assert_eq!((status.phase, &status.hold), (Phase::Serving, &None));
    eventually(|| (first.log().matches("has hung up: nothing is done").count() == orders.len()).then_some(()));
    hands_over(&scene, &mut first, &address);
}

/// Who has ended his own direction alone still reads.
#[test]
fn an_order_of_a_client_that_has_said_all_is_followed() {
    let scene = Scene::new();
    let (mut first, _) = scene.serve("1", json!({}));
    first.freeze();
    let mut peer = Peer::connect(&scene);
    peer.send(ASK, &json!({"question": "stop"}));
    peer.stream().shutdown(std::net::Shutdown::Write).unwrap();
    first.thaw();
    assert_eq!(first.event("leave")["reason"], "stopped");
    assert_eq!(first.exit_code(), Some(0));
}
