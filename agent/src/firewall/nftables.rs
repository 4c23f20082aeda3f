//! The allow-list in the kernel: a table of nftables of its own, spoken to over netlink.
//!
//! ```text
//! table inet NAME { flags owner,persist
//!     set ports    { type inet_service }
//!     set always4  { type ipv4_addr }
//!     set always6  { type ipv6_addr }
//!     set allowed4 { type ipv4_addr; flags interval }
//!     set allowed6 { type ipv6_addr; flags interval }
//!     chain input { type filter hook input priority -5
//!         tcp dport @ports iiftype != loopback ip  saddr != @always4 ip  saddr != @allowed4 drop
//!         tcp dport @ports iiftype != loopback ip6 saddr != @always6 ip6 saddr != @allowed6 drop }
//! }
//! ```
//!
//! **A change makes the whole table anew**, the old one deleted in the same transaction: one path, whatever has changed and whatever
//! somebody else did to it. Until the kernel commits, packets meet the old table; from then on the new one. The transaction goes out in
//! one piece, for which the socket has room made; lists of elements within it are cut, as their length has 16 bits.
//!
//! **The gate comes first**, by its priority: what it drops is never seen here, and nothing that passes here passes there for that.
//! The two share the kernel's lock around transactions, for as long as one is worked off, and nothing else.
//!
//! **Owner and persist** are as with the gate: where the kernel has both, nobody else can change or flush the table, it stays when
//! the agent ends, and the next one takes it over. Where it has not, [`Firewall::verify`] finds what is missing and puts it back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{errno::Errno, ifaddrs::getifaddrs};
use regent_common::allow_list::{self, AllowList, Family};

use super::{Firewall, FirewallError, Judge, Passage};
use crate::nftables::{
    expressions::{self, Lookup, Port, Rule, drop_it, from_elsewhere, source_in_none, tcp_port},
    message::{self, ChainForm, SET_OF_RANGES, SetForm, TYPE_IPV4, TYPE_IPV6, TYPE_PORT},
    netlink::{Message, Netlink, Refusal},
    sockets::Sockets,
    table::{self, Form, Kept},
    trial::{refused, survives_flush},
};

/// Name of the table where none is asked for.
pub const DEFAULT_TABLE: &str = "regent_allow";

/// After the gate, before the usual filters.
const PRIORITY: i32 = -5;

/// Room for a transaction with the longest list of the longer addresses: two bounds for each range, each with its attributes.
const LARGEST_TRANSACTION: usize = allow_list::MOST_NETWORKS * 2 * 48;

/// Lists up to so many networks are read back at each look; longer ones, which take the kernel a while, at every tenth.
const SHORT: usize = 1000;
const LOOKS_PER_READING: u32 = 10;

const PORTS: &str = "ports";

/// Names of the sets of a family: who always passes, and who is let in.
fn sets_of(family: Family) -> [&'static str; 2] {
    match family {
        Family::V4 => ["always4", "allowed4"],
        Family::V6 => ["always6", "allowed6"],
    }
}

/// The allow-list of this machine, in the kernel.
pub struct NftablesFirewall {
    inner: Arc<Inner>,
}

struct Inner {
    table: String,
    form: Form,
    kernel: Mutex<Result<Kernel, String>>,
}

/// What is held for as long as the firewall is.
struct Kernel {
    netlink: Netlink,
    sockets: Option<Sockets>,
    /// What was asked for last, by this process.
    wanted: Option<Arc<Passage>>,
    /// How often it was verified.
    looks: u32,
}

// === impl NftablesFirewall ===

impl NftablesFirewall {
    /// The list in this table, of the calling thread's network namespace. Takes over what an earlier process left, as it is; makes
    /// nothing but what it tries out. Never fails: what cannot be done is said by [`Firewall::problem`].
    pub fn open(table: &str) -> Self {
        let trial = format!("{table}-trial-{}", std::process::id());
        Self::with_owner(table, survives_flush(&trial).is_ok())
    }

    /// As [`NftablesFirewall::open`], as on a kernel that cannot keep others from changing the table.
    pub fn open_shared(table: &str) -> Self {
        Self::with_owner(table, false)
    }

    fn with_owner(table: &str, owned: bool) -> Self {
        let form = form(owned);
        let kernel = Kernel::open(table, &form);
        Self { inner: Arc::new(Inner { table: table.to_owned(), form, kernel: Mutex::new(kernel) }) }
    }

    /// Works on a thread that may wait: a long list takes the kernel a while.
    async fn work<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Inner, &mut Kernel) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, FirewallError> {
        let inner = Arc::clone(&self.inner);
        let worked = tokio::task::spawn_blocking(move || {
            match &mut *inner.kernel.lock().unwrap_or_else(PoisonError::into_inner) {
                Ok(kernel) => work(&inner, kernel).map_err(|refusal| says(doing, &refusal)),
                Err(why) => Err(FirewallError::Impossible { why: why.clone() }),
            }
        });
        worked.await.unwrap_or_else(|error| Err(FirewallError::Kernel { doing, detail: error.to_string() }))
    }
}

