//! Datagrams to the service manager (sd_notify(3)), sent without waiting.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};

use crate::shared::SharedFd;

/// How many descriptors, and names of such, wait for a manager that reads nothing; more are dropped, which is said once.
const QUEUE: usize = 8192;
/// How many other datagrams have a place beside them: who parks many must be heard all the same when he is ready.
const RESERVE: usize = 1024;

/// A datagram, with the descriptor that rides on it.
#[derive(Debug)]
struct Datagram {
    text: String,
    descriptor: Option<SharedFd>,
}

/// What sending came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All of it.
    All,
    /// The manager's queue is full: the socket becomes writable when it is not.
    Blocked,
    /// Nothing of it: too much waits already.
    Dropped,
}

/// The socket of the manager.
#[derive(Debug)]
pub(crate) struct Notify {
    address: UnixAddr,
    socket: OwnedFd,
    queue: VecDeque<Datagram>,
    /// The queue was full, and that was said.
    dropping: bool,
}

impl Notify {
    /// Connects to what `NOTIFY_SOCKET` says: a path, or an abstract address that begins with `@`.
    pub(crate) fn to(address: &OsStr) -> io::Result<Notify> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
            [b'/', ..] => UnixAddr::new(address)?,
            // `vsock:` leads out of a virtual machine.
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract address")),
        };
        Ok(Notify { socket: connected(&address)?, address, queue: VecDeque::new(), dropping: false })
    }

    /// Sends assignments, one a line, after all that waits.
    pub(crate) fn send(&mut self, text: String) -> Sent {
        self.push(Datagram { text, descriptor: None }, QUEUE + RESERVE)
    }

    /// Parks a descriptor under a name. systemd never looks at whether it is still of use: the service decides that.
    pub(crate) fn park(&mut self, name: &str, descriptor: SharedFd) -> Sent {
        let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.push(Datagram { text, descriptor: Some(descriptor) }, QUEUE)
    }

    /// Takes everything of that name out of the store.
    pub(crate) fn unpark(&mut self, name: &str) -> Sent {
        self.push(Datagram { text: format!("FDSTOREREMOVE=1\nFDNAME={name}"), descriptor: None }, QUEUE)
    }

    /// Asks the manager to say when it has acted on all that was sent: what comes back hangs up then.
    pub(crate) fn barrier(&mut self) -> io::Result<(OwnedFd, Sent)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Alone in its datagram, and the manager's copy is the only one once it is sent.
        let barrier = Datagram { text: "BARRIER=1".to_owned(), descriptor: Some(write.into()) };
        let sent = self.push(barrier, QUEUE + RESERVE);
        Ok((read, sent))
    }

    fn push(&mut self, datagram: Datagram, most: usize) -> Sent {
        if self.queue.len() >= most {
            if !std::mem::replace(&mut self.dropping, true) {
                log::warn!("the service manager reads nothing: what it would be told is dropped");
            }
            return Sent::Dropped;
        }
        self.queue.push_back(datagram);
        self.flush()
    }

    /// Sends what waits, as far as the manager takes it.
    pub(crate) fn flush(&mut self) -> Sent {
        let mut again = true;
        while let Some(datagram) = self.queue.front() {
            match transmit(&self.socket, datagram) {
                Ok(()) => {
                    self.queue.pop_front();
                    again = true;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Sent::Blocked,
                // The manager has a new socket at the same address.
                Err(Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::ENOTCONN) if std::mem::take(&mut again) => {
                    match connected(&self.address) {
                        Ok(socket) => self.socket = socket,
                        Err(error) => self.give_up(&error),
                    }
                }
                Err(errno) => {
                    log::warn!("cannot tell the service manager {:?}: {errno}", datagram.text);
                    self.queue.pop_front();
                }
            }
        }
        self.dropping = false;
        Sent::All
    }

    fn give_up(&mut self, error: &io::Error) {
        log::warn!("the service manager cannot be reached: {error}");
        self.queue.clear();
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn connected(address: &UnixAddr) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    connect(socket.as_raw_fd(), address)?;
    Ok(socket)
}

fn transmit(socket: &OwnedFd, datagram: &Datagram) -> Result<(), Errno> {
    let text = [IoSlice::new(datagram.text.as_bytes())];
    let number = datagram.descriptor.as_ref().map(|descriptor| [descriptor.as_fd().as_raw_fd()]);
    let rights = number.as_ref().map(|numbers| [ControlMessage::ScmRights(numbers)]);
    let control: &[ControlMessage<'_>] = rights.as_ref().map_or(&[], |rights| rights);
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &text, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn an_abstract_address_is_no_path() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("heirloom-notify-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let mut notify = Notify::to(OsStr::new(&format!("@{name}"))).unwrap();
        assert_eq!(notify.send("READY=1".to_owned()), Sent::All);
        assert_eq!(receive(&manager), "READY=1");
        assert_eq!(Notify::to(OsStr::new("vsock:2:1234")).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notify = Notify::to(path.as_os_str()).unwrap();
        let mut sent = 0;
        while notify.send(format!("STATUS={sent}")) == Sent::All {
            sent += 1;
        }
        // What did not fit is sent later, in order.
        for number in 0..=sent {
            assert_eq!(receive(&manager), format!("STATUS={number}"));
            notify.flush();
        }
        assert_eq!(notify.flush(), Sent::All);
    }

    #[test]
    fn a_manager_that_has_begun_anew_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notify = Notify::to(path.as_os_str()).unwrap();
        drop(manager);
        std::fs::remove_file(&path).unwrap();
        let manager = UnixDatagram::bind(&path).unwrap();
        assert_eq!(notify.send("READY=1".to_owned()), Sent::All);
        assert_eq!(receive(&manager), "READY=1");
        drop(manager);
        // Nobody there at all: nothing is kept, and nothing fails.
        assert_eq!(notify.send("READY=1".to_owned()), Sent::All);
    }

    #[test]
    fn a_barrier_hangs_up_once_the_manager_has_closed_its_copy() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notify = Notify::to(path.as_os_str()).unwrap();
        let (read, sent) = notify.barrier().unwrap();
        assert_eq!(sent, Sent::All);
        let hung_up = |timeout| {
            let mut fds = [PollFd::new(read.as_fd(), PollFlags::empty())];
            poll(&mut fds, timeout).unwrap() == 1
        };
        assert!(!hung_up(PollTimeout::ZERO));
        // A datagram that is read without room for its descriptor: the kernel closes it.
        assert_eq!(receive(&manager), "BARRIER=1");
        assert!(hung_up(PollTimeout::NONE));
    }
}
