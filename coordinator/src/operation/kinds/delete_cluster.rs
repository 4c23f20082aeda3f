//! Removes a cluster: every node stops its engine and erases its data, then the record goes.
//!
//! There is no way back from the first step. A node that cannot be reached is left behind with a tombstone, by which it is
//! emptied when it returns; it can never revive the cluster, whose id is not used again.

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
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience},
};

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
        let parameters: Parameters =
            serde_json::from_value(parameters.clone()).expect("parameters were written by this kind");
        cluster.phase = Phase::Deleting;
        cluster.keep_data_on_delete = parameters.keep_data;
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        if step.name != "release" {
            return Ok(StepDone { remove_cluster: true, ..StepDone::default() });
        }
        let keep_data = context.cluster()?.keep_data_on_delete;
        let outcomes = context
            .call_all(&step.members, Patience::AtMost(Duration::from_secs(5)), |_| {
                Action::Release(wire::Release { keep_data })
            })
            .await;
        let mut away = Vec::new();
        for (member, outcome) in outcomes {
            match outcome {
                Ok(_) => {}
                Err(error) if error.reason == Reason::NodeUnreachable => away.push(member),
                // The node is not in this cluster any more: nothing of it is left there.
                Err(error) if matches!(error.reason, Reason::WrongCluster | Reason::WrongMember) => {}
                Err(error) => return Err(error),
            }
        }
        let done = StepDone::new();
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
