//! In place of `supervised` and `passed`, where the feature `systemd` is off: nothing is passed, and nobody is told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::{Driver, Notice};
use crate::listener::Asked;
use crate::manifest::{Entry, Kind};
use crate::table::Outcome;

impl Driver {
    pub(crate) fn take_passed(
        &mut self,
        _: &Asked<'_>,
        _: &dyn Fn(&Entry) -> bool,
    ) -> Result<(OwnedFd, Outcome), Option<String>> {
        Err(None)
    }

    pub(crate) fn admit_passed(&mut self, _: &str) -> Option<Outcome> {
        None
    }

    pub(crate) fn passed_of(&self, _: &Kind) -> BTreeSet<String> {
        BTreeSet::new()
    }

    pub(crate) fn clear_way(&mut self, _: &dyn Fn(SocketAddr) -> bool) -> bool {
        false
    }

    pub(super) fn exit_when_heard(&mut self) {
        self.notices.push_back(Notice::Exit);
    }

    pub(super) fn meet_manager(&mut self) {}
    pub(super) fn weigh_passed(&mut self) {}
    pub(super) fn park(&mut self, _: &str) {}
    pub(super) fn unpark(&mut self, _: &str) {}
    pub(super) fn manager_answers(&mut self, _: usize) {}
    pub(super) fn manager_hears_progress(&mut self, _: &str) {}
    pub(super) fn manager_hears_serving(&mut self) {}
    pub(super) fn manager_hears_offer(&mut self) {}
    pub(super) fn manager_hears_again(&mut self) {}
    pub(super) fn manager_hears_leaving(&mut self) {}
    pub(super) fn manager_hears_stopping(&mut self) {}
    pub(super) fn manager_hears_drain(&mut self) {}
    pub(super) fn manager_hears_phase(&mut self) {}
}
