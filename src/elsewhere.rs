//! The crate where there is no Linux: every start says [`Error::Unsupported`], and nothing beyond it can exist.
//!
//! These are stand-ins for the modules that need Linux, as far as others use them. A [`Driver`] and a [`Wake`] have no
//! values here, so neither has any stage of a life, and most of this is never reached: the compiler sees to that.

#![allow(dead_code, clippy::needless_pass_by_value, reason = "the other half is what has no values here")]

use std::convert::Infallible;

use crate::error::Error;

pub(crate) mod driver {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::SocketAddr;
    use std::ops::RangeInclusive;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Error, Infallible};
    use crate::error::{Refusal, Result, Who};
    use crate::guests::Guests;
    use crate::listener::Asked;
    use crate::manifest::{Check, Entry, Kind, StateKind};
    use crate::protocol::Deadlines;
    use crate::protocol::message::Wants;
    use crate::protocol::predecessor::Reason;
    use crate::state::{Snapshot, State};
    use crate::status::{DrainStatus, PredecessorEnd, ProbationStatus, Status};
    use crate::table::{Held, Outcome, Table};
    use crate::temporary::Temporary;
    use crate::wake::Wake;

    #[derive(Debug)]
    pub(crate) struct Settings {
        pub(crate) path: PathBuf,
        pub(crate) app_version: String,
        pub(crate) exclusive: bool,
        pub(crate) state: Option<StateKind>,
        pub(crate) holding: bool,
        pub(crate) process_stays: bool,
        pub(crate) pid_file: Option<PathBuf>,
        #[cfg(feature = "systemd")]
        pub(crate) systemd: bool,
        pub(crate) probation: Option<Duration>,
        pub(crate) demands_probation: bool,
        pub(crate) takeover_confirms: bool,
        pub(crate) drain_within: Duration,
        pub(crate) guests: Guests,
        pub(crate) allow_foreign_network_namespace: bool,
        pub(crate) deadlines: Deadlines,
        pub(crate) wants: Wants,
        pub(crate) nonce: Option<u64>,
        pub(crate) replaces: bool,
        pub(crate) temporary: Option<Arc<Temporary>>,
    }

    #[derive(Debug)]
    pub(crate) enum Notice {
        Started,
        Serving,
        Failed(Error),
        Release,
        StandBy,
        Resume,
        Leave(Reason),
        PredecessorGone(PredecessorEnd),
        Exit,
        Changed,
        Ended(Option<Refusal>),
        Replaced,
    }

    #[derive(Debug)]
    pub(crate) struct Driver {
        never: Infallible,
        pub(crate) table: Table,
        pub(crate) checks: BTreeMap<String, Vec<Check>>,
    }

    impl Driver {
        pub(crate) fn begin(_: Settings, _: Duration, wake: Arc<Wake>) -> Result<Box<Driver>> {
            match *wake {}
        }
    }

    macro_rules! never {
        ($($name:ident(&$($mutable:ident)?; $($argument:ty),*) -> $result:ty;)*) => {
            impl Driver {$(
                pub(crate) fn $name(&$($mutable)? self, $(_: $argument),*) -> $result {
                    match self.never {}
                }
            )*}
        };
    }

    never! {
        process(&mut;) -> Result<()>;
        notice(&mut;) -> Option<Notice>;
        tell_of_notices(&;) -> ();
        owns(&;) -> bool;
        generation(&;) -> u64;
        wake(&;) -> &Arc<Wake>;
        may_change(&;) -> Result<()>;
        check_entry(&mut; &str) -> Result<bool>;
        is_serving(&;) -> bool;
        has_inherited(&;) -> bool;
        follows_a_family_that_ended(&;) -> bool;
        foreign_namespace(&; &Held) -> Option<u64>;
        insert(&mut; Held, Outcome) -> Result<()>;
        remove(&mut; &str) -> Result<bool>;
        progress(&mut; &str) -> Result<()>;
        ready(&mut;) -> Result<()>;
        elder(&;) -> Option<&Who>;
        drainer(&;) -> Option<&DrainStatus>;
        elder_end(&;) -> Option<PredecessorEnd>;
        await_elder(&mut; Duration) -> Result<()>;
        look_for_elder(&mut;) -> Result<Option<Option<PredecessorEnd>>>;
        is_last_holder(&;) -> bool;
        status(&;) -> Status;
        released(&mut;) -> Result<()>;
        take_passed(&mut; &Asked<'_>, &dyn Fn(&Entry) -> bool) -> std::result::Result<(OwnedFd, Outcome), Option<String>>;
        admit_passed(&mut; &str) -> Option<Outcome>;
        passed_of(&; &Kind) -> BTreeSet<String>;
        clear_way(&mut; &dyn Fn(SocketAddr) -> bool) -> bool;
        form_group(&mut; &str, usize, usize) -> ();
        is_grouped(&; &str) -> bool;
        cannot_grow(&mut; &Kind, &str, usize, SocketAddr) -> Option<String>;
        others_beside(&; &Kind, BorrowedFd<'_>) -> std::io::Result<usize>;
        released_with(&mut; Snapshot) -> Result<()>;
        keeps(&mut; &str) -> Result<()>;
        take_state(&mut; &str, RangeInclusive<u32>) -> Option<State>;
        starts_cold(&mut; &str) -> ();
        state_kind(&;) -> Option<&StateKind>;
        resumed(&mut;) -> Result<()>;
        stop(&mut;) -> Result<()>;
        probation_status(&;) -> Option<ProbationStatus>;
        confirm(&mut;) -> Result<()>;
        give_back(&mut; &str) -> Result<()>;
        begin_drain(&mut;) -> Result<()>;
        drain_left(&;) -> Option<Duration>;
        drain_summary(&;) -> (bool, u64);
    }

    pub(crate) mod holding {
        use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
        use std::sync::Arc;

        use super::{Infallible, Settings};
        use crate::error::Result;
        use crate::protocol::holder::Notice;
        use crate::status::Status;
        use crate::table::Table;
        use crate::wake::Wake;

        #[derive(Debug)]
        pub(crate) struct Holding {
            never: Infallible,
        }

        impl Holding {
            pub(crate) fn begin(_: Settings, wake: Arc<Wake>) -> Result<Holding> {
                match *wake {}
            }

            pub(crate) fn process(&mut self) -> Result<Option<Notice>> {
                match self.never {}
            }

            pub(crate) fn status(&self) -> Option<Status> {
                match self.never {}
            }

            pub(crate) fn table(&self) -> Option<&Table> {
                match self.never {}
            }

            pub(crate) fn has_owned(&self) -> bool {
                match self.never {}
            }

            pub(crate) fn generation(&self) -> u64 {
                match self.never {}
            }

            pub(crate) fn wake(&self) -> &Arc<Wake> {
                match self.never {}
            }
        }

        impl AsRawFd for Holding {
            fn as_raw_fd(&self) -> RawFd {
                match self.never {}
            }
        }

        impl AsFd for Holding {
            fn as_fd(&self) -> BorrowedFd<'_> {
                match self.never {}
            }
        }
    }

    impl AsRawFd for Driver {
        fn as_raw_fd(&self) -> RawFd {
            match self.never {}
        }
    }

    impl AsFd for Driver {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match self.never {}
        }
    }
}

