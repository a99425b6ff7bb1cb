//! What is done again and again under load: takeovers, successors that do not get that far, and successors that die once
//! they own.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use heirloom::{Client, Handoff};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::Signal;
use tokio::time::timeout;

use crate::clients::{self, Anchor, Clients, Seen};
use crate::clock;
use crate::failure::Failure;
use crate::figures::{Figures, Rule};
use crate::holdings::{self, Holdings, Sockets, Watch};
use crate::load::{ANSWER_WITHIN, Load, Plan, Tally};
use crate::server::Conduct;
use crate::stage::Stage;

/// What a service goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A new process takes over, and the old one leaves.
    Takeovers,
    /// One owner, which others only look at, and whose successors give up or die before they own.
    Withdrawals,
    /// One owner, whose successors die once they own, while it still drains: so it owns again.
    Resumes,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Takeovers => "takeovers",
            Kind::Withdrawals => "withdrawals",
            Kind::Resumes => "resumes",
        }
    }
}

/// The service, whichever process owns it.
#[derive(Debug)]
pub(crate) struct Service {
    web: SocketAddr,
    datagrams: SocketAddr,
    sockets: Sockets,
    generation: u64,
}

impl Service {
    /// Starts its first process.
    pub(crate) async fn start(stage: &mut Stage) -> Result<Service, Failure> {
        stage.start(Conduct::Serve)?;
        let addresses = stage.newest()?.tells("started").await?.addresses;
        let &[web, datagrams] = addresses.as_slice() else { return Err("version 1 told no addresses".into()) };
        let generation = stage.newest()?.tells("owning").await?.generation;
        Ok(Service { web, datagrams, sockets: Sockets::at(web, datagrams)?, generation })
    }

    /// Asks the last process to leave, and waits until it has.
    pub(crate) async fn stop(self, stage: &mut Stage) -> Result<(), Failure> {
        stage.oldest()?.signal(Signal::SIGTERM)?;
        stage.oldest_leaves().await?;
        Ok(())
    }

    /// A process told that it owns: each change of owner is one generation.
    fn passes_to(&mut self, generation: u64) -> Result<(), Failure> {
        self.generation += 1;
        if generation == self.generation {
            return Ok(());
        }
        Err(format!("the owner is generation {generation}, and should be {}", self.generation).into())
    }
}

/// Rounds of one kind, and what came of them.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) kind: Kind,
    pub(crate) figures: Figures,
    /// What the clients have seen; `None` until they have ended.
    pub(crate) seen: Option<(Tally, Seen)>,
    clients: Option<(Load, Clients)>,
    owner: Watch,
    own: Watch,
}

impl Phase {
    /// Starts the clients.
    pub(crate) fn begin(kind: Kind, stage: &Stage, service: &Service, rate: u32) -> Result<Phase, Failure> {
        let plan = Plan {
            address: service.web,
            rate,
            keep_alive: KEEP_ALIVE,
            new_connection: NEW_CONNECTION,
            answer_within: ANSWER_WITHIN,
        };
        Ok(Phase {
            kind,
            figures: Figures::default(),
            seen: None,
            clients: Some((Load::start(plan)?, Clients::start(stage.lines(), service.datagrams))),
            owner: Watch::new(service.sockets.clone()),
            own: Watch::new(Sockets::default()),
        })
    }

