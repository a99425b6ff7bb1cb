//! One generation of a service: it has its entries, a state if it is told to, and answers on its first listener.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heirloom::{Drained, Event, Handoff, Kind as Sort, Serving, Starting};

use crate::failure::Failure;
use crate::kind::{Kind, Maker};
use crate::process::{Accepted, LetGo, Told, tell};
use crate::{args, clock};

/// Which entries, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Role {
    #[arg(long)]
    path: PathBuf,
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    count: usize,
    /// Bytes of a state to hand on
    #[arg(long)]
    state: Option<u64>,
    /// Without its checksum
    #[arg(long)]
    unchecked: bool,
    /// How long the one before stands by
    #[arg(long, value_parser = args::duration, default_value = "0s")]
    probation: Duration,
}

const SCHEMA: &str = "bytes";

/// How much of a state is written at once.
const CHUNK: usize = 1 << 20;

/// Takes over, or is the first, and leaves when the next one has taken over.
pub(crate) fn live(role: &Role) -> Result<(), Failure> {
    let names: Vec<String> = (0..role.count).map(|n| format!("entry-{n}")).collect();
    let mut handoff = Handoff::at(&role.path).drain_within(Duration::from_secs(1)).probation(role.probation);
    if role.state.is_some() {
        handoff = handoff.exclusive(true).state(SCHEMA, 1);
    }

    let began = Instant::now();
    let mut starting = handoff.start()?;
    let started = Instant::now();
    let entries = claim(role, &names, &mut starting)?;
    let claimed = Instant::now();
    let mut serving = starting.ready()?;
    let whole = began.elapsed();
    let mut state = None;
    if let (Some(bytes), true) = (role.state, serving.generation() > 1) {
        let taken = serving.take_state(SCHEMA, 1..=1).ok_or("the state did not come")?;
        if taken.len() != bytes {
            return Err(format!("a state of {} bytes came", taken.len()).into());
        }
        state = Some(taken);
    }
    // With the state in hand, whose checksum was held against it just now.
    let owned_at = clock::now();
    drop(state);

    tell(&Told {
        start_us: (started - began).as_secs_f64() * 1e6,
        claim_us: (claimed - started).as_secs_f64() * 1e6,
        whole_us: whole.as_secs_f64() * 1e6,
        owned_at_us: owned_at.as_secs_f64() * 1e6,
        address: entries.first.as_ref().map(|listener| listener.local_addr()).transpose()?,
        ..Told::default()
    });
    loop {
        match &entries.first {
            Some(listener) => answer(&mut serving, listener, claimed)?,
            None => wait(role, &mut serving)?,
        }
        match serving.drain()? {
            Drained::Done(_) => return Ok(()),
            Drained::Resumed(again) => serving = again,
        }
    }
}

/// What it has, held open until it ends.
struct Entries {
    first: Option<Arc<TcpListener>>,
    _others: Vec<Arc<std::os::fd::OwnedFd>>,
    _listeners: Vec<Arc<TcpListener>>,
}

fn claim(role: &Role, names: &[String], starting: &mut Starting) -> Result<Entries, Failure> {
    let maker = Maker::new(role.kind)?;
    let mut entries = Entries { first: None, _others: Vec::new(), _listeners: Vec::new() };
    for name in names {
        let claim = starting.claim(name);
        if role.kind == Kind::Listener {
            entries._listeners.push(claim.made(Sort::TcpListener, || maker.make().map(TcpListener::from))?);
        } else {
            entries._others.push(claim.raw(|| maker.make())?);
        }
    }
    entries.first = entries._listeners.first().cloned();
    Ok(entries)
}

/// Tells each client which process this is, until it is told to leave.
fn answer(serving: &mut Serving, listener: &Arc<TcpListener>, ready: Instant) -> Result<(), Failure> {
    let pid = process::id().to_string();
    let mut accepted = None;
    while let Some((mut client, _)) = serving.accept(listener)? {
        let after = ready.elapsed();
        // A client that has gone is none of this process's business.
        let _ = client.write_all(pid.as_bytes());
        if accepted.replace(()).is_none() {
            tell(&Accepted { after_us: after.as_secs_f64() * 1e6 });
        }
    }
    Ok(())
}

fn wait(role: &Role, serving: &mut Serving) -> Result<(), Failure> {
    while serving.left().is_none() {
        if serving.wait()? == Event::Release {
            match role.state {
                Some(bytes) => release(role, serving, bytes)?,
                None => serving.released()?,
            }
        }
    }
    Ok(())
}

/// Writes the state, whose time is the application's own, and lets go.
fn release(role: &Role, serving: &mut Serving, bytes: u64) -> Result<(), Failure> {
    let chunk = vec![0x5a; usize::try_from(bytes).unwrap_or(CHUNK).min(CHUNK)];
    let began = Instant::now();
    let mut snapshot = serving.snapshot()?;
    if role.unchecked {
        snapshot = snapshot.without_checksum();
    }
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        snapshot.write_all(&chunk[..part])?;
        left -= part as u64;
    }
    let let_go = LetGo { wrote_us: began.elapsed().as_secs_f64() * 1e6, at_us: clock::now().as_secs_f64() * 1e6 };
    serving.released_with(snapshot)?;
    tell(&let_go);
    Ok(())
}
