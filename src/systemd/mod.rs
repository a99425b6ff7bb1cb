//! The service manager, by its two interfaces that need no library: environment variables with descriptors on the way
//! in (sd_listen_fds(3)), datagrams to `NOTIFY_SOCKET` on the way out (sd_notify(3)).
//!
//! Why it is written here and not taken from crates.io:
//!
//! - sd-notify (0.5) takes an abstract `@` address for a path, sends in blocking mode, reads the environment at each
//!   call, and gives descriptors as numbers.
//! - libsystemd (0.7) has the addresses right, blocks as well, cuts descriptors without a name off in silence, and brings
//!   hmac, nom, sha2, uuid and a second nix.
//! - listenfd (1.0) knows indices and no names.
//! - None of them queues what the manager does not take at once, and an owner must never wait for the manager.
//!
//! What is left is one `sendmsg` and a few variables.

mod notify;
mod passed;

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

pub(crate) use self::notify::{Notify, Sent};
pub(crate) use self::passed::{Passed, store_name, take};

/// The variables by which systemd speaks to one process, and to that one only. They stay in the environment, since
/// changing it is unsafe once there are threads; a program that starts others leaves them out:
///
/// ```
/// let mut child = std::process::Command::new("true");
/// for variable in heirloom::SYSTEMD_VARIABLES {
///     child.env_remove(variable);
/// }
/// ```
///
/// Not where the child is the next version of this very unit: that one needs `NOTIFY_SOCKET`.
pub const SYSTEMD_VARIABLES: [&str; 7] =
    ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// What the environment says, read once at the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables {
    pub(crate) notify_socket: Option<OsString>,
    pub(crate) listen_pid: Option<u32>,
    pub(crate) listen_fds: Option<u32>,
    pub(crate) listen_names: Option<String>,
    watchdog: Option<Duration>,
    watchdog_pid: Option<u32>,
}

impl Variables {
    pub(crate) fn read() -> Variables {
        Variables::from(|name| std::env::var_os(name))
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>) -> Variables {
        let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
        let number = |name| text(name)?.parse::<u32>().ok();
        let microseconds = text("WATCHDOG_USEC").and_then(|value| value.parse::<u64>().ok());
        Variables {
            notify_socket: variable("NOTIFY_SOCKET").filter(|address| !address.is_empty()),
            listen_pid: number("LISTEN_PID"),
            listen_fds: number("LISTEN_FDS"),
            listen_names: text("LISTEN_FDNAMES"),
            watchdog: microseconds.filter(|value| *value > 0).map(Duration::from_micros),
            // One that cannot be read is not this process.
            watchdog_pid: text("WATCHDOG_PID").map(|value| value.parse().unwrap_or(0)),
        }
    }

    /// How often this process is to show that it lives, at least; `None` where nobody watches. Half the time after which
    /// systemd gives up, as sd_watchdog_enabled(3) advises.
    ///
    /// `heir`: this process has taken over from another one in its unit. Then the variables are those of the unit's first
    /// main process, by way of whoever started this one, and meant for whoever is the main process now.
    pub(crate) fn watchdog_interval(&self, pid: u32, heir: bool) -> Option<Duration> {
        let ours = heir || self.watchdog_pid.is_none_or(|named| named == pid);
        self.watchdog.filter(|_| ours).map(|limit| limit / 2)
    }
}

/// Whether a process is in the same unit as this one, as their control groups tell: only then may one be made the other's
/// main process. systemd believes root everything, and would stop a stranger with the unit.
pub(crate) fn in_same_unit(pid: u32) -> bool {
    let unit = |who: &str| unit(&fs::read_to_string(format!("/proc/{who}/cgroup")).ok()?);
    pid != 0 && unit("self").is_some_and(|ours| unit(&pid.to_string()) == Some(ours))
}

/// The path of the unit in a list of control groups (cgroups(7)): systemd's own hierarchy, or the only one.
fn unit(groups: &str) -> Option<String> {
    let path = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            (parts.next()? == controller).then(|| parts.next()).flatten()
        })
    };
    let path = path("name=systemd").or_else(|| path(""))?;
    // Below its unit, where that one delegates: `.../app.service/.control`.
    let mut parts: Vec<&str> = path.split('/').collect();
    while !parts.last()?.ends_with(".service") {
        parts.pop();
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &[(&str, &str)]) -> Variables {
        Variables::from(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    }

    #[test]
    fn a_watchdog_is_for_the_process_that_it_names_or_for_its_heir() {
        let interval = |set: &[(&str, &str)], heir| variables(set).watchdog_interval(7, heir);
        let half = Some(Duration::from_secs(1));
        assert_eq!(interval(&[("WATCHDOG_USEC", "2000000")], false), half);
        assert_eq!(interval(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "7")], false), half);
        assert_eq!(interval(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")], false), None);
        assert_eq!(interval(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")], true), half);
        assert_eq!(interval(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "?")], false), None);
        assert_eq!(interval(&[("WATCHDOG_USEC", "0")], false), None);
        assert_eq!(interval(&[], true), None);
    }

    #[test]
    fn the_unit_is_found_in_both_kinds_of_hierarchy() {
        let found = |groups: &str| unit(groups);
        let service = Some("/system.slice/app.service".to_owned());
        assert_eq!(found("0::/system.slice/app.service\n"), service);
        assert_eq!(found("0::/system.slice/app.service/.control\n"), service);
        assert_eq!(found("7:cpu:/\n1:name=systemd:/system.slice/app.service\n0::/\n"), service);
        assert_eq!(found("0::/user.slice/session-3.scope\n"), None);
        assert_eq!(found("0::/\n"), None);
        assert_eq!(found(""), None);
    }
}
