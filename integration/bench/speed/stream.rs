//! More descriptors than the receiver may have open: it closes each as it comes, against the bare stream.
//!
//! A successor keeps what it receives, so it cannot take more than its limit on open files, and says so before anything
//! is sent. What can be streamed beyond that is what an owner sends: it has so many entries, which share one descriptor,
//! and offers them to a peer that acknowledges and closes. The bare stream does no more than that either.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heirloom::probe::{Heard, Hello, Peer, Say};
use heirloom::{Drained, Handoff};

use crate::bare;
use crate::failure::Failure;
use crate::figure::Paired;
use crate::process::{Process, Told, tell};

/// An owner of many entries that are one descriptor.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Role {
    #[arg(long)]
    path: PathBuf,
    #[arg(long)]
    count: usize,
}

/// A share in the one descriptor.
#[derive(Clone, Debug)]
struct Share(Arc<OwnedFd>);

impl From<OwnedFd> for Share {
    fn from(descriptor: OwnedFd) -> Share {
        Share(Arc::new(descriptor))
    }
}

impl AsFd for Share {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(crate) fn live(role: &Role) -> Result<(), Failure> {
    let mut starting = Handoff::at(&role.path).start()?;
    let shared = Share::from(OwnedFd::from(std::fs::File::open("/dev/null")?));
    for number in 0..role.count {
        starting.claim(&format!("entry-{number}")).raw(|| Ok(shared.clone()))?;
    }
    let mut serving = starting.ready()?;
    tell(&Told::default());
    while serving.left().is_none() {
        serving.wait()?;
    }
    match serving.drain()? {
        Drained::Done(_) => Ok(()),
        Drained::Resumed(_) => Err("it resumed, and nobody had taken over".into()),
    }
}

/// So many descriptors, in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) count: usize,
    /// From the request for the descriptors to the last one.
    pub(crate) received: Paired,
    /// From the connect to the last one: the names and what is said of each come first.
    pub(crate) whole: Vec<f64>,
}

/// The owner may send nothing for so long: it makes a list of all entries first.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn measure(folder: &Path, count: usize, rounds: usize, limit: u64) -> Result<Stream, Failure> {
    let start = |role: &str| {
        let path = folder.join(format!("stream-{role}-{count}"));
        let arguments: Vec<OsString> = vec![role.into(), "--path".into(), path.clone().into(), "--count".into()];
        let mut process = Process::start(&arguments.into_iter().chain([count.to_string().into()]).collect::<Vec<_>>())?;
        let _: Told = process.tells()?;
        Ok::<_, Failure>((process, path))
    };
    let (_owner, owned) = start("many")?;
    let (_bare, bare) = start("bare-stream")?;
    let mut stream = Stream { count, received: Paired::default(), whole: Vec::new() };
    for round in 0..=rounds {
        let (ours, whole) = receive(&owned, count)?;
        let floor = receive_bare(&bare, count, limit)?;
        if round > 0 {
            stream.received.enter(ours.as_secs_f64() * 1e6, floor.as_secs_f64() * 1e6);
            stream.whole.push(whole.as_secs_f64() * 1e6);
        }
    }
    Ok(stream)
}

/// Plays a successor up to its last descriptor, and gives up then.
fn receive(path: &Path, count: usize) -> Result<(Duration, Duration), Failure> {
    let began = Instant::now();
    let mut peer = Peer::connect(path, PATIENCE)?;
    peer.say(&Say::Hello(Hello::new("stream")?))?;
    let (mut entries, mut descriptors, mut listed, mut received) = (u32::MAX, 0, 0, 0);
    let mut asked = began;
    loop {
        match peer.hear()? {
            None => peer.listen(PATIENCE)?,
            Some(Heard::Offer { entries: all, descriptors: wanted, .. }) => (entries, descriptors) = (all, wanted),
            Some(Heard::Entries(more)) => {
                listed += more;
                if listed == entries {
                    asked = Instant::now();
                    peer.say(&Say::Room(descriptors))?;
                }
            }
            Some(Heard::Descriptors(more)) => {
                received += u32::try_from(more.len())?;
                drop(more);
                peer.say(&Say::Ack(received))?;
                if received == descriptors {
                    break;
                }
            }
            Some(Heard::Refused(why) | Heard::Aborted(why)) => return Err(format!("the owner: {why:?}").into()),
            Some(Heard::End) => return Err("the owner has hung up".into()),
            Some(_) => {}
        }
    }
    let ended = Instant::now();
    if (entries as usize) != count {
        return Err(format!("{entries} entries came").into());
    }
    peer.say(&Say::Abort("cancelled".to_owned()))?;
    // It reads this and closes; so the next round meets an owner with nothing to do.
    loop {
        match peer.hear() {
            Ok(Some(Heard::End)) | Err(_) => return Ok((ended - asked, ended - began)),
            Ok(Some(_)) => {}
            Ok(None) => peer.listen(PATIENCE)?,
        }
    }
}

fn receive_bare(path: &Path, count: usize, limit: u64) -> Result<Duration, Failure> {
    let half = bare::in_flight(limit) / 2;
    let mut link = UnixStream::connect(path)?;
    let mut space = nix::cmsg_space!([RawFd; 253]);
    let asked = Instant::now();
    link.write_all(&[0])?;
    let (mut received, mut messages) = (0, 0);
    while received < count {
        let more = bare::receive_some(link.as_raw_fd(), &mut space)?;
        received += more.len();
        for descriptor in more {
            nix::unistd::close(descriptor)?;
        }
        messages += 1;
        if messages % half == 0 {
            link.write_all(&[0])?;
        }
    }
    Ok(asked.elapsed())
}
