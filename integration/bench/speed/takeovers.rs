//! A takeover against the system calls that it cannot do without.

use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;

use crate::failure::Failure;
use crate::figure::Paired;
use crate::kind::Kind;
use crate::process::{Process, Told};

/// What one kind and number of descriptors came to.
#[derive(Clone, Debug)]
pub(crate) struct Takeover {
    pub(crate) kind: Kind,
    pub(crate) count: usize,
    /// From the connect to the last descriptor, in microseconds.
    pub(crate) received: Paired,
    /// From the connect to the ownership.
    pub(crate) whole: Paired,
    /// The part of it that the application spends to claim what it received.
    pub(crate) claims: Vec<f64>,
    /// How many descriptors a process that serves has open, for each that was handed over.
    pub(crate) open: Vec<f64>,
}

/// Hands the same number of descriptors on again and again, by this crate and bare, in turn.
pub(crate) fn measure(folder: &Path, kind: Kind, count: usize, rounds: usize) -> Result<Takeover, Failure> {
    let mut takeover = Takeover {
        kind,
        count,
        received: Paired::default(),
        whole: Paired::default(),
        claims: Vec::new(),
        open: Vec::new(),
    };
    let (mut ours, _) = Chain::begin("generation", folder, kind, count, &[])?;
    let (mut bare, _) = Chain::begin("bare", folder, kind, count, &["--first"])?;
    for round in 0..=rounds {
        let (told, floor) = (ours.next()?, bare.next()?);
        // The first round fills caches and finds pages.
        if round > 0 {
            takeover.received.enter(told.start_us, floor.start_us);
            takeover.whole.enter(told.whole_us, floor.whole_us);
            takeover.claims.push(told.claim_us);
            let open = procfs::process::Process::new(ours.pid().try_into()?)?.fd_count()?;
            takeover.open.push(open as f64 / count as f64);
        }
    }
    Ok(takeover)
}

/// Processes of which each takes over from the one before.
#[derive(Debug)]
pub(crate) struct Chain {
    arguments: Vec<OsString>,
    last: Process,
}

impl Chain {
    /// Starts the first of them.
    pub(crate) fn begin(
        role: &str,
        folder: &Path,
        kind: Kind,
        count: usize,
        only_first: &[&str],
    ) -> Result<(Chain, Told), Failure> {
        let path = folder.join(format!("{role}-{kind:?}-{count}"));
        let mut arguments: Vec<OsString> = vec![role.into(), "--path".into(), path.into()];
        arguments.extend(["--kind".into(), kind.argument().into(), "--count".into(), count.to_string().into()]);
        Chain::of(arguments, only_first)
    }

    /// Starts the first of those with these arguments.
    pub(crate) fn of(arguments: Vec<OsString>, only_first: &[&str]) -> Result<(Chain, Told), Failure> {
        let first: Vec<OsString> = arguments.iter().cloned().chain(only_first.iter().map(OsString::from)).collect();
        let mut last = Process::start(&first)?;
        let told = last.tells()?;
        Ok((Chain { arguments, last }, told))
    }

    /// Starts the next one, and waits until the one before has left.
    pub(crate) fn next(&mut self) -> Result<Told, Failure> {
        let mut next = Process::start(&self.arguments)?;
        let told = next.tells()?;
        std::mem::replace(&mut self.last, next).ends()?;
        Ok(told)
    }

    /// The same, and what the one before said before it left.
    pub(crate) fn next_and<T: for<'de> Deserialize<'de>>(&mut self) -> Result<(Told, T), Failure> {
        let mut next = Process::start(&self.arguments)?;
        let told = next.tells()?;
        let mut before = std::mem::replace(&mut self.last, next);
        let said = before.tells()?;
        before.ends()?;
        Ok((told, said))
    }

    /// Starts one that takes over from the one before, which stays.
    pub(crate) fn beside(&self) -> Result<Process, Failure> {
        Process::start(&self.arguments)
    }

    /// What the one that serves says next.
    pub(crate) fn says<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, Failure> {
        self.last.tells()
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.last.pid()
    }
}
