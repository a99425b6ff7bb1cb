//! Descriptors on their way to a successor: at most 253 a frame, and a bounded number of frames under way.

use crate::wire::MAX_DESCRIPTORS;

/// How many descriptors may be under way without an `Ack` at least: unix(7) counts those in flight per user against the
/// sender's soft limit (`ETOOMANYREFS`), and 2 * 253 fits the common one of 1,024.
const LEAST_WINDOW: u32 = 2 * MAX_DESCRIPTORS as u32;
/// And at most: as many frames as a socket buffer takes.
const MOST_WINDOW: u32 = 64 * MAX_DESCRIPTORS as u32;

/// How far a transfer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Transfer {
    total: u32,
    window: u32,
    sent: u32,
    acked: u32,
}

impl Transfer {
    pub(super) fn of(total: u32, window: u32) -> Transfer {
        Transfer { total, window: Transfer::window(window), sent: 0, acked: 0 }
    }

    /// As much of a window as the limits allow.
    pub(super) fn window(wanted: u32) -> u32 {
        wanted.clamp(LEAST_WINDOW, MOST_WINDOW)
    }

    /// The next frame that the window allows: its first descriptor and how many. It counts as sent.
    pub(super) fn next(&mut self) -> Option<(u32, u16)> {
        let (first, left) = (self.sent, self.total - self.sent);
        let count = left.min(u32::from(MAX_DESCRIPTORS));
        if count == 0 || first + count - self.acked > self.window {
            return None;
        }
        self.sent += count;
        Some((first, count as u16))
    }

    /// Takes note that so many have arrived, all together; `false` where that cannot be.
    pub(super) fn acknowledge(&mut self, descriptors: u32) -> bool {
        let plausible = descriptors > self.acked && descriptors <= self.sent;
        if plausible {
            self.acked = descriptors;
        }
        plausible
    }

    /// Whether everything has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.acked == self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_frames_are_under_way_and_each_ack_lets_one_more_go() {
        let mut transfer = Transfer::of(600, 0);
        assert_eq!(transfer.next(), Some((0, 253)));
        assert_eq!(transfer.next(), Some((253, 253)));
        assert_eq!(transfer.next(), None);
        assert!(!transfer.acknowledge(0) && !transfer.acknowledge(507));
        assert!(transfer.acknowledge(253));
        assert_eq!(transfer.next(), Some((506, 94)));
        assert_eq!(transfer.next(), None);
        assert!(!transfer.is_done() && transfer.acknowledge(600) && transfer.is_done());
    }
}
