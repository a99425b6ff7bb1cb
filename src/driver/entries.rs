//! The entries of this process as they change: claimed at the start, added and removed while it serves.

use std::os::fd::AsFd;
use std::sync::Arc;

use log::{info, warn};

use super::Driver;
use crate::error::{Error, Result};
use crate::listener;
use crate::protocol::predecessor;
use crate::status::Phase;
use crate::table::{Held, Outcome};

impl Driver {
    /// Whether entries may come and go now.
    ///
    /// # Errors
    /// [`Error::Frozen`] from an offer to the end of its takeover: what was announced is what travels.
    pub(crate) fn may_change(&self) -> Result<()> {
        let Some(predecessor) = &self.predecessor else { return Ok(()) };
        match self.phase() {
            Phase::Starting | Phase::Serving => Ok(()),
            phase => {
                Err(Error::Frozen { phase: phase.as_str(), who: predecessor.takeover().map(|(who, ..)| who.clone()) })
            }
        }
    }

    /// Whether the application is past its start.
    pub(crate) fn is_serving(&self) -> bool {
        self.predecessor.is_some() && self.phase() != Phase::Starting
    }

    /// Whether this process has joined a family that lived.
    pub(crate) fn has_inherited(&self) -> bool {
        self.successor.is_some()
    }

    /// Whether this process starts after others that have ended, maybe just now.
    pub(crate) fn follows_a_family_that_ended(&self) -> bool {
        !self.is_serving() && self.elder().is_none() && self.generation() > 1
    }

    /// Takes an entry in; where this process serves it listens at once, and the next takeover has it.
    ///
    /// # Errors
    /// Where it does not listen; then it is not taken in.
    pub(crate) fn insert(&mut self, mut held: Held, outcome: Outcome) -> Result<()> {
        self.enter()?;
        disown_foreign_path(&mut held, &outcome);
        let name = held.entry.name.clone();
        if self.is_serving() {
            let ready =
                if held.silent { listener::listen_on(Arc::make_mut(&mut held.entry), held.fd.as_fd()) } else { Ok(()) };
            if let Err(error) = ready {
                if let Some((path, inode)) = held.path() {
                    listener::remove(&path, inode);
                }
                return Err(Error::io(format!("listen on {name:?}"), error));
            }
            held.silent = false;
            info!("added {name:?} at {}", held.entry.address);
        }
        self.table.insert(held);
        self.table.report.entries.insert(name.clone(), outcome);
        if self.is_serving() {
            self.park(&name);
        }
        self.entries_changed()
    }

    /// Lets go of an entry. What the application holds of it lives on; its path goes once nobody can come back for it.
    ///
    /// # Errors
    /// [`Error::Frozen`]. `Ok(false)`: there is none of that name.
    pub(crate) fn remove(&mut self, name: &str) -> Result<bool> {
        self.enter()?;
        self.may_change()?;
        let Some(held) = self.table.remove(name) else { return Ok(false) };
        info!("removed {name:?} at {}", held.entry.address);
        self.unpark(name);
        if held.path().is_some() {
            self.dropped.push(held);
            self.remove_dropped();
        }
        self.entries_changed()?;
        Ok(true)
    }

    /// The next offer has as many entries as there are now, and those who watch are told.
    fn entries_changed(&mut self) -> Result<()> {
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.set_entries(self.table.len() as u32);
            self.inventory.is_stale();
        }
        self.owner(predecessor::Input::Changed);
        self.changed = true;
        self.leave()
    }
}

/// Forgets which file is at the path of an entry where that is not the family's: then nobody of it removes the file.
pub(super) fn disown_foreign_path(held: &mut Held, outcome: &Outcome) {
    let Some(path) = held.entry.path.as_deref().filter(|_| held.entry.path_inode.is_some()) else { return };
    let is_taken = || {
        let taken = listener::is_taken(path, held.fd.as_fd());
        if taken {
            let (name, path) = (&held.entry.name, String::from_utf8_lossy(path));
            warn!("{name:?} is not alone at {path}: another socket was bound there, and clients may find that one");
        }
        taken
    };
    if !outcome.has_path(is_taken) {
        Arc::make_mut(&mut held.entry).path_inode = None;
    }
}
