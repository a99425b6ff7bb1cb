//! The lock file beside the control socket: family lease, owner lock, takeover lock, and what is written in it.
//!
//! The lease is a flock(2) that travels with its descriptor and is only ever closed: `LOCK_UN` through any copy would
//! free it for all. The two other locks are open file description locks (fcntl_locking(2)) on bytes 0 and 1, through a
//! description that one process alone holds: the kernel frees them when that process dies, and nobody can take them away.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, PathProblem, Result};
use crate::guests::Guests;

/// The byte of the owner lock.
const OWNER: libc::off_t = 0;
/// The byte of the takeover lock.
const TAKEOVER: libc::off_t = 1;
/// The length of the content: one line, padded, so that a single small write replaces it.
pub(crate) const CONTENT: usize = 80;
const PREFIX: &str = "heirloom 1 generation ";

/// What the lock file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// The last generation that owned. 0: none yet.
    pub(crate) generation: u64,
    /// The takeover that the owner offers, or unlocked for. 0: none.
    pub(crate) nonce: u64,
}

impl Content {
    pub(crate) fn encode(self) -> [u8; CONTENT] {
        let line = format!("{PREFIX}{:020} nonce {:016x}", self.generation, self.nonce);
        let mut bytes = [b' '; CONTENT];
        bytes[..line.len()].copy_from_slice(line.as_bytes());
        bytes[CONTENT - 1] = b'\n';
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Content> {
        let line = std::str::from_utf8(bytes).ok()?.strip_prefix(PREFIX)?;
        let (generation, nonce) = line.split_once(" nonce ")?;
        Some(Content { generation: generation.parse().ok()?, nonce: u64::from_str_radix(nonce.trim_end(), 16).ok()? })
    }
}

/// The lock file's path: that of the control socket and `.lock`.
pub(crate) fn lock_path(control: &Path) -> PathBuf {
    let mut path = control.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

/// Opens the lock file, and makes it where it is not there, for this user alone. It is never unlinked.
///
/// # Errors
/// [`Error::Path`] where what is there is not a plain file of somebody who may take part, with this one name: whoever
/// made it could hold its locks, or it is a file of another purpose, put here to be written to.
pub(crate) fn open(path: &Path, guests: &Guests) -> Result<File> {
    let file = options().create(true).mode(0o600).open(path).map_err(|error| problem(path, error))?;
    check(&file, path, guests)?;
    Ok(file)
}

/// Opens the lock file where it is there.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    options().open(path)
}

fn problem(path: &Path, error: io::Error) -> Error {
    let problem = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) => PathProblem::Symlink,
        Some(Errno::EACCES) => PathProblem::Denied,
        Some(Errno::EISDIR | Errno::ENXIO) => PathProblem::NotPlain,
        _ => return Error::io(format!("open the lock file {}", path.display()), error),
    };
    Error::path(path, problem)
}

fn check(file: &File, path: &Path, guests: &Guests) -> Result<()> {
    let metadata = file.metadata().map_err(|error| Error::io(format!("look at {}", path.display()), error))?;
    let problem = if !metadata.is_file() {
        PathProblem::NotPlain
    } else if !guests.admit_user(metadata.uid()) {
        PathProblem::NotOurs { uid: metadata.uid() }
    } else if metadata.nlink() > 1 {
        PathProblem::Linked
    } else {
        return Ok(());
    };
    Err(Error::path(path, problem))
}

