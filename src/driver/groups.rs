//! `SO_REUSEPORT` groups: which of their sockets get what comes, and when one that is left over may go.
//!
//! A group changes its size over a takeover. As long as a predecessor could come back, nothing comes to a socket that it
//! does not have: should the successor die, nothing is lost. Once it is gone the group is steered anew. What waits in a
//! socket that is left over then is served by this process like everything else, and the next offer says that it is empty.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use log::{info, warn};

use super::Driver;
use crate::manifest::Kind;
use crate::steering;
use crate::table::member;

/// A group that this process has claimed.
#[derive(Debug)]
pub(super) struct Group {
    name: String,
    /// How many of its sockets are to get what comes.
    size: usize,
    /// How many it has.
    sockets: usize,
    /// Since when nothing comes to those that are left over.
    steered: Option<Instant>,
}

impl Group {
    fn has(&self, name: &str) -> bool {
        (0..self.sockets).any(|index| member(&self.name, index) == name)
    }
}

impl Driver {
    /// The application has claimed a group whose first `size` sockets are to get what comes.
    pub(crate) fn form_group(&mut self, name: &str, size: usize, sockets: usize) {
        for index in 0..sockets {
            if let Some(held) = self.table.get_mut(&member(name, index)).filter(|held| held.entry.retired) {
                Arc::make_mut(&mut held.entry).retired = false;
            }
        }
        // It may be claimed again after its members were removed.
        self.groups.retain(|group| group.name != name);
        self.groups.push(Group { name: name.to_owned(), size, sockets, steered: None });
        if self.is_serving() {
            self.steer_groups();
        }
    }

    /// Whether an entry is a member of a group: nobody else may be bound to its address.
    pub(crate) fn is_grouped(&self, name: &str) -> bool {
        self.groups.iter().any(|group| group.has(name))
    }

    /// Makes a group ready to have members beside those that it has: they get nothing as long as a predecessor could come
    /// back, and the kernel knows no others. `Some`: why there cannot be more.
    pub(crate) fn cannot_grow(
        &mut self,
        kind: &Kind,
        name: &str,
        members: usize,
        address: SocketAddr,
    ) -> Option<String> {
        if self.table.get(&member(name, 0)).is_some_and(|first| self.foreign_namespace(first).is_some()) {
            return Some("it lives in another network namespace".to_owned());
        }
        let held = (0..members).filter_map(|index| self.table.get(&member(name, index)));
        let ours: io::Result<Vec<u64>> = held.map(|held| inode(held.fd.as_fd())).collect();
        let others = ours.and_then(|ours| steering::others(*kind == Kind::TcpListener, address, &ours));
        match others {
            Ok(0) => {}
            Ok(_) => {
                return Some(
                    "another process, an earlier generation maybe, still has sockets of this group".to_owned(),
                );
            }
            Err(error) => return Some(format!("cannot look for other sockets of this group: {error}")),
        }
        let first = self.table.get(&member(name, 0))?;
        let steered = steering::steer(first.fd.as_fd(), members as u32);
        steered.err().map(|error| format!("cannot steer what comes to this group: {error}"))
    }

    /// How many sockets others have where this one was bound just now.
    pub(crate) fn others_beside(&self, kind: &Kind, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let Some(address) = socket2::SockRef::from(&fd).local_addr()?.as_socket() else { return Ok(0) };
        steering::others(*kind == Kind::TcpListener, address, &[inode(fd)?])
    }

    /// Steers every group as the application wants it. Only where no predecessor can come back, and only as the owner.
    pub(super) fn steer_groups(&mut self) {
        if self.elder.is_some() || !self.owns() {
            return;
        }
        for group in &mut self.groups {
            let Some(first) = self.table.get(&member(&group.name, 0)) else { continue };
            match steering::steer(first.fd.as_fd(), group.size as u32) {
                Ok(()) => {
                    group.steered = Some(Instant::now());
                    info!("group {:?}: {} of {} sockets get what comes", group.name, group.size, group.sockets);
                }
                Err(error) => {
                    // The kernel spreads over all of them, and all of them are served.
                    group.steered = None;
                    warn!("cannot steer what comes to the group {:?}: {error}", group.name);
                }
            }
        }
    }

    /// Before an offer: marks what is left over of a group and has been empty for long enough to stay so, from the end: a
    /// group has no gaps, so that one in which something waits keeps all that come before it.
    pub(super) fn retire(&mut self) {
        let now = Instant::now();
        for group in &self.groups {
            let mut retired = true;
            for index in (group.size..group.sockets).rev() {
                let Some(held) = self.table.get_mut(&member(&group.name, index)) else { continue };
                let stream = held.entry.kind == Kind::TcpListener;
                let long_enough = group.steered.is_some_and(|since| {
                    now.duration_since(since) >= steering::may_arrive_for(stream, held.fd.as_fd())
                });
                retired = retired && long_enough && steering::is_empty(held.fd.as_fd());
                if held.entry.retired != retired {
                    Arc::make_mut(&mut held.entry).retired = retired;
                }
            }
        }
    }
}

/// What the kernel's tables of sockets call it by.
fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // Its width differs between architectures.
    #[allow(clippy::unnecessary_cast, reason = "u64 on this one")]
    Ok(nix::sys::stat::fstat(fd)?.st_ino as u64)
}
