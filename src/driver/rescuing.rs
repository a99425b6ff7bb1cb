//! How a process becomes the owner of what another had: by force.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Driver, Notice, Settings};
use crate::error::{Error, Result};
use crate::lock::lock_path;
use crate::rescue::Wreck;
use crate::table::{Descriptor, Held};
use crate::wake::Wake;

/// How long a process may take to die: one that writes a core, or is in a system call, takes its time.
const DEATH_WITHIN: Duration = Duration::from_secs(30);
/// The pause before another look at a lock, for which the kernel has no event.
const PAUSE: Duration = Duration::from_millis(5);

impl Driver {
    /// Ends whoever owns, and owns.
    ///
    /// # Errors
    /// [`Error::Superseded`] where a successor of the old owner was first: it serves. [`Error::Deadline`] where a process
    /// does not die.
    pub(crate) fn rescue(settings: Settings, wake: Arc<Wake>, wreck: Wreck) -> Result<Box<Driver>> {
        let mut driver = Driver::new(settings, wake)?;
        let path = lock_path(&driver.settings.path);
        driver.family.lease = Some(Arc::new(wreck.lease));
        driver.family.control = Some(Arc::new(wreck.control));
        driver.family.backlog = wreck.inventory.backlog;
        driver.family.inode = wreck.inventory.path_inode;
        for (entry, fd) in wreck.descriptors {
            driver.table.insert(Held::received(entry, Descriptor::Plain(Arc::new(fd))));
        }
        // Before the kill: a predecessor of the dead that still drains would take the service back.
        let before = driver.family.bar(&path).map_err(|error| Error::io("lock the lock file", error))?;
        let end = Instant::now() + DEATH_WITHIN;
        for process in &wreck.processes {
            info!("ending pid {}", process.pid);
            match process.kill() {
                Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => {
                    return Err(Error::io(format!("end pid {}", process.pid), error));
                }
                _ => {}
            }
        }
        for process in &wreck.processes {
            died(process.pidfd.as_fd(), end)?;
        }
        let generation = loop {
            if let Some(generation) = driver.family.seize()? {
                break generation;
            }
            // A successor of the dead may have had all that it needs.
            if Instant::now() >= end || driver.family.generation().is_ok_and(|now| now != before) {
                return Err(Error::Superseded);
            }
            let _ = poll(&mut [], PollTimeout::try_from(PAUSE).unwrap_or(PollTimeout::ZERO));
        };
        driver.become_owner(generation);
        driver.start_control();
        info!("starting: rescued {} entries, generation {generation}", driver.table.len());
        driver.notices.push_back(Notice::Started);
        driver.leave()?;
        Ok(driver)
    }
}

fn died(pidfd: std::os::fd::BorrowedFd<'_>, end: Instant) -> Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(Error::Deadline { waiting_for: "the death of the owner", after: DEATH_WITHIN }),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for the death of the owner", io::Error::from(errno))),
        }
    }
}
