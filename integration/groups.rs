//! `SO_REUSEPORT` groups that change their size over takeovers: nothing that waits in any queue is lost.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::ctl::stage::eventually;
use crate::puppet::{PATIENCE, Puppet, Scene};
use crate::visitor::{Load, answer, visit};

/// A claim for a group of so many. A client that is in the middle of its handshake is given up after three seconds.
fn claim(kind: &str, address: &str, size: usize) -> Value {
    json!([{"kind": kind, "name": "web", "address": address, "size": size, "syn_retries": 1}])
}

/// A puppet that serves such a group, and the address.
#[track_caller]
fn serve(scene: &Scene, kind: &str, address: &str, size: usize, more: Value) -> (Puppet, String) {
    let mut options = json!({"claims": claim(kind, address, size), "exclusive": kind == "udp-group"});
    crate::puppet::merge(&mut options, more);
    let mut puppet = Puppet::new();
    puppet.ask(scene.begin("1", options));
    let address = puppet.event("serving")["addresses"]["web#0"].as_str().unwrap().to_owned();
    (puppet, address)
}

/// The next owner, once its predecessor is gone for good.
#[track_caller]
fn succeed(scene: &Scene, kind: &str, address: &str, size: usize, more: Value, first: &mut Puppet) -> Puppet {
    let (next, same) = serve(scene, kind, address, size, more);
    assert_eq!(same, address);
    assert_eq!(first.exit_code(), Some(0));
    scene.status_where(|status| status.predecessor.is_none());
    next
}

/// Whether each member is said to be empty for good. Who looks is a process of its own: here, a child that another test is
/// starting would have copies of the sockets for a while, after everybody else has closed them.
fn said_to_be_empty(scene: &Scene) -> Vec<bool> {
    let mut look = Puppet::new();
    look.ask(scene.begin("look", json!({"rehearsal": true})));
    serde_json::from_value(look.event("started")["retired"].take()).unwrap()
}

/// How many connections wait in each listener.
fn queues(scene: &Scene) -> Vec<u32> {
    scene.status().listeners.iter().map(|listener| listener.accept_queue.unwrap()).collect()
}

/// What became of each member.
fn outcomes(puppet: &mut Puppet) -> BTreeMap<String, String> {
    let report = puppet.ask(json!({"do": "report"}));
    let entries = report["ok"]["entries"].as_object().unwrap();
    entries.iter().map(|(name, entry)| (name.clone(), entry["outcome"].as_str().unwrap().to_owned())).collect()
}

fn outcome(puppet: &mut Puppet, index: usize) -> String {
    outcomes(puppet).remove(&format!("web#{index}")).unwrap_or_default()
}

/// Waits until the owner says that nothing can wait any more in what is left over, by looking at what it would hand over.
fn retired(scene: &Scene, from: usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let retired = said_to_be_empty(scene);
        assert!(retired.iter().take(from).all(|retired| !retired), "{retired:?}");
        if retired.iter().skip(from).all(|retired| *retired) {
            return;
        }
        assert!(Instant::now() < end, "{retired:?}");
        // Only so that this is not asked a thousand times.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that waits in the sockets of a UDP group, by socket.
fn received(puppet: &mut Puppet, sockets: usize) -> Vec<usize> {
    let mut count = |index: usize| {
        let name = format!("web#{index}");
        let mut count = 0;
        while puppet.ask(json!({"do": "receive", "name": name}))["ok"].is_string() {
            count += 1;
        }
        count
    };
    (0..sockets).map(&mut count).collect()
}

/// A datagram from each of so many clients.
fn send(address: &str, clients: usize) -> Vec<UdpSocket> {
    let client = |_| {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"question", address).unwrap();
        client
    };
    (0..clients).map(client).collect()
}

/// A socket of another program that shares the address.
fn another(address: &str) -> TcpListener {
    let address: std::net::SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(100).unwrap();
    TcpListener::from(OwnedFd::from(socket))
}

#[test]
fn a_group_grows_and_shrinks_under_load_and_loses_nothing() {
    let scene = Scene::new();
    let (mut owner, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 2, json!({}));
    let loads: Vec<Load> = (0..3).map(|_| Load::on(&address)).collect();
    let flow = || loads.iter().for_each(|load| load.flows(30));
    flow();
    for size in [4, 1, 3, 2, 1, 4, 1] {
        owner = succeed(&scene, "tcp-group", &address, size, json!({}), &mut owner);
        flow();
    }
    for load in loads {
        let tally = load.stop();
        assert_eq!((tally.refused, tally.reset, tally.cut), (0, 0, 0), "{tally:?}");
        assert!(tally.other.is_empty(), "{tally:?}");
        assert_eq!(tally.by.len(), 8, "each generation served: {tally:?}");
    }
}

#[test]
fn what_waits_in_each_socket_of_a_group_is_served_by_a_smaller_one() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 4, json!({"accept": false}));
    let waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let queued = queues(&scene);
    assert!(queued.len() == 4 && queued.iter().all(|count| *count > 0), "{queued:?}");
    assert_eq!(queued.iter().sum::<u32>(), 60);
    let second = succeed(&scene, "tcp-group", &address, 1, json!({}), &mut first);
    for stream in waiting {
        assert_eq!(answer(stream).pid, second.pid());
    }
}

