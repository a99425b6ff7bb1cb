//! A shortage of descriptors, which is met by waiting and not by ending.

use std::time::Duration;

/// The pause before another try. The kernel tells nobody when there is room again.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
