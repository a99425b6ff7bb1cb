//! Where a fault comes: an occurrence of a system call, on one side of a takeover.

use std::fmt::{self, Display, Formatter};

/// One side of a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Predecessor,
    Successor,
}

impl Display for Side {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Predecessor => "predecessor",
            Side::Successor => "successor",
        })
    }
}

/// A system call by which a handoff touches the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// What it can fail with, however rarely; one column of the table for all of them.
    pub(crate) errors: &'static [&'static str],
    /// Only calls on what this leads to count: others of that name are the puppet's own.
    pub(crate) only: Option<&'static str>,
}

const fn call(name: &'static str, errors: &'static [&'static str]) -> Call {
    Call { name, errors, only: None }
}

/// Every call that the thread of a handoff makes in a takeover, but those in [`ASIDE`]; a test holds it against strace.
pub(crate) const CALLS: [Call; 35] = [
    call("accept4", &["EMFILE", "ECONNABORTED", "ENOMEM"]),
    // Linux frees the descriptor whatever close(2) says; strace could only keep it open, which no kernel does.
    call("close", &[]),
    call("connect", &["EAGAIN", "ECONNREFUSED", "EINTR"]),
    call("epoll_create1", &["EMFILE"]),
    call("epoll_ctl", &["ENOMEM", "ENOSPC"]),
    call("epoll_wait", &["EINTR"]),
    call("eventfd2", &["EMFILE"]),
    // EMFILE for the duplicates, ENOLCK and EINTR for the locks.
    call("fcntl", &["ENOLCK", "EMFILE", "EINTR"]),
    call("getdents64", &["ENOENT"]),
    call("getrandom", &["EINTR"]),
    call("getsockname", &["ENOBUFS"]),
    // Older kernels know fewer options; the pidfd of the peer may find no room, or no peer.
    call("getsockopt", &["ENOPROTOOPT", "EMFILE", "ESRCH"]),
    call("inotify_add_watch", &["ENOSPC"]),
    call("inotify_init1", &["EMFILE"]),
    // How much of a drain link is unread.
    call("ioctl", &["ENOTTY"]),
    call("listen", &["EADDRINUSE"]),
    call("memfd_create", &["EMFILE", "ENOMEM"]),
    call("newfstatat", &["EIO"]),
    call("openat", &["EMFILE", "EACCES", "ENOENT"]),
    call("pidfd_open", &["EMFILE", "ENOSYS"]),
    call("pread64", &["EIO", "EINTR"]),
    call("prlimit64", &["EPERM"]),
    call("pwrite64", &["EIO", "ENOSPC", "EINTR"]),
    // No ECONNRESET here and no EPIPE below: the kernel gives them where the other side has closed, which kills do. No
    // EAGAIN: it comes with an event when that has passed, which strace cannot send.
    call("recvfrom", &["ENOMEM", "EINTR"]),
    call("recvmsg", &["ENOMEM", "EINTR"]),
    call("sendmsg", &["ETOOMANYREFS", "ENOMEM", "EINTR"]),
    call("sendto", &["ENOBUFS", "ENOMEM", "EINTR"]),
    call("setsockopt", &["ENOPROTOOPT", "ENOMEM"]),
    // The other end may be gone already.
    call("shutdown", &["ENOTCONN"]),
    call("socket", &["EMFILE", "ENOBUFS"]),
    call("socketpair", &["EMFILE", "ENOBUFS"]),
    call("statx", &["EIO", "EACCES"]),
    call("timerfd_create", &["EMFILE"]),
    // There is nothing that it could fail with when its arguments are right.
    call("timerfd_settime", &[]),
    Call { name: "write", errors: &["EAGAIN"], only: Some("anon_inode:[eventfd]") },
];

/// Calls that are no points: they touch nothing that another process sees, or are the puppet's own.
pub(crate) const ASIDE: [(&str, &str); 13] = [
    ("brk", "memory"),
    ("exit_group", "the end, which the kernel carries out whatever happens"),
    ("futex", "threads"),
    ("getpid", "looks at this process"),
    ("geteuid", "looks at this process"),
    ("gettid", "looks at this process"),
    ("mmap", "memory"),
    ("munmap", "memory"),
    ("poll", "the puppet's loop"),
    (
        "read",
        "the puppet's commands; the counter of an eventfd and inotify's events, whose loss is a wake without a cause",
    ),
    ("restart_syscall", "the puppet's loop"),
    ("rt_sigprocmask", "this thread"),
    ("sigaltstack", "this thread"),
];

/// An occurrence of a call on one side. The first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) side: Side,
    pub(crate) call: Call,
    pub(crate) occurrence: u32,
}

impl Display for Point {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}#{}", self.side, self.call.name, self.occurrence)
    }
}