pub(crate) mod wake {
    use super::Error;
    use crate::ages::Age;
    use crate::error::Result;

    #[derive(Debug)]
    pub(crate) enum Wake {}

    impl Wake {
        pub(crate) fn new() -> Result<Wake> {
            Err(Error::Unsupported)
        }

        pub(crate) fn stop(&self) {
            match *self {}
        }

        pub(crate) fn leases(&self) -> u64 {
            match *self {}
        }

        pub(crate) fn take_lease(&self) -> Age {
            match *self {}
        }

        pub(crate) fn drop_lease(&self, _: Age) {
            match *self {}
        }

        pub(crate) fn is_draining(&self) -> bool {
            match *self {}
        }
    }
}

pub(crate) mod control {
    use std::path::{Path, PathBuf};

    use super::Error;
    use crate::error::Result;
    use crate::guests::Guests;

    pub(crate) fn resolve(_: &Path) -> Result<PathBuf> {
        Err(Error::Unsupported)
    }

    pub(crate) fn check_path(_: &Path, _: &Guests) -> Result<()> {
        Err(Error::Unsupported)
    }
}

pub(crate) mod folder {
    use std::path::Path;

    use super::Error;
    use crate::error::Result;
    use crate::guests::Guests;

    pub(crate) fn exists(_: &Path) -> Result<()> {
        Err(Error::Unsupported)
    }

