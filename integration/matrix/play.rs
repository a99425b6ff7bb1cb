//! What goes on while a fault comes.

use std::fmt::{self, Display, Formatter};

/// A takeover, or one of the ways in which a probation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Play {
    /// From hello to the exit of the predecessor.
    Takeover,
    /// The successor, on probation, is confirmed.
    Confirm,
    /// It gives the service back.
    Rollback,
    /// It dies, and the predecessor that stands by resumes.
    Death,
}

impl Display for Play {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Play::Takeover => "a takeover",
            Play::Confirm => "a probation that is confirmed",
            Play::Rollback => "a probation that is rolled back",
            Play::Death => "a probation whose successor dies",
        })
    }
}
