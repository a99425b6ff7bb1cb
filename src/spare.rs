//! Descriptors kept for the moment in which the application has used up all others: a takeover is the way out of such a
//! shortage, so it must not need what is short.

use std::os::fd::{AsFd, OwnedFd};

/// As many as a takeover needs of its owner: the connection and its pidfd, and, where they could not be made ready
/// before, the successor's lock description and this process's own pidfd.
const SPARES: usize = 4;

/// The descriptors, as far as there are any.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    kept: Vec<OwnedFd>,
}

impl Spares {
    /// Keeps duplicates of a descriptor that is open anyway, as many as are missing. In a shortage it stays at fewer.
    pub(crate) fn refill(&mut self, from: &impl AsFd) {
        while self.kept.len() < SPARES {
            match from.as_fd().try_clone_to_owned() {
                Ok(spare) => self.kept.push(spare),
                Err(_) => return,
            }
        }
    }

    /// Frees some; `false` where none is left.
    pub(crate) fn free(&mut self, count: usize) -> bool {
        let left = self.kept.len().saturating_sub(count);
        let freed = left < self.kept.len();
        self.kept.truncate(left);
        freed
    }

    /// Frees all.
    pub(crate) fn free_all(&mut self) {
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_are_kept_freed_and_kept_again() {
        let mut spares = Spares::default();
        assert!(!spares.free(1));
        let file = std::fs::File::open("/dev/null").unwrap();
        spares.refill(&file);
        assert_eq!(spares.kept.len(), SPARES);
        assert!(spares.free(SPARES - 1) && spares.free(2) && !spares.free(1));
        spares.refill(&file);
        assert_eq!(spares.kept.len(), SPARES);
    }
}
