//! The entries of a process: by name, with the one descriptor that application and handoff share.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::manifest::Entry;
use crate::shared::SharedFd;

/// Where an entry came from, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// Received from the predecessor and claimed.
    Adopted,
    /// Left in systemd's file descriptor store by a process that died without a successor, and claimed.
    Restored,
    /// Passed by systemd's socket activation, and claimed.
    Activated {
        /// What `LISTEN_FDNAMES` calls it.
        name: String,
    },
    /// Made by this process.
    Bound {
        /// Why it was not inherited.
        why: String,
    },
    /// Received, and not claimed: closed once this process owned. Or removed while it served.
    Dropped {
        /// Why.
        why: String,
    },
    /// Announced or asked for, and not there.
    Missing {
        /// Why.
        why: String,
    },
}

/// What became of the predecessor's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StateOutcome {
    /// It arrived whole.
    Inherited {
        /// What it is written in.
        schema: String,
        /// The version of that.
        version: u32,
        /// In bytes.
        length: u64,
    },
    /// The predecessor of a probation serves again, with its own state of its last release: what its successor changed
    /// since is lost.
    Stale {
        /// Why.
        why: String,
    },
    /// There is none that the application could go on with.
    Cold {
        /// Why.
        why: String,
    },
}

impl Outcome {
    /// Whether it is new to the family: made by this process, or from outside.
    pub(crate) fn is_new(&self) -> bool {
        matches!(self, Outcome::Bound { .. } | Outcome::Restored | Outcome::Activated { .. })
    }

    /// Whether the path of such an entry is the family's: not where a socket unit listens, nor where another program has
    /// bound its own while the socket was in the store.
    pub(crate) fn has_path(&self, is_taken: impl FnOnce() -> bool) -> bool {
        match self {
            Outcome::Activated { .. } => false,
            Outcome::Restored => !is_taken(),
            _ => true,
        }
    }
}

/// The outcome of each name of a start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// By name.
    pub entries: BTreeMap<String, Outcome>,
    /// What became of the predecessor's state; `None` where the application hands none on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateOutcome>,
}

impl Report {
    /// How many were received and claimed.
    pub(crate) fn adopted(&self) -> usize {
        self.entries.values().filter(|outcome| **outcome == Outcome::Adopted).count()
    }

    /// The names with an outcome for which this says so.
    pub(crate) fn names(&self, of: impl Fn(&Outcome) -> bool) -> Vec<String> {
        self.entries.iter().filter(|(_, outcome)| of(outcome)).map(|(name, _)| name.clone()).collect()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (name, outcome)) in self.entries.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            match outcome {
                Outcome::Adopted => write!(f, "{name} adopted")?,
                Outcome::Restored => write!(f, "{name} restored")?,
                Outcome::Activated { name: given } if given == name => write!(f, "{name} activated")?,
                Outcome::Activated { name: given } => write!(f, "{name} activated (as {given})")?,
                Outcome::Bound { why } => write!(f, "{name} bound ({why})")?,
                Outcome::Dropped { why } => write!(f, "{name} dropped ({why})")?,
                Outcome::Missing { why } => write!(f, "{name} missing ({why})")?,
            }
        }
        match &self.state {
            Some(StateOutcome::Inherited { schema, version, length }) => {
                write!(f, "; state {schema} version {version}, {length} bytes")
            }
            Some(StateOutcome::Stale { why }) => write!(f, "; state of the last release ({why})"),
            Some(StateOutcome::Cold { why }) => write!(f, "; no state ({why})"),
            None => Ok(()),
        }
    }
}

/// The one descriptor of an entry in this process.
#[derive(Clone, Debug)]
pub(crate) enum Descriptor {
    /// As it came or was made: nobody else has it.
    Plain(Arc<OwnedFd>),
    /// As the application has it, with its own type.
    Claimed(SharedFd),
}

impl Descriptor {
    /// A share in it, for an offer.
    pub(crate) fn share(&self) -> SharedFd {
        match self {
            Descriptor::Plain(fd) => fd.clone().into(),
            Descriptor::Claimed(fd) => fd.clone(),
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Descriptor::Plain(fd) => fd.as_fd(),
            Descriptor::Claimed(fd) => fd.as_fd(),
        }
    }
}

/// The name of a member of a `SO_REUSEPORT` group.
pub(crate) fn member(group: &str, index: usize) -> String {
    format!("{group}#{index}")
}

/// Which member of a group it is, by its name; 0 for what is none. Members join their group in this order.
pub(crate) fn index(name: &str) -> usize {
    name.rsplit_once('#').and_then(|(_, index)| index.parse().ok()).unwrap_or(0)
}

