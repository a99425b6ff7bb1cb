//! Descriptors and bytes over a Unix stream: the one function that reads a control connection, and the two that write it.
//!
//! A plain `read` would close descriptors that ride on the bytes it takes, without a word; so nothing else in the crate
//! reads such a stream, and the streams implement no `Read` here.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};
use sendfd::SendWithFd;

use crate::sys;

/// Room for `SCM_MAX_FD` descriptors in one control message.
const MAX_DESCRIPTORS: usize = 253;

/// What one receive brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// How many bytes; 0 is the end of the stream.
    pub(crate) bytes: usize,
    /// The descriptors, close-on-exec from birth.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The kernel dropped some for want of room (`MSG_CTRUNC`). What it had installed is in `descriptors`, to be closed.
    pub(crate) truncated: bool,
}

/// Receives, with a control buffer that is kept from call to call.
#[derive(Debug)]
pub(crate) struct Receiver {
    control: Vec<u8>,
}

impl Receiver {
    pub(crate) fn new() -> Receiver {
        Receiver { control: nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]) }
    }

    /// One that has room for two descriptors.
    #[cfg(test)]
    pub(crate) fn small() -> Receiver {
        Receiver { control: nix::cmsg_space!([RawFd; 2]) }
    }

    /// Reads at most `space` bytes, and whatever descriptors ride on the first of them (recvmsg(2) with
    /// `MSG_CMSG_CLOEXEC`). Interrupted calls are repeated.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there; whatever recvmsg(2) says.
    pub(crate) fn receive(&mut self, stream: &UnixStream, space: &mut [u8]) -> io::Result<Received> {
        loop {
            // Zeroed each time: on truncation the buffer itself is walked.
            self.control.clear();
            self.control.resize(self.control.capacity(), 0);
            let mut slices = [IoSliceMut::new(space)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let message = match recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut self.control), flags) {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let bytes = message.bytes;
            if message.flags.contains(MsgFlags::MSG_CTRUNC) {
                return Ok(Received { bytes, descriptors: sys::salvage(&self.control), truncated: true });
            }
            let mut descriptors = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    descriptors.extend(numbers.into_iter().map(sys::adopt));
                }
            }
            return Ok(Received { bytes, descriptors, truncated: false });
        }
    }
}

/// Sends a header with descriptors. All 16 bytes lie in one socket buffer, so it is all or nothing, and the descriptors
/// ride on the first byte. sendfd passes no `MSG_NOSIGNAL`: to be called within [`sys::without_sigpipe`].
///
/// # Errors
/// `WouldBlock` where the buffer is full; `ETOOMANYREFS` where too many of this user's descriptors are in flight, which
/// passes; whatever sendmsg(2) says.
pub(crate) fn send_descriptors(stream: &UnixStream, header: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    loop {
        match stream.send_with_fd(header, &numbers) {
            Ok(sent) if sent == header.len() => return Ok(()),
            // Zero bytes with descriptors "succeed" and send nothing; a part of 16 bytes cannot be.
            Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends bytes, as many as fit (send(2) with `MSG_NOSIGNAL`). Interrupted calls are repeated.
///
/// # Errors
/// `WouldBlock` where the buffer is full; whatever send(2) says.
pub(crate) fn send_bytes(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            sent => return Ok(sent?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    fn pair() -> (UnixStream, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    #[test]
    fn descriptors_arrive_close_on_exec_and_stay_with_their_header() {
        let (a, b) = pair();
        let file = File::open("/dev/null").unwrap();
        send_bytes(&a, b"before").unwrap();
        send_descriptors(&a, b"header", &[file.as_fd(); 253]).unwrap();
        let mut receiver = Receiver::new();
        let mut space = [0; 6];
        let first = receiver.receive(&b, &mut space).unwrap();
        assert_eq!((first.bytes, first.descriptors.len()), (6, 0));
        let second = receiver.receive(&b, &mut space).unwrap();
        assert_eq!((second.bytes, second.descriptors.len(), second.truncated), (6, 253, false));
        for descriptor in &second.descriptors {
            let flags = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC);
        }
    }

    /// The kernel installs what fits and drops the rest; what it installed must be found, to be closed.
    #[test]
    fn truncated_control_data_is_salvaged() {
        let (a, b) = pair();
        let file = File::open("/dev/null").unwrap();
        send_descriptors(&a, b"header", &[file.as_fd(); 5]).unwrap();
        let mut receiver = Receiver::small();
        let received = receiver.receive(&b, &mut [0; 6]).unwrap();
        assert!(received.truncated);
        let device = |file: &File| file.metadata().unwrap().rdev();
        let found: Vec<u64> = received.descriptors.into_iter().map(|found| device(&found.into())).collect();
        assert_eq!(found, [device(&file); 2]);
    }

    #[test]
    fn the_end_is_zero_bytes_and_nothing_there_would_block() {
        let (a, b) = pair();
        let mut receiver = Receiver::new();
        let error = receiver.receive(&b, &mut [0; 6]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receiver.receive(&b, &mut [0; 6]).unwrap().bytes, 0);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_and_no_signal() {
        let (a, b) = pair();
        drop(b);
        let raised = sys::raises_sigpipe(|| {
            assert_eq!(send_bytes(&a, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
        assert!(!raised);
    }
}
