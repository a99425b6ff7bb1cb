//! Groups: several sockets at one address, each with a queue of its own, that change their number over takeovers.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::claim::{Claim, bind_first, is_at, resolve};
use crate::error::{Error, NameProblem, Result};
use crate::listener::{self, Asked};
use crate::manifest::{Entry, Kind};
use crate::table::{Outcome, member};

/// The most sockets in a group.
const MOST: usize = 256;

/// Several sockets at one address (`SO_REUSEPORT`, socket(7)), one for each worker. Each has a queue of its own, so no two
/// workers wake for one connection.
///
/// The members are entries of their own, `NAME#0`, `NAME#1`, ..., and travel like others. The kernel chooses one of them
/// by address and port of the client, so a client's datagrams stay together as long as the number is the same.
///
/// The next version may want more of them or fewer. More are bound, and get their share once the predecessor is gone and
/// cannot come back without them. Fewer: nothing new comes to the others from then on, but something may wait in them,
/// or be on its way; so they are there as [`surplus`](Group::surplus), and are served like the members. The version after
/// that lets go of them, once nothing can wait in them any more: a minute or so, since a client may be in the middle of
/// its handshake (tcp(7), `tcp_synack_retries`).
///
/// ```no_run
/// # fn work(_: std::sync::Arc<std::net::TcpListener>) {}
/// # fn main() -> heirloom::Result<()> {
/// # let mut starting = heirloom::Handoff::at("/run/shop/handoff.sock").start()?;
/// let group = starting.tcp_group("web", "0.0.0.0:8080", 4)?;
/// let serving = starting.ready()?;
/// for listener in group.sockets().to_vec() { // four, or more where the predecessor had more
///     std::thread::spawn(move || work(listener));
/// }
/// # drop(serving);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Group<T> {
    sockets: Vec<Arc<T>>,
    size: usize,
}

impl<T> Clone for Group<T> {
    fn clone(&self) -> Group<T> {
        Group { sockets: self.sockets.clone(), size: self.size }
    }
}

impl<T> Group<T> {
    /// Every socket that is to be served until this process leaves: the members, then the surplus.
    #[must_use]
    pub fn sockets(&self) -> &[Arc<T>] {
        &self.sockets
    }

    /// The sockets that get what comes, by their number. As many as were asked for, or fewer where the
    /// [`Report`](crate::Report) says so.
    #[must_use]
    pub fn members(&self) -> &[Arc<T>] {
        &self.sockets[..self.size]
    }

    /// What is left over of a larger group: nothing new comes once the predecessor is gone, and what waits is served.
    #[must_use]
    pub fn surplus(&self) -> &[Arc<T>] {
        &self.sockets[self.size..]
    }
}

