//! The integration tests: real processes, real kills, and what their clients see.
//!
//! [`puppet`] is a server in a process of its own, driven step by step; [`visitor`] its clients. The other modules are
//! the tests, by what they are about.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "tests")]

mod actor;
mod bad_input;
mod broken;
mod compared;
mod cost;
mod ctl;
mod descriptors;
mod drain;
mod entries;
mod examples;
mod faces;
mod failure;
mod first_process;
mod gauge;
mod groups;
mod history;
mod hostile;
mod impostor;
mod keep;
mod kinds;
mod layers;
mod lies;
mod limits;
mod log;
mod matrix;
mod namespaces;
mod parity;
mod peer;
mod peers;
mod probation;
mod program;
mod puppet;
mod recorded;
mod security;
mod service;
mod soak;
mod starting;
mod state;
mod strace;
mod systemd;
mod takeover;
mod visitor;
