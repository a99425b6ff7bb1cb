//! A state on its way: what it costs must not grow with its size, but for the one pass of its checksum.

use std::ffi::OsString;
use std::path::Path;

use crate::failure::Failure;
use crate::figure::Spread;
use crate::takeovers::Chain;

/// A size of a state, and what the takeover took of which the writing was not a part.
#[derive(Clone, Debug)]
pub(crate) struct StateTaken {
    pub(crate) bytes: u64,
    pub(crate) checked: bool,
    /// From the connect to the ownership, in microseconds, the application's own writing included.
    pub(crate) whole: Spread,
}

pub(crate) fn measure(folder: &Path, bytes: u64, checked: bool, rounds: usize) -> Result<StateTaken, Failure> {
    let path = folder.join(format!("state-{bytes}-{checked}"));
    let mut arguments: Vec<OsString> = vec!["generation".into(), "--path".into(), path.into()];
    arguments.extend(["--kind", "memfd", "--count", "0", "--state", &bytes.to_string()].map(OsString::from));
    if !checked {
        arguments.push("--unchecked".into());
    }
    let (mut chain, _) = Chain::of(arguments, &[])?;
    let mut taken = Vec::new();
    for _ in 0..rounds {
        taken.push(chain.next()?.whole_us);
    }
    let whole = Spread::of(&taken).ok_or("no round")?;
    Ok(StateTaken { bytes, checked, whole })
}
