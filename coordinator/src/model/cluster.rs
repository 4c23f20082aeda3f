//! The stored record of a cluster: what is wanted of it, and the numbers that fence everything sent to its members.
//!
//! What the members *do* is never stored here; it is heard from their agents.
//!
//! **Invariants:** `epoch` and `token` only grow; `primary` and `candidate` are members; member numbers are never used
//! again; at most one changing operation is named in `operation`; a pair has no primary, no candidate and no reign.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use regent_common::{
    allow_list::AllowList,
    convert::to_millis,
    ids::{ClusterId, ClusterName, Epoch, MemberName, NodeName, OperationId, OperationToken},
    lease::Profile,
    mutation::{self, Rule},
    position::Position,
    topology::{ConnectionFormat, Divergence, Endpoint, Mode, Role},
};
use serde::{Deserialize, Serialize};

use super::{reign::Reign, shown::Shown};

/// Most divergence reports that are kept with a cluster; older ones stay in the audit.
const KEPT_DIVERGENCES: usize = 10;

/// A cluster as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Id; never reused.
    pub id: ClusterId,
    /// Name.
    pub name: ClusterName,
    /// Engine name; opaque here.
    pub engine: String,
    /// Engine version that all members run; empty until the first has said.
    pub version: String,
    /// Mode, such as "primary-replica".
    pub mode: String,
    /// Whether the members' ports speak TLS only; decided when it is created.
    #[serde(default)]
    pub tls: bool,
    /// Raised at every change of primary.
    pub epoch: Epoch,
    /// Raised whenever an operation starts, resumes, is cancelled or gives up a step (rule T1).
    pub token: OperationToken,
    /// Primary of the present epoch; `None` until one is promoted.
    pub primary: Option<MemberName>,
    /// Candidate of the present epoch, stored before it is promoted (rule P2).
    pub candidate: Option<MemberName>,
    /// Whether a lease may have been granted in the present epoch: stored before the first one is (rule L5).
    pub established: bool,
    /// The reign of the last established epoch: the present one, or while there is no primary the one that a failover starts
    /// from (rule P2).
    #[serde(default)]
    pub reign: Option<Reign>,
    /// The reign before it, until its primary is known to have become writable: what counts again if it never did (rule P2).
    #[serde(default)]
    pub base: Option<Reign>,
    /// Longest lease that may ever have been granted, in milliseconds (rule L2).
    #[serde(default)]
    pub longest_ttl_millis: u64,
    /// Length of the lease that an agent may have been granted for its restart, in milliseconds; 0 when none can stand any more
    /// (rules L2, L7).
    #[serde(default)]
    pub hand_over_millis: u64,
    /// Members whose engine may accept writes: they were primary, or a promotion was sent to them, and have not answered a
    /// fence since. Nobody else is promoted before this is empty.
    pub may_be_writable: BTreeSet<MemberName>,
    /// While there is no primary: whose writes may have been acknowledged since the last one was promoted, each with the
    /// highest position that was heard of it. A failover that does not end leaves it to the next one (rules P2, P4).
    #[serde(default)]
    pub reigned: BTreeMap<MemberName, Option<Position>>,
    /// Members.
    pub members: BTreeMap<MemberName, MemberRecord>,
    /// Number of the next member.
    pub next_number: u32,
    /// Where the cluster is in its life.
    pub phase: Phase,
    /// Opaque labels of the platform.
    pub labels: BTreeMap<String, String>,
    /// Refuse deletion and removal of members.
    pub protected: bool,
    /// The engine's settings, by the engine's names.
    pub settings: BTreeMap<String, String>,
    /// Port wanted for the engine; 0 for each node's own choice.
    pub port: u16,
    /// How clients connect.
    pub connection: ConnectionFormat,
    /// Passwords by purpose, sealed.
    pub secrets: BTreeMap<String, String>,
    /// What automatic decisions may do.
    pub policy: Policy,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Who asked for it.
    pub created_by: String,
    /// When it first served.
    pub ready_at: Option<Timestamp>,
    /// Whether a deletion leaves the data on the nodes.
    pub keep_data_on_delete: bool,
    /// The changing operation that runs.
    pub operation: Option<OperationId>,
    /// What returning copies had that the primary had not, oldest first.
    pub divergences: Vec<Divergence>,
    /// Which addresses reach the engines; its members, the coordinator and each machine itself always do.
    #[serde(default)]
    pub allow_list: AllowList,
    /// Who may log in from where, in the engine's own terms, as an adopted instance had it; empty for its driver's own rules.
    #[serde(default)]
    pub access_rules: String,
    /// An instance that ran before is being taken over: whatever takes the cluster back gives that back as it was found.
    #[serde(default)]
    pub adopting: bool,
    /// Of a pair: the side that has accepted writes alone since both did, so that the other lacks what it took.
    #[serde(default)]
    pub survivor: Option<MemberName>,
}

