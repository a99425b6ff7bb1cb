//! The entry points over the corpus that is kept, over bytes at random, and over what becomes of the corpus when it is
//! broken: a moment for each, on any toolchain.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

/// How many inputs are made up for each entry point.
const CASES: u32 = 2000;
/// The longest input that is made up, in bytes.
const LONGEST: usize = 600;

/// The inputs that are kept for a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5, "{} has {} files", folder.display(), files.len());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// One way to break an input.
#[derive(Clone, Debug)]
enum Break {
    Set(Index, u8),
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, u8),
    Insert(Index, Vec<u8>),
    Repeat(Index, u8),
}

impl Break {
    fn apply(self, bytes: &mut Vec<u8>) {
        let place = |index: &Index| if bytes.is_empty() { 0 } else { index.index(bytes.len()) };
        match self {
            Break::Set(at, byte) => {
                let at = place(&at);
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            Break::Flip(at, bit) => {
                let at = place(&at);
                if let Some(there) = bytes.get_mut(at) {
                    *there ^= 1 << (bit % 8);
                }
            }
            Break::Cut(at) => bytes.truncate(place(&at)),
            Break::Remove(at, count) => {
                let at = place(&at);
                let end = (at + usize::from(count)).min(bytes.len());
                bytes.drain(at..end);
            }
            Break::Insert(at, more) => {
                let at = place(&at);
                bytes.splice(at..at, more);
            }
            Break::Repeat(at, count) => {
                let at = place(&at);
                let end = (at + usize::from(count)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn a_break() -> impl Strategy<Value = Break> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Break::Set(at, byte)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Break::Flip(at, bit)),
        any::<Index>().prop_map(Break::Cut),
        (any::<Index>(), 1u8..40).prop_map(|(at, count)| Break::Remove(at, count)),
        (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, more)| Break::Insert(at, more)),
        (any::<Index>(), 1u8..60).prop_map(|(at, count)| Break::Repeat(at, count)),
    ]
}

fn hold(target: &str, entry: fn(&[u8])) {
    let corpus = corpus(target);
    for bytes in &corpus {
        entry(bytes);
    }
    let broken = (select(corpus), vec(a_break(), 1..6)).prop_map(|(mut bytes, breaks)| {
        breaks.into_iter().for_each(|one| one.apply(&mut bytes));
        bytes
    });
    let input = prop_oneof![1 => vec(any::<u8>(), 0..LONGEST), 2 => broken];
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&input, |bytes| {
        entry(&bytes);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{target}: {failure}");
    }
}

#[test]
fn frames() {
    hold("frames", super::frames);
}

#[test]
fn messages() {
    hold("messages", super::messages);
}

#[test]
fn manifest() {
    hold("manifest", super::manifest);
}

#[test]
fn lock_file() {
    hold("lock_file", super::lock_file);
}

#[test]
fn predecessor() {
    hold("predecessor", super::predecessor);
}

#[test]
fn successor() {
    hold("successor", super::successor);
}

#[test]
fn starter() {
    hold("starter", super::starter);
}

/// A target without a corpus, or a corpus without a target, would be run by nobody.
#[test]
fn each_target_has_an_entry_and_a_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/fuzz");
    let names = |folder: &str, strip: &str| {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().to_str().unwrap().trim_end_matches(strip).to_owned())
            .collect();
        names.sort();
        names
    };
    let targets = names(folder.join("targets").to_str().unwrap(), ".rs");
    assert_eq!(targets, ["frames", "lock_file", "manifest", "messages", "predecessor", "starter", "successor"]);
    assert_eq!(targets, names(folder.join("corpus").to_str().unwrap(), ""));
}
