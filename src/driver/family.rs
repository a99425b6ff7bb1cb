//! What the generations of one service share: lease, locks, control listener.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::lock::{Content, LockDescription};
use crate::protocol::holder::Look;
use crate::protocol::predecessor::{Claim, Found};
use crate::protocol::successor::Lock;
use crate::shared::SharedFd;
use crate::{control, lock, sys};

/// How long a shared lock on byte 1 is tried for while somebody looks at it exclusively, which takes microseconds. A time and
/// no number of tries: where there is much to do each of them waits until all others have had their turn.
const JOIN_WITHIN: Duration = Duration::from_millis(50);
/// But so often at least: this process may not have run meanwhile.
const JOIN_TRIES: u32 = 8;

/// The family's descriptors, as far as this process has them.
#[derive(Debug)]
pub(super) struct Family {
    /// flock(2), shared by all generations, only ever closed.
    pub(super) lease: Option<Arc<File>>,
    /// This process's own description for bytes 0 and 1.
    pub(super) lock: Option<LockDescription>,
    /// The control listener, which travels.
    pub(super) control: Option<Arc<UnixListener>>,
    /// Whether the control listener is registered.
    pub(super) accepting: bool,
    /// The backlog of the control listener.
    pub(super) backlog: u32,
    /// Device and inode of the control path, as its maker recorded them.
    pub(super) inode: Option<(u64, u64)>,
    /// A description opened for the next successor, at a time when this process could: it may since have given up the
    /// right to open the file, or have no descriptor left.
    heir: Option<File>,
    /// This process, as its successors see it.
    pidfd: Option<Arc<OwnedFd>>,
    /// This process made the control path, and has neither served nor offered anything: it may remove it again.
    pub(super) founder: bool,
}

impl Default for Family {
    fn default() -> Family {
        Family {
            lease: None,
            lock: None,
            control: None,
            accepting: false,
            backlog: control::BACKLOG,
            inode: None,
            heir: None,
            pidfd: None,
            founder: false,
        }
    }
}

impl Family {
    /// Takes what came in the first batch.
    pub(super) fn receive(&mut self, lease: OwnedFd, description: OwnedFd, control: OwnedFd) {
        self.lease = Some(Arc::new(File::from(lease)));
        self.lock = Some(LockDescription::new(File::from(description)));
        self.control = Some(Arc::new(UnixListener::from(control)));
    }

    /// Drops what belongs to the family: the locks are freed with it.
    pub(super) fn clear(&mut self) {
        *self = Family::default();
    }

    /// Makes what the next takeover needs: a lock description for the successor, who may lack the right to open the file
    /// itself, and a pidfd of this process.
    pub(super) fn prepare(&mut self, path: &Path) -> io::Result<()> {
        if self.pidfd.is_none() {
            self.pidfd = Some(Arc::new(sys::own_pidfd()?));
        }
        if self.heir.is_none() {
            self.heir = Some(self.open_description(path)?);
        }
        Ok(())
    }

    /// The first batch of a takeover, in the order of the wire. The successor's description is gone from here with it.
    pub(super) fn first_batch(&mut self) -> Option<[SharedFd; 4]> {
        let (pidfd, lease, control) = (self.pidfd.clone()?, self.lease.clone()?, self.control.clone()?);
        let heir = OwnedFd::from(self.heir.take()?);
        Some([pidfd.into(), lease.into(), heir.into(), control.into()])
    }

    /// The first batch for a holder. What is prepared for a successor stays: a takeover waits for no holder.
    pub(super) fn holders_batch(&mut self, path: &Path) -> io::Result<[SharedFd; 4]> {
        let description = OwnedFd::from(self.open_description(path)?);
        let pidfd = match &self.pidfd {
            Some(pidfd) => pidfd.clone(),
            None => Arc::new(sys::own_pidfd()?),
        };
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let lease = self.lease.clone().ok_or_else(missing)?;
        let control = self.control.clone().ok_or_else(missing)?;
        Ok([pidfd.into(), lease.into(), description.into(), control.into()])
    }

    /// Whether somebody owns, and what the file says: a look that takes nothing.
    pub(super) fn look(&self) -> io::Result<Look> {
        let lock = self.lock.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if lock.is_owned_elsewhere()? { Ok(Look::Held) } else { Ok(Look::Free(lock.read()?.generation)) }
    }

    fn open_description(&self, path: &Path) -> io::Result<File> {
        let lease = self.lease.as_ref().ok_or(io::ErrorKind::NotFound)?;
        LockDescription::open_anew(lease, path)
    }

