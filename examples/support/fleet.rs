//! The versions of a service as a deploy tool has them: processes of their own, started, watched and ended.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::clock;
use crate::failure::Failure;

/// All versions that live, the oldest first, and the folder with their control socket and their logs.
#[derive(Debug)]
pub(crate) struct Fleet {
    folder: Folder,
    versions: Vec<Version>,
}

impl Fleet {
    /// Makes the folder, for this user alone.
    pub(crate) fn new() -> io::Result<Fleet> {
        let path = env::temp_dir().join(format!("heirloom-blue-green-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Fleet { folder: Folder { path }, versions: Vec::new() })
    }

    /// The control socket of the service.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.path.join("handoff.sock")
    }

    /// Starts this same program again, as the next version.
    pub(crate) fn launch<A: AsRef<OsStr>>(
        &mut self,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<()> {
        let log = File::create(self.folder.log(name))?;
        let mut child = Command::new(env::current_exe()?)
            .args(arguments)
            // Its lifeline: nothing is ever written, and the end of file tells it that this process is gone.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C in the terminal is for the deploy tool, which then ends its versions in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(lifeline), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a started version has no pipes"));
        };
        let told = BufReader::new(stdout).lines();
        self.versions.push(Version { name: name.to_owned(), child, lifeline, told });
        Ok(())
    }

    /// Waits until the newest version tells of `event`.
    pub(crate) async fn newest_tells(&mut self, event: &str) -> Result<Told, Failure> {
        let newest = self.versions.last_mut().ok_or("no version runs")?;
        let what = format!("version {} did not tell `{event}`", newest.name);
        match timeout(TELL_WITHIN, newest.tells(event)).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(error)) => Err(format!("{what}: {error}").into()),
            Err(_) => Err(format!("{what} within {TELL_WITHIN:?}").into()),
        }
    }

    /// Waits until the oldest version has left of itself, and tells when that was.
    pub(crate) async fn oldest_leaves(&mut self) -> Result<Duration, Failure> {
        let oldest = self.versions.first_mut().ok_or("no version runs")?;
        let name = oldest.name.clone();
        let Ok(status) = timeout(LEAVE_WITHIN, oldest.child.wait()).await else {
            return Err(format!("version {name} did not leave within {LEAVE_WITHIN:?}").into());
        };
        let (status, at) = (status?, clock::now());
        self.versions.remove(0);
        if status.success() { Ok(at) } else { Err(ended(&name, status).into()) }
    }

    /// Ends all versions that still live, and tells which of them did not end well.
    ///
    /// The newest first: one that has not taken over yet gives up, and its predecessor goes on until it is its turn.
    pub(crate) async fn end(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        for Version { name, mut child, lifeline, told } in self.versions.drain(..).rev() {
            drop((lifeline, told));
            match timeout(END_WITHIN, child.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(Ok(status)) => complaints.push(ended(&name, status)),
                Ok(Err(error)) => complaints.push(format!("version {name}: {error}")),
                Err(_) => {
                    complaints.push(format!("version {name} did not end within {END_WITHIN:?} and was killed"));
                    // Kills by the pid that was never reaped, so it is nobody else's, and reaps it.
                    if let Err(error) = child.kill().await {
                        complaints.push(format!("version {name}: {error}"));
                    }
                }
            }
        }
        complaints
    }

    /// The last lines of each version's log, for who has to find out what went wrong.
    pub(crate) fn logs(&self, last_version: u32) -> String {
        let mut text = String::new();
        for version in 1..=last_version {
            let Ok(log) = fs::read_to_string(self.folder.log(&version.to_string())) else { continue };
            let lines: Vec<&str> = log.lines().collect();
            text += &format!("--- log of version {version}\n");
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                text += &format!("{line}\n");
            }
        }
        text
    }
}

/// One line that a version tells.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Told {
    pub(crate) event: String,
    /// When, in microseconds of [`clock::now`].
    pub(crate) at_us: u64,
    /// Where it serves, in the lines that say so.
    #[serde(default)]
    pub(crate) address: Option<std::net::SocketAddr>,
}

impl Told {
    pub(crate) fn at(&self) -> Duration {
        Duration::from_micros(self.at_us)
    }
}

/// How long a version may take for each step of its start: far more than it needs, and far less than a person's patience.
const TELL_WITHIN: Duration = Duration::from_secs(10);

/// How long a version may take to leave: longer than its drain deadline.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);

/// How long a version may take to end when it is asked to.
const END_WITHIN: Duration = Duration::from_secs(8);

/// How much of each log is shown.
const LOG_LINES: usize = 15;

/// A process that serves, or did.
#[derive(Debug)]
struct Version {
    name: String,
    child: Child,
    lifeline: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

impl Version {
    async fn tells(&mut self, event: &str) -> Result<Told, Failure> {
        while let Some(line) = self.told.next_line().await? {
            let told: Told = serde_json::from_str(&line)?;
            if told.event == event {
                return Ok(told);
            }
        }
        Err(ended(&self.name, self.child.wait().await?).into())
    }
}

fn ended(name: &str, status: ExitStatus) -> String {
    format!("version {name} ended with {status}")
}

/// A folder that goes with its value, and all that is in it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn log(&self, version: &str) -> PathBuf {
        self.path.join(Path::new(&format!("version-{version}.log")))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}
