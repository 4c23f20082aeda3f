//! Takes running instances under management: asks the nodes' agents what runs there, and begins the operation by what they say.

use std::time::Duration;

use futures::future::join_all;
use regent_common::{
    error::{Reason, refuse},
    ids::NodeName,
};
use regent_proto::coordinator::v1::{AdoptClusterRequest, Operation};
use tonic::{Response, Status};

use super::{ClusterApi, asked_for, dry_run};
use crate::{
    api::adopt::{Adoption, Surveys, Wanted},
    environment::Environment,
    nodes::AgentError,
    operation::kinds::adopt_cluster::AdoptCluster,
};

/// How long an agent may take to say what runs on its node.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

pub(super) async fn adopt(
    api: &ClusterApi,
    caller: &str,
    request: AdoptClusterRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "AdoptCluster", &request).await? {
        return Ok(Response::new(operation));
    }
    let environment = api.0.directory.environment();
    let nodes = api.0.candidates().await?;
    let wanted = Wanted::read(&request, &nodes, &api.taken(), environment.default_profile)?;
    let surveys = survey(environment, wanted.nodes()).await?;
    let Adoption { record, parameters, report } = wanted.check(&nodes, &surveys, api.asker(caller))?;
    api.check_settings(&record).await?;
    let new = asked_for(&AdoptCluster, &parameters, caller);
    if request.validate_only {
        return Ok(Response::new(dry_run(&new, record, report)));
    }
    // Its applications have their logins already.
    api.make(record, &["replication"], new, (caller, "AdoptCluster", &request)).await
}

/// What runs on the nodes.
async fn survey(environment: &Environment, nodes: &[NodeName]) -> Result<Surveys, Status> {
    let answers = nodes.iter().map(|node| async move {
        let answer = tokio::time::timeout(ANSWER_WITHIN, environment.agents.survey_instances(node)).await;
        (node.clone(), answer)
    });
    let mut surveys = Surveys::new();
    for (node, answer) in join_all(answers).await {
        let answer = answer.map_err(|_| {
            let message = format!("the agent of node {node} did not say in time what runs there; nothing was changed");
            refuse(Reason::Deadline, message)
        })?;
        let answer = answer.map_err(|error| match &error {
            AgentError::Refused { reason, .. } => refuse(*reason, format!("{error}; nothing was changed")),
            AgentError::Unreachable { .. } => refuse(Reason::NodeUnreachable, format!("{error}; nothing was changed")),
        })?;
        surveys.insert(node, answer.instances);
    }
    Ok(surveys)
}