/// Opens the lock file to these guests and to nobody else: whoever can open it can hold its locks. Only its owner may do
/// that, and root; for others it stays as it is.
pub(crate) fn open_to(file: &File, guests: &Guests) -> io::Result<()> {
    match guests.open(file.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        opened => opened.map(drop),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Not to hang where somebody has put a device there.
    let flags = libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    options.read(true).write(true).custom_flags(flags);
    options
}

/// Whether the open file is the one at the path.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Tries the family lease on an open lock file (flock(2)). It is given back by closing the file and every copy of it.
pub(crate) fn try_lease(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A lock description: an open of the lock file through which one process alone takes bytes 0 and 1.
#[derive(Debug)]
pub(crate) struct LockDescription {
    file: File,
}

impl LockDescription {
    /// Wraps a description that nobody else uses: freshly opened, or received from the predecessor.
    pub(crate) fn new(file: File) -> LockDescription {
        LockDescription { file }
    }

    /// Opens a new description of the same file, even where the path has become unreachable for this process.
    pub(crate) fn open_anew(lease: &File, path: &Path) -> io::Result<File> {
        let own = PathBuf::from(format!("/proc/self/fd/{}", lease.as_raw_fd()));
        let through_proc = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(own);
        match through_proc {
            Ok(file) => Ok(file),
            // No /proc in this container: by path, if that is still the same file.
            Err(_) => {
                let file = open_existing(path)?;
                let (found, wanted) = (file.metadata()?, lease.metadata()?);
                let same = (found.dev(), found.ino()) == (wanted.dev(), wanted.ino());
                if same { Ok(file) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
            }
        }
    }

    /// Takes the owner lock, if nobody has it.
    pub(crate) fn take_owner(&self) -> io::Result<bool> {
        self.set(OWNER, libc::F_WRLCK)
    }

    /// Gives the owner lock back.
    pub(crate) fn release_owner(&self) -> io::Result<()> {
        self.set(OWNER, libc::F_UNLCK).map(drop)
    }

    /// Takes the takeover lock shared: a party of a takeover.
    pub(crate) fn join_takeover(&self) -> io::Result<bool> {
        self.set(TAKEOVER, libc::F_RDLCK)
    }

    /// Takes the takeover lock exclusively: no takeover is under way, and none begins.
    pub(crate) fn bar_takeovers(&self) -> io::Result<bool> {
        self.set(TAKEOVER, libc::F_WRLCK)
    }

    /// Gives the takeover lock back.
    pub(crate) fn leave_takeover(&self) -> io::Result<()> {
        self.set(TAKEOVER, libc::F_UNLCK).map(drop)
    }

    /// Whether some description other than this one holds byte 0 or 1. A look that takes nothing.
    pub(crate) fn is_held_elsewhere(&self) -> io::Result<bool> {
        self.look(OWNER, 2)
    }

    /// Whether some description other than this one holds byte 0. A look that takes nothing.
    pub(crate) fn is_owned_elsewhere(&self) -> io::Result<bool> {
        self.look(OWNER, 1)
    }

    /// Whether some description other than this one holds byte 1. A look that takes nothing.
    pub(crate) fn is_taken_over_elsewhere(&self) -> io::Result<bool> {
        self.look(TAKEOVER, 1)
    }

    fn look(&self, start: libc::off_t, length: libc::off_t) -> io::Result<bool> {
        let mut lock = range(start, length, libc::F_WRLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// Reads generation and nonce; an empty file says generation 0.
    ///
    /// # Errors
    /// `InvalidData` where something else is written there: the generation is a fencing token and must not go back.
    pub(crate) fn read(&self) -> io::Result<Content> {
        let mut bytes = [0; CONTENT];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Content::decode(&bytes).ok_or_else(not_ours),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => match self.file.metadata()?.len() {
                0 => Ok(Content::default()),
                _ => Err(not_ours()),
            },
            Err(error) => Err(error),
        }
    }

    /// Writes generation and nonce, under the owner lock.
    pub(crate) fn write(&self, content: Content) -> io::Result<()> {
        self.file.write_all_at(&content.encode(), 0)
    }

    fn set(&self, byte: libc::off_t, kind: libc::c_int) -> io::Result<bool> {
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(byte, 1, kind))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn not_ours() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it holds something else than a generation; remove it if no process of the service is alive",
    )
}

/// The processes that hold a lock file open, as far as `/proc` shows them, this one left out.
pub(crate) fn holders(file: &File) -> Vec<u32> {
    let Ok(metadata) = file.metadata() else { return Vec::new() };
    let wanted = (metadata.dev(), metadata.ino());
    let mut pids = Vec::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return pids };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors
            .flatten()
            .filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok())
            .any(|found| (found.dev(), found.ino()) == wanted);
        if holds {
            pids.push(pid);
        }
    }
    pids
}