/// One entry of this process.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) entry: Arc<Entry>,
    pub(crate) fd: Descriptor,
    /// Its internet address, where it has one: what other names are compared with.
    pub(crate) inet: Option<SocketAddr>,
    /// Whether the application asked for it; what is not claimed is dropped at the commit.
    pub(crate) claimed: bool,
    /// Bound by this process and not yet listening.
    pub(crate) silent: bool,
    /// Held against the kernel since it arrived; what this process made needs none of that.
    pub(crate) checked: bool,
    /// It came in blocking mode.
    pub(crate) blocking: bool,
}

impl Held {
    pub(crate) fn new(entry: impl Into<Arc<Entry>>, fd: Descriptor) -> Held {
        let entry = entry.into();
        let inet = entry.socket.as_ref().and_then(|socket| socket.local.parse().ok());
        let claimed = matches!(fd, Descriptor::Claimed(_));
        let silent = entry.kind.listens() && !entry.socket.as_ref().is_some_and(|socket| socket.listening);
        Held { entry, fd, inet, claimed, silent, checked: true, blocking: false }
    }

    /// As it came, and nobody has looked at it.
    pub(crate) fn received(entry: Arc<Entry>, fd: Descriptor) -> Held {
        Held { checked: false, ..Held::new(entry, fd) }
    }

    /// Its path, and the inode that was bound there.
    pub(crate) fn path(&self) -> Option<(PathBuf, (u64, u64))> {
        use std::os::unix::ffi::OsStringExt;
        let path = self.entry.path.clone()?;
        Some((PathBuf::from(std::ffi::OsString::from_vec(path)), self.entry.path_inode?))
    }
}

/// All entries of this process.
#[derive(Debug, Default)]
pub(crate) struct Table {
    held: BTreeMap<String, Held>,
    pub(crate) report: Report,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Held> {
        self.held.get_mut(name)
    }

    /// Gives an inherited descriptor, which was looked at, to the application, with the type that it wants and without a
    /// second descriptor.
    ///
    /// # Errors
    /// `EMFILE`, where an offer that is under way shares the descriptor so that it has to be duplicated.
    pub(crate) fn adopt<T>(&mut self, name: &str, blocking: bool) -> io::Result<Option<Arc<T>>>
    where
        T: From<OwnedFd> + AsFd + Send + Sync + 'static,
    {
        let Some((name, mut held)) = self.held.remove_entry(name) else { return Ok(None) };
        let owned = match held.fd {
            Descriptor::Plain(fd) => Arc::try_unwrap(fd).map_err(Descriptor::Plain),
            claimed => Err(claimed),
        };
        let owned = match owned {
            Ok(owned) => owned,
            Err(shared) => match shared.as_fd().try_clone_to_owned() {
                Ok(owned) => owned,
                Err(error) => {
                    held.fd = shared;
                    self.held.insert(name, held);
                    return Err(error);
                }
            },
        };
        let typed = Arc::new(T::from(owned));
        held.fd = Descriptor::Claimed(typed.clone().into());
        held.claimed = true;
        (held.checked, held.blocking) = (true, blocking);
        self.report.entries.insert(name.clone(), Outcome::Adopted);
        self.held.insert(name, held);
        Ok(Some(typed))
    }

    pub(crate) fn insert(&mut self, held: Held) {
        self.held.insert(held.entry.name.clone(), held);
    }

    /// Takes an entry out, of which the report says that it was dropped.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Held> {
        let held = self.held.remove(name)?;
        self.report.entries.insert(name.to_owned(), Outcome::Dropped { why: "removed while serving".to_owned() });
        Some(held)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.held.values_mut()
    }

    /// Closes what the application never asked for, but gives back what has a path.
    pub(crate) fn drop_unclaimed(&mut self) -> Vec<Held> {
        let mut dropped = Vec::new();
        let report = &mut self.report;
        self.held.retain(|name, held| {
            if held.claimed {
                return true;
            }
            report.entries.insert(name.clone(), Outcome::Dropped { why: "nobody claimed it".to_owned() });
            if held.entry.path.is_some() {
                dropped.push(held.clone());
            }
            false
        });
        dropped
    }

    /// The paths of what this process bound and never listened on.
    pub(crate) fn own_paths(&self) -> Vec<(PathBuf, (u64, u64))> {
        let own = self
            .held
            .values()
            .filter(|held| matches!(self.report.entries.get(&held.entry.name), Some(Outcome::Bound { .. })));
        own.filter_map(Held::path).collect()
    }

    /// Every path that the family bound, with its inode.
    pub(crate) fn paths(&self) -> Vec<(PathBuf, (u64, u64))> {
        self.held.values().filter_map(Held::path).collect()
    }

    /// Closes everything. What the application holds of it lives on.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
    }
}
