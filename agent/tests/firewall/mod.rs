//! A machine elsewhere with several addresses, for the tests of the allow-list in the kernel.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use regent_agent::firewall::{
    Firewall, Passage,
    conformance::{Session, World},
    nftables::NftablesFirewall,
};

use crate::gate::{answers, command, ping};

/// The table of these tests; each has a network namespace of its own.
pub(crate) const TABLE: &str = "regent-allow-test";

/// Time in which a connection is made, if it is; longer than the first retransmission of a segment that a busy machine lost.
const CONNECT: Duration = Duration::from_millis(400);
/// Connections that are tried before a client counts as kept out.
const ATTEMPTS: usize = 2;

/// Networks between the two machines: the engine's end, the client's end, and the length of the prefix.
const NETWORKS: [(&str, &str, u8); 4] = [
    ("10.9.0.1", "10.9.0.2", 24),
    ("192.168.9.1", "192.168.9.3", 24),
    ("fd09::1", "fd09::2", 64),
    ("2001:db8:9::1", "2001:db8:9::3", 64),
];

/// Another machine: a network namespace that a cable joins to the calling thread's.
pub(crate) struct Elsewhere {
    wanted: mpsc::Sender<SocketAddr>,
    connected: Mutex<mpsc::Receiver<io::Result<TcpStream>>>,
}

impl Elsewhere {
    /// Makes it, for as long as this value lives.
    pub(crate) fn new() -> Self {
        let (wanted, requests) = mpsc::channel();
        let (answers, connected) = mpsc::channel();
        let (made, thread) = mpsc::channel();
        let (plugged, cable) = mpsc::channel();
        let (ready, addressed) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            made.send(nix::unistd::gettid().to_string()).expect("the test waits");
            cable.recv().expect("the test plugs it in");
            address("allow1", |(_, client, prefix)| (client, prefix));
            ready.send(()).expect("the test waits");
            for address in requests {
                answers.send(TcpStream::connect_timeout(&address, CONNECT)).expect("the test waits");
            }
        });
        let thread: String = thread.recv().expect("it says who it is");
        command("ip", &["link", "add", "allow0", "type", "veth", "peer", "name", "allow1"]);
        command("ip", &["link", "set", "allow1", "netns", &thread]);
        address("allow0", |(engine, _, prefix)| (engine, prefix));
        plugged.send(()).expect("it waits");
        addressed.recv().expect("it has addresses");
        Self { wanted, connected: Mutex::new(connected) }
    }

    /// A connection from that client's address, if one is made in time.
    pub(crate) fn connect(&self, client: IpAddr, port: u16) -> io::Result<TcpStream> {
        let (engine, ..) =
            NETWORKS.iter().find(|(_, own, _)| own.parse() == Ok(client)).expect("it is one of its addresses");
        // Held for the whole of it: answers come in the order of the questions.
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.send(SocketAddr::new(engine.parse().expect("it is an address"), port)).expect("it lives");
        let connection = connected.recv().expect("it answers")?;
        connection.set_nodelay(true)?;
        Ok(connection)
    }

    /// Whether a client of that address gets an answer.
    pub(crate) fn answers(&self, client: IpAddr, port: u16) -> bool {
        (0..ATTEMPTS).any(|_| self.connect(client, port).is_ok_and(|mut connection| ping(&mut connection)))
    }
}

fn address(end: &str, of: impl Fn((&'static str, &'static str, u8)) -> (&'static str, u8)) {
    for network in NETWORKS {
        let (address, prefix) = of(network);
        let address = format!("{address}/{prefix}");
        let mut words = vec!["address", "add", &address, "dev", end];
        if address.contains(':') {
            words.push("nodad");
        }
        command("ip", &words);
    }
    command("ip", &["link", "set", end, "up"]);
}

/// The clients' addresses.
pub(crate) fn clients() -> [IpAddr; 4] {
    NETWORKS.map(|(_, client, _)| client.parse().expect("it is an address"))
}

/// A server of both families on all addresses, that answers every byte with the same byte.
pub(crate) fn echo_everywhere() -> u16 {
    // A socket of both families shows clients of IPv4 in their IPv6 form.
    let listener = TcpListener::bind("[::]:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    crate::gate::serve_echo(listener);
    port
}

/// A network namespace as the conformance suite wants it.
pub(crate) struct KernelWorld {
    ports: [u16; 2],
    elsewhere: Arc<Elsewhere>,
    sessions: Mutex<Vec<TcpStream>>,
    /// Whether the table is owned by its process.
    owned: bool,
}

impl KernelWorld {
    /// In the calling thread's namespace.
    pub(crate) fn new(elsewhere: Arc<Elsewhere>, owned: bool) -> Self {
        Self { ports: [echo_everywhere(), echo_everywhere()], elsewhere, sessions: Mutex::default(), owned }
    }
}

#[async_trait]
impl World for KernelWorld {
    fn ports(&self) -> [u16; 2] {
        self.ports
    }

    fn clients(&self) -> [IpAddr; 4] {
        clients()
    }

    fn firewall(&self) -> Arc<dyn Firewall> {
        let open = if self.owned { NftablesFirewall::open } else { NftablesFirewall::open_shared };
        Arc::new(open(TABLE))
    }

    async fn passes(&self, client: Option<IpAddr>, port: u16) -> bool {
        match client {
            Some(client) => self.elsewhere.answers(client, port),
            // By an address that others see: that is loopback all the same.
            None => {
                answers("10.9.0.1".parse().expect("it is an address"), port)
                    && answers(Ipv4Addr::LOCALHOST.into(), port)
            }
        }
    }

    async fn open(&self, client: IpAddr, port: u16) -> Session {
        let mut connection = self.elsewhere.connect(client, port).expect("nobody is kept out");
        assert!(ping(&mut connection), "a session is answered");
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.push(connection);
        sessions.len() - 1
    }

    async fn lives(&self, session: Session) -> bool {
        ping(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner)[session])
    }

    async fn remove(&self, firewall: Arc<dyn Firewall>, wanted: Arc<Passage>) -> Arc<dyn Firewall> {
        drop(firewall);
        let firewall = NftablesFirewall::open_shared(TABLE);
        firewall.keep(Some(wanted)).await.expect("it can be in force");
        command("nft", &["flush", "ruleset"]);
        Arc::new(firewall)
    }
}
