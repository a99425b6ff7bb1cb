//! Many at once: an owner has a limit, and goes on beside them.

use std::time::Instant;

use heirloom::probe::{Peer, Say};

use super::successor::Step;
use super::trial::{Stop, Trial};

/// How many connections are made and closed.
const CONNECTS: usize = 200;
/// After how many of them the owner is asked beside it.
const TURN: usize = 10;
/// How many connections are held at once: as many as an owner has room for.
const SILENT: usize = 64;
/// How many questions are asked without reading an answer.
const QUESTIONS: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    Connects,
    Silent,
    Questions,
}

/// Does it. The peers are to be kept until the owner has been looked at.
pub(crate) fn flood(trial: &mut Trial, flood: Flood) -> Result<Vec<Peer>, Stop> {
    match flood {
        Flood::Connects => {
            for number in 0..CONNECTS {
                drop(trial.connect()?);
                if number % TURN == 0 {
                    trial.wait(&[], Instant::now())?;
                }
            }
            Ok(Vec::new())
        }
        Flood::Silent => {
            let crowd = (0..SILENT).map(|_| trial.connect()).collect::<Result<Vec<Peer>, _>>()?;
            trial.ask()??;
            trial.rehearse(Step::Ack)?;
            Ok(crowd)
        }
        Flood::Questions => {
            let mut peer = trial.connect()?;
            let questions: Vec<u8> = (0..QUESTIONS).flat_map(|_| peer.frame(&Say::Status)).collect();
            peer.send(&questions)?;
            Ok(vec![peer])
        }
    }
}
