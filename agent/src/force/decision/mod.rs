//! Whether a person may make this member the primary while no coordinator answers (rule P9): a pure function of the ledger, the
//! promises, the answers of the others, and the person's words.
//!
//! It does not believe the person where it can know better: a member that is named as off and answers is not off, whatever
//! it answers, and neither is one whose engine accepts connections or sends its changes. What cannot be known stays the
//! person's word: that those who are silent are off and not merely cut off.
//!
//! All refusals are told at once: whoever needs this has no time to find them one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use regent_common::{
    ids::{Epoch, MemberName},
    lease::{HeardLease, margin},
    topology::{EngineObservation, EngineState, Mode, Observation, Peer, Role, Ternary},
};

use super::Words;
use crate::ledger::{Ledger, Membership};

/// How far above the highest known epoch the forced one begins: what a coordinator may have raised or sent meanwhile is below.
pub const LEAP: u64 = 1000;

/// What is known when the person asks.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The ledger.
    pub ledger: Ledger,
    /// What can be said of the engine.
    pub engine: Engine,
    /// Whether this member holds a lease.
    pub lease_stands: bool,
    /// Highest epoch that anybody told this process of.
    pub told_epoch: Epoch,
    /// How long a promise of this member stands, or may stand that was given before the agent started.
    pub promised_for: Duration,
    /// What this member heard of a primary that asked for its endorsement.
    pub heard: Option<HeardLease>,
    /// Sessions that coordinators have open here.
    pub sessions: usize,
    /// The coordinator that can be reached.
    pub coordinator: Option<String>,
    /// What came of asking every other member.
    pub others: BTreeMap<MemberName, Other>,
}

/// What can be said of this member's engine.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Why there is no driver for it; empty when there is.
    pub problem: String,
    /// Whether it has data.
    pub has_data: bool,
    /// Whether the driver says that the data must not be started.
    pub dirty: bool,
    /// What was seen of it last.
    pub seen: Option<EngineObservation>,
}

/// What came of asking a member.
#[derive(Debug, Clone)]
pub struct Other {
    /// Its agent's word.
    pub word: Word,
    /// Whether something accepts connections where its engine listens.
    pub engine_answers: bool,
}

