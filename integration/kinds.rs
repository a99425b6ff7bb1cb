//! Every kind of descriptor, through a takeover.

use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, recv, socket};
use serde_json::{Value, json};

use crate::puppet::{Puppet, Scene};
use crate::visitor::{self, visit_unix};

/// Takes over with the same claims.
#[track_caller]
fn next(scene: &Scene, claims: &Value, predecessor: &mut Puppet) -> Puppet {
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("2", json!({"claims": claims})));
    assert_eq!(puppet.event("started")["failed_checks"], json!([]));
    puppet.event("serving");
    assert_eq!(predecessor.exit_code(), Some(0));
    let report = puppet.ask(json!({"do": "report"}));
    for outcome in report["ok"]["entries"].as_object().unwrap().values() {
        assert_eq!(outcome["outcome"], "adopted", "{report}");
    }
    puppet
}

#[test]
fn a_datagram_that_waits_in_a_udp_socket_survives() {
    let scene = Scene::new();
    let claims = json!([{"kind": "udp", "name": "dns", "address": "127.0.0.1:0"}]);
    let mut first = Puppet::new();
    first.ask(scene.begin("1", json!({"claims": claims})));
    let address = first.event("serving")["addresses"]["dns"].as_str().unwrap().to_owned();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"one", &address).unwrap();
    let mut second = next(&scene, &claims, &mut first);
    client.send_to(b"two", &address).unwrap();
    assert_eq!(second.ask(json!({"do": "receive", "name": "dns"}))["ok"], "one");
    assert_eq!(second.ask(json!({"do": "receive", "name": "dns"}))["ok"], "two");
    assert!(second.ask(json!({"do": "receive", "name": "dns"}))["ok"].is_null(), "non-blocking");
}

#[test]
fn a_datagram_that_waits_in_a_unix_socket_survives() {
    let scene = Scene::new();
    let path = scene.path("log.sock");
    let claims = json!([{"kind": "unix-datagram", "name": "log", "address": path}]);
    let (mut first, _) = scene.serve("1", json!({"claims": claims}));
    let client = UnixDatagram::unbound().unwrap();
    client.send_to(b"one", &path).unwrap();
    let mut second = next(&scene, &claims, &mut first);
    assert_eq!(second.ask(json!({"do": "receive", "name": "log"}))["ok"], "one");
    second.ask(json!({"do": "stop"}));
    assert_eq!(second.exit_code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_unix_listener_names_its_new_owner_to_clients() {
    let scene = Scene::new();
    let path = scene.path("app.sock");
    let claims = json!([{"kind": "unix", "name": "local", "address": path}]);
    let (mut first, _) = scene.serve("1", json!({"claims": claims, "accept": false}));
    let waiting = UnixStream::connect(&path).unwrap();
    let second = next(&scene, &claims, &mut first);
    assert_eq!(visitor::answer_unix(waiting).pid, second.pid());
    let stream = UnixStream::connect(&path).unwrap();
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).unwrap();
    assert_eq!(peer.pid(), second.pid() as i32, "SO_PEERCRED");
    assert_eq!(visit_unix(&path).pid, second.pid());
}

#[test]
fn a_seqpacket_listener_keeps_what_waits_in_its_queue() {
    let scene = Scene::new();
    let path = scene.path("packets.sock");
    let claims = json!([{"kind": "seqpacket", "name": "packets", "address": path}]);
    let (mut first, _) = scene.serve("1", json!({"claims": claims, "accept": false}));
    let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&client);
    connect(number, &UnixAddr::new(&path).unwrap()).unwrap();
    let second = next(&scene, &claims, &mut first);
    let mut buffer = [0; 100];
    let count = recv(number, &mut buffer, nix::sys::socket::MsgFlags::empty()).unwrap();
    let line = String::from_utf8_lossy(&buffer[..count]).into_owned();
    assert_eq!(line.trim(), format!("2 2 {}", second.pid()));
}

#[test]
fn a_memfd_and_a_pipe_keep_their_content_and_their_mode() {
    let scene = Scene::new();
    let claims = json!([
        {"kind": "memfd", "name": "cache", "content": "warm"},
        {"kind": "pipe", "name": "queue"},
    ]);
    let (mut first, _) = scene.serve("1", json!({"claims": claims}));
    first.ask(json!({"do": "write", "name": "queue-write", "text": "in flight"}));
    let mut second = next(&scene, &claims, &mut first);
    assert_eq!(second.ask(json!({"do": "read", "name": "cache"}))["ok"], "warm");
    assert_eq!(second.ask(json!({"do": "read", "name": "queue-read"}))["ok"], "in flight");
}

#[test]
fn all_kinds_together_over_three_generations() {
    let scene = Scene::new();
    let claims = json!([
        {"kind": "tcp", "name": "web", "address": "127.0.0.1:0"},
        {"kind": "tcp", "name": "web6", "address": "[::1]:0"},
        {"kind": "udp", "name": "dns", "address": "127.0.0.1:0"},
        {"kind": "unix", "name": "local", "address": scene.path("a.sock")},
        {"kind": "unix-datagram", "name": "log", "address": scene.path("b.sock")},
        {"kind": "seqpacket", "name": "packets", "address": scene.path("c.sock")},
        {"kind": "memfd", "name": "cache", "content": "warm"},
        {"kind": "pipe", "name": "queue"},
    ]);
    let (mut owner, _) = scene.serve("1", json!({"claims": claims}));
    for _ in 0..3 {
        owner = next(&scene, &claims, &mut owner);
    }
    let status = scene.status_where(|status| status.predecessor.is_none());
    let kinds: Vec<&str> = status.listeners.iter().map(|listener| listener.kind.as_str()).collect();
    assert_eq!(status.listeners.len(), 9, "{kinds:?}");
    for kind in ["tcp-listener", "udp", "unix-listener", "unix-datagram", "seqpacket-listener", "raw"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    owner.ask(json!({"do": "stop"}));
    assert_eq!(owner.exit_code(), Some(0));
    for path in ["a.sock", "b.sock", "c.sock"] {
        assert!(!scene.path(path).exists(), "{path}");
    }
}

/// A successor that does not know the kind can still have the descriptor.
#[test]
fn any_entry_can_be_had_as_a_plain_descriptor() {
    let scene = Scene::new();
    let (mut first, address) = scene.serve("1", json!({}));
    let mut second = scene.warm(
        "2",
        json!({"claims": [
            {"kind": "inherited", "name": "web"},
            {"kind": "inherited", "name": "nothing of that name"},
        ]}),
    );
    assert_eq!(second.ask(json!({"do": "report"}))["ok"]["entries"]["web"]["outcome"], "adopted");
    second.ask(json!({"do": "ready"}));
    second.event("serving");
    assert_eq!(first.exit_code(), Some(0));
    assert!(std::net::TcpStream::connect(&address).is_ok());
}
