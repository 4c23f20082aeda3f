//! What the engine says of itself, in answer to INFO.

use std::collections::BTreeMap;

/// Names and values of an answer, the first of each name: KeyDB repeats some of them for each upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Info(BTreeMap<String, String>);

/// A replica as its upstream sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Downstream {
    pub(super) address: String,
    pub(super) online: bool,
    /// What it has acknowledged.
    pub(super) offset: u64,
}

// === impl Info ===

impl Info {
    pub(super) fn parse(text: &str) -> Self {
        let mut values = BTreeMap::new();
        for (name, value) in text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'))
        {
            values.entry(name.to_owned()).or_insert_with(|| value.trim_end().to_owned());
        }
        Self(values)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == Some(value)
    }

    pub(super) fn is_primary(&self) -> bool {
        self.is("role", "master")
    }

    /// Whether it is one of two sides that both take writes, and follows the other.
    pub(super) fn is_active(&self) -> bool {
        self.is("role", "active-replica")
    }

    /// Id of its history.
    pub(super) fn id(&self) -> Option<&str> {
        self.text("master_replid").filter(|id| is_id(id))
    }

    /// The id before it, and the offset up to which that counts.
    pub(super) fn former_id(&self) -> Option<(&str, u64)> {
        let id = self.text("master_replid2").filter(|id| is_id(id))?;
        // The engine names the first offset that is no longer of it.
        Some((id, self.number("second_repl_offset")?.checked_sub(1)?))
    }

    /// How far its data has come: what a replica has executed, and what anybody else has written.
    pub(super) fn offset(&self) -> Option<u64> {
        if self.is_primary() || self.is_active() {
            self.number("master_repl_offset")
        } else {
            self.number("slave_repl_offset")
        }
    }

    /// Whether the stream from the upstream comes in, and is no full synchronization.
    pub(super) fn streams(&self) -> bool {
        self.is("master_link_status", "up") && !self.synchronizes()
    }

    /// Whether a full synchronization is under way.
    pub(super) fn synchronizes(&self) -> bool {
        self.is("master_sync_in_progress", "1")
    }

    /// Whether it follows this address.
    pub(super) fn follows(&self, host: &str, port: u16) -> bool {
        self.is("master_host", host) && self.number("master_port") == Some(port.into())
    }

    /// Whether it has been told of an upstream, whether that answers or not.
    pub(super) fn has_upstream(&self) -> bool {
        self.text("master_host").is_some()
    }

    /// Databases that have keys, and how many, of the section `keyspace`.
    pub(super) fn keys_by_database(&self) -> BTreeMap<u32, u64> {
        let database = |(name, value): (&String, &String)| {
            let number = name.strip_prefix("db")?.parse().ok()?;
            let keys = value.split(',').find_map(|word| word.strip_prefix("keys=")?.parse().ok())?;
            Some((number, keys))
        };
        self.0.iter().filter_map(database).collect()
    }

    /// Whether it remembers what it writes, for replicas that were away.
    pub(super) fn remembers(&self) -> bool {
        self.is("repl_backlog_active", "1")
    }

    /// Bytes of memory that are its data.
    pub(super) fn data_bytes(&self) -> u64 {
        let used = self.number("used_memory").unwrap_or(0);
        match self.number("used_memory_dataset") {
            // Less than none, which KeyDB writes as a number without a sign while it has next to none.
            Some(data) if data > used => 0,
            data => data.unwrap_or(used),
        }
    }

    /// Who streams from it.
    pub(super) fn downstreams(&self) -> Vec<Downstream> {
        let numbered = (0..).map_while(|number| self.text(&format!("slave{number}")));
        numbered.filter_map(Downstream::parse).collect()
    }
}

// === impl Downstream ===

impl Downstream {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        Some(Self {
            address: format!("{}:{}", field("ip")?, field("port")?),
            online: field("state") == Some("online"),
            offset: field("offset")?.parse().ok()?,
        })
    }
}

/// The engine writes zeros where there is no id.
fn is_id(text: &str) -> bool {
    text.bytes().any(|byte| byte != b'0') && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_read() {
        let info = Info::parse(
            "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
             slave0:ip=10.0.0.2,port=6379,state=online,offset=140,lag=0\r\n\
             slave1:ip=10.0.0.3,port=6380,state=wait_bgsave,offset=0,lag=9\r\n\
             master_replid:8c4f\r\nmaster_replid2:0000000000\r\nmaster_repl_offset:154\r\nsecond_repl_offset:-1\r\n",
        );
        assert!(info.is_primary());
        assert_eq!((info.id(), info.former_id(), info.offset()), (Some("8c4f"), None, Some(154)));
        let seen = info.downstreams();
        assert_eq!(seen[0], Downstream { address: "10.0.0.2:6379".to_owned(), online: true, offset: 140 });
        assert_eq!((seen.len(), seen[1].online), (2, false));
    }

    #[test]
    fn the_size_of_the_data_is_read() {
        let told = |text: &str| Info::parse(text).data_bytes();
        assert_eq!(told("used_memory:1000\r\nused_memory_dataset:300\r\n"), 300);
        assert_eq!(told("used_memory:1000\r\nused_memory_dataset:18446744073709551000\r\n"), 0, "less than none");
        assert_eq!((told("used_memory:1000\r\n"), told("")), (1000, 0));
    }

    #[test]
    fn a_side_is_read() {
        let info = Info::parse(
            "role:active-replica\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:up\r\n\
             slave_repl_offset:190\r\nmaster_replid:8c4f\r\nmaster_repl_offset:200\r\n",
        );
        assert!(info.is_active() && !info.is_primary() && info.streams() && info.has_upstream());
        assert_eq!(info.offset(), Some(200), "its own, not the other side's");
        let keyspace =
            Info::parse("# Keyspace\r\ndb0:keys=12,expires=0,avg_ttl=0\r\ndb3:keys=1,expires=1,avg_ttl=5\r\n");
        assert_eq!(keyspace.keys_by_database(), BTreeMap::from([(0, 12), (3, 1)]));
    }

    #[test]
    fn a_replica_is_read() {
        let text = "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_link_status:up\r\nmaster_sync_in_progress:0\r\n\
                    slave_read_repl_offset:200\r\nslave_repl_offset:190\r\nmaster_replid:8c4f\r\nmaster_replid2:77aa\r\n\
                    second_repl_offset:101\r\nmaster_repl_offset:200\r\n";
        let info = Info::parse(text);
        assert!(info.streams() && !info.is_primary());
        assert_eq!((info.offset(), info.former_id()), (Some(190), Some(("77aa", 100))));
        assert!(!Info::parse(&text.replace("progress:0", "progress:1")).streams());
        // With two upstreams KeyDB says some things twice.
        let twice = format!("{text}slave_repl_offset:7\r\n");
        assert_eq!(Info::parse(&twice).offset(), Some(190));
    }
}