#[async_trait]
impl Firewall for NftablesFirewall {
    fn problem(&self) -> Option<String> {
        self.inner.kernel.lock().unwrap_or_else(PoisonError::into_inner).as_ref().err().cloned()
    }

    async fn keep(&self, passage: Option<Arc<Passage>>) -> Result<u32, FirewallError> {
        if passage.is_none() && self.problem().is_some() {
            return Ok(0);
        }
        self.work("put the allow-list in force", move |inner, kernel| inner.keep(kernel, passage)).await
    }

    async fn verify(&self) -> Result<Vec<String>, FirewallError> {
        if self.problem().is_some() {
            return Ok(Vec::new());
        }
        self.work("verify the allow-list", Inner::put_back).await
    }

    async fn clients(&self, ports: &BTreeSet<u16>) -> Result<BTreeMap<IpAddr, u32>, FirewallError> {
        let ports = ports.clone();
        self.work("list the connections", move |_, kernel| {
            let own = own_addresses();
            let mut clients = BTreeMap::new();
            for address in kernel.sockets()?.clients(&ports)? {
                if !own.contains(&address) && !address.is_loopback() {
                    *clients.entry(address).or_default() += 1;
                }
            }
            Ok(clients)
        })
        .await
    }
}

/// Deletes a table of this kind, so that everybody is let in, also one whose process has ended. For uninstalling; refused, after a
/// second, while its process lives.
pub fn remove(table: &str) -> Result<(), FirewallError> {
    const DOING: &str = "remove the allow-list";
    let mut netlink = Netlink::open(NETLINK_NETFILTER)
        .map_err(|error| FirewallError::Kernel { doing: DOING, detail: error.to_string() })?;
    table::patiently(|| table::remove(&mut netlink, table)).map_err(|refusal| says(DOING, &refusal))
}

fn says(doing: &'static str, refusal: &Refusal) -> FirewallError {
    FirewallError::Kernel { doing, detail: refusal.text() }
}

/// Addresses of this machine: who comes from one of them came by loopback.
fn own_addresses() -> BTreeSet<IpAddr> {
    let Ok(all) = getifaddrs() else { return BTreeSet::new() };
    all.filter_map(|interface| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    })
    .collect()
}

// === impl Inner ===

impl Inner {
    fn keep(&self, kernel: &mut Kernel, passage: Option<Arc<Passage>>) -> Result<u32, Refusal> {
        table::keep_soon(&mut kernel.netlink, &self.table, self.form.owned)?;
        let Some(passage) = passage else {
            table::remove(&mut kernel.netlink, &self.table)?;
            kernel.wanted = None;
            return Ok(0);
        };
        self.make(kernel, &passage)?;
        kernel.wanted = Some(Arc::clone(&passage));
        kernel.cut(&passage)
    }

    fn make(&self, kernel: &mut Kernel, passage: &Passage) -> Result<(), Refusal> {
        let contents = contents(&self.table, passage);
        table::make(&mut kernel.netlink, &self.table, &self.form, contents)
    }

    /// Makes anew what is not as it has to be; says what that was.
    fn put_back(&self, kernel: &mut Kernel) -> Result<Vec<String>, Refusal> {
        let Some(passage) = kernel.wanted.clone() else { return Ok(Vec::new()) };
        let kept = table::keep(&mut kernel.netlink, &self.table, self.form.owned)?;
        let mut faults = table::faults(&mut kernel.netlink, &self.table, &self.form)?;
        kernel.looks = kernel.looks.wrapping_add(1);
        let is_turn = passage.allowed.len() <= SHORT || kernel.looks.is_multiple_of(LOOKS_PER_READING);
        // What is ours alone holds what we put into it.
        if faults.is_empty() && kept != Kept::Owned && is_turn {
            faults = self.other_contents(kernel, &passage)?;
        }
        if !faults.is_empty() {
            self.make(kernel, &passage)?;
            kernel.cut(&passage)?;
        }
        Ok(faults)
    }

    fn other_contents(&self, kernel: &mut Kernel, passage: &Passage) -> Result<Vec<String>, Refusal> {
        let mut faults = Vec::new();
        for (set, wanted) in all_keys(passage) {
            let found = table::elements(&mut kernel.netlink, &self.table, set)?;
            // Other programs write a bound before the first range, which says nothing.
            let found: BTreeSet<_> = found.into_iter().map(|element| (element.key, element.ends_range)).collect();
            if found != wanted.into_iter().collect() {
                faults.push(format!("the set {set} held something else"));
            }
        }
        Ok(faults)
    }
}

