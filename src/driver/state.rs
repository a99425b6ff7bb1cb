//! The application's state: out at the release, in before the commit, and what the report says of it.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};

use log::warn;

use super::{Driver, Work};
use crate::error::{Error, Result};
use crate::manifest::StateKind;
use crate::protocol::message;
use crate::protocol::predecessor::{self, Peer};
use crate::protocol::successor;
use crate::shared::SharedFd;
use crate::state::{self, Snapshot, State};
use crate::table::StateOutcome;

/// The state of the predecessor, as far as it has come.
#[derive(Debug)]
pub(super) struct Arriving {
    announced: message::State,
    fd: Option<OwnedFd>,
}

impl Driver {
    /// The application has let go, and this is what its successor goes on with.
    pub(crate) fn released_with(&mut self, snapshot: Snapshot) -> Result<()> {
        self.enter()?;
        let Some(kind) = self.settings.state.clone() else { return self.released() };
        let (fd, length, checksum) = snapshot.seal().map_err(|error| Error::io("seal the state", error))?;
        self.departing = Some(fd.into());
        let state = message::State { schema: kind.schema, version: kind.version, length, checksum };
        self.owner(predecessor::Input::AppReleasedWith(state));
        self.leave()
    }

    /// The application cannot let go.
    pub(crate) fn keeps(&mut self, why: &str) -> Result<()> {
        self.enter()?;
        self.owner(predecessor::Input::AppKeeps(why.to_owned()));
        self.leave()
    }

    /// Sends the state and the one descriptor that holds it.
    pub(super) fn send_state(&mut self, peer: Peer, state: message::State) {
        let Some(fd): Option<SharedFd> = self.departing.take() else { return };
        self.send(peer, &state.into());
        if let Some(connection) = self.connections.get_mut(&peer) {
            connection.send_descriptors(vec![fd]);
        }
    }

    /// The predecessor announces its state: the descriptor comes in the next frame.
    pub(super) fn state_announced(&mut self, state: &message::State) {
        if self.arriving.is_none() {
            self.arriving = Some(Arriving { announced: state.clone(), fd: None });
        }
    }

    /// Whether the next descriptor is that of the state.
    pub(super) fn expects_state(&self) -> bool {
        self.arriving.as_ref().is_some_and(|arriving| arriving.fd.is_none())
    }

    /// Checks the descriptor of the state and keeps it.
    pub(super) fn keep_state(&mut self, descriptors: Vec<OwnedFd>) {
        let input = match self.check_state(descriptors) {
            Ok(()) => successor::Input::StateArrived,
            Err(error) => successor::Input::Lied(self.withdraw_for(error)),
        };
        self.work.push_back(Work::Successor(input));
    }

    pub(super) fn check_state(&mut self, mut descriptors: Vec<OwnedFd>) -> Result<()> {
        let (Some(arriving), Some(fd), true) = (&mut self.arriving, descriptors.pop(), descriptors.is_empty()) else {
            return Err(Error::Misbehaved("a state is one descriptor".to_owned()));
        };
        let looked = state::examine(fd.as_fd(), arriving.announced.length);
        let wrong = looked.map_err(|error| Error::io("look at the state", error))?;
        if let Some((check, expected, found)) = wrong {
            return Err(Error::Mismatch { name: "the state".to_owned(), check, expected, found });
        }
        arriving.fd = Some(fd);
        Ok(())
    }

    /// The state of the predecessor, where the application can read it; else it starts cold, and the report says why.
    pub(crate) fn take_state(&mut self, schema: &str, versions: RangeInclusive<u32>) -> Option<State> {
        let Arriving { announced, fd: Some(fd) } = self.arriving.take()? else { return None };
        let kind = StateKind { schema: announced.schema, version: announced.version };
        let taken = if kind.schema != schema {
            Err(format!("it is {kind}, and {schema:?} was wanted"))
        } else if !versions.contains(&kind.version) {
            Err(format!("it is {kind}, and {} to {} can be read", versions.start(), versions.end()))
        } else {
            State::new(kind, fd, announced.length, announced.checksum).map_err(|error| error.to_string())
        };
        match taken {
            Ok(state) => Some(state),
            Err(why) => {
                self.starts_cold(&why);
                None
            }
        }
    }

    /// The application does without its predecessor's state.
    pub(crate) fn starts_cold(&mut self, why: &str) {
        warn!("starting cold: {why}");
        self.table.report.state = Some(StateOutcome::Cold { why: why.to_owned() });
    }

    /// The state that the successor gave back, where it did.
    pub(super) fn came_back(&self) -> Option<StateOutcome> {
        let Arriving { announced, fd: Some(_) } = self.arriving.as_ref()? else { return None };
        let (schema, version, length) = (announced.schema.clone(), announced.version, announced.length);
        Some(StateOutcome::Inherited { schema, version, length })
    }

    /// What there is of the state at the commit.
    pub(super) fn report_state(&mut self) {
        if self.settings.state.is_none() {
            return;
        }
        let cold = |why: &str| StateOutcome::Cold { why: why.to_owned() };
        let outcome = match (&self.arriving, &self.successor) {
            (Some(Arriving { announced, fd: Some(_) }), _) => StateOutcome::Inherited {
                schema: announced.schema.clone(),
                version: announced.version,
                length: announced.length,
            },
            (_, None) => cold("first of its family"),
            (_, Some(successor)) if successor.state_kind().is_none() => cold("the predecessor has none"),
            // The end of the link may be news before the death is.
            (_, Some(successor)) if successor.predecessor_died() || self.link.is_none() => {
                cold("the predecessor was gone before it was sent")
            }
            _ => cold("the predecessor sent none"),
        };
        self.table.report.state = Some(outcome);
    }

    /// What the predecessor's state is written in, where it has one.
    pub(crate) fn state_kind(&self) -> Option<&StateKind> {
        self.successor.as_ref().and_then(successor::Successor::state_kind)
    }
}
