//! A folder of this user alone that is removed with everything in it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sys;

/// The folder. Dropping it removes it, but in a forked child, to which it does not belong.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    pid: u32,
}

impl Temporary {
    /// Makes one, under a name that nobody guesses, where the system keeps what is temporary.
    pub(crate) fn new() -> Result<Temporary> {
        let number = sys::random().map_err(|error| Error::io("draw a random number", error))?;
        let path = std::env::temp_dir().join(format!("heirloom-{number:016x}"));
        let making = |error| Error::io(format!("make the folder {}", path.display()), error);
        DirBuilder::new().mode(0o700).create(&path).map_err(making)?;
        Ok(Temporary { path, pid: std::process::id() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if std::process::id() == self.pid
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            log::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}
