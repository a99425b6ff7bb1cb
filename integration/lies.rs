//! Owners that lie: a start, or a client, tells what is wrong with them, and keeps nothing of it.
//!
//! As with hostile peers, the figures are told on stderr.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::gauge::Gauge;
use crate::hostile::{BESIDE, SOME};
use crate::impostor::Impostor;
use crate::peer::{ENTRIES, OFFER};
use crate::puppet::{PATIENCE, Puppet, Scene};

/// What it is called, and how it is told.
type Lie<'a> = (&'a str, &'a dyn Fn(&mut Impostor));

/// Tells a lie to one start after the other: each fails with this code, keeps nothing, and needs no more memory for it.
#[track_caller]
fn lies(code: &str, kilobytes: u64, lies: &[Lie<'_>]) {
    let scene = Scene::new();
    let mut impostor = Impostor::new(&scene);
    let mut heir = Puppet::new();
    let before = heir.ask(json!({"do": "descriptors"}));
    let mut gauge = Gauge::of(&heir);
    for (name, lie) in lies {
        heir.ask(scene.begin("2", json!({"start_ms": 20_000})));
        impostor.accept();
        lie(&mut impostor);
        let error = heir.failure();
        assert_eq!(error["code"], code, "{name}: {error}");
        gauge.look();
        impostor.hang_up();
        assert_eq!(heir.ask(json!({"do": "descriptors"})), before, "{name}");
    }
    gauge.note(format!("{} lies", lies.len()));
    gauge.judge(253 + BESIDE, kilobytes);
}

#[test]
fn an_owner_that_claims_what_is_huge() {
    let huge = |marker: u8| [&[marker][..], &[0xff; 4]].concat();
    let entries = move |value: &[u8]| [b"\x81\xa7entries", value].concat();
    lies(
        "protocol",
        SOME,
        &[
            ("a header of 4 GiB", &|owner| {
                owner.write(b"HRLM\x03\0\0\0\xff\xff\xff\xff\0\0\0\0");
            }),
            ("a header of 64 KiB and one", &|owner| {
                owner.write(b"HRLM\x03\0\0\0\0\x01\0\x01\0\0\0\0");
            }),
            ("four thousand million entries", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(u32::MAX));
            }),
            ("a list without an end", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(4_000));
                owner.say_bytes(ENTRIES, 0, &entries(&huge(0xdd)));
            }),
            ("lists in lists", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(4_000));
                owner.say_bytes(ENTRIES, 0, &entries(&huge(0xdd).repeat(12_000)));
            }),
            ("a name without an end", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say_bytes(ENTRIES, 0, &entries(&[b"\x91\x81\xa4name", &huge(0xdb)[..]].concat()));
            }),
            ("a path without an end", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say_bytes(ENTRIES, 0, &entries(&[b"\x91\x81\xa4path", &huge(0xc6)[..]].concat()));
            }),
            ("deep", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say_bytes(ENTRIES, 0, &entries(&[0x91; 60_000]));
            }),
        ],
    );
}

#[test]
fn an_owner_that_says_things_twice_or_too_much() {
    lies(
        "protocol",
        SOME,
        &[
            ("a field twice", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say_bytes(ENTRIES, 0, b"\x81\xa7entries\x91\x82\xa4name\xa1a\xa4name\xa1b");
            }),
            ("the list twice", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say_bytes(ENTRIES, 0, b"\x82\xa7entries\x90\xa7entries\x90");
            }),
            ("a name twice", &|owner| {
                let twice = vec![owner.entry("a"), owner.entry("a")];
                owner.say(OFFER, &Impostor::an_offer(2));
                owner.say(ENTRIES, &json!({"entries": twice}));
            }),
            ("a name twice, apart", &|owner| {
                let one = owner.entry("a");
                owner.say(OFFER, &Impostor::an_offer(2));
                owner.say(ENTRIES, &json!({"entries": [one]}));
                owner.say(ENTRIES, &json!({"entries": [one]}));
            }),
            ("bytes after the end", &|owner| {
                let mut body = rmp_serde::to_vec_named(&Impostor::an_offer(0)).unwrap();
                body.push(0xc0);
                owner.say_bytes(OFFER, 0, &body);
            }),
            ("the offer twice", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say(OFFER, &Impostor::an_offer(1));
            }),
            ("more entries than offered", &|owner| {
                let two = vec![owner.entry("a"), owner.entry("b")];
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.say(ENTRIES, &json!({"entries": two}));
            }),
        ],
    );
}

