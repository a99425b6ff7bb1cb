//! The lock file as the kernel keeps it, and everybody else who may lock it, write it or die.

use arbitrary::Arbitrary;

use crate::protocol::predecessor::{Claim, Found};
use crate::protocol::successor::Lock;

/// Who holds byte 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Nobody,
    /// The process under test.
    This,
    Another,
}

/// What others do with the lock file.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Deed {
    /// Another process owns: it takes byte 0 where that is free, and writes the next generation.
    Own,
    /// The other owner dies, or unlocks for somebody.
    LetGo,
    /// Two others are at a takeover, or not any more.
    Bar(bool),
    /// The kernel has no answer for a while.
    Fail(bool),
}

/// The lock file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) holder: Holder,
    /// What the file says.
    pub(super) generation: u64,
    pub(super) nonce: u64,
    /// Others hold byte 1 shared.
    barred: bool,
    failing: bool,
}

impl Kernel {
    pub(super) fn new(holder: Holder, generation: u64, nonce: u64) -> Kernel {
        Kernel { holder, generation, nonce, barred: false, failing: false }
    }

    pub(super) fn suffer(&mut self, deed: Deed) {
        match deed {
            Deed::Own if self.holder == Holder::Nobody => {
                self.holder = Holder::Another;
                self.generation += 1;
                self.nonce = 0;
            }
            Deed::LetGo if self.holder == Holder::Another => self.holder = Holder::Nobody,
            Deed::Bar(barred) => self.barred = barred,
            Deed::Fail(failing) => self.failing = failing,
            Deed::Own | Deed::LetGo => {}
        }
    }

    /// The process under test writes: only under its lock, and no generation before the one that is there.
    pub(super) fn record(&mut self, generation: u64, nonce: u64) {
        assert_eq!(self.holder, Holder::This, "written without the lock");
        assert!(generation >= self.generation, "the generation goes back");
        (self.generation, self.nonce) = (generation, nonce);
    }

    pub(super) fn unlock(&mut self) {
        assert_eq!(self.holder, Holder::This, "unlocks what it does not have");
        self.holder = Holder::Nobody;
    }

    /// An owner of `generation` tries to take the lock back.
    pub(super) fn reclaim(&mut self, claim: Claim, generation: u64) -> Found {
        if self.failing {
            return Found::Unknown;
        }
        let shared = claim == Claim::Shared && self.generation == generation;
        if claim != Claim::Bare && !shared && self.barred {
            return if self.holder == Holder::Another { Found::Held } else { Found::Barred };
        }
        if self.holder == Holder::Another {
            return Found::Held;
        }
        self.holder = Holder::This;
        Found::Free(self.generation)
    }

    /// A successor tries to take the lock that it was offered.
    pub(super) fn commit(&mut self, generation: u64, nonce: u64, bare: bool) -> Lock {
        let ours = bare || self.generation == generation && (self.nonce == nonce || self.nonce == 0);
        match self.holder {
            _ if self.failing => Lock::Busy,
            Holder::Another if ours => Lock::Busy,
            Holder::Another => Lock::Foreign,
            _ if !ours && self.barred => Lock::Unsettled,
            _ => {
                self.holder = Holder::This;
                Lock::Taken { generation: self.generation }
            }
        }
    }
}
