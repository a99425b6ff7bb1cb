//! What can go wrong, and whether the old process still serves.
//!
//! Every error has a stable [`code`](Error::code) for programs, a message that names what was being done, and, where a
//! person can act on it, a [`hint`](Error::hint).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The process that a refusal names: who is at it instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Who {
    /// The pid that it gave for itself, in its own pid namespace. Text for people, never a target for a signal.
    #[serde(default)]
    pub pid: u32,
    /// The application version that it gave.
    #[serde(default)]
    pub app_version: String,
}

impl fmt::Display for Who {
    /// `pid 4711, version 2.1.0`: a pid of 0 is unknown, and a version need not be there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("pid unknown")?,
            pid => write!(f, "pid {pid}")?,
        }
        if !self.app_version.is_empty() {
            write!(f, ", version {}", self.app_version)?;
        }
        Ok(())
    }
}

/// Why an owner refused a takeover or a question, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Refusal {
    /// Stable and lower case: `busy`, `starting`, `stopping`, `version`, `stranger`, `releasing`, `draining`, `held`, ...
    pub code: String,
    /// One sentence for a person.
    #[serde(default)]
    pub message: String,
    /// The process that is in the way, where there is one.
    #[serde(default)]
    pub who: Option<Who>,
    /// For how long it has been at it, in milliseconds.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// When trying again makes sense, in milliseconds. `None`: not by waiting.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

/// A network namespace, by the two numbers that the kernel has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkNamespace {
    /// `SO_NETNS_COOKIE`: never used again while the machine runs.
    pub cookie: u64,
    /// The number that lsns(8) and `/proc/PID/ns/net` show; `None` where this process may not ask (`CAP_NET_ADMIN` over
    /// the namespace, unless it is its own).
    pub inode: Option<u64>,
}

impl fmt::Display for NetworkNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inode {
            Some(inode) => write!(f, "net:[{inode}] (cookie {})", self.cookie),
            None => write!(f, "with cookie {}", self.cookie),
        }
    }
}

