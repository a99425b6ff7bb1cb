//! From `kill -9` of an owner on probation to the first answer of the one before, which takes the service back.

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use crate::client::Client;
use crate::failure::Failure;
use crate::figure::Spread;
use crate::process::Told;
use crate::takeovers::Chain;

/// What the clients saw of it.
#[derive(Clone, Debug)]
pub(crate) struct Resumes {
    /// From the kill to the first answer, in milliseconds.
    pub(crate) after: Spread,
    pub(crate) kills: u64,
    /// Connections that the killed ones had accepted, and others that got no answer.
    pub(crate) failed: u64,
}

impl Resumes {
    /// One client has one connection at most in the hands of the one that is killed.
    pub(crate) fn is_clean(&self) -> bool {
        self.failed <= self.kills
    }
}

pub(crate) fn measure(folder: &Path, rounds: usize) -> Result<Resumes, Failure> {
    let path = folder.join("resumes");
    let mut arguments: Vec<OsString> = vec!["generation".into(), "--path".into(), path.into()];
    arguments.extend(["--kind", "listener", "--count", "1", "--probation", "1h"].map(OsString::from));
    let (chain, told) = Chain::of(arguments, &[])?;
    let client = Client::of(told.address.ok_or("it told no address")?);
    let (mut after, mut failed) = (Vec::new(), 0);
    for _ in 0..rounds {
        let mut next = chain.beside()?;
        let _: Told = next.tells()?;
        let mut until = |pid, since| {
            loop {
                let heard = client.next()?;
                failed += u64::from(heard.pid.is_none());
                if heard.pid == Some(pid) && heard.at > since {
                    return Ok::<_, Failure>(heard.at - since);
                }
            }
        };
        until(next.pid(), Instant::now())?;
        let killed = Instant::now();
        next.kill()?;
        after.push(until(chain.pid(), killed)?.as_secs_f64() * 1e3);
    }
    Ok(Resumes { after: Spread::of(&after).ok_or("no round")?, kills: rounds as u64, failed })
}
