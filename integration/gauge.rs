//! What a process has at the moment, as the kernel counts it: descriptors, memory, processor time.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::puppet::{Puppet, Scene};

/// Looks at one process before, while and after something is done to it.
pub(crate) struct Gauge {
    pid: u32,
    descriptors: usize,
    most: usize,
    /// Kilobytes that were resident.
    resident: u64,
    began: Instant,
    cpu: Duration,
    asked: u32,
    slowest: Duration,
    notes: Vec<String>,
}

impl Gauge {
    pub(crate) fn of(puppet: &Puppet) -> Gauge {
        let pid = puppet.pid();
        // proc(5): the peak is counted anew from here.
        let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Gauge {
            pid,
            descriptors: descriptors(pid),
            most: descriptors(pid),
            resident: memory(pid, "VmRSS:"),
            began: Instant::now(),
            cpu: cpu(pid),
            asked: 0,
            slowest: Duration::ZERO,
            notes: Vec::new(),
        }
    }

    /// Counts the descriptors of this moment in.
    pub(crate) fn look(&mut self) -> usize {
        let now = descriptors(self.pid);
        self.most = self.most.max(now);
        now
    }

    /// Asks the owner for its status beside whatever goes on, and keeps how long that took.
    #[track_caller]
    pub(crate) fn ask(&mut self, scene: &Scene) {
        let asked = Instant::now();
        scene.status();
        self.slowest = self.slowest.max(asked.elapsed());
        self.asked += 1;
        self.look();
    }

    /// Something to be told with the figures.
    pub(crate) fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    /// The processor time that it has used since the beginning.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(self.pid) - self.cpu
    }

    /// Tells the figures, and ends the test where the process took more than it may: `descriptors` at once beside those
    /// that it had, `kilobytes` of memory at its peak.
    #[track_caller]
    pub(crate) fn judge(mut self, descriptors: usize, kilobytes: u64) {
        let left = self.look();
        if self.asked > 0 {
            self.note(format!("the slowest of {} status questions took {:?}", self.asked, self.slowest));
        }
        let (resident, peak) = (memory(self.pid, "VmRSS:"), memory(self.pid, "VmHWM:"));
        let line = format!(
            "{}: {} descriptors before, {} at most, {left} after; {} KiB resident before, {peak} at most, {resident} \
             after; {:?} of processor time in {:?}{}\n",
            std::thread::current().name().unwrap_or("a test"),
            self.descriptors,
            self.most,
            self.resident,
            self.cpu(),
            self.began.elapsed(),
            self.notes.iter().map(|note| format!("; {note}")).collect::<String>(),
        );
        // Past the harness, which keeps to itself what a test that passes has printed.
        let _ = std::io::stderr().write_all(line.as_bytes());
        assert!(self.most <= self.descriptors + descriptors, "{line}");
        assert!(peak <= self.resident + kilobytes, "{line}");
    }
}

/// How many descriptors a process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A line of proc_pid_status(5), in kilobytes.
fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// User and system time of all threads (proc_pid_stat(5), the 14th and 15th field).
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name of the program stands in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap() as u64;
    Duration::from_millis(ticks * 1000 / second)
}
