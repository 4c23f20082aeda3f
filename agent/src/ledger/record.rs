//! What the ledger file holds. Plain values; what they permit is decided in [`super::admission`].
//!
//! **Invariant:** fields are only ever added, each with a default, while [`FORMAT`] stays; a file of a higher format is
//! refused as written by a newer agent. Secrets are not here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use regent_common::{
    allow_list::AllowList,
    hex::hex,
    ids::{ClusterId, ClusterName, Epoch, MemberName, OperationId, OperationToken, Revision},
    lease::{Electorate, Forced, Profile, Timing},
    mutation::{self, Rule},
    position::Position,
    topology::{ClusterSpec, Difference, Endpoint, HeardPosition, Mode, Peer, Role},
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Name of the action that keeps applications out: its results are erased when they are let in again (rules P6, T1).
pub const DRAIN: &str = "drain";

/// Format of the file that this build writes.
pub const FORMAT: u32 = 1;

/// Operations whose steps are remembered; a coordinator that resumes one resumes the last.
const OPERATIONS_REMEMBERED: usize = 20;

/// Version of the empty electorate with which a forced reign begins; versions count within an epoch (rule M1).
const FORCED_VERSION: u64 = 1;

/// Everything that this node has to remember over a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Format of the file.
    pub format: u32,
    /// Highest revision of a coordinator's store that was seen (rule T4).
    #[serde(default)]
    pub revision: Revision,
    /// The cluster this node belongs to; `None` for a spare.
    #[serde(default)]
    pub membership: Option<Membership>,
    /// Clusters that this node was released from: nothing of them is obeyed but a later operation that takes it in again (rule T1).
    #[serde(default)]
    pub past_clusters: BTreeSet<ClusterId>,
    /// Tokens under which it was released from them. One that has none never takes it in again.
    #[serde(default)]
    pub released_under: BTreeMap<ClusterId, OperationToken>,
    /// Steps of the last operations, oldest operation first.
    #[serde(default)]
    pub operations: Vec<OperationRecord>,
    /// Why this ledger is not to be believed (rule T5): engine data was found and no ledger beside it, or the coordinator has
    /// seen that it is older than what it had shown, or that another process speaks for this node. Nothing but an assignment
    /// or a release is carried out until one of the two has ended it.
    #[serde(default)]
    pub quarantine: Option<String>,
}

/// A node's place in a cluster, and what it has promised there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    /// Id of the cluster.
    pub cluster_id: ClusterId,
    /// Member name.
    pub member: MemberName,
    /// Port of the engine on this node; chosen once.
    pub port: u16,
    /// What the cluster last told its members, without secrets.
    pub spec: StoredSpec,
    /// Whether that has reached the driver: a restarted agent then applies it again.
    #[serde(default)]
    pub configured: bool,
    /// Fingerprint of what has reached the driver, by the coordinator's word; empty when it gave none.
    #[serde(default)]
    pub configuration: String,
    /// Highest epoch that was accepted.
    pub epoch: Epoch,
    /// Highest operation token that was accepted.
    pub token: OperationToken,
    /// Role that the last step gave this member.
    #[serde(default)]
    pub role: Option<Role>,
    /// Member that it follows.
    #[serde(default)]
    pub upstream: Option<MemberName>,
    /// Whether the primary of the present epoch has been granted a lease once (rule L5).
    #[serde(default)]
    pub established: bool,
    /// Electorate of the present epoch (rule M1); absent while it is not known, which is not the same as empty.
    #[serde(default)]
    pub electorate: Option<Electorate>,
    /// Longest lease ever seen (rule E2); absent until one was.
    #[serde(default)]
    pub longest_ttl_millis: Option<u64>,
    /// How long a lease of the cluster lasts, as the coordinator last said; absent until it did.
    #[serde(default)]
    pub ttl_millis: Option<u64>,
    /// Time between heartbeats, as the coordinator last said; absent until it did.
    #[serde(default)]
    pub heartbeat_millis: Option<u64>,
    /// The data must not be started: a clone over it, a swap or a rewind has begun and not ended.
    #[serde(default)]
    pub dirty: bool,
    /// The data was here before this ledger knew of it; only a resync or a release ends this.
    #[serde(default)]
    pub distrusted: bool,
    /// A resync of this member has begun and not ended: no candidate, whatever its data says.
    #[serde(default)]
    pub resyncing: bool,
    /// Highest epoch in which the engine may have become writable here; set before it does (rule L6).
    #[serde(default)]
    pub writable_epoch: Option<Epoch>,
    /// Boot of the machine in which it did: a reign goes on over a restart of the agent, and is asked for again after a boot
    /// (rule E1).
    #[serde(default)]
    pub writable_boot_id: Option<String>,
    /// Highest epoch for which a fence was answered here.
    #[serde(default)]
    pub fenced_epoch: Option<Epoch>,
    /// Whether that fence stands: no promotion and no start as a replica came after it.
    #[serde(default)]
    pub fenced: bool,
    /// Applications are kept out of this primary, or are being so, by the step with this token, for a planned promotion (rule P6);
    /// set before the first of them is turned away, and cleared before the first is let in again.
    #[serde(default)]
    pub drained: Option<OperationToken>,
    /// That a person has made this member the primary of the present epoch, without a coordinator (rule P9).
    #[serde(default)]
    pub forced: Option<Forced>,
}

