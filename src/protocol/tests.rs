//! The protocol against its description, and its machines against a simulated kernel.

mod format;
mod rehearsal;
mod takeover;
mod world;
