//! Which network namespace a socket lives in: a passed listener stays where it was made, for ever.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::fstat;

use crate::error::NetworkNamespace;
use crate::sys;

/// The cookie of this process's network namespace; `None` before Linux 5.14.
///
/// Read from a fresh socket, because a thread may have called setns(2).
pub(crate) fn own_network_namespace() -> Option<u64> {
    let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
    sys::network_namespace_cookie(probe.as_fd()).ok()
}

/// The namespace of this thread, for people.
pub(crate) fn ours(cookie: u64) -> NetworkNamespace {
    let inode = std::fs::metadata("/proc/thread-self/ns/net").ok().map(|metadata| metadata.ino());
    NetworkNamespace { cookie, inode }
}

/// The namespace that a socket lives in, for people.
pub(crate) fn of(socket: BorrowedFd<'_>, cookie: u64) -> NetworkNamespace {
    let inode = sys::network_namespace(socket).ok().and_then(|namespace| fstat(namespace).ok()).map(|stat| stat.st_ino);
    NetworkNamespace { cookie, inode }
}