/// The word of a member's agent.
#[derive(Debug, Clone)]
pub enum Word {
    /// It cannot be reached.
    Silent(String),
    /// It is reached and cannot say what it has to.
    Unreadable(String),
    /// What it knows.
    Report {
        /// Of itself.
        observation: Box<Observation>,
        /// Sessions that coordinators have open there.
        sessions: u32,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The epoch of the forced reign.
    pub epoch: Epoch,
    /// Members that the person names as off.
    pub confirmed_off: BTreeSet<MemberName>,
    /// Whether the person's word is carried out already, and nothing is left to do.
    pub done: bool,
}

/// Why it is not done. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A spare.
    #[error("this node is a member of no cluster: there is nothing here that could be a primary")]
    NotAMember,
    /// The ledger is not to be believed.
    #[error("this node is in quarantine ({reason}): nobody knows what it has promised; use another member")]
    Quarantined {
        /// Why.
        reason: String,
    },
    /// There is no primary in its cluster.
    #[error("{member} is an active side: both sides take writes, and neither is a primary; there is nothing to force")]
    BothSides {
        /// The member.
        member: MemberName,
    },
    /// There is no driver.
    #[error("the engine of {member} cannot be used ({problem}): mend that, restart the agent, and ask again")]
    EngineUnusable {
        /// The member.
        member: MemberName,
        /// Why.
        problem: String,
    },
    /// There is no data.
    #[error("{member} has no data: use another member, whose data is whole")]
    NoData {
        /// The member.
        member: MemberName,
    },
    /// The data must not be started.
    #[error(
        "the data of {member} is not whole (a copy, a rewind or a resync has begun and not ended): use another member"
    )]
    DataNotWhole {
        /// The member.
        member: MemberName,
    },
    /// The confirmation names another member.
    #[error(
        "--confirm names {given:?} and this member is {member}: give exactly that name, or run this on the other node"
    )]
    ConfirmWrong {
        /// What was given.
        given: String,
        /// The member.
        member: MemberName,
    },
    /// Nobody is called so.
    #[error("--confirm-off {given:?} is neither a member nor a node of this cluster; the others are {}", names(others))]
    NobodyCalledSo {
        /// What was given.
        given: String,
        /// Who there is.
        others: BTreeSet<MemberName>,
    },
    /// Not all of the others are named.
    #[error(
        "not named as off: {}; look whether each of them really is off (its machine, not only its agent), see to it that it \
         stays so until a coordinator is back, and say --confirm-off for it",
        names(members)
    )]
    NotNamedOff {
        /// Who is missing.
        members: BTreeSet<MemberName>,
    },
    /// A coordinator is connected.
    #[error(
        "a coordinator is connected ({sessions} session): it decides; see \"regentctl cluster show\" for what it waits for"
    )]
    CoordinatorConnected {
        /// How many.
        sessions: usize,
    },
    /// A coordinator answers.
    #[error("the coordinator at {address} answers: it decides; see \"regentctl cluster show\" for what it waits for")]
    CoordinatorAnswers {
        /// Where.
        address: String,
    },
    /// This member has promised not to be used.
    #[error(
        "{member} has promised {to} not to take its place for another {} ms: if the primary is off, ask again after that; if this \
         does not end, the primary lives and asks on",
        left.as_millis()
    )]
    PromiseStands {
        /// This member.
        member: MemberName,
        /// To whom.
        to: String,
        /// How long.
        left: Duration,
    },
    /// A lease was heard of that may stand.
    #[error("{by} heard {ms} ms ago that the lease of {holder} stands for epoch {epoch}: wait until it is over", ms = age.as_millis())]
    LeaseHeard {
        /// Who heard it.
        by: MemberName,
        /// Whose.
        holder: MemberName,
        /// Of which epoch.
        epoch: Epoch,
        /// How long ago.
        age: Duration,
    },
    /// It is the primary.
    #[error("{member} is the primary of epoch {epoch} and holds its lease: there is nothing to force")]
    Reigns {
        /// This member.
        member: MemberName,
        /// Of which epoch.
        epoch: Epoch,
    },
    /// Another member holds a lease.
    #[error("{member} answers and holds the lease of epoch {epoch}: it is the primary")]
    LeaseStands {
        /// Who.
        member: MemberName,
        /// Of which epoch.
        epoch: Epoch,
    },
    /// Another member is ahead.
    #[error(
        "{member} answers and knows epoch {known}, and this member only {own}: use a member that knows the highest epoch"
    )]
    HigherEpoch {
        /// Who.
        member: MemberName,
        /// Its epoch.
        known: Epoch,
        /// This member's.
        own: Epoch,
    },
    /// Another member has a coordinator.
    #[error("{member} answers and a coordinator is connected to it: mend the connection from here to the coordinator")]
    CoordinatorElsewhere {
        /// Who.
        member: MemberName,
    },
    /// It is not off.
    #[error("{member} answers{detail}: it is not off; switch its machine off, and ask again")]
    NotOff {
        /// Who.
        member: MemberName,
        /// What else is known; empty for nothing.
        detail: String,
    },
    /// Its engine is not off.
    #[error(
        "the engine of {member} accepts connections at {endpoint}: it is not off; switch its machine off, and ask again"
    )]
    EngineNotOff {
        /// Who.
        member: MemberName,
        /// Where.
        endpoint: String,
    },
    /// Its engine sends.
    #[error("{member} sends its changes to this member: it is not off; switch its machine off, and ask again")]
    Streams {
        /// Who.
        member: MemberName,
    },
}

fn names(members: &BTreeSet<MemberName>) -> String {
    members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ")
}

