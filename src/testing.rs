//! For the tests of programs that use this crate.

use crate::error::Result;
use crate::handoff::Handoff;
use crate::temporary::Temporary;

/// A handoff for one test: it binds and serves as any other, and never hands over. It inherits nothing, and there is no
/// path to choose: its control socket is in a folder of its own, under a name that nobody knows, which is removed with
/// the last value that came of it. So tests can run side by side.
///
/// It is the real thing otherwise: a [`Stopper`](crate::Stopper) ends it, and leases hold its drain. A test that wants a
/// takeover starts two generations in one process, with [`Handoff::at`] and a path of its own.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
/// use heirloom::{Drained, Handoff};
///
/// /// The program under test: it says hello until it is told to leave.
/// fn greet(handoff: Handoff, serves: impl FnOnce(std::net::SocketAddr)) -> heirloom::Result<Drained> {
///     let mut starting = handoff.start()?;
///     let listener = starting.tcp_listener("greeter", "127.0.0.1:0")?;
///     let mut serving = starting.ready()?; // listens from here on
///     serves(listener.local_addr().expect("it is bound"));
///     while let Some((mut stream, _)) = serving.accept(&listener)? {
///         stream.write_all(b"hello").expect("the client listens");
///     }
///     serving.drain()
/// }
///
/// # fn main() -> heirloom::Result<()> {
/// let mut handoff = heirloom::testing::handoff()?;
/// let stopper = handoff.stopper()?;
/// let (sender, address) = std::sync::mpsc::channel();
/// let server = std::thread::spawn(move || greet(handoff, |address| sender.send(address).unwrap()));
/// let mut answer = String::new();
/// TcpStream::connect(address.recv().unwrap()).unwrap().read_to_string(&mut answer).unwrap();
/// assert_eq!(answer, "hello");
/// stopper.stop();
/// assert!(matches!(server.join().unwrap()?, Drained::Done(_)));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) where the folder cannot be made, below [`std::env::temp_dir`].
pub fn handoff() -> Result<Handoff> {
    Temporary::new().map(Handoff::within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drained;

    #[test]
    fn two_at_once_own_and_leave_nothing_behind() {
        let both = [Temporary::new().unwrap(), Temporary::new().unwrap()].map(|folder| {
            let path = folder.path().to_owned();
            let handoff = Handoff::within(folder);
            let mut starting = handoff.start().unwrap();
            assert!(starting.predecessor().is_none());
            starting.tcp_listener("web", "127.0.0.1:0").unwrap();
            let serving = starting.ready().unwrap();
            (serving, path)
        });
        for (serving, folder) in both {
            assert_eq!(serving.generation(), 1);
            assert!(folder.exists());
            assert!(matches!(serving.drain().unwrap(), Drained::Done(_)));
            assert!(!folder.exists());
        }
        let unused = Temporary::new().unwrap();
        let path = unused.path().to_owned();
        drop(Handoff::within(unused));
        assert!(!path.exists());
    }
}
