//! Sockets of the application: made without listening, described for the manifest, and checked on arrival.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::poll;
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::manifest::{Check, Entry, FileIdentity, Kind, SocketIdentity};
use crate::sys;

/// The backlog of a listener unless told otherwise; the kernel cuts it to `net.core.somaxconn`.
pub(crate) const BACKLOG: u32 = 4096;
/// How long the listeners of a family may outlive its lease.
const STILL_IN_USE: Duration = Duration::from_secs(1);
/// The pause before an address that is in use is tried again, in milliseconds.
const IN_USE_PAUSE: u8 = 5;

/// How a socket is made that is not inherited.
pub(crate) struct SocketOptions<'a> {
    pub(crate) only_v6: Option<bool>,
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) defer_accept: Option<Duration>,
    pub(crate) fast_open: Option<u32>,
    pub(crate) mode: Option<u32>,
    /// The application's own word, after all others.
    pub(crate) configure: Option<Configure<'a>>,
}

/// What an application does to a socket before it is bound.
pub(crate) type Configure<'a> = Box<dyn Fn(BorrowedFd<'_>) -> io::Result<()> + 'a>;

impl Default for SocketOptions<'_> {
    fn default() -> Self {
        SocketOptions {
            only_v6: None,
            // As std does: a service that starts again must not wait for its old connections' TIME_WAIT (socket(7)).
            reuse_address: true,
            reuse_port: false,
            defer_accept: None,
            fast_open: None,
            mode: None,
            configure: None,
        }
    }
}

impl SocketOptions<'_> {
    fn apply_inet(&self, socket: &Socket, address: SocketAddr, kind: &Kind) -> io::Result<()> {
        if let Some(only) = self.only_v6
            && address.is_ipv6()
        {
            socket.set_only_v6(only)?;
        }
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if *kind == Kind::TcpListener {
            socket.set_reuse_address(self.reuse_address)?;
            if let Some(within) = self.defer_accept {
                sys::set_defer_accept(socket.as_fd(), whole_seconds(within))?;
            }
            if let Some(pending) = self.fast_open {
                sys::set_fast_open(socket.as_fd(), i32::try_from(pending).unwrap_or(i32::MAX))?;
            }
        }
        self.configured(socket)
    }

    fn apply_unix(&self, socket: &Socket) -> io::Result<()> {
        if let Some(bits) = self.mode {
            // On Linux the socket's own mode, less the umask, is that of the path which bind(2) makes.
            fchmod(socket, Mode::from_bits_truncate(bits & 0o777))?;
        }
        self.configured(socket)
    }

    fn configured(&self, socket: &Socket) -> io::Result<()> {
        self.configure.as_ref().map_or(Ok(()), |configure| configure(socket.as_fd()))
    }
}

/// Whole seconds, at least one: what `TCP_DEFER_ACCEPT` counts in.
fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1)
}

/// Makes and binds an internet socket. A stream socket does not listen yet: what queued in a process that gives up
/// would be reset.
pub(crate) fn bind_inet(kind: &Kind, address: SocketAddr, options: &SocketOptions<'_>) -> io::Result<OwnedFd> {
    let socket_type = if *kind == Kind::Udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(address), socket_type, None)?;
    options.apply_inet(&socket, address, kind)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes and binds a Unix socket. What is stale at the path, left behind by a process that died, is replaced.
pub(crate) fn bind_unix(kind: &Kind, path: &Path, options: &SocketOptions<'_>) -> io::Result<OwnedFd> {
    let socket_type = unix_type(kind);
    let socket = Socket::new(Domain::UNIX, socket_type, None)?;
    options.apply_unix(&socket)?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path, &address, socket_type) => {
            std::fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    if let Some(bits) = options.mode {
        // The umask has taken bits away all the same; those whom they were for need them.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(bits & 0o777))?;
    }
    Ok(socket.into())
}

/// Binds, and for a moment tries again what is in use: the last of a family gives its lease back a moment before its
/// listeners are closed, by its application or by the kernel, and no event tells of that.
pub(crate) fn bind_when_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + STILL_IN_USE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                // Without descriptors poll(2) only waits.
                let _ = poll(&mut [], IN_USE_PAUSE);
            }
            bound => return bound,
        }
    }
}

