//! A rehearsal, as the owner sees it: beside a takeover, and ended by one.

use super::super::Timer;
use super::super::message::{Abort, Message};
use super::super::transfer::Transfer;
use super::{Output, Peer, Predecessor, pump};
use crate::error::Refusal;

/// A look at the entries by somebody who takes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rehearsal {
    pub(super) peer: Peer,
    /// How many were announced to it: entries may come and go while it looks.
    pub(super) entries: u32,
    pub(super) transfer: Option<Transfer>,
}

impl Predecessor {
    pub(super) fn rehearse(&mut self, peer: Peer, message: Message, out: &mut Vec<Output>) {
        let Some(rehearsal) = &mut self.rehearsal else { return };
        match (&mut rehearsal.transfer, message) {
            (None, Message::Room(room)) if room.descriptors >= rehearsal.entries => {
                let mut transfer = Transfer::of(rehearsal.entries, self.window);
                pump(peer, &mut transfer, out);
                rehearsal.transfer = Some(transfer);
            }
            (Some(transfer), Message::Ack(ack)) => {
                if transfer.acknowledge(ack.descriptors) {
                    pump(peer, transfer, out);
                } else {
                    self.fault(peer, "ack of something that was not sent".to_owned(), out);
                }
            }
            (_, Message::Abort(_)) => {
                out.push(Output::Close(peer));
                self.gone(peer, out);
            }
            (_, message) => self.fault(peer, format!("{} in a rehearsal", message.word()), out),
        }
    }

    pub(super) fn end_rehearsal(&mut self, why: Refusal, out: &mut Vec<Output>) {
        if let Some(rehearsal) = self.rehearsal.take() {
            out.push(Output::Disarm(Timer::Rehearsal));
            out.push(Output::Send(rehearsal.peer, Abort(why).into()));
            out.push(Output::Close(rehearsal.peer));
        }
    }

    pub(super) fn is_rehearsal(&self, peer: Peer) -> bool {
        self.rehearsal.as_ref().is_some_and(|rehearsal| rehearsal.peer == peer)
    }
}
