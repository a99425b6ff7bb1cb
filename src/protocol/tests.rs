//! The protocol against its description, and its machines against a simulated kernel.

mod alone;
mod format;
mod hold;
mod holder;
mod probation;
mod takeover;
mod world;