fn unix_type(kind: &Kind) -> Type {
    match kind {
        Kind::UnixDatagram => Type::DGRAM,
        Kind::SeqpacketListener => Type::SEQPACKET,
        _ => Type::STREAM,
    }
}

/// Whether a socket file is there that no process has open: connect(2) is refused. It is for a plain file, too, and that
/// is somebody's data; and a symbolic link leads anywhere.
fn is_stale(path: &Path, address: &SockAddr, socket_type: Type) -> bool {
    use std::os::unix::fs::FileTypeExt;
    if !std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        return false;
    }
    let connected = Socket::new(Domain::UNIX, socket_type, None)
        .and_then(|probe| probe.set_nonblocking(true).and_then(|()| probe.connect(address)));
    matches!(connected, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused) && !is_bound(path)
}

/// Whether some process has bound the path and does not listen yet, as another service does that is still starting: that
/// is refused, too. `/proc/net/unix` shows such a socket as unconnected (state 01); a connection that was once accepted
/// at the path and outlived its listener is connected (03).
fn is_bound(path: &Path) -> bool {
    let Ok(sockets) = std::fs::read_to_string("/proc/net/unix") else { return false };
    // Num RefCount Protocol Flags Type St Inode Path
    let ending = format!(" {}", path.display());
    sockets.lines().any(|line| line.split_whitespace().nth(5) == Some("01") && line.ends_with(&ending))
}

/// listen(2) with the backlog of the entry, at the commit and never before, and notes that it listens.
pub(crate) fn listen_on(entry: &mut Entry, fd: BorrowedFd<'_>) -> io::Result<()> {
    let backlog = entry.backlog.unwrap_or(BACKLOG);
    SockRef::from(&fd).listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    refresh(entry, fd)
}

/// Whether a socket is of a `SO_REUSEPORT` group.
pub(crate) fn reuses_port(fd: BorrowedFd<'_>) -> bool {
    SockRef::from(&fd).reuse_port().unwrap_or(false)
}

/// Makes a socket non-blocking: the mode is shared by all who hold it, so it is only ever set.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_nonblocking(true)
}

/// The local address as text: `127.0.0.1:80`, a path, `@name` for an abstract one, empty for none.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> io::Result<String> {
    Ok(text(&SockRef::from(&fd).local_addr()?))
}

fn text(address: &SockAddr) -> String {
    if let Some(inet) = address.as_socket() {
        return inet.to_string();
    }
    if let Some(path) = address.as_pathname() {
        return path.display().to_string();
    }
    address.as_abstract_namespace().map_or_else(String::new, |name| format!("@{}", String::from_utf8_lossy(name)))
}

fn is_nonblocking(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK))
}

/// What the kernel says of the file behind a descriptor.
fn file_identity(fd: BorrowedFd<'_>) -> io::Result<FileIdentity> {
    let stat = nix::sys::stat::fstat(fd)?;
    // The widths of these differ between architectures.
    #[allow(clippy::unnecessary_cast, reason = "u64 and u32 on this one")]
    Ok(FileIdentity {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        kind: stat.st_mode & libc::S_IFMT as libc::mode_t,
    })
}

fn is_socket(file: FileIdentity) -> bool {
    file.kind == libc::S_IFSOCK
}

/// What the kernel says of a socket.
fn socket_identity(fd: BorrowedFd<'_>) -> io::Result<SocketIdentity> {
    let facts = sys::socket_facts(fd)?;
    Ok(SocketIdentity {
        cookie: sys::socket_cookie(fd)?,
        domain: facts.domain,
        kind: facts.kind,
        listening: facts.listening,
        local: local_address(fd).unwrap_or_default(),
        network_namespace: sys::network_namespace_cookie(fd).ok(),
    })
}

/// What an application asked for, beside the descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) requested: String,
    pub(crate) path: Option<&'a Path>,
    pub(crate) backlog: Option<u32>,
}

