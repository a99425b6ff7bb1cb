//! The processes that are measured: this program again, in a role.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What a process tells once it serves.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// From the connect to the last descriptor.
    pub(crate) start_us: f64,
    /// From the request to the last descriptor.
    pub(crate) transfer_us: f64,
    /// What the application spent to claim what it received.
    pub(crate) claim_us: f64,
    /// From the connect to the ownership.
    pub(crate) whole_us: f64,
    /// When it owned and had its state, on the clock of all processes.
    pub(crate) owned_at_us: f64,
    /// Where it answers.
    pub(crate) address: Option<std::net::SocketAddr>,
}

/// What a process tells when it lets go of its state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LetGo {
    /// What the application spent to write it, its checksum included.
    pub(crate) wrote_us: f64,
    /// When it was written, on the clock of all processes.
    pub(crate) at_us: f64,
}

/// What a process tells when it has accepted for the first time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// Since it said that it is ready.
    pub(crate) after_us: f64,
}

/// Tells the bench.
pub(crate) fn tell(told: &impl Serialize) {
    // Where nobody reads any more, this process does not live much longer.
    let _ = writeln!(io::stdout(), "{}", serde_json::json!(told));
}

/// One process. It ends by itself when the next one has taken over, and at the latest when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    told: BufReader<ChildStdout>,
    /// Held open: its end tells the process that the bench has gone.
    _stdin: Option<ChildStdin>,
}

impl Process {
    pub(crate) fn start(arguments: &[OsString]) -> Result<Process, Failure> {
        let mut child =
            Command::new(env::current_exe()?).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let told = child.stdout.take().ok_or("a started process has no pipe")?;
        Ok(Process { told: BufReader::new(told), _stdin: child.stdin.take(), child })
    }

    /// Waits for its next line.
    pub(crate) fn tells<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, Failure> {
        let mut line = String::new();
        if self.told.read_line(&mut line)? == 0 {
            return Err(format!("a process ended with {}", self.child.wait()?).into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits for its end.
    pub(crate) fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended, and well.
    pub(crate) fn ends(mut self) -> Result<(), Failure> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a process ended with {status}").into()) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // By the handle of a child: where it was reaped already, nothing happens.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
