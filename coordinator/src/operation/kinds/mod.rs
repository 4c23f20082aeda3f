//! The kinds of operation, one file each.

use regent_common::{error::Reason, ids::MemberName, position::Position};
use regent_proto::agent::v1::{self as wire, StepResult, action::Action};

use super::{StepContext, StepError, context::Patience};
use crate::nodes::tls;

pub mod add_member;
pub mod adopt_cluster;
pub mod compare;
pub mod configure;
pub mod create_cluster;
pub mod delete_cluster;
pub mod failover;
mod pair;
pub mod promote;
pub mod rejoin;
pub mod remove_member;
pub mod resync;
pub mod set_allow_list;

/// The results of all, or the first failure.
fn all_or_first_error(
    outcomes: Vec<(MemberName, Result<StepResult, StepError>)>,
) -> Result<Vec<(MemberName, StepResult)>, StepError> {
    outcomes.into_iter().map(|(member, outcome)| outcome.map(|result| (member, result))).collect()
}

/// The primary, or why there is nothing to copy from.
fn primary_of(context: &StepContext<'_>) -> Result<MemberName, StepError> {
    let cluster = context.cluster()?;
    cluster.primary.clone().ok_or_else(|| {
        StepError::new(Reason::ClusterHasNoPrimary, format!("cluster {} has no primary to copy from", cluster.name))
    })
}

/// Applies members, settings and access rules of the stored topology.
fn configure(context: &StepContext<'_>) -> Result<Action, StepError> {
    let fingerprint = context.environment().fingerprint(&*context.cluster()?).unwrap_or_default();
    Ok(Action::Configure(wire::Configure { spec: Some((&context.spec()?).into()), fingerprint }))
}

/// Refuses nodes that say that they do not offer TLS, where the cluster's ports are to speak it. One that was not heard says nothing of
/// it here; its agent refuses what it cannot do.
fn all_offer_tls(context: &StepContext<'_>, members: &[MemberName]) -> Result<(), StepError> {
    let cluster = context.cluster()?;
    let mut mute = Vec::new();
    for member in members.iter().filter(|_| cluster.tls) {
        let offers = context.view(member)?.engines;
        if offers.iter().any(|offer| offer.engine == cluster.engine && !tls::offered(offer)) {
            mute.extend(cluster.members.get(member).map(|record| &record.node));
        }
    }
    match mute.is_empty() {
        true => Ok(()),
        false => {
            let engine = &cluster.engine;
            let message = format!("{}: {}", tls::not_offered(engine, mute), tls::remedy(engine));
            Err(StepError::new(Reason::NoTls, message))
        }
    }
}

/// Makes nodes the members that they are by the stored topology, also when a ledger was lost with its disk.
async fn assign_again(context: &StepContext<'_>, members: &[MemberName]) -> Result<(), StepError> {
    all_offer_tls(context, members)?;
    let (cluster, spec) = (context.cluster()?, wire::ClusterSpec::from(&context.spec()?));
    let action = |member: &MemberName| {
        // All others know it at this port: one that was adopted has a port of its own.
        let endpoint = cluster.members.get(member).and_then(|record| record.endpoint.as_ref());
        let port = endpoint.map_or(cluster.port, |endpoint| endpoint.port).into();
        Action::Assign(wire::Assign { spec: Some(spec.clone()), port })
    };
    all_or_first_error(context.call_all(members, Patience::Forever, action).await).map(|_| ())
}

/// Copies the primary's data into the side directories of `members`, all at once. The primary is asked first, so that it
/// has persisted this operation's token before a copy relies on it (rule T2).
async fn clone_members(
    context: &StepContext<'_>,
    members: &[MemberName],
    max_bytes_per_second: u64,
    wipe_first_if_needed: bool,
) -> Result<u64, StepError> {
    let primary = primary_of(context)?;
    context.call(&primary, Action::Checkpoint(wire::Checkpoint { for_copies: true }), Patience::Forever).await?;
    let source = wire::Peer::from(&context.peer(&primary)?);
    let outcomes = context
        .call_all(members, Patience::Forever, |_| {
            Action::Clone(wire::Clone { source: Some(source.clone()), max_bytes_per_second, wipe_first_if_needed })
        })
        .await;
    Ok(all_or_first_error(outcomes)?.iter().map(|(_, result)| result.bytes_copied).sum())
}

/// Puts the copies in place and starts them as replicas of the primary. The primary is asked first, as for a clone: after a
/// crash of the coordinator this step carries a higher token than the one that the primary has persisted (rule T2).
async fn swap_members(context: &StepContext<'_>, members: &[MemberName], keep_old: bool) -> Result<(), StepError> {
    let primary = primary_of(context)?;
    context.call(&primary, configure(context)?, Patience::Forever).await?;
    let upstream = wire::Peer::from(&context.peer(&primary)?);
    let outcomes = context
        .call_all(members, Patience::Forever, |_| {
            Action::Swap(wire::Swap { upstream: Some(upstream.clone()), keep_old })
        })
        .await;
    all_or_first_error(outcomes).map(|_| ())
}

/// The position that a step reported. One that is missing is not known, and never counts as empty.
fn position_of(member: &MemberName, result: &StepResult) -> Result<Position, StepError> {
    result.position.clone().map(Position::from).ok_or_else(|| {
        StepError::new(Reason::Internal, format!("the agent of {member} did not say where its copy stands"))
    })
}

/// What an agent has to add to a sentence.
fn in_addition(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// Names in a sentence.
fn listed(members: &[MemberName]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