/// Describes a descriptor of this process for the manifest.
pub(crate) fn describe(asked: &Asked<'_>, fd: BorrowedFd<'_>) -> io::Result<Entry> {
    let file = file_identity(fd)?;
    let socket = if is_socket(file) { Some(socket_identity(fd)?) } else { None };
    let address = match (asked.path, &socket) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(socket)) => socket.local.clone(),
        (None, None) => String::new(),
    };
    Ok(Entry {
        name: asked.name.to_owned(),
        kind: asked.kind.clone(),
        address,
        requested: asked.requested.clone(),
        path: asked.path.map(|path| path.as_os_str().as_bytes().to_vec()),
        path_inode: asked.path.and_then(path_inode),
        backlog: asked.backlog,
        file: socket.is_none().then_some(file),
        socket,
        retired: false,
    })
}

/// Brings the parts of an entry up to date that change in a life: whether it listens, and where.
pub(crate) fn refresh(entry: &mut Entry, fd: BorrowedFd<'_>) -> io::Result<()> {
    if entry.socket.is_some() {
        entry.socket = Some(socket_identity(fd)?);
    }
    Ok(())
}

/// Which checks of a descriptor are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Each one, for somebody who looks.
    All,
    /// Those that fail: nothing is put into words for the others.
    Failed,
}

/// Whether a received socket is what its entry in the manifest says, with as few system calls as that takes: there may be
/// ten thousand. `false` where it is not, or where this cannot tell: [`examine`] says what is wrong.
fn is_as_told(entry: &Entry, fd: BorrowedFd<'_>, namespace: Option<u64>) -> io::Result<bool> {
    let (Some(expected), Some((domain, kind))) = (&entry.socket, shape(&entry.kind)) else { return Ok(false) };
    if entry.file.is_some() || !is_of(domain, expected.domain) || kind != socket_type(expected.kind) {
        return Ok(false);
    }
    // Of the one socket with this cookie.
    let address = SockRef::from(&fd).local_addr()?;
    if sys::socket_cookie(fd)? != expected.cookie || i32::from(address.family()) != expected.domain {
        return Ok(false);
    }
    let listening = match entry.kind {
        // What has a state of TCP is a stream.
        Kind::TcpListener => sys::tcp_listens(fd)?,
        _ => {
            let facts = sys::socket_facts(fd)?;
            if facts.kind != expected.kind {
                return Ok(false);
            }
            facts.listening
        }
    };
    let inet = address.as_socket();
    let at = match inet {
        Some(inet) => expected.local.parse() == Ok(inet),
        None => expected.local == text(&address),
    };
    let here = match (inet, namespace) {
        (Some(_), Some(ours)) => sys::network_namespace_cookie(fd).map_or(true, |theirs| theirs == ours),
        _ => true,
    };
    Ok(at && here && listening == expected.listening && is_nonblocking(fd)?)
}

