//! Renders what is stored and what is heard as the messages that people and platforms read. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use regent_common::{
    convert::to_wire_time,
    ids::{MemberName, NodeName, OperationId},
    topology::{Observation, Progress, Role},
};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::{
    situation::{self, Frozen},
    warnings,
};
use crate::{
    cluster::brake::Pause,
    detector::{Judgement, Succession, Verdict},
    environment::OwnMachine,
    model::{
        cluster::{ClusterRecord, Healing, MemberRecord, MemberState, Phase},
        node::NodeRecord,
        operation::OperationRecord,
        reign::Reign,
    },
    nodes::NodeView,
    operation::log::{Outcome, Stage, Status, StepStatus},
    planner::{
        self, Decision,
        asked::{Consent, asked},
        pair::{Foreign, foreign, incomparable},
        planned, removal, resyncing,
    },
};

/// What is known of a cluster at one moment.
pub struct ClusterFacts<'a> {
    /// The stored record.
    pub record: &'a ClusterRecord,
    /// Its version, the etag.
    pub version: u64,
    /// The judgement of each member.
    pub judgements: &'a BTreeMap<MemberName, Judgement>,
    /// What is known of the primary's lease and of who could follow it.
    pub succession: &'a Succession,
    /// The last word of each member's node.
    pub views: &'a BTreeMap<NodeName, NodeView>,
    /// The stored nodes.
    pub nodes: &'a BTreeMap<NodeName, NodeRecord>,
    /// Now, by this coordinator's CLOCK_BOOTTIME.
    pub now: Duration,
    /// Why the cluster is frozen; `None` when it is not.
    pub frozen: Option<Frozen>,
    /// Why automatic failovers of this cluster pause; `None` when they do not.
    pub paused: Option<Pause>,
    /// What Regent has tried by itself again and again in vain, a sentence each.
    pub in_vain: Vec<String>,
    /// Now, for people.
    pub wall: Timestamp,
    /// The coordinator's own machine.
    pub own_machine: &'a OwnMachine,
}

/// Renders a cluster.
pub fn cluster(facts: &ClusterFacts<'_>) -> wire::Cluster {
    let record = facts.record;
    let (health, reasons) = health(facts);
    let decision = planner::decide(record, facts.judgements, facts.succession);
    let failover_note = match &decision {
        Decision::NoFailover { why } => format!("no failover, because {why}"),
        Decision::Failover { why, .. } => format!("failover is due: {why}"),
        Decision::AwaitLease { why, .. } => format!("a failover waits: {why}"),
        Decision::Nothing | Decision::Mark { .. } | Decision::Mend { .. } => String::new(),
    };
    let primary = record.primary.as_ref().and_then(|primary| facts.views.get(&record.members.get(primary)?.node));
    wire::Cluster {
        name: record.name.resource(),
        id: record.id.to_string(),
        engine: record.engine.clone(),
        version: running_version(facts),
        mode: record.mode.clone(),
        epoch: record.epoch.0,
        primary: record.primary.as_ref().map(ToString::to_string).unwrap_or_default(),
        members: record.members.iter().map(|(name, m)| member(facts, name, m, primary)).collect(),
        labels: record.labels.clone(),
        protected: record.protected,
        health: health.into(),
        reasons,
        create_time: Some(to_wire_time(record.created_at)),
        ready_time: record.ready_at.map(to_wire_time),
        created_by: record.created_by.clone(),
        available_actions: cluster_actions(facts),
        operation: record.operation.map(|id| id.resource()).unwrap_or_default(),
        etag: facts.version.to_string(),
        settings: record.settings.clone(),
        divergence_reports: record.divergences.iter().map(Into::into).collect(),
        token: record.token.0,
        failover_note,
        profile: record.policy.profile.to_string(),
        electorate: record.reign.as_ref().map(|reign| reign.newest().into()),
        electorate_acknowledged: record.reign.as_ref().is_some_and(Reign::is_acknowledged),
        max_lag_on_failover: Some(record.policy.max_lag_on_failover),
        automatic_failover: Some(record.policy.automatic_failover),
        lease: situation::lease(facts),
        situation: situation::sentence(facts, &decision),
        warnings: warnings::of_cluster(facts),
        healing: healing(record.policy.healing).into(),
        restart_budget: record.policy.restart_budget.unwrap_or_default(),
        paused: record.policy.paused,
        allow_list: Some(allow_list(facts)),
        tls: record.tls,
        serving: serving(record, facts.judgements).iter().map(ToString::to_string).collect(),
    }
}

