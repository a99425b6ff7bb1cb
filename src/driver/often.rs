//! What strangers can bring about as often as they like is in the log once a second, with how often it was not.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

/// How long the log is left alone after a line.
const PAUSE: Duration = Duration::from_secs(1);

/// When something was last said, and how often it has happened since.
#[derive(Debug, Default)]
pub(super) struct Often {
    said: Option<Instant>,
    unsaid: u64,
}

/// How often it has happened without a line, for the end of the next one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unsaid(u64);

impl Often {
    /// It has happened: `None` where the log has a line of it that is no second old.
    pub(super) fn say(&mut self, now: Instant) -> Option<Unsaid> {
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < PAUSE) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(Unsaid(std::mem::take(&mut self.unsaid)))
    }
}

impl Display for Unsaid {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "; {} more since the last line", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_a_second() {
        let (mut often, began) = (Often::default(), Instant::now());
        assert_eq!(often.say(began).unwrap().to_string(), "");
        for ms in 1..1000 {
            assert_eq!(often.say(began + Duration::from_millis(ms)), None);
        }
        let unsaid = often.say(began + PAUSE).unwrap();
        assert_eq!(unsaid.to_string(), "; 999 more since the last line");
        assert_eq!(often.say(began + PAUSE * 2).unwrap().to_string(), "");
    }
}
