//! Claims: how a name becomes a descriptor of this process, inherited from the predecessor or made.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::control;
use crate::driver::Driver;
use crate::error::{Error, NameProblem, Result};
use crate::listener::{self, Asked, SocketOptions};
use crate::manifest::{Entry, Kind, check_name};
use crate::table::{Descriptor, Held, Outcome};

/// A name that the application wants, and how its descriptor is made where the predecessor does not have it.
///
/// The options are for what this process makes itself. What is inherited keeps the options that it has: they belong to
/// the open socket, which the predecessor still uses.
///
/// ```no_run
/// # fn main() -> heirloom::Result<()> {
/// # let mut starting = heirloom::Handoff::at("/run/shop/handoff.sock").start()?;
/// let web = starting.claim("web").backlog(1024).only_v6(true).tcp("[::]:8080")?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a claim does nothing until it is told what it is for, by `tcp`, `unix`, `raw`, ..."]
pub struct Claim<'a> {
    pub(crate) driver: &'a mut Driver,
    pub(crate) name: &'a str,
    pub(crate) backlog: u32,
    pub(crate) options: SocketOptions<'a>,
}

impl std::fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("name", &self.name).field("backlog", &self.backlog).finish_non_exhaustive()
    }
}

impl<'a> Claim<'a> {
    pub(crate) fn new(driver: &'a mut Driver, name: &'a str) -> Claim<'a> {
        Claim { driver, name, backlog: listener::BACKLOG, options: SocketOptions::default() }
    }

    /// How many connections may wait to be accepted; the kernel cuts it to `net.core.somaxconn` (listen(2)). 4,096 unless
    /// told otherwise.
    pub fn backlog(mut self, connections: u32) -> Claim<'a> {
        self.backlog = connections;
        self
    }

    /// An IPv6 socket takes no IPv4 connections (`IPV6_V6ONLY`, ipv6(7)). The system's default otherwise.
    pub fn only_v6(mut self, only: bool) -> Claim<'a> {
        self.options.only_v6 = Some(only);
        self
    }

    /// Whether a TCP address may be bound while old connections of it linger (`SO_REUSEADDR`, socket(7)). On unless told
    /// otherwise.
    pub fn reuse_address(mut self, reuse: bool) -> Claim<'a> {
        self.options.reuse_address = reuse;
        self
    }

    /// Other sockets of this user may be bound to the same address, each with a queue of its own (`SO_REUSEPORT`).
    ///
    /// It is not for handing over: closing such a socket resets what waits in its queue. Each is an entry of its own and
    /// travels. Where they are to be a group that may change its size, see [`tcp_group`](Claim::tcp_group).
    pub fn reuse_port(mut self, reuse: bool) -> Claim<'a> {
        self.options.reuse_port = reuse;
        self
    }

    /// A connection is accepted once its client has sent something, or after this long, to the second
    /// (`TCP_DEFER_ACCEPT`, tcp(7)).
    pub fn defer_accept(mut self, within: Duration) -> Claim<'a> {
        self.options.defer_accept = Some(within);
        self
    }

    /// Clients that have been here before may send data with their first packet; at most so many that are not yet
    /// established (`TCP_FASTOPEN`, tcp(7)).
    pub fn fast_open(mut self, pending: u32) -> Claim<'a> {
        self.options.fast_open = Some(pending);
        self
    }

    /// The permission bits of a Unix socket's path, whatever the umask is. They are set before it is bound, so there is no
    /// moment in which others may connect. Unless told otherwise, what the umask leaves of 0777.
    pub fn mode(mut self, bits: u32) -> Claim<'a> {
        self.options.mode = Some(bits);
        self
    }

    /// Does something else to a socket before it is bound, such as an option that has no method here;
    /// `socket2::SockRef::from(&socket)` has most of them.
    pub fn configure(mut self, configure: impl Fn(BorrowedFd<'_>) -> io::Result<()> + 'a) -> Claim<'a> {
        self.options.configure = Some(Box::new(configure));
        self
    }

    /// The TCP listener of that name: inherited where the predecessor has it at this address, else what systemd has passed
    /// ([`Handoff::systemd`](crate::Handoff), with the feature of that name), else bound. It is
    /// non-blocking, shared with the handoff (one descriptor), and listens at the latest when this process owns.
    ///
    /// # Errors
    /// [`Error::Name`] for a bad name, one in use, or an address that overlaps another name's; [`Error::Io`] where it
    /// cannot be bound; [`Error::Frozen`] where this process serves, or has served, and a takeover is under way.
    pub fn tcp(self, address: impl ToSocketAddrs) -> Result<Arc<TcpListener>> {
        self.inet(Kind::TcpListener, address)
    }

    /// The UDP socket of that name, by the same rules. Read it as the owner only: its queue has one reader.
    ///
    /// # Errors
    /// As for [`tcp`](Claim::tcp).
    pub fn udp(self, address: impl ToSocketAddrs) -> Result<Arc<UdpSocket>> {
        self.inet(Kind::Udp, address)
    }

    /// The Unix stream listener of that name, by the same rules. Its path is removed by the last of the family alone.
    ///
    /// # Errors
    /// As for [`tcp`](Claim::tcp), and [`Error::Path`].
    pub fn unix(self, path: impl AsRef<Path>) -> Result<Arc<UnixListener>> {
        self.at_path(Kind::UnixListener, path.as_ref())
    }

    /// The Unix datagram socket of that name, by the same rules. Read it as the owner only.
    ///
    /// # Errors
    /// As for [`unix`](Claim::unix).
    pub fn unix_datagram(self, path: impl AsRef<Path>) -> Result<Arc<UnixDatagram>> {
        self.at_path(Kind::UnixDatagram, path.as_ref())
    }

    /// The listener of type `SOCK_SEQPACKET` of that name, by the same rules. std has no type for it.
    ///
    /// # Errors
    /// As for [`unix`](Claim::unix).
    pub fn seqpacket(self, path: impl AsRef<Path>) -> Result<Arc<OwnedFd>> {
        self.at_path(Kind::SeqpacketListener, path.as_ref())
    }

    /// Any descriptor of that name, such as a memfd, a pipe or an established connection: inherited, or made by `make`.
    /// Its mode is kept.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Io`] where `make` fails; [`Error::Frozen`].
    pub fn raw<T>(self, make: impl FnOnce() -> io::Result<T>) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        self.made(Kind::Raw, make)
    }

    /// A socket that the application makes itself: inherited where the predecessor has that name as this kind, whatever
    /// its address, else made by `make`. It becomes non-blocking, but for [`Kind::Raw`]; a listener may be bound only,
    /// then it listens once this process owns.
    ///
    /// # Errors
    /// As for [`raw`](Claim::raw); [`Error::Mismatch`] where `make` made something else.
    pub fn made<T>(mut self, kind: Kind, make: impl FnOnce() -> io::Result<T>) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        self.check()?;
        let backlog = kind.listens().then_some(self.backlog);
        let name = self.name;
        let asked = Asked { name, kind: kind.clone(), requested: String::new(), path: None, backlog };
        self.settle(
            &asked,
            |_| true,
            |_| {
                let making = |error| Error::io(format!("make {name:?}"), error);
                let made = make().map_err(making)?;
                if let Some((expected, found)) = listener::differs(&kind, made.as_fd()).map_err(making)? {
                    return Err(Error::Mismatch { name: name.to_owned(), check: "kind", expected, found });
                }
                if kind != Kind::Raw {
                    listener::set_nonblocking(made.as_fd()).map_err(making)?;
                }
                Ok(made)
            },
        )
    }

    /// The inherited descriptor of that name, whatever its kind, or the one that systemd has passed under it; nothing is
    /// made where there is none.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Frozen`].
    pub fn inherited(self) -> Result<Option<Arc<OwnedFd>>> {
        self.check()?;
        let passed = match self.driver.table.get(self.name) {
            Some(_) => None,
            None => self.driver.admit_passed(self.name),
        };
        let duplicating = |error| Error::io(format!("duplicate {:?}", self.name), error);
        let blocking = self.driver.check_entry(self.name)?;
        let adopted = self.driver.table.adopt(self.name, blocking).map_err(duplicating)?;
        if let Some(outcome) = passed {
            self.driver.table.report.entries.insert(self.name.to_owned(), outcome);
        }
        Ok(adopted)
    }

    /// Whether this name may be claimed now.
    fn check(&self) -> Result<()> {
        self.check_as(self.name)
    }

    /// Whether another name may be claimed now, that of a member of a group.
    pub(crate) fn check_as(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.driver.may_change()?;
        match self.driver.table.get(name) {
            Some(held) if held.claimed => Err(Error::name(name, NameProblem::Twice)),
            _ => Ok(()),
        }
    }

    fn inet<T>(mut self, kind: Kind, address: impl ToSocketAddrs) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        self.check()?;
        let name = self.name;
        let (addresses, requested) = resolve(name, address)?;
        let backlog = kind.listens().then_some(self.backlog);
        let asked = Asked { name, kind: kind.clone(), requested: requested.clone(), path: None, backlog };
        let same = |entry: &Entry| is_at(entry, &requested, &addresses);
        if !self.is_inherited(&asked, &same) {
            self.check_overlap(&kind, &addresses)?;
        }
        let after_others = self.driver.follows_a_family_that_ended();
        let options = std::mem::take(&mut self.options);
        self.settle(&asked, same, |driver| {
            let bind = |_: &Driver, address| listener::bind_inet(&kind, address, &options);
            bind_first(driver, name, &addresses, after_others, &bind).map(T::from)
        })
    }

    fn at_path<T>(mut self, kind: Kind, path: &Path) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        self.check()?;
        let name = self.name;
        let path = control::resolve(path)?;
        let backlog = kind.listens().then_some(self.backlog);
        let requested = path.display().to_string();
        let asked = Asked { name, kind: kind.clone(), requested, path: Some(&path), backlog };
        let same = |entry: &Entry| entry.path.as_deref() == Some(path.as_os_str().as_bytes());
        if !self.is_inherited(&asked, &same)
            && let Some(other) = self.driver.table.iter().find(|held| same(&held.entry))
        {
            let other = other.entry.name.clone();
            return Err(Error::name(name, NameProblem::Overlaps { other }));
        }
        let after_others = self.driver.follows_a_family_that_ended();
        let options = std::mem::take(&mut self.options);
        self.settle(&asked, same, |_| {
            let bind = || listener::bind_unix(&kind, &path, &options);
            if after_others { listener::bind_when_free(bind) } else { bind() }
                .map(T::from)
                .map_err(|error| Error::io(format!("bind {name:?} to {}", path.display()), error))
        })
    }

    /// An address that another name has, or that one of the two covers by a wildcard, is refused before anything is
    /// bound: the error names both. Sockets of a `SO_REUSEPORT` group share theirs.
    fn check_overlap(&self, kind: &Kind, addresses: &[SocketAddr]) -> Result<()> {
        for held in self.driver.table.iter().filter(|held| held.entry.kind == *kind) {
            let Some(local) = held.inet else { continue };
            let group = self.options.reuse_port
                && listener::reuses_port(held.fd.as_fd())
                && !self.driver.is_grouped(&held.entry.name);
            let overlaps = !group && addresses.iter().any(|wanted| listener::overlap(*wanted, local));
            // The same address in another network namespace is another address.
            if overlaps && self.driver.foreign_namespace(held).is_none() {
                return Err(Error::name(self.name, NameProblem::Overlaps { other: held.entry.name.clone() }));
            }
        }
        Ok(())
    }

    fn is_inherited(&self, asked: &Asked<'_>, same: &impl Fn(&Entry) -> bool) -> bool {
        self.driver.table.get(asked.name).is_some_and(|held| held.entry.kind == asked.kind && same(&held.entry))
    }

    /// Adopts the inherited entry of that name if it is the same, else what systemd has passed of it, else makes a new one
    /// and says why.
    pub(crate) fn settle<T>(
        &mut self,
        asked: &Asked<'_>,
        same: impl Fn(&Entry) -> bool,
        make: impl FnOnce(&mut Driver) -> Result<T>,
    ) -> Result<Arc<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        if self.is_inherited(asked, &same) {
            let blocking = self.driver.check_entry(asked.name)?;
            let adopted = self.driver.table.adopt(asked.name, blocking);
            let adopted = adopted.map_err(|error| Error::io(format!("duplicate {:?}", asked.name), error))?;
            if let Some(fd) = adopted {
                return Ok(fd);
            }
        }
        let passed = self.driver.take_passed(asked, &same);
        let why = match self.driver.table.get(asked.name) {
            Some(held) if held.entry.kind != asked.kind => {
                format!("the predecessor has it as {}", held.entry.kind)
            }
            Some(held) => format!("the predecessor has it at {}", held.entry.address),
            None if self.driver.is_serving() => "added while serving".to_owned(),
            None if self.driver.has_inherited() => "the predecessor does not have it".to_owned(),
            None => "first of its family".to_owned(),
        };
        let (fd, outcome) = match passed {
            Ok((fd, outcome)) => {
                if asked.kind != Kind::Raw {
                    let preparing = |error| Error::io(format!("make {:?} non-blocking", asked.name), error);
                    listener::set_nonblocking(fd.as_fd()).map_err(preparing)?;
                }
                (T::from(fd), outcome)
            }
            Err(unfit) => {
                let why = unfit.filter(|_| self.driver.table.get(asked.name).is_none()).unwrap_or(why);
                (make(self.driver)?, Outcome::Bound { why })
            }
        };
        let fd = Arc::new(fd);
        let describing = |error| Error::io(format!("describe {:?}", asked.name), error);
        // The application may have bound it to a path of its own choice.
        let own = if asked.kind == Kind::Raw { None } else { listener::bound_path((*fd).as_fd()) };
        let asked = Asked { path: asked.path.or(own.as_deref()), ..asked.clone() };
        let entry = listener::describe(&asked, (*fd).as_fd()).map_err(describing)?;
        let held = Held::new(entry, Descriptor::Claimed(fd.clone().into()));
        self.driver.insert(held, outcome)?;
        Ok(fd)
    }
}