/// Who accepts writes, as far as is known: the primary, or the sides of a pair that are well. One that was silent for a moment only
/// is not taken for lost.
pub(super) fn serving(record: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>) -> Vec<MemberName> {
    let accepts = |(member, judgement): &(&MemberName, &Judgement)| match record.role_of(member) {
        Role::Primary => {
            let verdict = &judgement.verdict;
            matches!(
                verdict,
                Verdict::Healthy | Verdict::Suspect | Verdict::NotStreaming | Verdict::Stale | Verdict::Partitioned
            )
        }
        Role::Replica => false,
        Role::Active => {
            let ready = record.members.get(*member).is_some_and(|stored| stored.state == MemberState::Ready);
            planner::serves(record, member, judgement) || (ready && judgement.verdict == Verdict::Suspect)
        }
    };
    let active = record.phase == Phase::Active;
    judgements.iter().filter(|found| active && accepts(found)).map(|(member, _)| member.clone()).collect()
}

fn allow_list(facts: &ClusterFacts<'_>) -> wire::AllowList {
    let list = &facts.record.allow_list;
    wire::AllowList {
        ranges: list.networks().map(|network| network.to_string()).collect(),
        range_count: u32::try_from(list.len()).unwrap_or(u32::MAX),
        remarks: if list.is_empty() { Vec::new() } else { list.remarks() },
        pending: lets_in_others(facts),
    }
}

/// Members on which the stored list is not in force, each with why.
pub(super) fn lets_in_others(facts: &ClusterFacts<'_>) -> Vec<String> {
    let wanted = facts.record.allow_list.fingerprint();
    let why_not = |member: &MemberName| {
        let view = view_of(facts, member);
        let seen = view.and_then(|view| view.observation.as_ref()).filter(|seen| seen.cluster_id == facts.record.id);
        match seen.map(|seen| &seen.allow_list) {
            Some(Some(state)) if state.fingerprint == wanted && state.problem.is_empty() => None,
            Some(Some(state)) if !state.problem.is_empty() => Some(state.problem.clone()),
            // Without a list there is nothing that an old agent, or one that was not heard, could have missed.
            Some(None) | None if wanted.is_empty() => None,
            Some(None) => Some("its agent knows of no allow-lists: upgrade it".to_owned()),
            Some(Some(_)) | None if view.is_some_and(|view| view.connected) => Some("it is told by itself".to_owned()),
            Some(Some(_)) | None => Some("it is away, and is told when it returns".to_owned()),
        }
    };
    facts.record.members.keys().filter_map(|member| Some(format!("{member}: {}", why_not(member)?))).collect()
}

fn healing(healing: Healing) -> wire::HealingMode {
    match healing {
        Healing::PromoteReplica => wire::HealingMode::PromoteReplica,
        Healing::RestorePrimary => wire::HealingMode::RestorePrimary,
    }
}

fn running_version(facts: &ClusterFacts<'_>) -> String {
    let serves = serving(facts.record, facts.judgements);
    let primary = facts.record.primary.as_ref().or_else(|| serves.first()).and_then(|primary| view_of(facts, primary));
    let said = primary.and_then(|view| view.observation.as_ref()).map(|seen| seen.engine.version.clone());
    said.filter(|version| !version.is_empty()).unwrap_or_else(|| facts.record.version.clone())
}

pub(super) fn view_of<'a>(facts: &ClusterFacts<'a>, member: &MemberName) -> Option<&'a NodeView> {
    facts.record.members.get(member).and_then(|record| facts.views.get(&record.node))
}

