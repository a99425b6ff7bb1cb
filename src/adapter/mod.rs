//! Faces: thin adapters from one pollable descriptor to the way in which a program waits.

pub mod mio;
pub(crate) mod std;
#[cfg(feature = "tokio")]
pub mod tokio;