    /// With the lease in hand: takes byte 1, byte 0, and writes the next generation. `None` where a lock is busy.
    pub(super) fn found(&mut self, path: &Path) -> Result<Option<u64>> {
        let doing = |what: &str| format!("{what} {}", path.display());
        let description =
            self.open_description(path).map_err(|error| Error::io(doing("open"), error)).map(LockDescription::new)?;
        let taken = (|| {
            if !description.bar_takeovers()? || !description.take_owner()? {
                return Ok(None);
            }
            let generation = description.read()?.generation.saturating_add(1);
            description.write(Content { generation, nonce: 0 })?;
            description.leave_takeover()?;
            Ok(Some(generation))
        })()
        .map_err(|error: io::Error| Error::io(doing("lock"), error))?;
        if taken.is_some() {
            self.lock = Some(description);
        }
        Ok(taken)
    }

    /// With a copy of the lease in hand: opens a description, and bars takeovers with it where none is under way. Gives the
    /// generation of the moment.
    #[cfg(feature = "ctl")]
    pub(super) fn bar(&mut self, path: &Path) -> io::Result<u64> {
        let description = LockDescription::new(self.open_description(path)?);
        let generation = description.read()?.generation;
        description.bar_takeovers()?;
        self.lock = Some(description);
        Ok(generation)
    }

    /// The generation in the file.
    #[cfg(feature = "ctl")]
    pub(super) fn generation(&self) -> io::Result<u64> {
        self.lock.as_ref().map_or(Err(io::ErrorKind::NotFound.into()), |lock| Ok(lock.read()?.generation))
    }

    /// After [`bar`](Family::bar): takes byte 0, and writes the next generation. `None` where a lock is busy. `bare`: without
    /// byte 1, which a stopped party of a takeover may keep for ever.
    #[cfg(feature = "ctl")]
    pub(super) fn seize(&self, bare: bool) -> Result<Option<u64>> {
        let Some(lock) = &self.lock else { return Ok(None) };
        let taken = || -> io::Result<Option<u64>> {
            if !(lock.bar_takeovers()? || bare) || !lock.take_owner()? {
                return Ok(None);
            }
            let generation = lock.read()?.generation.saturating_add(1);
            lock.write(Content { generation, nonce: 0 })?;
            lock.leave_takeover()?;
            Ok(Some(generation))
        };
        taken().map_err(|error| Error::io("take the owner lock", error))
    }

    /// Byte 1, shared.
    pub(super) fn join_takeover(&self) -> io::Result<bool> {
        let Some(lock) = &self.lock else { return Ok(false) };
        let began = Instant::now();
        let mut tries = 0;
        while tries < JOIN_TRIES || began.elapsed() < JOIN_WITHIN {
            if lock.join_takeover()? {
                return Ok(true);
            }
            tries += 1;
            std::thread::yield_now();
        }
        Ok(false)
    }

    pub(super) fn leave_takeover(&self) -> io::Result<()> {
        self.lock.as_ref().map_or(Ok(()), LockDescription::leave_takeover)
    }

