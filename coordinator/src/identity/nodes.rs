//! Nodes: how a machine becomes one, says where it is, renews and is revoked.

use std::{collections::BTreeMap, collections::BTreeSet, str::FromStr as _, time::Duration};

use jiff::Timestamp;
use regent_common::{
    error::Reason,
    identity::Principal,
    ids::{ClusterName, NodeName},
    token::JoinToken,
};

use super::{
    Identities, IdentityError, retrying,
    users::{require_counted, revoked_certificate},
};
use crate::{
    model::{
        Assignment,
        cluster::ClusterRecord,
        node::NodeRecord,
        token::{TokenRecord, TokenUse},
    },
    pki::{Host, PublicKey},
    store::{Transaction, Versioned, get_json, keys},
};

/// Where a node is reached; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    agent: String,
    public: String,
    private: String,
    hosts: BTreeSet<Host>,
}

/// A machine that asks to become a node.
#[derive(Debug)]
pub struct Join {
    /// What it has from a person.
    pub token: JoinToken,
    /// How it is to be called.
    pub node: NodeName,
    /// Its key.
    pub key: PublicKey,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Its time of day.
    pub clock: Timestamp,
    /// Opaque labels.
    pub labels: BTreeMap<String, String>,
    /// Its agent has no ledger.
    pub ledger_empty: bool,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The stored record.
    pub record: NodeRecord,
    /// Its certificate with the authority's, in PEM.
    pub certificate: String,
    /// Cluster that it will be a replica of.
    pub cluster: Option<ClusterName>,
}

/// How much the clocks may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 255;

// === impl Addresses ===

impl Addresses {
    /// Checks what a node says of itself: `agent` as host:port, the others as plain hosts or empty.
    pub fn new(agent: &str, public: &str, private: &str) -> Result<Self, IdentityError> {
        let (host, _) = Host::with_port(agent).map_err(|error| IdentityError::field("agent_address", error))?;
        let mut hosts = BTreeSet::from([host]);
        for (field, text) in [("public_address", public), ("private_address", private)] {
            if !text.is_empty() {
                hosts.insert(Host::from_str(text).map_err(|error| IdentityError::field(field, error))?);
            }
        }
        Ok(Self { agent: agent.to_owned(), public: public.to_owned(), private: private.to_owned(), hosts })
    }

    fn of(record: &NodeRecord) -> Result<Self, IdentityError> {
        Self::new(&record.agent_address, &record.public_address, &record.private_address)
    }

    fn write_to(&self, record: &mut NodeRecord) {
        record.agent_address.clone_from(&self.agent);
        record.public_address.clone_from(&self.public);
        record.private_address.clone_from(&self.private);
    }
}

// === impl Identities ===

impl Identities {
    /// Makes a machine a node, by its token; the same key may ask again while the token lives.
    pub async fn join(&self, join: &Join) -> Result<Joined, IdentityError> {
        check_labels(&join.labels)?;
        let joined = retrying!(self.try_join(join))?;
        (self.settings.hooks.on_joined)(joined.record.clone());
        Ok(joined)
    }

