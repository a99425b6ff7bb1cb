//! Steering: which socket of a `SO_REUSEPORT` group gets what comes.
//!
//! Left to itself the kernel spreads new connections over all sockets of a group by a hash, and a socket that is closed
//! takes what waits in its queue along. So a group cannot become smaller: whatever is accepted from a socket, more comes.
//! A program of classic BPF that is attached to the group chooses instead (`SO_ATTACH_REUSEPORT_CBPF`, socket(7), Linux
//! 4.6). It needs no right, and where it names a socket that is not there the kernel's hash decides: nothing is refused.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::sys;

/// Where the network header begins for a BPF program (linux/filter.h).
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
/// Spreads neighbouring numbers: 2^32 divided by the golden ratio.
const GOLDEN: u32 = 2_654_435_761;
/// How often the answer to a SYN is sent again unless told otherwise (`net.ipv4.tcp_synack_retries`).
const RETRIES: i32 = 5;
/// The state of a listener in the kernel's tables.
const LISTENS: &str = "0A";
/// The longest pause between two of these, in seconds (`TCP_RTO_MAX`).
const LONGEST_PAUSE: u64 = 120;
/// For how long a datagram may be on its way to the socket that was chosen for it: far more than it takes.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Sends what comes to the first `size` sockets of the group that this one is in, by the order in which they joined it:
/// TCP at listen(2), UDP at bind(2). All of one client address and port goes to one of them.
pub(crate) fn steer(fd: BorrowedFd<'_>, size: u32) -> io::Result<()> {
    let mut program = program(size.max(1));
    // The kernel copies the program; it lives until the end of the call.
    let whole = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    Ok(setsockopt(&fd, sockopt::AttachReusePortCbpf, &whole)?)
}

/// The source address and port of a packet, hashed, modulo `size`.
fn program(size: u32) -> Vec<libc::sock_filter> {
    use libc::{
        BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX,
        BPF_MEM, BPF_MISC, BPF_MOD, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
    };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let step = |code: u32, k: u32| jump(code, k, 0, 0);
    let load = |offset: u32| step(BPF_LD | BPF_W | BPF_ABS, NETWORK.wrapping_add(offset));
    let byte = |offset: u32| step(BPF_LD | BPF_B | BPF_ABS, NETWORK.wrapping_add(offset));
    let keep = step(BPF_MISC | BPF_TAX, 0);
    let mix = step(BPF_ALU | BPF_XOR | BPF_X, 0);
    vec![
        // The version of IP; that of this packet, since a socket of IPv6 may get either.
        byte(0),
        step(BPF_ALU | BPF_AND | BPF_K, 0xf0),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x40, 0, 7),
        // IPv4: the address, and the port behind a header whose length varies.
        load(12),
        step(BPF_ST, 0),
        step(BPF_LDX | BPF_B | BPF_MSH, NETWORK),
        step(BPF_LD | BPF_H | BPF_IND, NETWORK),
        step(BPF_LDX | BPF_W | BPF_MEM, 0),
        mix,
        step(BPF_JMP | BPF_JA, 19),
        // IPv6: the four words of the address, and the ports where no other header comes before them.
        load(8),
        keep,
        load(12),
        mix,
        keep,
        load(16),
        mix,
        keep,
        load(20),
        mix,
        step(BPF_ST, 0),
        byte(6),
        jump(BPF_JMP | BPF_JEQ | BPF_K, libc::IPPROTO_TCP as u32, 3, 0),
        jump(BPF_JMP | BPF_JEQ | BPF_K, libc::IPPROTO_UDP as u32, 2, 0),
        step(BPF_LD | BPF_MEM, 0),
        step(BPF_JMP | BPF_JA, 3),
        step(BPF_LDX | BPF_W | BPF_MEM, 0),
        step(BPF_LD | BPF_H | BPF_ABS, NETWORK.wrapping_add(40)),
        mix,
        // Both.
        step(BPF_ALU | BPF_MUL | BPF_K, GOLDEN),
        step(BPF_ALU | BPF_RSH | BPF_K, 16),
        step(BPF_ALU | BPF_MOD | BPF_K, size),
        step(BPF_RET | BPF_A, 0),
    ]
}

