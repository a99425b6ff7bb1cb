//! How a run ends where it does not end well: an exit code, a word for programs, a line and a hint for people.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;

use heirloom::{Error, PathProblem};
use serde_json::{Map, Value, json};

use crate::printer::Printer;

/// Refused or failed. For `upgrade` and `handoff`: the old one still serves.
pub(crate) const FAILED: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;
/// Nobody listens at the control socket.
pub(crate) const NOBODY: u8 = 3;
/// A deadline passed, and the outcome is unknown.
pub(crate) const UNKNOWN: u8 = 4;

/// The end of a run.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something to tell.
    Told(Box<Told>),
    /// Whoever read stdout has seen enough: the end of `ctl ... | head` is a good one.
    BrokenPipe,
}

/// What is told of a failure.
#[derive(Debug)]
pub(crate) struct Told {
    exit: u8,
    code: String,
    message: String,
    hint: Option<String>,
    /// Further keys of the JSON object beside `error`.
    more: Map<String, Value>,
}

impl Failure {
    pub(crate) fn new(exit: u8, code: &str, message: impl Into<String>) -> Failure {
        let (code, message) = (code.to_owned(), message.into());
        Failure::Told(Box::new(Told { exit, code, message, hint: None, more: Map::new() }))
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(USAGE, "usage", message)
    }

    /// A system call that failed: what was being done, and what the kernel said.
    pub(crate) fn io(doing: impl std::fmt::Display, error: impl std::fmt::Display) -> Failure {
        Failure::new(FAILED, "io", format!("cannot {doing}: {error}"))
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Failure {
        self.with(|told| told.hint = Some(hint.into()))
    }

    /// Where nothing was changed by giving up, a deadline is a failure; here nobody knows what came of it.
    pub(crate) fn or_unknown(self) -> Failure {
        self.with(|told| {
            if told.code == "deadline" {
                told.exit = UNKNOWN;
            }
        })
    }

    /// Nobody listens, with a hint for this command, unless nobody can at that path.
    pub(crate) fn nobody(error: Error, hint: &str) -> Failure {
        let mistaken = matches!(&error, Error::Nobody { path } if mistaken(path).is_some());
        let failure = Failure::from(error);
        if mistaken { failure } else { failure.hint(hint) }
    }

    /// Nobody knows what came of it.
    pub(crate) fn unknown(self) -> Failure {
        self.with(|told| told.exit = UNKNOWN)
    }

    /// Puts something before the message.
    pub(crate) fn before(self, text: &str) -> Failure {
        self.with(|told| told.message = format!("{text}: {}", told.message))
    }

    /// A further key of the JSON object, beside `error`.
    pub(crate) fn key(self, key: &str, value: impl Into<Value>) -> Failure {
        self.with(|told| {
            told.more.insert(key.to_owned(), value.into());
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Told)) -> Failure {
        if let Failure::Told(told) = &mut self {
            change(told);
        }
        self
    }

    /// Tells it, on stderr or as JSON on stdout, and gives the exit code.
    pub(crate) fn tell(self, printer: Printer) -> ExitCode {
        let Failure::Told(told) = self else { return ExitCode::SUCCESS };
        if printer.is_json() {
            let mut object = told.more;
            object.insert("error".to_owned(), json!({"code": told.code, "message": told.message, "hint": told.hint}));
            // The exit code says it again where nobody reads.
            let _ = printer.object(&Value::Object(object));
        } else {
            printer.say(&told.message);
            if let Some(hint) = told.hint {
                printer.hint(&hint);
            }
        }
        ExitCode::from(told.exit)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit = match &error {
            Error::Nobody { .. } => NOBODY,
            Error::Path { problem: PathProblem::NoFolder, .. } => NOBODY,
            Error::Path { problem: PathProblem::TooLong { .. } | PathProblem::NotAFile, .. } => USAGE,
            _ => FAILED,
        };
        let failure = Failure::new(exit, error.code(), error.to_string());
        let mistaken = match &error {
            Error::Nobody { path } => mistaken(path),
            _ => None,
        };
        match mistaken.or_else(|| error.hint()) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// What is wrong with a path at which no service can be, where something is.
fn mistaken(path: &Path) -> Option<String> {
    let what = match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => return None,
        Ok(found) if found.is_dir() => format!("{} is a folder, and the socket is a file in it", path.display()),
        Ok(_) => format!("{} is no socket", path.display()),
        Err(_) => {
            let folder = path.parent().filter(|folder| !folder.exists())?;
            format!("there is no folder {}", folder.display())
        }
    };
    Some(format!("{what}: check --socket and HEIRLOOM_SOCKET"))
}

/// An error of writing to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::io("write to stdout", error),
        }
    }
}
