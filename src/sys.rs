//! The only `unsafe` code of the crate: system calls that no dependency wraps, and descriptors that arrive as integers.
//!
//! Everything here takes and gives owned or borrowed descriptors, so that no caller ever handles a raw number.

#![allow(unsafe_code, reason = "the one file that may; see the layer test")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

/// `SO_PEERPIDFD`, Linux 6.5. Not in every libc crate.
const SO_PEERPIDFD: libc::c_int = 77;
/// `SO_PASSRIGHTS`, Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = 83;
/// `SO_PEERGROUPS`, Linux 4.13. Not in every libc crate.
const SO_PEERGROUPS: libc::c_int = 59;
/// `SO_NETNS_COOKIE`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// Linux 4.10 (linux/sockios.h).
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// Takes ownership of a descriptor that the kernel has just installed in this process.
///
/// Callers pass only numbers that came out of an `SCM_RIGHTS` control message of their own `recvmsg` call, or out of a
/// system call that makes a descriptor.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed `fd` for this very call; nobody else knows the number yet.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ownership of a descriptor that whoever executed this program has left for it, and makes it close-on-exec.
///
/// # Errors
/// `EBADF` where it is not open. `EEXIST` where it is close-on-exec already: it did not come through `execve`, so this
/// process has opened it itself, or has taken it before.
#[cfg(feature = "systemd")]
pub(crate) fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    static TAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = TAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: asks for flags, by number.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    // SAFETY: sets a flag, by number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, it came from outside, and nobody has taken it before: who takes one makes it close-on-exec,
    // and under the lock above only one caller finds it without that flag.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Borrows a descriptor from a type that tells its number and not more, such as `mio::Poll`.
pub(crate) fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the borrow lives as long as that of the owner, who keeps the descriptor open.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Registers a descriptor with the tokio runtime, for reading.
#[cfg(feature = "tokio")]
pub(crate) fn register<T: std::os::fd::AsFd + AsRawFd>(source: T) -> io::Result<tokio::io::unix::AsyncFd<T>> {
    use tokio::io::{Interest, unix::AsyncFd};
    // SAFETY: `T` keeps its descriptor open as long as it lives (AsFd), and the callers in the tokio face never lend it
    // mutably, so that it stays the same one.
    Ok(unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }?)
}

/// Takes ownership of every descriptor in a truncated control buffer.
///
/// On `MSG_CTRUNC` the kernel has already installed as many descriptors as fitted, and nix refuses to iterate
/// (its pull request 2413), so they would leak. The walk is bounded by the shorter of `cmsg_len` and the buffer.
pub(crate) fn salvage(control: &[u8]) -> Vec<OwnedFd> {
    let header = size_of::<libc::cmsghdr>();
    let mut found = Vec::new();
    let mut at = 0;
    while at + header <= control.len() {
        // SAFETY: `at + header` is within the buffer; `read_unaligned` needs no alignment and cmsghdr is plain data.
        let cmsg = unsafe { control.as_ptr().add(at).cast::<libc::cmsghdr>().read_unaligned() };
        // `cmsg_len` is a usize on glibc and a u32 on musl.
        #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
        let length = cmsg.cmsg_len as usize;
        if length < header {
            break;
        }
        let end = at.saturating_add(length).min(control.len());
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            for bytes in control[at + header..end].chunks_exact(size_of::<RawFd>()) {
                if let Ok(bytes) = bytes.try_into() {
                    found.push(adopt(RawFd::from_ne_bytes(bytes)));
                }
            }
        }
        let word = size_of::<usize>();
        at = end.div_ceil(word) * word;
    }
    found
}

/// Reads one socket option of a fixed size.
fn option<T>(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    option_of(fd, libc::SOL_SOCKET, name)
}

/// The same, of another level.
fn option_of<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is writable for `length` bytes; the kernel writes at most that many.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, and T is one of u64, c_int and u8 here, for which every bit pattern is a value.
    Ok(unsafe { value.assume_init() })
}

/// `SO_COOKIE`: a number that is the same for every duplicate of a socket and never used again.
pub(crate) fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    option(fd, libc::SO_COOKIE)
}

/// `SO_NETNS_COOKIE`: the network namespace that a socket lives in.
pub(crate) fn network_namespace_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    option(fd, SO_NETNS_COOKIE)
}

/// `SIOCGSKNS`: the network namespace that a socket lives in, as a descriptor.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over that namespace.
pub(crate) fn network_namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes no argument, and gives a new descriptor.
    let number = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(adopt(number)) }
}

/// `SO_DOMAIN`, `SO_TYPE` and `SO_ACCEPTCONN` in one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketFacts {
    pub(crate) domain: i32,
    pub(crate) kind: i32,
    pub(crate) listening: bool,
}

/// Asks the kernel what a socket is; `ENOTSOCK` for anything else.
pub(crate) fn socket_facts(fd: BorrowedFd<'_>) -> io::Result<SocketFacts> {
    Ok(SocketFacts {
        domain: option(fd, libc::SO_DOMAIN)?,
        kind: option(fd, libc::SO_TYPE)?,
        listening: option::<libc::c_int>(fd, libc::SO_ACCEPTCONN)? != 0,
    })
}

