//! The control socket: its path, who may be at the other end, and how it is made and reached.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use crate::error::{Error, PathProblem, Result};
use crate::sys;

/// How many connections may wait on the control socket.
pub(crate) const BACKLOG: u32 = 128;
/// The longest path: `sun_path` without its NUL (unix(7)).
const MAX_PATH: usize = 107;
/// What an unmapped user reads as, and so does everybody's `nobody`: never a friend.
const OVERFLOW_ID: u32 = 65534;

/// Who may be at the other end of a control connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    /// Users beside this process's own and root.
    pub(crate) uids: Vec<u32>,
    /// Groups.
    pub(crate) gids: Vec<u32>,
    /// Whether the folder may be one that others can write to.
    pub(crate) shared_folder: bool,
}

impl Policy {
    /// Whether this user or group may.
    pub(crate) fn admits(&self, uid: u32, gid: u32) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        (uid == own && uid != OVERFLOW_ID)
            || uid == 0
            || (uid != OVERFLOW_ID && self.uids.contains(&uid))
            || (gid != OVERFLOW_ID && self.gids.contains(&gid))
    }

    /// The mode of control socket and lock file: with a list it has to let others in, and the credentials decide.
    pub(crate) fn mode(&self) -> u32 {
        if self.uids.is_empty() && self.gids.is_empty() { 0o600 } else { 0o666 }
    }
}

/// The credentials of the peer, as connect(2) or listen(2) left them: `(pid, uid, gid)`.
///
/// A pid of 0 is one that this pid namespace cannot see.
pub(crate) fn peer_credentials(stream: &UnixStream) -> io::Result<(u32, u32, u32)> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    Ok((credentials.pid().max(0) as u32, credentials.uid(), credentials.gid()))
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

/// Checks that nobody else can put a socket or a lock file in our place.
pub(crate) fn check_folder(path: &Path, policy: &Policy) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let metadata = match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return Err(Error::path(path, PathProblem::NoFolder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::path(path, PathProblem::NoFolder));
        }
        Err(error) => return Err(Error::io(format!("look at {}", folder.display()), error)),
    };
    if policy.shared_folder {
        return Ok(());
    }
    let owner = metadata.uid();
    if !policy.admits(owner, OVERFLOW_ID) {
        return Err(Error::path(path, PathProblem::FolderNotOurs { uid: owner }));
    }
    let group_may = metadata.mode() & 0o020 != 0 && !policy.gids.contains(&metadata.gid());
    if group_may || metadata.mode() & 0o002 != 0 {
        return Err(Error::path(path, PathProblem::SharedFolder { mode: metadata.mode() & 0o7777 }));
    }
    Ok(())
}

/// Checks what is at the path itself: nothing, or a socket of ours.
pub(crate) fn check_path(path: &Path, policy: &Policy) -> Result<()> {
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
    if !policy.admits(metadata.uid(), OVERFLOW_ID) {
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
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(Error::io(doing(), errno)),
        };
    }
}

/// Replaces what is stale at the path and listens there. Only under the family lease, with no family alive.
pub(crate) fn found(path: &Path, policy: &Policy) -> Result<UnixListener> {
    check_path(path, policy)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove the stale {}", path.display()), error));
        }
        _ => {}
    }
    bind_at(path, policy)
}

/// Binds and listens, with the mode set before the file is there, so that there is no moment in which others get in.
fn bind_at(path: &Path, policy: &Policy) -> Result<UnixListener> {
    let doing = |what: &str| format!("{what} {}", path.display());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| Error::io("make a socket", errno))?;
    // Linux makes the file with the mode of the socket (unix(7) leaves it out; fchmod after bind does nothing).
    fchmod(listener.as_fd(), Mode::from_bits_truncate(policy.mode()))
        .map_err(|errno| Error::io(doing("set the mode of"), errno))?;
    let address = UnixAddr::new(path).map_err(|errno| Error::io(doing("bind"), errno))?;
    bind(listener.as_raw_fd(), &address).map_err(|errno| Error::io(doing("bind"), errno))?;
    if policy.mode() != 0o600 {
        // The umask has been applied all the same; a list of users needs the bits.
        let wide = std::os::unix::fs::PermissionsExt::from_mode(policy.mode());
        std::fs::set_permissions(path, wide).map_err(|error| Error::io(doing("set the mode of"), error))?;
    }
    let listener = UnixListener::from(listener);
    listen_again(&listener, BACKLOG).map_err(|error| Error::io(doing("listen at"), error))?;
    Ok(listener)
}

/// Makes a removed path again: binds beside it and links it into place, which never replaces anything.
pub(crate) fn mend(path: &Path, policy: &Policy) -> Result<UnixListener> {
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let listener = bind_at(&beside, policy)?;
    let linked = std::fs::hard_link(&beside, path);
    // Whatever came of it, the name beside is no longer needed.
    let removed = std::fs::remove_file(&beside);
    linked.and(removed).map_err(|error| Error::io(format!("make {} again", path.display()), error))?;
    Ok(listener)
}

/// listen(2) again: a new owner is who `SO_PEERCRED` names to those who connect from now on.
pub(crate) fn listen_again(listener: &impl AsFd, backlog: u32) -> io::Result<()> {
    // Whoever connects from now on is refused descriptors by the kernel, where it can: also before he is accepted, which
    // is when what he has sent is there already.
    let _ = sys::refuse_descriptors(listener.as_fd());
    let backlog = Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX)).unwrap_or(Backlog::MAXCONN);
    Ok(listen(&listener.as_fd(), backlog)?)
}