    async fn try_join(&self, join: &Join) -> Result<Joined, IdentityError> {
        let now = self.now();
        let digest = join.token.digest();
        let Versioned { value: mut token, version } = self.admitting_token(join, &digest, now).await?;
        check_clock(join.clock, now)?;
        let stored = get_json::<NodeRecord>(self.store(), &keys::node(&join.node)).await?;
        let before = stored.as_ref().map(|stored| &stored.value);
        check_name(join, &token, before)?;
        let mut record = NodeRecord {
            name: join.node.clone(),
            agent_address: String::new(),
            public_address: String::new(),
            private_address: String::new(),
            labels: join.labels.clone(),
            joined_at: now,
            certificate_not_after: None,
            serials: Vec::new(),
            revoked: false,
            data_lost: before.is_some_and(|before| join.ledger_empty || before.data_lost),
            join_cluster: None,
        };
        let mut ended = Vec::new();
        match (&token.used, before) {
            // The answer was lost: nothing but the certificate is new.
            (Some(_), Some(before)) => {
                record.serials = self.unended(&before.serials, now).await?;
                record.join_cluster.clone_from(&before.join_cluster);
                record.data_lost = before.data_lost;
            }
            (_, before) => {
                record.join_cluster = self.cluster_to_join(join, &token).await?;
                ended = before.map(|before| before.serials.clone()).unwrap_or_default();
            }
        }
        join.addresses.write_to(&mut record);

        let (node_key, token_key) = (keys::node(&join.node), keys::token(&digest));
        let transaction = Transaction::default().require_version(token_key.clone(), version);
        let transaction = match &stored {
            Some(stored) => transaction.require_version(node_key.clone(), stored.version),
            None => transaction.require_absent(node_key.clone()),
        };
        let transaction = self.end_certificates(transaction, &ended, now).await?;
        let hosts = self.node_hosts(&join.node, &join.addresses);
        let principal = Principal::Node(join.node.clone());
        let (issued, transaction) = self.issue(transaction, principal, hosts, &join.key, &format!("token {digest}"))?;
        record.certificate_not_after = Some(issued.not_after);
        record.serials.push(issued.serial.clone());
        token.used = Some(TokenUse { node: join.node.clone(), key: join.key.digest(), serial: issued.serial, at: now });
        self.store().commit(transaction.put_json(token_key, &token).put_json(node_key, &record)).await?;
        self.publish(ended);
        Ok(Joined { record, certificate: issued.chain_pem, cluster: token.cluster })
    }

    /// The token's record, when it admits this node with this key now.
    async fn admitting_token(
        &self,
        join: &Join,
        digest: &str,
        now: Timestamp,
    ) -> Result<Versioned<TokenRecord>, IdentityError> {
        if join.token.ca_fingerprint() != self.settings.authority.fingerprint() {
            let message = "the join token is of another coordinator: create one here; nothing was changed";
            return Err(IdentityError::refused(Reason::TokenUnknown, message));
        }
        let stored = get_json::<TokenRecord>(self.store(), &keys::token(digest)).await?.ok_or_else(|| {
            let message = "this join token is not known: create a new one; nothing was changed";
            IdentityError::refused(Reason::TokenUnknown, message)
        })?;
        let token = &stored.value;
        if let Some(node) = token.node.as_ref().filter(|node| **node != join.node) {
            let message = format!("the join token admits only node {node}, not {}; nothing was changed", join.node);
            return Err(IdentityError::refused(Reason::TokenWrongNode, message));
        }
        if let Some(used) = token.used.as_ref().filter(|used| used.node != join.node || used.key != join.key.digest()) {
            let message = format!(
                "the join token was used at {} by node {}, with another key or name: create a new one; nothing was changed",
                used.at, used.node
            );
            return Err(IdentityError::refused(Reason::TokenUsed, message));
        }
        if now >= token.expires_at {
            let message =
                format!("the join token ended at {}: create a new one; nothing was changed", token.expires_at);
            return Err(IdentityError::refused(Reason::TokenExpired, message));
        }
        Ok(stored)
    }

    /// The cluster that the node is to become a member of, unless it is one already.
    async fn cluster_to_join(&self, join: &Join, token: &TokenRecord) -> Result<Option<ClusterName>, IdentityError> {
        let Some(cluster) = &token.cluster else { return Ok(None) };
        self.require_cluster(cluster).await?;
        match get_json::<Assignment>(self.store(), &keys::assignment(&join.node)).await? {
            None => Ok(Some(cluster.clone())),
            Some(stored) if stored.value.cluster == *cluster => Ok(None),
            Some(stored) => {
                let message = format!(
                    "node {} is a member of cluster {}, and the join token is for cluster {cluster}; nothing was changed",
                    join.node, stored.value.cluster
                );
                Err(IdentityError::refused(Reason::NodeInCluster, message))
            }
        }
    }

