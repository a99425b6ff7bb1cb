//! Descriptors that systemd passes when it starts a process (sd_listen_fds(3)): those of socket activation, and those
//! that an earlier process had parked in the unit's file descriptor store. Both come in one list.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::Variables;
use crate::sys;

/// The number of the first descriptor.
const FIRST: i32 = 3;
/// The most that are looked at: as many as a takeover may have entries.
const MOST: u32 = 1_000_000;
/// The longest name in the store, in bytes.
const LONGEST: usize = 255;
/// What a name in the store begins with. Nothing else tells a parked descriptor from one of socket activation.
const PREFIX: &str = "heirloom.";
/// What a descriptor is called whose name is not known, as sd_listen_fds_with_names(3) has it.
const UNKNOWN: &str = "unknown";

/// A descriptor that systemd has passed.
#[derive(Debug)]
pub(crate) struct Passed {
    /// The entry that it is for: its name, or `web#1` for the second of two that are both called `web`.
    pub(crate) name: String,
    /// The name that it shares with others, or its own.
    pub(crate) group: String,
    /// From the store, not from socket activation.
    pub(crate) stored: bool,
    pub(crate) fd: OwnedFd,
}

/// The name under which an entry is parked; `None` where it has none. Names in the store are ASCII without colons and
/// control characters, those of entries are not: what does not fit is written as in a URL.
pub(crate) fn store_name(entry: &str) -> Option<String> {
    let mut name = PREFIX.to_owned();
    for byte in entry.bytes() {
        match byte {
            b':' | b'%' => name.push_str(&format!("%{byte:02X}")),
            b' '..=b'~' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    (name.len() <= LONGEST).then_some(name)
}

/// The entry that was parked under this name; `None` for one that was not parked by this library.
fn entry_name(stored: &str) -> Option<String> {
    let mut rest = stored.strip_prefix(PREFIX)?.bytes();
    let mut name = Vec::new();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            name.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            name.push(byte);
        }
    }
    String::from_utf8(name).ok()
}

/// Takes what was passed to this process, once: each is close-on-exec from here on. What is passed to another pid, such as
/// the shell that started this one, is left alone.
pub(crate) fn take(variables: &Variables, pid: u32) -> Vec<Passed> {
    let Some(count) = variables.listen_fds.filter(|_| variables.listen_pid == Some(pid)) else { return Vec::new() };
    let names = names(variables.listen_names.as_deref(), count.min(MOST) as usize);
    let mut taken = Vec::new();
    for (number, name) in (FIRST..).zip(names) {
        match sys::inherit(number) {
            Ok(fd) => taken.push((name, fd)),
            Err(error) => log::warn!("descriptor {number}, {name:?} of LISTEN_FDS, is not there: {error}"),
        }
    }
    sort(taken)
}

/// As many names as descriptors.
fn names(list: Option<&str>, count: usize) -> Vec<String> {
    let mut names: Vec<String> = list.map(|list| list.split(':').map(str::to_owned).collect()).unwrap_or_default();
    if list.is_some() && names.len() != count {
        log::warn!("LISTEN_FDNAMES has {} names for {count} descriptors", names.len());
    }
    names.resize(count, String::new());
    for name in names.iter_mut().filter(|name| name.is_empty()) {
        UNKNOWN.clone_into(name);
    }
    names
}

/// The store first, and numbers for those of one name.
fn sort(taken: Vec<(String, OwnedFd)>) -> Vec<Passed> {
    let mut passed: Vec<Passed> = taken
        .into_iter()
        .map(|(given, fd)| {
            let parked = entry_name(&given);
            let stored = parked.is_some();
            let group = parked.unwrap_or(given);
            Passed { name: group.clone(), group, stored, fd }
        })
        .collect();
    passed.sort_by_key(|passed| !passed.stored);
    let mut seen: BTreeMap<(bool, String), u32> = BTreeMap::new();
    for passed in &mut passed {
        let before = seen.entry((passed.stored, passed.group.clone())).or_default();
        if *before > 0 {
            passed.name = format!("{}#{before}", passed.group);
        }
        *before += 1;
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_from_the_store() {
        for name in ["web", "a:b", "100%", "grün", "%3A", "a b", "web#1"] {
            let stored = store_name(name).unwrap();
            assert!(stored.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':'), "{stored}");
            assert_eq!(entry_name(&stored).as_deref(), Some(name));
        }
        assert_eq!(store_name("web").as_deref(), Some("heirloom.web"));
        assert!(store_name(&"x".repeat(LONGEST - PREFIX.len())).is_some());
        assert_eq!(store_name(&"x".repeat(LONGEST - PREFIX.len() + 1)), None);
        for foreign in ["web", "stored", "heirloom.%3", "heirloom.%zz", "heirloom.%FF"] {
            assert_eq!(entry_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn there_are_as_many_names_as_descriptors() {
        assert_eq!(names(Some("web:admin"), 2), ["web", "admin"]);
        assert_eq!(names(Some("web"), 2), ["web", "unknown"]);
        assert_eq!(names(Some("web:admin"), 1), ["web"]);
        assert_eq!(names(Some("web::admin"), 3), ["web", "unknown", "admin"]);
        assert_eq!(names(None, 2), ["unknown", "unknown"]);
    }

    #[test]
    fn the_store_comes_first_and_a_group_is_counted() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let given = ["web", "web", "heirloom.web", "web"];
        let sorted = sort(given.iter().map(|name| ((*name).to_owned(), null())).collect());
        let shown: Vec<(&str, &str, bool)> =
            sorted.iter().map(|passed| (passed.name.as_str(), passed.group.as_str(), passed.stored)).collect();
        assert_eq!(
            shown,
            [("web", "web", true), ("web", "web", false), ("web#1", "web", false), ("web#2", "web", false)]
        );
    }

    #[test]
    fn what_is_for_another_process_is_left_alone() {
        let variables = Variables { listen_pid: Some(1), listen_fds: Some(1), ..Variables::default() };
        assert!(take(&variables, 2).is_empty());
        assert!(take(&Variables { listen_pid: None, ..variables }, 1).is_empty());
    }
}
