//! A shortage of descriptors, which is met by waiting and not by ending.

use std::time::Duration;

use nix::errno::Errno;

/// Whether accept failed only because too many files are open at the moment, here or in the whole system: no reason to
/// end the service for those who are in it.
pub(crate) fn is_shortage(error: &heirloom::Error) -> bool {
    let heirloom::Error::Io { source, .. } = error else { return false };
    let errno = source.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
}

/// The pause before another try then. The kernel tells nobody when there is room again.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