/// Holds a received descriptor against its entry in the manifest.
///
/// `namespace` is this process's own; `None` skips that check, as do kernels that cannot tell.
pub(crate) fn examine(entry: &Entry, fd: BorrowedFd<'_>, namespace: Option<u64>, tell: Tell) -> io::Result<Vec<Check>> {
    if tell == Tell::Failed && is_as_told(entry, fd, namespace).unwrap_or(false) {
        return Ok(Vec::new());
    }
    let mut checks = Vec::new();
    let mut check = |check: &'static str, ok: bool, words: &dyn Fn() -> (String, String)| {
        if !ok || tell == Tell::All {
            let (expected, found) = words();
            checks.push(Check { check, ok, expected, found });
        }
    };
    let Some(expected) = &entry.socket else {
        let file = file_identity(fd)?;
        let expected = entry.file.unwrap_or_default();
        check("file-type", expected.kind == file.kind, &|| (file_type(expected.kind), file_type(file.kind)));
        let same = (expected.device, expected.inode) == (file.device, file.inode);
        let identity = |file: FileIdentity| format!("{}:{}", file.device, file.inode);
        check("file", same, &|| (identity(expected), identity(file)));
        if let Some((domain, kind)) = shape(&entry.kind) {
            check("kind", false, &|| (format!("{domain} {kind}"), file_type(file.kind)));
        }
        return Ok(checks);
    };
    let expected_type = entry.file.map_or(libc::S_IFSOCK, |file| file.kind);
    let found = match socket_identity(fd) {
        Ok(found) => found,
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            let file = file_identity(fd)?;
            check("file-type", false, &|| (file_type(expected_type), file_type(file.kind)));
            return Ok(checks);
        }
        Err(error) => return Err(error),
    };
    check("file-type", expected_type == libc::S_IFSOCK, &|| (file_type(expected_type), "socket".to_owned()));
    if let Some((domain, kind)) = shape(&entry.kind) {
        let same = is_of(domain, found.domain) && kind == socket_type(found.kind);
        let found_domain = || if is_of(domain, found.domain) { domain.into() } else { family(found.domain) };
        check("kind", same, &|| {
            (format!("{domain} {kind}"), format!("{} {}", found_domain(), socket_type(found.kind)))
        });
    }
    let same = expected.cookie == found.cookie;
    check("cookie", same, &|| (format!("{:x}", expected.cookie), format!("{:x}", found.cookie)));
    let words = |expected: Cow<'_, str>, found: Cow<'_, str>| (expected.into_owned(), found.into_owned());
    check("family", expected.domain == found.domain, &|| words(family(expected.domain), family(found.domain)));
    check("type", expected.kind == found.kind, &|| words(socket_type(expected.kind), socket_type(found.kind)));
    // An application may have done anything with a socket of its own since it was described.
    if entry.kind != Kind::Raw {
        let same = expected.listening == found.listening;
        check("listening", same, &|| (expected.listening.to_string(), found.listening.to_string()));
        check("address", expected.local == found.local, &|| (expected.local.clone(), found.local.clone()));
        let set = is_nonblocking(fd)?;
        check("non-blocking", set, &|| ("true".to_owned(), set.to_string()));
    }
    let inet = found.domain == libc::AF_INET || found.domain == libc::AF_INET6;
    if let (true, Some(ours), Some(theirs)) = (inet, namespace, found.network_namespace) {
        check("network-namespace", ours == theirs, &|| (ours.to_string(), theirs.to_string()));
    }
    Ok(checks)
}

/// What a descriptor should be by its kind and is not, `(expected, found)`; `None` where it is.
pub(crate) fn differs(kind: &Kind, fd: BorrowedFd<'_>) -> io::Result<Option<(String, String)>> {
    let Some((domain, socket_kind)) = shape(kind) else { return Ok(None) };
    let file = file_identity(fd)?;
    let found = if is_socket(file) {
        let facts = sys::socket_facts(fd)?;
        if is_of(domain, facts.domain) && socket_kind == socket_type(facts.kind) {
            return Ok(None);
        }
        format!("{} {}", family(facts.domain), socket_type(facts.kind))
    } else {
        file_type(file.kind)
    };
    Ok(Some((format!("{domain} {socket_kind}"), found)))
}

/// The path that a Unix socket is bound to, where it is one that leads there from everywhere.
pub(crate) fn bound_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let address = SockRef::from(&fd).local_addr().ok()?;
    address.as_pathname().filter(|path| path.is_absolute()).map(Path::to_owned)
}

/// Family and type that a kind stands for; the family of an internet socket may be either.
fn shape(kind: &Kind) -> Option<(&'static str, &'static str)> {
    match kind {
        Kind::TcpListener => Some(("inet", "stream")),
        Kind::Udp => Some(("inet", "datagram")),
        Kind::UnixListener => Some(("unix", "stream")),
        Kind::SeqpacketListener => Some(("unix", "seqpacket")),
        Kind::UnixDatagram => Some(("unix", "datagram")),
        Kind::Raw | Kind::Other(_) => None,
    }
}

/// Whether a socket's domain is the family that a kind stands for.
fn is_of(family: &str, domain: i32) -> bool {
    match domain {
        libc::AF_INET | libc::AF_INET6 => family == "inet",
        libc::AF_UNIX => family == "unix",
        _ => false,
    }
}

fn family(domain: i32) -> Cow<'static, str> {
    match domain {
        libc::AF_INET => "inet".into(),
        libc::AF_INET6 => "inet6".into(),
        libc::AF_UNIX => "unix".into(),
        other => other.to_string().into(),
    }
}

