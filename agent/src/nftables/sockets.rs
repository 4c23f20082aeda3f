//! TCP sockets as the kernel lists them (sock_diag): which there are on a port, which listen, and the end of one.
//!
//! Only sockets with the *local* port count. A client on this machine has a socket of its own, whose peer port is the
//! engine's; it needs no destroying: what must not leave later is the engine's answer, and that is queued in the engine's
//! socket (an answer that has reached the client's had left while the gate was open). What the client still has to send
//! meets no socket any more and is answered with a reset.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use super::netlink::{Message, Netlink, Refusal};

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
const LISTEN: u32 = 1 << 10;
/// More than there are states; the kernel ignores the rest.
const ALL_STATES: u32 = 0xffff;
/// States of a connection over which a client and the engine may still speak: established, half closed by either.
const LIVE_STATES: u32 = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 8);
/// Length of a socket's address block: two ports, two addresses, interface, cookie.
const IDENTITY: usize = 48;
/// How often the list is read again, as a half-open connection may become another socket under our hands.
const ROUNDS: usize = 3;

/// The kernel's list of sockets, of one network namespace.
pub(crate) struct Sockets(Netlink);

/// A socket in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    family: u8,
    identity: [u8; IDENTITY],
    inode: u32,
}

/// A socket that waits for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listener {
    /// Number by which processes hold it.
    pub(crate) inode: u64,
    /// Its port.
    pub(crate) port: u16,
}

// === impl Sockets ===

impl Sockets {
    /// The list of the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Whether sockets can be destroyed, tried on one that is made for it and waits on loopback.
    pub(crate) fn can_destroy(&mut self) -> Result<(), Refusal> {
        const WHAT: &str = "make a socket to destroy";
        let of = |error: io::Error| Refusal::of(Errno::EIO, WHAT, &error.to_string());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(of)?;
        let port = listener.local_addr().map_err(of)?.port();
        match self.list(FAMILIES[0], LISTEN, port)?.first() {
            Some(entry) => self.destroy(entry),
            None => Err(Refusal::of(Errno::EIO, WHAT, "the kernel does not list it")),
        }
    }

    /// Destroys every socket with one of these local ports that does not listen; returns how many.
    pub(crate) fn destroy_all(&mut self, ports: &BTreeSet<u16>) -> Result<u32, Refusal> {
        self.destroy_of(ports, |_| true)
    }

    /// Addresses of those who have a live connection with one of these local ports, one for each connection. An IPv4 address that a
    /// socket of both families shows as IPv6 is given as IPv4.
    pub(crate) fn clients(&mut self, ports: &BTreeSet<u16>) -> Result<Vec<IpAddr>, Refusal> {
        let mut clients = Vec::new();
        for port in ports {
            for family in FAMILIES {
                let found = self.list(family, LIVE_STATES, *port)?;
                // The list of one family may have sockets of the other.
                clients.extend(found.iter().filter(|entry| entry.family == family).map(Entry::remote));
            }
        }
        Ok(clients)
    }

    /// As [`Sockets::destroy_all`], of those clients alone for whose address `doomed` is true.
    pub(crate) fn destroy_of(
        &mut self,
        ports: &BTreeSet<u16>,
        doomed: impl Fn(IpAddr) -> bool,
    ) -> Result<u32, Refusal> {
        let mut destroyed = BTreeSet::new();
        for _ in 0..ROUNDS {
            let mut found = Vec::new();
            for port in ports {
                for family in FAMILIES {
                    found.extend(self.list(family, ALL_STATES & !LISTEN, *port)?);
                }
            }
            found.retain(|entry| !destroyed.contains(&entry.identity) && doomed(entry.remote()));
            if found.is_empty() {
                break;
            }
            for entry in found {
                match self.destroy(&entry) {
                    Ok(()) => {
                        destroyed.insert(entry.identity);
                    }
                    // It ended, or became another one that the next round finds.
                    Err(refusal) if refusal.is(Errno::ENOENT) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
        }
        Ok(u32::try_from(destroyed.len()).unwrap_or(u32::MAX))
    }

    /// All sockets that listen.
    pub(crate) fn listeners(&mut self) -> io::Result<BTreeSet<Listener>> {
        let mut listeners = BTreeSet::new();
        for family in FAMILIES {
            let found = self.list(family, LISTEN, 0).map_err(|refusal| io::Error::other(refusal.text()))?;
            listeners
                .extend(found.iter().map(|entry| Listener { inode: u64::from(entry.inode), port: entry.local_port() }));
        }
        Ok(listeners)
    }

    /// Sockets in one of the states, with this local port or with any for 0.
    fn list(&mut self, family: u8, states: u32, port: u16) -> Result<Vec<Entry>, Refusal> {
        let mut identity = [0; IDENTITY];
        identity[..2].copy_from_slice(&port.to_be_bytes());
        let answers = match self.0.dump(&request("list the sockets", BY_FAMILY, family, states, &identity)) {
            // A kernel without IPv6 has no such sockets.
            Err(refusal) if family != FAMILIES[0] && refusal.is(Errno::ENOENT) => Vec::new(),
            other => other?,
        };
        // Kernels list the sockets of all families that have the port in common tables.
        let entries = answers.iter().filter_map(|answer| Entry::read(answer));
        Ok(entries.filter(|entry| port == 0 || entry.local_port() == port).collect())
    }

    fn destroy(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let message = request("destroy a socket", DESTROY, entry.family, ALL_STATES, &entry.identity);
        self.0.ask(&message).map(drop)
    }
}

fn request(what: &'static str, kind: u16, family: u8, states: u32, identity: &[u8; IDENTITY]) -> Message {
    let mut body = vec![family, TCP, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(identity);
    Message { what, kind, flags: 0, body }
}

// === impl Entry ===

impl Entry {
    fn read(answer: &[u8]) -> Option<Self> {
        const INODE: usize = 4 + IDENTITY + 16;
        Some(Self {
            family: *answer.first()?,
            identity: answer.get(4..4 + IDENTITY)?.try_into().ok()?,
            inode: u32::from_ne_bytes(answer.get(INODE..INODE + 4)?.try_into().ok()?),
        })
    }

    fn local_port(&self) -> u16 {
        u16::from_be_bytes([self.identity[0], self.identity[1]])
    }

    fn remote(&self) -> IpAddr {
        const REMOTE: usize = 20;
        let bytes = &self.identity[REMOTE..REMOTE + 16];
        if self.family == FAMILIES[0] {
            Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
        } else {
            let address: [u8; 16] = bytes.try_into().expect("it is 16 bytes long");
            IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_listed_with_its_inode() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = Sockets::open().unwrap().listeners().unwrap();
        let found = found.iter().find(|entry| entry.port == port).expect("it listens");
        use std::os::fd::AsRawFd as _;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", found.inode));
    }

    #[test]
    fn a_torn_answer_is_no_socket() {
        assert_eq!(Entry::read(&[2; 20]), None);
    }
}
