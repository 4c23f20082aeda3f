//! What both sides say about clusters, members and machines.
//!
//! What is *wanted* ([`ClusterSpec`]) and what is *seen* ([`Observation`]) are separate types; there is no "status".

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::{
    allow_list::AllowList,
    ids::{ClusterId, ClusterName, Epoch, MemberName, NodeName, OperationToken},
    lease::Authority,
    position::Position,
};

/// A member's role in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts writes.
    Primary,
    /// Follows an upstream and refuses writes.
    Replica,
    /// One of the two sides of a multi-master cluster: accepts writes, and follows the other side.
    Active,
}

/// How the members of a cluster stand to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One primary, and replicas that follow it.
    #[default]
    PrimaryReplica,
    /// Two sides that both accept writes and follow each other. There is no lease and no electorate: nothing excludes two writers.
    MultiMaster,
}

/// Evidence on a yes/no question. Unknown is never taken for no.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ternary {
    /// It is so.
    Yes,
    /// It is not so.
    No,
    /// Nobody knows.
    #[default]
    Unknown,
}

/// What the engine's process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// The node has no data of the cluster.
    Absent,
    /// Stopped because it was told to.
    Stopped,
    /// The process lives and does not accept connections yet.
    Starting,
    /// Accepts connections ("too many connections" is an answer, and counts as this).
    Running,
    /// Being stopped.
    Stopping,
    /// The process ended without being told to.
    Crashed,
    /// The process lives and does not answer a new connection within its deadline.
    Hung,
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A member as its peers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Member name.
    pub member: MemberName,
    /// Node that it lives on.
    pub node: NodeName,
    /// Where its engine is reached.
    pub engine: Endpoint,
    /// Where its agent is reached, as host:port.
    pub agent_address: String,
}

/// How far a member had come by its own word: what it said when it asked for endorsement, or what its stream told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardPosition {
    /// Who had.
    pub member: MemberName,
    /// How far.
    pub position: Position,
}

/// What every member of a cluster applies.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Cluster name.
    pub cluster: ClusterName,
    /// Engine name.
    pub engine: String,
    /// Engine version that is wanted; empty for the newest on the node.
    pub version: String,
    /// All members, sorted by name.
    pub members: Vec<Peer>,
    /// Settings by the engine's own names; only the driver reads them.
    pub settings: BTreeMap<String, String>,
    /// Passwords by purpose: `replication`, `application`.
    pub secrets: BTreeMap<String, SecretString>,
    /// Which addresses reach its engines.
    pub allow_list: AllowList,
    /// Who may log in from where, in the engine's own terms, as an adopted instance had it; empty for the driver's own rules. Only the
    /// driver reads it.
    pub access_rules: String,
    /// How its members stand to each other.
    pub mode: Mode,
    /// Whether the members' ports speak TLS only, to clients and to each other.
    pub tls: bool,
}

/// What one of the two sides of a multi-master cluster has, and the other one has not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Entries (keys, rows) of this side that were looked at.
    pub compared: u64,
    /// Those that the other side does not have.
    pub only_here: u64,
    /// Names of some of them.
    pub examples: Vec<String>,
    /// Everything that this side was loaded with had reached the other one before it ended: what is missing there was deleted there
    /// since. False where that is not known.
    #[serde(default)]
    pub delivered: bool,
    /// Whether the values of what both have were compared too.
    #[serde(default)]
    pub values: bool,
    /// Those that the other side has with another value.
    #[serde(default)]
    pub differing: u64,
    /// Names of some of these.
    #[serde(default)]
    pub differing_examples: Vec<String>,
    /// Those of which it is not known: they changed all the while, are so large that clients would have had to wait, or of a kind that
    /// the engine makes no digest of.
    #[serde(default)]
    pub undecided: u64,
}

/// How an allow-list stands on a member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowListState {
    /// Names the list that the member was told last, see [`AllowList::fingerprint`].
    pub fingerprint: String,
    /// Why that list is not in force; empty when it is.
    pub problem: String,
}

/// What an agent knows of its member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Cluster that the node's ledger names.
    pub cluster_id: ClusterId,
    /// Member name that the node's ledger names.
    pub member: MemberName,
    /// Highest epoch that the ledger has.
    pub epoch: Epoch,
    /// Operation token that the ledger has.
    pub token: OperationToken,
    /// Whether the ledger has answered a fence that no later step has lifted.
    pub fenced: bool,
    /// Whether the data must not be started (a half-done clone or rewind).
    pub dirty: bool,
    /// Where its engine is reached; `None` while its driver cannot be opened.
    pub endpoint: Option<Endpoint>,
    /// Fingerprint of the configuration that was applied last; empty before the first, and while it is not known.
    #[serde(default)]
    pub configuration: String,
    /// What the driver sees.
    pub engine: EngineObservation,
    /// Its authority: role by the ledger, lease, promises, fence.
    pub authority: Authority,
    /// Wall time, for display only.
    pub observed_at: Timestamp,
    /// How long before this report the engine was looked at.
    #[serde(default)]
    pub observed_ago: Duration,
    /// Who is let in to its ports; `None` where an agent knows of no allow-lists.
    #[serde(default)]
    pub allow_list: Option<AllowListState>,
}

