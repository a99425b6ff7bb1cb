//! A peer that says what a test tells it to, by the wire format alone: for what a well-behaved one never does.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::puppet::{PATIENCE, Scene};

pub(crate) const HELLO: u8 = 1;
pub(crate) const REFUSED: u8 = 2;
pub(crate) const OFFER: u8 = 3;
pub(crate) const ENTRIES: u8 = 4;
pub(crate) const ROOM: u8 = 5;
pub(crate) const DESCRIPTORS: u8 = 6;
pub(crate) const ACK: u8 = 7;
pub(crate) const READY: u8 = 9;
pub(crate) const RELEASED: u8 = 10;
pub(crate) const OWNING: u8 = 11;
pub(crate) const CONFIRMED: u8 = 12;
pub(crate) const ABORT: u8 = 15;
pub(crate) const ASK: u8 = 32;

pub(crate) struct Peer {
    stream: UnixStream,
    sequence: u32,
    /// What came with the frames, closed with the peer.
    received: Vec<RawFd>,
    pub(crate) offer: Value,
}

impl Peer {
    pub(crate) fn connect(scene: &Scene) -> Peer {
        let stream = UnixStream::connect(scene.control()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer { stream, sequence: 0, received: Vec::new(), offer: Value::Null }
    }

    /// A header by hand.
    pub(crate) fn header(&mut self, kind: u8, descriptors: u16, body: u32) -> Vec<u8> {
        let mut bytes = b"HRLM".to_vec();
        bytes.extend([kind, 0]);
        bytes.extend(descriptors.to_be_bytes());
        bytes.extend(body.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        self.sequence += 1;
        bytes
    }

    /// Sends a frame; it may be that nobody reads it any more.
    pub(crate) fn send(&mut self, kind: u8, body: &Value) {
        let body = rmp_serde::to_vec_named(body).unwrap();
        let mut bytes = self.header(kind, 0, body.len() as u32);
        bytes.extend(body);
        self.send_bytes(&bytes);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn read(&mut self) -> Option<(u8, Value)> {
        let mut header = [0; 16];
        self.fill(&mut header)?;
        assert_eq!(&header[..4], b"HRLM");
        let length = u32::from_be_bytes(header[8..12].try_into().unwrap());
        let mut body = vec![0; length as usize];
        self.fill(&mut body)?;
        let body = if body.is_empty() { Value::Null } else { rmp_serde::from_slice(&body).unwrap() };
        Some((header[4], body))
    }

    fn fill(&mut self, space: &mut [u8]) -> Option<()> {
        let mut filled = 0;
        while filled < space.len() {
            let mut control = nix::cmsg_space!([RawFd; 253]);
            let mut slices = [IoSliceMut::new(&mut space[filled..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Ok(message) if message.bytes == 0 => return None,
                Ok(message) => {
                    for control in message.cmsgs().unwrap() {
                        if let ControlMessageOwned::ScmRights(numbers) = control {
                            self.received.extend(numbers);
                        }
                    }
                    filled += message.bytes;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return None,
                Err(errno) => panic!("{errno}"),
            }
        }
        Some(())
    }

    /// The next frame, which must be of this kind.
    #[track_caller]
    pub(crate) fn expect(&mut self, kind: u8) -> Value {
        let (found, body) = self.read().unwrap();
        assert_eq!(found, kind, "{body}");
        body
    }

    /// Whether nothing comes for so long.
    pub(crate) fn hears_nothing_for(&self, duration: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut waiting = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::try_from(duration).unwrap()).unwrap() == 0
    }

    /// Waits until the other side has hung up, whatever there is to read.
    #[track_caller]
    pub(crate) fn is_hung_up_on(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut waiting = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let ended = poll(&mut waiting, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        assert_eq!(ended, 1, "it was not hung up on");
    }

    pub(crate) fn hello() -> Value {
        json!({"min_version": 1, "max_version": 1, "nonce": 4711, "pid": std::process::id(),
               "app_version": "peer", "wants": "takeover"})
    }

    /// Goes the way of a successor until it has everything.
    #[track_caller]
    pub(crate) fn receive_all(&mut self) {
        self.send(HELLO, &Peer::hello());
        self.offer = self.expect(OFFER);
        let (entries, descriptors) =
            (self.offer["entries"].as_u64().unwrap(), self.offer["descriptors"].as_u64().unwrap());
        let mut listed = 0;
        while listed < entries {
            listed += self.expect(ENTRIES)["entries"].as_array().unwrap().len() as u64;
        }
        self.send(ROOM, &json!({"descriptors": descriptors}));
        while (self.received.len() as u64) < descriptors {
            self.expect(DESCRIPTORS);
            self.send(ACK, &json!({"descriptors": self.received.len()}));
        }
    }

    /// Says that it is ready, and waits for the release.
    #[track_caller]
    pub(crate) fn get_released(&mut self) {
        self.receive_all();
        self.send(READY, &json!({}));
        assert_eq!(self.expect(RELEASED)["nonce"], 4711);
    }

    /// Tries to take a byte of the lock file, by a description of its own.
    pub(crate) fn lock(scene: &Scene, byte: i64) -> Option<std::fs::File> {
        let file = std::fs::File::options().read(true).write(true).open(scene.path("handoff.sock.lock")).unwrap();
        let range = nix::libc::flock {
            l_type: nix::libc::F_WRLCK as _,
            l_whence: nix::libc::SEEK_SET as _,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range)).is_ok().then_some(file)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for number in self.received.drain(..) {
            let _ = nix::unistd::close(number);
        }
    }
}
