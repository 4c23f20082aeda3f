//! Replaces a primary that is dead or lost: secure, prepare, choose, promote, follow (rules P1 to P5).
//!
//! The epoch is raised in the commit that begins the operation. **Invariant:** nothing is promoted before every member that may
//! accept writes has *answered* a fence at the new epoch, or its lease is over by the coordinator's own count and the candidate
//! has no standing promise to it; an event that an engine has ended never counts as that. The candidate and its first
//! electorate are stored before the promotion is sent (rule P2); another candidate needs another epoch, which is another
//! failover, and that one starts from what this one knew: who reigned last and how far it had come. The old primary is itself
//! prepared and a candidate as soon as it is heard (rule P5); when its engine is dead and no replica may be promoted its own
//! data is, if its agent answers: that is a restart in place. Nobody is promoted while it is unknown how far a member that
//! reigned had come (rule P4).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    error::Reason,
    ids::{Epoch, MemberName},
    lease::margin,
    mutation::{self, Rule},
    position::Position,
    topology::HeardPosition,
};
use regent_proto::agent::v1::{self as wire, StepResult, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{in_addition, listed, position_of};
use crate::{
    cluster::judging::judge_all,
    detector::Succession,
    environment::Environment,
    model::{
        cluster::{ClusterRecord, MemberRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
        reign::Reign,
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
    planner::{
        Cause,
        asked::Consent,
        candidate::{Choice, Prepared, choose, loss},
    },
};

/// How long the members that reigned may take to answer the fence, and how long their agents are waited for. An operation
/// that waited for ever would keep every other one out; the planner asks for the next failover when the agents are heard.
const FENCE_WITHIN: Duration = Duration::from_secs(60);
/// How long a fence is given before the end of the lease counts instead of its answer.
const FENCE_GRACE: Duration = Duration::from_secs(1);
/// How long a promotion may take. After it nobody knows whether the candidate reigns, and the next failover fences it.
const PROMOTE_WITHIN: Duration = Duration::from_secs(120);
/// How long a replica may take to answer prepare; one that does not is left behind.
const PREPARE_WITHIN: Duration = Duration::from_secs(3);
/// Pause before a member that has a standing promise is asked again.
const PROMISE_PAUSE: Duration = Duration::from_millis(50);
/// How long the old primary's data may take to be read, crash recovery included.
const EXAMINE_WITHIN: Duration = Duration::from_secs(300);
/// How long the candidate's agent is waited for, and then a replica's.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(10));
/// How long a replica may take to follow; one that does not is brought back by a rejoin.
const FOLLOW_WITHIN: Duration = Duration::from_secs(15);

/// The kind.
pub struct Failover;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// What makes sure that the old primary accepts no writes.
    #[serde(default = "engine_failed")]
    pub cause: Cause,
    /// Highest position that was heard of each member that reigned.
    #[serde(default)]
    pub known: BTreeMap<MemberName, Position>,
    /// What the person who asked for it took upon himself (rule P7).
    #[serde(default)]
    pub consent: Consent,
    /// Who is to be promoted if it lacks nothing (rule P6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<MemberName>,
    /// Only who reigned is put back, on its own data: the cluster's policy wants nobody else promoted without a person's word.
    #[serde(default)]
    pub in_place: bool,
}

/// Highest position that was heard of each member that reigned.
pub fn heard(environment: &Environment, cluster: &ClusterRecord) -> BTreeMap<MemberName, Position> {
    let reigned = cluster.primary.iter().chain(&cluster.candidate).chain(cluster.reigned.keys());
    let position = |member: &MemberName| {
        let view = environment.agents.view(&cluster.members.get(member)?.node);
        view.last_position.filter(|(id, _)| *id == cluster.id).map(|(_, position)| position)
    };
    reigned.filter_map(|member| Some((member.clone(), position(member)?))).collect()
}

fn engine_failed() -> Cause {
    Cause::EngineFailed
}

/// How it is sure that a member accepts no writes.
enum Secured {
    /// It has answered the fence.
    Fenced { position: Option<Position>, writable_epoch: Option<Epoch> },
    /// Its lease is over.
    LeaseOver,
}

/// What the step "prepare" brings.
#[derive(Debug, Serialize, Deserialize)]
struct Prepare {
    candidate: MemberName,
    others: Vec<MemberName>,
}

#[async_trait]
impl Kind for Failover {
    fn name(&self) -> &'static str {
        "failover"
    }

    fn plan(&self, cluster: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep> {
        let Parameters { consent, .. } = read(parameters);
        // Who reigned itself is prepared as such, if at all.
        let used = |(name, member): &(&MemberName, &MemberRecord)| {
            consent.covers(&member.state) && !cluster.reigned.contains_key(*name)
        };
        let ready = cluster.members.iter().filter(used).map(|(name, _)| name.clone());
        vec![
            PlannedStep::new("fence", cluster.may_be_writable.iter().cloned()),
            PlannedStep::new("prepare", ready.clone()),
            PlannedStep::new("promote", []).no_return(),
            PlannedStep::new("follow", ready),
        ]
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let parameters: Parameters = read(parameters);
        if !(mutation::broken(Rule::P2Candidate) && cluster.candidate.is_some()) {
            cluster.epoch = cluster.epoch.next();
        }
        if mutation::broken(Rule::L5Established)
            && let Some(candidate) = cluster.candidate.take()
        {
            // The candidate's reign was never stored as established: the one before it counts, and nobody is afraid of it.
            cluster.reign = cluster.base.take().or_else(|| cluster.reign.take());
            cluster.may_be_writable.remove(&candidate);
        }
        end_reign(cluster);
        for (member, position) in parameters.known {
            if cluster.reigned.contains_key(&member) {
                cluster.note_reign(member, Some(position));
            }
        }
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        match step.name.as_str() {
            "fence" => fence(context, &step.members).await,
            "prepare" => prepare(context, &step.members).await,
            "promote" => promote(context).await,
            _ => follow(context).await,
        }
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        // The record says that there is no primary: the planner asks for the next failover, at a higher epoch.
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        false
    }

    fn is_tried_again(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        false
    }

    fn event(&self) -> &'static str {
        "FAILOVER"
    }
}

/// Nobody is the primary any more: who was, or was to be, may be writable until it is fenced.
pub(super) fn end_reign(cluster: &mut ClusterRecord) {
    let reigned = cluster.primary.take().into_iter().chain(cluster.candidate.take());
    for member in reigned.collect::<Vec<_>>() {
        cluster.set_state(&member, MemberState::NeedsRejoin);
        cluster.note_reign(member.clone(), None);
        cluster.may_be_writable.insert(member);
    }
    cluster.established = false;
}

pub(super) async fn fence(context: &StepContext<'_>, members: &[MemberName]) -> Result<StepDone, StepError> {
    let parameters = context.parameters::<Parameters>();
    let answers = futures::future::join_all(members.iter().map(|member| secure(context, member, &parameters)));
    let answers = tokio::time::timeout(FENCE_WITHIN, answers).await.map_err(|_| {
        let late = format!("no answer to the fence of {} within {} s", listed(members), FENCE_WITHIN.as_secs());
        StepError::new(Reason::Deadline, late)
    })?;
    let mut done = StepDone::new();
    let mut fenced = Vec::new();
    for (member, secured) in members.iter().zip(answers) {
        match secured? {
            Secured::Fenced { position, writable_epoch } => {
                done = done.say(format!("fenced {member}"));
                fenced.push((member.clone(), position, writable_epoch));
            }
            Secured::LeaseOver => done = done.say(format!("the lease of {member} is over: its gate is closed")),
        }
    }
    Ok(done.change(move |cluster| {
        // Whose lease is over stays among those who may be writable until somebody is promoted: his promises still stand.
        for (member, position, _) in &fenced {
            cluster.may_be_writable.remove(member);
            cluster.note_reign(member.clone(), position.clone());
        }
        // A reign whose engine never became writable never was: the one before it counts (rule P2).
        let never_was = |reign: &Reign| {
            let of_its_primary = |(member, _, writable): &&(MemberName, _, Option<Epoch>)| {
                *member == reign.primary && writable.is_none_or(|writable| writable < reign.epoch)
            };
            fenced.iter().any(|answer| of_its_primary(&answer))
        };
        if cluster.base.is_some() && !mutation::broken(Rule::P2Base) && cluster.reign.as_ref().is_some_and(never_was) {
            cluster.reign = cluster.base.take();
        }
    }))
}

/// Makes sure that a member accepts no writes: by its answer to the fence, or by the end of its lease.
async fn secure(context: &StepContext<'_>, member: &MemberName, parameters: &Parameters) -> Result<Secured, StepError> {
    let (cluster, cause) = (context.cluster()?, parameters.cause);
    // Where no gate closes by itself the end of the lease proves nothing (rule G6), unless the node is off.
    let gated = cluster.reign.as_ref().is_some_and(|reign| reign.gated) || parameters.consent.off.contains(member);
    let authority = context.environment().authority(&cluster).filter(|_| gated);
    let over = async {
        let Some(authority) = authority else { return std::future::pending().await };
        if cause != Cause::LeaseOver {
            tokio::time::sleep(FENCE_GRACE).await;
        }
        loop {
            let left = authority.lease_left();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    };
    let mut over = std::pin::pin!(over);
    let unsecured = mutation::broken(Rule::P1Evidence) && cause == Cause::LeaseOver;
    if unsecured || (mutation::broken(Rule::G5Event) && cause == Cause::EngineFailed) {
        let position = context.view(member)?.last_position.map(|(_, position)| position);
        return Ok(Secured::Fenced { position, writable_epoch: Some(cluster.epoch) });
    }
    let fence = context.call(member, Action::Fence(wire::Fence {}), PATIENCE);
    let position = |result: &StepResult| match cause {
        // What the last look saw may be old; only the position of a drain that nothing has broken is final. Without it the data
        // itself is asked (rule P6).
        Cause::Planned if !result.drained => None,
        Cause::Planned | Cause::EngineFailed | Cause::LeaseOver => result.position.clone().map(Position::from),
    };
    let fenced = |result: StepResult| Secured::Fenced {
        position: position(&result),
        writable_epoch: result.writable_epoch.map(Epoch),
    };
    tokio::select! {
        biased;
        () = &mut over => Ok(Secured::LeaseOver),
        answer = fence => match answer {
            Ok(result) => {
                no_copy(context, &cluster, member).await?;
                if let Some(authority) = context.environment().authority(&cluster) {
                    authority.fenced(member, cluster.epoch);
                }
                Ok(fenced(result))
            }
            Err(_) if gated => {
                over.await;
                Ok(Secured::LeaseOver)
            }
            Err(error) => Err(error),
        },
    }
}

/// The answer of a machine with another boot than the one that was granted the lease is that of the same machine after a boot, or
/// of a copy, which says nothing of the holder (rule T5): it counts when no lease stands, by our own count and by what members
/// report. A boot takes longer than that anyway.
async fn no_copy(context: &StepContext<'_>, cluster: &ClusterRecord, member: &MemberName) -> Result<(), StepError> {
    let environment = context.environment();
    let Some(authority) = environment.authority(cluster) else { return Ok(()) };
    if !authority.is_held_elsewhere(member, &context.view(member)?.boot_id) {
        return Ok(());
    }
    loop {
        let (_, Succession { lease_left, reported_by, .. }) = judge_all(environment, cluster);
        if lease_left.is_zero() && reported_by.is_none() {
            return Ok(());
        }
        tokio::time::sleep(lease_left.max(PROMISE_PAUSE)).await;
    }
}

/// Prepares every reachable replica and chooses among them, and a former primary's data if none of them will do.
pub(super) async fn prepare(context: &StepContext<'_>, members: &[MemberName]) -> Result<StepDone, StepError> {
    let cluster = context.cluster()?;
    // Who has answered a fence, in this failover or in one before it that did not end.
    let fenced = |member: &MemberName| !cluster.may_be_writable.contains(member);
    // The old primary itself, unless its engine is dead or hung: a blip must not end with nobody (rule P5). One whose agent
    // did not answer the fence, because its disk hangs, would not answer this either.
    let Parameters { cause, consent, successor, in_place, .. } = context.parameters();
    let silent = cause == Cause::LeaseOver;
    let old = cluster.reign.as_ref().map(|reign| reign.primary.clone()).filter(|_| silent);
    let old = old.filter(|old| cluster.members.contains_key(old) && !fenced(old));
    let old = old.filter(|old| cluster.reigned.contains_key(old));
    let mut eligible = cluster.promotable();
    eligible.extend(old.clone());
    if consent.data_loss && cluster.may_be_writable.iter().all(|member| consent.off.contains(member)) {
        // Nobody is left who could accept a write: any copy will do, by a person's word.
        eligible.extend(members.iter().cloned());
    }
    let targets: Vec<_> = members.iter().chain(&old).cloned().collect();
    let mut reigned = cluster.reigned.clone();
    let mut prepared = Vec::new();
    let mut report = Vec::new();
    for (member, outcome) in prepare_all(context, &targets, cluster.may_be_writable.is_empty()).await {
        match outcome {
            Ok(result) => {
                // Only whom the last primary had to ask has heard of all that it wrote without us (rules E1, P4).
                // By a plan nothing is lost, and hearsay bounds a loss without saying that there is none.
                if cause != Cause::Planned && eligible.contains(&member) {
                    hear(&mut reigned, &result)?;
                }
                let position = position_of(&member, &result)?;
                if old.as_ref() == Some(&member) {
                    reigned.insert(member.clone(), Some(position.clone()));
                }
                prepared.push(Prepared::new(&cluster, member, position));
            }
            Err(why) => report.push(format!("{member} was not prepared: {why}")),
        }
    }
    let max_lag = match cause {
        // Nothing is lost by a plan.
        Cause::Planned => 0,
        Cause::EngineFailed | Cause::LeaseOver if consent.data_loss => u64::MAX,
        Cause::EngineFailed | Cause::LeaseOver => cluster.policy.max_lag_on_failover,
    };
    // Nobody heard how far these had come, so that they are asked themselves, crash recovery included.
    let unknown: Vec<_> =
        reigned.iter().filter(|(member, known)| known.is_none() && fenced(member)).map(|(m, _)| m.clone()).collect();
    let mut examined = examine(context, &cluster, &unknown, &mut reigned, &mut report).await;
    // Its last snapshot says nothing of what it has acknowledged since; nothing is lost by a plan, also where nobody knows.
    for member in unknown.iter().filter(|member| cause == Cause::Planned && forgets_on_crash(context, &cluster, member))
    {
        reigned.insert(member.clone(), None);
    }
    let candidates: Vec<_> = prepared.iter().filter(|p| eligible.contains(&p.member)).cloned().collect();
    let choose = |known: &[Position]| choose(&candidates, known, max_lag, successor.as_ref());
    let all_known: Option<Vec<Position>> = reigned.values().cloned().collect();
    let chosen = match all_known {
        _ if in_place => Err("the policy is to restore the primary on its own data".to_owned()),
        Some(known) => choose(&known).map_err(|no_choice| no_choice.to_string()),
        None if max_lag == u64::MAX => choose(&[]).map_err(|no_choice| no_choice.to_string()),
        None => Err("how much would be lost is not known".to_owned()),
    };
    let choice = match chosen {
        Ok(choice) => choice,
        Err(no_choice) => {
            report.push(format!("no member can be promoted: {no_choice}"));
            let others: Vec<_> =
                reigned.keys().filter(|member| !unknown.contains(member) && fenced(member)).cloned().collect();
            examined.extend(examine(context, &cluster, &others, &mut reigned, &mut report).await);
            // Who reigned before the last reign may lack what that one acknowledged: while its primary is not fenced only who
            // could be promoted is restarted either (rule P2). Of one before it the end of its lease is enough.
            let last_is_fenced = cluster.reign.as_ref().is_none_or(|reign| fenced(&reign.primary));
            examined.retain(|own| last_is_fenced || eligible.contains(&own.member));
            if in_place {
                report.push(format!(
                    "nobody else is promoted by itself under RESTORE_PRIMARY: `regentctl cluster failover {}` promotes a replica",
                    cluster.name
                ));
            }
            // Where there is no other copy nothing is gained by waiting for one.
            let allowed = if cluster.members.len() == 1 { u64::MAX } else { max_lag };
            restart_in_place(&examined, &reigned, allowed, &report)?
        }
    };
    let candidate = choice.member;
    let own = examined.iter().chain(&prepared).find(|own| own.member == candidate).map(|own| own.position.clone());
    if let Some(own) = own {
        // Copies that it does not include cannot follow it: they are brought back by a rejoin.
        prepared.retain(|p| own.includes(&p.position));
    }
    report.push(choice.why);
    let others: Vec<_> = prepared.into_iter().map(|p| p.member).filter(|member| *member != candidate).collect();
    let ready = |member: &&MemberName| cluster.members.get(*member).is_some_and(|m| m.state == MemberState::Ready);
    let electorate: BTreeSet<_> = others
        .iter()
        .filter(|member| eligible.contains(*member) && old.as_ref() != Some(member))
        .filter(ready)
        .cloned()
        .collect();
    let seen = context.view(&candidate)?.observation;
    let gated = seen.is_some_and(|seen| seen.authority.fence.timed_gate);
    let output = Prepare { candidate: candidate.clone(), others };
    let mut done = StepDone::new().output(&output).change(move |cluster| {
        let begun = cluster.reign.as_ref().is_some_and(|reign| reign.epoch == cluster.epoch);
        if !begun || mutation::broken(Rule::P2Candidate) {
            cluster.begin_reign(candidate.clone(), electorate.clone(), gated);
        }
        // What was found out is not asked a second time, should this failover not end.
        for (member, position) in &reigned {
            if cluster.reigned.contains_key(member) {
                cluster.note_reign(member.clone(), position.clone());
            }
        }
        cluster.may_be_writable.insert(candidate.clone());
    });
    done.report = report;
    Ok(done)
}

/// Takes in how far a prepared member heard that those had come who reigned (rule P3).
fn hear(reigned: &mut BTreeMap<MemberName, Option<Position>>, result: &StepResult) -> Result<(), StepError> {
    for heard in &result.heard {
        let HeardPosition { member, position } = HeardPosition::try_from(heard.clone()).map_err(|error| {
            StepError::new(Reason::Internal, format!("what an agent heard cannot be read: {error}"))
        })?;
        if let Some(known) = reigned.get_mut(&member) {
            *known = higher(known.take(), Some(position));
        }
    }
    Ok(())
}

/// The higher of two positions that were heard; of two that have diverged the first.
fn higher(known: Option<Position>, heard: Option<Position>) -> Option<Position> {
    match (known, heard) {
        (Some(known), Some(heard)) => Some(if heard.includes(&known) { heard } else { known }),
        (known, heard) => known.or(heard),
    }
}

/// Prepares all at once; a member that is away or slow is left out. One that has a standing promise is waited for: it ends
/// within the length of a lease.
async fn prepare_all(
    context: &StepContext<'_>,
    members: &[MemberName],
    old_primary_fenced: bool,
) -> Vec<(MemberName, Result<StepResult, String>)> {
    let timing = context.cluster().map(|cluster| cluster.policy.profile.timing()).unwrap_or_default();
    let clock = &context.environment().clock;
    let began = clock.boottime();
    let promise = timing.ttl + margin(timing.ttl) + PROMISE_PAUSE;
    let calls = members.iter().map(|member| async move {
        let answer = || async {
            let view = context.view(member)?;
            let silent =
                view.last_contact.is_some_and(|last| clock.boottime().saturating_sub(last) > timing.suspect_after);
            // One that was heard and went silent costs no time; one that was never heard may just be being dialled.
            if view.last_contact.is_some() && (!view.connected || silent) {
                return Err(StepError::new(Reason::NodeUnreachable, "its node is not heard"));
            }
            let prepare = Action::Prepare(wire::Prepare { old_primary_fenced });
            context.call(member, prepare, Patience::AtMost(PREPARE_WITHIN)).await
        };
        loop {
            match tokio::time::timeout(PREPARE_WITHIN, answer()).await {
                Ok(Err(error)) if error.reason == Reason::PromiseStands && clock.boottime() - began < promise => {
                    tokio::time::sleep(PROMISE_PAUSE).await;
                }
                Ok(outcome) => return (member.clone(), outcome.map_err(|error| error.to_string())),
                Err(_) => return (member.clone(), Err(format!("no answer within {} s", PREPARE_WITHIN.as_secs()))),
            }
        }
    });
    futures::future::join_all(calls).await
}

/// Finds out how far fenced members that reigned have come by their own data; those whose data cannot be read are reported.
async fn examine(
    context: &StepContext<'_>,
    cluster: &ClusterRecord,
    members: &[MemberName],
    reigned: &mut BTreeMap<MemberName, Option<Position>>,
    report: &mut Vec<String>,
) -> Vec<Prepared> {
    let calls = members.iter().map(|member| async move {
        let examine = Action::Examine(wire::Examine {});
        let result = tokio::time::timeout(EXAMINE_WITHIN, context.call(member, examine, PATIENCE)).await;
        let result = result.unwrap_or_else(|_| Err(StepError::new(Reason::Deadline, "crash recovery did not end")));
        (member.clone(), result.and_then(|result| position_of(member, &result)))
    });
    let mut examined = Vec::new();
    for (member, outcome) in futures::future::join_all(calls).await {
        match outcome {
            Ok(position) => {
                report.push(format!("the data of the former primary {member} can be used: {position}"));
                // It is exact where a crash loses nothing that was acknowledged; else what was heard before it counts too.
                let heard =
                    reigned.get(&member).cloned().flatten().filter(|_| forgets_on_crash(context, cluster, &member));
                reigned.entry(member.clone()).and_modify(|known| *known = higher(heard, Some(position.clone())));
                examined.push(Prepared::new(cluster, member, position));
            }
            Err(error) => report.push(format!("the data of the former primary {member} cannot be used: {error}")),
        }
    }
    examined
}

/// Whether the engine of a member loses by a crash what it had acknowledged.
fn forgets_on_crash(context: &StepContext<'_>, cluster: &ClusterRecord, member: &MemberName) -> bool {
    let offers = context.view(member).map(|view| view.engines).unwrap_or_default();
    offers.iter().any(|offer| offer.engine == cluster.engine && offer.forgets_on_crash)
}

/// Offers a former primary's own data, which lacks no more than the policy allows of what is known to have been acknowledged: by
/// others that reigned since, and by itself where a crash makes its engine forget.
fn restart_in_place(
    examined: &[Prepared],
    reigned: &BTreeMap<MemberName, Option<Position>>,
    max_lag: u64,
    report: &[String],
) -> Result<Choice, StepError> {
    let lacks = |own: &Prepared| -> Option<u64> {
        // Its own is the examined one, unless more was heard of it before and the engine is one that forgets.
        let known: Option<Vec<_>> = reigned.values().map(Option::as_ref).collect();
        known.map(|known| loss(&own.position, known))
    };
    let allowed = |own: &&Prepared| lacks(own).map_or(max_lag == u64::MAX, |lacks| lacks <= max_lag);
    let best = examined.iter().filter(allowed).min_by_key(|own| (lacks(own).unwrap_or(0), own.member.clone()));
    let Some(best) = best else {
        return Err(StepError::new(Reason::ClusterHasNoPrimary, report.join("; ")));
    };
    let why = format!("{} is restarted in place on its own data", best.member);
    Ok(Choice { member: best.member.clone(), known_loss: lacks(best).unwrap_or(0), why })
}

pub(super) async fn promote(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Prepare { candidate, others } = context.output("prepare")?;
    let promotion = context.call(&candidate, Action::Promote(wire::Promote {}), PATIENCE);
    tokio::time::timeout(PROMOTE_WITHIN, promotion).await.unwrap_or_else(|_| {
        let late = format!("{candidate} did not answer the promotion within {} s", PROMOTE_WITHIN.as_secs());
        Err(StepError::new(Reason::Deadline, late))
    })?;
    let epoch = context.epoch()?;
    Ok(StepDone::new().say(format!("{candidate} is the primary of epoch {epoch}")).change(move |cluster| {
        cluster.crown(candidate.clone());
        cluster.may_be_writable = [candidate.clone()].into();
        cluster.reigned.clear();
        cluster.set_state(&candidate, MemberState::Ready);
        // Only who was prepared and can follow is a candidate from here on: another may have gone on without us (rule P2).
        let ready = |(_, record): &(&MemberName, &mut MemberRecord)| record.state == MemberState::Ready;
        for (member, record) in cluster.members.iter_mut().filter(ready) {
            if *member != candidate && !others.contains(member) {
                record.state = MemberState::NeedsRejoin;
            }
        }
    }))
}

/// Points the other prepared members at the new primary. One that does not follow is brought back by a rejoin.
pub(super) async fn follow(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Prepare { candidate, others } = context.output("prepare")?;
    let upstream = wire::Peer::from(&context.peer(&candidate)?);
    let calls = others.iter().map(|member| {
        let action = Action::Follow(wire::Follow { upstream: Some(upstream.clone()) });
        async move {
            let call = tokio::time::timeout(FOLLOW_WITHIN, context.call(member, action, PATIENCE));
            (
                member.clone(),
                call.await.map_err(|_| "it took too long".to_owned()).and_then(|o| o.map_err(|e| e.to_string())),
            )
        }
    });
    let mut left_behind = Vec::new();
    let mut done = StepDone::new();
    for (member, outcome) in futures::future::join_all(calls).await {
        match outcome {
            Ok(result) => done = done.say(format!("{member} follows {candidate}{}", in_addition(&result.detail))),
            Err(why) => {
                done = done.say(format!("{member} does not follow yet: {why}"));
                left_behind.push(member);
            }
        }
    }
    Ok(done.change(move |cluster| {
        for member in &left_behind {
            cluster.set_state(member, MemberState::NeedsRejoin);
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::planner::fixtures::{cluster, name};

    #[test]
    fn copies_that_were_to_be_replaced_are_prepared_with_consent_to_a_loss_and_who_reigned_is_not() {
        let mut cluster = cluster();
        cluster.set_state(&name(2), MemberState::NeedsResync { why: "it fell behind".to_owned() });
        let prepared = |consent: Value| {
            let mut begun = cluster.clone();
            let parameters = json!({ "consent": consent });
            Failover.begin(&mut begun, &parameters);
            let plan = Failover.plan(&begun, &parameters);
            plan.into_iter().find(|step| step.name == "prepare").map(|step| step.members).unwrap()
        };
        assert_eq!(prepared(json!({})), []);
        assert_eq!(prepared(json!({ "data_loss": true })), [name(2)]);
    }
}
