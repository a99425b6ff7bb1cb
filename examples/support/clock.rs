//! The clock that all processes of one machine share, and what beats after it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The time since the machine started. Two processes that note it can be compared, and nobody sets it.
pub(crate) fn now() -> Duration {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    clock.now().expect("every Linux has a monotonic clock").into()
}

/// Gives the beat to some listeners in turn, at a fixed rate, whatever they do meanwhile: who comes late finds the
/// beats that he missed, each with the time at which it was due.
///
/// A thread, since tokio's own timers round to the millisecond, which is as long as what is measured with this.
#[derive(Debug)]
pub(crate) struct Metronome {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Metronome {
    /// Starts with `rate` beats a second, of all listeners together.
    pub(crate) fn start(rate: u32, listeners: u32) -> io::Result<(Metronome, Vec<UnboundedReceiver<Duration>>)> {
        let (listeners, beats): (Vec<_>, Vec<_>) = (0..listeners).map(|_| unbounded_channel()).unzip();
        let stopped = Arc::new(AtomicBool::new(false));
        let period = Duration::from_secs(1) / rate;
        let thread = thread::Builder::new().name("metronome".to_owned()).spawn({
            let stopped = Arc::clone(&stopped);
            move || beat(&listeners, period, &stopped)
        })?;
        Ok((Metronome { stopped, thread }, beats))
    }

    /// Gives no beat any more: each listener comes to the end after those that it has not heard yet.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.stop();
    }
}

fn beat(listeners: &[UnboundedSender<Duration>], period: Duration, stopped: &AtomicBool) {
    let mut due = now();
    for listener in listeners.iter().cycle() {
        due += period;
        while let Some(early) = due.checked_sub(now()) {
            if stopped.load(Ordering::Acquire) {
                return;
            }
            // May wake up early or for nothing, but never misses the `unpark` of `stop`.
            thread::park_timeout(early);
        }
        // One that listens no more says so in its own result.
        let _ = listener.send(due);
    }
}
