//! What is done to a process at a point.

use std::fmt::{self, Display, Formatter};

/// A fault, by strace's injection into one occurrence of one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL on entering: the kernel does not carry the call out any more. The instant is *before* the call.
    Kill,
    /// SIGHUP on entering, with the default action: under strace the kernel carries the call out first, and ends the
    /// process before it is back in its program. The instant is *after* the call.
    KillAfter,
    /// SIGTERM on entering, which the puppet turns into an `_exit` of its own: the process leaves by itself, after the
    /// call, with nothing tidied up.
    Exit,
    /// SIGSTOP on entering: the call is carried out, then the process stops. When all others have decided it is killed.
    Stop,
    /// SIGSTOP as before, and SIGCONT when all others have decided: it wakes into a world that went on without it.
    Late,
    /// SIGSTOP, and SIGCONT at once.
    Pause,
    /// The call is not carried out and gives this error, one that the kernel can really give.
    Error(&'static str),
    /// It takes so long to enter the call. Only the thread of the handoff waits; the service goes on.
    DelayEnter,
    /// The call is carried out, and it takes so long to come back.
    DelayExit,
}

/// All faults but the errors, which each call has of its own.
pub(crate) const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::KillAfter,
    Fault::Exit,
    Fault::Stop,
    Fault::Late,
    Fault::Pause,
    Fault::DelayEnter,
    Fault::DelayExit,
];

/// What strace delays by: longer than the whole of a takeover, shorter than each deadline.
const DELAY: &str = "150ms";

impl Fault {
    /// The injection, as strace wants it.
    pub(crate) fn expression(self) -> String {
        match self {
            Fault::Kill => "signal=SIGKILL".to_owned(),
            Fault::KillAfter => "signal=SIGHUP".to_owned(),
            Fault::Exit => "signal=SIGTERM".to_owned(),
            Fault::Stop | Fault::Late | Fault::Pause => "signal=SIGSTOP".to_owned(),
            Fault::Error(errno) => format!("error={errno}"),
            Fault::DelayEnter => format!("delay_enter={DELAY}"),
            Fault::DelayExit => format!("delay_exit={DELAY}"),
        }
    }

    /// What strace's line says where it has done it.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Fault::Kill => "+++ killed by SIGKILL",
            Fault::KillAfter => "--- SIGHUP ",
            Fault::Exit => "--- SIGTERM ",
            Fault::Stop | Fault::Late | Fault::Pause => "--- stopped by SIGSTOP",
            Fault::Error(_) => "(INJECTED)",
            Fault::DelayEnter | Fault::DelayExit => "(DELAYED)",
        }
    }

    /// Whether the process is to die by it.
    pub(crate) fn ends(self) -> bool {
        matches!(self, Fault::Kill | Fault::KillAfter | Fault::Exit | Fault::Stop)
    }

    /// The column of the table.
    pub(crate) fn column(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::KillAfter => "kill-after",
            Fault::Exit => "exit",
            Fault::Stop => "stop",
            Fault::Late => "late",
            Fault::Pause => "pause",
            Fault::Error(_) => "error",
            Fault::DelayEnter => "delay",
            Fault::DelayExit => "delay-after",
        }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Error(errno) => write!(f, "{errno}"),
            _ => write!(f, "{}", self.column()),
        }
    }
}
