//! The processes that keep the entries beside an owner, as that owner sees them.
//!
//! Each has a session: everything is sent as for a takeover, and then the link stays, so that the holder hears when it has
//! to ask anew. Nothing of it changes what the owner does, and a takeover waits for none of them.

use std::time::Duration;

use super::super::FAMILY_SLOTS;
use super::super::message::{Abort, Changed, Held, Hello, Message, cut};
use super::super::transfer::Transfer;
use super::{Notice, Output, Peer, Predecessor, pump};
use crate::error::{Refusal, Who};
use crate::hold::Hold;

/// The most holders at once.
const MAX_HOLDERS: usize = 4;

/// One connection of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    peer: Peer,
    /// That of the holder: a session in which it asks anew has the same one.
    nonce: u64,
    who: Who,
    replaces: bool,
    /// It goes on with a hold, should it own.
    takes_hold: bool,
    /// It was told that the entries have changed.
    told: bool,
    total: u32,
    transfer: Option<Transfer>,
}

impl Session {
    /// Whether it has everything.
    fn is_whole(&self) -> bool {
        self.transfer.as_ref().is_some_and(Transfer::is_done)
    }
}

impl Predecessor {
    /// Whether this peer keeps the entries, or is about to.
    pub(crate) fn is_holder(&self, peer: Peer) -> bool {
        self.holders.has(peer)
    }

    /// The processes that keep the entries.
    pub(crate) fn holders(&self) -> Vec<Who> {
        self.holders.whole()
    }

    pub(super) fn end_holders(&mut self, why: Refusal, out: &mut Vec<Output>) {
        self.holders.end(&why, out, |_| true);
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Holders {
    sessions: Vec<Session>,
}

impl Holders {
    /// Whether one more may come. A holder that asks anew is none.
    pub(super) fn admit(&self, nonce: u64) -> Result<(), Refusal> {
        let mut others: Vec<u64> = self.sessions.iter().map(|session| session.nonce).collect();
        others.sort_unstable();
        others.dedup();
        if others.len() < MAX_HOLDERS || others.contains(&nonce) {
            return Ok(());
        }
        Err(Refusal::new("holders", format!("{MAX_HOLDERS} processes keep the listeners already")))
    }

    /// Begins a session: the offer is about to be sent.
    pub(super) fn open(&mut self, peer: Peer, hello: Hello, total: u32, out: &mut Vec<Output>) {
        // An attempt of the same holder that it has given up, of which this side does not know yet.
        let stuck = |session: &Session| session.nonce == hello.nonce && !session.is_whole();
        self.end_where(&Refusal::new("preempted", "the holder asks anew"), out, stuck);
        let who = Who { pid: hello.pid, app_version: cut(hello.app_version) };
        let (nonce, replaces, takes_hold) = (hello.nonce, hello.replaces, hello.hold);
        self.sessions.push(Session { peer, nonce, who, replaces, takes_hold, told: false, total, transfer: None });
    }

    /// What a holder says. `Err`: it has broken the protocol.
    pub(super) fn message(
        &mut self,
        peer: Peer,
        message: Message,
        window: u32,
        handshake: Duration,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        let Some(session) = self.sessions.iter_mut().find(|session| session.peer == peer) else { return Ok(()) };
        match (&mut session.transfer, message) {
            (None, Message::Room(room)) if room.descriptors >= session.total => {
                let mut transfer = Transfer::of(session.total, window);
                pump(peer, &mut transfer, out);
                session.transfer = Some(transfer);
                out.push(Output::ArmHolder(peer, handshake));
            }
            (Some(transfer), Message::Ack(ack)) if !transfer.is_done() => {
                if !transfer.acknowledge(ack.descriptors) {
                    return Err("ack of something that was not sent".to_owned());
                }
                pump(peer, transfer, out);
                if transfer.is_done() {
                    self.completed(peer, out);
                } else {
                    out.push(Output::ArmHolder(peer, handshake));
                }
            }
            (_, Message::Abort(_)) => {
                out.push(Output::Close(peer));
                self.gone(peer, out);
            }
            (_, message) => return Err(format!("{} from a holder", message.word())),
        }
        Ok(())
    }

    /// A holder has everything. What it had before is nobody's any more, and neither is that of those that it replaces.
    fn completed(&mut self, peer: Peer, out: &mut Vec<Output>) {
        out.push(Output::DisarmHolder(peer));
        let Some(session) = self.sessions.iter().find(|session| session.peer == peer) else { return };
        let (nonce, replaces) = (session.nonce, session.replaces);
        self.end_where(&Refusal::new("preempted", "the holder has asked anew"), out, |session| {
            session.nonce == nonce && session.peer != peer
        });
        if replaces {
            self.end_where(
                &Refusal::new("replaced", "another holder was started in place of this one"),
                out,
                |session| session.nonce != nonce,
            );
            out.push(Output::Tells(Notice::Replaced));
        }
    }

    /// The entries have changed: each holder is told once, and asks anew.
    pub(super) fn changed(&mut self, out: &mut Vec<Output>) {
        for session in self.sessions.iter_mut().filter(|session| !session.told) {
            session.told = true;
            out.push(Output::Send(session.peer, Changed {}.into()));
        }
    }

    /// The hold of the service is another one, or over.
    pub(super) fn hold_changed(&self, hold: Option<&Hold>, out: &mut Vec<Output>) {
        for session in self.sessions.iter().filter(|session| session.takes_hold) {
            out.push(Output::Send(session.peer, Held { hold: hold.cloned() }.into()));
        }
    }

    /// A connection is at its end.
    pub(super) fn gone(&mut self, peer: Peer, out: &mut Vec<Output>) {
        self.sessions.retain(|session| {
            let gone = session.peer == peer;
            if gone && !session.is_whole() {
                out.push(Output::DisarmHolder(peer));
            }
            !gone
        });
    }

    /// One has not said the next thing in time.
    pub(super) fn expired(&mut self, peer: Peer, out: &mut Vec<Output>) {
        let why = Refusal::new("deadline", "the holder did not answer, or did not take everything, in time");
        self.end_where(&why, out, |session| session.peer == peer && !session.is_whole());
    }

    /// Ends those that do not have everything yet.
    pub(super) fn end_unfinished(&mut self, why: &Refusal, out: &mut Vec<Output>) {
        self.end_where(why, out, |session| !session.is_whole());
    }

    /// Ends some, by their connection.
    pub(super) fn end(&mut self, why: &Refusal, out: &mut Vec<Output>, of: impl Fn(Peer) -> bool) {
        self.end_where(why, out, |session| of(session.peer));
    }

    fn end_where(&mut self, why: &Refusal, out: &mut Vec<Output>, of: impl Fn(&Session) -> bool) {
        self.sessions.retain(|session| {
            let end = of(session);
            if end {
                if !session.is_whole() {
                    out.push(Output::DisarmHolder(session.peer));
                }
                out.push(Output::Send(session.peer, Abort(why.clone()).into()));
                out.push(Output::Close(session.peer));
            }
            !end
        });
    }

    pub(super) fn has(&self, peer: Peer) -> bool {
        self.sessions.iter().any(|session| session.peer == peer)
    }

    /// Those that have everything, for a status.
    pub(super) fn whole(&self) -> Vec<Who> {
        let mut seen = Vec::new();
        let mut whole = Vec::new();
        for session in self.sessions.iter().filter(|session| session.is_whole() && session.total >= FAMILY_SLOTS) {
            if !seen.contains(&session.nonce) {
                seen.push(session.nonce);
                whole.push(session.who.clone());
            }
        }
        whole
    }
}