fn socket_type(kind: i32) -> Cow<'static, str> {
    match kind {
        libc::SOCK_STREAM => "stream".into(),
        libc::SOCK_DGRAM => "datagram".into(),
        libc::SOCK_SEQPACKET => "seqpacket".into(),
        other => other.to_string().into(),
    }
}

fn file_type(kind: u32) -> String {
    let word = match kind as libc::mode_t {
        libc::S_IFSOCK => "socket",
        libc::S_IFIFO => "pipe",
        libc::S_IFREG => "file",
        libc::S_IFDIR => "folder",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        // An anonymous inode: eventfd, epoll, timerfd.
        0 => "anonymous",
        other => return format!("{other:o}"),
    };
    word.to_owned()
}

/// Whether two addresses of one port cannot both be bound: the same, or one of them a wildcard (ip(7)).
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let wildcard = one.ip().is_unspecified() || other.ip().is_unspecified();
    let families_meet = one.is_ipv4() == other.is_ipv4()
        || (one.is_ipv6() && one.ip().is_unspecified())
        || (other.is_ipv6() && other.ip().is_unspecified());
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || (wildcard && families_meet))
}

/// Removes a socket's path if it still leads to the file that was bound there. `true`: it did.
pub(crate) fn remove(path: &Path, inode: (u64, u64)) -> bool {
    path_inode(path) == Some(inode) && std::fs::remove_file(path).is_ok()
}

