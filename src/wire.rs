//! Frames: a fixed header, then a MessagePack body. Bytes become checked values here and nowhere else.
//!
//! The format is written down in [`protocol`](crate::protocol). This file does no I/O: [`Assembler`] says how many bytes
//! it wants next, so that a reader never reads past the element it is in, and descriptors stay with their header.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The first four bytes of each frame.
pub(crate) const MAGIC: [u8; 4] = *b"HRLM";
/// The header's length in bytes.
pub(crate) const HEADER: usize = 16;
/// The longest body in bytes.
pub(crate) const MAX_BODY: usize = 64 * 1024;
/// The deepest nesting of a body. rmp-serde's own limit of 1,024 overflows the stack of a debug build.
const MAX_DEPTH: usize = 16;
/// The most descriptors with one header: the kernel's `SCM_MAX_FD` (unix(7)).
pub(crate) const MAX_DESCRIPTORS: u16 = 253;
/// Flag: a receiver that does not know the kind skips the frame instead of giving up.
pub(crate) const OPTIONAL: u8 = 1;

/// Why bytes from a peer are not a frame or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    Magic,
    BodyTooLong(u32),
    TooManyDescriptors(u16),
    Sequence { expected: u32, found: u32 },
    UnexpectedDescriptors,
    Body(&'static str),
    TrailingBytes,
    UnknownKind(u8),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Magic => f.write_str("not a heirloom frame"),
            Fault::BodyTooLong(length) => write!(f, "a body of {length} bytes, {MAX_BODY} at most"),
            Fault::TooManyDescriptors(count) => write!(f, "{count} descriptors in a frame, {MAX_DESCRIPTORS} at most"),
            Fault::Sequence { expected, found } => write!(f, "frame {found} where {expected} was due"),
            Fault::UnexpectedDescriptors => f.write_str("descriptors that the header does not announce, or too few"),
            Fault::Body(kind) => write!(f, "a {kind} that cannot be read"),
            Fault::TrailingBytes => f.write_str("bytes after the body"),
            Fault::UnknownKind(kind) => write!(f, "kind {kind}, which this version does not know"),
        }
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// How many descriptors ride on these 16 bytes.
    pub(crate) descriptors: u16,
    /// How many bytes follow.
    pub(crate) body: u32,
    /// 0, 1, 2, ... in each direction.
    pub(crate) sequence: u32,
}

impl Header {
    /// The 16 bytes.
    pub(crate) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.descriptors.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.body.to_be_bytes());
        bytes[12..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Checks the 16 bytes against every limit.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Header, Fault> {
        let [m0, m1, m2, m3, kind, flags, d0, d1, b0, b1, b2, b3, s0, s1, s2, s3] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(Fault::Magic);
        }
        let header = Header {
            kind,
            flags,
            descriptors: u16::from_be_bytes([d0, d1]),
            body: u32::from_be_bytes([b0, b1, b2, b3]),
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        };
        if header.body as usize > MAX_BODY {
            return Err(Fault::BodyTooLong(header.body));
        }
        if header.descriptors > MAX_DESCRIPTORS {
            return Err(Fault::TooManyDescriptors(header.descriptors));
        }
        Ok(header)
    }
}

/// Encodes a body: MessagePack with field names, so that either side may be the older one.
///
/// The only encoder of the crate; the positional form would decode silently wrong after a change of order.
pub(crate) fn encode_body<T: Serialize>(body: &T) -> Vec<u8> {
    // Writing to a Vec cannot fail, and none of our types has a map key or a path that cannot be written.
    rmp_serde::to_vec_named(body).unwrap_or_default()
}

/// Decodes a body: a map, no deeper than 16, nothing after it.
pub(crate) fn decode_body<T: DeserializeOwned>(kind: &'static str, bytes: &[u8]) -> Result<T, Fault> {
    // The decoder would take positions as well, and they decode silently wrong where a field came in between.
    if !matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(Fault::Body(kind));
    }
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    // rmp-serde counts down to zero and fails there, so its number is one more than the levels that it reads.
    decoder.set_max_depth(MAX_DEPTH + 1);
    let value = T::deserialize(&mut decoder).map_err(|_| Fault::Body(kind))?;
    // It does not tell how far it has read: at the end, and there alone, a marker of a next value cannot be read.
    match bool::deserialize(&mut decoder) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(Fault::TrailingBytes),
    }
}

