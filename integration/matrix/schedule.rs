//! Many cells at once: they wait for deadlines more than they work.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::cell;
use super::fault::Fault;
use super::point::{ASIDE, CALLS, Call, Point, Side};
use super::table::Table;

/// How many cells run at the same time.
const AT_ONCE: usize = 16;
/// Where a call has no end of occurrences, something is wrong.
const MOST: u32 = 150;

/// The occurrences of one call, with one fault.
struct Row {
    side: Side,
    call: Call,
    fault: Fault,
    next: u32,
    /// So many are known to come, and one more is tried: a run that ends without its fault was one too many.
    known: u32,
    over: bool,
}

/// All rows, and who is next.
struct Schedule {
    rows: Vec<Row>,
    turn: usize,
}

impl Schedule {
    /// The next cell, and its row.
    fn next(&mut self) -> Option<(usize, Point, Fault)> {
        for _ in 0..self.rows.len() {
            let at = self.turn % self.rows.len();
            self.turn += 1;
            let row = &mut self.rows[at];
            if row.over || row.next > row.known + 1 {
                continue;
            }
            let point = Point { side: row.side, call: row.call, occurrence: row.next };
            row.next += 1;
            return Some((at, point, row.fault));
        }
        None
    }

    fn done(&mut self, at: usize, point: Point, reached: bool) {
        let row = &mut self.rows[at];
        if point.occurrence > row.known {
            row.over |= !reached;
            row.known = row.known.max(if reached { point.occurrence } else { 0 });
            assert!(row.known < MOST, "{point}: no end of occurrences");
        }
    }
}

/// What the dry runs counted on a side.
pub(crate) type Counts = BTreeMap<String, u32>;

/// Runs each point of a side with each of the faults.
pub(crate) fn run(sides: &[(Side, Counts)], faults: impl Fn(Call) -> Vec<Fault>) -> Table {
    let mut rows = Vec::new();
    for (side, counts) in sides {
        for call in CALLS {
            let Some(known) = counts.get(call.name) else { continue };
            let row = |fault| Row { side: *side, call, fault, next: 1, known: *known, over: false };
            rows.extend(faults(call).into_iter().map(row));
        }
    }
    let schedule = Mutex::new(Schedule { rows, turn: 0 });
    let table = Mutex::new(Table::default());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    // Of a statement of its own, so that the lock is not kept for the run.
                    let next = lock(&schedule).next();
                    let Some((at, point, fault)) = next else { return };
                    let outcome = catch_unwind(AssertUnwindSafe(|| cell::run(point, fault))).map_err(said);
                    let reached = !matches!(outcome, Ok(cell::Held::NotReached));
                    lock(&schedule).done(at, point, reached);
                    lock(&table).add(point, fault, outcome);
                }
            });
        }
    });
    table.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What each side does in a takeover. Every call must be known, so that none goes unexamined.
pub(crate) fn count(side: Side) -> Result<(Side, Counts), String> {
    let mut counts = cell::count(side)?;
    for (name, count) in cell::count(side)? {
        let most = counts.entry(name).or_default();
        *most = count.max(*most);
    }
    let known =
        |name: &str| CALLS.iter().any(|call| call.name == name) || ASIDE.iter().any(|(aside, _)| *aside == name);
    let unknown: Vec<&String> = counts.keys().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "neither points nor left aside: {unknown:?}");
    Ok((side, counts))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The message of a panic.
fn said(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
