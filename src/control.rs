//! The control socket: its path, who may be at the other end, and how it is made and reached.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use crate::error::{Error, PathProblem, Result};
use crate::guests::Guests;
use crate::sys;

/// How many connections may wait on the control socket.
pub(crate) const BACKLOG: u32 = 128;
/// The longest path: `sun_path` without its NUL (unix(7)).
const MAX_PATH: usize = 107;
/// Who is at the other end of a control connection, as connect(2) or listen(2) left it.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    /// `None` where this pid namespace cannot see the process: the kernel says 0 then (pid_namespaces(7)).
    pub(crate) pid: Option<u32>,
    /// The effective user.
    pub(crate) uid: u32,
    /// The effective group, and the supplementary ones.
    pub(crate) groups: Vec<u32>,
}

/// Asks the kernel who is at the other end (`SO_PEERCRED` and `SO_PEERGROUPS`, unix(7)).
pub(crate) fn peer_credentials(stream: &UnixStream) -> io::Result<Credentials> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    let mut groups = vec![credentials.gid()];
    // Without them the effective group alone counts.
    groups.extend(sys::peer_groups(stream.as_fd()).unwrap_or_default());
    let pid = u32::try_from(credentials.pid()).ok().filter(|pid| *pid != 0);
    Ok(Credentials { pid, uid: credentials.uid(), groups })
}

/// Makes a path absolute, once, and checks what can be checked without touching it.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) || path.file_name().is_none() || bytes.ends_with(b"/") {
        return Err(Error::path(path, PathProblem::NotAFile));
    }
    let absolute = std::path::absolute(path).map_err(|error| Error::io("find the current folder", error))?;
    let length = absolute.as_os_str().len();
    if length > MAX_PATH {
        return Err(Error::path(path, PathProblem::TooLong { bytes: length }));
    }
    Ok(absolute)
}

/// Checks what is at the path itself: nothing, or a socket of ours.
pub(crate) fn check_path(path: &Path, guests: &Guests) -> Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("look at {}", path.display()), error)),
    };
    if metadata.file_type().is_symlink() {
        return Err(Error::path(path, PathProblem::Symlink));
    }
    if !metadata.file_type().is_socket() {
        return Err(Error::path(path, PathProblem::NotASocket));
    }
    if !guests.admit_user(metadata.uid()) {
        return Err(Error::path(path, PathProblem::NotOurs { uid: metadata.uid() }));
    }
    Ok(())
}

/// What came of one attempt to connect.
#[derive(Debug)]
pub(crate) enum Connect {
    /// A connection, non-blocking and close-on-exec.
    Made(UnixStream),
    /// Nobody listens.
    Unreachable,
    /// Somebody listens, and his queue is full.
    Full,
}

/// Connects without waiting: a Unix socket with a full queue answers `EAGAIN` at once (connect(2)).
pub(crate) fn connect_now(path: &Path) -> Result<Connect> {
    let doing = || format!("connect to {}", path.display());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| Error::io("make a socket", errno))?;
    let address = UnixAddr::new(path).map_err(|errno| Error::io(doing(), errno))?;
    loop {
        return match connect(stream.as_raw_fd(), &address) {
            Ok(()) => Ok(Connect::Made(UnixStream::from(stream))),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(Connect::Unreachable),
            Err(Errno::EAGAIN) => Ok(Connect::Full),
            Err(Errno::EACCES) => Err(Error::path(path, PathProblem::Denied)),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(Error::io(doing(), errno)),
        };
    }
}

/// Replaces what is stale at the path and listens there. Only under the family lease, with no family alive.
pub(crate) fn found(path: &Path, guests: &Guests) -> Result<UnixListener> {
    check_path(path, guests)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove the stale {}", path.display()), error));
        }
        _ => {}
    }
    bind_at(path)
}

/// Binds and listens, with the mode set before the file is there, so that there is no moment in which others get in.
fn bind_at(path: &Path) -> Result<UnixListener> {
    let doing = |what: &str| format!("{what} {}", path.display());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| Error::io("make a socket", errno))?;
    // Linux makes the file with the mode of the socket (unix(7) leaves it out; fchmod after bind does nothing).
    fchmod(listener.as_fd(), Mode::from_bits_truncate(0o600))
        .map_err(|errno| Error::io(doing("set the mode of"), errno))?;
    let address = UnixAddr::new(path).map_err(|errno| Error::io(doing("bind"), errno))?;
    bind(listener.as_raw_fd(), &address).map_err(|errno| Error::io(doing("bind"), errno))?;
    let listener = UnixListener::from(listener);
    listen_again(&listener, BACKLOG).map_err(|error| Error::io(doing("listen at"), error))?;
    Ok(listener)
}

/// Opens the control socket to these guests and to nobody else. Only its owner may do that, and root; for others it stays
/// as it is.
///
/// # Errors
/// `PermissionDenied` where the path leads to something else than the socket that the family bound: that must not be
/// opened to anybody.
pub(crate) fn open_to(path: &Path, inode: (u64, u64), guests: &Guests) -> io::Result<()> {
    let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.file_type().is_socket() || (metadata.dev(), metadata.ino()) != inode {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let opened = guests.open(file.as_fd()).and_then(|opened| {
        // Without access lists the credentials decide alone.
        if opened { Ok(()) } else { sys::set_mode(file.as_fd(), 0o666) }
    });
    if opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) { Ok(()) } else { opened }
}

/// Makes a removed path again: binds beside it and links it into place, which never replaces anything.
pub(crate) fn mend(path: &Path) -> Result<UnixListener> {
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let listener = bind_at(&beside)?;
    let linked = std::fs::hard_link(&beside, path);
    // Whatever came of it, the name beside is no longer needed.
    let removed = std::fs::remove_file(&beside);
    linked.and(removed).map_err(|error| Error::io(format!("make {} again", path.display()), error))?;
    Ok(listener)
}

/// listen(2) again: a new owner is who `SO_PEERCRED` names to those who connect from now on.
pub(crate) fn listen_again(listener: &impl AsFd, backlog: u32) -> io::Result<()> {
    // What is accepted here inherits it from connect(2) on. Where the kernel cannot, the reader refuses descriptors.
    let _ = sys::refuse_descriptors(listener.as_fd());
    // One that came in blocking mode would hold its owner in accept(2) for ever.
    socket2::SockRef::from(listener).set_nonblocking(true)?;
    let backlog = Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX)).unwrap_or(Backlog::MAXCONN);
    Ok(listen(&listener.as_fd(), backlog)?)
}
