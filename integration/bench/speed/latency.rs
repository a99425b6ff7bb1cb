//! What the clients of an HTTP service notice: a takeover each second against none, stretch by stretch in turn.

use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep, sleep_until};

use crate::failure::Failure;
use crate::figure::Paired;
use crate::fleet::Fleet;
use crate::load::{ANSWER_WITHIN, Load, Plan, Tally};

/// Percentiles that are told.
pub(crate) const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];

/// What some of the clients saw, in milliseconds: with takeovers, against without.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Which clients.
    pub(crate) by: &'static str,
    /// One for each of [`PERCENTILES`].
    pub(crate) percentiles: Vec<Paired>,
    /// The longest of each stretch.
    pub(crate) longest: Paired,
}

impl Seen {
    fn new(by: &'static str) -> Seen {
        Seen { by, percentiles: vec![Paired::default(); PERCENTILES.len()], longest: Paired::default() }
    }

    fn enter(&mut self, with: &Histogram<u64>, without: &Histogram<u64>) {
        for (paired, percentile) in self.percentiles.iter_mut().zip(PERCENTILES) {
            let at = |histogram: &Histogram<u64>| millis(histogram.value_at_percentile(percentile));
            paired.enter(at(with), at(without));
        }
        self.longest.enter(millis(with.max()), millis(without.max()));
    }
}

/// What the clients saw.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    pub(crate) all: Seen,
    pub(crate) new_connections: Seen,
    pub(crate) kept_alive: Seen,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) takeovers: u32,
    /// Through the first stretch with takeovers: since when, the median and the longest of a slice, in milliseconds.
    pub(crate) slices: Vec<(f64, f64, f64)>,
    /// When the new versions owned, in seconds of the same stretch.
    pub(crate) owned: Vec<f64>,
}

/// How many stretches, and how long each is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) pairs: u32,
    pub(crate) stretch: Duration,
    pub(crate) rate: u32,
}

const CLIENTS: u32 = 16;
const SLICE: Duration = Duration::from_millis(50);
const EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn measure(extent: Extent) -> Result<Latencies, Failure> {
    let mut fleet = Fleet::new()?;
    let measured = stretches(&mut fleet, extent).await;
    let complaints = fleet.end().await;
    match (measured, complaints.first()) {
        (Ok(_), Some(complaint)) => Err(complaint.clone().into()),
        (measured, _) => measured,
    }
}

async fn stretches(fleet: &mut Fleet, extent: Extent) -> Result<Latencies, Failure> {
    launch(fleet, 1)?;
    let address = fleet.newest_tells("started").await?.address.ok_or("it told no address")?;
    fleet.newest_tells("owning").await?;
    let plan =
        Plan { address, rate: extent.rate, keep_alive: CLIENTS, new_connection: CLIENTS, answer_within: ANSWER_WITHIN };
    let mut latencies = Latencies {
        all: Seen::new("all"),
        new_connections: Seen::new("new connections"),
        kept_alive: Seen::new("kept-alive connections"),
        requests: 0,
        failed: 0,
        takeovers: 0,
        slices: Vec::new(),
        owned: Vec::new(),
    };
    let mut version = 1;
    for pair in 0..extent.pairs {
        let load = Load::start(plan)?;
        sleep(extent.stretch).await;
        let calm = load.finish().await;

        let load = Load::start(plan)?;
        let began = Instant::now();
        let mut slices = Vec::new();
        let mut owned = Vec::new();
        let takeovers = async {
            let mut due = began + EVERY / 2;
            while due < began + extent.stretch {
                sleep_until(due).await;
                due += EVERY;
                version += 1;
                launch(fleet, version)?;
                fleet.newest_tells("owning").await?;
                owned.push(began.elapsed().as_secs_f64());
                fleet.oldest_leaves().await?;
                load.has_left(&(version - 1).to_string());
                latencies.takeovers += 1;
            }
            sleep_until(began + extent.stretch).await;
            Ok::<_, Failure>(())
        };
        let watch = async {
            loop {
                load.takeover_begins();
                sleep(SLICE).await;
                let slice = load.takeover_ends();
                if !slice.is_empty() {
                    let at = began.elapsed().saturating_sub(SLICE).as_secs_f64();
                    slices.push((at, millis(slice.value_at_quantile(0.5)), millis(slice.max())));
                }
            }
        };
        tokio::select! {
            done = takeovers => done?,
            () = watch => {}
        }
        let busy = load.finish().await;
        latencies.all.enter(&all(&busy)?, &all(&calm)?);
        latencies.new_connections.enter(&busy.new_connections, &calm.new_connections);
        latencies.kept_alive.enter(&busy.kept_alive, &calm.kept_alive);
        latencies.requests += busy.requests + calm.requests;
        latencies.failed += busy.failed + calm.failed;
        for failure in busy.failures.iter().chain(&calm.failures) {
            eprintln!("speed: {failure}");
        }
        if pair == 0 {
            (latencies.slices, latencies.owned) = (slices, owned);
        }
    }
    Ok(latencies)
}

fn all(tally: &Tally) -> Result<Histogram<u64>, Failure> {
    let mut all = tally.new_connections.clone();
    all.add(&tally.kept_alive)?;
    Ok(all)
}

fn millis(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64() * 1e3
}

fn launch(fleet: &mut Fleet, version: u32) -> Result<(), Failure> {
    let version = version.to_string();
    let control = fleet.control();
    let control = control.to_str().ok_or("the path of the temp folder is not UTF-8")?;
    let service = ["serve", "--control", control, "--listen", "127.0.0.1:0", "--app-version", &version];
    fleet.launch(&version, service.into_iter().chain(["--drain", "5s"]))?;
    Ok(())
}
