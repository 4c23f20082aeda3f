//! Makes a cluster: assign the nodes, make the first primary's data, copy it to the replicas.
//!
//! The cluster's record with its members in state Creating is committed together with the operation. Nothing is decided
//! about the cluster by itself before the last step. A failure releases every node again and removes the record; a node
//! that cannot be reached then is emptied when it returns, by the tombstone.
//!
//! A pair has no first primary: both sides are made empty and then follow each other ([`pair`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    error::Reason,
    ids::{Epoch, MemberName},
    topology::Endpoint,
};
use regent_proto::agent::v1::{self as wire, action::Action};
use serde_json::Value;

use super::{all_offer_tls, all_or_first_error, clone_members, configure, listed, pair, swap_members};
use crate::{
    model::{
        cluster::{ClusterRecord, MemberState, Phase},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience},
};

/// How long a node is waited for.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(20));

/// How long the primary may take to acknowledge its first full electorate; it goes on doing so after that.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);

/// The kind.
pub struct CreateCluster;

#[async_trait]
impl Kind for CreateCluster {
    fn name(&self) -> &'static str {
        "create_cluster"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let all: Vec<MemberName> = cluster.members.keys().cloned().collect();
        if cluster.is_pair() {
            let (assign, verify) = (PlannedStep::new("assign", all.clone()), PlannedStep::new("verify", all.clone()));
            return [assign].into_iter().chain(pair::creation(&all)).chain([verify]).collect();
        }
        let first = cluster.candidate.clone();
        let replicas: Vec<_> = all.iter().filter(|member| Some(*member) != first.as_ref()).cloned().collect();
        let mut steps = vec![
            PlannedStep::new("assign", all.clone()),
            PlannedStep::new("initialize", first),
            PlannedStep::new("configure", all.clone()),
        ];
        if !replicas.is_empty() {
            steps.push(PlannedStep::new("clone", replicas.clone()));
            steps.push(PlannedStep::new("swap", replicas));
        }
        steps.push(PlannedStep::new("verify", all));
        steps
    }

    fn begin(&self, cluster: &mut ClusterRecord, _: &Value) {
        cluster.epoch = Epoch(1);
        if let Some(first) = cluster.members.keys().next().filter(|_| !cluster.is_pair()).cloned() {
            cluster.begin_reign(first, BTreeSet::new(), false);
        }
        cluster.phase = Phase::Creating;
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        match step.name.as_str() {
            "assign" => assign(context, &step.members).await,
            "first" | "open" | "follow" | "join" => pair::create(context, step, PATIENCE).await,
            "initialize" => initialize(context, &step.members).await,
            "configure" => {
                let action = configure(context)?;
                all_or_first_error(context.call_all(&step.members, PATIENCE, |_| action.clone()).await)?;
                Ok(StepDone::new())
            }
            "clone" => {
                let bytes = clone_members(context, &step.members, 0, false).await?;
                Ok(StepDone::new().say(format!("copied {bytes} bytes to {}", listed(&step.members))))
            }
            "swap" => {
                swap_members(context, &step.members, false).await?;
                Ok(electing(&step.members))
            }
            _ => verify(context).await,
        }
    }

    async fn undo(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<(), StepError> {
        if step.name != "assign" {
            return Ok(());
        }
        release(context, &step.members, false).await
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        Aftermath::Remove
    }

    fn yields_to_failover(&self) -> bool {
        false
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "CLUSTER_CREATE"
    }
}

/// Makes the nodes members; brings their endpoints.
pub(super) async fn assign(context: &StepContext<'_>, members: &[MemberName]) -> Result<StepDone, StepError> {
    let port = context.cluster()?.port;
    assign_at(context, members, |_| port).await
}

/// Makes the nodes members, each with a port of its own, 0 for the node's own choice; brings their endpoints.
pub(super) async fn assign_at(
    context: &StepContext<'_>,
    members: &[MemberName],
    port: impl Fn(&MemberName) -> u16,
) -> Result<StepDone, StepError> {
    all_offer_tls(context, members)?;
    let spec = wire::ClusterSpec::from(&context.spec()?);
    let action =
        |member: &MemberName| Action::Assign(wire::Assign { spec: Some(spec.clone()), port: port(member).into() });
    let results = all_or_first_error(context.call_all(members, PATIENCE, action).await)?;
    let mut endpoints = BTreeMap::new();
    for (member, result) in results {
        let endpoint = result.endpoint.ok_or(()).and_then(|e| Endpoint::try_from(e).map_err(|_| ()));
        let endpoint = endpoint.map_err(|()| {
            StepError::new(Reason::Internal, format!("the agent of {member} did not say where its engine is reached"))
        })?;
        endpoints.insert(member, endpoint);
    }
    Ok(StepDone::new().change(move |cluster| {
        for (member, endpoint) in &endpoints {
            if let Some(record) = cluster.members.get_mut(member) {
                record.endpoint = Some(endpoint.clone());
            }
        }
    }))
}

/// The replicas stand for election from here on.
pub(super) fn electing(replicas: &[MemberName]) -> StepDone {
    let members: BTreeSet<_> = replicas.iter().cloned().collect();
    StepDone::new().change(move |cluster| {
        if let Some(reign) = &mut cluster.reign {
            reign.set_electorate(members.clone());
        }
    })
}

/// The cluster serves, and decisions about it are made from here on.
pub(super) async fn verify(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    // From here on the loss of a node is survived, so that it has to be true.
    let acknowledged = context.electorate_acknowledged(Some(ACKNOWLEDGED_WITHIN)).await?;
    let now = context.environment().clock.wall();
    let done = StepDone::new();
    let done = if acknowledged {
        done
    } else {
        done.say("the primary has not acknowledged its electorate yet: a failover is possible once it has")
    };
    Ok(done.change(move |cluster| {
        cluster.phase = Phase::Active;
        cluster.adopting = false;
        cluster.ready_at.get_or_insert(now);
        for member in cluster.members.values_mut() {
            member.state = MemberState::Ready;
        }
    }))
}

/// Takes nodes out of a cluster that is not to be: emptied, or with their instances given back as they were found.
pub(super) async fn release(
    context: &StepContext<'_>,
    members: &[MemberName],
    give_back: bool,
) -> Result<(), StepError> {
    let patience = Patience::AtMost(Duration::from_secs(5));
    let release = |_: &_| Action::Release(wire::Release { keep_data: give_back, give_back });
    for (_, outcome) in context.call_all(members, patience, release).await {
        match outcome {
            Err(error) if error.reason == Reason::NodeUnreachable => return Err(error),
            // A refusal means that the node is not in this cluster: nothing to take back there.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

async fn initialize(context: &StepContext<'_>, first: &[MemberName]) -> Result<StepDone, StepError> {
    let [first] = first else {
        return Err(StepError::new(Reason::NoNodes, "there is no node for the first primary"));
    };
    // Members must be known before the data is made: access rules are written with it.
    context.call(first, configure(context)?, PATIENCE).await?;
    context.call(first, Action::Initialize(wire::Initialize {}), PATIENCE).await?;
    let first = first.clone();
    Ok(StepDone::new().say(format!("{first} is the first primary")).change(move |cluster| {
        cluster.crown(first.clone());
        cluster.set_state(&first, MemberState::Ready);
    }))
}
