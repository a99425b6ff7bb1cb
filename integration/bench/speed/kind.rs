//! What is handed over: descriptors of one kind, and where they come from.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::goals::grouped;

/// What a takeover is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// TCP listeners at ports of the kernel's choice.
    Listener,
    /// Established TCP connections.
    Connection,
    /// Files in memory.
    Memfd,
}

impl Kind {
    /// As it is told on the command line.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Kind::Listener => "listener",
            Kind::Connection => "connection",
            Kind::Memfd => "memfd",
        }
    }

    /// So many of them.
    pub(crate) fn words(self, count: usize) -> String {
        let word = match self {
            Kind::Listener => "TCP listener",
            Kind::Connection => "TCP connection",
            Kind::Memfd => "memfd",
        };
        let plural = if count == 1 { "" } else { "s" };
        format!("{} {word}{plural}", grouped(count))
    }
}

/// Makes descriptors of a kind, one after the other.
#[derive(Debug)]
pub(crate) struct Maker {
    kind: Kind,
    /// What the connections are to, and its accepted ends: one end of each alone is handed over.
    server: Option<TcpListener>,
    made: Cell<usize>,
}

/// Listeners at one address: the ports of one address alone are too few for two services that are compared, and the
/// kernel looks for a free one for long.
const AN_ADDRESS: usize = 1000;

impl Maker {
    pub(crate) fn new(kind: Kind) -> io::Result<Maker> {
        let server = match kind {
            Kind::Connection => Some(TcpListener::bind("127.0.0.1:0")?),
            Kind::Listener | Kind::Memfd => None,
        };
        Ok(Maker { kind, server, made: Cell::new(0) })
    }

    pub(crate) fn make(&self) -> io::Result<OwnedFd> {
        match (&self.server, self.kind) {
            (Some(server), _) => {
                let connection = TcpStream::connect(server.local_addr()?)?;
                // The other end closes: what is handed over stays a socket of its own, half closed.
                drop(server.accept()?);
                Ok(connection.into())
            }
            (None, Kind::Memfd) => Ok(File::from(memfd_create("entry", MFdFlags::MFD_CLOEXEC)?).into()),
            (None, _) => {
                let made = self.made.replace(self.made.get() + 1);
                let network = u8::try_from(made / AN_ADDRESS).map_err(io::Error::other)?;
                let listener = TcpListener::bind((Ipv4Addr::new(127, 0, network, 1), 0))?;
                listener.set_nonblocking(true)?;
                Ok(listener.into())
            }
        }
    }
}
