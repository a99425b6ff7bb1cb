//! The machine that was measured on, in words.

use std::fs;
use std::thread;

use jiff::Timestamp;

/// Its processor, how many of them, and its kernel.
pub(crate) fn words() -> String {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, model)| model.trim());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let noun = if processors == 1 { "core" } else { "cores" };
    format!("{processors} {noun} of {model}, Linux {}", release.trim())
}

/// The day, in UTC.
pub(crate) fn today() -> String {
    let now = Timestamp::now().to_string();
    now.split_once('T').map_or_else(|| now.clone(), |(day, _)| day.to_owned())
}
