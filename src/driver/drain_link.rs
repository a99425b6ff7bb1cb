//! A drain link: a socket pair, one end with a process that drains and copies of the other with those who may steer it.
//!
//! Each message is one packet, so that whoever has a copy of an end can use it at any time and knows nothing of what was
//! said before.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::protocol::message::Message;
use crate::sys;
use crate::wire::{Frame, HEADER, Header};

/// The longest packet in bytes: what is said here is short.
const MAX_PACKET: usize = 4096;

#[derive(Debug)]
pub(super) struct DrainLink {
    socket: OwnedFd,
}

/// What reading brought.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Message),
    /// Something that this version cannot read.
    Noise,
    /// Nothing more at the moment.
    Nothing,
    /// All copies of the other end are closed.
    End,
}

impl DrainLink {
    /// A new link: the end of this process, and the other one.
    pub(super) fn pair() -> io::Result<(DrainLink, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        for end in [&ours, &theirs] {
            // Where the kernel cannot, recv(2) without room for them closes them.
            let _ = sys::refuse_descriptors(end.as_fd());
        }
        Ok((DrainLink { socket: ours }, theirs))
    }

    /// An end that came from somebody else; `None` where it is nothing of the kind.
    pub(super) fn of(socket: OwnedFd) -> Option<DrainLink> {
        let facts = sys::socket_facts(socket.as_fd()).ok()?;
        let fits = facts.domain == libc::AF_UNIX && facts.kind == libc::SOCK_SEQPACKET && !facts.listening;
        fits.then_some(DrainLink { socket })
    }

    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Sends a message, where there is room for it.
    pub(super) fn send(&self, message: &Message) -> io::Result<()> {
        let body = message.body();
        let header = Header { kind: message.kind(), flags: 0, descriptors: 0, body: body.len() as u32, sequence: 0 };
        let packet = [&header.encode()[..], &body].concat();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match send(self.socket.as_raw_fd(), &packet, flags) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Whether the other side has not read yet what was last said: then the next report would only fill its queue, in
    /// which the last word has to find room.
    pub(super) fn is_unread(&self) -> bool {
        sys::unread_by_peer(self.socket.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    pub(super) fn receive(&self) -> Heard {
        let mut packet = [0; MAX_PACKET];
        // With MSG_TRUNC the length is that of the packet, whatever has room.
        match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(0) => Heard::End,
            Ok(length) => packet.get(..length).and_then(read).map_or(Heard::Noise, Heard::Message),
            Err(Errno::EAGAIN) => Heard::Nothing,
            Err(Errno::EINTR | Errno::ENOMEM | Errno::ENOBUFS) => Heard::Noise,
            Err(_) => Heard::End,
        }
    }
}

impl AsFd for DrainLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Parses one packet.
fn read(packet: &[u8]) -> Option<Message> {
    let (header, body) = packet.split_first_chunk::<HEADER>()?;
    let header = Header::decode(header).ok().filter(|header| header.body as usize == body.len())?;
    Message::decode(&Frame { header, body: body.to_vec() }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::{Bye, Draining};

    #[test]
    fn packets_keep_their_borders_and_noise_is_skipped() {
        let (ours, theirs) = DrainLink::pair().unwrap();
        let theirs = DrainLink::of(theirs).unwrap();
        assert!(!ours.is_unread());
        ours.send(&Draining { in_flight: 3, ..Draining::default() }.into()).unwrap();
        assert!(ours.is_unread());
        for noise in [&b"x"[..], &[0; 16], &[b'x'; 5000]] {
            send(ours.as_fd().as_raw_fd(), noise, MsgFlags::empty()).unwrap();
        }
        ours.send(&Bye::default().into()).unwrap();
        assert!(matches!(theirs.receive(), Heard::Message(Message::Draining(Draining { in_flight: 3, .. }))));
        for _ in 0..3 {
            assert!(matches!(theirs.receive(), Heard::Noise));
        }
        assert!(matches!(theirs.receive(), Heard::Message(Message::Bye(_))));
        assert!(matches!(theirs.receive(), Heard::Nothing));
        assert!(!ours.is_unread());
        drop(ours);
        assert!(matches!(theirs.receive(), Heard::End));
        assert!(theirs.send(&Bye::default().into()).is_err(), "and no signal");
    }

    #[test]
    fn something_else_is_no_drain_link() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(DrainLink::of(stream.into()).is_none());
        assert!(DrainLink::of(std::fs::File::open("/dev/null").unwrap().into()).is_none());
    }
}
