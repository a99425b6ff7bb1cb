//! What a process that serves is at, for the tasks beside the one that owns it: [`Life`].

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::protocol::predecessor::Reason;
use crate::serving::Lease;
use crate::wake::Wake;

/// What a process is at. Clones tell the same.
///
/// It learns what happens while the [`Serving`](super::Serving) that it came from is waited on, by
/// [`run`](super::Serving::run) for example. All of its futures own what they need, and are safe to cancel.
#[derive(Clone, Debug)]
pub struct Life {
    turn: watch::Sender<Turn>,
    wake: Arc<Wake>,
}

impl Life {
    /// The generation that this process owns, or owned last.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.turn.borrow().generation
    }

    /// Why this process has been told to leave; `None` while it serves. A good question to ask for each response: the
    /// next one on a kept-alive connection should say `Connection: close`.
    #[must_use]
    pub fn left(&self) -> Option<Reason> {
        self.turn.borrow().left
    }

    /// Counts as in flight until it is dropped.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease::new(self.wake.clone())
    }

    /// Ends when this process has been told to leave and has nothing more to accept: at once where a successor serves,
    /// and after a stop when each [`Incoming`](super::Incoming) has found its queue empty.
    ///
    /// That is the time to shut a server down whose protocol has a word for it: HTTP/2 has `GOAWAY`, which loses no
    /// request that is on its way.
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + use<> {
        self.until(Turn::leaves)
    }

    /// Ends when connections may be closed though they are idle. After a stop that is when [`leaving`](Life::leaving)
    /// is. Where a successor serves it is the end of the drain: until then a connection that is kept alive may have its
    /// next request on the way, and the answer to it is the place to say `Connection: close`.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        self.until(Turn::closes)
    }

    pub(super) fn turns(&self) -> watch::Receiver<Turn> {
        self.turn.subscribe()
    }

    pub(super) fn accepts(&self) -> bool {
        self.turn.borrow().phase() == Phase::Accepts
    }

    /// Counts someone who accepts, unless this process has been told to leave. Gives whether he is counted.
    pub(super) fn open(&self) -> bool {
        let mut counted = false;
        self.turn.send_if_modified(|turn| {
            counted = turn.phase() == Phase::Accepts;
            turn.open += usize::from(counted);
            false
        });
        counted
    }

    /// One of those who were counted accepts no more.
    pub(super) fn close(&self) {
        self.turn.send_if_modified(|turn| {
            turn.open -= 1;
            if turn.open == 0 {
                turn.emptying = None;
            }
            turn.open == 0
        });
    }

    fn until(&self, reached: fn(&Turn) -> bool) -> impl Future<Output = ()> + Send + use<> {
        let mut turns = self.turns();
        async move {
            // Fails where nobody is left who could tell; then the last word was that it is over.
            let _ = turns.wait_for(reached).await;
        }
    }
}

/// Tells every [`Life`] what happens; when it is dropped, that it is over.
#[derive(Debug)]
pub(super) struct Teller(Life);

impl Teller {
    pub(super) fn new(generation: u64, wake: Arc<Wake>) -> Teller {
        let turn = Turn { generation, standing_by: false, left: None, over: false, open: 0, emptying: None };
        Teller(Life { turn: watch::Sender::new(turn), wake })
    }

    pub(super) fn life(&self) -> &Life {
        &self.0
    }

    pub(super) fn stands_by(&self) {
        self.0.turn.send_modify(|turn| turn.standing_by = true);
    }

    pub(super) fn left(&self, reason: Reason) {
        let lease = self.0.lease();
        self.0.turn.send_modify(|turn| {
            turn.left = Some(reason);
            // What waits in a queue is in flight: the drain must not end before somebody has looked.
            if turn.phase() == Phase::Empties && turn.open > 0 {
                turn.emptying = Some(lease);
            }
        });
    }

    pub(super) fn resumed(&self, generation: u64) {
        self.0.turn.send_modify(|turn| {
            turn.generation = generation;
            turn.standing_by = false;
            turn.left = None;
            turn.emptying = None;
        });
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.turn.send_modify(|turn| {
            turn.over = true;
            turn.emptying = None;
        });
    }
}

/// What there is to tell.
#[derive(Debug)]
pub(super) struct Turn {
    generation: u64,
    standing_by: bool,
    left: Option<Reason>,
    /// The drain has ended, or the owner of all this was dropped.
    over: bool,
    /// How many accept, and may yet find something in their queue after a stop.
    open: usize,
    /// Held from a stop until the last of those has looked.
    emptying: Option<Lease>,
}

/// What to do about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Accepts,
    /// Another process accepts.
    Waits,
    /// Nobody comes after this process: what waits is served, and then it closes.
    Empties,
    Over,
}

impl Turn {
    pub(super) fn phase(&self) -> Phase {
        match self.left {
            _ if self.over => Phase::Over,
            Some(reason) if reason.is_served() => Phase::Waits,
            Some(_) => Phase::Empties,
            None if self.standing_by => Phase::Waits,
            None => Phase::Accepts,
        }
    }

    fn leaves(&self) -> bool {
        self.closes() || self.left.is_some_and(Reason::is_served)
    }

    fn closes(&self) -> bool {
        match self.phase() {
            Phase::Over => true,
            Phase::Empties => self.open == 0,
            Phase::Accepts | Phase::Waits => false,
        }
    }
}