/// How many sockets there are in the kernel at this address beside those with these inodes: sockets that another process
/// has bound, or has kept of a group that became smaller.
pub(crate) fn others(stream: bool, address: SocketAddr, ours: &[u64]) -> io::Result<usize> {
    let table = match (stream, address) {
        (true, SocketAddr::V4(_)) => "tcp",
        (true, SocketAddr::V6(_)) => "tcp6",
        (false, SocketAddr::V4(_)) => "udp",
        (false, SocketAddr::V6(_)) => "udp6",
    };
    // This thread's, whose network namespace is that of the sockets.
    let mut table = std::fs::File::open(format!("/proc/thread-self/net/{table}"))?;
    let wanted = in_table(address);
    let (mut found, mut unread, mut piece) = (0, Vec::new(), [0; 4096]);
    loop {
        let count = table.read(&mut piece)?;
        unread.extend_from_slice(&piece[..count]);
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // sl local_address rem_address st tx_queue:rx_queue tr:when retrnsmt uid timeout inode
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = words[..] else { continue };
            let Ok(inode) = inode.parse::<u64>() else { continue };
            if stream && state != LISTENS {
                // Listeners come first, then the connections, of which there may be many.
                return Ok(found);
            }
            if local == wanted && !ours.contains(&inode) {
                found += 1;
            }
        }
        if count == 0 {
            return Ok(found);
        }
    }
}