#[test]
fn an_owner_that_sends_descriptors_where_none_belong() {
    lies(
        "protocol",
        SOME,
        &[
            ("before the offer", &|owner| owner.give(253, 253)),
            ("with the offer", &|owner| owner.smuggle(OFFER, 0, &Impostor::an_offer(0), 1)),
            ("with the offer, announced", &|owner| owner.smuggle(OFFER, 253, &Impostor::an_offer(0), 253)),
            ("with the entries", &|owner| {
                let entries = json!({"entries": [owner.entry("a")]});
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.smuggle(ENTRIES, 0, &entries, 253);
            }),
            ("before the manifest is whole", &|owner| {
                owner.say(OFFER, &Impostor::an_offer(1));
                owner.give(5, 5);
            }),
            ("more than the header says", &|owner| {
                owner.offer(1);
                owner.give(5, 253);
            }),
            ("fewer than the header says", &|owner| {
                owner.offer(1);
                owner.give(5, 4);
            }),
            ("more than a header may say", &|owner| {
                owner.offer(1);
                owner.give(254, 253);
            }),
            ("253 where seven were offered", &|owner| {
                owner.offer(3);
                owner.give(253, 253);
            }),
            ("none at all", &|owner| {
                owner.offer(1);
                owner.give(5, 0);
            }),
            ("files that are no family", &|owner| {
                owner.offer(1);
                owner.give(5, 5);
            }),
            ("in the middle of a body", &|owner| {
                owner.write(b"HRLM\x03\0\0\0\0\0\0\x20\0\0\0\0");
                owner.carry(&[0x80; 16], 253);
            }),
        ],
    );
}

/// More than this process may have open: it says so before one of them comes, and keeps nothing of the manifest.
#[test]
fn an_owner_that_offers_more_than_there_is_room_for() {
    lies(
        "no-room",
        SOME,
        &[("more than the hard limit", &|owner| {
            owner.say(OFFER, &Impostor::an_offer(65_000));
            for part in 0..650 {
                let entries: Vec<_> = (0..100).map(|number| owner.entry(&format!("{part}-{number}"))).collect();
                owner.say(ENTRIES, &json!({"entries": entries}));
            }
        })],
    );
}

/// Says frames that may be skipped, more of them at once than are read at once, until nobody listens any more.
#[track_caller]
fn flood(impostor: &mut Impostor) -> u64 {
    const AT_ONCE: u64 = 4000;
    let (mut said, began) = (0, Instant::now());
    loop {
        let bytes: Vec<u8> = (0..AT_ONCE).flat_map(|_| impostor.header(200, 1, 0, 0)).collect();
        if !impostor.write(&bytes) {
            return said;
        }
        said += AT_ONCE;
        assert!(began.elapsed() < PATIENCE, "it listens for ever");
    }
}

/// Frames that may be skipped, without end: they are no answer, to a start or to a client.
#[test]
fn an_owner_that_never_comes_to_the_point() {
    let scene = Scene::new();
    let mut impostor = Impostor::new(&scene);
    let mut heir = Puppet::new();
    heir.ask(json!({"do": "nothing"}));
    let mut gauge = Gauge::of(&heir);
    heir.ask(scene.begin("2", json!({"start_ms": 20_000})));
    impostor.accept();
    let began = Instant::now();
    let entry = impostor.entry("a");
    impostor.say(OFFER, &Impostor::an_offer(2));
    impostor.say(ENTRIES, &json!({"entries": [entry]}));
    let said = flood(&mut impostor);
    assert_eq!(heir.failure()["code"], "deadline");
    gauge.note(format!("{said} frames in {:?} until the heir gave up", began.elapsed()));
    gauge.look();
    impostor.hang_up();

    let path = scene.control();
    let client = thread::spawn(move || {
        let mut client = heirloom::Client::connect(path, Duration::from_millis(300)).unwrap();
        let began = Instant::now();
        (client.status().unwrap_err().code().to_owned(), began.elapsed())
    });
    impostor.accept();
    let said = flood(&mut impostor);
    let (code, after) = client.join().unwrap();
    assert_eq!(code, "deadline");
    assert!(after < Duration::from_secs(3), "a deadline of 300 ms came after {after:?}");
    gauge.note(format!("{said} frames and {after:?} until a client gave up"));
    gauge.judge(BESIDE, SOME);
}
