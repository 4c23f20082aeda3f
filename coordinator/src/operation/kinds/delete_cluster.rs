//! Removes a cluster: every node stops its engine and erases its data, then the record goes.
//!
//! There is no way back from the first step. A node that cannot be reached, or emptied now, is left behind with a tombstone, by
//! which it is emptied later; it can never revive the cluster, whose id is not used again.

use std::time::Duration;

use async_trait::async_trait;
use regent_common::error::Reason;
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::listed;
use crate::{
    model::{
        cluster::{ClusterRecord, Phase},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
};

/// How long a node is waited for before it is left to the tombstone.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(5));
/// How often a node that answers is asked before it is.
const ROUNDS: u32 = 3;
/// Pause between two of these.
const PAUSE: Duration = Duration::from_secs(1);

/// The kind.
pub struct DeleteCluster;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// Leave the data on the nodes.
    pub keep_data: bool,
}

#[async_trait]
impl Kind for DeleteCluster {
    fn name(&self) -> &'static str {
        "delete_cluster"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let all: Vec<_> = cluster.members.keys().cloned().collect();
        vec![PlannedStep::new("release", all).no_return(), PlannedStep::new("remove", [])]
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let Parameters { keep_data } = read(parameters);
        cluster.phase = Phase::Deleting;
        cluster.keep_data_on_delete = keep_data;
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        if step.name != "release" {
            return Ok(StepDone { remove_cluster: true, ..StepDone::default() });
        }
        let cluster = context.cluster()?;
        let (keep_data, give_back) = (cluster.keep_data_on_delete, cluster.adopting);
        let release = Action::Release(wire::Release { keep_data, give_back });
        let (mut left, mut away, mut done) = (step.members.clone(), Vec::new(), StepDone::new());
        for round in 1..=ROUNDS {
            let outcomes = context.call_all(&left, PATIENCE, |_| release.clone()).await;
            left.clear();
            for (member, outcome) in outcomes {
                match outcome {
                    Ok(_) => {}
                    Err(error) if error.reason == Reason::NodeUnreachable => away.push(member),
                    // The node is not in this cluster any more: nothing of it is left there.
                    Err(error) if matches!(error.reason, Reason::WrongCluster | Reason::WrongMember) => {}
                    // Another coordinator goes on with it.
                    Err(error) if matches!(error.reason, Reason::StaleEpoch | Reason::StaleToken) => return Err(error),
                    // One node that cannot be emptied does not keep a cluster that is gone everywhere else.
                    Err(error) if round == ROUNDS => {
                        done = done.say(format!("{member} is not empty yet, and is tried again by itself: {error}"));
                    }
                    Err(_) => left.push(member),
                }
            }
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(if away.is_empty() {
            done
        } else {
            done.say(format!("{} could not be reached: emptied when their nodes return", listed(&away)))
        })
    }

    fn abandon(&self, cluster: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        // Half of the data may be gone: the cluster stays marked as being deleted, and the deletion can be asked for again.
        cluster.phase = Phase::Deleting;
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        false
    }

    fn cancellable(&self) -> bool {
        false
    }

    fn event(&self) -> &'static str {
        "CLUSTER_DELETE"
    }
}
