//! The two signals that ask a program to leave, for programs without a runtime.

use std::io;
use std::thread;

use heirloom::Stopper;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Makes the first SIGTERM or Ctrl-C ask the service to leave, and the second end the process at once.
///
/// A thread of its own waits for them, so that they work in every phase: a start that waits for its predecessor and a
/// warm-up are cancelled, a server stops accepting and drains.
pub(crate) fn stop_on_signal(stopper: Stopper) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                // Somebody is tired of waiting for the drain. What does not return here is only the failing case.
                if let Err(error) = emulate_default_handler(signal) {
                    log::error!("signal {signal}: {error}");
                }
            }
            asked = true;
            stopper.stop();
        }
    });
    Ok(())
}
