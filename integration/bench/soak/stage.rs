//! The processes of the service as the soak has them, and the folder that they meet in.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::clock;
use crate::failure::Failure;
use crate::server::{Conduct, LINES, Told};

/// All processes that live, the oldest first.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: TempDir,
    processes: Vec<Process>,
    /// How many were started so far: their versions are 1, 2, ...
    started: u32,
}

impl Stage {
    /// Makes the folder, for this user alone.
    pub(crate) fn new() -> io::Result<Stage> {
        let folder = tempfile::Builder::new().prefix("heirloom-soak-").tempdir()?;
        fs::create_dir(folder.path().join(LOGS))?;
        Ok(Stage { folder, processes: Vec::new(), started: 0 })
    }

    /// The control socket of the service.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.path().join("handoff.sock")
    }

    /// The Unix listener of the service.
    pub(crate) fn lines(&self) -> PathBuf {
        self.folder.path().join(LINES)
    }

    /// How many files lie in the folder, without the logs, and how long the lock file is, in bytes.
    pub(crate) fn files(&self) -> io::Result<(u64, u64)> {
        let count = fs::read_dir(self.folder.path())?.count() as u64 - 1;
        Ok((count, fs::metadata(self.folder.path().join("handoff.sock.lock"))?.len()))
    }

    /// Starts this program again, as the next version, and tells when.
    pub(crate) fn start(&mut self, conduct: Conduct) -> Result<Duration, Failure> {
        self.started += 1;
        let version = self.started.to_string();
        let log = self.folder.path().join(LOGS).join(&version);
        let conduct = conduct.to_possible_value().ok_or("a conduct without a name")?;
        let began = clock::now();
        let mut child = Command::new(env::current_exe()?)
            .args(["serve", "--listen", "127.0.0.1:0", "--drain", DRAIN, "--app-version", &version])
            .args(["--conduct", conduct.get_name(), "--parent", &std::process::id().to_string(), "--control"])
            .arg(self.control())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            // A Ctrl-C in the terminal is for the soak, which then ends them all.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("a started process has no pipe")?;
        self.processes.push(Process { version, child, told: BufReader::new(stdout).lines(), log });
        Ok(began)
    }

    pub(crate) fn oldest(&mut self) -> Result<&mut Process, Failure> {
        self.processes.first_mut().ok_or_else(|| "no process runs".into())
    }

    pub(crate) fn newest(&mut self) -> Result<&mut Process, Failure> {
        self.processes.last_mut().ok_or_else(|| "no process runs".into())
    }

    /// Waits until the oldest has left of itself, and tells its version and when that was.
    pub(crate) async fn oldest_leaves(&mut self) -> Result<(String, Duration), Failure> {
        self.oldest()?.ends(ExitStatus::success).await?;
        let at = clock::now();
        Ok((self.processes.remove(0).left()?, at))
    }

    /// Waits until the newest has given up of itself.
    pub(crate) async fn newest_gives_up(&mut self) -> Result<(), Failure> {
        self.newest()?.ends(ExitStatus::success).await?;
        self.forget_newest()?;
        Ok(())
    }

    /// Waits until the newest has been killed, by itself or by the soak, and tells its version. Any other end is an error.
    pub(crate) async fn newest_dies(&mut self) -> Result<String, Failure> {
        self.newest()?.ends(|status| status.signal() == Some(Signal::SIGKILL as i32)).await?;
        self.forget_newest()
    }

    fn forget_newest(&mut self) -> Result<String, Failure> {
        Ok(self.processes.pop().ok_or("no process runs")?.left()?)
    }

    /// Kills and reaps whatever still lives. Nothing that the soak needs is lost by it.
    pub(crate) async fn clear(&mut self) {
        for mut process in self.processes.drain(..) {
            // By the pid of a child that was not reaped, so it is nobody else's.
            if let Err(error) = process.child.kill().await {
                eprintln!("soak: version {}: {error}", process.version);
            }
        }
    }

    /// The ends of the logs of all that did not end well, and of those that still live.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        let Ok(logs) = fs::read_dir(self.folder.path().join(LOGS)) else { return text };
        for path in logs.flatten().map(|entry| entry.path()) {
            text += &format!("--- log of version {}\n{}", path.file_name().unwrap_or_default().display(), tail(&path));
        }
        text
    }
}

/// One process of the service.
#[derive(Debug)]
pub(crate) struct Process {
    version: String,
    child: Child,
    told: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn pid(&self) -> Result<i32, Failure> {
        Ok(self.child.id().ok_or("it has ended")?.try_into()?)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        Ok(kill(Pid::from_raw(self.pid()?), signal)?)
    }

    /// Waits until it tells of `event`; what it tells before that is of no interest.
    pub(crate) async fn tells(&mut self, event: &str) -> Result<Told, Failure> {
        let what = format!("version {} did not tell `{event}`", self.version);
        let told = async {
            while let Some(line) = self.told.next_line().await? {
                let told: Told = serde_json::from_str(&line)?;
                if told.event == event {
                    return Ok(told);
                }
            }
            Err(Failure::from(format!("it ended with {}", self.child.wait().await?)))
        };
        match timeout(STEP_WITHIN, told).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(error)) => Err(format!("{what}: {error}").into()),
            Err(_) => Err(format!("{what} within {STEP_WITHIN:?}").into()),
        }
    }

    async fn ends(&mut self, well: impl Fn(&ExitStatus) -> bool) -> Result<(), Failure> {
        let version = &self.version;
        match timeout(STEP_WITHIN, self.child.wait()).await {
            Ok(Ok(status)) if well(&status) => Ok(()),
            Ok(Ok(status)) => Err(format!("version {version} ended with {status}").into()),
            Ok(Err(error)) => Err(format!("version {version}: {error}").into()),
            Err(_) => Err(format!("version {version} did not end within {STEP_WITHIN:?}").into()),
        }
    }

    /// Nobody will want its log.
    fn left(self) -> io::Result<String> {
        fs::remove_file(&self.log)?;
        Ok(self.version)
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let log = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("{line}\n")).collect()
}

/// The folder of the logs.
const LOGS: &str = "logs";

/// How much of each log is shown.
const LOG_LINES: usize = 15;

/// How long a process may drain: far longer than any client takes to come by.
const DRAIN: &str = "8s";

/// How long each step of a process may take, draining included, before it counts as one that never comes.
const STEP_WITHIN: Duration = Duration::from_secs(12);