/// How well a cluster does, and why not better.
fn health(facts: &ClusterFacts<'_>) -> (wire::Health, Vec<String>) {
    let record = facts.record;
    let changing = match record.phase {
        Phase::Creating => Some("the cluster is being made"),
        Phase::Deleting => Some("the cluster is being deleted"),
        Phase::Active => None,
    };
    if let Some(changing) = changing {
        return (wire::Health::Changing, vec![changing.to_owned()]);
    }
    let mut reasons = Vec::new();
    for (name, member) in &record.members {
        // While a member's data is being made or replaced, what its agent sees of it says nothing more.
        let being_made =
            matches!(member.state, MemberState::Creating | MemberState::Resyncing | MemberState::Leaving { .. });
        let judged = facts.judgements.get(name).map(|judgement| judgement.reason.clone());
        reasons.extend(judged.filter(|reason| !reason.is_empty() && !being_made));
        reasons.extend(state_reason(record, name, member));
    }
    if let Some(frozen) = &facts.frozen {
        reasons.insert(0, frozen.why.clone());
    }
    if record.is_pair() {
        let health = match (serving(record, facts.judgements).is_empty(), reasons.is_empty()) {
            (true, _) => wire::Health::Down,
            (false, true) => wire::Health::Healthy,
            (false, false) => wire::Health::Degraded,
        };
        if health == wire::Health::Down {
            reasons.insert(0, format!("no side of cluster {} takes writes", record.name));
        }
        return (health, reasons);
    }
    let serves = record.primary.as_ref().and_then(|primary| facts.judgements.get(primary));
    let health = match serves {
        None => {
            reasons.insert(0, format!("cluster {} has no primary: nobody accepts writes", record.name));
            wire::Health::Down
        }
        Some(judgement) => match judgement.verdict {
            Verdict::EngineDown | Verdict::EngineHung | Verdict::StorageHung | Verdict::Lost | Verdict::Dirty => {
                wire::Health::Down
            }
            // It serves on, by a lease that outlives its agent.
            Verdict::NodeUnreachable if !facts.succession.handed_over.is_zero() => wire::Health::Degraded,
            Verdict::NodeUnreachable
            | Verdict::NodeLost
            | Verdict::Quarantined
            | Verdict::WithoutLease
            | Verdict::Astray
            | Verdict::Starting => wire::Health::Down,
            // It serves, on the word of others.
            Verdict::Partitioned => wire::Health::Degraded,
            Verdict::Healthy | Verdict::Suspect | Verdict::NotStreaming | Verdict::Stale if reasons.is_empty() => {
                wire::Health::Healthy
            }
            Verdict::Healthy | Verdict::Suspect | Verdict::NotStreaming | Verdict::Stale => wire::Health::Degraded,
        },
    };
    (health, reasons)
}

fn state_reason(record: &ClusterRecord, name: &MemberName, member: &MemberRecord) -> Option<String> {
    match &member.state {
        MemberState::NeedsRejoin if record.is_pair() => Some(format!(
            "{name} waits to be joined with the other side again; this happens by itself once its agent is heard"
        )),
        MemberState::Ready => None,
        MemberState::Creating => Some(format!("{name} is being made")),
        MemberState::Resyncing => Some(format!("{name} is being resynced")),
        MemberState::NeedsRejoin => Some(format!(
            "{name} waits to be brought back as a replica; this happens by itself once its agent is heard"
        )),
        MemberState::NeedsResync { why } => Some(format!("{name} needs a resync: {why}")),
        MemberState::Leaving { .. } => Some(format!("{name} is being taken out of the cluster")),
    }
}

fn member(
    facts: &ClusterFacts<'_>,
    name: &MemberName,
    stored: &MemberRecord,
    primary: Option<&NodeView>,
) -> wire::Member {
    let record = facts.record;
    let unheard = NodeView::default();
    let view = facts.views.get(&stored.node).unwrap_or(&unheard);
    let node = facts.nodes.get(&stored.node);
    let judgement = facts.judgements.get(name);
    let own = view.observation.as_ref().and_then(|seen| seen.engine.position.as_ref());
    let is_primary = record.primary.as_ref() == Some(name);
    let lag = primary.filter(|_| !is_primary).and_then(|primary| view.lag_behind(primary));
    wire::Member {
        name: format!("{}/members/{name}", record.name.resource()),
        node: stored.node.resource(),
        role: types::Role::from(record.role_of(name)).into(),
        state: state(&stored.state).into(),
        endpoint: stored.endpoint.as_ref().map(Into::into),
        public_address: node.map(|node| node.public_address.clone()).unwrap_or_default(),
        private_address: node.map(|node| node.private_address.clone()).unwrap_or_default(),
        observation: view.observation.as_ref().map(Into::into),
        host: view.host.as_ref().map(Into::into),
        connected: view.connected,
        last_contact: view.last_contact_wall.map(to_wire_time),
        verdict: judgement.map(|j| j.verdict.label().to_owned()).unwrap_or_default(),
        reason: judgement.map(|j| j.reason.clone()).unwrap_or_default(),
        lag_bytes: lag,
        position: own.map(|p| p.display().to_owned()).unwrap_or_default(),
        available_actions: member_actions(facts, name),
        progress: view.jobs.first().map(|job| (&job.progress).into()),
        priority: stored.priority.0,
    }
}

