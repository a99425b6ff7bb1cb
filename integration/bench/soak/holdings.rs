//! What a process holds, as the kernel tells: descriptors by kind, memory, threads, children.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use procfs::net::{TcpState, UnixState};
use procfs::process::{FDTarget, Process};

use crate::failure::Failure;

/// A look at one process.
#[derive(Clone, Debug)]
pub(crate) struct Holdings {
    /// Descriptors by kind, those of connections to the service apart.
    pub(crate) descriptors: BTreeMap<String, u64>,
    /// Connections over TCP: as many as the load has at that moment.
    pub(crate) connections: u64,
    pub(crate) memory: Memory,
    pub(crate) threads: u64,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// All of its pages, those of the program's file included: VmRSS.
    pub(crate) resident: u64,
    /// Those that are its own: RssAnon.
    pub(crate) anonymous: u64,
}

/// The sockets of the service, which every generation has: the kernel's numbers of them.
///
/// They stay the same from one generation to the next, so they are looked up once: a table of all TCP sockets is long
/// where connections were closed a moment ago.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sockets(HashSet<u64>);

impl Sockets {
    /// The listener and the UDP socket at these addresses.
    pub(crate) fn at(web: SocketAddr, datagrams: SocketAddr) -> Result<Sockets, Failure> {
        let tcp = procfs::net::tcp()?;
        let listener = tcp.iter().find(|tcp| tcp.local_address == web && tcp.state == TcpState::Listen);
        let udp = procfs::net::udp()?;
        let socket = udp.iter().find(|udp| udp.local_address == datagrams);
        match (listener, socket) {
            (Some(listener), Some(socket)) => Ok(Sockets(HashSet::from([listener.inode, socket.inode]))),
            _ => Err(format!("the kernel knows no listener at {web} and no socket at {datagrams}").into()),
        }
    }
}

impl Holdings {
    fn of(pid: i32, sockets: &Sockets) -> Result<Holdings, Failure> {
        let process = Process::new(pid)?;
        // Before the table of sockets: one that is made in between would be missing in it.
        let targets: Vec<FDTarget> = process.fd()?.flatten().map(|info| info.target).collect();
        let unix: HashMap<u64, UnixState> =
            procfs::net::unix()?.into_iter().map(|socket| (socket.inode, socket.state)).collect();
        let mut descriptors = BTreeMap::new();
        let mut connections = 0;
        for target in targets {
            let kind = match target {
                FDTarget::Socket(inode) if sockets.0.contains(&inode) => "inet socket".to_owned(),
                FDTarget::Socket(inode) => match unix.get(&inode) {
                    Some(UnixState::UNCONNECTED) => "unix listener".to_owned(),
                    Some(_) => "unix connection".to_owned(),
                    None => {
                        connections += 1;
                        continue;
                    }
                },
                FDTarget::AnonInode(name) => name.trim_matches(['[', ']']).to_owned(),
                FDTarget::Pipe(_) => "pipe".to_owned(),
                FDTarget::MemFD(_) => "memfd".to_owned(),
                FDTarget::Path(path) if path.starts_with("/memfd:") => "memfd".to_owned(),
                FDTarget::Path(_) => "file".to_owned(),
                FDTarget::Other(kind, _) => kind,
                FDTarget::Net(_) | FDTarget::Unknown(..) => "unknown".to_owned(),
            };
            *descriptors.entry(kind).or_insert(0) += 1;
        }
        let status = process.status()?;
        let memory = Memory { resident: status.vmrss.unwrap_or(0), anonymous: status.rssanon.unwrap_or(0) };
        Ok(Holdings { descriptors, connections, memory, threads: status.threads })
    }

    fn total(&self) -> u64 {
        self.descriptors.values().sum()
    }
}

/// A process that is looked at again and again, or its successors, which hold the same.
#[derive(Debug)]
pub(crate) struct Watch {
    sockets: Sockets,
    last: Option<Holdings>,
    patience: Duration,
}

impl Watch {
    pub(crate) fn new(sockets: Sockets) -> Watch {
        Watch { sockets, last: None, patience: SETTLE_WITHIN }
    }

    /// What the process holds. Where these are other descriptors than the last time it is looked at again for a while: a
    /// connection that is just being answered or closed is no leak, and the kernel has no event for its end. At first it is
    /// the least that is seen for a while.
    pub(crate) async fn look(&mut self, pid: i32) -> Result<Holdings, Failure> {
        let began = Instant::now();
        let mut held = Holdings::of(pid, &self.sockets)?;
        while match &self.last {
            Some(last) => held.descriptors != last.descriptors && began.elapsed() < self.patience,
            None => began.elapsed() < FIRST_LOOK,
        } {
            tokio::time::sleep(LOOK_AGAIN).await;
            let now = Holdings::of(pid, &self.sockets)?;
            if self.last.is_some() || now.total() < held.total() {
                held = now;
            }
        }
        if self.last.as_ref().is_some_and(|last| held.descriptors != last.descriptors) {
            // The run has failed by this. A leak in each round must not make it last for hours.
            self.patience /= 2;
        }
        self.last = Some(held.clone());
        Ok(held)
    }
}

/// The children of this process: how many there are, and how many of them have ended and were not reaped.
pub(crate) fn children() -> Result<(u64, u64), Failure> {
    let mut children = Vec::new();
    for task in Process::myself()?.tasks()?.flatten() {
        // A thread may end between the two.
        children.extend(task.children().unwrap_or_default());
    }
    let mut zombies = 0;
    for child in &children {
        let stat = Process::new(i32::try_from(*child)?).and_then(|child| child.stat());
        zombies += u64::from(stat.is_ok_and(|stat| stat.state == 'Z'));
    }
    Ok((children.len() as u64, zombies))
}

/// How long a process may take to let go of what it held for a client or a successor.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// How long the first look takes.
const FIRST_LOOK: Duration = Duration::from_millis(300);

/// The pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
