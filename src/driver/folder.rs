//! The folder of the control socket: an owner whose path was removed makes it again, and wakes for nothing else there.

use std::os::fd::AsFd;
use std::sync::Arc;

use log::{debug, error, warn};
use mio::Interest;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Driver, FOLDER};
use crate::protocol::predecessor;
use crate::status::Phase;
use crate::{control, listener};

impl Driver {
    /// Watches the folder for a removed control path. An owner without inotify does without.
    pub(super) fn watch_folder(&mut self) {
        let Some(folder) = self.settings.path.parent() else { return };
        let flags = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_CREATE;
        let watched = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .and_then(|inotify| inotify.add_watch(folder, flags).map(|_| inotify));
        match watched {
            Ok(inotify) => {
                let _ = self.poller.watch(inotify.as_fd(), FOLDER, Interest::READABLE);
                self.folder = Some(inotify);
            }
            Err(errno) => debug!("cannot watch {}: {errno}", folder.display()),
        }
        // It may have been removed before anybody watched.
        self.mend_path();
    }

    /// Something changed in the folder. A full queue of events counts as a change of our file.
    pub(super) fn folder_changed(&mut self) {
        let Some(inotify) = &self.folder else { return };
        let ours = self.settings.path.file_name();
        let mut changed = false;
        while let Ok(events) = inotify.read_events() {
            changed |= events.iter().any(|event| event.name.as_deref().is_none_or(|name| Some(name) == ours));
        }
        if changed {
            self.mend_path();
        }
    }

    /// Makes a removed control path again. Not while a successor is at it, who has the old control listener already: it
    /// looks for itself when it owns, and so does this process when the takeover comes to nothing.
    pub(super) fn mend_path(&mut self) {
        if !self.owns() || self.phase() == Phase::HandingOver {
            return;
        }
        let path = self.settings.path.clone();
        let now = listener::path_inode(&path);
        if now.is_some() && (now == self.family.inode || self.family.inode.is_none()) {
            return;
        }
        if now.is_some() {
            error!("{} was replaced by something else: remove that, and it is made again", path.display());
            return;
        }
        warn!("{} was removed: making it again", path.display());
        match control::mend(&path) {
            Ok(listener) => {
                self.stop_control();
                self.family.control = Some(Arc::new(listener));
                self.family.inode = listener::path_inode(&path);
                if let Some(predecessor) = &mut self.predecessor {
                    predecessor.set_path_inode(self.family.inode);
                    self.inventory.is_stale();
                }
                self.start_control();
                // The old one leads nowhere any more.
                self.owner(predecessor::Input::Changed);
            }
            Err(error) => error!("{error}"),
        }
    }
}
