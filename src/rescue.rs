//! The last resort for a service whose owner is stopped or wedged: its descriptors are taken out of it, it is ended, and
//! this process owns.
//!
//! Everything is copied and checked first ([`Wreck::find`], pidfd_getfd(2)), and until [`Handoff::rescue`] nothing is
//! changed. From the kill to the moment at which somebody takes over, this process has the only copies: should it die,
//! the listeners end with it, as with any owner.
//!
//! [`Handoff::rescue`]: crate::Handoff::rescue

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};
use crate::inventory::{self, Inventory};
use crate::listener::{self, Tell};
use crate::lock::{self, lock_path};
use crate::manifest::Entry;
use crate::namespace::{self, own_network_namespace};
use crate::wreck::{self, Foreign, Process};
use crate::{control, sys};

/// A process that will be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Victim {
    /// Its pid.
    pub pid: u32,
    /// Its state, as in `/proc/PID/stat`: `T` is stopped, `t` traced, `D` in a system call that cannot be interrupted,
    /// `S` asleep, `R` running.
    pub state: char,
}

/// What is left of an owner, as copies: whoever drops this has changed nothing.
#[derive(Debug)]
pub struct Wreck {
    pub(crate) source: Victim,
    pub(crate) processes: Vec<Process>,
    pub(crate) lease: File,
    pub(crate) control: UnixListener,
    pub(crate) inventory: Inventory,
    pub(crate) descriptors: Vec<(Arc<Entry>, OwnedFd)>,
}

impl Wreck {
    /// Finds who has the service at this path, takes copies of all that it has, and checks each against its manifest as
    /// a successor would. Where nobody owns, what a child or a stopped process still holds is taken.
    ///
    /// It does not ask whether the owner is well: that is for the caller.
    ///
    /// # Errors
    /// [`Error::Nobody`] where no process that can be seen has anything of it; [`Error::Io`] where the kernel does not
    /// give a copy (`EPERM`: another user, or Yama; `ENOSYS`: before Linux 5.6); [`Error::Misbehaved`] where the owner
    /// left no manifest, or not all that it names; [`Error::Mismatch`], [`Error::ForeignNamespace`].
    pub fn find(path: impl AsRef<Path>) -> Result<Wreck> {
        let path = control::resolve(path.as_ref())?;
        let lock_file = lock::open_existing(&lock_path(&path)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Nobody { path: path.clone() },
            _ => Error::io(format!("open {}", lock_path(&path).display()), error),
        })?;
        let lock = wreck::identity(&lock_file).map_err(|error| Error::io("look at the lock file", error))?;
        let mut processes = Vec::new();
        for pid in lock::holders(&lock_file) {
            // Gone meanwhile, or not this user's.
            if let Ok(Some(process)) = Process::look(pid, lock) {
                processes.push(process);
            }
        }
        // A forked child shares the lock with its parent: with one of them alive it is never free.
        let owned = processes.iter().any(Process::owns);
        let useful = |process: &Process| {
            process.leases().is_some() && process.memfds(inventory::NAME).next().is_some() && (!owned || process.owns())
        };
        let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
        let source = processes
            .iter()
            .filter(|process| useful(process))
            .min_by_key(|process| pids.contains(&process.parent))
            .ok_or_else(|| match processes.is_empty() {
                true => Error::Nobody { path: path.clone() },
                false => Error::Misbehaved(format!("none of {pids:?} has left a manifest: an older version, perhaps")),
            })?;
        let (lease, control, inventory, descriptors) = copy(source)?;
        let victim = |process: &Process| Victim { pid: process.pid, state: process.state };
        let source = victim(source);
        processes.retain(Process::owns);
        Ok(Wreck { source, processes, lease, control, inventory, descriptors })
    }

    /// Whose descriptors these are copies of.
    #[must_use]
    pub fn source(&self) -> &Victim {
        &self.source
    }

    /// What the application of that process calls its version.
    #[must_use]
    pub fn app_version(&self) -> &str {
        &self.inventory.app_version
    }

    /// The processes that a rescue ends: those that hold the owner lock. None where nobody owns.
    pub fn victims(&self) -> impl Iterator<Item = Victim> {
        self.processes.iter().map(|process| Victim { pid: process.pid, state: process.state })
    }

    /// What was found and checked.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.descriptors.iter().map(|(entry, _)| &**entry)
    }
}