/// The coordinator's word that this ledger is not to be believed (rule T5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// Cluster that the ledger named.
    pub cluster_id: ClusterId,
    /// Member that it named.
    pub member: MemberName,
    /// Epoch that it had.
    pub epoch: Epoch,
    /// Operation token that it had.
    pub token: OperationToken,
    /// Why, and what a person does about it.
    pub reason: String,
}

/// A [`ClusterSpec`] without its secrets and without its allow-list, which are kept beside the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSpec {
    /// Cluster name.
    pub cluster: ClusterName,
    /// Engine name.
    pub engine: String,
    /// Version wanted; empty for the newest.
    pub version: String,
    /// All members.
    pub members: Vec<Peer>,
    /// Settings by the engine's names.
    pub settings: BTreeMap<String, String>,
    /// Who may log in from where, as an adopted instance had it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub access_rules: String,
    /// How its members stand to each other.
    #[serde(default)]
    pub mode: Mode,
    /// Whether the members' ports speak TLS only.
    #[serde(default)]
    pub tls: bool,
}

/// The steps of one operation on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Id of the operation.
    pub operation: OperationId,
    /// Its steps by key.
    pub steps: BTreeMap<String, StepRecord>,
}

/// One step that was begun on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Cluster that it belongs to.
    pub cluster_id: ClusterId,
    /// Name of its action.
    pub action: String,
    /// What it was to do.
    pub content: Content,
    /// Token under which it was last accepted.
    pub token: OperationToken,
    /// How often it was executed; an answer from the ledger does not count.
    pub executions: u32,
    /// Its result once it has one. A failed attempt leaves none, so that the step can be tried again.
    #[serde(default)]
    pub outcome: Option<StepOutcome>,
    /// Why the last attempt failed, for people; empty when it did not.
    #[serde(default)]
    pub last_error: String,
}

/// Names a step among all steps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepKey {
    /// Id of the operation.
    pub operation: OperationId,
    /// Key within it.
    pub step: String,
}

/// What a step does. The epoch is part of it: a promotion at a later epoch is not the same promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// SHA-256 of the encoded action.
    pub digest: Digest,
    /// Epoch of the step.
    pub epoch: Epoch,
}

/// A SHA-256, as hexadecimal in text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// What a step brought.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutcome {
    /// Position after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Where the engine is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Version of the engine's programs.
    #[serde(default)]
    pub engine_version: String,
    /// Fence and prepare: the highest epoch in which the engine may have become writable (rule P2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_epoch: Option<Epoch>,
    /// Clone: bytes copied.
    #[serde(default)]
    pub bytes_copied: u64,
    /// Clone and swap: whether the old data is still there.
    #[serde(default)]
    pub old_data_kept: bool,
    /// A sentence for people.
    #[serde(default)]
    pub detail: String,
    /// Fence: applications were kept out until the engine was killed (rule P6).
    #[serde(default)]
    pub drained: bool,
    /// Prepare: how far the primaries had come that this process heard (rule P3).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<HeardPosition>,
    /// Compare: what was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Box<Difference>>,
}

