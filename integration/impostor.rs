//! An owner that says what a test tells it to, by the wire format alone: for what a well-behaved one never does.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};

use sendfd::SendWithFd;
use serde_json::{Value, json};

use crate::peer::{DESCRIPTORS, ENTRIES, OFFER};
use crate::puppet::{PATIENCE, Scene};

pub(crate) struct Impostor {
    listener: UnixListener,
    stream: Option<UnixStream>,
    sequence: u32,
    null: std::fs::File,
}

impl Impostor {
    pub(crate) fn new(scene: &Scene) -> Impostor {
        let listener = UnixListener::bind(scene.control()).unwrap();
        Impostor { listener, stream: None, sequence: 0, null: std::fs::File::open("/dev/null").unwrap() }
    }

    /// Waits for the next who connects; what he says is not read.
    pub(crate) fn accept(&mut self) {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        self.stream = Some(stream);
        self.sequence = 0;
    }

    /// Hangs up on who is there, and on all who have connected meanwhile.
    pub(crate) fn hang_up(&mut self) {
        self.stream = None;
        self.listener.set_nonblocking(true).unwrap();
        while self.listener.accept().is_ok() {}
        self.listener.set_nonblocking(false).unwrap();
    }

    /// A header, with the next number.
    pub(crate) fn header(&mut self, kind: u8, flags: u8, descriptors: u16, body: u32) -> Vec<u8> {
        let mut bytes = b"HRLM".to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(descriptors.to_be_bytes());
        bytes.extend(body.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        self.sequence += 1;
        bytes
    }

    /// Says bytes as they are; `false` where nobody listens any more.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.as_mut().unwrap().write_all(bytes).is_ok()
    }

    pub(crate) fn say(&mut self, kind: u8, body: &Value) -> bool {
        let body = rmp_serde::to_vec_named(body).unwrap();
        self.say_bytes(kind, 0, &body)
    }

    pub(crate) fn say_bytes(&mut self, kind: u8, flags: u8, body: &[u8]) -> bool {
        let mut bytes = self.header(kind, flags, 0, body.len() as u32);
        bytes.extend(body);
        self.write(&bytes)
    }

    /// An offer of so many entries, and its manifest.
    pub(crate) fn offer(&mut self, entries: u32) {
        self.say(OFFER, &Impostor::an_offer(entries));
        if entries > 0 {
            let names: Vec<Value> = (0..entries).map(|number| self.entry(&number.to_string())).collect();
            self.say(ENTRIES, &json!({ "entries": names }));
        }
    }

    pub(crate) fn an_offer(entries: u32) -> Value {
        json!({"version": 1, "generation": 1, "entries": entries, "descriptors": u64::from(entries) + 4, "release_ms": 1000,
               "commit_ms": 1000, "stall_ms": 1000, "warm_up_ms": 1000})
    }

    /// A true entry for a descriptor of `/dev/null`.
    pub(crate) fn entry(&self, name: &str) -> Value {
        let metadata = self.null.metadata().unwrap();
        json!({"name": name, "kind": "raw", "file": {
            "device": metadata.st_dev(), "inode": metadata.st_ino(), "kind": metadata.st_mode() & nix::libc::S_IFMT,
        }})
    }

    /// A header that announces so many descriptors and carries so many, all of `/dev/null`.
    pub(crate) fn give(&mut self, announced: u16, carried: usize) {
        let header = self.header(DESCRIPTORS, 0, announced, 0);
        self.carry(&header, carried);
    }

    /// Bytes with descriptors on them.
    pub(crate) fn carry(&mut self, bytes: &[u8], carried: usize) {
        let numbers: Vec<RawFd> = vec![self.null.as_raw_fd(); carried];
        // It may be that nobody listens any more.
        let _ = self.stream.as_ref().unwrap().send_with_fd(bytes, &numbers);
    }

    /// A whole frame that carries descriptors although its kind does not.
    pub(crate) fn smuggle(&mut self, kind: u8, announced: u16, body: &Value, carried: usize) {
        let body = rmp_serde::to_vec_named(body).unwrap();
        let mut bytes = self.header(kind, 0, announced, body.len() as u32);
        bytes.extend(body);
        self.carry(&bytes, carried);
    }
}