    pub(crate) fn check(_: &Path, _: &Guests) -> Result<()> {
        Err(Error::Unsupported)
    }
}

pub(crate) mod state {
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::Infallible;
    use crate::manifest::StateKind;

    /// A state that is being written. There is none on this system.
    #[derive(Debug)]
    pub struct Snapshot {
        never: Infallible,
    }

    impl Snapshot {
        pub(crate) fn new() -> io::Result<Snapshot> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Leaves the checksum out.
        #[must_use]
        pub fn without_checksum(self) -> Snapshot {
            match self.never {}
        }

        /// Writes a value.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn encode<T: Serialize>(&mut self, _: &T) -> io::Result<()> {
            match self.never {}
        }
    }

    impl Write for Snapshot {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            match self.never {}
        }

        fn flush(&mut self) -> io::Result<()> {
            match self.never {}
        }
    }

    /// The state that the predecessor left. There is none on this system.
    #[derive(Debug)]
    pub struct State {
        never: Infallible,
    }

    impl State {
        /// What it is written in.
        #[must_use]
        pub fn kind(&self) -> &StateKind {
            match self.never {}
        }

        /// How many bytes it has.
        #[must_use]
        pub fn len(&self) -> u64 {
            match self.never {}
        }

        /// Whether it has none.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            match self.never {}
        }

        /// Reads a value.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn decode<T: DeserializeOwned>(self) -> io::Result<T> {
            match self.never {}
        }
    }

    impl Read for State {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            match self.never {}
        }
    }

    impl AsFd for State {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match self.never {}
        }
    }
}

pub(crate) mod client {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::path::Path;
    use std::time::Duration;

    use super::{Error, Infallible};
    use crate::error::Result;
    use crate::status::Status;

    /// A connection to the control socket of a service. There is none on this system.
    #[derive(Debug)]
    pub struct Client {
        never: Infallible,
    }

    impl Client {
        /// Says that this is not supported.
        ///
        /// # Errors
        /// [`Error::Unsupported`].
        pub fn connect(_: impl AsRef<Path>, _: Duration) -> Result<Client> {
            Err(Error::Unsupported)
        }

        /// Asks for a status.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn status(&mut self) -> Result<Status> {
            match self.never {}
        }

        /// Asks for a status now and after each change.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn watch(&mut self) -> Result<()> {
            match self.never {}
        }

        /// The next status of a watch.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn next(&mut self, _: Option<Duration>) -> Result<Option<Status>> {
            match self.never {}
        }

        /// Asks for the last takeovers.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn history(&mut self) -> Result<Vec<crate::history::TakeoverRecord>> {
            match self.never {}
        }

        /// Ends the probation of the owner, forwards.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn confirm(&mut self) -> Result<()> {
            match self.never {}
        }

        /// Ends the probation of the owner, backwards.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn roll_back(&mut self, _: &str) -> Result<()> {
            match self.never {}
        }

        /// Asks the owner to stand by after its next takeover.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn want_probation(&mut self, _: Duration) -> Result<()> {
            match self.never {}
        }

        /// Asks the owner to leave.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn stop(&mut self) -> Result<()> {
            match self.never {}
        }

        /// Moves the drain deadline of those who drain.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn extend_drain(&mut self, _: Duration, _: Option<u64>) -> Result<()> {
            match self.never {}
        }

        /// Ends the drain of those who drain.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn finish_drain(&mut self, _: Option<u64>) -> Result<()> {
            match self.never {}
        }

        /// Has the owner refuse takeovers.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn hold(&mut self, _: &str, _: Option<Duration>) -> Result<()> {
            match self.never {}
        }

        /// Has the owner refuse takeovers no longer.
        ///
        /// # Errors
        /// None: there is no such value.
        pub fn lift(&mut self) -> Result<()> {
            match self.never {}
        }
    }

    impl AsFd for Client {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match self.never {}
        }
    }
}