/// Where a cluster is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made; nothing is decided by itself.
    Creating,
    /// Serves.
    Active,
    /// Being removed; nothing is decided by itself.
    Deleting,
}

/// A member as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Node that it lives on.
    pub node: NodeName,
    /// Where it is in its life.
    pub state: MemberState,
    /// Where its engine is reached; known once it is assigned.
    pub endpoint: Option<Endpoint>,
    /// What its ledger has shown to have (rule T5).
    #[serde(default)]
    pub shown: Shown,
    /// Who is promoted among equals.
    #[serde(default)]
    pub priority: Priority,
}

/// How much a member is wanted as the primary: among equals the highest is promoted. With 0 it is never promoted, and is left out
/// of the electorate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Priority(pub u32);

/// Where a member is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Being made.
    Creating,
    /// Serves in its role.
    Ready,
    /// Its data is being replaced; it is no candidate.
    Resyncing,
    /// Must be brought back to the stored topology before it counts.
    NeedsRejoin,
    /// Only a resync brings it back.
    NeedsResync {
        /// Why, for people.
        why: String,
    },
    /// It is being taken out of the cluster; no candidate.
    Leaving {
        /// Whether its data stays on its node, aside.
        keep_data: bool,
        /// Whether fewer than two whole copies may be left.
        #[serde(default)]
        allow_single: bool,
    },
}

/// What automatic decisions may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How fast the loss of a node is noticed.
    #[serde(default)]
    pub profile: Profile,
    /// Fail over without a person's word.
    pub automatic_failover: bool,
    /// Most bytes that a candidate may be known to lack of the old primary.
    pub max_lag_on_failover: u64,
    /// What is done when the primary fails.
    #[serde(default)]
    pub healing: Healing,
    /// Most restarts in place within ten minutes; the coordinator's budget for failovers when absent.
    #[serde(default)]
    pub restart_budget: Option<u32>,
    /// Nothing is decided by itself: no failover, no member is brought back. Leases are granted all the same.
    #[serde(default)]
    pub paused: bool,
}

/// What is done when the primary fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Healing {
    /// A replica takes its place.
    #[default]
    PromoteReplica,
    /// It is restarted in place on its own data, so that nothing committed is lost; a replica takes its place only by a person's word.
    RestorePrimary,
}

// === impl Priority ===

impl Priority {
    /// Never promoted.
    pub const NEVER: Self = Self(0);
}

impl Default for Priority {
    fn default() -> Self {
        Self(100)
    }
}

// === impl Policy ===

impl Default for Policy {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            automatic_failover: true,
            max_lag_on_failover: 16 * 1024 * 1024,
            healing: Healing::default(),
            restart_budget: None,
            paused: false,
        }
    }
}

// === impl MemberRecord ===

impl MemberRecord {
    /// A member that is about to be made.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            state: MemberState::Creating,
            endpoint: None,
            shown: Shown::default(),
            priority: Priority::default(),
        }
    }
}

// === impl ClusterRecord ===

impl ClusterRecord {
    /// A cluster that is about to be made: nothing is said of its engine yet, and it has no members.
    pub fn new(id: ClusterId, name: ClusterName, created_at: Timestamp, created_by: String) -> Self {
        Self {
            id,
            name,
            engine: String::new(),
            version: String::new(),
            mode: String::new(),
            tls: false,
            epoch: Epoch(0),
            token: OperationToken(0),
            primary: None,
            candidate: None,
            established: false,
            reign: None,
            base: None,
            longest_ttl_millis: 0,
            hand_over_millis: 0,
            may_be_writable: BTreeSet::new(),
            reigned: BTreeMap::new(),
            members: BTreeMap::new(),
            next_number: 1,
            phase: Phase::Creating,
            labels: BTreeMap::new(),
            protected: false,
            settings: BTreeMap::new(),
            port: 0,
            connection: ConnectionFormat::default(),
            secrets: BTreeMap::new(),
            policy: Policy::default(),
            created_at,
            created_by,
            ready_at: None,
            keep_data_on_delete: false,
            operation: None,
            divergences: Vec::new(),
            allow_list: AllowList::default(),
            access_rules: String::new(),
            adopting: false,
            survivor: None,
        }
    }

    /// Whether it is a pair: two sides that both accept writes and follow each other. It has no primary, no candidate and no reign,
    /// ever; nobody is granted a lease, and there is nothing to fail over.
    pub fn is_pair(&self) -> bool {
        Mode::named(&self.mode) == Some(Mode::MultiMaster)
    }

