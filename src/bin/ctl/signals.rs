//! Signals as something to read: a command that owns something must not end in the middle of it.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::Failure;

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) signal: Signal,
    /// From the terminal, which has sent it to the whole process group: children have it already.
    pub(crate) to_group: bool,
}

/// The signals that ask this process to end, and `SIGCHLD`. From here on they end nothing by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// To be called before there is a second thread, because a mask belongs to one thread and is inherited.
    pub(crate) fn take() -> Result<Signals, Failure> {
        let ignored = ignored();
        // Who started us under nohup(1), or in the background, meant it; a blocked signal would come all the same.
        let set = ALL.into_iter().filter(|signal| ignored & (1 << (*signal as u64 - 1)) == 0).collect::<SigSet>();
        let taking = |errno| Failure::io("take the signals", errno);
        set.thread_block().map_err(taking)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals { descriptor: SignalFd::with_flags(&set, flags).map_err(taking)? })
    }

    /// The next signal, without waiting.
    pub(crate) fn next(&self) -> Option<Caught> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        let signal = Signal::try_from(info.ssi_signo as i32).ok()?;
        Some(Caught { signal, to_group: info.ssi_code == SI_KERNEL })
    }
}

/// Lets them through again, in a process that this one has started: a mask is inherited, and `Command` leaves it alone.
pub(crate) fn give_back() -> std::io::Result<()> {
    Ok(ALL.into_iter().collect::<SigSet>().thread_unblock()?)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

const ALL: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD];

/// Sent by the kernel, which for these signals means by a terminal (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// The signals that this process was told to ignore when it started, one bit each (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
