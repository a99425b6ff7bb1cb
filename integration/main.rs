//! The integration tests: real processes, real kills, and what their clients see.
//!
//! [`puppet`] is a server in a process of its own, driven step by step; [`visitor`] its clients. The other modules are
//! the tests, by what they are about.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "tests")]

mod actor;
mod bad_input;
mod ctl;
mod descriptors;
mod entries;
mod faces;
mod failure;
mod kinds;
mod layers;
mod peer;
mod peers;
mod puppet;
mod recorded;
mod starting;
mod steps;
mod systemd;
mod takeover;
mod visitor;