impl Refusal {
    /// A refusal with a code and a sentence and nothing else.
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Refusal {
        Refusal { code: code.to_owned(), message: message.into(), ..Refusal::default() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(who) = &self.who {
            write!(f, " ({who}")?;
            if let Some(since) = self.since_ms {
                write!(f, ", for {}", seconds(Duration::from_millis(since)))?;
            }
            f.write_str(")")?;
        }
        if let Some(after) = self.retry_after_ms {
            write!(f, ", try again in {}", seconds(Duration::from_millis(after)))?;
        }
        Ok(())
    }
}

/// A duration as a person reads it: `1.5s`.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

fn list(pids: &[u32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What was found wrong with a path before anything was done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathProblem {
    /// Longer than `sun_path` holds (unix(7): 107 bytes and a NUL).
    TooLong {
        /// Its length in bytes, made absolute.
        bytes: usize,
    },
    /// It has no file name, or it starts with a NUL (an abstract address has no permissions).
    NotAFile,
    /// The folder is not there.
    NoFolder,
    /// Something is there that is not a socket.
    NotASocket,
    /// A symbolic link is there, and it might lead anywhere.
    Symlink,
    /// It belongs to another user.
    NotOurs {
        /// Its owner.
        uid: u32,
    },
    /// Others can write to the folder, so they could put their own socket there.
    SharedFolder {
        /// Its mode, the permission bits.
        mode: u32,
    },
    /// The folder belongs to another user, who could put his own socket there.
    FolderNotOurs {
        /// Its owner.
        uid: u32,
    },
    /// Somebody else can rename this folder, which is on the way to it, or change this link.
    UnsafeWay {
        /// The folder or the link.
        at: PathBuf,
    },
    /// This user may not open it.
    Denied,
    /// It has a second name: a hard link, perhaps to something precious.
    Linked,
    /// Something is there that is not a plain file, which a lock file is.
    NotPlain,
    /// A live process listens there that is not of this family: the lock file was replaced under it.
    Occupied,
}

/// What was found wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameProblem {
    /// No bytes at all.
    Empty,
    /// More than 255 bytes.
    TooLong,
    /// It holds a control character.
    Control,
    /// Claimed twice.
    Twice,
    /// The predecessor has it as another kind.
    OtherKind,
    /// The address overlaps that of another name.
    Overlaps {
        /// The other name.
        other: String,
    },
}

/// Everything that can go wrong. The library logs none of these: what is returned is for the caller to tell.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// [`Stopper::stop`](crate::Stopper::stop) was called before this process owned anything.
    Cancelled,
    /// The owner said no. It still serves.
    Refused(Refusal),
    /// The predecessor gave up on this takeover, with its reason. It still serves.
    GaveUp(Refusal),
    /// This process was overtaken while it was stopped or late: somebody else owns the service by now.
    Superseded,
    /// The connection to the predecessor broke, and the predecessor lives and serves.
    LinkLost,
    /// The process at the other end closed the connection of a control client, or is gone.
    HungUp,
    /// A wait came to its end. The predecessor, if there is one, still serves.
    Deadline {
        /// What was waited for.
        waiting_for: &'static str,
        /// For how long.
        after: Duration,
    },
    /// Nobody listens at the path.
    Nobody {
        /// The control socket.
        path: PathBuf,
    },
    /// Some process holds copies of the family's descriptors, but nobody owns or answers: a child that was forked
    /// without `exec`, or a process that is stopped.
    Orphaned {
        /// The processes that hold the lock file open, where `/proc` tells.
        pids: Vec<u32>,
    },
    /// An owner holds the service's lock and does not answer: it is stopped, or its event loop does not run.
    Unresponsive {
        /// The processes that hold the lock file open, where `/proc` tells.
        pids: Vec<u32>,
        /// For how long an answer was waited for.
        after: Duration,
    },
    /// The process at the other end runs as a user that is not allowed.
    Stranger {
        /// Its user id, 65534 where it has none in this user namespace.
        uid: u32,
    },
    /// The control path cannot be used as it is.
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: PathProblem,
    },
    /// A name cannot be used.
    Name {
        /// Which.
        name: String,
        /// Why.
        problem: NameProblem,
    },
    /// A descriptor is not what the manifest says.
    Mismatch {
        /// The entry.
        name: String,
        /// Which check.
        check: &'static str,
        /// What the manifest says.
        expected: String,
        /// What the kernel says.
        found: String,
    },
    /// The listener lives in another network namespace: it would go deaf, without any error, when that one ends.
    ForeignNamespace {
        /// The entry.
        name: String,
        /// The namespace of the descriptor.
        theirs: NetworkNamespace,
        /// The namespace of this process.
        ours: NetworkNamespace,
    },
    /// Too little room for the descriptors under `RLIMIT_NOFILE`.
    Room {
        /// How many are needed.
        needed: u64,
        /// How many more may be opened.
        room: u64,
    },
    /// Entries cannot come or go now: what was offered to a successor is what travels.
    Frozen {
        /// The [`Phase`](crate::Phase) of this process, in a word.
        phase: &'static str,
        /// Who takes over.
        who: Option<Who>,
    },
    /// The peer broke the protocol.
    Misbehaved(String),
    /// A call in a forked child: it shares the lock with its parent and must not act as the owner.
    Forked,
    /// This system is not Linux: the crate compiles, and no start succeeds.
    Unsupported,
    /// A system call failed.
    Io {
        /// What was being done, verb and object.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Wraps what the kernel said with what was being done.
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Io { doing: doing.into(), source: source.into() }
    }

    /// Says what is wrong with a path.
    pub(crate) fn path(path: &Path, problem: PathProblem) -> Error {
        Error::Path { path: path.to_owned(), problem }
    }

    /// Says what is wrong with a name.
    pub(crate) fn name(name: &str, problem: NameProblem) -> Error {
        Error::Name { name: name.to_owned(), problem }
    }

    /// Whether the one thing wrong is that too many files are open at the moment, here or in the whole system: no reason
    /// to end a service for those who are in it. Wait a little, then accept again.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        let Error::Io { source, .. } = self else { return false };
        matches!(source.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
    }

