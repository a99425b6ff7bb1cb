//! An example, started as a user starts it: a program of its own, with its own command line.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use crate::puppet::{PATIENCE, Scene, skip};

/// An example that runs; killed and reaped when it is dropped.
pub(crate) struct Program {
    child: Child,
    /// The line for which its start waited.
    pub(crate) said: String,
    lines: Receiver<String>,
}

impl Program {
    /// Starts a server at a port of the kernel's choice, which later versions inherit, and waits until it says these
    /// words. `None`, said aloud, where the examples were not built, as
    /// they are by a plain `cargo test`.
    pub(crate) fn start(name: &str, scene: &Scene, version: &str, words: &str) -> Option<Program> {
        let deps = std::env::current_exe().unwrap();
        let path: PathBuf = deps.parent().unwrap().parent().unwrap().join("examples").join(name);
        if !path.exists() {
            skip(&format!("{} is not there: cargo build --examples", path.display()));
            return None;
        }
        let mut child = Command::new(path)
            .arg("--control")
            .arg(scene.control())
            .args(["--listen", "127.0.0.1:0", "--app-version", version, "--drain", "5s"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut program = Program { child, said: String::new(), lines };
        let end = Instant::now() + PATIENCE;
        loop {
            let line = program.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            program.said = line.unwrap_or_else(|_| panic!("{name} {version} never said {words:?}"));
            if program.said.contains(words) {
                return Some(program);
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
