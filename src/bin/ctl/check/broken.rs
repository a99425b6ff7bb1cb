//! Bytes that are no good: an owner answers them with a reason or hangs up, and goes on.

use std::fs::File;
use std::os::fd::AsFd;

use heirloom::Error;
use heirloom::probe::{Hello, Peer, Say};

use super::successor::Successor;

/// How something broken is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broken {
    pub(crate) send: fn(&mut Successor, &Hello) -> Result<(), Error>,
    /// It closes the connection itself, and waits for no answer.
    pub(crate) hangs_up: bool,
}

const fn broken(send: fn(&mut Successor, &Hello) -> Result<(), Error>) -> Broken {
    Broken { send, hangs_up: false }
}

/// The kinds of the wire format that are sent by hand here.
const HELLO_KIND: u8 = 1;
const DESCRIPTORS_KIND: u8 = 6;
const ASK_KIND: u8 = 32;
/// A kind that no version has.
const NO_KIND: u8 = 200;
/// The longest body.
const MAX_BODY: u32 = 64 * 1024;
/// How deep the body is nested that is nested too deep: 16 is the limit.
const DEPTH: usize = 5_000;
/// Where the sequence number is in a header.
const SEQUENCE: usize = 12;

pub(crate) const ANOTHER_PROTOCOL: Broken =
    broken(|successor, _| successor.peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));

pub(crate) const UNKNOWN_KIND: Broken = broken(|successor, _| frame(&mut successor.peer, NO_KIND, b"\x80"));

pub(crate) const ABSURD_LENGTH: Broken = broken(|successor, _| {
    let header = successor.peer.header(ASK_KIND, 0, u32::MAX);
    successor.peer.send(&header)
});

pub(crate) const LONG_BODY: Broken =
    broken(|successor, _| frame(&mut successor.peer, ASK_KIND, &[0x80; MAX_BODY as usize + 1]));

pub(crate) const DEEP_BODY: Broken = broken(|successor, _| {
    let mut body = b"\x81\xa1x".to_vec();
    body.resize(body.len() + DEPTH, 0x91);
    body.push(0xc0);
    frame(&mut successor.peer, HELLO_KIND, &body)
});

pub(crate) const TRAILING_BYTES: Broken =
    broken(|successor, _| frame(&mut successor.peer, ASK_KIND, b"\x81\xa8question\xa6status\xc0"));

pub(crate) const TRUNCATED_FRAME: Broken = Broken {
    send: |successor, _| {
        let whole = successor.peer.frame(&Say::Status);
        successor.peer.send(&whole[..whole.len() - 1])
    },
    hangs_up: true,
};

pub(crate) const WRONG_SEQUENCE: Broken = broken(|successor, _| {
    let mut whole = successor.peer.frame(&Say::Status);
    whole[SEQUENCE] ^= 1;
    successor.peer.send(&whole)
});

/// A kernel that can refuses to pass them on, because the owner asked for that: as good.
pub(crate) const STRAY_DESCRIPTORS: Broken = broken(|successor, _| {
    let null = File::open("/dev/null").map_err(|source| Error::Io { doing: "open /dev/null".to_owned(), source })?;
    let header = successor.peer.header(DESCRIPTORS_KIND, 2, 0);
    match successor.peer.send_descriptors(&header, &[null.as_fd(), null.as_fd()]) {
        Err(Error::Io { .. }) => successor.peer.send(&header),
        sent => sent,
    }
});

pub(crate) const UNKNOWN_QUESTION: Broken =
    broken(|successor, _| frame(&mut successor.peer, ASK_KIND, b"\x81\xa8question\xa4help"));

pub(crate) const HELLO_EMPTY: Broken = broken(|successor, _| frame(&mut successor.peer, HELLO_KIND, b"\x80"));

pub(crate) const HELLO_NO_NONCE: Broken = broken(|successor, first| hello(successor, first, |hello| hello.nonce = 0));

pub(crate) const HELLO_FAR_VERSIONS: Broken = broken(|successor, first| {
    hello(successor, first, |hello| (hello.min_version, hello.max_version) = (u32::MAX - 1, u32::MAX))
});

pub(crate) const HELLO_REVERSED: Broken =
    broken(|successor, first| hello(successor, first, |hello| (hello.min_version, hello.max_version) = (3, 1)));

pub(crate) const HELLO_UNKNOWN_WISH: Broken = broken(|successor, _| {
    let body = b"\x84\xabmin_version\x01\xabmax_version\x01\xa5nonce\x01\xa5wants\xaaeverything";
    frame(&mut successor.peer, HELLO_KIND, body)
});

pub(crate) const HELLO: Broken = broken(|successor, first| hello(successor, first, |_| ()));

pub(crate) const READY: Broken = broken(|successor, _| successor.peer.say(&Say::Ready));

pub(crate) const ACK: Broken = broken(|successor, _| successor.peer.say(&Say::Ack(successor.offered)));

pub(crate) const FALSE_ACK: Broken =
    broken(|successor, _| successor.peer.say(&Say::Ack(successor.offered.saturating_add(1))));

pub(crate) const PROGRESS: Broken = broken(|successor, _| successor.peer.say(&Say::Progress(String::new())));

pub(crate) const LITTLE_ROOM: Broken = broken(|successor, _| successor.peer.say(&Say::Room(1)));

pub(crate) const ROOM: Broken = broken(|successor, _| successor.peer.say(&Say::Room(successor.offered)));

/// Sends any body under a header that fits it.
fn frame(peer: &mut Peer, kind: u8, body: &[u8]) -> Result<(), Error> {
    let mut bytes = peer.header(kind, 0, u32::try_from(body.len()).unwrap_or(u32::MAX)).to_vec();
    bytes.extend(body);
    peer.send(&bytes)
}

/// Sends a hello in which something was changed.
fn hello(successor: &mut Successor, hello: &Hello, change: impl FnOnce(&mut Hello)) -> Result<(), Error> {
    let mut hello = hello.clone();
    change(&mut hello);
    successor.peer.say(&Say::Hello(hello))
}
