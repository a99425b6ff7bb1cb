//! What a service costs that nobody asks for anything, with this crate and without it.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use heirloom::Handoff;

use crate::failure::Failure;
use crate::figure::{Paired, Spread};
use crate::process::{Process, Told, tell};

/// A server that waits for its first connection.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Role {
    #[arg(long)]
    path: PathBuf,
    /// Without this crate
    #[arg(long)]
    plain: bool,
}

pub(crate) fn live(role: &Role) -> Result<(), Failure> {
    if role.plain {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        tell(&Told::default());
        drop(listener.accept()?);
        return Ok(());
    }
    let mut starting = Handoff::at(&role.path).start()?;
    let listener = starting.tcp_listener("web", "127.0.0.1:0")?;
    let mut serving = starting.ready()?;
    tell(&Told::default());
    drop(serving.accept(&listener)?);
    Ok(())
}

/// With this crate, against without.
#[derive(Clone, Debug)]
pub(crate) struct Idle {
    /// Wake-ups a second of the one with this crate.
    pub(crate) wakes: Spread,
    /// How often a second it ran at all, of itself or not: without that it can make no system call.
    pub(crate) runs: Spread,
    /// KiB of memory of its own, and resident in all.
    pub(crate) own: Paired,
    pub(crate) resident: Paired,
    /// From the start of the process until it serves, in milliseconds.
    pub(crate) start: Paired,
}

const WATCHED: Duration = Duration::from_secs(1);

pub(crate) fn measure(folder: &Path, rounds: usize) -> Result<Idle, Failure> {
    let (mut wakes, mut runs) = (Vec::new(), Vec::new());
    let (mut own, mut resident, mut start) = (Paired::default(), Paired::default(), Paired::default());
    for round in 0..rounds {
        let path = folder.join(format!("idle-{round}"));
        let arguments: Vec<OsString> = vec!["idle".into(), "--path".into(), path.into()];
        let plain: Vec<OsString> = arguments.iter().cloned().chain(["--plain".into()]).collect();
        let (ours, started) = begin(&arguments)?;
        let (theirs, plainly) = begin(&plain)?;
        let before = look(&ours)?;
        thread::sleep(WATCHED);
        let (after, bare) = (look(&ours)?, look(&theirs)?);
        wakes.push((after.wakes - before.wakes) as f64 / WATCHED.as_secs_f64());
        runs.push((after.runs - before.runs) as f64 / WATCHED.as_secs_f64());
        own.enter(after.own, bare.own);
        resident.enter(after.resident, bare.resident);
        start.enter(started, plainly);
    }
    let spread = |figures: &[f64]| Spread::of(figures).ok_or("no round");
    Ok(Idle { wakes: spread(&wakes)?, runs: spread(&runs)?, own, resident, start })
}

fn begin(arguments: &[OsString]) -> Result<(Process, f64), Failure> {
    let began = Instant::now();
    let mut process = Process::start(arguments)?;
    let _: Told = process.tells()?;
    Ok((process, began.elapsed().as_secs_f64() * 1e3))
}

/// What /proc says of a process at a moment.
struct Look {
    wakes: u64,
    runs: u64,
    own: f64,
    resident: f64,
}

fn look(process: &Process) -> Result<Look, Failure> {
    let process = procfs::process::Process::new(process.pid().try_into()?)?;
    let (mut wakes, mut runs) = (0, 0);
    for task in process.tasks()? {
        let task = task?;
        // Waiting for a processor is not running on one.
        runs += task.schedstat()?.pcount;
        wakes += task.status()?.voluntary_ctxt_switches.ok_or("the kernel does not tell")?;
    }
    let status = process.status()?;
    let field = |field: Option<u64>| field.ok_or("the kernel does not tell");
    Ok(Look { wakes, runs, own: field(status.rssanon)? as f64, resident: field(status.vmrss)? as f64 })
}
