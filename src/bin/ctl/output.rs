//! Where the output of a program goes that outlives `ctl`: into a file, or where that of `ctl` itself goes to the journal,
//! there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::stat::fstat;

use crate::failure::Failure;

/// How much of the end of a file is looked at, in bytes.
const TAIL_BYTES: u64 = 64 * 1024;
/// How much of it is shown, in lines.
const TAIL_LINES: usize = 20;
/// The device and the inode of a stream to the journal, in decimal with a colon between them (systemd.exec(5)).
const JOURNAL: &str = "JOURNAL_STREAM";

#[derive(Debug)]
pub(crate) enum Output {
    File {
        path: PathBuf,
        file: File,
        /// Where this run begins.
        start: u64,
    },
    Journal(OwnedFd),
}

impl Output {
    /// Into the file that was asked for; without one into the journal, where that has what this process itself has to say,
    /// and into the other file where not.
    pub(crate) fn choose(asked: Option<&Path>, otherwise: &Path) -> Result<Output, Failure> {
        if asked.is_none()
            && let Some(journal) = journal(io::stderr().as_fd())
        {
            return journal.map(Output::Journal).map_err(|error| Failure::io("keep the stream to the journal", error));
        }
        let path = asked.unwrap_or(otherwise);
        let opened = || -> io::Result<Output> {
            let path = std::path::absolute(path)?;
            // For this user alone where it is new: nobody knows what a program tells.
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            let start = file.metadata()?.len();
            Ok(Output::File { path, file, start })
        };
        opened().map_err(|error| Failure::io(format!("open the log {}", path.display()), error))
    }

    /// For the program.
    pub(crate) fn stdio(&self) -> io::Result<Stdio> {
        Ok(match self {
            Output::File { file, .. } => file.try_clone()?.into(),
            Output::Journal(stream) => stream.try_clone()?.into(),
        })
    }

    /// Of the file.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Output::File { path, .. } => Some(path),
            Output::Journal(_) => None,
        }
    }

    /// Where somebody finds what this process has written.
    pub(crate) fn found(&self, pid: i32) -> String {
        match self {
            Output::File { path, .. } => format!("its whole log is {}", path.display()),
            Output::Journal(_) => {
                format!("its output is in the journal: journalctl _PID={pid}, and what it started has pids of its own")
            }
        }
    }

    /// The last lines in the file since this run began.
    pub(crate) fn tail(&self) -> Vec<String> {
        let Output::File { path, start, .. } = self else { return Vec::new() };
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start((*start).max(length.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        // A log that cannot be read, such as a pipe, is not shown.
        let text = read().unwrap_or_default();
        let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}

/// A copy of a stream, where it is the one to the journal that systemd tells of. The variable alone is no proof: it is
/// inherited by whoever has redirected the stream.
fn journal(stream: BorrowedFd<'_>) -> Option<io::Result<OwnedFd>> {
    let told = std::env::var(JOURNAL).ok()?;
    let (device, inode) = told.split_once(':')?;
    let stat = fstat(stream).ok()?;
    let same = device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino);
    same.then(|| stream.try_clone_to_owned())
}