/// A successor that dies takes with it what waits in a socket that only it has: so nothing comes there too early.
#[test]
fn nothing_waits_in_a_new_member_as_long_as_the_predecessor_could_come_back() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 2, json!({}));
    first.ask(json!({"do": "lease"}));
    let (mut second, _) = serve(&scene, "tcp-group", &address, 4, json!({"accept": false}));
    first.event("leave");
    let waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let queued = queues(&scene);
    assert_eq!((queued[0] + queued[1], queued[2], queued[3]), (60, 0, 0), "{queued:?}");
    second.kill();
    first.event("resumed");
    for stream in waiting {
        assert_eq!(answer(stream).pid, first.pid());
    }
    // Those of a group that has grown get their share in the end.
    first.ask(json!({"do": "end-lease"}));
    let _third = succeed(&scene, "tcp-group", &address, 4, json!({"accept": false}), &mut first);
    let _waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let queued = queues(&scene);
    assert!(queued.len() == 4 && queued.iter().all(|count| *count > 0), "{queued:?}");
}

/// Nothing that a new member has is lost where the service goes back, and the old group is whole again.
#[test]
fn a_group_that_grew_on_probation_goes_back_as_it_was() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 3, json!({}));
    for size in [5, 1] {
        let (mut second, _) =
            serve(&scene, "tcp-group", &address, size, json!({"accept": false, "probation_ms": 600_000}));
        first.event("stand-by");
        let waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
        let queued = queues(&scene);
        assert!(queued.iter().take(3).all(|count| *count > 0), "{queued:?}");
        assert!(queued.iter().skip(3).all(|count| *count == 0), "{queued:?}");
        second.kill();
        first.event("resume");
        for stream in waiting {
            assert_eq!(answer(stream).pid, first.pid());
        }
    }
    first.ask(json!({"do": "accept", "on": false}));
    let _waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let queued = queues(&scene);
    assert!(queued.len() == 3 && queued.iter().all(|count| *count > 0), "{queued:?}");
}

#[test]
fn what_is_left_over_gets_nothing_more_and_is_let_go_of_once_nothing_can_wait_in_it() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 4, json!({}));
    let mut second = succeed(&scene, "tcp-group", &address, 1, json!({"accept": false}), &mut first);
    let waiting: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(&address).unwrap()).collect();
    assert_eq!(queues(&scene), [30, 0, 0, 0]);
    second.ask(json!({"do": "accept", "on": true}));
    waiting.into_iter().for_each(|stream| drop(answer(stream)));
    retired(&scene, 1);
    // What is empty can still be had back.
    let mut third = succeed(&scene, "tcp-group", &address, 2, json!({"accept": false}), &mut second);
    let outcomes: Vec<String> = outcomes(&mut third).into_values().collect();
    assert_eq!(outcomes, ["adopted", "adopted", "dropped", "dropped"]);
    let waiting: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let queued = queues(&scene);
    assert!(queued.len() == 2 && queued.iter().all(|count| *count > 0), "{queued:?}");
    third.ask(json!({"do": "accept", "on": true}));
    waiting.into_iter().for_each(|stream| drop(answer(stream)));
    // And what has been closed is bound again.
    let mut fourth = succeed(&scene, "tcp-group", &address, 4, json!({"accept": false}), &mut third);
    assert_eq!((outcome(&mut fourth, 1).as_str(), outcome(&mut fourth, 2).as_str()), ("adopted", "bound"));
    let _waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let queued = queues(&scene);
    assert!(queued.len() == 4 && queued.iter().all(|count| *count > 0), "{queued:?}");
}

/// A group has no gaps: one that is empty is kept as long as something waits in one after it.
#[test]
fn what_waits_in_the_last_socket_of_a_group_is_served_though_those_before_it_are_empty() {
    // Beside a group in which nothing waits: when that one is said to be empty, this one could be.
    let claims = |address: &str, size: usize| {
        let idle =
            json!({"kind": "tcp-group", "name": "idle", "address": "127.0.0.1:0", "size": size, "syn_retries": 1});
        json!({"claims": [claim("tcp-group", address, size)[0], idle], "accept": false})
    };
    let scene = Scene::new();
    let any = "127.0.0.1:0";
    let (mut first, address) = serve(&scene, "tcp-group", any, 4, claims(any, 4));
    let waiting: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut second = succeed(&scene, "tcp-group", &address, 2, claims(&address, 2), &mut first);
    // Whoever serves it hangs.
    second.ask(json!({"do": "unclaim", "name": "web#3"}));
    second.ask(json!({"do": "accept", "on": true}));
    let end = Instant::now() + PATIENCE;
    while queues(&scene)[4..7] != [0; 3] || said_to_be_empty(&scene)[2..4] != [true; 2] {
        assert!(Instant::now() < end, "{:?}", queues(&scene));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(said_to_be_empty(&scene)[4..], [false; 4]);
    assert!(queues(&scene)[7] > 0);
    let mut third = succeed(&scene, "tcp-group", &address, 2, claims(&address, 2), &mut second);
    third.ask(json!({"do": "accept", "on": true}));
    waiting.into_iter().for_each(|stream| drop(answer(stream)));
}

#[test]
fn datagrams_that_wait_in_each_socket_of_a_group_survive_its_shrinking() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "udp-group", "127.0.0.1:0", 4, json!({}));
    let _early = send(&address, 60);
    let mut second = succeed(&scene, "udp-group", &address, 2, json!({}), &mut first);
    let counts = received(&mut second, 4);
    assert_eq!(counts.iter().sum::<usize>(), 60, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let _later = send(&address, 60);
    retired(&scene, 2);
    let mut third = succeed(&scene, "udp-group", &address, 1, json!({}), &mut second);
    assert_eq!((outcome(&mut third, 1).as_str(), outcome(&mut third, 3).as_str()), ("adopted", "dropped"));
    let counts = received(&mut third, 2);
    assert_eq!(counts.iter().sum::<usize>(), 60, "{counts:?}");
}

