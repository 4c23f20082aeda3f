//! The addresses of those who always pass, found by name. A name may get another address at any time, so that it is asked again on a
//! period; a name that cannot be found now keeps the addresses that it had.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use async_trait::async_trait;
use regent_common::allow_list::canonical;

/// How long an answer is waited for. A resolver that hangs must not delay what waits for a list.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Where names are looked up.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// The addresses of a host name; `None` when nobody says so now.
    async fn addresses(&self, host: &str) -> Option<BTreeSet<IpAddr>>;
}

/// The machine's own resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

/// Nobody knows a name: where networks are simulated.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNames;

#[async_trait]
impl Names for SystemNames {
    async fn addresses(&self, host: &str) -> Option<BTreeSet<IpAddr>> {
        let found = tokio::time::timeout(ANSWER_WITHIN, tokio::net::lookup_host((host, 0))).await.ok()?.ok()?;
        Some(found.map(|socket| canonical(socket.ip())).collect::<BTreeSet<_>>()).filter(|found| !found.is_empty())
    }
}

#[async_trait]
impl Names for NoNames {
    async fn addresses(&self, _: &str) -> Option<BTreeSet<IpAddr>> {
        None
    }
}

/// The host in `host:port`, `[address]:port` or a host alone.
pub(super) fn host_of(text: &str) -> &str {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match text.rsplit_once(':') {
        // An address of IPv6 without brackets has no port.
        Some((host, _)) if !host.contains(':') => host,
        Some(_) | None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_is_before_the_port() {
        for (text, host) in [
            ("db1:7421", "db1"),
            ("db1", "db1"),
            ("192.0.2.1:7421", "192.0.2.1"),
            ("[2001:db8::1]:7421", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(host_of(text), host);
        }
    }
}
