//! From the start of a new version to its first answer, as its clients see it, and how long nobody accepted meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::failure::Failure;
use crate::figure::Spread;
use crate::kind::Kind;
use crate::process::Accepted;
use crate::takeovers::Chain;

/// What was seen with so many listeners.
#[derive(Clone, Debug)]
pub(crate) struct FirstAnswer {
    pub(crate) listeners: usize,
    /// From the start of the process to its first answer, in milliseconds.
    pub(crate) after: Spread,
    /// From its word that it is ready, which the release follows, to the first connection that it accepted, in
    /// milliseconds. The one before accepts for most of that time.
    pub(crate) dip: Spread,
    /// The longest that one client waited in each takeover, in milliseconds.
    pub(crate) longest: Spread,
    pub(crate) asked: u64,
    pub(crate) failed: u64,
}

pub(crate) fn measure(folder: &Path, listeners: usize, rounds: usize) -> Result<FirstAnswer, Failure> {
    let folder = folder.join("answers");
    std::fs::create_dir_all(&folder)?;
    let (mut chain, told) = Chain::begin("generation", &folder, Kind::Listener, listeners, &[])?;
    let client = Client::of(told.address.ok_or("it told no address")?);
    let (mut after, mut dip, mut longest, mut asked, mut failed) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
    for _ in 0..rounds {
        let began = Instant::now();
        chain.next()?;
        let pid = chain.pid();
        let mut waited = Duration::ZERO;
        loop {
            let heard = client.next()?;
            asked += 1;
            failed += u64::from(heard.pid.is_none());
            if heard.at > began {
                waited = waited.max(heard.at - heard.sent);
            }
            if heard.pid == Some(pid) {
                after.push((heard.at - began).as_secs_f64() * 1e3);
                break;
            }
        }
        longest.push(waited.as_secs_f64() * 1e3);
        dip.push(chain.says::<Accepted>()?.after_us / 1e3);
    }
    let spread = |figures: &[f64]| Spread::of(figures).ok_or("no round");
    Ok(FirstAnswer { listeners, after: spread(&after)?, dip: spread(&dip)?, longest: spread(&longest)?, asked, failed })
}
