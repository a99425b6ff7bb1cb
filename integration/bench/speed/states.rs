//! A state on its way: what it costs must not grow with its size, but for the one pass of its checksum.

use std::ffi::OsString;
use std::path::Path;

use crate::failure::Failure;
use crate::figure::Spread;
use crate::process::LetGo;
use crate::takeovers::Chain;

/// A size of a state, and what it took, in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct StateTaken {
    pub(crate) bytes: u64,
    pub(crate) checked: bool,
    /// What the application spent to write it.
    pub(crate) wrote: Spread,
    /// From there until the next one owns and has it.
    pub(crate) handed_over: Spread,
}

pub(crate) fn measure(folder: &Path, bytes: u64, checked: bool, rounds: usize) -> Result<StateTaken, Failure> {
    let path = folder.join(format!("state-{bytes}-{checked}"));
    let mut arguments: Vec<OsString> = vec!["generation".into(), "--path".into(), path.into()];
    arguments.extend(["--kind", "memfd", "--count", "0", "--state", &bytes.to_string()].map(OsString::from));
    if !checked {
        arguments.push("--unchecked".into());
    }
    let (mut chain, _) = Chain::of(arguments, &[])?;
    let (mut wrote, mut handed_over) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (told, let_go): (_, LetGo) = chain.next_and()?;
        wrote.push(let_go.wrote_us);
        handed_over.push(told.owned_at_us - let_go.at_us);
    }
    let spread = |figures: &[f64]| Spread::of(figures).ok_or("no round");
    Ok(StateTaken { bytes, checked, wrote: spread(&wrote)?, handed_over: spread(&handed_over)? })
}
