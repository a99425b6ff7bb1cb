//! Which network namespace a socket lives in: a passed listener stays where it was made, for ever.

use std::os::fd::AsFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::sys;

/// The cookie of this process's network namespace; `None` before Linux 5.14.
///
/// Read from a fresh socket, because a thread may have called setns(2).
pub(crate) fn own_network_namespace() -> Option<u64> {
    let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
    sys::network_namespace_cookie(probe.as_fd()).ok()
}
