//! Since when leases are held, without a lock: a child that was forked in the middle of something may drop its copies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many different seconds are told apart at a time. Where leases of more than so many are held, the younger ones have
/// no age.
const SLOTS: usize = 256;
/// In a slot: how many leases, below their second.
const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// How many leases of each second are held.
#[derive(Debug)]
pub(crate) struct Ages {
    began: Instant,
    slots: [AtomicU64; SLOTS],
}

/// Where a lease is counted, if it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age(Option<u16>);

impl Default for Ages {
    fn default() -> Ages {
        Ages { began: Instant::now(), slots: [const { AtomicU64::new(0) }; SLOTS] }
    }
}

impl Ages {
    /// Counts a lease from now on.
    pub(crate) fn take(&self) -> Age {
        self.take_at(self.began.elapsed().as_secs())
    }

    fn take_at(&self, second: u64) -> Age {
        let first = second as usize % SLOTS;
        // A slot whose second is long over, and not all of its leases, is passed over.
        for at in (first..SLOTS).chain(0..first) {
            let counted = self.slots[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |slot| {
                match (slot >> COUNT_BITS, slot & COUNT) {
                    (_, 0) => Some((second << COUNT_BITS) | 1),
                    (of, count) if of == second && count < COUNT => Some(slot + 1),
                    _ => None,
                }
            });
            if counted.is_ok() {
                return Age(Some(at as u16));
            }
        }
        Age(None)
    }

    /// Counts it no more.
    pub(crate) fn give_back(&self, age: Age) {
        if let Age(Some(at)) = age {
            self.slots[usize::from(at)].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How long ago the oldest began.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.oldest_at(self.began.elapsed().as_secs())
    }

    fn oldest_at(&self, now: u64) -> Option<Duration> {
        let slots = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let second = slots.filter(|slot| slot & COUNT > 0).map(|slot| slot >> COUNT_BITS).min()?;
        Some(Duration::from_secs(now.saturating_sub(second)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_one_that_is_still_held() {
        let ages = Ages::default();
        assert_eq!(ages.oldest_at(9), None);
        let (first, second) = (ages.take_at(1), ages.take_at(5));
        let third = ages.take_at(5);
        assert_eq!(ages.oldest_at(9), Some(Duration::from_secs(8)));
        ages.give_back(first);
        ages.give_back(second);
        assert_eq!(ages.oldest_at(9), Some(Duration::from_secs(4)));
        ages.give_back(third);
        assert_eq!(ages.oldest_at(9), None);
    }

    #[test]
    fn a_second_whose_slot_is_taken_by_an_old_lease_gets_another() {
        let ages = Ages::default();
        let old = ages.take_at(0);
        let later = ages.take_at(SLOTS as u64);
        assert_eq!(ages.oldest_at(300), Some(Duration::from_secs(300)));
        ages.give_back(old);
        assert_eq!(ages.oldest_at(300), Some(Duration::from_secs(300 - SLOTS as u64)));
        ages.give_back(later);
        // When there is no slot left, the youngest has no age, and the oldest keeps its own.
        let held: Vec<Age> = (0..SLOTS as u64).map(|second| ages.take_at(second)).collect();
        assert!(matches!(ages.take_at(1000), Age(None)));
        assert_eq!(ages.oldest_at(1000), Some(Duration::from_secs(1000)));
        held.into_iter().for_each(|age| ages.give_back(age));
        assert_eq!(ages.oldest_at(1000), None);
    }
}
