//! Leaves what this owner has where a rescuer finds it.

use std::os::fd::{AsFd, OwnedFd};

use log::warn;

use super::Driver;
use crate::inventory::Inventory;
use crate::status::Phase;
use crate::sys;

/// How many entries are written down in no time; with more of them, what the application waits for comes first.
const AT_ONCE: usize = 256;

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
    /// Writes the inventory at the end of a call from outside; `true`: not yet. With many entries that is left to the next
    /// turn, once for all that the application claims in a row: each would write down all that came before it.
    pub(super) fn leave_small_inventory(&mut self) -> bool {
        if self.table.len() > AT_ONCE { self.inventory_is_due() } else { self.leave_inventory() }
    }

    fn inventory_is_due(&self) -> bool {
        self.inventory.stale && self.owns() && self.phase() != Phase::HandingOver
    }

    /// Writes the inventory, where it has changed; `true`: not yet.
    pub(super) fn leave_inventory(&mut self) -> bool {
        if !self.inventory_is_due() {
            return false;
        }
        if !self.notices.is_empty() && self.table.len() > AT_ONCE {
            return true;
        }
        let Some(control) = self.family.control.as_ref().and_then(|control| sys::socket_cookie(control.as_fd()).ok())
        else {
            return false;
        };
        let inventory = Inventory {
            app_version: self.identity().app_version,
            control,
            backlog: self.family.backlog,
            path_inode: self.family.inode,
            entries: self.table.iter().map(|held| held.entry.clone()).collect(),
        };
        match inventory.write() {
            // The one before is closed when this one is there.
            Ok(memfd) => {
                self.inventory.memfd = Some(memfd);
                self.inventory.stale = false;
                self.inventory.failed = false;
            }
            // A service without it serves as well, and tries again when something else happens.
            Err(error) if !std::mem::replace(&mut self.inventory.failed, true) => {
                warn!("cannot leave a manifest for a rescue: {error}");
            }
            Err(_) => {}
        }
        false
    }
}