/// One whole frame as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
}

/// Puts frames together from exact reads.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    header: [u8; HEADER],
    parsed: Option<Header>,
    body: Vec<u8>,
    filled: usize,
    sequence: u32,
}

impl Assembler {
    /// Where the next bytes go: the rest of the header, or of the body. Never empty, never past this element.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.parsed.is_some() { &mut self.body[self.filled..] } else { &mut self.header[self.filled..] }
    }

    /// Whether the next byte is the first of a header: the only place where descriptors may arrive.
    pub(crate) fn at_header_start(&self) -> bool {
        self.parsed.is_none() && self.filled == 0
    }

    /// Takes note that `count` bytes of [`space`](Assembler::space) were filled; gives a frame when it is whole.
    pub(crate) fn advance(&mut self, count: usize) -> Result<Option<Frame>, Fault> {
        self.filled += count;
        if self.parsed.is_none() && self.filled == HEADER {
            let header = Header::decode(&self.header)?;
            if header.sequence != self.sequence {
                return Err(Fault::Sequence { expected: self.sequence, found: header.sequence });
            }
            self.parsed = Some(header);
            self.body = vec![0; header.body as usize];
            self.filled = 0;
        }
        match self.parsed {
            Some(header) if self.filled == self.body.len() => {
                self.parsed = None;
                self.filled = 0;
                self.sequence = self.sequence.wrapping_add(1);
                Ok(Some(Frame { header, body: std::mem::take(&mut self.body) }))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(bytes: &[u8], step: usize) -> Result<Vec<Frame>, Fault> {
        let mut assembler = Assembler::default();
        let mut frames = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let space = assembler.space();
            let count = space.len().min(step).min(bytes.len() - at);
            space[..count].copy_from_slice(&bytes[at..at + count]);
            at += count;
            frames.extend(assembler.advance(count)?);
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8), step in 1usize..64) {
            let mut bytes = Vec::new();
            for (sequence, body) in bodies.iter().enumerate() {
                let header = Header { kind: 7, flags: 0, descriptors: 0, body: body.len() as u32, sequence: sequence as u32 };
                bytes.extend_from_slice(&header.encode());
                bytes.extend_from_slice(body);
            }
            let frames = feed(&bytes, step).unwrap();
            prop_assert_eq!(frames.into_iter().map(|f| f.body).collect::<Vec<_>>(), bodies);
        }
    }

    #[test]
    fn each_limit_of_the_header_holds() {
        let good = Header { kind: 1, flags: 0, descriptors: 253, body: 65536, sequence: 0 };
        assert_eq!(Header::decode(&good.encode()), Ok(good));
        assert_eq!(Header::decode(&[0; 16]), Err(Fault::Magic));
        let long = Header { body: 65537, ..good };
        assert_eq!(Header::decode(&long.encode()), Err(Fault::BodyTooLong(65537)));
        let many = Header { descriptors: 254, ..good };
        assert_eq!(Header::decode(&many.encode()), Err(Fault::TooManyDescriptors(254)));
        let skipped = Header { sequence: 1, body: 0, ..good };
        assert_eq!(feed(&skipped.encode(), 16), Err(Fault::Sequence { expected: 0, found: 1 }));
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Sample {
        value: u32,
    }

    #[test]
    fn bodies_are_maps_and_end_where_they_end() {
        let mut bytes = encode_body(&Sample { value: 7 });
        assert_eq!(bytes[0] & 0xf0, 0x80, "a map, not positions");
        assert_eq!(decode_body::<Sample>("sample", &bytes).unwrap().value, 7);
        bytes.push(0xc0);
        assert_eq!(decode_body::<Sample>("sample", &bytes).unwrap_err(), Fault::TrailingBytes);
        assert_eq!(decode_body::<Sample>("sample", &[]).unwrap_err(), Fault::Body("sample"));
    }

    /// A kilobyte of nesting in a field that is ignored overflowed the stack before the limit was set.
    #[test]
    fn deep_nesting_in_an_unknown_field_is_an_error() {
        let mut bytes = vec![0x82, 0xa5];
        bytes.extend_from_slice(b"value\x07\xa1x");
        bytes.extend_from_slice(&[0x91; 1000]);
        bytes.push(0xc0);
        assert_eq!(decode_body::<Sample>("sample", &bytes).unwrap_err(), Fault::Body("sample"));
    }
}