    /// Of a pair: the side that a member is not.
    pub fn other_side(&self, member: &MemberName) -> Option<&MemberName> {
        self.members.keys().find(|other| self.is_pair() && *other != member)
    }

    /// The role that the stored topology gives a member.
    pub fn role_of(&self, member: &MemberName) -> Role {
        if self.is_pair() {
            return Role::Active;
        }
        if self.primary.as_ref() == Some(member) { Role::Primary } else { Role::Replica }
    }

    /// The member that lives on a node.
    pub fn member_on(&self, node: &NodeName) -> Option<&MemberName> {
        self.members.iter().find(|(_, record)| &record.node == node).map(|(name, _)| name)
    }

    /// Takes the next member number, which is never used again.
    pub fn take_member_name(&mut self) -> MemberName {
        let name = self.name.member(self.next_number);
        self.next_number += 1;
        name
    }

    /// Everybody who may accept writes, as far as is known: the primary, a candidate, and who has not answered a fence.
    pub fn may_reign(&self) -> impl Iterator<Item = &MemberName> {
        self.primary.iter().chain(&self.may_be_writable).chain(&self.candidate)
    }

    /// What a member's ledger has shown to have, by what is stored (rule T5); nothing for one that is no member.
    pub fn shown(&self, member: &MemberName) -> Shown {
        let stored = self.members.get(member).map(|record| record.shown).unwrap_or_default();
        let reign = self.reign.as_ref().filter(|reign| reign.primary == *member);
        let electorate = reign.map(|reign| (reign.epoch, reign.acknowledged().version));
        stored.max(Shown { electorate, ..Shown::default() })
    }

    /// Members other than the primary.
    pub fn replicas(&self) -> impl Iterator<Item = (&MemberName, &MemberRecord)> {
        self.members.iter().filter(|(name, _)| self.primary.as_ref() != Some(*name))
    }

    /// The longest lease that may have been granted, but for a restart of an agent.
    pub fn longest_ttl(&self) -> Duration {
        Duration::from_millis(self.longest_ttl_millis).max(self.policy.profile.timing().ttl)
    }

    /// The lease that may have been granted for the restart of an agent (rule L7); `None` when none can stand any more.
    pub fn hand_over_ttl(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.hand_over_millis)).filter(|ttl| !ttl.is_zero())
    }

    /// Sets the profile, and keeps the longest lease of all, before one of the new length is granted (rule L2).
    pub fn set_profile(&mut self, profile: Profile) {
        let longest = self.longest_ttl().max(profile.timing().ttl);
        self.longest_ttl_millis = to_millis(longest);
        self.policy.profile = profile;
    }

    /// Begins the reign of the present epoch: its candidate and its first electorate, stored before a promotion is sent
    /// (rule P2), and that it is established, stored before a lease is granted (rule L5).
    pub fn begin_reign(&mut self, candidate: MemberName, electorate: BTreeSet<MemberName>, gated: bool) {
        self.base = self.reign.take();
        self.reign = Some(Reign::new(self.epoch, candidate.clone(), electorate, gated));
        self.candidate = Some(candidate);
        self.established = true;
    }

    /// The candidate of the present epoch has become the primary.
    pub fn crown(&mut self, primary: MemberName) {
        self.primary = Some(primary);
        self.candidate = None;
        self.base = None;
    }

    /// Who may be promoted in place of the last primary (rule M2).
    pub fn promotable(&self) -> BTreeSet<MemberName> {
        self.reign.as_ref().map(Reign::promotable).unwrap_or_default()
    }

    /// Takes members out of the electorate; in force when it is stored, complete when it is acknowledged (rule M3).
    pub fn leave_electorate(&mut self, members: &[MemberName]) {
        if let Some(reign) = self.reign.as_mut().filter(|_| !mutation::broken(Rule::M3Resync)) {
            reign.leave(members);
        }
    }

    /// Sets a member's state; nothing happens to a member that is gone.
    pub fn set_state(&mut self, member: &MemberName, state: MemberState) {
        if let Some(record) = self.members.get_mut(member) {
            record.state = state;
        }
    }

    /// Notes that a member may have acknowledged writes, and how far it was heard to have come. A lower position never
    /// replaces a higher one.
    pub fn note_reign(&mut self, member: MemberName, heard: Option<Position>) {
        let known = self.reigned.entry(member).or_default();
        match (&*known, &heard) {
            (Some(known), Some(heard)) if known.includes(heard) => {}
            (Some(_), None) => {}
            (Some(_) | None, _) => *known = heard,
        }
    }

    /// Keeps a divergence report.
    pub fn add_divergence(&mut self, report: Divergence) {
        self.divergences.push(report);
        let surplus = self.divergences.len().saturating_sub(KEPT_DIVERGENCES);
        self.divergences.drain(..surplus);
    }
}
