//! A look that takes nothing, beside a service that goes on.

use crate::error::Who;
use crate::protocol::Deadlines;
use crate::protocol::message::{Hello, Room, Wants};
use crate::protocol::predecessor::{Input, Output, Predecessor};

/// Entries may come and go while somebody rehearses: what he gets is what was announced to him.
#[test]
fn a_rehearsal_gets_as_much_as_was_announced_to_it() {
    let mut machine = Predecessor::new(1, 3, false, Deadlines::default(), Who::default(), 128);
    let mut out = Vec::new();
    machine.handle(Input::Ready, &mut out);
    let hello = Hello { min_version: 1, max_version: 1, nonce: 7, wants: Wants::Rehearsal, ..Hello::default() };
    machine.handle(Input::Message(1, hello.into()), &mut out);
    machine.set_entries(4);
    out.clear();
    machine.handle(Input::Message(1, Room { descriptors: 3 }.into()), &mut out);
    assert_eq!(out, [Output::SendDescriptors { peer: 1, first: 0, count: 3 }]);
}
