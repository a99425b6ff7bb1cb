//! Frames: the same bytes give the same frames however they are cut, and what is accepted obeys the header's limits.

use crate::wire::{Assembler, Fault, Frame, HEADER, MAGIC, MAX_BODY, MAX_DESCRIPTORS};

/// The first byte says into which pieces the rest is cut.
pub fn frames(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let (frames, fault) = assemble(stream, usize::from(cut) + 1);
    let (whole, same) = assemble(stream, usize::MAX);
    assert_eq!((&frames, fault), (&whole, same), "frames depend on how their bytes were cut");

    let mut at = 0;
    for (sequence, frame) in frames.iter().enumerate() {
        let header = &stream[at..at + HEADER];
        assert_eq!(header, frame.header.encode(), "a header is written as it was read");
        assert_eq!(&header[..4], MAGIC);
        assert!(frame.header.descriptors <= MAX_DESCRIPTORS);
        assert!(frame.body.len() <= MAX_BODY);
        assert_eq!(frame.header.sequence as usize, sequence);
        at += HEADER;
        assert_eq!(frame.body, &stream[at..at + frame.header.body as usize]);
        at += frame.body.len();
    }
    // Whatever is left is less than a frame, or what was wrong with it stands in its header.
    if fault.is_some() {
        assert!(stream.len() - at >= HEADER);
    }
}

/// What a stream gives, read as the driver reads it: exactly, and never more than the element that is due.
fn assemble(stream: &[u8], step: usize) -> (Vec<Frame>, Option<Fault>) {
    let mut assembler = Assembler::default();
    let (mut at, mut frames) = (0, Vec::new());
    while at < stream.len() {
        let fresh = assembler.at_header_start();
        let space = assembler.space();
        assert!(!space.is_empty(), "a reader would take this for the end of the stream");
        assert!(space.len() <= MAX_BODY, "more room than the longest body needs");
        assert!(!fresh || space.len() == HEADER);
        let count = space.len().min(step).min(stream.len() - at);
        space[..count].copy_from_slice(&stream[at..at + count]);
        at += count;
        match assembler.advance(count) {
            Ok(frame) => frames.extend(frame),
            Err(fault) => return (frames, Some(fault)),
        }
    }
    (frames, None)
}
