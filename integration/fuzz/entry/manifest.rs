//! A manifest from an owner that lies: entries in several frames, each checked against a descriptor that is none of them.

use std::fs::File;
use std::os::fd::AsFd;

use super::messages::decode;
use super::says::NONCE;
use crate::error::Who;
use crate::listener::{self, Tell};
use crate::manifest::{Kind, check_name};
use crate::protocol::message::{Message, Offer, Wants};
use crate::protocol::successor::{Input, Notice, Output, Successor};
use crate::protocol::{Deadlines, FAMILY_SLOTS};

/// How many entries of one input are held against a descriptor: each costs system calls.
const LOOKS: usize = 4;
const ENTRIES: u8 = 4;

/// The first byte says how many entries the offer promises; each frame of entries follows with its length in two bytes.
pub fn manifest(data: &[u8]) {
    let Some((&promised, mut rest)) = data.split_first() else { return };
    let promised = u32::from(promised);
    let deadlines = Deadlines::default();
    let hello = Successor::hello(NONCE, Who::default(), Wants::Takeover, None);
    let mut machine = Successor::new(hello, deadlines.handshake, deadlines.probe, &mut Vec::new());
    let offer = Offer { version: 1, entries: promised, descriptors: promised + FAMILY_SLOTS, ..Offer::default() };
    let mut out = Vec::new();
    machine.handle(Input::Message(offer.into()), &mut out);

    let (mut kept, mut over) = (0, false);
    loop {
        for output in out.drain(..) {
            assert!(!over, "after the end: {output:?}");
            match output {
                Output::Keep(entries) => kept += entries.len() as u32,
                Output::Reserve(count) => assert_eq!((kept, count), (promised, promised + FAMILY_SLOTS)),
                Output::Tells(Notice::Failed(_)) => over = true,
                Output::Tells(other) => panic!("{other:?} of a manifest alone"),
                _ => {}
            }
        }
        assert!(kept <= promised, "more entries than the offer has");
        let Some((length, after)) = rest.split_first_chunk::<2>() else { return };
        let body = &after[..usize::from(u16::from_be_bytes(*length)).min(after.len())];
        rest = &after[body.len()..];
        let Ok(message) = decode(ENTRIES, 0, 0, body) else { continue };
        look(&message);
        machine.handle(Input::Message(message), &mut out);
    }
}

/// Whatever an entry says, the kernel is asked and the answer is a list of checks.
fn look(message: &Message) {
    let Message::Entries(list) = message else { panic!("{message:?} from the kind of entries") };
    let (null, socket) = (File::open("/dev/null").unwrap(), std::os::unix::net::UnixDatagram::unbound().unwrap());
    for entry in list.entries.iter().take(LOOKS) {
        assert!(check_name(&entry.name).is_ok());
        assert_eq!(Kind::from(String::from(entry.kind.clone())), entry.kind);
        for descriptor in [null.as_fd(), socket.as_fd()] {
            let mut checks = listener::examine(entry, descriptor, None, Tell::All).unwrap();
            assert!(!checks.is_empty());
            assert!(checks.iter().all(|check| check.ok == (check.expected == check.found)), "{checks:?}");
            checks.retain(|check| !check.ok);
            assert_eq!(checks, listener::examine(entry, descriptor, None, Tell::Failed).unwrap());
        }
    }
}