/// The state of a listening socket in `TCP_INFO` (tcp(7)).
const TCP_LISTEN: u8 = 10;

/// Whether a socket of TCP listens: the first byte of `TCP_INFO`, all of which the kernel fills in otherwise.
///
/// # Errors
/// `ENOPROTOOPT` or `EOPNOTSUPP` where it is none of TCP.
pub(crate) fn tcp_listens(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let state: u8 = option_of(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(state == TCP_LISTEN)
}

/// `SO_PEERPIDFD`: the process at the other end of a Unix connection, as a descriptor that no reuse of pids can fool.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5, `ESRCH` or `EINVAL` where the peer is already gone.
pub(crate) fn peer_pidfd(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number: libc::c_int = option(fd, SO_PEERPIDFD)?;
    Ok(adopt(number))
}

/// `SO_PEERGROUPS`: the supplementary groups of the process at the other end, as connect(2) or listen(2) left them.
pub(crate) fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: `groups` is writable for `length` bytes; the kernel writes at most that many.
        let done = unsafe {
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &mut length)
        };
        let error = io::Error::last_os_error();
        let count = length as usize / size_of::<libc::gid_t>();
        match done {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The length that is needed has been written back.
            _ if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => groups.resize(count, 0),
            _ => return Err(error),
        }
    }
}

/// The name by which the kernel finds the file of a descriptor that was opened with `O_PATH`, which has no calls of its
/// own for this.
fn name_of(fd: BorrowedFd<'_>) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(io::Error::other)
}

