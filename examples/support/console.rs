//! What a server says to the person who started it.

use std::fmt::Display;
use std::io::{self, Write};

/// Says something on stdout, and who says it. Where nobody reads along any more the service goes on all the same, which
/// `println!` would not: it panics.
pub(crate) fn say(version: &str, what: impl Display) {
    let _ = writeln!(io::stdout(), "version {version} (pid {}): {what}", std::process::id());
}