fn state(state: &MemberState) -> wire::MemberState {
    match state {
        MemberState::Creating => wire::MemberState::Creating,
        MemberState::Ready => wire::MemberState::Ready,
        MemberState::Resyncing => wire::MemberState::Resyncing,
        MemberState::NeedsRejoin => wire::MemberState::NeedsRejoin,
        MemberState::NeedsResync { .. } => wire::MemberState::NeedsResync,
        MemberState::Leaving { .. } => wire::MemberState::Leaving,
    }
}

fn action(name: &str, obstacle: Option<String>) -> wire::AvailableAction {
    wire::AvailableAction {
        action: name.to_owned(),
        available: obstacle.is_none(),
        reason: obstacle.unwrap_or_default(),
    }
}

fn busy(record: &ClusterRecord) -> Option<String> {
    record.operation.map(|id| format!("{} is running", id.resource()))
}

fn member_actions(facts: &ClusterFacts<'_>, member: &MemberName) -> Vec<wire::AvailableAction> {
    let (record, judgements) = (facts.record, facts.judgements);
    let promote = planned::obstacle(record, judgements, facts.succession, member).map(|(_, why)| why);
    let remove = removal::obstacle(record, judgements, member, true).map(|(_, why)| why);
    vec![
        action("promote", promote.or_else(|| busy(record))),
        resync_action(facts, Some(member)),
        action("remove-member", remove.or_else(|| busy(record))),
    ]
}

fn cluster_actions(facts: &ClusterFacts<'_>) -> Vec<wire::AvailableAction> {
    let record = facts.record;
    let protected = record.protected.then(|| "the cluster is protected: unprotect it first".to_owned());
    let nobody = record.primary.is_none().then(|| "the cluster has no primary to copy from".to_owned());
    let nobody = foreign(record, Foreign::Add).map(|(_, why)| why).or(nobody);
    vec![
        action("add-member", nobody.or_else(|| busy(record))),
        resync_action(facts, None),
        action("compare", incomparable(record, facts.judgements).map(|(_, why)| why).or_else(|| busy(record))),
        action("failover", failover_obstacle(facts)),
        action("delete", protected.or_else(|| busy(record))),
        action("protect", record.protected.then(|| "the cluster is protected already".to_owned())),
        action("unprotect", (!record.protected).then(|| "the cluster is not protected".to_owned())),
        action("pause", record.policy.paused.then(|| "automatic decisions are paused already".to_owned())),
        action("resume", (!record.policy.paused).then(|| "automatic decisions are not paused".to_owned())),
        action("allow", busy(record)),
        action("credentials", None),
    ]
}

/// Whether a person's failover could begin without anything being vouched for or given up, or why not (rule P7).
fn failover_obstacle(facts: &ClusterFacts<'_>) -> Option<String> {
    let asked = asked(facts.record, facts.judgements, facts.succession, &Consent::default());
    asked.err().or_else(|| busy(facts.record))
}

fn resync_action(facts: &ClusterFacts<'_>, member: Option<&MemberName>) -> wire::AvailableAction {
    let obstacle = resyncing::obstacle(facts.record, facts.judgements, member).map(|(_, why)| why);
    action("resync", obstacle.or_else(|| busy(facts.record)))
}

/// What a node holds of a cluster that is not in the store, and what becomes of it.
pub fn left_over(seen: &Observation) -> String {
    format!(
        "it holds member {} of cluster {}, which is not in this coordinator's store: if that was deleted the node is emptied by \
         itself within a minute; if not, an old backup of the store was put back: its members serve on, and a newer backup \
         brings it back",
        seen.member, seen.cluster_id
    )
}