// The types of `l_type` and `l_whence` differ between C libraries.
#[allow(clippy::unnecessary_cast, reason = "c_short on Linux, other integers elsewhere")]
fn range(start: libc::off_t, length: libc::off_t, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        // fcntl_locking(2): must be 0 for open file description locks.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handoff.sock.lock");
        (folder, path)
    }

    fn description(path: &Path) -> LockDescription {
        LockDescription::new(open(path, &Guests::default()).unwrap())
    }

    #[test]
    fn the_content_is_one_line_and_comes_back() {
        let (_folder, path) = file();
        let lock = description(&path);
        assert_eq!(lock.read().unwrap(), Content::default());
        let content = Content { generation: u64::MAX, nonce: u64::MAX };
        lock.write(content).unwrap();
        assert_eq!(lock.read().unwrap(), content);
        lock.write(Content { generation: 12, nonce: 0xabc }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim_end(), "heirloom 1 generation 00000000000000000012 nonce 0000000000000abc");
        assert_eq!(text.len(), CONTENT);
    }

    /// Generation 0 in its place would let the fencing token go back.
    #[test]
    fn garbage_in_the_file_is_an_error() {
        let (_folder, path) = file();
        for garbage in [&[b'x'; 200][..], &[0; 80], b"short"] {
            std::fs::write(&path, garbage).unwrap();
            assert_eq!(description(&path).read().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn one_description_owns_and_closing_it_frees() {
        let (_folder, path) = file();
        let (first, second) = (description(&path), description(&path));
        assert!(first.take_owner().unwrap());
        assert!(first.take_owner().unwrap(), "again by the same is no conflict");
        assert!(!second.take_owner().unwrap());
        assert!(second.is_held_elsewhere().unwrap());
        drop(first);
        assert!(!second.is_held_elsewhere().unwrap());
        assert!(second.take_owner().unwrap());
    }

    #[test]
    fn two_parties_share_a_takeover_and_bar_a_third() {
        let (_folder, path) = file();
        let (old, new, third) = (description(&path), description(&path), description(&path));
        assert!(old.join_takeover().unwrap() && new.join_takeover().unwrap());
        assert!(!third.bar_takeovers().unwrap());
        assert!(third.is_held_elsewhere().unwrap() && !third.is_owned_elsewhere().unwrap());
        assert!(!old.bar_takeovers().unwrap(), "its own shared lock is no right to the other's");
        assert!(!third.bar_takeovers().unwrap(), "and is still there");
        old.leave_takeover().unwrap();
        assert!(!third.bar_takeovers().unwrap());
        new.leave_takeover().unwrap();
        assert!(third.bar_takeovers().unwrap());
    }

    #[test]
    fn the_lease_lives_as_long_as_any_copy() {
        let (_folder, path) = file();
        let lease = open(&path, &Guests::default()).unwrap();
        assert!(try_lease(&lease).unwrap());
        let copy = lease.try_clone().unwrap();
        drop(lease);
        let other = open(&path, &Guests::default()).unwrap();
        assert!(!try_lease(&other).unwrap());
        drop(copy);
        assert!(try_lease(&other).unwrap());
        assert!(is_at(&other, &path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!is_at(&other, &path).unwrap());
    }

    /// A lease and the locks on bytes are of different kinds and never in each other's way.
    #[test]
    fn a_description_opened_through_the_lease_locks_for_itself() {
        let (_folder, path) = file();
        let lease = open(&path, &Guests::default()).unwrap();
        assert!(try_lease(&lease).unwrap());
        let own = LockDescription::new(LockDescription::open_anew(&lease, &path).unwrap());
        let next = LockDescription::new(LockDescription::open_anew(&lease, &path).unwrap());
        assert!(own.take_owner().unwrap());
        assert!(!next.take_owner().unwrap());
        own.release_owner().unwrap();
        assert!(next.take_owner().unwrap());
    }
}
