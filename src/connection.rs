//! One control connection: frames in, frames out, nothing of what they mean.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::fdpass::{self, Receiver};
use crate::protocol::message::Message;
use crate::shared::SharedFd;
use crate::sys;
use crate::wire::{Assembler, Frame, Header, MAX_BODY};

/// Where the sequence number is in a header.
const SEQUENCE: std::ops::Range<usize> = 12..16;

/// Bytes that wait to be written, or a header with descriptors.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    written: usize,
    /// Kept open until the kernel has them.
    descriptors: Vec<SharedFd>,
}

/// What reading brought.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A whole frame, with the descriptors that rode on its header.
    Frame(Frame, Vec<OwnedFd>),
    /// Nothing more at the moment.
    Blocked,
    /// The kernel had no memory for the receive; no event tells when that has passed.
    Crowded,
    /// The other side has closed, or the connection broke.
    End,
    /// Not a frame of this protocol.
    Fault(String),
    /// A whole frame, of whose descriptors the kernel dropped some for want of room; the rest is closed.
    NoRoom(Frame),
}

/// What writing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Everything is written.
    Empty,
    /// The socket is full; the poller tells when it is not.
    Blocked,
    /// Too many descriptors of this user are in flight, or the kernel has no memory; no event tells when that has passed.
    Crowded,
    /// The connection broke.
    Broken,
}

