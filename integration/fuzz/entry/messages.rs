//! Messages: what is accepted obeys every limit, is one value on both sides, and may have more fields than are known.

use crate::manifest::{MAX_ENTRIES, MAX_NAME};
use crate::protocol::message::Message;
use crate::wire::{Fault, Frame, Header, MAX_BODY, OPTIONAL};

/// The deepest nesting, counted with the body's own map, as the wire format has it.
const DEEPEST: usize = 16;
/// The most items of a list in one frame.
const LONGEST: usize = 4096;

/// Kind, flags and number of descriptors are a byte each; the rest is the body.
pub fn messages(data: &[u8]) {
    let &[kind, flags, descriptors, ref body @ ..] = data else { return };
    let body = &body[..body.len().min(MAX_BODY)];
    let Ok(message) = decode(kind, flags, descriptors, body) else { return };

    if let Message::Unknown(unknown) = message {
        assert_eq!(unknown, kind);
        assert_ne!(flags & OPTIONAL, 0);
        assert_eq!(descriptors, 0, "descriptors that nobody would look at");
        return;
    }
    assert_eq!(message.kind(), kind);
    if let Message::Descriptors(count) = message {
        assert_eq!(count, u16::from(descriptors));
        assert!(count > 0 && body.is_empty());
        return;
    }
    assert_eq!(descriptors, 0, "descriptors on a message that carries none");
    let mut rest = body;
    let depth = depth(&mut rest).expect("what was accepted is MessagePack");
    assert!(rest.is_empty(), "bytes after the body");
    assert!(depth <= DEEPEST, "nested {depth} deep");
    check(&message);

    let written = message.body();
    assert_eq!(decode(kind, 0, 0, &written), Ok(message.clone()), "read, written and read again");
    assert_eq!(decode(kind, 0, 0, &[body, &[0xc0]].concat()), Err(Fault::TrailingBytes));
    if let Some(longer) = extended(body) {
        assert_eq!(decode(kind, 0, 0, &longer), Ok(message), "a field of a later version");
    }
}

/// Reads a body as if it had come in a frame.
pub(super) fn decode(kind: u8, flags: u8, descriptors: u8, body: &[u8]) -> Result<Message, Fault> {
    let header = Header { kind, flags, descriptors: u16::from(descriptors), body: body.len() as u32, sequence: 0 };
    Message::decode(&Frame { header, body: body.to_vec() })
}

/// The limits beyond those of a frame.
fn check(message: &Message) {
    match message {
        Message::Hello(hello) => assert!(hello.nonce != 0 && hello.min_version <= hello.max_version),
        Message::Offer(offer) => {
            assert!(offer.entries <= MAX_ENTRIES && offer.descriptors >= offer.entries);
            assert!(offer.generation < u64::MAX, "there is one after it");
        }
        Message::Entries(list) => {
            assert!(!list.entries.is_empty() && list.entries.len() <= LONGEST);
            for entry in &list.entries {
                assert!(!entry.name.is_empty() && entry.name.len() <= MAX_NAME, "{:?}", entry.name);
                assert!(!entry.name.contains(char::is_control), "{:?}", entry.name);
            }
        }
        Message::Ready(ready) => {
            for names in [&ready.bound, &ready.dropped, &ready.missing] {
                assert!(names.len() <= LONGEST);
            }
        }
        Message::Status(status) => assert!(status.listener_count <= MAX_ENTRIES),
        Message::Listeners(list) => assert!(list.listeners.len() <= LONGEST),
        _ => {}
    }
}

/// The same map with one more field, where it is a short one with room for it.
fn extended(body: &[u8]) -> Option<Vec<u8>> {
    let (&first @ 0x80..=0x8e, fields) = body.split_first()? else { return None };
    Some([&[first + 1], fields, b"\xafa later version\xc0"].concat())
}

/// How deep the maps and lists of one value are nested; `None` where it is cut off. A reader of its own, so that the
/// limit is not checked by what it limits.
fn depth(bytes: &mut &[u8]) -> Option<usize> {
    let marker = usize::from(take(bytes, 1)?[0]);
    let (skip, items) = match marker {
        0x00..=0x7f | 0xc0..=0xc3 | 0xe0..=0xff => (0, None),
        0x80..=0x8f => (0, Some(2 * (marker & 0x0f))),
        0x90..=0x9f => (0, Some(marker & 0x0f)),
        0xa0..=0xbf => (marker & 0x1f, None),
        0xc4 | 0xd9 => (number(bytes, 1)?, None),
        0xc5 | 0xda => (number(bytes, 2)?, None),
        0xc6 | 0xdb => (number(bytes, 4)?, None),
        0xc7 => (1 + number(bytes, 1)?, None),
        0xc8 => (1 + number(bytes, 2)?, None),
        0xc9 => (1 + number(bytes, 4)?, None),
        0xca => (4, None),
        0xcb => (8, None),
        0xcc..=0xcf => (1 << (marker - 0xcc), None),
        0xd0..=0xd3 => (1 << (marker - 0xd0), None),
        0xd4..=0xd8 => (1 + (1 << (marker - 0xd4)), None),
        0xdc => (0, Some(number(bytes, 2)?)),
        0xdd => (0, Some(number(bytes, 4)?)),
        0xde => (0, Some(2 * number(bytes, 2)?)),
        0xdf => (0, Some(2 * number(bytes, 4)?)),
        _ => return None,
    };
    take(bytes, skip)?;
    let Some(items) = items else { return Some(0) };
    let mut deepest = 0;
    for _ in 0..items {
        deepest = deepest.max(depth(bytes)?);
    }
    Some(deepest + 1)
}

fn number(bytes: &mut &[u8], width: usize) -> Option<usize> {
    Some(take(bytes, width)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(count)?;
    *bytes = tail;
    Some(head)
}
