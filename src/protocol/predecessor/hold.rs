//! A hold: for its time the owner refuses takeovers, calls off what can be called off, and lets whoever may own next know.

use super::super::message::{Done, Held, cut};
use super::{Output, Peer, Predecessor, Stage, Step};
use crate::error::Refusal;
use crate::hold::Hold;

/// The code of a refusal during a hold.
pub(crate) const HELD: &str = "held";

impl Predecessor {
    /// Why takeovers are refused, where they are.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// What a predecessor has said of a hold before this process owned.
    pub(crate) fn inherit_hold(&mut self, hold: Option<Hold>) {
        self.hold = self.heard(hold);
    }

    /// The same, while this process may own again.
    pub(super) fn hear_hold(&mut self, hold: Option<Hold>, out: &mut Vec<Output>) {
        self.set_hold(self.heard(hold), out);
    }

    /// A hold that others have set. Whoever only keeps what a dead service had lets the next start in: without a holder that
    /// start would meet nobody who could refuse it.
    fn heard(&self, hold: Option<Hold>) -> Option<Hold> {
        hold.map(|hold| Hold { suspended: self.keeps, ..hold })
    }

    /// Whether a takeover is refused.
    pub(super) fn bars_takeovers(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| !hold.suspended)
    }

    /// Somebody who may wants takeovers to be refused from now on, or no longer.
    pub(super) fn ask_hold(&mut self, peer: Peer, hold: Option<Hold>, out: &mut Vec<Output>) {
        let refusal = match &self.stage {
            Stage::Leaving { .. } | Stage::StandingBy(_) => {
                Some(("draining", "this process is no longer the owner", Some(100)))
            }
            Stage::Stopping | Stage::Gone => Some(("stopping", "the owner is about to stop", Some(500))),
            // It would be lost with this process, and it is too late to call the takeover off.
            Stage::Released(heir) | Stage::Silent(heir) if !heir.takes_hold => {
                Some(("unsupported", "an older version takes over at this moment, and knows no hold", None))
            }
            _ => None,
        };
        if let Some((code, message, retry_after_ms)) = refusal {
            return out.push(Output::Refuse(peer, Refusal { retry_after_ms, ..Refusal::new(code, message) }));
        }
        out.push(Output::Send(peer, Done {}.into()));
        let lifted = hold.is_none() && self.hold.is_some();
        // Whoever says so now means whoever answers now.
        self.set_hold(hold.map(|hold| Hold { suspended: false, ..hold }), out);
        match &self.stage {
            // A way back is no takeover, and the predecessor hears of the hold in any case.
            _ if self.returns() => {}
            // What cannot be called off goes on, and the hold with it.
            Stage::HandingOver(heir, Step::Releasing | Step::SendingState)
            | Stage::Released(heir)
            | Stage::Silent(heir)
                if heir.takes_hold =>
            {
                out.push(Output::Send(heir.peer, Held { hold: self.hold.clone() }.into()));
            }
            Stage::HandingOver(..) if self.hold.is_some() => self.abort(self.held(), out),
            // One that was suspended, of which the heir has heard with the offer.
            Stage::HandingOver(heir, _) if lifted && heir.takes_hold => {
                out.push(Output::Send(heir.peer, Held { hold: None }.into()));
            }
            _ => {}
        }
    }

    fn set_hold(&mut self, hold: Option<Hold>, out: &mut Vec<Output>) {
        self.hold = hold.map(|hold| Hold { reason: cut(hold.reason), ..hold });
        out.push(Output::Hold(self.hold.clone()));
        self.holders.hold_changed(self.hold.as_ref(), out);
    }

    /// The refusal of a takeover while there is a hold. How long that still lasts the driver knows better.
    pub(super) fn held(&self) -> Refusal {
        let hold = self.hold.clone().unwrap_or_default();
        Refusal { retry_after_ms: hold.left_ms, ..Refusal::new(HELD, hold.reason) }
    }
}