/// Name of the fact that tells why a primary that answers refuses writes, for people.
pub const REFUSES_WRITES: &str = "refuses_writes";
/// Name of the fact that tells when the certificate of a member's port ends, as a timestamp of RFC 3339.
pub const CERTIFICATE_UNTIL: &str = "certificate_until";

/// What a driver sees of its engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineObservation {
    /// State of the process.
    pub state: EngineState,
    /// Role by the engine's own word; `None` while it does not answer.
    pub role: Option<Role>,
    /// Whether a write canary on the data volume ended within its deadline.
    pub storage_writable: Ternary,
    /// Replication position.
    pub position: Option<Position>,
    /// Whether a replica receives a stream from its upstream.
    pub streaming: Ternary,
    /// Member that this one is told to follow.
    pub upstream: Option<MemberName>,
    /// Bytes received and not yet applied.
    pub replay_lag_bytes: Option<u64>,
    /// Process id of the engine.
    pub pid: Option<u32>,
    /// Engine version by its own word.
    pub version: String,
    /// One sentence on why it is not healthy; empty when it is.
    pub reason: String,
    /// Facts for people, by name.
    pub details: BTreeMap<String, String>,
    /// Size of the data on disk in bytes; 0 while unknown.
    pub data_bytes: u64,
    /// Why this replica can never catch up by its stream; empty when it can, as far as is known.
    #[serde(default)]
    pub stale: String,
}

/// Measured facts of a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Logical processors.
    pub cpus: u32,
    /// Share of all processors in use over the last interval, 0 to 100.
    pub cpu_percent: f64,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Memory available to programs in bytes.
    pub memory_available_bytes: u64,
    /// Size of the file system with the engine's data in bytes.
    pub disk_bytes: u64,
    /// Free bytes on it.
    pub disk_free_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Distribution by /etc/os-release.
    pub distribution: String,
    /// Boot id of the kernel.
    pub boot_id: String,
}

/// An engine that a node can run: a driver's capabilities and what is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineOffer {
    /// Name of the engine.
    pub engine: String,
    /// Versions found on the node, newest first.
    pub versions: Vec<String>,
    /// Modes the driver supports, the default first.
    pub modes: Vec<String>,
    /// Fewest replicas.
    pub min_replicas: u32,
    /// Replicas a cluster gets when none are asked for.
    pub default_replicas: u32,
    /// Most replicas.
    pub max_replicas: u32,
    /// Whether a diverged copy can be brought back without a full clone.
    pub can_rewind: bool,
    /// Whether a crash of the engine's process loses writes that it had acknowledged: then a copy's own data after a crash is not
    /// the last word on what it had.
    #[serde(default)]
    pub forgets_on_crash: bool,
    /// Why the engine cannot be used on this node; empty when it can.
    pub problem: String,
    /// How clients connect.
    pub connection: ConnectionFormat,
    /// How clients connect to a cluster whose connections are encrypted; `None` where this node has no certificate for the engine.
    #[serde(default)]
    pub connection_with_tls: Option<ConnectionFormat>,
}

/// How clients of an engine connect; the coordinator fills it in without knowing what it means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFormat {
    /// Role that applications use.
    pub user: String,
    /// Database that it uses; empty where the engine has no such.
    pub database: String,
    /// Connection string to any member, with `{user}`, `{password}`, `{hosts}` and `{database}` to be filled in.
    pub any: String,
    /// Connection string that finds the primary among several hosts; empty where the engine's clients cannot.
    pub primary: String,
}

/// How far long work has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done now, such as "copying".
    pub phase: String,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all; 0 while unknown.
    pub bytes_total: u64,
    /// Bytes per second over the last interval.
    pub bytes_per_second: u64,
    /// Seconds left.
    pub eta_seconds: Option<u64>,
    /// Entries (keys, rows) done, for engines that count them; the figure may be a second old.
    #[serde(default)]
    pub entries_done: u64,
    /// Entries in all; 0 while unknown.
    #[serde(default)]
    pub entries_total: u64,
}

/// What a returning copy had that the primary had not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Member whose copy diverged.
    pub member: MemberName,
    /// What only that copy had.
    pub lost: Position,
    /// Size of it.
    pub amount: u64,
    /// Unit of `amount`, such as "bytes of log".
    pub unit: String,
    /// What was done: "rewound" or "cloned".
    pub resolution: String,
    /// When it was found.
    pub found_at: Timestamp,
    /// For people: where the branches parted.
    pub detail: String,
}

/// Name of the detail that says whether an active side lets applications, and the other side, in.
const OPEN: &str = "open";

// === impl EngineObservation ===

impl EngineObservation {
    /// Whether this is an active side that lets applications, and the other side, in. One that does not say so is closed.
    pub fn is_open(&self) -> bool {
        self.details.get(OPEN).is_some_and(|open| open == "yes")
    }

    /// Notes whether this active side lets applications, and the other side, in.
    pub fn set_open(&mut self, open: bool) {
        self.details.insert(OPEN.to_owned(), if open { "yes" } else { "no" }.to_owned());
    }
}

// === impl Mode ===

impl Mode {
    /// The mode's name in requests, offers and the store.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PrimaryReplica => "primary-replica",
            Self::MultiMaster => "multi-master",
        }
    }

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::PrimaryReplica, Self::MultiMaster].into_iter().find(|mode| mode.label() == name)
    }
}
