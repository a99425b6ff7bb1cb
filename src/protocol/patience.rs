//! How long a process that does not own puts up with byte 1 being taken while nobody owns.

/// What it has found since somebody owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Patience {
    /// Somebody owned at the last look.
    Rested,
    /// A takeover of others is under way; it may take until the deadline of the commit.
    Tried,
    /// It took longer: byte 1 is kept by a process that is stopped.
    Gone,
}

impl Patience {
    /// Others are found at it. `true`: their time begins now.
    pub(super) fn try_it(&mut self) -> bool {
        let begins = *self == Patience::Rested;
        if begins {
            *self = Patience::Tried;
        }
        begins
    }

    /// Their time has passed.
    pub(super) fn run_out(&mut self) {
        if *self == Patience::Tried {
            *self = Patience::Gone;
        }
    }

    /// Somebody owns. `true`: the deadline of the others does not matter any more.
    pub(super) fn rest(&mut self) -> bool {
        std::mem::replace(self, Patience::Rested) != Patience::Rested
    }
}