    /// Takes a node's word of where it is.
    pub async fn announce(
        &self,
        name: &NodeName,
        serial: Option<&str>,
        addresses: &Addresses,
        incarnation: &str,
    ) -> Result<NodeRecord, IdentityError> {
        // Whoever may not act may not have others asked either.
        self.acting_node(name, serial).await?;
        let contest = (self.settings.hooks.contest)(name.clone(), addresses.agent.clone(), incarnation.to_owned());
        if let Some(why) = contest.await {
            return Err(IdentityError::refused(Reason::IdentityTwice, why));
        }
        let record = retrying!(self.try_announce(name, serial, addresses))?;
        (self.settings.hooks.on_announced)(record.clone());
        Ok(record)
    }

    async fn try_announce(
        &self,
        name: &NodeName,
        serial: Option<&str>,
        addresses: &Addresses,
    ) -> Result<NodeRecord, IdentityError> {
        let Versioned { value: before, version } = self.acting_node(name, serial).await?;
        let mut record = before.clone();
        addresses.write_to(&mut record);
        if record != before {
            let key = keys::node(name);
            let transaction = Transaction::default().require_version(key.clone(), version);
            self.store().commit(transaction.put_json(key, &record)).await?;
        }
        Ok(record)
    }

    pub(super) async fn try_renew_node(
        &self,
        name: &NodeName,
        serial: Option<&str>,
        key: &PublicKey,
    ) -> Result<String, IdentityError> {
        let Versioned { value: mut record, version } = self.acting_node(name, serial).await?;
        let store_key = keys::node(name);
        let transaction = Transaction::default().require_version(store_key.clone(), version);
        let hosts = self.node_hosts(name, &Addresses::of(&record)?);
        let (issued, transaction) = self.issue(transaction, Principal::Node(name.clone()), hosts, key, "renewal")?;
        record.serials = self.unended(&record.serials, self.now()).await?;
        record.serials.push(issued.serial);
        record.certificate_not_after = Some(issued.not_after);
        self.store().commit(transaction.put_json(store_key, &record)).await?;
        Ok(issued.chain_pem)
    }

    /// Revokes a node and all its certificates; again does no harm. A primary must hand over first.
    pub async fn revoke_node(&self, name: &NodeName) -> Result<(NodeRecord, Option<Assignment>), IdentityError> {
        let revoked = retrying!(self.try_revoke_node(name))?;
        (self.settings.hooks.on_revoked)(name.clone());
        Ok(revoked)
    }

    async fn try_revoke_node(&self, name: &NodeName) -> Result<(NodeRecord, Option<Assignment>), IdentityError> {
        let Versioned { value: mut record, version } = self.node(name).await?;
        let key = keys::node(name);
        let mut transaction = Transaction::default().require_version(key.clone(), version);
        let assignment = get_json::<Assignment>(self.store(), &keys::assignment(name)).await?;
        if let Some(Versioned { value: assignment, .. }) = &assignment {
            let cluster_key = keys::cluster(&assignment.cluster);
            if let Some(cluster) = get_json::<ClusterRecord>(self.store(), &cluster_key).await? {
                let leads = |member: &Option<_>| member.as_ref() == Some(&assignment.member);
                if leads(&cluster.value.primary) || leads(&cluster.value.candidate) {
                    let message = format!(
                        "node {name} is, or is about to be, the primary of cluster {}: move the primary to another \
                         member first; nothing was changed",
                        assignment.cluster
                    );
                    return Err(IdentityError::refused(Reason::MemberIsPrimary, message));
                }
                // It must not become primary between this look and the commit.
                transaction = transaction.require_version(cluster_key, cluster.version);
            }
        }
        record.revoked = true;
        record.join_cluster = None;
        let transaction = self.end_certificates(transaction, &record.serials, self.now()).await?;
        self.store().commit(transaction.put_json(key, &record)).await?;
        self.publish(record.serials.clone());
        Ok((record, assignment.map(|stored| stored.value)))
    }