// === impl Kernel ===

impl Kernel {
    /// Tries whether a table of this form can be made, and takes over the one that is there.
    fn open(table: &str, form: &Form) -> Result<Self, String> {
        let says = |detail: String| format!("the kernel does not take its table: {detail}");
        let of = |error: io::Error| says(error.to_string());
        let mut netlink = Netlink::open(NETLINK_NETFILTER).map_err(of)?;
        let trial = format!("{table}-try-{}", std::process::id());
        let passage = Passage {
            ports: [1].into(),
            allowed: AllowList::parse(["192.0.2.0/24", "2001:db8::/32"]).expect("these are ranges"),
            always: BTreeSet::new(),
        };
        let made = netlink.batch(&Form { owned: false, ..form.clone() }.messages(&trial, contents(&trial, &passage)));
        table::remove(&mut netlink, &trial).and(made).map_err(|refusal| says(refused(&refusal)))?;
        netlink.reserve(LARGEST_TRANSACTION).map_err(of)?;
        // While another process has it each change tries again.
        let _ = table::keep_soon(&mut netlink, table, form.owned);
        Ok(Self { netlink, sockets: Sockets::open().ok(), wanted: None, looks: 0 })
    }

    fn sockets(&mut self) -> Result<&mut Sockets, Refusal> {
        let missing = || Refusal::of(Errno::EOPNOTSUPP, "list the sockets", "this kernel has no sock_diag");
        self.sockets.as_mut().ok_or_else(missing)
    }

    /// Destroys the connections of whoever is not let in. Where that cannot be done their packets are dropped all the same.
    fn cut(&mut self, passage: &Passage) -> Result<u32, Refusal> {
        let own = own_addresses();
        let judge = Judge::new(&passage.allowed, passage.always.union(&own).copied().collect());
        let doomed = |address: IpAddr| !address.is_loopback() && !judge.lets_in(address);
        match self.sockets.as_mut().map(|sockets| sockets.destroy_of(&passage.ports, doomed)) {
            None => Ok(0),
            Some(Err(refusal)) if refusal.is(Errno::EOPNOTSUPP) => Ok(0),
            Some(destroyed) => destroyed,
        }
    }
}

// --- the table --------------------------------------------------------------------------------------------------------

fn form(owned: bool) -> Form {
    let mut sets = vec![SetForm { name: PORTS, flags: 0, key_type: TYPE_PORT, key_length: 2 }];
    for (family, key_type, key_length) in [(Family::V4, TYPE_IPV4, 4), (Family::V6, TYPE_IPV6, 16)] {
        let [always, allowed] = sets_of(family);
        sets.push(SetForm { name: always, flags: 0, key_type, key_length });
        sets.push(SetForm { name: allowed, flags: SET_OF_RANGES, key_type, key_length });
    }
    let rule = |family: Family| {
        let in_kernel = match family {
            Family::V4 => expressions::Family::V4,
            Family::V6 => expressions::Family::V6,
        };
        let meant = tcp_port(Port::Destination, &[(PORTS, Lookup::In)]).into_iter().chain(from_elsewhere());
        Rule::new(meant.chain(source_in_none(in_kernel, &sets_of(family))).chain([drop_it()]))
    };
    let rules = Family::ALL.map(rule).into();
    Form { owned, sets, chains: vec![ChainForm { name: "input", hook: 1, priority: PRIORITY, rules }] }
}

type Keys = Vec<(Vec<u8>, bool)>;

/// What each set has to hold: keys, and whether each is the first one after a range.
fn all_keys(passage: &Passage) -> Vec<(&'static str, Keys)> {
    let ports = passage.ports.iter().map(|port| (port.to_be_bytes().to_vec(), false)).collect();
    let mut sets = vec![(PORTS, ports)];
    for family in Family::ALL {
        let [always, allowed] = sets_of(family);
        let own = passage.always.iter().filter(|address| Family::of(**address) == family);
        sets.push((always, own.map(|address| (octets(*address), false)).collect()));
        let mut bounds = Vec::new();
        for range in passage.allowed.ranges(family) {
            bounds.push((octets(range.first), false));
            // A range up to the highest address has no end.
            bounds.extend(range.after().map(|after| (octets(after), true)));
        }
        sets.push((allowed, bounds));
    }
    sets
}

/// What fills the sets.
fn contents(table: &str, passage: &Passage) -> Vec<Message> {
    let fill = |(set, keys): (&'static str, Keys)| {
        message::add_bounds("fill a set of the allow-list", table, set, &keys).collect::<Vec<_>>()
    };
    all_keys(passage).into_iter().flat_map(fill).collect()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
