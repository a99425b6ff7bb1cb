//! The mio face: each stage of a handoff is an [`event::Source`](mio::event::Source), and so is a listener.
//!
//! Register the stage for reading; when its token comes, call its `process` until nothing is left. Registrations are
//! edge-triggered: after [`Event::Resume`](crate::Event::Resume) register listeners anew and accept until it would
//! block.
//!
//! Register listeners once this process serves, not while it starts: a new one does not listen before the commit, and a
//! socket that does not listen reports a hang-up.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::drain::Draining;
use crate::handoff::Joining;
use crate::serving::Serving;
use crate::starting::{Committing, Starting};

macro_rules! source {
    ($($name:ty),*) => {$(
        impl Source for $name {
            fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
                SourceFd(&self.as_raw_fd()).register(registry, token, interests)
            }

            fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
                SourceFd(&self.as_raw_fd()).reregister(registry, token, interests)
            }

            fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
                SourceFd(&self.as_raw_fd()).deregister(registry)
            }
        }
    )*};
}

source!(Joining, Starting, Committing, Serving, Draining);

/// A listener or socket of a handoff, as a source for mio: the descriptor stays the one that is shared with the handoff.
///
/// Deregister it before you let go of it: the registration would outlive the close, because the successor has the same
/// open socket.
#[derive(Debug)]
pub struct Listener<T>(pub Arc<T>);

impl<T> std::ops::Deref for Listener<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> Source for Listener<T> {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.0.as_fd().as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.0.as_fd().as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.0.as_fd().as_raw_fd()).deregister(registry)
    }
}
