//! Replace a network service while it runs, without one lost connection.
//!
//! The process that serves today, the **predecessor**, listens on a control socket at a well-known path. Its
//! replacement, the **successor**, is started by anybody: a deploy script, a container runtime, a person. It connects,
//! receives the named listeners, warms up, says that it is ready, and the predecessor lets go, drains and exits. No
//! parent and child, no `exec`, no supervisor, no connection refused.
//!
//! ```no_run
//! use std::{thread, time::Duration};
//! use heirloom::{Drained, Handoff};
//!
//! # fn serve(_: std::net::TcpStream) {}
//! # fn main() -> heirloom::Result<()> {
//! let mut starting = Handoff::at("/run/shop/handoff.sock")
//!     .app_version(env!("CARGO_PKG_VERSION"))
//!     .drain_within(Duration::from_secs(30))
//!     .start()?;                                         // a predecessor's successor, or the first
//! let web = starting.tcp_listener("web", "0.0.0.0:8080")?; // inherited by name, or bound
//! let mut serving = starting.ready()?;                   // returns when this process is the owner
//! loop {
//!     while let Some((stream, _)) = serving.accept(&web)? { // None: somebody else serves now, or stop was asked
//!         let lease = serving.lease();                   // counts as in flight until dropped
//!         thread::spawn(move || {
//!             serve(stream);
//!             drop(lease);
//!         });
//!     }
//!     match serving.drain()? {                           // until the leases are gone, or the deadline
//!         Drained::Done(_) => return Ok(()),
//!         Drained::Resumed(again) => serving = again,    // the successor died: this process owns again
//!     }
//! }
//! # }
//! ```
//!
//! # A map of the code
//!
//! Arrows point down only; a test reads the `use crate::` lines and fails when one points up.
//!
//! | layer | modules | what they are for |
//! |---|---|---|
//! | 6 | `bin/ctl` | the program, on the public API alone |
//! | 5 | `adapter::{std, mio, tokio}` | faces: how a program waits |
//! | 4 | `handoff`, `starting`, `claim`, `serving`, `drain`, `rehearsal`, `client` | the public types, one for each stage of a life |
//! | 3 | `driver`, `connection` | the one place where protocol meets I/O |
//! | 2 | `fdpass`, `lock`, `control`, `listener`, `namespace`, `pid_file`, `systemd`, `poller`, `wake`, `spare`, `table` | what the kernel offers, each by itself |
//! | 1 | `protocol`, `wire` | three state machines without I/O, descriptors or clock; frames |
//! | 0 | `error`, `manifest`, `status`, `words`, `shared`, `sys` | plain values; `sys` has all the `unsafe` code |
//!
//! [`protocol`] is the wire format, written down for whoever builds a peer in another language.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapter;
mod claim;
mod client;
mod connection;
mod control;
mod drain;
mod driver;
mod error;
mod fdpass;
mod handoff;
mod listener;
mod lock;
mod manifest;
mod namespace;
mod pid_file;
mod poller;
pub mod protocol;
mod rehearsal;
mod serving;
mod shared;
mod spare;
mod starting;
mod status;
mod sys;
#[cfg(feature = "systemd")]
mod systemd;
mod table;
mod wake;
mod wire;
mod words;

pub use adapter::mio;
pub use adapter::std::Accept;
#[cfg(feature = "tokio")]
pub use adapter::tokio;
pub use claim::Claim;
pub use client::Client;
pub use drain::{Drained, Draining, Summary};
pub use error::{Error, NameProblem, PathProblem, Refusal, Result, Who};
pub use handoff::{Handoff, Joining, Stopper};
pub use manifest::{Check, Entry, FileIdentity, Kind, SocketIdentity};
pub use protocol::predecessor::Reason;
pub use rehearsal::Rehearsal;
pub use serving::{Event, Lease, Serving};
pub use starting::{Committing, LastHolder, PredecessorInfo, Starting};
pub use status::{DrainStatus, ListenerStatus, Phase, Status, TakeoverStatus};
#[cfg(feature = "systemd")]
pub use systemd::SYSTEMD_VARIABLES;
pub use table::{Outcome, Report};

/// Keeps the README's code true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
