//! The manifest: every entry that travels, with what a receiver needs to check it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, NameProblem, Result};

/// The longest name, in bytes.
pub(crate) const MAX_NAME: usize = 255;
/// The most entries in one takeover.
pub(crate) const MAX_ENTRIES: u32 = 1_000_000;

/// What an entry is. New kinds may come: a peer that does not know one treats it as a raw descriptor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum Kind {
    /// A listening TCP socket.
    TcpListener,
    /// A listening Unix stream socket.
    UnixListener,
    /// A listening Unix socket of type `SOCK_SEQPACKET`.
    SeqpacketListener,
    /// A UDP socket. One queue, one reader: read it only as the owner.
    Udp,
    /// A Unix datagram socket. One queue, one reader: read it only as the owner.
    UnixDatagram,
    /// Anything else: a memfd, a pipe, an established connection.
    Raw,
    /// A kind of a newer version, by its name on the wire.
    Other(String),
}

impl Kind {
    /// Its name on the wire and in `--json`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Kind::TcpListener => "tcp-listener",
            Kind::UnixListener => "unix-listener",
            Kind::SeqpacketListener => "seqpacket-listener",
            Kind::Udp => "udp",
            Kind::UnixDatagram => "unix-datagram",
            Kind::Raw => "raw",
            Kind::Other(name) => name,
        }
    }

    /// Whether `listen(2)` belongs to it.
    #[must_use]
    pub fn listens(&self) -> bool {
        matches!(self, Kind::TcpListener | Kind::UnixListener | Kind::SeqpacketListener)
    }
}

impl From<String> for Kind {
    fn from(name: String) -> Kind {
        match name.as_str() {
            "tcp-listener" => Kind::TcpListener,
            "unix-listener" => Kind::UnixListener,
            "seqpacket-listener" => Kind::SeqpacketListener,
            "udp" => Kind::Udp,
            "unix-datagram" => Kind::UnixDatagram,
            "raw" => Kind::Raw,
            _ => Kind::Other(name),
        }
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> String {
        kind.as_str().to_owned()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the kernel says about a socket that is not a plain raw descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SocketIdentity {
    /// `SO_COOKIE`: the same for all duplicates, never used again.
    pub cookie: u64,
    /// `SO_DOMAIN`.
    pub domain: i32,
    /// `SO_TYPE`.
    #[serde(rename = "type")]
    pub kind: i32,
    /// `SO_ACCEPTCONN`: whether it listens.
    pub listening: bool,
    /// `getsockname(2)`, as text; empty for an unbound socket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub local: String,
    /// `SO_NETNS_COOKIE`, where the kernel has it (Linux 5.14).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_namespace: Option<u64>,
}

/// What `fstat(2)` says about a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// The file type bits of `st_mode`.
    pub kind: u32,
}

/// One named descriptor. The descriptor itself travels apart, in the order of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// Unique in a takeover, 1 to 255 bytes, no control characters.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it listens or is bound, for people; empty for a raw descriptor.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// What the application asked for: `127.0.0.1:0` stays the same name after the kernel chose a port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested: String,
    /// The path of a Unix socket, as bytes: it need not be UTF-8.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub path: Option<Vec<u8>>,
    /// Device and inode of that path right after `bind(2)`: only that file may ever be unlinked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_inode: Option<(u64, u64)>,
    /// The backlog that it was told to listen with. `getsockopt` cannot tell it, so it travels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u32>,
    /// What the kernel says of the file. Of a socket the other field says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
    /// What the kernel says of the socket, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketIdentity>,
    /// Nothing comes to this socket any more, and nothing waits in it: it is left over of a `SO_REUSEPORT` group that
    /// became smaller. A successor that has no use for it loses nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
}

impl Entry {
    /// How many bytes of text it has: all of it that has no fixed size.
    pub(crate) fn text(&self) -> u64 {
        let local = self.socket.as_ref().map_or(0, |socket| socket.local.len());
        let path = self.path.as_ref().map_or(0, Vec::len);
        (self.name.len() + self.kind.as_str().len() + self.address.len() + self.requested.len() + path + local) as u64
    }
}

/// What an application's state is written in: a name for the layout, and the layout's version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StateKind {
    /// The name of the layout, by the rules of [`Entry::name`].
    pub schema: String,
    /// Its version, as the application counts it.
    pub version: u32,
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.schema, self.version)
    }
}

/// Checks a name by the rules of [`Entry::name`].
///
/// # Errors
/// [`Error::Name`].
pub(crate) fn check_name(name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        NameProblem::Empty
    } else if name.len() > MAX_NAME {
        NameProblem::TooLong
    } else if name.chars().any(char::is_control) {
        NameProblem::Control
    } else {
        return Ok(());
    };
    Err(Error::name(name, problem))
}

/// One check of a received descriptor against the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// What was compared: `cookie`, `family`, `type`, `listening`, `address`, `network-namespace`, `file`, `non-blocking`.
    pub check: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What the manifest says.
    pub expected: String,
    /// What the kernel says.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_name("web").is_ok());
        assert!(check_name("wéb 1").is_ok());
        assert!(check_name(&"x".repeat(255)).is_ok());
        for bad in ["", "a\nb", "a\0b", "\u{85}", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_kind_keeps_its_name() {
        let kind = Kind::from("quic-socket".to_owned());
        assert_eq!(kind, Kind::Other("quic-socket".to_owned()));
        assert_eq!(String::from(kind), "quic-socket");
    }
}
