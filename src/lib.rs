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
//! Who knows tableflip, listenfd, ecdysis or shellflip finds each of their calls in `heirloom::coming_from` (with the feature
//! `tokio`), and what each of them does in `heirloom::compared`. [`testing`] is for the tests of a program of your own.
//!
//! # A map of the code
//!
//! Arrows point down only; a test reads the `use crate::` lines and fails when one points up.
//!
//! | layer | modules | what they are for |
//! |---|---|---|
//! | 6 | `bin/ctl` | the program, on the public API and `probe` |
//! | 5 | `adapter::{std, mio, tokio}` | faces: how a program waits |
//! | 4 | `handoff`, `starting`, `claim`, `group`, `serving`, `drain`, `rehearsal`, `holder`, `client`, `testing` | the public types, one for each stage of a life |
//! | 4 | `probe` | a peer that need not behave, for the program alone |
//! | 3 | `driver`, `connection`, `rescue`; `elsewhere` off Linux | the one place where protocol meets I/O |
//! | 2 | `fdpass`, `lock`, `control`, `folder`, `listener`, `steering`, `state`, `namespace`, `pid_file`, `systemd`, `poller`, `wake`, `spare`, `table`, `temporary`, `inventory`, `wreck` | what the kernel offers, each by itself |
//! | 1 | `protocol`, `wire` | four state machines without I/O, descriptors or clock; frames |
//! | 0 | `ages`, `deadline`, `error`, `guests`, `hold`, `manifest`, `status`, `history`, `words`, `shared`, `sys` | plain values; `sys` has all the `unsafe` code |
//!
//! [`protocol`] is the wire format, written down for whoever builds a peer in another language.
#![doc = include_str!("security.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "what is below the public types has no use there"))]

mod adapter;
mod ages;
mod claim;
#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod connection;
#[cfg(target_os = "linux")]
mod control;
mod deadline;
mod drain;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
mod error;
#[cfg(target_os = "linux")]
mod fdpass;
#[cfg(target_os = "linux")]
mod folder;
/// Every door that bytes and events of others come in by, for `cargo fuzz` and for the unit tests.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[path = "../integration/fuzz/entry/mod.rs"]
pub mod fuzz;
mod group;
mod guests;
mod handoff;
mod history;
mod hold;
mod holder;
#[cfg(target_os = "linux")]
mod inventory;
#[cfg(target_os = "linux")]
mod listener;
#[cfg(target_os = "linux")]
mod lock;
mod manifest;
#[cfg(target_os = "linux")]
mod namespace;
#[cfg(target_os = "linux")]
mod pid_file;
#[cfg(target_os = "linux")]
mod poller;
#[cfg(all(feature = "ctl", target_os = "linux"))]
pub mod probe;
pub mod protocol;
mod rehearsal;
#[cfg(all(feature = "ctl", target_os = "linux"))]
pub mod rescue;
mod serving;
mod shared;
mod spare;
mod starting;
#[cfg(target_os = "linux")]
mod state;
mod status;
#[cfg(target_os = "linux")]
mod steering;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(all(feature = "systemd", target_os = "linux"))]
mod systemd;
mod table;
mod temporary;
pub mod testing;
#[cfg(target_os = "linux")]
mod wake;
mod wire;
mod words;
#[cfg(all(feature = "ctl", target_os = "linux"))]
mod wreck;

#[cfg(not(target_os = "linux"))]
use elsewhere::{client, control, driver, folder, listener, state, sys, wake};

pub use adapter::mio;
pub use adapter::std::Accept;
#[cfg(feature = "tokio")]
pub use adapter::tokio;
pub use claim::Claim;
pub use client::Client;
pub use drain::{Drained, Draining, Summary};
pub use error::{Error, NameProblem, NetworkNamespace, PathProblem, Refusal, Result, Who};
pub use group::Group;
pub use handoff::{Handoff, Joining, Stopper};
pub use history::{Cause, Side, StepTime, TakeoverRecord};
pub use hold::{Hold, SetBy};
pub use holder::{Holder, HolderEvent};
pub use manifest::{Check, Entry, FileIdentity, Kind, SocketIdentity, StateKind};
pub use protocol::predecessor::Reason;
pub use rehearsal::Rehearsal;
pub use serving::{Event, Lease, Serving};
pub use starting::{Committing, LastHolder, PredecessorInfo, Starting};
pub use state::{Snapshot, State};
pub use status::{DrainStatus, ListenerStatus, Phase, PredecessorEnd, ProbationStatus, Status, TakeoverStatus};
#[cfg(all(feature = "systemd", target_os = "linux"))]
pub use systemd::SYSTEMD_VARIABLES;
pub use table::{Outcome, Report, StateOutcome};

#[doc = include_str!("coming_from.md")]
#[cfg(all(feature = "tokio", any(doc, doctest)))]
pub mod coming_from {}

#[doc = include_str!("compared.md")]
#[cfg(any(doc, doctest))]
pub mod compared {}

/// Keeps the README's code true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