// === impl Digest ===

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        Self(digest.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }

    /// A digest from the wire; `None` when it is not 32 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let malformed = || format!("{text:?} is not a SHA-256 in hexadecimal");
        if text.len() != 64 || !text.is_ascii() {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

// === impl StoredSpec ===

impl From<&ClusterSpec> for StoredSpec {
    fn from(spec: &ClusterSpec) -> Self {
        Self {
            cluster: spec.cluster.clone(),
            engine: spec.engine.clone(),
            version: spec.version.clone(),
            members: spec.members.clone(),
            settings: spec.settings.clone(),
            access_rules: spec.access_rules.clone(),
            mode: spec.mode,
            tls: spec.tls,
        }
    }
}

impl StoredSpec {
    /// The spec again, with its secrets.
    pub fn with_secrets(&self, secrets: BTreeMap<String, SecretString>) -> ClusterSpec {
        ClusterSpec {
            cluster: self.cluster.clone(),
            engine: self.engine.clone(),
            version: self.version.clone(),
            members: self.members.clone(),
            settings: self.settings.clone(),
            secrets,
            // No concern of a driver's, and kept elsewhere.
            allow_list: AllowList::default(),
            access_rules: self.access_rules.clone(),
            mode: self.mode,
            tls: self.tls,
        }
    }
}

// === impl Ledger ===

impl Default for Ledger {
    /// The ledger of a node that has never belonged to a cluster.
    fn default() -> Self {
        Self {
            format: FORMAT,
            revision: Revision::default(),
            membership: None,
            past_clusters: BTreeSet::new(),
            released_under: BTreeMap::new(),
            operations: Vec::new(),
            quarantine: None,
        }
    }
}

impl Ledger {
    /// The membership, where it is to be believed (rule T5): what confers a lease, asks or endorses goes by this.
    pub fn believed(&self) -> Option<&Membership> {
        self.membership.as_ref().filter(|_| self.quarantine.is_none())
    }

    /// Enters quarantine, by the coordinator's word; whether that is news. The word is about a ledger with these numbers: one
    /// that was brought back since has higher ones and is not meant.
    pub fn quarantine(&mut self, word: &Quarantine) -> bool {
        let meant = self.membership.as_ref().is_some_and(|membership| {
            (membership.cluster_id, &membership.member) == (word.cluster_id, &word.member)
                && (membership.epoch, membership.token) == (word.epoch, word.token)
        });
        if !meant || self.quarantine.is_some() {
            return false;
        }
        self.quarantine = Some(word.reason.clone());
        true
    }

    /// The record of a step.
    pub fn step(&self, key: &StepKey) -> Option<&StepRecord> {
        self.operations.iter().find(|record| record.operation == key.operation)?.steps.get(&key.step)
    }

    /// The record of a step, to be changed.
    pub fn step_mut(&mut self, key: &StepKey) -> Option<&mut StepRecord> {
        self.operations.iter_mut().find(|record| record.operation == key.operation)?.steps.get_mut(&key.step)
    }

    /// Notes a step, moves its operation to the end, and forgets the oldest operations.
    pub(super) fn put_step(&mut self, key: &StepKey, record: StepRecord) {
        let mut operation = match self.operations.iter().position(|known| known.operation == key.operation) {
            Some(index) => self.operations.remove(index),
            None => OperationRecord { operation: key.operation, steps: BTreeMap::new() },
        };
        operation.steps.insert(key.step.clone(), record);
        self.operations.push(operation);
        let forgotten = self.operations.len().saturating_sub(OPERATIONS_REMEMBERED);
        self.operations.drain(..forgotten);
    }
}

// === impl Membership ===

impl Membership {
    /// Whether the data must not be started, by the ledger alone; the driver may know more.
    pub fn must_not_start(&self) -> bool {
        self.dirty || self.distrusted
    }

    /// Raises the epoch.
    pub fn raise_epoch(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.epoch = epoch;
            if mutation::broken(Rule::P5Old) && self.role == Some(Role::Primary) {
                // What it had of its own epoch is still what it goes by.
                return;
            }
            // Whether a primary is established is said anew in each epoch (rule L5).
            self.established = false;
            self.electorate = None;
            // A person's word was for the epoch that it was given for.
            self.forced = None;
        }
    }

    /// Records that a person makes this member the primary of the present epoch (rule P9): established, with nobody to ask, so
    /// that it goes on alone (rule E1). Said twice, the first word stays.
    pub fn force(&mut self, epoch: Epoch, forced: Forced) {
        if self.epoch != epoch || self.forced.is_some() {
            return;
        }
        self.established = true;
        self.electorate = Some(Electorate { version: FORCED_VERSION, members: BTreeSet::new() });
        self.forced = Some(forced);
    }

    /// Marks that the engine may become writable in this epoch, before it does (rule L6).
    pub fn begin_reign(&mut self, epoch: Epoch, boot_id: &str) {
        if mutation::broken(Rule::P5Old) && self.writable_epoch < Some(epoch) {
            self.established = false;
            self.electorate = None;
        }
        self.writable_epoch = self.writable_epoch.max(Some(epoch));
        self.writable_boot_id = Some(boot_id.to_owned());
        self.fenced = false;
        self.role = Some(Role::Primary);
        self.upstream = None;
    }

    /// Takes back what [`Membership::begin_reign`] marked, when the engine was not asked to become writable after all.
    pub fn take_reign_back(&mut self, before: Self) {
        self.writable_epoch = before.writable_epoch;
        self.writable_boot_id = before.writable_boot_id;
        self.fenced = before.fenced;
        self.role = before.role;
        self.upstream = before.upstream;
    }

    /// Keeps what a grant brought (rules L5, M1): that the epoch is established, and a newer version of its electorate.
    pub fn keep_grant(&mut self, epoch: Epoch, electorate: &Electorate) {
        if self.epoch != epoch {
            return;
        }
        self.established = true;
        let older = |known: &Electorate| known.version >= electorate.version;
        let other = mutation::broken(Rule::M1Monotone) && self.electorate.as_ref() != Some(electorate);
        if other || !self.electorate.as_ref().is_some_and(older) {
            self.electorate = Some(electorate.clone());
        }
    }

    /// Keeps the times that the coordinator said, and the longest lease of all.
    pub fn keep_timing(&mut self, heartbeat: Duration, ttl: Duration) {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).ok();
        self.heartbeat_millis = millis(heartbeat);
        self.ttl_millis = millis(ttl);
        self.keep_longest_ttl(ttl);
    }

    /// Keeps the longest lease ever heard of (rule E2).
    pub fn keep_longest_ttl(&mut self, ttl: Duration) {
        self.longest_ttl_millis = self.longest_ttl_millis.max(u64::try_from(ttl.as_millis()).ok());
    }

    /// The longest lease ever heard of; `None` when no lease was.
    pub fn longest_ttl(&self) -> Option<Duration> {
        self.longest_ttl_millis.map(Duration::from_millis)
    }

    /// The times in force, as far as the ledger knows them; the usual ones in place of such as no lease can be kept by.
    pub fn timing(&self) -> Timing {
        let usual = Profile::default().timing();
        let known = |millis: Option<u64>, usual| millis.map_or(usual, Duration::from_millis);
        let (heartbeat, ttl) = (known(self.heartbeat_millis, usual.heartbeat), known(self.ttl_millis, usual.ttl));
        Timing::checked(heartbeat, ttl).unwrap_or(usual)
    }

    /// The peer of that node, other than this member.
    pub fn names_node(&self, node: &regent_common::ids::NodeName) -> bool {
        self.spec.members.iter().any(|peer| &peer.node == node)
    }
}
