//! Work that must never run twice: datagrams, each counted in a file that all generations share.
//!
//! Every answer costs a read and a write of that file, and nothing guards the two but the owner lock: where two processes
//! did this at once, one of them would find the other's entry where it left its own.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::{fmt, io};

use crate::failure::Failure;

/// What one owner has at hand. It is dropped before the lock is given back.
#[derive(Debug)]
pub(crate) struct Ledger {
    socket: tokio::net::UdpSocket,
    file: File,
    mine: Entry,
}

impl Ledger {
    /// Takes the work up, as the owner of that generation.
    pub(crate) fn take(socket: &UdpSocket, file: &OwnedFd, generation: u64) -> Result<Ledger, Failure> {
        let socket = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        let file = File::from(file.try_clone()?);
        let last = Entry::read(&file)?;
        if last.generation > generation {
            return Err(format!("two writers: {last} is there, and this is generation {generation}").into());
        }
        let mine = Entry { generation, count: last.count };
        mine.write(&file)?;
        Ok(Ledger { socket, file, mine })
    }

    /// Waits until there is something to do.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Answers one datagram with the new count and the generation, without waiting.
    pub(crate) fn tick(&mut self) -> Result<(), Failure> {
        let from = match self.socket.try_recv_from(&mut [0; 1]) {
            Ok((_, from)) => from,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let found = Entry::read(&self.file)?;
        if found != self.mine {
            return Err(format!("two writers: {found} is there, where {} was left", self.mine).into());
        }
        self.mine.count += 1;
        self.mine.write(&self.file)?;
        self.socket.try_send_to(&self.mine.to_bytes(), from)?;
        Ok(())
    }
}

/// Who counted last, and how far: in the file, and in each answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) generation: u64,
    pub(crate) count: u64,
}

/// The length of an entry, in bytes.
pub(crate) const LENGTH: usize = 16;

impl Entry {
    pub(crate) fn from_bytes(bytes: [u8; LENGTH]) -> Entry {
        let both = u128::from_be_bytes(bytes);
        Entry { generation: (both >> 64) as u64, count: both as u64 }
    }

    fn to_bytes(self) -> [u8; LENGTH] {
        (u128::from(self.generation) << 64 | u128::from(self.count)).to_be_bytes()
    }

    fn read(file: &File) -> io::Result<Entry> {
        let mut bytes = [0; LENGTH];
        match file.read_at(&mut bytes, 0)? {
            0 => Ok(Entry::default()), // Nobody has counted yet.
            LENGTH => Ok(Entry::from_bytes(bytes)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write(self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.to_bytes(), 0)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of generation {}", self.count, self.generation)
    }
}
