//! How a server fails, and which failures it survives.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;

/// Why a server ended before its time.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The exit code for how a server ended, with a word on stderr where it is not a good one.
pub(crate) fn exit_code(program: &str, end: Result<(), Failure>) -> ExitCode {
    let Err(error) = end else { return ExitCode::SUCCESS };
    let ours = error.downcast_ref::<heirloom::Error>();
    if let Some(heirloom::Error::Cancelled) = ours {
        // It was asked to leave before it had begun, and it left.
        return ExitCode::SUCCESS;
    }
    eprintln!("{program}: {error}");
    if let Some(hint) = ours.and_then(heirloom::Error::hint) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// Whether accept failed only because there are too many open files at the moment, here or in the whole system: no
/// reason to end the service for those who are in it.
pub(crate) fn is_full(error: &heirloom::Error) -> bool {
    let heirloom::Error::Io { source, .. } = error else { return false };
    let errno = source.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
}

/// The pause before another try then. The kernel tells nobody when there is room again.
pub(crate) const FULL_PAUSE: Duration = Duration::from_millis(50);