impl Claim<'_> {
    /// A [`Group`] of so many TCP listeners, 1 to 256: those that are inherited, and as many more as it takes.
    ///
    /// They do not become more where somebody else has sockets at this address with `SO_REUSEPORT`, such as an earlier
    /// generation that still finishes what it has in flight: the kernel cannot tell them apart. Then the group stays as it is,
    /// the report has the others as [`Missing`](Outcome::Missing), and the next takeover tries again.
    ///
    /// # Errors
    /// As for [`tcp`](Claim::tcp); [`Error::Io`] where the number is out of range, or where others have the address.
    pub fn tcp_group(self, address: impl ToSocketAddrs, size: usize) -> Result<Group<TcpListener>> {
        self.group(&Kind::TcpListener, address, size)
    }

    /// A [`Group`] of so many UDP sockets, by the same rules. Read them, the surplus included, as the owner only.
    ///
    /// # Errors
    /// As for [`tcp_group`](Claim::tcp_group).
    pub fn udp_group(self, address: impl ToSocketAddrs, size: usize) -> Result<Group<UdpSocket>> {
        self.group(&Kind::Udp, address, size)
    }

    fn group<T>(mut self, kind: &Kind, address: impl ToSocketAddrs, size: usize) -> Result<Group<T>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        let base = self.name;
        if !(1..=MOST).contains(&size) {
            let why =
                io::Error::new(io::ErrorKind::InvalidInput, format!("a group has 1 to {MOST} sockets, not {size}"));
            return Err(Error::io(format!("make the group {base:?}"), why));
        }
        self.options.reuse_port = true;
        let (addresses, requested) = resolve(base, address)?;
        let inherited = self.inherited_members(kind, &requested, &addresses);
        for index in 0..size.max(inherited) {
            self.check_as(&member(base, index))?;
        }
        if inherited == 0 {
            self.check_taken(kind, &addresses)?;
        }
        let options = std::mem::take(&mut self.options);
        let after_others = self.driver.follows_a_family_that_ended();
        let backlog = kind.listens().then_some(self.backlog);
        let mut sockets: Vec<Arc<T>> = Vec::with_capacity(size.max(inherited));
        let mut at = addresses;
        for index in 0..size.max(inherited) {
            let name = member(base, index);
            let is_retired = |index| {
                let held = self.driver.table.get(&member(base, index));
                held.is_some_and(|held| held.entry.retired)
            };
            if index >= size && (index..inherited).all(is_retired) {
                // All that are left are empty for good. What nobody claims is closed at the commit.
                break;
            }
            if index == inherited
                && index > 0
                && let Some(why) = at.first().and_then(|at| self.driver.cannot_grow(kind, base, index, *at))
            {
                log::warn!("the group {base:?} stays at {index}: {why}");
                for index in index..size {
                    let outcome = Outcome::Missing { why: why.clone() };
                    self.driver.table.report.entries.insert(member(base, index), outcome);
                }
                break;
            }
            let asked = Asked { name: &name, kind: kind.clone(), requested: requested.clone(), path: None, backlog };
            let same = |entry: &Entry| {
                let there =
                    || entry.socket.as_ref().is_some_and(|socket| at.iter().any(|at| socket.local == at.to_string()));
                if index == 0 { is_at(entry, &requested, &at) } else { there() }
            };
            let socket = self.settle(&asked, same, |driver| {
                bind_first(driver, &name, &at, after_others, &|driver, address| {
                    let socket = listener::bind_inet(kind, address, &options)?;
                    // With this option others may be there without an error, and would take a share.
                    if index == 0 && driver.others_beside(kind, socket.as_fd())? > 0 {
                        return Err(io::ErrorKind::AddrInUse.into());
                    }
                    Ok(socket)
                })
                .map(T::from)
            })?;
            if index == 0 {
                // All of them are where the first one is, and its port may be the kernel's choice.
                at = self.driver.table.get(&name).and_then(|held| held.inet).into_iter().collect();
            }
            sockets.push(socket);
        }
        let size = size.min(sockets.len());
        self.driver.form_group(base, size, sockets.len());
        Ok(Group { sockets, size })
    }

    /// How many members the predecessor has, all at one address that is among these.
    fn inherited_members(&self, kind: &Kind, requested: &str, addresses: &[SocketAddr]) -> usize {
        let held = |index| self.driver.table.get(&member(self.name, index));
        let Some(first) = held(0).filter(|held| is_at(&held.entry, requested, addresses)) else { return 0 };
        let is_member = |index: &usize| {
            held(*index).is_some_and(|held| {
                held.entry.kind == *kind && held.inet == first.inet && listener::reuses_port(held.fd.as_fd())
            })
        };
        (0..).take_while(is_member).count()
    }

    /// A group shares its address with nobody, whatever options others have set.
    fn check_taken(&self, kind: &Kind, addresses: &[SocketAddr]) -> Result<()> {
        let of_kind = self.driver.table.iter().filter(|held| held.entry.kind == *kind);
        for held in of_kind {
            let overlaps =
                held.inet.is_some_and(|local| addresses.iter().any(|wanted| listener::overlap(*wanted, local)));
            // The same address in another network namespace is another address.
            if overlaps && self.driver.foreign_namespace(held).is_none() {
                let other = held.entry.name.clone();
                return Err(Error::name(self.name, NameProblem::Overlaps { other }));
            }
        }
        Ok(())
    }
}
