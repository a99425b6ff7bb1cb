//! Processes that hold what belongs to a family, seen from outside through `/proc`, and copies of their descriptors.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// One descriptor of another process.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    pub(crate) number: RawFd,
    /// What `/proc/PID/fd` says of it: `socket:[4711]`, `/memfd:NAME (deleted)`, a path.
    pub(crate) link: PathBuf,
    /// Device and inode, where they can be seen.
    pub(crate) file: Option<(u64, u64)>,
    /// It holds the family lease.
    pub(crate) leases: bool,
    /// It holds the owner lock.
    pub(crate) owns: bool,
}

/// Another process, by a pidfd that no reuse of numbers can fool.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// As in `/proc/PID/stat`: `T` is stopped, `t` traced, `D` in a system call that cannot be interrupted.
    pub(crate) state: char,
    pub(crate) pidfd: OwnedFd,
    pub(crate) descriptors: Vec<Foreign>,
}

impl Process {
    /// Looks at a process; `None` where it does not have this file open, or cannot be looked at.
    pub(crate) fn look(pid: u32, lock: (u64, u64)) -> io::Result<Option<Process>> {
        let pidfd = sys::open_pidfd(pid)?;
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let mut descriptors = Vec::new();
        for entry in std::fs::read_dir(folder.join("fd"))? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
            // It may be closed again by now.
            let Ok(link) = std::fs::read_link(entry.path()) else { continue };
            let file = std::fs::metadata(entry.path()).ok().map(|file| (file.dev(), file.ino()));
            let locks = if file == Some(lock) { locks(&folder, number) } else { String::new() };
            let holds = |kind: &str, range: &str| {
                locks.lines().any(|line| line.contains(kind) && line.contains(" WRITE ") && line.ends_with(range))
            };
            descriptors.push(Foreign {
                number,
                link,
                file,
                leases: holds(" FLOCK ", " 0 EOF"),
                owns: holds(" OFDLCK ", " 0 0"),
            });
        }
        let stat = std::fs::read_to_string(folder.join("stat"))?;
        // The name is in parentheses, and may hold anything.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let state = fields.next().and_then(|field| field.chars().next()).unwrap_or('?');
        let parent = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
        Ok(Some(Process { pid, parent, state, pidfd, descriptors }))
    }

    pub(crate) fn leases(&self) -> Option<&Foreign> {
        self.descriptors.iter().find(|foreign| foreign.leases)
    }

    pub(crate) fn owns(&self) -> bool {
        self.descriptors.iter().any(|foreign| foreign.owns)
    }

    /// The memfds of this name: an owner closes the last one when the next is there.
    pub(crate) fn memfds(&self, name: &str) -> impl Iterator<Item = &Foreign> {
        let wanted = PathBuf::from(format!("/memfd:{name} (deleted)"));
        self.descriptors.iter().filter(move |foreign| foreign.link == wanted)
    }

    /// A copy of one of its descriptors.
    ///
    /// # Errors
    /// `EPERM` without the right to trace it; `ENOSYS` before Linux 5.6; `EBADF` where it was closed meanwhile.
    pub(crate) fn copy(&self, foreign: &Foreign) -> io::Result<OwnedFd> {
        sys::copy_of(self.pidfd.as_fd(), foreign.number)
    }

    /// Ends it (pidfd_send_signal(2) with `SIGKILL`).
    pub(crate) fn kill(&self) -> io::Result<()> {
        sys::kill(self.pidfd.as_fd())
    }
}

/// The lines on locks of a descriptor (proc_pid_fdinfo(5)).
fn locks(folder: &Path, number: RawFd) -> String {
    let text = std::fs::read_to_string(folder.join("fdinfo").join(number.to_string())).unwrap_or_default();
    text.lines().filter(|line| line.starts_with("lock:")).map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Device and inode of a file.
pub(crate) fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
