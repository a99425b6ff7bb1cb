//! What asks and takes nothing: a status, and a rehearsal.

use std::path::Path;
use std::time::{Duration, Instant};

use heirloom::{Client, Handoff};

use crate::failure::Failure;
use crate::figure::Spread;
use crate::kind::Kind;
use crate::takeovers::Chain;

/// With so many listeners, in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Questions {
    pub(crate) listeners: usize,
    pub(crate) status: Spread,
    pub(crate) rehearsal: Spread,
}

const WITHIN: Duration = Duration::from_secs(5);

pub(crate) fn measure(folder: &Path, listeners: usize, rounds: usize) -> Result<Questions, Failure> {
    let folder = folder.join("questions");
    std::fs::create_dir_all(&folder)?;
    let (_chain, _) = Chain::begin("generation", &folder, Kind::Listener, listeners, &[])?;
    let path = folder.join(format!("generation-{:?}-{listeners}", Kind::Listener));
    let (mut status, mut rehearsal) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        Client::connect(&path, WITHIN)?.status()?;
        status.push(began.elapsed().as_secs_f64() * 1e6);
        let began = Instant::now();
        if !Handoff::at(&path).rehearse()?.passed() {
            return Err("a check of the rehearsal failed".into());
        }
        rehearsal.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let spread = |figures: &[f64]| Spread::of(figures).ok_or("no round");
    Ok(Questions { listeners, status: spread(&status)?, rehearsal: spread(&rehearsal)? })
}
