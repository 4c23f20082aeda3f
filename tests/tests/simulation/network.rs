//! The network between hosts: the simulated sockets of the daemons, and the same links for what does not go through them, the
//! engines' streams and the clients of the engines.
//!
//! A link between two hosts has a count of faults in each direction, and a packet passes when there is none. The daemons'
//! sockets follow ([`Network::apply`]), so that a partition cuts agents and engines alike. A process that stands still keeps its
//! sockets, whose packets are held until it goes on; that is apart, because it does not concern the engine beside it.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use futures::Stream;
use regent_common::transport::{ByteStream, Dialer};
use turmoil::{
    Sim,
    net::{TcpListener, TcpStream},
};

/// Simulated TCP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SimulatedDialer;

/// The faults of all links.
#[derive(Debug, Default)]
pub(crate) struct Network {
    hosts: Vec<String>,
    /// Faults that drop packets, from one host to another.
    cut: BTreeMap<(String, String), u32>,
    /// Faults that hold packets, both ways, in order of names.
    held: BTreeMap<(String, String), u32>,
    /// Reasons for which a host's daemon stands still.
    standing: BTreeMap<String, u32>,
    slow: BTreeMap<(String, String), Duration>,
}

/// Longest time of a packet on a healthy link.
const LATENCY: Duration = Duration::from_millis(8);

#[async_trait]
impl Dialer for SimulatedDialer {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(TcpStream::connect((host, port)).await?))
    }
}

/// The connections that a host accepts.
pub(crate) fn incoming(listener: TcpListener) -> impl Stream<Item = (TcpStream, Option<SocketAddr>)> + Send + Unpin {
    Box::pin(futures::stream::unfold(listener, |listener| async {
        match listener.accept().await {
            Ok((stream, address)) => Some(((stream, Some(address)), listener)),
            Err(_) => None,
        }
    }))
}

fn pair(one: &str, other: &str) -> (String, String) {
    let (one, other) = if one < other { (one, other) } else { (other, one) };
    (one.to_owned(), other.to_owned())
}

fn change(counts: &mut BTreeMap<(String, String), u32>, key: (String, String), more: bool) {
    let count = counts.entry(key).or_default();
    *count = if more { *count + 1 } else { count.saturating_sub(1) };
}

// === impl Network ===

impl Network {
    /// A healthy network of these hosts.
    pub(crate) fn new(hosts: Vec<String>) -> Self {
        Self { hosts, ..Self::default() }
    }

    /// All hosts.
    pub(crate) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Begins or ends a fault that drops what one host sends to another.
    pub(crate) fn cut(&mut self, from: &str, to: &str, broken: bool) {
        change(&mut self.cut, (from.to_owned(), to.to_owned()), broken);
    }

    /// Begins or ends a fault that drops everything between a host and all others.
    pub(crate) fn isolate(&mut self, host: &str, broken: bool) {
        for other in self.hosts.clone() {
            if other != host {
                self.cut(host, &other, broken);
                self.cut(&other, host, broken);
            }
        }
    }

    /// Begins or ends a fault that holds everything between two hosts back.
    pub(crate) fn hold(&mut self, one: &str, other: &str, broken: bool) {
        change(&mut self.held, pair(one, other), broken);
    }

    /// Begins or ends a fault that makes a link slow.
    pub(crate) fn slow(&mut self, one: &str, other: &str, latency: Option<Duration>) {
        match latency {
            Some(latency) => drop(self.slow.insert(pair(one, other), latency)),
            None => drop(self.slow.remove(&pair(one, other))),
        }
    }

    /// A host's daemon stands still, or goes on.
    pub(crate) fn stand(&mut self, host: &str, standing: bool) {
        let reasons = self.standing.entry(host.to_owned()).or_default();
        *reasons = if standing { *reasons + 1 } else { reasons.saturating_sub(1) };
    }

    /// Whether a packet gets from one host to another now.
    pub(crate) fn passes(&self, from: &str, to: &str) -> bool {
        self.count(&self.cut, &(from.to_owned(), to.to_owned())) == 0 && self.count(&self.held, &pair(from, to)) == 0
    }

    /// Whether packets pass both ways.
    pub(crate) fn connected(&self, one: &str, other: &str) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    /// How long a packet takes at most.
    pub(crate) fn latency(&self, one: &str, other: &str) -> Duration {
        self.slow.get(&pair(one, other)).copied().unwrap_or(LATENCY)
    }

    fn stands(&self, host: &str) -> bool {
        self.standing.get(host).is_some_and(|reasons| *reasons > 0)
    }

    fn count(&self, counts: &BTreeMap<(String, String), u32>, key: &(String, String)) -> u32 {
        counts.get(key).copied().unwrap_or(0)
    }

    /// Makes the daemons' sockets follow.
    pub(crate) fn apply(&self, sim: &Sim<'_>) {
        for (index, one) in self.hosts.iter().enumerate() {
            for other in &self.hosts[index + 1..] {
                let (one, other) = (one.as_str(), other.as_str());
                let there = self.count(&self.cut, &(one.to_owned(), other.to_owned())) > 0;
                let back = self.count(&self.cut, &(other.to_owned(), one.to_owned())) > 0;
                let held = self.count(&self.held, &pair(one, other)) > 0 || self.stands(one) || self.stands(other);
                match (there, back, held) {
                    (true, true, _) => sim.partition(one, other),
                    (true, false, _) => {
                        sim.release(one, other);
                        sim.partition_oneway(one, other);
                    }
                    (false, true, _) => {
                        sim.release(one, other);
                        sim.partition_oneway(other, one);
                    }
                    (false, false, true) => sim.hold(one, other),
                    (false, false, false) => sim.release(one, other),
                }
                sim.set_link_max_message_latency(one, other, self.latency(one, other));
            }
        }
    }
}