/// An address as the kernel's tables have it: words of 32 bits in the order of this machine, in hexadecimal digits.
fn in_table(address: SocketAddr) -> String {
    let octets = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

/// For how long something may still arrive at a socket that is chosen no more: a client that is in the middle of a
/// handshake has been promised to that socket until the kernel gives it up.
pub(crate) fn may_arrive_for(stream: bool, fd: BorrowedFd<'_>) -> Duration {
    if !stream {
        return ON_ITS_WAY;
    }
    let read = |name: &str| -> Option<i32> {
        std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?.trim().parse().ok()
    };
    // Of the socket where the application has set it, else the system's own for answers to a SYN.
    let of_socket = sys::tcp_option(fd, libc::TCP_SYNCNT).ok().filter(|own| Some(*own) != read("tcp_syn_retries"));
    let retries = of_socket.or_else(|| read("tcp_synack_retries")).unwrap_or(RETRIES).clamp(0, 255) as u32;
    let pauses: u64 =
        (0..=retries).map(|retry| 1u64.checked_shl(retry).map_or(LONGEST_PAUSE, |s| s.min(LONGEST_PAUSE))).sum();
    let deferred = sys::tcp_option(fd, libc::TCP_DEFER_ACCEPT).unwrap_or(0).max(0) as u64;
    Duration::from_secs(pauses + deferred)
}

/// Whether nothing waits in a socket's queue.
pub(crate) fn is_empty(fd: BorrowedFd<'_>) -> bool {
    matches!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsFd, OwnedFd};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// A group of four, in order, and its address.
    fn group(stream: bool, address: &str) -> (Vec<OwnedFd>, SocketAddr) {
        let mut address: SocketAddr = address.parse().unwrap();
        let mut members = Vec::new();
        for _ in 0..4 {
            let kind = if stream { Type::STREAM } else { Type::DGRAM };
            let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.bind(&address.into()).unwrap();
            address = socket.local_addr().unwrap().as_socket().unwrap();
            if stream {
                socket.listen(100).unwrap();
            }
            members.push(OwnedFd::from(socket));
        }
        (members, address)
    }

    /// Takes everything out of each, and tells how much it was.
    fn taken(stream: bool, members: &[OwnedFd]) -> Vec<usize> {
        let count = |fd: &OwnedFd| {
            let fd = fd.try_clone().unwrap();
            let mut count = 0;
            if stream {
                let listener = TcpListener::from(fd);
                while listener.accept().is_ok() {
                    count += 1;
                }
            } else {
                let socket = UdpSocket::from(fd);
                while socket.recv(&mut [0; 9]).is_ok() {
                    count += 1;
                }
            }
            count
        };
        members.iter().map(count).collect()
    }

    #[test]
    fn only_the_first_get_what_comes_and_each_of_them_gets_some() {
        for bound in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            for stream in [true, false] {
                let (members, address) = group(stream, bound);
                let target = match address {
                    SocketAddr::V6(it) if it.ip().is_unspecified() => format!("127.0.0.1:{}", it.port()),
                    other => other.to_string(),
                };
                for size in 1..=4u32 {
                    // Through the last one, since the program is that of the whole group.
                    steer(members[3].as_fd(), size).unwrap();
                    let mut clients: Vec<OwnedFd> = Vec::new();
                    for _ in 0..100 {
                        if stream {
                            clients.push(TcpStream::connect(&target).unwrap().into());
                        } else {
                            let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                            let client = UdpSocket::bind(any).unwrap();
                            client.send_to(b"some", &target).unwrap();
                            clients.push(client.into());
                        }
                    }
                    let taken = taken(stream, &members);
                    assert_eq!(taken.iter().sum::<usize>(), 100, "{bound} {size}: {taken:?}");
                    let (chosen, others) = taken.split_at(size as usize);
                    assert!(chosen.iter().all(|count| *count > 0), "{bound} {size}: {taken:?}");
                    assert!(others.iter().all(|count| *count == 0), "{bound} {size}: {taken:?}");
                }
            }
        }
    }

    #[test]
    fn a_client_stays_with_its_socket() {
        let (members, address) = group(false, "127.0.0.1:0");
        steer(members[0].as_fd(), 4).unwrap();
        for _ in 0..10 {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..10 {
                client.send_to(b"again", address).unwrap();
            }
            let taken = taken(false, &members);
            assert_eq!(taken.iter().filter(|count| **count == 10).count(), 1, "{taken:?}");
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_made_up_for_by_the_kernel() {
        let (members, address) = group(true, "127.0.0.1:0");
        steer(members[0].as_fd(), 50).unwrap();
        let _clients: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(taken(true, &members).iter().sum::<usize>(), 50);
    }

    #[test]
    fn the_sockets_of_others_are_counted() {
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            for stream in [true, false] {
                let (members, address) = group(stream, bound);
                let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
                let ours: Vec<u64> = members.iter().map(inode).collect();
                assert_eq!(others(stream, address, &ours).unwrap(), 0);
                assert_eq!(others(stream, address, &ours[..1]).unwrap(), 3);
            }
        }
    }

    #[test]
    fn the_wait_follows_the_retries_of_the_socket() {
        let (members, _) = group(true, "127.0.0.1:0");
        let usual = may_arrive_for(true, members[0].as_fd());
        assert!(usual >= Duration::from_secs(1), "{usual:?}");
        sys::set_tcp_option(members[0].as_fd(), libc::TCP_SYNCNT, 1).unwrap();
        assert_eq!(may_arrive_for(true, members[0].as_fd()), Duration::from_secs(3));
        assert_eq!(may_arrive_for(false, members[0].as_fd()), ON_ITS_WAY);
    }

    #[test]
    fn what_waits_is_seen() {
        let (members, address) = group(true, "127.0.0.1:0");
        steer(members[0].as_fd(), 1).unwrap();
        assert!(is_empty(members[0].as_fd()));
        let _client = TcpStream::connect(address).unwrap();
        assert!(!is_empty(members[0].as_fd()) && is_empty(members[1].as_fd()));
    }
}
