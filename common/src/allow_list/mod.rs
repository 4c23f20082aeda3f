//! Which addresses reach the engines of a cluster, as people write it and as a kernel wants it. Pure.
//!
//! [`AllowList`] keeps what people wrote, one [`Network`] each, so that it can be shown and taken back as it was written; its
//! [`ranges`](AllowList::ranges) are what that comes to: sorted, apart from one another, overlapping and adjacent ones merged.
//!
//! **Invariants:** an empty list lets everybody in. A list that is not empty lets in nobody of a family that it does not name. An
//! IPv4 address written as IPv6 (`::ffff:10.0.0.1`) is that IPv4 address everywhere, so that nothing is let in or kept out by the
//! way a socket shows it. A network has no host bits.
//!
//! Not here: who passes without being in the list (the members, the coordinator, the machine itself), and the ports.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::hex::hex;

/// Most networks in a list.
pub const MOST_NETWORKS: usize = 20_000;

/// Bits before an IPv4 address in its IPv6 form.
const MAPPED_PREFIX: u8 = 96;

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

/// A single address, or all addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    /// The first address; never one of IPv6 that stands for one of IPv4.
    first: IpAddr,
    prefix: u8,
}

/// Addresses from one to another of the same family, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The first one.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
}

/// Which addresses reach the engines of a cluster. Empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowList(BTreeSet<Network>);

/// Why a text is no network, or a list no allow-list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowListError {
    /// Not an address, nor an address with a prefix.
    #[error("{text:?} is not an address or a range: write it as 192.0.2.7, 192.0.2.0/24, 2001:db8::7 or 2001:db8::/32")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// The prefix is longer than the address.
    #[error("{text:?} has a prefix of {given} bits, and {name} addresses have {most}", name = family.name(), most = family.bits())]
    LongPrefix {
        /// What was given.
        text: String,
        /// Its prefix.
        given: u8,
        /// Its family.
        family: Family,
    },
    /// There are bits set after the prefix, so that nobody knows which of two networks is meant.
    #[error("{text:?} has bits set after its prefix: write {meant} for the range, or {address} for the single address")]
    HostBits {
        /// What was given.
        text: String,
        /// The network with that prefix.
        meant: Network,
        /// The address alone.
        address: IpAddr,
    },
    /// A range of IPv6 that holds all of IPv4 and more: nobody means that.
    #[error("{text:?} spans all of IPv4 in its IPv6 form: write 0.0.0.0/0 for IPv4 and the IPv6 ranges beside it")]
    SpansMapped {
        /// What was given.
        text: String,
    },
    /// There are too many.
    #[error("an allow-list has at most {MOST_NETWORKS} addresses and ranges, and this one would have {given}")]
    TooMany {
        /// How many it would have.
        given: usize,
    },
}

// === impl Family ===

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }

    /// The highest address, as a number.
    fn highest(self) -> u128 {
        u128::MAX >> (128 - u32::from(self.bits()))
    }
}

/// An address as a number within its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Whether one of these ranges, sorted and apart from one another, has an address.
pub fn hold(ranges: &[Range], address: IpAddr) -> bool {
    let address = canonical(address);
    let after = ranges.partition_point(|range| range.first <= address);
    after.checked_sub(1).is_some_and(|place| ranges[place].contains(address))
}

/// An address in the form that counts here: one of IPv4 that is written as IPv6 is one of IPv4.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

// === impl Network ===

impl Network {
    /// The network of a single address.
    pub fn single(address: IpAddr) -> Self {
        let first = canonical(address);
        Self { first, prefix: Family::of(first).bits() }
    }

    /// Its addresses.
    pub fn range(self) -> Range {
        let family = self.family();
        let last = number(self.first) | host_bits(family, self.prefix);
        Range { first: self.first, last: family.address(last) }
    }

    /// Its family.
    pub fn family(self) -> Family {
        Family::of(self.first)
    }

    /// Whether it is all addresses of its family.
    pub fn is_all(self) -> bool {
        self.prefix == 0
    }
}

/// The bits after a prefix.
fn host_bits(family: Family, prefix: u8) -> u128 {
    family.highest().checked_shr(prefix.into()).unwrap_or_default()
}

