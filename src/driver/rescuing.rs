//! How a process becomes the owner of what another had: by force.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Driver, Notice, Settings, monotonic};
use crate::error::{Error, Result, Who};
use crate::lock::lock_path;
use crate::rescue::Wreck;
use crate::table::{Descriptor, Held};
use crate::wake::Wake;

/// How often a wait says that it goes on.
const SAY_EACH: Duration = Duration::from_secs(30);
/// The pause before another look at a lock, for which the kernel has no event.
const PAUSE: Duration = Duration::from_millis(5);

impl Driver {
    /// Ends whoever owns, and owns.
    ///
    /// # Errors
    /// [`Error::Superseded`] where a successor of the old owner was first; [`Error::Io`] where the first process cannot be
    /// ended. From its end on these are the last copies, and this waits as long as it takes.
    pub(crate) fn rescue(settings: Settings, wake: Arc<Wake>, wreck: Wreck) -> Result<Box<Driver>> {
        let mut driver = Driver::new(settings, wake)?;
        let path = lock_path(&driver.settings.path);
        driver.family.lease = Some(Arc::new(wreck.lease));
        driver.family.control = Some(Arc::new(wreck.control));
        driver.family.backlog = wreck.inventory.backlog;
        driver.family.inode = wreck.inventory.path_inode;
        driver.inherit_hold(wreck.inventory.hold_at(monotonic().as_millis() as u64));
        let dead = Who {
            pid: wreck.processes.first().map_or(0, |process| process.pid),
            app_version: wreck.inventory.app_version,
        };
        for (entry, fd) in wreck.descriptors {
            driver.table.insert(Held::received(entry, Descriptor::Plain(Arc::new(fd))));
        }
        // Before the kill: a predecessor of the dead that still drains would take the service back.
        let before = driver.family.bar(&path).map_err(|error| Error::io("lock the lock file", error))?;
        for (nth, process) in wreck.processes.iter().enumerate() {
            info!("ending pid {}", process.pid);
            match process.kill() {
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(error) if nth == 0 => return Err(Error::io(format!("end pid {}", process.pid), error)),
                // From the first one's end on these are the last copies: nothing ends this but that somebody owns.
                Err(error) => warn!("cannot end pid {}: {error}", process.pid),
                Ok(()) => {}
            }
        }
        for process in &wreck.processes {
            died(process.pid, process.pidfd.as_fd())?;
        }
        let patience = Instant::now() + driver.settings.deadlines.commit + driver.settings.deadlines.probe;
        let mut say = Instant::now() + SAY_EACH;
        let generation = loop {
            if let Some(generation) = driver.family.seize(Instant::now() >= patience)? {
                break generation;
            }
            // A successor of the dead may have had all that it needs.
            if driver.family.generation().is_ok_and(|now| now != before) {
                return Err(Error::Superseded);
            }
            if Instant::now() >= say {
                say = Instant::now() + SAY_EACH;
                warn!("the owner lock is still held: waiting, with the listeners");
            }
            let _ = poll(&mut [], PollTimeout::try_from(PAUSE).unwrap_or(PollTimeout::ZERO));
        };
        driver.become_owner(generation);
        driver.note_rescue(&dead);
        driver.start_control();
        info!("starting: rescued {} entries, generation {generation}", driver.table.len());
        driver.notices.push_back(Notice::Started);
        driver.leave()?;
        Ok(driver)
    }
}

/// Waits until a process that was killed is dead. One that sleeps in the kernel (state D) takes its time, and then needs
/// somebody to have its listeners: so this has no end, and says so.
fn died(pid: u32, pidfd: BorrowedFd<'_>) -> Result<()> {
    let timeout = PollTimeout::try_from(SAY_EACH).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout) {
            Ok(0) => warn!("pid {pid} was killed and is not dead yet: waiting, with the listeners"),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for the death of the owner", io::Error::from(errno))),
        }
    }
}