/// Decides.
pub fn judge(facts: &Facts, words: &Words) -> Result<Plan, Vec<Refusal>> {
    let Some(membership) = &facts.ledger.membership else { return Err(vec![Refusal::NotAMember]) };
    if membership.spec.mode == Mode::MultiMaster {
        return Err(vec![Refusal::BothSides { member: membership.member.clone() }]);
    }
    let mut refusals = of_member(facts, membership);
    let confirmed_off = of_words(membership, words, &mut refusals);
    of_authority(facts, membership, &mut refusals);
    for (member, other) in &facts.others {
        refusals.extend(of_other(facts, membership, member, other));
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let forced = membership.forced.is_some();
    let writable = facts
        .engine
        .seen
        .as_ref()
        .is_some_and(|seen| seen.state == EngineState::Running && seen.role == Some(Role::Primary));
    Ok(Plan {
        epoch: if forced { membership.epoch } else { Epoch(highest(facts, membership).0 + LEAP) },
        confirmed_off,
        done: forced && facts.lease_stands && writable,
    })
}

/// The highest epoch that is known here by anybody's word.
fn highest(facts: &Facts, membership: &Membership) -> Epoch {
    let heard = facts.heard.as_ref().map(|heard| heard.lease.epoch);
    let marks = [membership.writable_epoch, membership.fenced_epoch, heard];
    marks.into_iter().flatten().fold(membership.epoch.max(facts.told_epoch), Epoch::max)
}

fn of_member(facts: &Facts, membership: &Membership) -> Vec<Refusal> {
    let member = &membership.member;
    let mut refusals = Vec::new();
    if let Some(reason) = &facts.ledger.quarantine {
        refusals.push(Refusal::Quarantined { reason: reason.clone() });
    }
    let Engine { problem, has_data, dirty, seen: _ } = &facts.engine;
    if !problem.is_empty() {
        refusals.push(Refusal::EngineUnusable { member: member.clone(), problem: problem.clone() });
    } else if *dirty || membership.must_not_start() || membership.resyncing {
        refusals.push(Refusal::DataNotWhole { member: member.clone() });
    } else if !has_data {
        refusals.push(Refusal::NoData { member: member.clone() });
    }
    refusals
}

/// Who is named as off, of those that there are.
fn of_words(membership: &Membership, words: &Words, refusals: &mut Vec<Refusal>) -> BTreeSet<MemberName> {
    let member = &membership.member;
    match &words.confirm {
        Some(given) if given != member.as_str() => {
            refusals.push(Refusal::ConfirmWrong { given: given.clone(), member: member.clone() });
        }
        None if !words.dry_run => {
            refusals.push(Refusal::ConfirmWrong { given: String::new(), member: member.clone() });
        }
        Some(_) | None => {}
    }
    let others = || membership.spec.members.iter().filter(|peer| peer.member != *member);
    let all: BTreeSet<MemberName> = others().map(|peer| peer.member.clone()).collect();
    let mut named = BTreeSet::new();
    for given in &words.confirm_off {
        let meant = |peer: &&Peer| peer.member.as_str() == given || peer.node.as_str() == given;
        match others().find(meant) {
            Some(peer) => drop(named.insert(peer.member.clone())),
            None => refusals.push(Refusal::NobodyCalledSo { given: given.clone(), others: all.clone() }),
        }
    }
    let missing: BTreeSet<MemberName> = all.difference(&named).cloned().collect();
    if !missing.is_empty() {
        refusals.push(Refusal::NotNamedOff { members: missing });
    }
    named
}

/// Of coordinators, promises and leases, as far as this member knows by itself.
fn of_authority(facts: &Facts, membership: &Membership, refusals: &mut Vec<Refusal>) {
    let member = &membership.member;
    if facts.sessions > 0 {
        refusals.push(Refusal::CoordinatorConnected { sessions: facts.sessions });
    } else if let Some(address) = &facts.coordinator {
        refusals.push(Refusal::CoordinatorAnswers { address: address.clone() });
    }
    if !facts.promised_for.is_zero() {
        let to = facts.heard.as_ref().map(|heard| heard.member.to_string());
        let to = to.unwrap_or_else(|| "whoever asked before its agent was started".to_owned());
        refusals.push(Refusal::PromiseStands { member: member.clone(), to, left: facts.promised_for });
    } else if let Some(heard) = facts.heard.as_ref().filter(|heard| may_stand(heard, membership)) {
        refusals.push(lease_heard(member, heard));
    }
    if facts.lease_stands && membership.forced.is_none() {
        refusals.push(Refusal::Reigns { member: member.clone(), epoch: membership.epoch });
    }
    let seen = facts.engine.seen.as_ref().filter(|seen| seen.streaming == Ternary::Yes);
    if let Some(upstream) = seen.and_then(|seen| seen.upstream.clone()) {
        refusals.push(Refusal::Streams { member: upstream });
    }
}

/// What another member says, and what its engine does, against the person's word that it is off.
fn of_other(facts: &Facts, membership: &Membership, member: &MemberName, other: &Other) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    match &other.word {
        Word::Silent(_) => {}
        Word::Unreadable(problem) => {
            refusals.push(Refusal::NotOff { member: member.clone(), detail: format!(" ({problem})") });
        }
        Word::Report { observation, sessions } => {
            let told = of_report(facts, membership, member, observation, *sessions);
            refusals.push(told.unwrap_or_else(|| Refusal::NotOff { member: member.clone(), detail: String::new() }));
        }
    }
    if refusals.is_empty() && other.engine_answers {
        let peer = membership.spec.members.iter().find(|peer| peer.member == *member);
        let endpoint = peer.map(|peer| format!("{}:{}", peer.engine.host, peer.engine.port)).unwrap_or_default();
        refusals.push(Refusal::EngineNotOff { member: member.clone(), endpoint });
    }
    refusals
}