impl FromStr for Network {
    type Err = AllowListError;
    fn from_str(text: &str) -> Result<Self, AllowListError> {
        let text = text.trim();
        let malformed = || AllowListError::Malformed { text: text.to_owned() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| malformed())?;
        let Some(prefix) = prefix else { return Ok(Self::single(written)) };
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        let given: u8 = prefix.parse().map_err(|_| malformed())?;
        let family = Family::of(written);
        if given > family.bits() {
            return Err(AllowListError::LongPrefix { text: text.to_owned(), given, family });
        }
        let first = canonical(written);
        let prefix = if family == Family::of(first) {
            given
        } else {
            given.checked_sub(MAPPED_PREFIX).ok_or_else(|| AllowListError::SpansMapped { text: text.to_owned() })?
        };
        let family = Family::of(first);
        let start = number(first) & !host_bits(family, prefix);
        let meant = Self { first: family.address(start), prefix };
        if start != number(first) {
            return Err(AllowListError::HostBits { text: text.to_owned(), meant, address: first });
        }
        Ok(meant)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == self.family().bits() {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}/{}", self.first, self.prefix)
        }
    }
}

impl TryFrom<String> for Network {
    type Error = AllowListError;
    fn try_from(text: String) -> Result<Self, AllowListError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

// === impl Range ===

impl Range {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = canonical(address);
        Family::of(address) == Family::of(self.first) && self.first <= address && address <= self.last
    }

    /// The address after the last one; `None` when that is the highest of its family.
    pub fn after(&self) -> Option<IpAddr> {
        let family = Family::of(self.last);
        (number(self.last) < family.highest()).then(|| family.address(number(self.last) + 1))
    }
}

// === impl AllowList ===

impl AllowList {
    /// Reads a list; what stands in it twice stands in it once.
    ///
    /// # Errors
    /// The first text that is no network, or that there are too many.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, AllowListError> {
        let mut networks = BTreeSet::new();
        for text in texts {
            networks.insert(text.as_ref().parse()?);
        }
        Self::checked(networks)
    }

    fn checked(networks: BTreeSet<Network>) -> Result<Self, AllowListError> {
        if networks.len() > MOST_NETWORKS {
            return Err(AllowListError::TooMany { given: networks.len() });
        }
        Ok(Self(networks))
    }

    /// This list and another one together.
    ///
    /// # Errors
    /// That there would be too many.
    pub fn with(&self, others: &Self) -> Result<Self, AllowListError> {
        Self::checked(self.0.union(&others.0).copied().collect())
    }

    /// This list without what stands in another one, each by the very range that was written.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).copied().collect())
    }

    /// What people wrote, IPv4 first.
    pub fn networks(&self) -> impl ExactSizeIterator<Item = Network> {
        self.0.iter().copied()
    }

    /// Number of them.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has this very network.
    pub fn has(&self, network: &Network) -> bool {
        self.0.contains(network)
    }

    /// Whether every address of a family is let in.
    pub fn is_open_to(&self, family: Family) -> bool {
        let all = Range { first: family.address(0), last: family.address(family.highest()) };
        self.is_empty() || self.ranges(family) == [all]
    }

    /// Whether no address of a family is let in.
    pub fn is_closed_to(&self, family: Family) -> bool {
        !self.is_empty() && !self.0.iter().any(|network| network.family() == family)
    }

    /// Whether it lets this address in.
    pub fn lets_in(&self, address: IpAddr) -> bool {
        self.is_empty() || self.0.iter().any(|network| network.range().contains(address))
    }

    /// The addresses of a family that stand in it, sorted, apart from one another, and no two of them adjacent.
    pub fn ranges(&self, family: Family) -> Vec<Range> {
        let mut merged: Vec<Range> = Vec::new();
        // A set of networks is sorted by the first address.
        for range in self.0.iter().filter(|network| network.family() == family).map(|network| network.range()) {
            match merged.last_mut() {
                Some(last) if last.after().is_none_or(|after| range.first <= after) => {
                    last.last = last.last.max(range.last)
                }
                Some(_) | None => merged.push(range),
            }
        }
        merged
    }

    /// Names this list among others; empty for the one that lets everybody in.
    pub fn fingerprint(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let text: String = self.0.iter().map(|network| format!("{network}\n")).collect();
        hex(&digest(&SHA256, text.as_bytes()).as_ref()[..8])
    }

    /// What a person should know of it, a sentence each.
    pub fn remarks(&self) -> Vec<String> {
        if self.is_empty() {
            return vec!["the list is empty: every address reaches the engines".to_owned()];
        }
        let of_family = |family: Family| {
            let name = family.name();
            let all = match family {
                Family::V4 => "0.0.0.0/0",
                Family::V6 => "::/0",
            };
            if self.is_closed_to(family) {
                Some(format!("the list names no {name} address: {name} is closed; add {all} to open it"))
            } else if self.is_open_to(family) {
                Some(format!("{name} is open to every address"))
            } else {
                None
            }
        };
        Family::ALL.into_iter().filter_map(of_family).collect()
    }
}

impl FromIterator<Network> for AllowList {
    /// For lists that are short by how they are made; the number is not checked.
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