    async fn node(&self, name: &NodeName) -> Result<Versioned<NodeRecord>, IdentityError> {
        get_json::<NodeRecord>(self.store(), &keys::node(name)).await?.ok_or_else(|| {
            let message = format!("there is no node {name}: see `regentctl node list`; nothing was changed");
            IdentityError::refused(Reason::NodeNotFound, message)
        })
    }

    /// The record of a node that calls with a certificate that counts.
    async fn acting_node(&self, name: &NodeName, serial: Option<&str>) -> Result<Versioned<NodeRecord>, IdentityError> {
        let stored = self.node(name).await?;
        if stored.value.revoked {
            return Err(revoked_certificate(format!("node {name} is revoked")));
        }
        require_counted(&stored.value.serials, serial, &format!("node {name}"))?;
        Ok(stored)
    }

    /// What a node's certificate says of where it is. The coordinator's own hosts never: clients that check host names
    /// alone would take the node for the coordinator.
    fn node_hosts(&self, name: &NodeName, addresses: &Addresses) -> BTreeSet<Host> {
        let mut hosts = addresses.hosts.clone();
        hosts.insert(Host::Name(name.to_string()));
        hosts.difference(&self.settings.reserved).cloned().collect()
    }
}

/// Whether the name is free for this machine.
fn check_name(join: &Join, token: &TokenRecord, before: Option<&NodeRecord>) -> Result<(), IdentityError> {
    let name = &join.node;
    let Some(before) = before else {
        return match &token.used {
            None => Ok(()),
            Some(_) => Err(IdentityError::refused(
                Reason::TokenUsed,
                format!(
                    "the join token was used for node {name}, which is gone: create a new one; nothing was changed"
                ),
            )),
        };
    };
    if let Some(used) = &token.used {
        if before.revoked {
            return Err(IdentityError::refused(
                Reason::NodeRevoked,
                format!("node {name} is revoked: create a new token to let it join again; nothing was changed"),
            ));
        }
        if !before.serials.contains(&used.serial) {
            return Err(IdentityError::refused(
                Reason::TokenUsed,
                format!("node {name} has joined with a newer token since; nothing was changed"),
            ));
        }
        return Ok(());
    }
    // A token for any node is no leave to take a living node's name: every new machine's ledger is empty.
    if before.revoked || (join.ledger_empty && token.node.is_some()) {
        return Ok(());
    }
    let message = if join.ledger_empty {
        format!(
            "there is a node {name} already: choose another name; if this is that machine after its disk was lost, \
             use a token made for it (`regentctl token create --node {name}`); nothing was changed"
        )
    } else {
        format!("there is a node {name} already: choose another name, or revoke that node first; nothing was changed")
    };
    Err(IdentityError::refused(Reason::NameTaken, message))
}

fn check_clock(theirs: Timestamp, ours: Timestamp) -> Result<(), IdentityError> {
    let difference = theirs.duration_since(ours);
    if difference.unsigned_abs() <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let side = if difference.is_positive() { "ahead of" } else { "behind" };
    let message = format!(
        "the node's clock is {:.1} s {side} the coordinator's (at most {} s are allowed): set it, for example by NTP; \
         nothing was changed",
        difference.unsigned_abs().as_secs_f64(),
        CLOCK_TOLERANCE.as_secs()
    );
    Err(IdentityError::refused(Reason::ClockWrong, message))
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), IdentityError> {
    let fits = |text: &str| text.len() <= LONGEST_LABEL && !text.chars().any(char::is_control);
    let good = labels.len() <= MOST_LABELS && labels.iter().all(|(k, v)| !k.is_empty() && fits(k) && fits(v));
    if good {
        return Ok(());
    }
    let problem = format!("at most {MOST_LABELS} labels of at most {LONGEST_LABEL} bytes, without control characters");
    Err(IdentityError::field("labels", problem))
}
