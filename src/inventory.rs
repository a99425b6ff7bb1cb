//! What an owner has, left in a sealed memfd of its own: for a rescuer, when it can no longer be asked.
//!
//! Nobody but that process has the descriptor. A rescuer finds it by its name in `/proc/PID/fd`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::hold::Hold;
use crate::manifest::Entry;

/// The name of the memfd.
pub(crate) const NAME: &str = "heirloom-manifest";
/// The longest that is read, in bytes: a million entries and their names.
#[cfg(feature = "ctl")]
const MAX_LENGTH: u64 = 1 << 30;

/// The manifest of an owner and what belongs to its family.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inventory {
    /// What its application calls its version.
    #[serde(default)]
    pub(crate) app_version: String,
    /// `SO_COOKIE` of the control listener, and its backlog.
    pub(crate) control: u64,
    pub(crate) backlog: u32,
    /// Device and inode of the control path, as its maker recorded them.
    #[serde(default)]
    pub(crate) path_inode: Option<(u64, u64)>,
    /// Why its takeovers are refused, and what was left of that at `written_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<Hold>,
    /// The milliseconds of `CLOCK_MONOTONIC` when this was written: a rescuer is on the same machine.
    #[serde(default)]
    pub(crate) written_ms: u64,
    pub(crate) entries: Vec<Arc<Entry>>,
}

/// What can no longer be done to it: change, grow, shrink, or lose these seals (fcntl(2), `F_ADD_SEALS`).
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

impl Inventory {
    /// Writes it down. A reader sees all of it or, before the seal, nothing.
    pub(crate) fn write(&self) -> io::Result<OwnedFd> {
        let memfd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = io::BufWriter::new(File::from(memfd));
        rmp_serde::encode::write_named(&mut file, self).map_err(io::Error::other)?;
        file.flush()?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
        Ok(file.into())
    }

    /// The hold as it is `now_ms`, unless it is over.
    #[cfg(feature = "ctl")]
    pub(crate) fn hold_at(&self, now_ms: u64) -> Option<Hold> {
        let hold = self.hold.clone()?;
        let Some(left) = hold.left_ms else { return Some(hold) };
        let left = left.checked_sub(now_ms.saturating_sub(self.written_ms)).filter(|left| *left > 0)?;
        Some(Hold { left_ms: Some(left), ..hold })
    }

    /// Reads one that another process has written.
    ///
    /// # Errors
    /// `InvalidData` where it is not sealed, or not an inventory.
    #[cfg(feature = "ctl")]
    pub(crate) fn read(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<Inventory> {
        use std::os::unix::fs::FileExt;

        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let found = fcntl(fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
        if !found.is_ok_and(|found| found.contains(seals())) {
            return Err(invalid("it is not sealed"));
        }
        let file = File::from(fd.try_clone_to_owned()?);
        let length = file.metadata()?.len();
        if length > MAX_LENGTH {
            return Err(invalid("it is too long"));
        }
        // By position: the offset is shared with its owner.
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)?;
        crate::wire::decode_body("manifest", &bytes).map_err(|fault| invalid(&fault.to_string()))
    }
}

#[cfg(all(test, feature = "ctl"))]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::manifest::Kind;

    #[test]
    fn what_is_left_is_read_by_somebody_else_and_stays_as_it_is() {
        let entry = Entry {
            name: "web".to_owned(),
            kind: Kind::Raw,
            address: String::new(),
            requested: String::new(),
            path: Some(b"/run/x".to_vec()),
            path_inode: None,
            backlog: Some(7),
            file: None,
            socket: None,
            retired: false,
        };
        let inventory = Inventory {
            control: 3,
            backlog: 128,
            entries: std::iter::repeat_n(Arc::new(entry), 1000).collect(),
            ..Inventory::default()
        };
        let memfd = inventory.write().unwrap();
        for _ in 0..2 {
            let read = Inventory::read(memfd.as_fd()).unwrap();
            assert_eq!((read.control, read.entries), (3, inventory.entries.clone()));
        }
        assert!(File::from(memfd).write(b"x").is_err());
        assert_eq!(inventory.hold_at(0), None);
        let unsealed = memfd_create(NAME, MFdFlags::MFD_CLOEXEC).unwrap();
        assert_eq!(Inventory::read(unsealed.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_hold_ends_in_time_beyond_its_owner() {
        let hold = |left_ms| Some(Hold { left_ms, ..Hold::default() });
        let inventory = |left_ms| Inventory { hold: hold(left_ms), written_ms: 1000, ..Inventory::default() };
        assert_eq!(inventory(None).hold_at(u64::MAX), hold(None));
        assert_eq!(inventory(Some(500)).hold_at(1499), hold(Some(1)));
        assert_eq!(inventory(Some(500)).hold_at(1500), None);
        // Another clock, in a time namespace that is behind.
        assert_eq!(inventory(Some(500)).hold_at(0), hold(Some(500)));
    }
}
