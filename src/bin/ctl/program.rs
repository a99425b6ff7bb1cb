//! Finds the program that a command line names, before anything depends on it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::failure::{FAILED, Failure};

/// Checks that `name` can be run, as execvp(3) would look for it.
///
/// To find out later would be too late: a takeover may be behind us by then.
pub(crate) fn check(name: &OsStr) -> Result<(), Failure> {
    let found = if name.as_bytes().contains(&b'/') {
        is_program(Path::new(name))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        std::env::split_paths(&path).any(|folder| is_program(&in_folder(folder, name)))
    };
    if found {
        return Ok(());
    }
    let message = format!("{} is not a program that can be run", name.display());
    Err(Failure::new(FAILED, "no-program", message).hint("nothing has been done; use its full path"))
}

/// An empty part of PATH is the current folder.
fn in_folder(folder: PathBuf, name: &OsStr) -> PathBuf {
    if folder.as_os_str().is_empty() { Path::new(".").join(name) } else { folder.join(name) }
}

fn is_program(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// What execvp(3) takes where there is no PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