/// A connection, non-blocking, with its queue.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// The process that made this: a child that was forked from it has a copy.
    maker: u32,
    assembler: Assembler,
    /// Descriptors of the header whose body is still coming.
    arrived: Vec<OwnedFd>,
    /// The kernel dropped some of them.
    truncated: bool,
    outgoing: VecDeque<Chunk>,
    /// How many bytes at the end of the queue are a message that a later one of its kind takes the place of; 0: none.
    latest: usize,
    sequence: u32,
    /// Descriptors may come: from a predecessor, and from nobody else.
    pub(crate) takes_descriptors: bool,
    /// It wants the drain links, once it owns.
    pub(crate) takes_drain_links: bool,
    /// When this peer last said something.
    pub(crate) heard: Instant,
    /// Wants a status after each change.
    pub(crate) watch: bool,
    /// A change happened while the queue was not empty.
    pub(crate) stale: bool,
    /// More of it may have come, and is read once the queue is empty.
    pub(crate) waits_its_turn: bool,
    /// The poller tells when there is room to write.
    pub(crate) awaits_room: bool,
    /// Close once everything is written.
    pub(crate) closing: bool,
    /// Since when the kernel takes nothing, for want of something.
    pub(crate) crowded: Option<Instant>,
    /// The process at the other end, where the kernel tells.
    pub(crate) pidfd: Option<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, pidfd: Option<OwnedFd>) -> Connection {
        Connection {
            stream,
            maker: std::process::id(),
            assembler: Assembler::default(),
            arrived: Vec::new(),
            truncated: false,
            outgoing: VecDeque::new(),
            latest: 0,
            sequence: 0,
            takes_descriptors: false,
            takes_drain_links: false,
            heard: Instant::now(),
            watch: false,
            stale: false,
            waits_its_turn: false,
            awaits_room: false,
            closing: false,
            crowded: None,
            pidfd,
        }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the other side has closed, whatever of it is still to be read (`POLLHUP`, poll(2)).
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut look = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut look, PollTimeout::ZERO).is_ok_and(|found| found > 0)
    }

    /// Reads up to one frame.
    pub(crate) fn read(&mut self, receiver: &mut Receiver) -> Incoming {
        loop {
            let at_start = self.assembler.at_header_start();
            let received = match receiver.receive(&self.stream, self.assembler.space()) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Incoming::Blocked,
                Err(error) if is_shortage(&error) => return Incoming::Crowded,
                // ECONNRESET comes after the last words of a peer that died with unread bytes: they were read above.
                Err(_) => return Incoming::End,
            };
            if !received.descriptors.is_empty() || received.truncated {
                // At once: who sends no whole frame must not have them kept open.
                if !self.takes_descriptors {
                    return Incoming::Fault("descriptors where none belong".to_owned());
                }
                if !at_start || !self.arrived.is_empty() || self.truncated {
                    return Incoming::Fault("descriptors in the middle of a frame".to_owned());
                }
                self.truncated = received.truncated;
                self.arrived = if received.truncated { Vec::new() } else { received.descriptors };
            }
            if received.bytes == 0 {
                return Incoming::End;
            }
            match self.assembler.advance(received.bytes) {
                Ok(Some(frame)) => {
                    self.heard = Instant::now();
                    let descriptors = std::mem::take(&mut self.arrived);
                    if std::mem::take(&mut self.truncated) {
                        return Incoming::NoRoom(frame);
                    }
                    if descriptors.len() != usize::from(frame.header.descriptors) {
                        let (want, have) = (frame.header.descriptors, descriptors.len());
                        return Incoming::Fault(format!("{have} descriptors where the header says {want}"));
                    }
                    return Incoming::Frame(frame, descriptors);
                }
                Ok(None) => {}
                Err(fault) => return Incoming::Fault(fault.to_string()),
            }
        }
    }

    /// Queues a message.
    pub(crate) fn send(&mut self, message: &Message) {
        self.send_body(message.kind(), &message.body());
    }

    /// Queues a message in the place of the one that was queued like this last, where nothing follows it and no byte of it
    /// is written: whoever does not read is told how it is, not how it was, and fills no memory.
    pub(crate) fn send_latest(&mut self, message: &Message) {
        if let Some(last) = self.outgoing.back_mut().filter(|_| self.latest > 0)
            && let Some(rest) = last.bytes.len().checked_sub(self.latest)
            && last.written <= rest
        {
            last.bytes.truncate(rest);
            self.sequence = self.sequence.wrapping_sub(1);
        }
        let before = self.unwritten();
        self.send(message);
        self.latest = self.unwritten() - before;
    }

    /// Queues a message that is bytes already.
    pub(crate) fn send_body(&mut self, kind: u8, body: &[u8]) {
        self.latest = 0;
        let header = self.header(kind, 0, body.len());
        let length = header.len() + body.len();
        // Small messages that follow each other leave in one system call.
        let chunk = match self.outgoing.back_mut() {
            Some(last) if last.descriptors.is_empty() && last.bytes.len() + length <= MAX_BODY => last,
            _ => {
                let bytes = Vec::with_capacity(length);
                self.outgoing.push_back(Chunk { bytes, written: 0, descriptors: Vec::new() });
                let Some(last) = self.outgoing.back_mut() else { return };
                last
            }
        };
        chunk.bytes.extend_from_slice(&header);
        chunk.bytes.extend_from_slice(body);
    }

    /// Queues a header with descriptors, at most 253.
    pub(crate) fn send_descriptors(&mut self, descriptors: Vec<SharedFd>) {
        self.latest = 0;
        let count = u16::try_from(descriptors.len()).unwrap_or(u16::MAX);
        let bytes = self.header(Message::Descriptors(count).kind(), count, 0).to_vec();
        self.outgoing.push_back(Chunk { bytes, written: 0, descriptors });
    }

    fn header(&mut self, kind: u8, descriptors: u16, body: usize) -> [u8; crate::wire::HEADER] {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let body = u32::try_from(body).unwrap_or(u32::MAX);
        Header { kind, flags: 0, descriptors, body, sequence }.encode()
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self) -> Flush {
        let written = if self.outgoing.iter().any(|chunk| !chunk.descriptors.is_empty()) {
            sys::without_sigpipe(|| self.write())
        } else {
            self.write()
        };
        written.unwrap_or(Flush::Broken)
    }

    fn write(&mut self) -> io::Result<Flush> {
        while let Some(chunk) = self.outgoing.front_mut() {
            let sent = if chunk.descriptors.is_empty() {
                fdpass::send_bytes(&self.stream, &chunk.bytes[chunk.written..])
            } else {
                let descriptors: Vec<BorrowedFd<'_>> = chunk.descriptors.iter().map(AsFd::as_fd).collect();
                fdpass::send_descriptors(&self.stream, &chunk.bytes, &descriptors).map(|()| chunk.bytes.len())
            };
            match sent {
                Ok(count) => chunk.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flush::Blocked),
                Err(error) if is_shortage(&error) => {
                    self.crowded.get_or_insert_with(Instant::now);
                    return Ok(Flush::Crowded);
                }
                Err(error) => return Err(error),
            }
            self.crowded = None;
            if chunk.written == chunk.bytes.len() {
                self.outgoing.pop_front();
            }
        }
        Ok(Flush::Empty)
    }

    /// Forgets what was queued and of which no byte is written yet.
    pub(crate) fn discard_unsent(&mut self) {
        let first = self.outgoing.iter().take_while(|chunk| chunk.written > 0).count();
        // The next frame takes the number of the first that is gone: the other side counts.
        let number = self.outgoing.get(first).and_then(|chunk| chunk.bytes.get(SEQUENCE)?.try_into().ok());
        if let Some(number) = number {
            self.sequence = u32::from_be_bytes(number);
            self.latest = 0;
            self.outgoing.truncate(first);
        }
    }

    /// Forgets what cannot be written any more.
    pub(crate) fn discard_outgoing(&mut self) {
        self.outgoing.clear();
    }

    /// Whether something waits to be written.
    pub(crate) fn is_writing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// How many bytes wait to be written.
    pub(crate) fn unwritten(&self) -> usize {
        self.outgoing.iter().map(|chunk| chunk.bytes.len() - chunk.written).sum()
    }
}

