//! Takes running instances under management as a cluster, without stopping them: assign the nodes, write their configuration, take
//! over the primary, then its replicas.
//!
//! The cluster's record with its members in state Creating is committed together with the operation. Nothing is decided about the
//! cluster by itself before the last step. A failure gives every instance back as it was found and removes the record; a node that
//! cannot be reached then gives its own back when it returns, by the tombstone.
//!
//! **Invariants:** no instance is stopped, neither by going on nor by going back; a replica is taken over only after its primary.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use regent_common::{error::Reason, ids::MemberName};
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    all_or_first_error, configure,
    create_cluster::{self, assign_at, electing, release, verify},
    listed, primary_of,
};
use crate::{
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience},
};

/// How long a node is waited for. Meanwhile every instance serves as it did before.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(20));

/// How long it may take until what runs is seen to run: some looks, and the heartbeats that bring them.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// The kind.
pub struct AdoptCluster;

/// What is adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// The instance of each member.
    pub instances: BTreeMap<MemberName, Instance>,
    /// What a person has to know of it afterwards, a sentence each.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// An instance that runs on a member's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Port on which it listens, and goes on listening.
    pub port: u16,
    /// Folder of its data.
    pub data_directory: String,
}

#[async_trait]
impl Kind for AdoptCluster {
    fn name(&self) -> &'static str {
        "adopt_cluster"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let all: Vec<MemberName> = cluster.members.keys().cloned().collect();
        let first = cluster.candidate.clone();
        let replicas: Vec<_> = all.iter().filter(|member| Some(*member) != first.as_ref()).cloned().collect();
        let mut steps = vec![
            PlannedStep::new("assign", all.clone()),
            PlannedStep::new("configure", all.clone()),
            PlannedStep::new("adopt", first),
        ];
        if !replicas.is_empty() {
            steps.push(PlannedStep::new("adopt_replicas", replicas));
        }
        steps.push(PlannedStep::new("verify", all));
        steps
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        create_cluster::CreateCluster.begin(cluster, parameters);
        cluster.adopting = true;
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        match step.name.as_str() {
            "assign" => {
                let Parameters { instances, .. } = context.parameters();
                let port = |member: &MemberName| instances.get(member).map_or(0, |instance| instance.port);
                assign_at(context, &step.members, port).await
            }
            "configure" => {
                let action = configure(context)?;
                all_or_first_error(context.call_all(&step.members, PATIENCE, |_| action.clone()).await)?;
                Ok(StepDone::new())
            }
            "adopt" => adopt(context, &step.members).await,
            "adopt_replicas" => adopt_replicas(context, &step.members).await,
            _ => {
                context.seen_running(&step.members, SEEN_WITHIN).await?;
                let Parameters { remarks, .. } = context.parameters();
                Ok(remarks.into_iter().fold(verify(context).await?, StepDone::say))
            }
        }
    }

    async fn undo(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<(), StepError> {
        if step.name != "assign" {
            return Ok(());
        }
        // Replicas first: what they stream from goes with the primary.
        let cluster = context.cluster()?;
        let primary = cluster.reign.as_ref().map(|reign| &reign.primary);
        let (first, replicas): (Vec<_>, Vec<_>) =
            step.members.iter().cloned().partition(|member| Some(member) == primary);
        let given_back = release(context, &replicas, true).await;
        release(context, &first, true).await.and(given_back)
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
        "CLUSTER_ADOPT"
    }
}

/// What takes a member's instance over.
fn action(parameters: &Parameters, member: &MemberName, upstream: Option<wire::Peer>) -> Action {
    let instance = parameters.instances.get(member);
    let data_directory = instance.map(|instance| instance.data_directory.clone()).unwrap_or_default();
    Action::Adopt(wire::Adopt { data_directory, upstream })
}

async fn adopt(context: &StepContext<'_>, first: &[MemberName]) -> Result<StepDone, StepError> {
    let [first] = first else {
        return Err(StepError::new(Reason::NoNodes, "there is no node with the primary"));
    };
    context.call(first, action(&context.parameters(), first, None), PATIENCE).await?;
    let first = first.clone();
    Ok(StepDone::new().say(format!("{first} was taken over as the primary, and was not stopped")).change(
        move |cluster| {
            cluster.crown(first.clone());
            cluster.set_state(&first, MemberState::Ready);
        },
    ))
}

/// Takes the replicas over, each as a replica of the primary. The primary is asked first: after a crash of the coordinator this step
/// carries a higher token than the one that the primary has persisted (rule T2).
async fn adopt_replicas(context: &StepContext<'_>, replicas: &[MemberName]) -> Result<StepDone, StepError> {
    let primary = primary_of(context)?;
    context.call(&primary, configure(context)?, PATIENCE).await?;
    let upstream = wire::Peer::from(&context.peer(&primary)?);
    let parameters: Parameters = context.parameters();
    let adopt = |member: &MemberName| action(&parameters, member, Some(upstream.clone()));
    all_or_first_error(context.call_all(replicas, PATIENCE, adopt).await)?;
    let sentence = match replicas {
        [one] => format!("{one} was taken over as a replica, and was not stopped"),
        many => format!("{} were taken over as replicas, and were not stopped", listed(many)),
    };
    Ok(electing(replicas).say(sentence))
}