pub(crate) mod listener {
    use std::io;
    use std::net::SocketAddr;
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use crate::manifest::{Entry, Kind};

    pub(crate) const BACKLOG: u32 = 0;

    type Configure<'a> = Box<dyn Fn(BorrowedFd<'_>) -> io::Result<()> + 'a>;

    #[derive(Default)]
    pub(crate) struct SocketOptions<'a> {
        pub(crate) only_v6: Option<bool>,
        pub(crate) reuse_address: bool,
        pub(crate) reuse_port: bool,
        pub(crate) defer_accept: Option<Duration>,
        pub(crate) fast_open: Option<u32>,
        pub(crate) mode: Option<u32>,
        pub(crate) configure: Option<Configure<'a>>,
    }

    #[derive(Clone, Debug)]
    pub(crate) struct Asked<'a> {
        pub(crate) name: &'a str,
        pub(crate) kind: Kind,
        pub(crate) requested: String,
        pub(crate) path: Option<&'a Path>,
        pub(crate) backlog: Option<u32>,
    }

    fn unsupported<T>() -> io::Result<T> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn bind_inet(_: &Kind, _: SocketAddr, _: &SocketOptions<'_>) -> io::Result<OwnedFd> {
        unsupported()
    }

    pub(crate) fn bind_unix(_: &Kind, _: &Path, _: &SocketOptions<'_>) -> io::Result<OwnedFd> {
        unsupported()
    }

    pub(crate) fn bind_when_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
        bind()
    }

    pub(crate) fn reuses_port(_: BorrowedFd<'_>) -> bool {
        false
    }

    pub(crate) fn set_nonblocking(_: BorrowedFd<'_>) -> io::Result<()> {
        unsupported()
    }

    pub(crate) fn describe(_: &Asked<'_>, _: BorrowedFd<'_>) -> io::Result<Entry> {
        unsupported()
    }

    pub(crate) fn differs(_: &Kind, _: BorrowedFd<'_>) -> io::Result<Option<(String, String)>> {
        unsupported()
    }

    pub(crate) fn bound_path(_: BorrowedFd<'_>) -> Option<PathBuf> {
        None
    }

    pub(crate) fn is_taken(_: &[u8], _: BorrowedFd<'_>) -> bool {
        false
    }

    pub(crate) fn overlap(_: SocketAddr, _: SocketAddr) -> bool {
        false
    }
}

pub(crate) mod sys {
    use std::hash::{BuildHasher, Hasher};
    use std::io;
    use std::os::fd::BorrowedFd;

    pub(crate) fn set_access_list(_: BorrowedFd<'_>, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn set_mode(_: BorrowedFd<'_>, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn drop_file_pages() {}

    pub(crate) fn random() -> io::Result<u64> {
        Ok(std::hash::RandomState::new().build_hasher().finish())
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn register<T: std::os::fd::AsRawFd>(_: T) -> io::Result<tokio::io::unix::AsyncFd<T>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Error, Handoff};

    #[test]
    fn every_start_is_unsupported() {
        assert!(matches!(Handoff::at("/run/shop/handoff.sock").start(), Err(Error::Unsupported)));
    }
}
