//! The users and groups that a service lets in beside its own: who they are, and the access list that opens a file to
//! them and to nobody else.

use std::io;
use std::os::fd::BorrowedFd;

use nix::libc::{EINVAL, EOPNOTSUPP};

use crate::sys;

/// What an unmapped user or group reads as (user_namespaces(7)), and so does everybody's `nobody`: never a friend.
const OVERFLOW_ID: u32 = 65534;
/// The version of a binary access list, `POSIX_ACL_XATTR_VERSION` of linux/posix_acl_xattr.h.
const VERSION: u32 = 2;
/// The id of an entry that names nobody.
const NOBODY_NAMED: u32 = u32::MAX;
const READ_AND_WRITE: u16 = 6;

/// Users and groups, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guests {
    pub(crate) uids: Vec<u32>,
    pub(crate) gids: Vec<u32>,
}

impl Guests {
    /// Whether this user may: root, this process's own, or one on the list.
    pub(crate) fn admit_user(&self, uid: u32) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        uid == 0 || (uid != OVERFLOW_ID && (uid == own || self.uids.contains(&uid)))
    }

    /// Whether this group is on the list.
    pub(crate) fn has_group(&self, gid: u32) -> bool {
        gid != OVERFLOW_ID && self.gids.contains(&gid)
    }

    /// Whether a process of this user, in these groups, may.
    pub(crate) fn admit(&self, uid: u32, groups: &[u32]) -> bool {
        self.admit_user(uid) || groups.iter().any(|gid| self.has_group(*gid))
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// Opens a file of this user to himself and to the guests, and to nobody else. `false`: there are guests, and this
    /// filesystem knows no access lists; the file is open to its owner alone then.
    pub(crate) fn open(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        if !self.is_empty() {
            match sys::set_access_list(file, &self.access_list()) {
                Ok(()) => return Ok(true),
                // No access lists here, or a user that this user namespace has no number for.
                Err(error) if matches!(error.raw_os_error(), Some(EOPNOTSUPP | EINVAL)) => {}
                Err(error) => return Err(error),
            }
        }
        if nix::sys::stat::fstat(file)?.st_mode & 0o7777 != 0o600 {
            // Empties the mask of an older list, too: whoever was on that one is out.
            sys::set_mode(file, 0o600)?;
        }
        Ok(self.is_empty())
    }

    /// acl(5) in its binary form: entries in the order of their tags, those of one tag by number.
    fn access_list(&self) -> Vec<u8> {
        const OWNER: u16 = 0x01;
        const USER: u16 = 0x02;
        const OWNING_GROUP: u16 = 0x04;
        const GROUP: u16 = 0x08;
        const MASK: u16 = 0x10;
        const OTHERS: u16 = 0x20;
        let sorted = |ids: &[u32]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let mut entries = vec![(OWNER, READ_AND_WRITE, NOBODY_NAMED)];
        entries.extend(sorted(&self.uids).into_iter().map(|uid| (USER, READ_AND_WRITE, uid)));
        entries.push((OWNING_GROUP, 0, NOBODY_NAMED));
        entries.extend(sorted(&self.gids).into_iter().map(|gid| (GROUP, READ_AND_WRITE, gid)));
        entries.push((MASK, READ_AND_WRITE, NOBODY_NAMED));
        entries.push((OTHERS, 0, NOBODY_NAMED));
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_overflow_id_is_never_a_guest() {
        let guests = Guests { uids: vec![OVERFLOW_ID, 7], gids: vec![OVERFLOW_ID, 8] };
        assert!(guests.admit(7, &[]) && guests.admit(9, &[6, 8]) && guests.admit(0, &[]));
        assert!(!guests.admit(8, &[7]) && !guests.admit(OVERFLOW_ID, &[OVERFLOW_ID]));
    }

    #[test]
    fn a_list_that_became_empty_shuts_the_file_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mode = || file.as_file().metadata().unwrap().mode() & 0o777;
        let guests = Guests { uids: vec![54_322], gids: vec![54_323, 54_322, 54_323] };
        if !guests.open(file.as_file().as_fd()).unwrap() {
            return; // No access lists here; then nothing was opened.
        }
        // With a list, the bits of the group are the mask of all who are on it.
        assert_eq!(mode(), 0o660);
        assert!(Guests::default().open(file.as_file().as_fd()).unwrap());
        assert_eq!(mode(), 0o600);
    }
}
