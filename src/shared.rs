//! One open descriptor with several owners inside this process, whatever type each of them knows it by.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A share in a descriptor: it is closed when the last share is dropped.
#[derive(Clone)]
pub(crate) struct SharedFd(Arc<dyn AsFd + Send + Sync>);

impl<T: AsFd + Send + Sync + 'static> From<Arc<T>> for SharedFd {
    fn from(descriptor: Arc<T>) -> SharedFd {
        SharedFd(descriptor)
    }
}

impl From<OwnedFd> for SharedFd {
    fn from(descriptor: OwnedFd) -> SharedFd {
        SharedFd(Arc::new(descriptor))
    }
}

impl AsFd for SharedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (*self.0).as_fd()
    }
}

impl std::fmt::Debug for SharedFd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_fd().fmt(f)
    }
}