/// Renders a node.
pub fn node(
    stored: &NodeRecord,
    view: &NodeView,
    assignment: Option<&crate::model::Assignment>,
    own_machine: &OwnMachine,
    now: Duration,
) -> wire::Node {
    let twice = view.rival.as_ref().is_some_and(|rival| rival.is_there(now));
    let reason = if stored.revoked {
        "the node is revoked: nothing is sent to it".to_owned()
    } else if let Some(quarantine) = view.quarantine().filter(|_| view.connected) {
        format!("in quarantine: {quarantine}")
    } else if let Some(rival) = view.rival.as_ref().filter(|_| twice) {
        rival.twice.sentence(&stored.name)
    } else if view.connected {
        let left_over = view.observation.as_ref().filter(|_| assignment.is_none());
        left_over.map(|seen| format!("the node is not free: {}", self::left_over(seen))).unwrap_or_default()
    } else if view.observation.as_ref().is_some_and(|seen| seen.authority.hand_over) {
        format!("the agent is being restarted, and handed its lease over before it ended: {}", view.problem)
    } else if view.problem.is_empty() {
        "the node has not been heard yet".to_owned()
    } else {
        format!("the agent cannot be reached: {}", view.problem)
    };
    wire::Node {
        name: stored.name.resource(),
        cluster: assignment.map(|a| a.cluster.resource()).unwrap_or_default(),
        member: assignment.map(|a| a.member.to_string()).unwrap_or_default(),
        agent_address: stored.agent_address.clone(),
        public_address: stored.public_address.clone(),
        private_address: stored.private_address.clone(),
        labels: stored.labels.clone(),
        connected: view.connected,
        last_contact: view.last_contact_wall.map(to_wire_time),
        agent_version: view.agent_version.clone(),
        host: view.host.as_ref().map(Into::into),
        engines: view.engines.iter().map(Into::into).collect(),
        join_time: Some(to_wire_time(stored.joined_at)),
        certificate_expire_time: stored.certificate_not_after.map(to_wire_time),
        revoked: stored.revoked,
        reason,
        fence: view.observation.as_ref().map(|seen| (&seen.authority.fence).into()),
        warnings: warnings::of_node(view, assignment, own_machine),
    }
}

/// Renders an operation from its record and its log.
pub fn operation(
    record: &OperationRecord,
    status: &Status,
    progress: Option<&(OperationId, Progress)>,
) -> wire::Operation {
    let (state, failure) = match &status.stage {
        Stage::Pending => (wire::OperationState::Pending, None),
        Stage::Running => (wire::OperationState::Running, None),
        Stage::Unwinding(failure, _) => (wire::OperationState::Unwinding, Some(failure)),
        Stage::Ended(Outcome::Succeeded, failure) => (wire::OperationState::Succeeded, failure.as_ref()),
        Stage::Ended(Outcome::Failed, failure) => (wire::OperationState::Failed, failure.as_ref()),
        Stage::Ended(Outcome::Cancelled, failure) => (wire::OperationState::Cancelled, failure.as_ref()),
    };
    let steps = record.steps.iter().zip(&status.steps).map(|(planned, log)| {
        let (step_state, error) = match &log.status {
            StepStatus::Pending => (wire::StepState::Pending, String::new()),
            StepStatus::Running => (wire::StepState::Running, String::new()),
            StepStatus::Succeeded => (wire::StepState::Succeeded, String::new()),
            StepStatus::Failed(failure) => (wire::StepState::Failed, failure.message.clone()),
            StepStatus::Undone => (wire::StepState::Undone, String::new()),
        };
        let running = log.status == StepStatus::Running;
        wire::Step {
            name: planned.name.clone(),
            member: planned.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            state: step_state.into(),
            progress: progress.filter(|(id, _)| running && *id == record.id).map(|(_, progress)| progress.into()),
            start_time: log.started_at.map(to_wire_time),
            end_time: log.ended_at.map(to_wire_time),
            error,
            attempts: log.attempts,
            point_of_no_return: planned.point_of_no_return,
        }
    });
    wire::Operation {
        name: record.id.resource(),
        kind: record.kind.clone(),
        cluster: record.cluster.resource(),
        state: state.into(),
        steps: steps.collect(),
        created_by: record.created_by.clone(),
        reason: record.reason.clone(),
        create_time: Some(to_wire_time(record.created_at)),
        start_time: status.steps.first().and_then(|step| step.started_at).map(to_wire_time),
        end_time: status.ended_at.map(to_wire_time),
        error: failure.map(|f| f.message.clone()).unwrap_or_default(),
        error_reason: failure.map(|f| f.reason.clone()).unwrap_or_default(),
        done: status.has_ended(),
        validate_only: false,
        report: status.steps.iter().flat_map(|step| step.report.clone()).collect(),
        parameters: parameters(&record.parameters),
    }
}

/// Most characters of a parameter that are shown: a list may have thousands of ranges.
const LONGEST_PARAMETER: usize = 2000;

fn parameters(value: &serde_json::Value) -> BTreeMap<String, String> {
    let Some(object) = value.as_object() else { return BTreeMap::new() };
    let text = |value: &serde_json::Value| {
        let mut text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        if let Some((end, _)) = text.char_indices().nth(LONGEST_PARAMETER) {
            text.truncate(end);
            text.push_str("...");
        }
        text
    };
    object.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}