    /// A stable word for programs. That of a refusal is the owner's own: those are in [`protocol`](crate::protocol#codes).
    ///
    /// | code | error |
    /// |---|---|
    /// | `cancelled` | [`Cancelled`](Error::Cancelled) |
    /// | `superseded` | [`Superseded`](Error::Superseded) |
    /// | `link-lost` | [`LinkLost`](Error::LinkLost) |
    /// | `hung-up` | [`HungUp`](Error::HungUp) |
    /// | `deadline` | [`Deadline`](Error::Deadline) |
    /// | `nobody` | [`Nobody`](Error::Nobody) |
    /// | `orphaned` | [`Orphaned`](Error::Orphaned) |
    /// | `unresponsive` | [`Unresponsive`](Error::Unresponsive) |
    /// | `stranger` | [`Stranger`](Error::Stranger) |
    /// | `path-too-long`, `path-not-a-file`, `no-folder` | [`Path`](Error::Path): the path itself |
    /// | `not-a-socket`, `symlink`, `not-ours`, `not-a-plain-file`, `linked` | [`Path`](Error::Path): what is there |
    /// | `unsafe-folder`, `denied`, `occupied` | [`Path`](Error::Path): who else is there |
    /// | `unsupported` | [`Unsupported`](Error::Unsupported) |
    /// | `name-twice`, `other-kind`, `overlap`, `bad-name` | [`Name`](Error::Name) |
    /// | `mismatch` | [`Mismatch`](Error::Mismatch) |
    /// | `foreign-namespace` | [`ForeignNamespace`](Error::ForeignNamespace) |
    /// | `no-room` | [`Room`](Error::Room) |
    /// | `protocol` | [`Misbehaved`](Error::Misbehaved) |
    /// | `forked` | [`Forked`](Error::Forked) |
    /// | `frozen` | [`Frozen`](Error::Frozen) |
    /// | `io` | [`Io`](Error::Io) |
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Error::Cancelled => "cancelled",
            Error::Refused(refusal) | Error::GaveUp(refusal) => &refusal.code,
            Error::Superseded => "superseded",
            Error::LinkLost => "link-lost",
            Error::HungUp => "hung-up",
            Error::Deadline { .. } => "deadline",
            Error::Nobody { .. } => "nobody",
            Error::Orphaned { .. } => "orphaned",
            Error::Unresponsive { .. } => "unresponsive",
            Error::Stranger { .. } => "stranger",
            Error::Path { problem, .. } => match problem {
                PathProblem::TooLong { .. } => "path-too-long",
                PathProblem::NotAFile => "path-not-a-file",
                PathProblem::NoFolder => "no-folder",
                PathProblem::NotASocket => "not-a-socket",
                PathProblem::Symlink => "symlink",
                PathProblem::NotOurs { .. } => "not-ours",
                PathProblem::SharedFolder { .. }
                | PathProblem::FolderNotOurs { .. }
                | PathProblem::UnsafeWay { .. } => "unsafe-folder",
                PathProblem::Denied => "denied",
                PathProblem::Linked => "linked",
                PathProblem::NotPlain => "not-a-plain-file",
                PathProblem::Occupied => "occupied",
            },
            Error::Name { problem, .. } => match problem {
                NameProblem::Twice => "name-twice",
                NameProblem::OtherKind => "other-kind",
                NameProblem::Overlaps { .. } => "overlap",
                NameProblem::Empty | NameProblem::TooLong | NameProblem::Control => "bad-name",
            },
            Error::Mismatch { .. } => "mismatch",
            Error::ForeignNamespace { .. } => "foreign-namespace",
            Error::Room { .. } => "no-room",
            Error::Frozen { .. } => "frozen",
            Error::Misbehaved(_) => "protocol",
            Error::Forked => "forked",
            Error::Unsupported => "unsupported",
            Error::Io { .. } => "io",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Refused(refusal) | Error::GaveUp(refusal) => match (refusal.code.as_str(), refusal.retry_after_ms) {
                ("held", after) => {
                    let after = after.map(|ms| format!(", or try again in {}", seconds(Duration::from_millis(ms))));
                    format!("lift the hold (ctl hold --lift){}", after.unwrap_or_default())
                }
                ("stopping", _) => "the service is ending: start again, as the first".to_owned(),
                ("shortage" | "crowded", _) => {
                    "raise the limit on open files (ulimit -n) of the process that serves, then try again".to_owned()
                }
                ("io", _) => "mend that where the process that serves runs, then try again".to_owned(),
                ("stranger", _) => "run as the same user, or let the owner allow this uid or gid".to_owned(),
                ("no-drain", _) => "ctl drain status shows who drains".to_owned(),
                ("no-probation", _) => {
                    "a takeover has one where its successor asks for it, or ctl upgrade --probation does".to_owned()
                }
                ("holders", _) => "end one of them, or start this one in their place (ctl keep --replace)".to_owned(),
                (_, Some(after)) => format!("try again in {}", seconds(Duration::from_millis(after))),
                _ => return None,
            },
            Error::Deadline {
                waiting_for: "the owner" | "the owner to accept" | "a status" | "an answer of the owner",
                ..
            } => "look at that process: it may be stopped (state T in ps; kill -CONT continues it) or busy; ctl rescue takes \
                  the service from one that does not come back"
                .to_owned(),
            Error::Superseded => "start again: the service has a new owner to take over from".to_owned(),
            Error::LinkLost => "start again; the predecessor's log says why it closed the connection".to_owned(),
            Error::Nobody { .. } => "start the service, or check --socket and HEIRLOOM_SOCKET".to_owned(),
            Error::Orphaned { pids } if pids.is_empty() => "end the process that holds the lock file open".to_owned(),
            Error::Orphaned { .. } => {
                "end or continue these processes, then start again; or ctl rescue, to keep its listeners".to_owned()
            }
            Error::Unresponsive { .. } => {
                "look at that process: continue it if it is stopped (kill -CONT), or end it and start again".to_owned()
            }
            Error::Stranger { .. } => "allow this uid on both sides, or run both as the same user".to_owned(),
            Error::Path { problem, path } => match problem {
                PathProblem::TooLong { .. } => "use a path of at most 107 bytes".to_owned(),
                PathProblem::NoFolder => {
                    format!("mkdir -m 700 {}", path.parent().unwrap_or(Path::new("/")).display())
                }
                PathProblem::SharedFolder { .. } => {
                    "use a folder that only its owner can write to, mode 700 or 755".to_owned()
                }
                PathProblem::FolderNotOurs { .. } => {
                    "use a folder of this user or of root, or let its owner take part (allow_uid)".to_owned()
                }
                PathProblem::UnsafeWay { at } => {
                    format!("chmod go-w {0}, or chown it to this user or to root, or use another folder", at.display())
                }
                PathProblem::Denied => {
                    "run as the user that serves, or let the owner allow this uid or gid (allow_uid, allow_gid)"
                        .to_owned()
                }
                PathProblem::NotASocket
                | PathProblem::Symlink
                | PathProblem::NotOurs { .. }
                | PathProblem::Linked
                | PathProblem::NotPlain => "check the path; if it is right, move away what is there".to_owned(),
                PathProblem::Occupied => {
                    "the lock file was removed while its owner lives: stop that process first".to_owned()
                }
                _ => return None,
            },
            Error::ForeignNamespace { .. } => {
                "let both share a network namespace; or claim it under another name, which binds it anew in this one; \
                 or take it as it is (allow_foreign_network_namespace)"
                    .to_owned()
            }
            Error::Room { .. } => "raise the limit on open files (ulimit -Hn) of the new process".to_owned(),
            Error::Name { name, problem: NameProblem::Overlaps { other } } if name == other => {
                "change the address under another name, or stop the service first".to_owned()
            }
            Error::Name { problem: NameProblem::Overlaps { .. }, .. } => {
                "give both names different addresses".to_owned()
            }
            Error::Frozen { who: Some(_), .. } => {
                "change them after the takeover: Event::Resume tells where it came to nothing".to_owned()
            }
            Error::Forked => "only the process that called start may use it; forked children must exec".to_owned(),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another program, not of this family, listens there: `ss -ltnp` names it".to_owned()
            }
            Error::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw)? {
                Errno::EMFILE => "raise the limit on open files (ulimit -n) of this process".to_owned(),
                Errno::ENFILE => "the whole system has too many files open (fs.file-max)".to_owned(),
                Errno::ENOSPC | Errno::EDQUOT => "make room on that filesystem, then start again".to_owned(),
                Errno::EROFS => "use a folder on a filesystem that can be written to".to_owned(),
                Errno::EACCES | Errno::EPERM => "run as the user that owns it, or give this one the right".to_owned(),
                Errno::ENOMEM | Errno::ENOBUFS => "the kernel has no memory for this: try again".to_owned(),
                _ => return None,
            },
            _ => return None,
        };
        Some(hint)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Cancelled => f.write_str("cancelled before this process owned the service"),
            Error::Refused(refusal) => write!(f, "the owner refused: {refusal}; it still owns the service"),
            Error::GaveUp(refusal) if refusal.code == "stopping" => {
                write!(f, "the predecessor gave up: {refusal}, without a successor")
            }
            Error::GaveUp(refusal) => write!(f, "the predecessor gave up: {refusal}; it still owns the service"),
            Error::Superseded => f.write_str("another process took the service over first"),
            Error::HungUp => f.write_str("the process at the control socket closed the connection"),
            Error::LinkLost => f.write_str("the connection to the predecessor broke while it lives; it still serves"),
            Error::Deadline { waiting_for, after } => {
                write!(f, "waited {} for {waiting_for} in vain", seconds(*after))
            }
            Error::Nobody { path } => write!(f, "nobody listens at {}", path.display()),
            Error::Orphaned { pids } if pids.is_empty() => {
                f.write_str("somebody holds the family's descriptors, but nobody owns the service or answers")
            }
            Error::Orphaned { pids } => {
                write!(f, "nobody owns the service or answers, but its descriptors are held by pid {}", list(pids))
            }
            Error::Unresponsive { pids, after } => {
                write!(f, "the owner did not answer for {}", seconds(*after))?;
                if !pids.is_empty() {
                    write!(f, " (the lock file is held by pid {})", list(pids))?;
                }
                Ok(())
            }
            Error::Stranger { uid } => write!(f, "the process at the other end runs as uid {uid}, who is not allowed"),
            Error::Path { path, problem } => write!(f, "cannot use {}: {problem}", path.display()),
            Error::Name { name, problem: NameProblem::Overlaps { other } } if name == other => {
                write!(
                    f,
                    "cannot use the name {name:?}: its new address overlaps the one where the predecessor listens"
                )
            }
            Error::Name { name, problem } => write!(f, "cannot use the name {name:?}: {problem}"),
            Error::Mismatch { name, check, expected, found } => write!(
                f,
                "the descriptor of {name:?} is not what the manifest says: {check} should be {expected}, is {found}"
            ),
            Error::ForeignNamespace { name, theirs, ours } => write!(
                f,
                "{name:?} lives in the network namespace {theirs}, and this process in {ours}: it would go deaf, without \
                 any error, when that one ends"
            ),
            Error::Room { needed, room } => {
                write!(f, "{needed} descriptors are needed, and the limit on open files leaves room for {room}")
            }
            Error::Frozen { phase, who } => {
                write!(f, "entries cannot change while this process is {phase}")?;
                match who {
                    Some(who) => write!(f, " to pid {}", who.pid),
                    None => Ok(()),
                }
            }
            Error::Misbehaved(what) => write!(f, "the peer broke the protocol: {what}"),
            Error::Unsupported => f.write_str("services are handed over on Linux alone"),
            Error::Forked => f.write_str("called in a forked child of the process that holds the handoff"),
            Error::Io { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl fmt::Display for PathProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathProblem::TooLong { bytes } => write!(f, "{bytes} bytes, and a socket's path holds 107"),
            PathProblem::NotAFile => f.write_str("not the name of a file"),
            PathProblem::NoFolder => f.write_str("its folder does not exist"),
            PathProblem::NotASocket => f.write_str("something that is not a socket is there"),
            PathProblem::Symlink => f.write_str("a symbolic link is there"),
            PathProblem::NotOurs { uid } => write!(f, "it belongs to uid {uid}"),
            PathProblem::SharedFolder { mode } => write!(f, "others can write to its folder (mode {mode:o})"),
            PathProblem::FolderNotOurs { uid } => write!(f, "its folder belongs to uid {uid}"),
            PathProblem::UnsafeWay { at } => write!(f, "others can put something else in place of {}", at.display()),
            PathProblem::Denied => f.write_str("permission denied"),
            PathProblem::Linked => f.write_str("a file with a second name (a hard link) is there"),
            PathProblem::NotPlain => f.write_str("something that is not a plain file is there"),
            PathProblem::Occupied => f.write_str("a live process that is not of this family listens there"),
        }
    }
}

impl fmt::Display for NameProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameProblem::Empty => f.write_str("it is empty"),
            NameProblem::TooLong => f.write_str("it is longer than 255 bytes"),
            NameProblem::Control => f.write_str("it holds a control character"),
            NameProblem::Twice => f.write_str("it is already in use"),
            NameProblem::OtherKind => f.write_str("the predecessor has it as another kind"),
            NameProblem::Overlaps { other } => write!(f, "its address overlaps that of {other:?}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    /// Programs match on these, so each is written down, and none that does not exist.
    #[test]
    fn every_code_is_in_the_table() {
        let text = include_str!("error.rs");
        let (before, after) = text.split_once("pub fn code(&self) -> &str {").unwrap();
        let table = before.rsplit_once("/// | code | error |").unwrap().1;
        let words = |text: &str, quote| text.split(quote).skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let cells = table.lines().filter_map(|line| line.trim().strip_prefix("/// | `")?.split(" | ").next());
        let mut listed: Vec<String> = cells.flat_map(|cell| words(&format!("`{cell}"), '`')).collect();
        let mut used = words(after.split_once("pub fn hint(").unwrap().0, '"');
        listed.sort();
        used.sort();
        assert!(used.len() > 20);
        assert_eq!(listed, used);
    }
}