    pub(crate) async fn run(&mut self, rounds: u32, stage: &mut Stage, service: &mut Service) -> Result<(), Failure> {
        let bar = bar(self.kind, rounds);
        tokio::time::sleep(CALM_FIRST).await;
        // It keeps the owner busy in each drain: the successor must die before that has ended.
        let anchor = match self.kind {
            Kind::Resumes => Some(Anchor::cast(stage.lines()).await?),
            Kind::Takeovers | Kind::Withdrawals => None,
        };
        // What is kept of each takeover is bounded, and is full after these: only then can anything be said to grow.
        let settling = if self.kind == Kind::Takeovers { HISTORY } else { 0 };
        for round in 0..settling + rounds {
            if round == settling {
                self.figures = Figures::default();
            }
            self.load()?.takeover_begins();
            match self.kind {
                Kind::Takeovers => self.takeover(stage, service).await?,
                Kind::Withdrawals => self.withdrawals(stage, service).await?,
                Kind::Resumes => self.resume(stage, service).await?,
            }
            let latencies = self.load()?.takeover_ends();
            self.look(stage, &latencies).await?;
            self.figures.end_round();
            if round >= settling {
                bar.inc(1);
            }
        }
        if let Some(anchor) = anchor {
            anchor.weigh().await?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Ends the clients.
    pub(crate) async fn end(&mut self) {
        if let Some((load, clients)) = self.clients.take() {
            self.seen = Some((load.finish().await, clients.finish().await));
        }
    }

    fn load(&self) -> Result<&Load, Failure> {
        self.clients.as_ref().map(|(load, _)| load).ok_or_else(|| "the load has ended".into())
    }

    async fn takeover(&mut self, stage: &mut Stage, service: &mut Service) -> Result<(), Failure> {
        let spawned = stage.start(Conduct::Serve)?;
        let started = stage.newest()?.tells("started").await?;
        if started.addresses != [service.web, service.datagrams] {
            return Err(format!("the sockets moved to {:?}", started.addresses).into());
        }
        let owning = stage.newest()?.tells("owning").await?;
        service.passes_to(owning.generation)?;

        let version = stage.newest()?.version().to_owned();
        let first_answer = timeout(FIRST_ANSWER_WITHIN, self.load()?.first_answer(&version)).await;
        let first_answer = first_answer.map_err(|_| format!("version {version} answered nobody"))?;
        let leaving = stage.oldest()?.tells("leaving").await?;
        let (old, gone) = stage.oldest_leaves().await?;
        self.load()?.has_left(&old);

        self.figures.step("started, has the listeners", started.at() - spawned);
        self.figures.step("owns", owning.at() - started.at());
        self.figures.step("first answer", first_answer.saturating_sub(owning.at()));
        self.figures.step("old one leaves", leaving.at().saturating_sub(owning.at()));
        self.figures.step("old one has exited", gone - leaving.at());
        self.figures.step("whole takeover", gone - spawned);
        Ok(())
    }

    /// Everything in one round that must leave the owner as it was.
    async fn withdrawals(&mut self, stage: &mut Stage, service: &Service) -> Result<(), Failure> {
        let began = clock::now();
        let control = stage.control();
        tokio::task::spawn_blocking(move || look_on(&control)).await??;
        self.figures.step("looked at by four", clock::now() - began);

        let spawned = stage.start(Conduct::Withdraw)?;
        stage.newest_gives_up().await?;
        self.figures.step("successor gave up", clock::now() - spawned);

        let spawned = stage.start(Conduct::Die)?;
        stage.newest_dies().await?;
        self.figures.step("successor died", clock::now() - spawned);

        let spawned = stage.start(Conduct::DieReady)?;
        let resumed = stage.oldest()?.tells("resumed").await?;
        stage.newest_dies().await?;
        self.figures.step("successor died ready", resumed.at() - spawned);
        if resumed.generation != service.generation {
            return Err(format!("the owner became generation {}, without a takeover", resumed.generation).into());
        }
        Ok(())
    }

    async fn resume(&mut self, stage: &mut Stage, service: &mut Service) -> Result<(), Failure> {
        let spawned = stage.start(Conduct::Idle)?;
        let owning = stage.newest()?.tells("owning").await?;
        service.passes_to(owning.generation)?;
        let leaving = stage.oldest()?.tells("leaving").await?;
        let killed = clock::now();
        stage.newest()?.signal(Signal::SIGKILL)?;
        let resumed = stage.oldest()?.tells("resumed").await?;
        service.passes_to(resumed.generation)?;
        let killed_version = stage.newest_dies().await?;
        self.load()?.has_left(&killed_version);

        self.figures.step("successor owns", owning.at() - spawned);
        self.figures.step("old one leaves", leaving.at().saturating_sub(owning.at()));
        self.figures.step("old one owns again", resumed.at() - killed);
        Ok(())
    }

    /// Enters what is held after a round, and what its requests took.
    async fn look(&mut self, stage: &mut Stage, latencies: &Histogram<u64>) -> Result<(), Failure> {
        let figures = &mut self.figures;
        for (name, quantile) in [("latency, median", 0.5), ("latency, 99 %", 0.99), ("latency, longest", 1.0)] {
            figures.step(name, Duration::from_micros(latencies.value_at_quantile(quantile)));
        }

        let owner = self.owner.look(stage.oldest()?.pid()?).await?;
        enter_descriptors(figures, "owner", &owner);
        let heap = timeout(LOOK_WITHIN, clients::ask(&stage.lines(), "heap")).await??;
        figures.enter("owner's heap", "bytes", Rule::Within(HEAP_WITHIN), heap as f64);
        figures.enter("owner's threads", "", Rule::Same, owner.threads as f64);
        figures.enter("owner's VmRSS", "KiB", Rule::Told, owner.memory.resident as f64);
        figures.enter("owner's RssAnon", "KiB", Rule::Within(MEMORY_WITHIN), owner.memory.anonymous as f64);

        let (files, lock_file) = stage.files()?;
        figures.enter("files in the folder", "", Rule::Same, files as f64);
        figures.enter("lock file", "bytes", Rule::Same, lock_file as f64);

        let own = self.own.look(i32::try_from(std::process::id())?).await?;
        enter_descriptors(figures, "soak", &own);
        let (children, zombies) = holdings::children()?;
        figures.enter("soak's children", "", Rule::Same, children as f64);
        figures.enter("soak's zombies", "", Rule::Same, zombies as f64);
        Ok(())
    }
}

fn enter_descriptors(figures: &mut Figures, whose: &str, held: &Holdings) {
    figures.enter(&format!("{whose}'s descriptors"), "", Rule::Same, held.descriptors.values().sum::<u64>() as f64);
    for (kind, count) in &held.descriptors {
        figures.enter(&format!("{whose}: {kind}"), "", Rule::Same, *count as f64);
    }
    let clients = f64::from(KEEP_ALIVE + NEW_CONNECTION);
    figures.enter(&format!("{whose}: tcp connection"), "", Rule::Within(clients), held.connections as f64);
}

/// What comes by at an owner and wants nothing of it: a question, somebody who took the socket for another's, a
/// rehearsal, and a successor that gives up before it has looked at anything. All of them in this process: so their own
/// leaks would be among its own descriptors.
fn look_on(control: &Path) -> Result<(), Failure> {
    Client::connect(control, LOOK_WITHIN)?.status()?;

    let mut lost = UnixStream::connect(control)?;
    lost.set_read_timeout(Some(LOOK_WITHIN))?;
    lost.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    match lost.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error.into()),
        _ => drop(lost),
    }

    drop(Handoff::at(control).app_version("a rehearsal").rehearse()?);
    Ok(Handoff::at(control).app_version("a short visit").start()?.abort()?)
}

fn bar(kind: Kind, rounds: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(rounds));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(kind.name());
    bar
}

/// Clients that keep their connection. A drain takes as long as the last of them needs to come by.
pub(crate) const KEEP_ALIVE: u32 = 4;

/// Clients that open a connection for each request.
pub(crate) const NEW_CONNECTION: u32 = 4;

/// The stretch without takeovers before each phase: what its latencies are compared with.
const CALM_FIRST: Duration = Duration::from_secs(1);

/// How long a client may wait for the first answer of a version that owns the service.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long each of those may take that only look.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// How much of an owner's heap may be in use more at the end of a phase than at its start, in bytes. The buffers of a
/// connection come and go, and the name of a version gets longer: less than this in the middle of them.
const HEAP_WITHIN: f64 = 4096.0;

/// How much an owner's memory may grow in a phase, in KiB: the allocator touches one more page now and then where nothing
/// is kept. The heap is the finer measure.
const MEMORY_WITHIN: f64 = 256.0;

/// How many takeovers an owner remembers: `ctl history` shows them.
const HISTORY: u32 = 32;