/// The addresses that a name is wanted at, and the same as text.
pub(crate) fn resolve(name: &str, address: impl ToSocketAddrs) -> Result<(Vec<SocketAddr>, String)> {
    let finding = |error| Error::io(format!("find the address of {name:?}"), error);
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(finding)?.collect();
    let requested = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok((addresses, requested))
}

/// Whether an entry is at one of these addresses, or was asked for in the same words.
pub(crate) fn is_at(entry: &Entry, requested: &str, addresses: &[SocketAddr]) -> bool {
    let actual = entry.socket.as_ref().and_then(|socket| socket.local.parse::<SocketAddr>().ok());
    entry.requested == requested
        || actual.is_some_and(|actual| {
            addresses.iter().any(|wanted| *wanted == actual || (wanted.port() == 0 && wanted.ip() == actual.ip()))
        })
}

/// Binds to the first of these addresses that can be had.
pub(crate) fn bind_first(
    driver: &mut Driver,
    name: &str,
    addresses: &[SocketAddr],
    after_others: bool,
    bind: &dyn Fn(&Driver, SocketAddr) -> io::Result<OwnedFd>,
) -> Result<OwnedFd> {
    let no_address = io::Error::new(io::ErrorKind::InvalidInput, "no address");
    let mut refused = Error::io(format!("bind {name:?}"), no_address);
    for address in addresses {
        // What is left of systemd's at this address is another socket, which is not wanted any more.
        let cleared = driver.clear_way(&|local| listener::overlap(*address, local));
        let bind = || bind(driver, *address);
        match if after_others || cleared { listener::bind_when_free(bind) } else { bind() } {
            Ok(fd) => return Ok(fd),
            Err(error) => refused = Error::io(format!("bind {name:?} to {address}"), error),
        }
    }
    Err(refused)
}
