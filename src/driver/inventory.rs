//! Leaves what this owner has where a rescuer finds it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use log::warn;

use super::{Driver, Key, monotonic};
use crate::inventory::Inventory;
use crate::status::Phase;
use crate::sys;

/// How many entries are written down in no time; with more of them, what the application waits for comes first.
const AT_ONCE: usize = 256;
/// How long after a change a longer list is written.
const SOON: Duration = Duration::from_millis(50);
/// How long after a write that failed it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// The inventory of the moment.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Open, and nothing else is done with it.
    memfd: Option<OwnedFd>,
    stale: bool,
    /// It could not be written, and that was said.
    failed: bool,
}

impl Kept {
    /// Something has changed.
    pub(super) fn is_stale(&mut self) {
        self.stale = true;
    }
}

impl Driver {
    /// Writes the inventory, where it has changed. With many entries that is left until the application has begun to serve,
    /// and done once for all that it claims in a row: each would write down all that came before it.
    pub(super) fn leave_inventory(&mut self) {
        if !self.inventory_is_due() {
            return;
        }
        if self.table.len() <= AT_ONCE {
            return self.write_inventory();
        }
        if self.poller.deadline(Key::Inventory).is_none() {
            self.poller.arm(Key::Inventory, if self.inventory.failed { AGAIN } else { SOON });
        }
    }

    /// The same, however long it is: its time has come, or what follows must not be said before it.
    pub(super) fn leave_inventory_now(&mut self) {
        if self.inventory_is_due() {
            self.write_inventory();
        }
    }

    fn inventory_is_due(&self) -> bool {
        self.inventory.stale && self.owns() && self.phase() != Phase::HandingOver
    }

    fn write_inventory(&mut self) {
        let Some(control) = self.family.control.as_ref().and_then(|control| sys::socket_cookie(control.as_fd()).ok())
        else {
            return;
        };
        let inventory = Inventory {
            app_version: self.identity().app_version,
            control,
            backlog: self.family.backlog,
            path_inode: self.family.inode,
            hold: self.hold(),
            written_ms: monotonic().as_millis() as u64,
            entries: self.table.iter().map(|held| held.entry.clone()).collect(),
        };
        match inventory.write() {
            // The one before is closed when this one is there.
            Ok(memfd) => {
                self.inventory.memfd = Some(memfd);
                self.inventory.stale = false;
                self.inventory.failed = false;
            }
            // A service without it serves as well, and tries again: soon after the next change, or in a while.
            Err(error) if !std::mem::replace(&mut self.inventory.failed, true) => {
                warn!("cannot leave a manifest for a rescue: {error}");
            }
            Err(_) => {}
        }
    }
}
