//! Names and addresses of machines, as people give them: `db1.example`, `10.0.0.7`, `[fd00::7]:7421`.

use std::{fmt, net::IpAddr, str::FromStr};

/// A DNS name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A DNS name in lower case.
    Name(String),
    /// An IP address.
    Address(IpAddr),
}

/// Why a text names no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Neither a DNS name nor an IP address.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Host(String),
    /// Not `host:port`.
    #[error("{0:?} is not of the form HOST:PORT with a port from 1 to 65535")]
    Port(String),
    /// An address at which nobody can be reached, such as `0.0.0.0`.
    #[error("{0:?} is an address to listen on; give one at which others reach this machine")]
    Unspecified(String),
}

// === impl Host ===

impl Host {
    /// Reads `host:port` or `[ipv6]:port`.
    pub fn with_port(text: &str) -> Result<(Self, u16), HostError> {
        let wrong = || HostError::Port(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if port == 0 || (inner.is_none() && host.contains(':')) {
            return Err(wrong());
        }
        Ok((inner.unwrap_or(host).parse()?, port))
    }
}

impl FromStr for Host {
    type Err = HostError;
    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return if address.is_unspecified() {
                Err(HostError::Unspecified(text.to_owned()))
            } else {
                Ok(Self::Address(address))
            };
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A last label of digits alone is a mistyped address, never a name (RFC 1123).
        let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if text.len() <= 253 && text.split('.').all(label) && !numeric {
            Ok(Self::Name(text.to_ascii_lowercase()))
        } else {
            Err(HostError::Host(text.to_owned()))
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in ["n1", "db1.example.com", "10.0.0.7", "::1", "xn--ber-goa.example", "1a"] {
            assert_eq!(good.parse::<Host>().unwrap().to_string(), good);
        }
        assert_eq!("DB1".parse::<Host>().unwrap(), Host::Name("db1".to_owned()));
        for bad in ["", ".", "a..b", "-a", "a_b", "a b", "10.0.0", "10.0.0.700", "a/b", "*.a", "0.0.0.0", "::", "a:1"] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_port_is_needed_where_it_is_asked_for() {
        for good in ["n1:7421", "10.0.0.7:1", "[fd00::7]:7421"] {
            assert!(Host::with_port(good).is_ok(), "{good:?} was refused");
        }
        for bad in ["n1", "n1:", "n1:0", "n1:65536", "fd00::7:7421", ":7421", "[n1:7421", "n1:7421:1", "0.0.0.0:7421"] {
            assert!(Host::with_port(bad).is_err(), "{bad:?} was taken");
        }
    }
}
