//! What an attacker can reach, one function for each door: bytes in, a panic where something does not hold.
//!
//! `cargo fuzz` runs them without end, and the unit tests run them for a moment over the corpus that is kept in
//! `integration/fuzz/corpus` and over what is made of it. A normal build has none of this.

#![allow(clippy::unwrap_used, reason = "a panic is how a target says that something does not hold")]

mod heir;
mod kernel;
mod lock_file;
mod manifest;
mod messages;
mod owner;
mod says;
mod starter;
#[cfg(test)]
mod tests;
mod wire;

pub use heir::successor;
pub use lock_file::lock_file;
pub use manifest::manifest;
pub use messages::messages;
pub use owner::predecessor;
pub use starter::starter;
pub use wire::frames;
