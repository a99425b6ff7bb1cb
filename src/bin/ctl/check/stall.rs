//! Peers that fall silent, or do not read: an owner waits for them as long as it says and no longer, and for nobody
//! else's sake.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use heirloom::probe::{Heard, Peer, Say};

use super::successor::{ANSWER, CANCELLED, Step, Successor, told};
use super::trial::{Stop, Trial};

/// How often a byte is sent.
const BYTE: Duration = Duration::from_millis(100);
/// How many takeovers are begun for somebody who does not read of them: more than his socket has room for.
const UNREAD_TAKEOVERS: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    Silent,
    HalfHeader,
    ByteByByte,
    Hello,
    Room,
    Watch,
}

impl Stall {
    /// Whether it leaves the takeover alone: then it runs beside the others like it.
    pub(crate) fn is_aside(self) -> bool {
        matches!(self, Stall::Silent | Stall::HalfHeader | Stall::ByteByByte)
    }
}

/// Somebody who is slow, beside others.
struct Slow {
    peer: Peer,
    /// What he still has to say.
    left: std::vec::IntoIter<u8>,
    /// What came of it.
    end: Option<Result<String, String>>,
}

/// Those that leave the takeover alone, all at once: what was said to each, or why that was wrong.
pub(crate) fn aside(trial: &mut Trial, stalls: &[Stall]) -> Result<Vec<Result<String, String>>, Stop> {
    let began = Instant::now();
    let mut all = Vec::new();
    for stall in stalls {
        let mut peer = trial.connect()?;
        let question = peer.frame(&Say::Status);
        let left = match stall {
            Stall::HalfHeader => {
                peer.send(&question[..8])?;
                Vec::new()
            }
            Stall::ByteByByte => question,
            _ => Vec::new(),
        };
        all.push(Slow { peer, left: left.into_iter(), end: None });
    }
    let mut next = began;
    while all.iter().any(|slow| slow.end.is_none()) {
        if Instant::now() >= next {
            next += BYTE;
            for slow in &mut all {
                if let Some(byte) = slow.left.next()
                    && let Err(error) = slow.peer.send(&[byte])
                {
                    slow.end = Some(Err(error.to_string()));
                }
            }
        }
        for (slow, stall) in all.iter_mut().zip(stalls) {
            match slow.peer.hear() {
                Ok(Some(heard)) if slow.end.is_none() => slow.end = Some(verdict(*stall, &heard)),
                Err(error) if slow.end.is_none() => slow.end = Some(Err(error.to_string())),
                _ if slow.end.is_none() && began.elapsed() >= ANSWER => {
                    slow.end = Some(Err("neither answered nor hung up".to_owned()));
                }
                _ => {}
            }
        }
        let waiting = all.iter().filter(|slow| slow.end.is_none());
        let descriptors: Vec<BorrowedFd<'_>> = waiting.map(|slow| slow.peer.as_fd()).collect();
        trial.wait(&descriptors, next.min(began + ANSWER))?;
    }
    Ok(all.into_iter().filter_map(|slow| slow.end).collect())
}

/// Who says nothing is hung up on; who is slow is answered.
fn verdict(stall: Stall, heard: &Heard) -> Result<String, String> {
    match (stall, heard) {
        (Stall::ByteByByte, Heard::Status(_)) => Ok("answered".to_owned()),
        (Stall::Silent | Stall::HalfHeader, Heard::End) => Ok("hung up".to_owned()),
        (_, heard) => Err(told(heard)),
    }
}

/// One that occupies the takeover. What the owner said; and a peer to be kept until that is over.
pub(crate) fn alone(trial: &mut Trial, stall: Stall) -> Result<(Option<String>, Option<Peer>), Stop> {
    let hello = trial.hello()?;
    let mut successor = Successor::new(trial.connect()?);
    match stall {
        Stall::Room => {
            trial.go(&mut successor, &hello, Step::Room)?;
            Ok((None, Some(successor.peer)))
        }
        Stall::Watch => {
            successor.peer.say(&Say::Watch)?;
            for _ in 0..UNREAD_TAKEOVERS {
                let hello = trial.hello()?;
                let mut changing = Successor::new(trial.connect()?);
                trial.go(&mut changing, &hello, Step::Ack)?;
                changing.peer.say(&Say::Abort(CANCELLED.to_owned()))?;
                trial.last_words(&mut changing.peer, |_| true)?;
            }
            Ok((None, Some(successor.peer)))
        }
        _ => {
            trial.go(&mut successor, &hello, Step::Hello)?;
            let said = trial.last_words(&mut successor.peer, |_| true)?;
            Ok((said.as_ref().map(told), None))
        }
    }
}
