//! What a takeover costs in system calls and in allocations: counted, so that a change that makes it slower fails here
//! without any timing.
//!
//! The counted process ([`run`]) does nothing but hand over, by the blocking face: what it claims is made and named
//! before, and it tells what it counted after each part.

use std::alloc::System;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use heirloom::{Drained, Handoff};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use crate::actor::tell;
use crate::puppet::{Puppet, ROLE, Scene, skip};
use crate::strace::Strace;

/// Counts what this process allocates.
#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What makes a puppet the counted process.
pub(crate) const COUNTED: &str = "counted";
const CONTROL: &str = "HEIRLOOM_COUNTED_CONTROL";
const ENTRIES: &str = "HEIRLOOM_COUNTED_ENTRIES";

/// Descriptors in one message.
const BATCH: u64 = 253;
/// The parts of a process's time, in this order.
const PARTS: [&str; 5] = ["started", "claimed", "serving", "leaving", "drained"];

/// The most system calls of a takeover of one entry: the successor's until everything is here, its commit, and what the
/// predecessor does about all of it until it has left.
const STARTED: u64 = 53;
const SERVING: u64 = 50;
const LEFT: u64 = 90;
/// The most allocations of each part: of a takeover of one entry, and for each entry more. The commit has some fifteen more
/// where it falls together with the first words of the predecessor that leaves.
const ALLOCATIONS: [(&str, u64, f64); 5] =
    [("started", 110, 7.0), ("claimed", 6, 2.5), ("serving", 85, 1.2), ("leaving", 165, 2.5), ("drained", 32, 0.05)];

/// How often a process waits, and finds that there is nothing more, is the scheduler's to say: these are not counted.
const WAITS: [&str; 7] =
    ["epoll_wait", "poll", "ppoll", "getpid", "restart_syscall", "timerfd_settime", "rt_sigprocmask"];
/// Nor is the list for a rescuer, which is written a moment after the last change, whatever happens by then.
const LIST: [&str; 2] = ["memfd_create", "write to it"];
/// Nor is what the allocator asks for, which depends on the C library; allocations have a test of their own.
const MEMORY: [&str; 6] = ["brk", "madvise", "mmap", "mprotect", "mremap", "munmap"];

/// The counted process: it waits for a line, takes over or is the first, and ends when the next one has taken over.
pub(crate) fn run() -> ! {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let control = std::env::var(CONTROL).unwrap();
    let names: Vec<String> = (0..number(ENTRIES)).map(|number| format!("entry-{number}")).collect();
    let mut held: Vec<Arc<OwnedFd>> = Vec::with_capacity(names.len());
    println!();
    tell("waiting", json!({"thread": nix::unistd::gettid().as_raw()}));
    std::io::stdin().read_exact(&mut [0]).unwrap();

    let mut seen = allocations();
    let mut part = |name| {
        tell(name, json!({"allocations": allocations() - seen}));
        seen = allocations();
    };
    let mut starting = Handoff::at(control).start().unwrap();
    part(PARTS[0]);
    for name in &names {
        held.push(starting.claim(name).raw(|| Ok(File::open("/dev/null")?.into())).unwrap());
    }
    part(PARTS[1]);
    let mut serving = starting.ready().unwrap();
    part(PARTS[2]);
    while serving.left().is_none() {
        serving.wait().unwrap();
    }
    part(PARTS[3]);
    let Drained::Done(_) = serving.drain().unwrap() else { panic!("it resumed") };
    part(PARTS[4]);
    std::process::exit(0)
}

fn number(variable: &str) -> u64 {
    std::env::var(variable).unwrap().parse().unwrap()
}

/// How often this process has asked for memory.
fn allocations() -> usize {
    let stats = HEAP.stats();
    stats.allocations + stats.reallocations
}

/// A counted process that waits for its line, and its thread.
fn counted(scene: &Scene, entries: u64) -> (Puppet, u64) {
    let mut puppet = Puppet::with(|command| {
        command.env(ROLE, COUNTED).env(CONTROL, scene.control()).env(ENTRIES, entries.to_string());
    })
    .unwrap();
    let thread = puppet.event("waiting")["thread"].as_u64().unwrap();
    (puppet, thread)
}

/// What one takeover took of each part: the successor's until it serves, and the owner's from then on that it serves.
type Parts = BTreeMap<&'static str, u64>;

/// System calls by part and by name.
type Calls = BTreeMap<&'static str, BTreeMap<String, u64>>;

