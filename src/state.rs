//! An application's state on its way to the next generation: written into a memfd, sealed, and read from there.
//!
//! The bytes are never copied: handing over a gigabyte costs what handing over a kilobyte costs, but for the one pass of
//! the checksum at either end, which a writer may leave out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::manifest::StateKind;

/// How much of a state is read at once to check it.
const PIECE: usize = 256 * 1024;
/// The deepest nesting of a state that is decoded: the application's own, but a stack has an end.
const MAX_DEPTH: usize = 128;

/// What a state that travels can no longer do: change, grow, shrink, or lose these seals (fcntl(2), `F_ADD_SEALS`).
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// A state that is being written, for the successor of this process.
///
/// It lies in memory that no file system has (memfd_create(2)). [`Serving::released_with`](crate::Serving::released_with)
/// seals it and sends it on.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    length: u64,
    checksum: Option<crc32fast::Hasher>,
}

impl Snapshot {
    pub(crate) fn new() -> io::Result<Snapshot> {
        let memfd = memfd_create("heirloom state", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        Ok(Snapshot { file: File::from(memfd), length: 0, checksum: Some(crc32fast::Hasher::new()) })
    }

    /// Leaves the checksum out: a seal keeps the bytes as they are, so all that it could find is a fault of memory.
    #[must_use]
    pub fn without_checksum(mut self) -> Snapshot {
        self.checksum = None;
        self
    }

    /// Writes a value as MessagePack with field names, which [`State::decode`] reads.
    ///
    /// # Errors
    /// What writing to memory can run into (`ENOSPC`, `ENOMEM`), and values that MessagePack cannot hold.
    pub fn encode<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut buffered = io::BufWriter::with_capacity(PIECE, self);
        rmp_serde::encode::write_named(&mut buffered, value).map_err(io::Error::other)?;
        buffered.flush()
    }

    /// Seals it: what a successor gets is what is here now.
    pub(crate) fn seal(self) -> io::Result<(OwnedFd, u64, Option<u32>)> {
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals()))?;
        Ok((self.file.into(), self.length, self.checksum.map(crc32fast::Hasher::finalize)))
    }
}

impl Write for Snapshot {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.length += count as u64;
        if let Some(checksum) = &mut self.checksum {
            checksum.update(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is wrong with a descriptor that is said to hold a state, `(check, expected, found)`; `None` where nothing is.
pub(crate) fn examine(fd: BorrowedFd<'_>, length: u64) -> io::Result<Option<(&'static str, String, String)>> {
    // Only a memfd has seals: EINVAL for anything else.
    let found = fcntl(fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate).unwrap_or(SealFlag::empty());
    if !found.contains(seals()) {
        return Ok(Some(("sealed", "true".to_owned(), "false".to_owned())));
    }
    let size = nix::sys::stat::fstat(fd)?.st_size as u64;
    Ok((size != length).then(|| ("length", length.to_string(), size.to_string())))
}

/// The state that the predecessor left at its release. Reading starts at its begin.
#[derive(Debug)]
pub struct State {
    kind: StateKind,
    file: File,
    length: u64,
    at: u64,
}

impl State {
    /// Takes a state whose descriptor was examined, and holds its checksum against its bytes.
    pub(crate) fn new(kind: StateKind, fd: OwnedFd, length: u64, checksum: Option<u32>) -> io::Result<State> {
        let state = State { kind, file: File::from(fd), length, at: 0 };
        if let Some(expected) = checksum {
            let found = state.sum()?;
            if found != expected {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("its checksum should be {expected:08x} and is {found:08x}"),
                ));
            }
        }
        Ok(state)
    }

    fn sum(&self) -> io::Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        loop {
            match self.file.read_at(&mut piece, at)? {
                0 => return Ok(hasher.finalize()),
                count => {
                    hasher.update(&piece[..count]);
                    at += count as u64;
                }
            }
        }
    }

    /// What it is written in.
    #[must_use]
    pub fn kind(&self) -> &StateKind {
        &self.kind
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads a value that [`Snapshot::encode`] wrote. Fields that are missing or new are serde's to deal with.
    ///
    /// # Errors
    /// `InvalidData` where the bytes are something else, or more than this.
    pub fn decode<T: DeserializeOwned>(mut self) -> io::Result<T> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0));
        self.read_to_end(&mut bytes)?;
        let mut decoder = rmp_serde::Deserializer::new(bytes.as_slice());
        decoder.set_max_depth(MAX_DEPTH);
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let value = T::deserialize(&mut decoder).map_err(|error| invalid(error.to_string()))?;
        if decoder.get_ref().is_empty() { Ok(value) } else { Err(invalid("bytes after the value".to_owned())) }
    }
}

impl Read for State {
    /// Reads on. The position is this value's own: that of the descriptor is shared with the predecessor.
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(space, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl AsFd for State {
    /// The sealed memfd, for mmap(2) or to be passed on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> StateKind {
        StateKind { schema: "counter".to_owned(), version: 1 }
    }

    #[test]
    fn what_was_written_is_read_and_cannot_change() {
        let mut snapshot = Snapshot::new().unwrap();
        snapshot.encode(&vec![7_u64; 100_000]).unwrap();
        let (fd, length, checksum) = snapshot.seal().unwrap();
        assert_eq!(examine(fd.as_fd(), length).unwrap(), None);
        let mut file = File::from(fd.try_clone().unwrap());
        assert!(file.write(b"x").is_err() && file.set_len(0).is_err());
        let state = State::new(kind(), fd, length, checksum).unwrap();
        assert_eq!(state.decode::<Vec<u64>>().unwrap(), vec![7; 100_000]);
    }

    #[test]
    fn another_checksum_another_length_and_something_unsealed_are_found() {
        let mut snapshot = Snapshot::new().unwrap();
        snapshot.write_all(b"one two").unwrap();
        let (fd, length, checksum) = snapshot.seal().unwrap();
        assert_eq!((length, checksum), (7, Some(crc32fast::hash(b"one two"))));
        let wrong = State::new(kind(), fd.try_clone().unwrap(), length, Some(1)).unwrap_err();
        assert_eq!(wrong.kind(), io::ErrorKind::InvalidData);
        assert_eq!(examine(fd.as_fd(), 8).unwrap().unwrap().0, "length");
        let open = Snapshot::new().unwrap();
        assert_eq!(examine(open.file.as_fd(), 0).unwrap().unwrap().0, "sealed");
        let null = File::open("/dev/null").unwrap();
        assert_eq!(examine(null.as_fd(), 0).unwrap().unwrap().0, "sealed");
    }

    #[test]
    fn nothing_at_all_is_a_state_too() {
        let (fd, length, checksum) = Snapshot::new().unwrap().without_checksum().seal().unwrap();
        assert_eq!((length, checksum), (0, None));
        let mut state = State::new(kind(), fd, length, checksum).unwrap();
        assert!(state.is_empty());
        assert_eq!(state.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn bytes_after_a_value_are_an_error() {
        let mut snapshot = Snapshot::new().unwrap();
        snapshot.encode(&1_u8).unwrap();
        snapshot.encode(&2_u8).unwrap();
        let (fd, length, checksum) = snapshot.seal().unwrap();
        let state = State::new(kind(), fd, length, checksum).unwrap();
        assert_eq!(state.decode::<u8>().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
