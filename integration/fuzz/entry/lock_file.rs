//! The lock file's content: it is a fencing token, and anybody who may write the file may have written anything.

use crate::lock::{CONTENT, Content};

/// The bytes are what is in the file.
pub fn lock_file(data: &[u8]) {
    let Some(content) = Content::decode(data) else { return };
    let written = content.encode();
    assert_eq!(written.len(), CONTENT);
    assert_eq!(Content::decode(&written), Some(content), "read, written and read again");
}
