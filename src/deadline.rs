//! Points in time that are so far away as somebody wants them.

use std::time::{Duration, Instant};

/// The longest time that anything is waited for. More means that there is to be no limit, and clocks end before
/// [`Duration::MAX`] does.
pub(crate) const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The moment that is so far away, 366 days at most.
pub(crate) fn after(time: Duration) -> Instant {
    Instant::now() + time.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_too_long() {
        let far = after(Duration::MAX);
        assert!(far > after(LONGEST / 2) && far.duration_since(Instant::now()) <= LONGEST);
    }
}