/// Sets the mode of a file, through whatever kind of descriptor (fchmod(2)).
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: libc::mode_t) -> io::Result<()> {
    // SAFETY: no pointers.
    if unsafe { libc::fchmod(fd.as_raw_fd(), mode) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EBADF) {
        return Err(error);
    }
    let name = name_of(fd)?;
    // SAFETY: `name` ends with a NUL.
    let done = unsafe { libc::chmod(name.as_ptr(), mode) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the access list of a file, through whatever kind of descriptor (acl(5), fsetxattr(2)).
///
/// # Errors
/// `EOPNOTSUPP` where the filesystem has none, `EINVAL` where a number means nobody in this user namespace.
pub(crate) fn set_access_list(fd: BorrowedFd<'_>, list: &[u8]) -> io::Result<()> {
    const NAME: &std::ffi::CStr = c"system.posix_acl_access";
    let (value, length) = (list.as_ptr().cast(), list.len());
    // SAFETY: the name ends with a NUL, and `value` is readable for `length` bytes.
    if unsafe { libc::fsetxattr(fd.as_raw_fd(), NAME.as_ptr(), value, length, 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EBADF) {
        return Err(error);
    }
    let name = name_of(fd)?;
    // SAFETY: both names end with a NUL, and `value` is readable for `length` bytes.
    let done = unsafe { libc::setxattr(name.as_ptr(), NAME.as_ptr(), value, length, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Turns `SO_PASSRIGHTS` off, so that the kernel refuses descriptors from the peer (Linux 6.16; older ones say so).
pub(crate) fn refuse_descriptors(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, 0)
}

/// Lets senders to this socket pass descriptors, where that was refused before.
pub(crate) fn admit_descriptors(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, 1)
}

/// `TCP_DEFER_ACCEPT`, in seconds: a connection is accepted once there is something to read.
pub(crate) fn set_defer_accept(fd: BorrowedFd<'_>, seconds: i32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)
}

/// `TCP_FASTOPEN`: how many clients that send data with their SYN may be pending.
pub(crate) fn set_fast_open(fd: BorrowedFd<'_>, pending: i32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, pending)
}

/// Gives back the pages of programs and libraries that this process has mapped and not changed: they are in the file, and
/// the kernel maps them again one by one as they are used.
pub(crate) fn drop_file_pages() {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut range = None;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match (fields.next(), fields.next()) {
            // What was relocated, and is only readable since, is not in the file.
            (Some("Anonymous:" | "Swap:"), Some(amount)) if amount != "0" => range = None,
            // The last word on a mapping (proc_pid_smaps(5)).
            (Some("VmFlags:"), _) => {
                let Some((start, end)) = range.take() else { continue };
                let start = std::ptr::without_provenance_mut(start);
                // SAFETY: a private mapping of a file that cannot be written through, and of which no page is a copy, keeps
                // nothing that is not in the file, so each page reads the same after it is mapped again (madvise(2)).
                unsafe { libc::madvise(start, end - start.addr(), libc::MADV_DONTNEED) };
            }
            (Some(word), Some("r--p" | "r-xp")) if fields.nth(3).is_some_and(|path| path.starts_with('/')) => {
                let ends = word.split_once('-');
                let number = |text| usize::from_str_radix(text, 16).ok();
                range = ends.and_then(|(start, end)| Some((number(start)?, number(end)?)));
            }
            (Some(word), Some(_)) if !word.ends_with(':') => range = None,
            _ => {}
        }
    }
}

/// An int among the options of TCP.
pub(crate) fn tcp_option(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<i32> {
    option_of(fd, libc::IPPROTO_TCP, name)
}

/// Sets an int among the options of TCP.
#[cfg(test)]
pub(crate) fn set_tcp_option(fd: BorrowedFd<'_>, name: libc::c_int, value: i32) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, name, value)
}

/// Sets one socket option that is an int.
fn set_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` is readable for its size.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A pidfd of this very process, to be handed to a successor (pidfd_open(2), Linux 5.3; close-on-exec from birth).
pub(crate) fn own_pidfd() -> io::Result<OwnedFd> {
    open_pidfd(std::process::id())
}

/// A pidfd of a process (pidfd_open(2), Linux 5.3; close-on-exec from birth).
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: no pointers.
    made(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A copy of another process's descriptor (pidfd_getfd(2), Linux 5.6; close-on-exec from birth).
#[cfg(feature = "ctl")]
pub(crate) fn copy_of(pidfd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    made(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}

/// Ends a process (pidfd_send_signal(2) with `SIGKILL`).
#[cfg(feature = "ctl")]
pub(crate) fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means that of kill(2).
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The descriptor that a system call has just made, or why it has not.
fn made(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map(adopt).map_err(io::Error::other)
}

/// `SIOCOUTQ`: how much of what was sent on a Unix socket the other side has not read yet; 0 is nothing.
pub(crate) fn unread_by_peer(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int there.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 { Ok(usize::try_from(bytes).unwrap_or_default()) } else { Err(io::Error::last_os_error()) }
}

/// Runs a system call that may raise `SIGPIPE` in this thread and has no flag against it, and takes the signal back.
///
/// Rust's own runtime ignores that signal; a host in C, or a program that has set it back, would be killed by a client
/// that hangs up.
pub(crate) fn without_sigpipe<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut pipe = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are written before they are read; sigemptyset(3) initialises the first.
    let (pipe, before) = unsafe {
        libc::sigemptyset(pipe.as_mut_ptr());
        libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr());
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        (pipe.assume_init(), before.assume_init())
    };
    let done = call();
    // SAFETY: the sets are initialised. Where the signal was blocked before, it is not ours to take or to unblock.
    unsafe {
        if libc::sigismember(&before, libc::SIGPIPE) == 0 {
            if matches!(&done, Err(error) if error.kind() == io::ErrorKind::BrokenPipe) {
                let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                while libc::sigtimedwait(&pipe, std::ptr::null_mut(), &now) < 0
                    && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                {}
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        }
    }
    done
}

/// 64 random bits from getrandom(2).
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: `bytes` is writable for its length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// Length and limit of a TCP listener's accept queue, from `TCP_INFO` (tcp(7): for a listening socket `tcpi_unacked`
/// and `tcpi_sacked` carry them). `None` where the kernel does not tell.
pub(crate) fn accept_queue(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    };
    if done != 0 {
        return None;
    }
    // SAFETY: zeroed before, plain integers throughout.
    let info = unsafe { info.assume_init() };
    (info.tcpi_state == TCP_LISTEN).then_some((info.tcpi_unacked, info.tcpi_sacked))
}

/// Whether a call leaves a `SIGPIPE` behind in this thread: for a test, which cannot set the disposition of a signal for
/// itself alone.
#[cfg(test)]
pub(crate) fn raises_sigpipe(call: impl FnOnce()) -> bool {
    extern "C" fn note(_: libc::c_int) {
        RAISED.store(true, std::sync::atomic::Ordering::SeqCst);
    }
    static RAISED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    // SAFETY: the handler only stores to an atomic. Nobody else in these tests raises the signal.
    let before = unsafe { libc::signal(libc::SIGPIPE, note as *const () as libc::sighandler_t) };
    call();
    // SAFETY: puts back what was there.
    unsafe { libc::signal(libc::SIGPIPE, before) };
    RAISED.load(std::sync::atomic::Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel installed before it ran out of room must be closed, not leaked.
    #[test]
    fn salvage_finds_every_installed_descriptor() {
        let files: Vec<OwnedFd> = (0..3).map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).collect();
        let numbers: Vec<RawFd> = files.into_iter().map(std::os::fd::IntoRawFd::into_raw_fd).collect();
        let mut control = Vec::new();
        // Claims five, holds three: the buffer is the bound.
        let length = size_of::<libc::cmsghdr>() + 5 * size_of::<RawFd>();
        control.extend_from_slice(&length.to_ne_bytes());
        control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        control.extend_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        for number in &numbers {
            control.extend_from_slice(&number.to_ne_bytes());
        }
        let found: Vec<RawFd> = salvage(&control).iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!(found, numbers);
    }

    #[test]
    fn salvage_of_zeroes_or_garbage_stops() {
        assert!(salvage(&[0; 64]).is_empty());
        assert!(salvage(&[1; 8]).is_empty());
    }
}
