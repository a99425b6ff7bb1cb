//! The floor: what the same handover takes with nothing but the system calls.
//!
//! A process connects, asks with one byte, receives the descriptors, 253 a message, and says with one byte that it has
//! them; the other one answers with a byte. There are no names, no checks, no lock, and no way back.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use crate::failure::Failure;
use crate::kind::{Kind, Maker};
use crate::process::{Told, tell};

/// One process of the chain.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Role {
    /// Where they meet
    #[arg(long)]
    path: PathBuf,
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    count: usize,
    /// Descriptors a message
    #[arg(long, default_value_t = 253)]
    batch: usize,
    /// The first one makes them
    #[arg(long)]
    first: bool,
}

/// Receives from the one before, or makes, and gives to the one after.
pub(crate) fn live(role: &Role) -> Result<(), Failure> {
    let (descriptors, told) = if role.first { (found(role)?, Told::default()) } else { receive(role)? };
    let listener = UnixListener::bind(&role.path)?;
    tell(&told);
    let (mut heir, _) = listener.accept()?;
    heir.read_exact(&mut [0])?;
    for batch in descriptors.chunks(role.batch) {
        let rights = [ControlMessage::ScmRights(batch)];
        sendmsg::<UnixAddr>(heir.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    heir.read_exact(&mut [0])?;
    heir.write_all(&[0])?;
    Ok(())
}

fn found(role: &Role) -> Result<Vec<RawFd>, Failure> {
    let maker = Maker::new(role.kind)?;
    Ok((0..role.count).map(|_| Ok(maker.make()?.into_raw_fd())).collect::<std::io::Result<_>>()?)
}

fn receive(role: &Role) -> Result<(Vec<RawFd>, Told), Failure> {
    let wanted = role.count;
    let mut descriptors = Vec::with_capacity(wanted);
    let mut space = cmsg_space!([RawFd; 253]);
    let began = Instant::now();
    let mut link = UnixStream::connect(&role.path)?;
    link.write_all(&[0])?;
    let asked = Instant::now();
    while descriptors.len() < wanted {
        descriptors.extend(receive_some(link.as_raw_fd(), &mut space)?);
    }
    let received = Instant::now();
    link.write_all(&[0])?;
    link.read_exact(&mut [0])?;
    let told = Told {
        start_us: (received - began).as_secs_f64() * 1e6,
        transfer_us: (received - asked).as_secs_f64() * 1e6,
        whole_us: began.elapsed().as_secs_f64() * 1e6,
        ..Told::default()
    };
    std::fs::remove_file(&role.path)?;
    Ok((descriptors, told))
}

/// One message of descriptors.
pub(crate) fn receive_some(link: RawFd, space: &mut [u8]) -> Result<Vec<RawFd>, Failure> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<UnixAddr>(link, &mut bytes, Some(space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err("the one before has gone".into());
    }
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(more) = part {
            descriptors.extend(more);
        }
    }
    Ok(descriptors)
}

/// Gives to whoever connects, again and again.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StreamRole {
    #[arg(long)]
    path: PathBuf,
    #[arg(long)]
    count: usize,
}

/// Sends one descriptor so many times, until it is killed: the receiver closes each as it comes.
///
/// `limit` is that on open files: the kernel counts what is in flight against it (unix(7)), so it waits in between.
pub(crate) fn stream(role: &StreamRole, limit: u64) -> Result<(), Failure> {
    let in_flight = in_flight(limit);
    let listener = UnixListener::bind(&role.path)?;
    let file = std::fs::File::open("/dev/null")?;
    let all = vec![file.as_raw_fd(); role.count];
    tell(&Told::default());
    loop {
        let (mut heir, _) = listener.accept()?;
        heir.read_exact(&mut [0])?;
        for (number, batch) in all.chunks(253).enumerate() {
            if number >= in_flight && number % (in_flight / 2) == 0 {
                heir.read_exact(&mut [0])?;
            }
            let rights = [ControlMessage::ScmRights(batch)];
            sendmsg::<UnixAddr>(heir.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        }
        // Its last bytes, and its end.
        heir.read_to_end(&mut Vec::new())?;
    }
}

/// How many messages of 253 descriptors may be under way; half as many come for each byte that says that they arrived.
pub(crate) fn in_flight(limit: u64) -> usize {
    usize::try_from(limit / 2 / 253).unwrap_or(usize::MAX).clamp(2, 64) & !1
}