fn allocated(puppet: &mut Puppet, parts: &[&'static str]) -> Parts {
    parts.iter().map(|part| (*part, puppet.event(part)["allocations"].as_u64().unwrap())).collect()
}

/// The allocations of a takeover of so many entries.
fn allocations_of(entries: u64) -> Parts {
    let scene = Scene::new();
    let (mut owner, _) = counted(&scene, entries);
    owner.tell(&Value::Null);
    allocated(&mut owner, &PARTS[..3]);
    let (mut successor, _) = counted(&scene, entries);
    successor.tell(&Value::Null);
    let mut parts = allocated(&mut successor, &PARTS[..3]);
    parts.extend(allocated(&mut owner, &PARTS[3..]));
    parts
}

/// The system calls of a takeover of so many entries, by part and by name; `None` where there is no strace.
fn calls_of(entries: u64) -> Option<Calls> {
    let scene = Scene::new();
    let (mut owner, owner_thread) = counted(&scene, entries);
    owner.tell(&Value::Null);
    owner.event(PARTS[2]);
    let (mut successor, successor_thread) = counted(&scene, entries);
    let (owner_calls, successor_calls) = (attach(owner_thread)?, attach(successor_thread)?);
    successor.tell(&Value::Null);
    successor.event(PARTS[2]);
    owner.event(PARTS[4]);
    assert_eq!(owner.exit_code(), Some(0));
    let mut calls = by_part(&successor_calls.leave(), &PARTS[..3]);
    calls.extend(by_part(&owner_calls.leave(), &PARTS[3..]));
    Some(calls)
}

/// Shows the system calls of a thread, and what their descriptors are; `None`, said aloud, where there is no strace.
fn attach(thread: u64) -> Option<Strace> {
    Strace::attach(thread, &["-y", "-s", "64"]).map_err(|why| skip(&format!("strace: {why}"))).ok()
}

/// Counts lines of strace up to that which tells of each part.
fn by_part(lines: &[String], parts: &[&'static str]) -> Calls {
    let mut calls = Calls::new();
    let mut left = parts.iter();
    let mut part = left.next();
    for line in lines {
        let Some(now) = part else { break };
        let Some((call, arguments)) = line.split_once('(') else { continue };
        if call == "write" && arguments.contains(&format!("\\\"event\\\":\\\"{now}\\\"")) {
            part = left.next();
            continue;
        }
        let to_list = call == "write" && arguments.contains("</memfd:");
        if WAITS.contains(&call) || MEMORY.contains(&call) || arguments.contains(" EAGAIN ") {
            continue;
        }
        // Not the rest of a call that was shown before, nor a signal.
        if call.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
            let call = if to_list { LIST[1] } else { call };
            *calls.entry(now).or_default().entry(call.to_owned()).or_default() += 1;
        }
    }
    assert_eq!(part, None, "{:?}", lines.last());
    calls
}

/// The sum of some parts.
fn sum(calls: &Calls, parts: &[&str]) -> u64 {
    let calls = parts.iter().filter_map(|part| calls.get(part)).flatten();
    calls.filter(|(call, _)| !LIST.contains(&call.as_str())).map(|(_, count)| count).sum()
}

#[test]
fn the_system_calls_of_a_takeover_are_counted() {
    let (Some(one), Some(few), Some(many)) = (calls_of(1), calls_of(BATCH), calls_of(9 * BATCH)) else { return };
    let batches = 8;
    let growth = |parts: &[&str]| sum(&many, parts).saturating_sub(sum(&few, parts));

    // At most three for 253 descriptors, on either side: the owner sends the list and the descriptors, and reads now and
    // then that they have come; the successor reads the head of the list, the list, and the descriptors. It acknowledges
    // when it finds no more: once for all of them, or up to once for each batch where it keeps up. Where the socket was
    // full, a list comes in two pieces, which is a read more.
    let acknowledged = |calls: &Calls| calls[PARTS[0]].get("sendto").copied().unwrap_or_default();
    let acknowledged = acknowledged(&many) - acknowledged(&few).min(acknowledged(&many));
    assert!(growth(&PARTS[3..]) <= 3 * batches, "the owner: {few:#?} {many:#?}");
    assert!(growth(&PARTS[..1]) <= 3 * batches + acknowledged + 2, "the successor: {}", growth(&PARTS[..1]));
    assert!(acknowledged <= batches, "the successor acknowledged {acknowledged} times");
    // One look at each entry that the application claims, before it gets it.
    assert!(growth(&PARTS[1..2]) <= batches * BATCH, "the claims: {}", growth(&PARTS[1..2]));
    // The commit costs the same for any number; it may fall together with the first words of a predecessor that leaves.
    assert!(sum(&many, &PARTS[2..3]) <= SERVING, "the commit: {many:#?}");

    // What one takeover of one entry costs; a few more or less with what else happens on the machine.
    for (parts, most) in [(&PARTS[..1], STARTED), (&PARTS[1..2], 1), (&PARTS[2..3], SERVING), (&PARTS[3..], LEFT)] {
        let found = sum(&one, parts);
        assert!(found <= most, "{parts:?}: {found} system calls, {most} at most: {one:#?}");
    }
}

/// It leaves a list of its entries for a rescuer: written anew for each claim, eight thousand of them took seven seconds.
#[test]
fn a_first_process_writes_down_once_what_it_claims_in_a_row() {
    let scene = Scene::new();
    let (mut first, thread) = counted(&scene, 4 * BATCH);
    let Some(strace) = attach(thread) else { return };
    first.tell(&Value::Null);
    first.event(PARTS[2]);
    let calls = by_part(&strace.leave(), &PARTS[..3]);
    let written = calls[PARTS[1]].get(LIST[0]).copied().unwrap_or_default();
    // With few entries it is not worth the wait.
    assert!(written <= 257, "{written} times for {} entries", 4 * BATCH);
}

#[test]
fn the_allocations_of_a_takeover_are_counted() {
    let (one, few, many) = (allocations_of(1), allocations_of(BATCH), allocations_of(9 * BATCH));
    for (part, most, each) in ALLOCATIONS {
        assert!(one[part] <= most, "{part}: {} allocations, {most} at most", one[part]);
        let growth = many[part].saturating_sub(few[part]) as f64 / (8 * BATCH) as f64;
        assert!(growth <= each, "{part}: {growth:.2} allocations an entry, {each} at most");
    }
}