type Copies = (File, UnixListener, Inventory, Vec<(Arc<Entry>, OwnedFd)>);

/// Copies of everything that makes an owner.
fn copy(source: &Process) -> Result<Copies> {
    // As a successor does: there may be many.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let taking = |error| Error::io(format!("take a descriptor of pid {}", source.pid), error);
    let lease = source.leases().ok_or_else(|| taking(io::ErrorKind::NotFound.into()))?;
    let lease = File::from(source.copy(lease).map_err(taking)?);
    let mut read = Err(io::ErrorKind::NotFound.into());
    for memfd in source.memfds(inventory::NAME) {
        read = source.copy(memfd).and_then(|memfd| Inventory::read(memfd.as_fd()));
    }
    let inventory = read.map_err(|error| Error::io(format!("read the manifest of pid {}", source.pid), error))?;
    // How many entries a socket stands for: one, as a rule.
    let mut uses: HashMap<u64, usize> = HashMap::new();
    for socket in inventory.entries.iter().filter_map(|entry| entry.socket.as_ref()) {
        *uses.entry(socket.cookie).or_default() += 1;
    }
    let (mut control, mut sockets) = (None, HashMap::new());
    for foreign in source.descriptors.iter().filter(|foreign| foreign.link.to_string_lossy().starts_with("socket:")) {
        let socket = match source.copy(foreign) {
            Ok(socket) => socket,
            // It was closed since.
            Err(error) if error.raw_os_error() == Some(nix::libc::EBADF) => continue,
            Err(error) => return Err(taking(error)),
        };
        let Ok(cookie) = sys::socket_cookie(socket.as_fd()) else { continue };
        if cookie == inventory.control {
            control.get_or_insert(socket);
        } else if uses.contains_key(&cookie) {
            sockets.entry(cookie).or_insert(socket);
        }
    }
    let missing = |name: &str| Error::Misbehaved(format!("pid {} does not have {name} any more", source.pid));
    let control = control.ok_or_else(|| missing("the control listener"))?;
    let namespace = own_network_namespace();
    let mut descriptors = Vec::with_capacity(inventory.entries.len());
    for entry in &inventory.entries {
        let lost = || missing(&format!("{:?}", entry.name));
        let fd = match &entry.socket {
            Some(socket) => {
                let left = uses.get_mut(&socket.cookie).map_or(0, |left| {
                    *left -= 1;
                    *left
                });
                if left > 0 {
                    sockets.get(&socket.cookie).ok_or_else(lost)?.try_clone().map_err(taking)?
                } else {
                    sockets.remove(&socket.cookie).ok_or_else(lost)?
                }
            }
            None => {
                let same =
                    |foreign: &&Foreign| entry.file.is_some_and(|file| foreign.file == Some((file.device, file.inode)));
                source.copy(source.descriptors.iter().find(same).ok_or_else(lost)?).map_err(taking)?
            }
        };
        let looking = |error| Error::io(format!("look at {:?}", entry.name), error);
        let failed = listener::examine(entry, fd.as_fd(), namespace, Tell::Failed).map_err(looking)?;
        if let Some(check) = failed.into_iter().find(|check| check.check != "non-blocking") {
            let (name, expected, found) = (entry.name.clone(), check.expected, check.found);
            return Err(match check.check {
                "network-namespace" => Error::ForeignNamespace {
                    name,
                    ours: namespace::ours(expected.parse().unwrap_or_default()),
                    theirs: namespace::of(fd.as_fd(), found.parse().unwrap_or_default()),
                },
                check => Error::Mismatch { name, check, expected, found },
            });
        }
        descriptors.push((entry.clone(), fd));
    }
    Ok((lease, control.into(), inventory, descriptors))
}