impl Drop for Connection {
    /// Whoever is at the other end learns of it now, and not only when the last copy is closed: a child that this process
    /// is just starting has one until it executes its program, and one that it forked without that has one as long as it
    /// lives. Such a child closes its copy, and the connection goes on.
    fn drop(&mut self) {
        if std::process::id() == self.maker {
            // Fails where the other end is gone already, which is as well.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

/// Whether the kernel lacks something that it will have again: such a connection is not broken.
fn is_shortage(error: &io::Error) -> bool {
    use nix::libc::{ENOBUFS, ENOMEM, ETOOMANYREFS};
    error.raw_os_error().is_some_and(|errno| [ENOBUFS, ENOMEM, ETOOMANYREFS].contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::Hold;
    use crate::protocol::message::{Confirmed, Held};

    /// A frame that is on its way stays whole, and the next one has the number that the other side expects.
    #[test]
    fn what_is_discarded_leaves_no_gap() {
        let (mut writer, mut reader) = both_ends();
        writer.send(&Confirmed {}.into());
        assert_eq!(writer.flush(), Flush::Empty);
        let file: SharedFd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into();
        writer.send(&Confirmed {}.into());
        writer.send_descriptors(vec![file.clone()]);
        writer.send(&Confirmed {}.into());
        writer.outgoing[0].written = 1;
        assert_eq!(fdpass::send_bytes(&writer.stream, &writer.outgoing[0].bytes[..1]).unwrap(), 1);
        writer.discard_unsent();
        writer.send(&Confirmed {}.into());
        writer.send_descriptors(vec![file]);
        assert_eq!(writer.flush(), Flush::Empty);
        let mut receiver = Receiver::new();
        for number in 0..4 {
            match reader.read(&mut receiver) {
                Incoming::Frame(frame, descriptors) => {
                    assert_eq!((frame.header.sequence, descriptors.len()), (number, usize::from(number == 3)));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A copy that a child of this process has keeps nobody in the belief that somebody is there; what was said before
    /// arrives.
    #[test]
    fn what_is_dropped_is_closed_though_there_is_a_copy() {
        let (mut writer, mut reader) = both_ends();
        let _copy = writer.stream.try_clone().unwrap();
        writer.send(&Confirmed {}.into());
        assert_eq!(writer.flush(), Flush::Empty);
        assert!(!reader.is_hung_up());
        drop(writer);
        assert!(reader.is_hung_up());
        let mut receiver = Receiver::new();
        assert!(matches!(reader.read(&mut receiver), Incoming::Frame(..)));
        assert!(matches!(reader.read(&mut receiver), Incoming::End));
    }

    /// Who does not read fills no memory, whatever happens meanwhile, and is told how it is in the end.
    #[test]
    fn the_latest_of_a_kind_takes_the_place_of_those_that_wait() {
        let (mut writer, mut reader) = both_ends();
        let held = |number: usize| {
            let hold = Hold { reason: format!("incident {number} {}", "x".repeat(1000)), ..Hold::default() };
            Message::from(Held { hold: Some(hold) })
        };
        writer.send(&Confirmed {}.into());
        for number in 0..5000 {
            writer.send_latest(&held(number));
            writer.flush();
        }
        writer.send(&Confirmed {}.into());
        for number in 5000..6000 {
            writer.send_latest(&held(number));
            writer.flush();
        }
        // One of which a part is written, one after it, and those after the other message.
        assert!(writer.unwritten() < 4 * 1100, "{} bytes", writer.unwritten());
        let (mut receiver, mut heard) = (Receiver::new(), Vec::new());
        reader.stream().set_nonblocking(true).unwrap();
        loop {
            let flushed = writer.flush();
            match reader.read(&mut receiver) {
                Incoming::Frame(frame, _) => {
                    assert_eq!(frame.header.sequence, heard.len() as u32);
                    heard.push(Message::decode(&frame).unwrap());
                }
                Incoming::Blocked if flushed == Flush::Empty => break,
                other => assert!(matches!(other, Incoming::Blocked), "{other:?}"),
            }
        }
        assert_eq!(heard.last(), Some(&held(5999)));
        let of_the_first_part = heard.iter().rposition(|message| *message == Confirmed {}.into()).unwrap();
        assert_eq!(heard[of_the_first_part - 1], held(4999));
    }

    /// One that writes, and one that may receive descriptors.
    fn both_ends() -> (Connection, Connection) {
        let (writer, theirs) = pair();
        let mut reader = Connection::new(theirs, None);
        reader.takes_descriptors = true;
        (writer, reader)
    }

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours, None), theirs)
    }

    /// What the kernel had no room for is lost, and the connection is not: nor is what it did install kept open.
    #[test]
    fn after_descriptors_that_were_lost_the_next_frame_is_read() {
        let (mut writer, mut reader) = both_ends();
        let (reading, writing) = nix::unistd::pipe().unwrap();
        writer.send_descriptors(vec![writing.into(); 5]);
        writer.send(&Confirmed {}.into());
        assert_eq!(writer.flush(), Flush::Empty);
        let mut receiver = Receiver::small();
        let lost = reader.read(&mut receiver);
        assert!(matches!(&lost, Incoming::NoRoom(frame) if frame.header.descriptors == 5), "{lost:?}");
        assert_eq!(nix::unistd::read(&reading, &mut [0]), Ok(0), "nobody can write to the pipe any more");
        let next = reader.read(&mut receiver);
        assert!(
            matches!(&next, Incoming::Frame(frame, none) if frame.header.sequence == 1 && none.is_empty()),
            "{next:?}"
        );
    }

    /// With the default disposition of SIGPIPE a client that hangs up would end the process: sendfd has no flag for that.
    #[test]
    fn descriptors_for_a_reader_that_is_gone_raise_no_signal() {
        let (mut connection, client) = pair();
        drop(client);
        let file: SharedFd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into();
        connection.send_descriptors(vec![file]);
        assert!(!sys::raises_sigpipe(|| assert_eq!(connection.flush(), Flush::Broken)));
    }

    /// As many as a message carries, with the first byte of a header, from every client there may be: they were kept
    /// until the deadline of the handshake.
    #[test]
    fn descriptors_of_a_client_are_closed_before_his_frame_is_whole() {
        let (mut connection, client) = pair();
        let (reading, writing) = nix::unistd::pipe().unwrap();
        fdpass::send_descriptors(&client, b"H", &[writing.as_fd(); 253]).unwrap();
        drop(writing);
        assert!(matches!(connection.read(&mut Receiver::new()), Incoming::Fault(_)));
        // Nobody can write to the pipe any more: that is its end.
        assert_eq!(nix::unistd::read(&reading, &mut [0]), Ok(0));
        let (mut connection, predecessor) = pair();
        connection.takes_descriptors = true;
        fdpass::send_descriptors(&predecessor, b"H", &[reading.as_fd(); 253]).unwrap();
        assert!(matches!(connection.read(&mut Receiver::new()), Incoming::Blocked));
        assert_eq!(connection.arrived.len(), 253);
    }
}