    pub(super) fn record(&self, generation: u64, nonce: u64) -> io::Result<()> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.write(Content { generation, nonce }))
    }

    pub(super) fn unlock(&self) -> io::Result<()> {
        self.lock.as_ref().map_or(Ok(()), LockDescription::release_owner)
    }

    /// The commit of a successor that was offered this.
    ///
    /// Whoever has been overtaken, by a later takeover or another owner, lets go only where somebody owns. Where nobody
    /// does, it may have the last copies: it owns with them, unless others are at it, and byte 1 tells.
    pub(super) fn commit(&self, generation: u64, nonce: u64, bare: bool) -> io::Result<Lock> {
        let Some(lock) = &self.lock else { return Ok(Lock::Foreign) };
        // A nonce of 0 is a predecessor that called this takeover off, or never wrote it down, and died.
        let ours = |found: Content| found.generation == generation && (found.nonce == nonce || found.nonce == 0);
        let taken = |taken: Option<u64>| taken.map_or(Lock::Unsettled, |generation| Lock::Taken { generation });
        if bare || ours(lock.read()?) {
            if !lock.take_owner()? {
                return Ok(Lock::Busy);
            }
            return Ok(taken(keep(lock, |found| bare || ours(found))?));
        }
        if lock.is_owned_elsewhere()? {
            return Ok(Lock::Foreign);
        }
        // This process is a party of its own takeover, and the last one.
        if !lock.bar_takeovers()? {
            return Ok(Lock::Unsettled);
        }
        let kept = match lock.take_owner() {
            Ok(true) => keep(lock, |_| true),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        if !matches!(kept, Ok(Some(_))) {
            lock.join_takeover()?;
        }
        kept.map(taken)
    }

    /// Takes byte 0 back for a process that owned `generation`.
    pub(super) fn reclaim(&self, claim: Claim, generation: u64) -> io::Result<Found> {
        let Some(lock) = &self.lock else { return Ok(Found::Held) };
        if let Claim::StandBy(nonce) = claim {
            return Family::take_back(lock, generation, nonce);
        }
        // The shared lock on byte 1 is this process's part in its own takeover. Once the successor has owned that is over:
        // kept, it would bar everybody else who is to take the lock back, and be barred by theirs.
        let before = lock.read()?;
        let shared = claim == Claim::Shared && before.generation == generation;
        if claim == Claim::Shared && !shared {
            lock.leave_takeover()?;
        }
        let barred = claim != Claim::Bare && !shared;
        // A takeover of others is under way, or was: they have the time of a commit. They may be at it without byte 1, where
        // somebody was stopped with it in hand.
        if barred && before.nonce != 0 {
            return Ok(if lock.is_owned_elsewhere()? { Found::Held } else { Found::Barred });
        }
        if barred && !lock.bar_takeovers()? {
            return Ok(if lock.is_owned_elsewhere()? { Found::Held } else { Found::Barred });
        }
        let taken = lock.take_owner();
        if barred {
            lock.leave_takeover()?;
        }
        if !taken? {
            return Ok(Found::Held);
        }
        // Where somebody has owned or offered between the look and the lock, the next look is another one.
        let kept = keep(lock, |found| match (shared, barred) {
            (true, _) => found.generation == generation,
            (_, true) => found == before,
            _ => true,
        })?;
        Ok(kept.map_or(Found::Barred, Found::Free))
    }

    /// Takes byte 0 back for a process that owned `generation` and stands by for the next, whose takeover has this nonce.
    fn take_back(lock: &LockDescription, generation: u64, nonce: u64) -> io::Result<Found> {
        let expected = generation + 1;
        if !lock.take_owner()? {
            // Whoever is on probation holds both bytes, and gives the other one back where it is confirmed: that can be
            // seen where it cannot be heard.
            let goes_on = lock.is_taken_over_elsewhere()? && lock.read()?.generation == expected;
            // It may have died since the lock was tried.
            return Ok(if goes_on || !lock.is_owned_elsewhere()? { Found::Held } else { Found::Over });
        }
        // Else it has been free for somebody else, who has newer descriptors.
        let ours = |found: Content| found.generation == expected && (found.nonce == nonce || found.nonce == 0);
        let mut returned = false;
        let kept = keep(lock, |found| {
            returned = found.nonce == nonce;
            ours(found)
        })?;
        Ok(kept.map_or(Found::Over, if returned { Found::Returned } else { Found::Free }))
    }

    /// The last of its family? Closes the lease and takes it anew through a fresh description: held by nobody else.
    /// What comes back keeps it.
    pub(super) fn is_last(&mut self, path: &Path) -> Option<File> {
        self.lease = None;
        let file = lock::open_existing(path).ok()?;
        let last = lock::try_lease(&file).ok()? && lock::is_at(&file, path).ok()?;
        last.then_some(file)
    }
}

/// With byte 0 just taken: keeps it where this says so of the file, and tells the generation in it; else gives it back.
fn keep(lock: &LockDescription, may: impl FnOnce(Content) -> bool) -> io::Result<Option<u64>> {
    match lock.read() {
        Ok(found) if may(found) => Ok(Some(found.generation)),
        Ok(_) => {
            lock.release_owner()?;
            Ok(None)
        }
        Err(error) => {
            // Not to be kept by a process that does not know that it has it.
            lock.release_owner()?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::guests::Guests;

    /// A process was stopped with byte 1 in hand. The others go on without it soon, however busy the machine is: they have an
    /// application that waits, and peers.
    #[test]
    fn byte_1_is_not_tried_for_longer_where_there_is_much_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let open = || LockDescription::new(lock::open(&folder.path().join("lock"), &Guests::default()).unwrap());
        let stopped = open();
        assert!(stopped.bar_takeovers().unwrap());
        let family = Family { lock: Some(open()), ..Family::default() };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let began = Instant::now();
            let joined = family.join_takeover();
            let took = began.elapsed();
            done.store(true, Ordering::Relaxed);
            assert!(!joined.unwrap());
            assert!(took >= JOIN_WITHIN && took < Duration::from_secs(5), "{took:?}");
        });
        stopped.leave_takeover().unwrap();
        assert!(family.join_takeover().unwrap());
    }
}
