//! From the start of a new version to its first answer, as its clients see it.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::figure::Spread;
use crate::kind::Kind;
use crate::takeovers::Chain;

/// What was seen with so many listeners.
#[derive(Clone, Debug)]
pub(crate) struct FirstAnswer {
    pub(crate) listeners: usize,
    /// From the start of the process to its first answer, in milliseconds.
    pub(crate) after: Spread,
    /// The longest that one client waited in each takeover, in milliseconds.
    pub(crate) longest: Spread,
    pub(crate) asked: u64,
    pub(crate) failed: u64,
}

/// How long a client may wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(crate) fn measure(folder: &Path, listeners: usize, rounds: usize) -> Result<FirstAnswer, Failure> {
    let folder = folder.join("answers");
    std::fs::create_dir_all(&folder)?;
    let (mut chain, told) = Chain::begin("generation", &folder, Kind::Listener, listeners, &[])?;
    let address = told.address.ok_or("it told no address")?;
    let stop = Arc::new(AtomicBool::new(false));
    let (teller, heard) = channel();
    let client = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let pid = ask(address);
                if teller.send((began, Instant::now(), pid)).is_err() {
                    return;
                }
            }
        }
    });
    let seen = watch(&mut chain, &heard, rounds);
    stop.store(true, Ordering::Relaxed);
    let joined = client.join();
    let mut seen = seen?;
    joined.map_err(|_| "the client has panicked")?;
    seen.listeners = listeners;
    Ok(seen)
}

/// One answer: the pid of who gave it, or none.
type Heard = Receiver<(Instant, Instant, Option<u32>)>;

fn watch(chain: &mut Chain, heard: &Heard, rounds: usize) -> Result<FirstAnswer, Failure> {
    let (mut after, mut longest, mut asked, mut failed) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..rounds {
        let began = Instant::now();
        let _told = chain.next()?;
        let pid = chain.pid();
        let mut waited = Duration::ZERO;
        loop {
            let (sent, at, answer) = heard.recv_timeout(ANSWER_WITHIN)?;
            asked += 1;
            failed += u64::from(answer.is_none());
            if at > began {
                waited = waited.max(at - sent);
            }
            if answer == Some(pid) {
                after.push((at - began).as_secs_f64() * 1e3);
                break;
            }
        }
        longest.push(waited.as_secs_f64() * 1e3);
    }
    let spread = |figures: &[f64]| Spread::of(figures).ok_or("no round");
    Ok(FirstAnswer { listeners: 0, after: spread(&after)?, longest: spread(&longest)?, asked, failed })
}

fn ask(address: SocketAddr) -> Option<u32> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.parse().ok()
}
