//! A file with the pid of the owner, for whoever finds a service by one: `PIDFile=` of systemd.service(5), monit, scripts.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Its mode: others may read who serves.
const MODE: u32 = 0o644;

/// Writes this process's pid to `path`, whole or not at all: a reader finds the old owner or the new one, never an empty
/// file. The file is this user's own, as systemd wants it, and a link at the path is replaced, not followed.
pub(crate) fn write(path: &Path, pid: u32) -> io::Result<()> {
    let new = beside(path, pid)?;
    // Left behind by a process of the same number that died in between.
    let _ = fs::remove_file(&new);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&new)
        .and_then(|mut file| writeln!(file, "{pid}"))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Removes the file if it still names this process.
pub(crate) fn remove(path: &Path, pid: u32) -> bool {
    names(path, pid) && fs::remove_file(path).is_ok()
}

/// Whether the file names this process.
pub(crate) fn names(path: &Path, pid: u32) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == pid.to_string())
}

/// A name in the same folder, so that a rename can put it in place, and of this process alone.
fn beside(path: &Path, pid: u32) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else { return Err(io::ErrorKind::InvalidFilename.into()) };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{pid}"));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn is_written_whole_and_removed_by_whom_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.pid");
        write(&path, 7).unwrap();
        let first = fs::metadata(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
        write(&path, 8).unwrap();
        let second = fs::metadata(&path).unwrap();
        // Another file in its place: who has the first one open reads it to its end.
        assert_ne!(first.ino(), second.ino());
        assert_eq!(second.mode() & 0o7777, MODE);
        assert!(!remove(&path, 7));
        assert!(remove(&path, 8));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("app.pid"), folder.path().join("victim"));
        fs::write(&victim, "data").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        write(&path, 7).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "data");
    }

    #[test]
    fn nothing_is_left_where_it_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.pid");
        fs::create_dir(&path).unwrap();
        write(&path, 7).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
