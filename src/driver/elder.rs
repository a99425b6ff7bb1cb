//! The predecessor after the commit: how far its drain is, and how it ended.

use std::os::fd::AsFd;
use std::time::Duration;

use log::info;

use super::{Driver, Key, Notice, Work};
use crate::error::Result;
use crate::protocol::message::{Bye, Draining};
use crate::protocol::predecessor;
use crate::protocol::successor::{self, Successor};
use crate::status::{DrainStatus, PredecessorEnd};

/// The longest wait: more is where clocks overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl Driver {
    /// This process serves: from here on its predecessor drains, where it is not dead already.
    pub(super) fn meet_elder(&mut self) {
        match &self.successor {
            None => self.elder_end = Some(PredecessorEnd::Absent),
            Some(successor) if successor.predecessor_died() => self.elder_end = Some(PredecessorEnd::Killed),
            Some(successor) => {
                self.elder = Some(DrainStatus {
                    who: successor.predecessor().clone(),
                    generation: successor.generation().checked_sub(1),
                    ..DrainStatus::default()
                });
            }
        }
    }

    pub(super) fn elder_drains(&mut self, draining: Draining) {
        // By its drain link it says the same, and more.
        if !self.drainers.hears_predecessor() {
            self.elder_tells(Some(draining.in_flight), draining.left_ms);
        }
    }

    pub(super) fn elder_says_bye(&mut self, bye: Bye) {
        self.note_later_step("drained");
        info!("predecessor left{}", if bye.forced { " at its drain deadline" } else { "" });
        self.elder_bye = Some(bye.forced);
        self.elder_tells(Some(bye.in_flight), None);
        if bye.stays && self.elder.take().is_some() {
            // What else its process does is no part of a drain.
            self.forget_predecessors_link();
            self.remove_dropped();
            self.steer_groups();
            self.elder_ended();
        }
    }

    pub(super) fn elder_tells(&mut self, in_flight: Option<u64>, left_ms: Option<u64>) {
        if let Some(elder) = &mut self.elder {
            elder.in_flight = in_flight;
            elder.left_ms = left_ms;
            self.changed = true;
        }
    }

    /// The predecessor's pidfd became readable. What it had sent is read first, then the death counts.
    pub(super) fn elder_died(&mut self) {
        let Some(pidfd) = self.elder_pidfd.take() else { return };
        self.poller.forget(pidfd.as_fd());
        let drained = self.elder.take().is_some();
        if drained {
            self.changed = true;
            self.remove_dropped();
            self.steer_groups();
        }
        if let Some(link) = self.link {
            self.talk(link);
        }
        self.forget_predecessors_link();
        if drained {
            self.note_later_step("gone");
            self.elder_ended();
        }
        // A child of the dead may hold the other end open for ever; nothing more will come.
        if let Some(link) = self.link.take() {
            self.forget_peer(link);
        }
        self.work.push_back(Work::Successor(successor::Input::Died));
        self.owner_hears_of_elder(predecessor::Input::Died);
    }

    fn elder_ended(&mut self) {
        let end = match self.elder_bye {
            Some(false) => PredecessorEnd::Clean,
            Some(true) => PredecessorEnd::Forced,
            None => PredecessorEnd::Killed,
        };
        info!("predecessor gone: {end}");
        self.elder_end = Some(end);
        self.notices.push_back(Notice::PredecessorGone(end));
    }

    /// The predecessor, while there is one that is not known to be dead.
    pub(crate) fn elder(&self) -> Option<&crate::error::Who> {
        let successor = self.successor.as_ref()?;
        (!successor.predecessor_died()).then(|| successor.predecessor())
    }

    /// The predecessor while it drains, as it last told.
    pub(crate) fn drainer(&self) -> Option<&DrainStatus> {
        self.elder.as_ref()
    }

    /// How the predecessor ended; `None` as long as it is there.
    pub(crate) fn elder_end(&self) -> Option<PredecessorEnd> {
        self.elder_end
    }

    /// Sets a deadline for the end of the predecessor, so that the descriptor becomes readable when it passes.
    pub(crate) fn await_elder(&mut self, within: Duration) -> Result<()> {
        self.enter()?;
        self.poller.arm(Key::Elder, within.min(LONGEST));
        self.leave()
    }

    /// One look of who waits for the end of the predecessor: `None` where he has to wait on. What else has happened is
    /// left for the application, and ends the wait.
    pub(crate) fn look_for_elder(&mut self) -> Result<Option<Option<PredecessorEnd>>> {
        self.process()?;
        let over = self.poller.deadline(Key::Elder).is_none();
        if self.elder_end.is_none() && self.notices.is_empty() && !over {
            return Ok(None);
        }
        self.poller.disarm(Key::Elder);
        self.leave()?;
        Ok(Some(self.elder_end))
    }

    /// Whether dropping everything now would close the last copies of inherited listeners: the predecessor is dead.
    pub(crate) fn is_last_holder(&self) -> bool {
        self.successor.as_ref().is_some_and(Successor::predecessor_died) && self.table.len() > 0
    }
}