/// Device and inode of what is at a path.
pub(crate) fn path_inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether another socket than this one is bound to a path, and so is perhaps the one that clients find there: somebody may
/// have removed the file and bound its own (proc_net(5); the kernel's table has the path as it was bound, in whatever mount
/// namespace, and nothing of other network namespaces).
pub(crate) fn is_taken(path: &[u8], fd: BorrowedFd<'_>) -> bool {
    /// Bound or listening, and no end of a connection.
    const UNCONNECTED: &[u8] = b"01";
    let Ok(own) = nix::sys::stat::fstat(fd) else { return false };
    let own = own.st_ino.to_string();
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    table.split(|byte| *byte == b'\n').any(|line| {
        // Num, RefCount, Protocol, Flags, Type, St, Inode, each without a slash; and Path.
        let Some(at) = line.iter().position(|byte| *byte == b'/') else { return false };
        let mut fields = line[..at].split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).skip(5);
        let (state, inode) = (fields.next(), fields.next());
        line[at..] == *path && state == Some(UNCONNECTED) && inode.is_some_and(|inode| inode != own.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_path_that_somebody_else_has_bound_since_is_taken() {
        use std::os::unix::net::UnixListener;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app with a space.sock");
        let ours = UnixListener::bind(&path).unwrap();
        assert!(!is_taken(path.as_os_str().as_bytes(), ours.as_fd()));
        std::fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        assert!(is_taken(path.as_os_str().as_bytes(), ours.as_fd()));
        drop(theirs);
        assert!(!is_taken(path.as_os_str().as_bytes(), ours.as_fd()));
    }

    fn asked(name: &str, kind: Kind) -> Asked<'_> {
        Asked { name, kind, requested: String::new(), path: None, backlog: None }
    }

    #[test]
    fn a_true_entry_passes_every_check() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let entry = describe(&asked("web", Kind::TcpListener), listener.as_fd()).unwrap();
        let checks = examine(&entry, listener.as_fd(), crate::namespace::own_network_namespace(), Tell::All).unwrap();
        assert!(checks.iter().all(|check| check.ok), "{checks:?}");
        assert!(checks.len() >= 7, "{checks:?}");
        assert!(is_as_told(&entry, listener.as_fd(), crate::namespace::own_network_namespace()).unwrap());
    }

    #[test]
    fn each_lie_fails_its_own_check() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = describe(&asked("web", Kind::TcpListener), listener.as_fd()).unwrap();
        let failed = |entry: &Entry, fd: BorrowedFd<'_>, namespace| -> Vec<&'static str> {
            let failed = examine(entry, fd, namespace, Tell::Failed).unwrap();
            assert!(failed.iter().all(|check| !check.ok && check.expected != check.found), "{failed:?}");
            let mut all = examine(entry, fd, namespace, Tell::All).unwrap();
            all.retain(|check| !check.ok);
            assert_eq!(all, failed);
            failed.iter().map(|check| check.check).collect()
        };
        assert_eq!(failed(&entry, listener.as_fd(), None), ["non-blocking"]);
        listener.set_nonblocking(true).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        other.set_nonblocking(true).unwrap();
        assert_eq!(failed(&entry, other.as_fd(), None), ["cookie", "address"]);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_nonblocking(true).unwrap();
        assert_eq!(failed(&entry, udp.as_fd(), None), ["kind", "cookie", "type", "listening", "address"]);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(failed(&entry, file.as_fd(), None), ["file-type"]);
        let raw = describe(&asked("raw", Kind::Raw), file.as_fd()).unwrap();
        let zero = std::fs::File::open("/dev/zero").unwrap();
        assert_eq!(failed(&raw, zero.as_fd(), None), ["file"]);
        assert_eq!(failed(&entry, listener.as_fd(), Some(1)), ["network-namespace"]);
    }

    #[test]
    fn a_path_is_replaced_where_its_socket_is_dead_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        // Bound and not yet listening: another service that is still starting.
        let bound = bind_unix(&Kind::UnixListener, &path, &SocketOptions::default()).unwrap();
        let refused = bind_unix(&Kind::UnixListener, &path, &SocketOptions::default()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        let again = bind_unix(&Kind::UnixListener, &path, &SocketOptions::default()).unwrap();
        drop(again);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "data").unwrap();
        let refused = bind_unix(&Kind::UnixListener, &path, &SocketOptions::default()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn options_are_set_before_the_bind() {
        let options = SocketOptions {
            only_v6: Some(true),
            reuse_address: false,
            reuse_port: true,
            defer_accept: Some(Duration::from_secs(3)),
            fast_open: Some(7),
            configure: Some(Box::new(|socket| SockRef::from(&socket).set_keepalive(true))),
            ..SocketOptions::default()
        };
        let address = "[::]:0".parse().unwrap();
        let fd = bind_inet(&Kind::TcpListener, address, &options).unwrap();
        let socket = SockRef::from(&fd);
        assert!(socket.only_v6().unwrap() && socket.reuse_port().unwrap() && socket.keepalive().unwrap());
        assert!(!socket.reuse_address().unwrap() && reuses_port(fd.as_fd()));
        // The kernel rounds up to what its retransmissions come to: 1, 3, 7, ... seconds.
        assert_eq!(sys::tcp_option(fd.as_fd(), libc::TCP_DEFER_ACCEPT).unwrap(), 3);
        assert_eq!(sys::tcp_option(fd.as_fd(), libc::TCP_FASTOPEN).unwrap(), 7);
        let plain = bind_inet(&Kind::TcpListener, "127.0.0.1:0".parse().unwrap(), &SocketOptions::default()).unwrap();
        assert!(SockRef::from(&plain).reuse_address().unwrap() && !reuses_port(plain.as_fd()));
    }

    #[test]
    fn a_path_has_the_mode_that_was_asked_for_whatever_the_umask_is() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666] {
            let path = folder.path().join(format!("{mode:o}.sock"));
            let options = SocketOptions { mode: Some(mode), ..SocketOptions::default() };
            let _bound = bind_unix(&Kind::UnixListener, &path, &options).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn addresses_overlap_by_wildcard_and_port() {
        let overlaps = |one: &str, other: &str| overlap(one.parse().unwrap(), other.parse().unwrap());
        assert!(overlaps("0.0.0.0:80", "127.0.0.1:80"));
        assert!(overlaps("127.0.0.1:80", "127.0.0.1:80"));
        assert!(overlaps("[::]:80", "127.0.0.1:80"));
        assert!(!overlaps("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlaps("0.0.0.0:80", "127.0.0.1:81"));
        assert!(!overlaps("0.0.0.0:0", "127.0.0.1:0"));
        assert!(!overlaps("[::1]:80", "0.0.0.0:80"));
    }
}