/// A socket for datagrams gets them from bind(2) on.
#[test]
fn a_successor_that_gives_up_takes_no_datagram_with_it() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "udp-group", "127.0.0.1:0", 1, json!({}));
    let more = json!({"claims": claim("udp-group", &address, 4), "exclusive": true});
    let mut second = scene.warm("2", more);
    assert_eq!(outcome(&mut second, 3), "bound");
    let _clients = send(&address, 60);
    second.kill();
    scene.status_where(|status| status.takeover.is_none());
    assert_eq!(received(&mut first, 1), [60]);
}

#[test]
fn a_group_does_not_grow_beside_sockets_of_others() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 2, json!({}));
    let other = another(&address);
    let mut second = succeed(&scene, "tcp-group", &address, 4, json!({}), &mut first);
    assert_eq!((outcome(&mut second, 1).as_str(), outcome(&mut second, 2).as_str()), ("adopted", "missing"));
    for _ in 0..30 {
        assert_eq!(visit(&address).pid, second.pid());
    }
    assert!(other.accept().is_err(), "it is not steered to");
    let inode = std::fs::File::from(OwnedFd::from(other)).metadata().unwrap().ino();
    // Whatever process a test beside this one is starting has a copy until it executes its program.
    eventually(|| procfs::net::tcp().unwrap().iter().all(|socket| socket.inode != inode).then_some(()));
    let mut third = succeed(&scene, "tcp-group", &address, 4, json!({}), &mut second);
    assert_eq!((outcome(&mut third, 1).as_str(), outcome(&mut third, 3).as_str()), ("adopted", "bound"));
}

#[test]
fn a_group_begins_where_nobody_else_is() {
    let scene = Scene::new();
    let other = another("127.0.0.1:0");
    let address = other.local_addr().unwrap().to_string();
    let mut first = Puppet::new();
    first.ask(scene.begin("1", json!({"claims": claim("tcp-group", &address, 2)})));
    let failed = first.failure();
    assert_eq!(failed["code"], "io");
    assert!(failed["message"].as_str().unwrap().contains(&address), "{failed}");
}

#[test]
fn a_group_shares_its_address_with_no_other_name_and_has_a_number_that_makes_sense() {
    let scene = Scene::new();
    let (mut first, address) = serve(&scene, "tcp-group", "127.0.0.1:0", 2, json!({}));
    let mut refused = |claim: Value| {
        let mut claim = claim;
        claim["do"] = json!("claim");
        first.refuse(claim)
    };
    let second = refused(json!({"kind": "tcp-group", "name": "api", "address": address, "size": 2}));
    assert_eq!(second["code"], "overlap");
    let message = second["message"].as_str().unwrap();
    assert!(message.contains("api") && message.contains("web#"), "{message}");
    let single = refused(json!({"kind": "tcp", "name": "api", "address": address, "reuse_port": true}));
    assert_eq!(single["code"], "overlap");
    assert_eq!(
        refused(json!({"kind": "tcp-group", "name": "web", "address": address, "size": 2}))["code"],
        "name-twice"
    );
    for size in [0, 257] {
        let number = refused(json!({"kind": "tcp-group", "name": "api", "address": "127.0.0.1:0", "size": size}));
        assert!(number["message"].as_str().unwrap().contains("1 to 256"), "{number}");
    }
}

#[test]
fn a_group_at_another_address_is_bound_anew() {
    let scene = Scene::new();
    let (mut first, old) = serve(&scene, "tcp-group", "127.0.0.1:0", 3, json!({}));
    let (mut second, new) = serve(&scene, "tcp-group", "127.0.0.2:0", 2, json!({}));
    assert_ne!(old, new);
    assert_eq!(first.exit_code(), Some(0));
    let outcomes: Vec<String> = outcomes(&mut second).into_values().collect();
    assert_eq!(outcomes, ["bound", "bound", "dropped"]);
    assert_eq!(visit(&new).pid, second.pid());
    assert!(TcpStream::connect(&old).is_err());
}
