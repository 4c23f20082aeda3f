//! Makes a node a replica of an existing cluster: assign, configure everybody, copy, start.
//!
//! A failure releases the node and takes the member out again; its number is not used again. A failover does not wait for
//! that: a member that is assigned by then stays, and a rejoin copies to it.

use std::time::Duration;

use async_trait::async_trait;
use regent_common::ids::NodeName;
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{clone_members, configure, create_cluster::assign, swap_members};
use crate::{
    model::{
        cluster::{ClusterRecord, MemberRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
};

/// The kind.
pub struct AddMember;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// The node.
    pub node: NodeName,
    /// Most bytes per second for the copy; 0 for no limit.
    #[serde(default)]
    pub max_bytes_per_second: u64,
}

#[async_trait]
impl Kind for AddMember {
    fn name(&self) -> &'static str {
        "add_member"
    }

    fn plan(&self, cluster: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep> {
        let Parameters { node, .. } = read(parameters);
        let member = cluster.member_on(&node).cloned();
        ["assign", "configure", "clone", "swap"].map(|name| PlannedStep::new(name, member.clone())).into()
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let Parameters { node, .. } = read(parameters);
        let name = cluster.take_member_name();
        cluster.members.insert(name, MemberRecord::new(node));
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        match step.name.as_str() {
            "assign" => assign(context, &step.members).await,
            "configure" => {
                let everybody: Vec<_> = context.cluster()?.members.keys().cloned().collect();
                let action = configure(context)?;
                for (member, outcome) in
                    context.call_all(&everybody, Patience::AtMost(Duration::from_secs(10)), |_| action.clone()).await
                {
                    // A replica that is away learns of the new member when it rejoins.
                    if let Err(error) = outcome
                        && (step.members.contains(&member) || context.cluster()?.primary.as_ref() == Some(&member))
                    {
                        return Err(error);
                    }
                }
                Ok(StepDone::new())
            }
            "clone" => {
                let limit = context.parameters::<Parameters>().max_bytes_per_second;
                let bytes = clone_members(context, &step.members, limit, false).await?;
                Ok(StepDone::new().say(format!("copied {bytes} bytes")))
            }
            _ => {
                swap_members(context, &step.members, false).await?;
                let members = step.members.clone();
                Ok(StepDone::new().change(move |cluster| {
                    for member in &members {
                        cluster.set_state(member, MemberState::Ready);
                    }
                }))
            }
        }
    }

    async fn undo(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<(), StepError> {
        if step.name != "assign" {
            return Ok(());
        }
        let release = |_: &_| Action::Release(wire::Release { keep_data: false, give_back: false });
        context.call_all(&step.members, Patience::AtMost(Duration::from_secs(5)), release).await;
        Ok(())
    }

    fn abandon(&self, cluster: &mut ClusterRecord, operation: &OperationRecord, undone: bool, _: &str) -> Aftermath {
        for member in operation.steps.iter().flat_map(|step| &step.members) {
            let assigned = cluster.members.get(member).is_some_and(|record| record.endpoint.is_some());
            if undone || !assigned {
                cluster.members.remove(member);
            } else {
                cluster.set_state(member, MemberState::NeedsRejoin);
            }
        }
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        true
    }

    fn undoes(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "MEMBER_ADD"
    }
}
