//! How a server fails.

use std::error::Error;
use std::process::ExitCode;

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