/// What is worse than that it answers at all.
fn of_report(
    facts: &Facts,
    membership: &Membership,
    member: &MemberName,
    seen: &Observation,
    sessions: u32,
) -> Option<Refusal> {
    let authority = &seen.authority;
    if let Some(lease) = authority.lease.as_ref().filter(|lease| lease.stands) {
        return Some(Refusal::LeaseStands { member: member.clone(), epoch: lease.epoch });
    }
    if seen.epoch > membership.epoch {
        return Some(Refusal::HigherEpoch { member: member.clone(), known: seen.epoch, own: membership.epoch });
    }
    if let Some(heard) = authority.heard.as_ref().filter(|heard| may_stand(heard, membership)) {
        return Some(lease_heard(member, heard));
    }
    // A session that this member sees is told of for itself.
    (sessions > 0 && facts.sessions == 0).then(|| Refusal::CoordinatorElsewhere { member: member.clone() })
}

/// Whether a lease that was heard of may stand by now. One without an end is heard of again before a lease's length is over.
fn may_stand(heard: &HeardLease, membership: &Membership) -> bool {
    let ttl = membership.timing().ttl;
    let left = if heard.lease.remaining.is_zero() { ttl } else { heard.lease.remaining };
    heard.lease.stands && heard.age <= left + margin(ttl)
}

fn lease_heard(by: &MemberName, heard: &HeardLease) -> Refusal {
    Refusal::LeaseHeard { by: by.clone(), holder: heard.member.clone(), epoch: heard.lease.epoch, age: heard.age }
}

// === impl Other ===

impl Other {
    /// What came of asking it, for people.
    pub fn sentence(&self) -> String {
        let agent = match &self.word {
            Word::Silent(problem) => format!("does not answer ({problem})"),
            Word::Unreadable(problem) => format!("answers ({problem})"),
            Word::Report { observation, .. } => format!("answers and knows epoch {}", observation.epoch),
        };
        if self.engine_answers { format!("{agent}; its engine accepts connections") } else { agent }
    }
}

// === impl Refusal ===

impl Refusal {
    /// Its name, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAMember => "not_a_member",
            Self::Quarantined { .. } => "quarantined",
            Self::BothSides { .. } => "both_sides",
            Self::EngineUnusable { .. } => "engine_unusable",
            Self::NoData { .. } => "no_data",
            Self::DataNotWhole { .. } => "data_not_whole",
            Self::ConfirmWrong { .. } => "confirm_wrong",
            Self::NobodyCalledSo { .. } => "nobody_called_so",
            Self::NotNamedOff { .. } => "not_named_off",
            Self::CoordinatorConnected { .. } => "coordinator_connected",
            Self::CoordinatorAnswers { .. } => "coordinator_answers",
            Self::PromiseStands { .. } => "promise_stands",
            Self::LeaseHeard { .. } => "lease_heard",
            Self::Reigns { .. } => "reigns",
            Self::LeaseStands { .. } => "lease_stands",
            Self::HigherEpoch { .. } => "higher_epoch",
            Self::CoordinatorElsewhere { .. } => "coordinator_elsewhere",
            Self::NotOff { .. } => "not_off",
            Self::EngineNotOff { .. } => "engine_not_off",
            Self::Streams { .. } => "streams",
        }
    }

    /// Whether it is about how the command was written, not about the cluster.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::ConfirmWrong { .. } | Self::NobodyCalledSo { .. } | Self::NotNamedOff { .. } => true,
            Self::NotAMember
            | Self::Quarantined { .. }
            | Self::BothSides { .. }
            | Self::EngineUnusable { .. }
            | Self::NoData { .. }
            | Self::DataNotWhole { .. }
            | Self::CoordinatorConnected { .. }
            | Self::CoordinatorAnswers { .. }
            | Self::PromiseStands { .. }
            | Self::LeaseHeard { .. }
            | Self::Reigns { .. }
            | Self::LeaseStands { .. }
            | Self::HigherEpoch { .. }
            | Self::CoordinatorElsewhere { .. }
            | Self::NotOff { .. }
            | Self::EngineNotOff { .. }
            | Self::Streams { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
