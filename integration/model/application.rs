//! What a program does with what it is told: the simplest that keeps its side of the contract, at any pace.

use std::collections::VecDeque;

use crate::protocol::message::Wants;
use crate::protocol::predecessor::Reason;

/// What the driver tells its application; it waits until the application looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    Started,
    Serving,
    Release,
    StandBy,
    Resume,
    Leave(Reason),
    Exit,
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Waits for the start to come to something.
    #[default]
    Starting,
    WarmingUp,
    /// Has said that it is ready.
    Committing,
    Serving,
    Draining,
}

/// An application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Application {
    pub(super) wants: Wants,
    pub(super) phase: Phase,
    pub(super) told: VecDeque<Told>,
    /// It accepts from the service's listener.
    pub(super) accepts: bool,
    /// Work that must not run twice is running.
    pub(super) works: bool,
    /// It was told to let go of that, and has not answered.
    pub(super) owes: bool,
    /// The driver watches for the end of the drain.
    pub(super) draining: bool,
}

impl Application {
    pub(super) fn new(wants: Wants) -> Application {
        Application { wants, ..Application::default() }
    }
}
