//! A client that asks again as soon as it has an answer, on a new connection each time.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// How long it may wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// One question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) sent: Instant,
    pub(crate) at: Instant,
    /// The pid of who answered; `None` where nobody did.
    pub(crate) pid: Option<u32>,
}

/// The client at work, until this is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    stop: Arc<AtomicBool>,
    heard: Receiver<Heard>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    pub(crate) fn of(address: SocketAddr) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let (teller, heard) = channel();
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    let pid = ask(address);
                    if teller.send(Heard { sent, at: Instant::now(), pid }).is_err() {
                        return;
                    }
                }
            }
        });
        Client { stop, heard, thread: Some(thread) }
    }

    /// What came of the next question.
    pub(crate) fn next(&self) -> Result<Heard, Failure> {
        Ok(self.heard.recv_timeout(ANSWER_WITHIN)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of it has been told already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn ask(address: SocketAddr) -> Option<u32> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.parse().ok()
}
