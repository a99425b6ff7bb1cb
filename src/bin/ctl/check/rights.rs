//! What an owner may do since it started, which a trial has to know: as whom it will listen again, and whether it could
//! offer another takeover after one that failed.
//!
//! It opens the lock file anew for each offer. One that has given up the right to do so can make one more, with what it had
//! opened before; whoever uses that up for a trial takes the next real takeover away.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The bit of `CAP_DAC_OVERRIDE` (capabilities(7)): no mode counts.
const DAC_OVERRIDE: u64 = 1 << 1;
/// To read and to write.
const BOTH: u32 = 0o6;

/// The rights of a process at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// The effective user.
    pub(crate) uid: u32,
    pub(crate) may_open_lock: bool,
}

impl Rights {
    /// Those of the owner of this control socket; `None` where they cannot be seen from here.
    pub(crate) fn of(pid: i32, socket: &Path) -> Option<Rights> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let file = std::fs::metadata(PathBuf::from(path)).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Rights::read(&status, &file)
    }

    /// By the text of `/proc/PID/status` (proc_pid_status(5)).
    fn read(status: &str, lock: &Metadata) -> Option<Rights> {
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        // In this order: real, effective, saved, and that of the file system.
        let number = |key: &str, at| line(key)?.split_whitespace().nth(at)?.parse::<u32>().ok();
        let (effective, uid, gid) = (number("Uid:", 1)?, number("Uid:", 3)?, number("Gid:", 3)?);
        let capabilities = u64::from_str_radix(line("CapEff:")?.trim(), 16).ok()?;
        let mut groups = line("Groups:")?.split_whitespace();
        let granted = if uid == lock.uid() {
            lock.mode() >> 6
        } else if gid == lock.gid() || groups.any(|group| group == lock.gid().to_string()) {
            lock.mode() >> 3
        } else {
            lock.mode()
        };
        let may_open_lock = capabilities & DAC_OVERRIDE != 0 || granted & BOTH == BOTH;
        Some(Rights { uid: effective, may_open_lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_may_open_what_its_user_or_its_capabilities_let_it_open() {
        let status = |uid: u32, capabilities: u64| {
            format!("Uid:\t0\t7\t0\t{uid}\nGid:\t0\t0\t0\t4711\nGroups:\t1 2\nCapEff:\t{capabilities:016x}\n")
        };
        let may = |status: &str, file: &Metadata| Rights::read(status, file).map(|rights| rights.may_open_lock);
        // Mode 0444, and of whoever runs this test.
        let file = std::fs::metadata("/proc/self/status").unwrap();
        assert_eq!(may(&status(file.uid(), 0), &file), Some(false));
        assert_eq!(may(&status(4711, DAC_OVERRIDE), &file), Some(true));
        let own = tempfile::NamedTempFile::new().unwrap().path().metadata().unwrap();
        assert_eq!(may(&status(own.uid(), 0), &own), Some(true));
        assert_eq!(may(&status(own.uid() + 1, 0), &own), Some(false));
        assert_eq!(Rights::read(&status(1, 0), &own).unwrap().uid, 7);
        assert_eq!(may("Uid:\t0\n", &own), None);
    }
}
