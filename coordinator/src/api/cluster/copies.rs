//! The verbs on copies of the data: resync them, compare the two of a pair.

use regent_common::{
    error::{bad_field, refuse},
    ids::MemberName,
};
use regent_proto::coordinator::v1::{ComparePairRequest, Operation, ResyncClusterRequest};
use serde_json::json;
use tonic::{Response, Status};

use super::{ClusterApi, asked_for, confirm, member_named, not_of_a_pair};
use crate::{
    cluster::judging::{judge_all, views},
    model::cluster::ClusterRecord,
    operation::kinds,
    planner::{
        pair::{Foreign, incomparable},
        resyncing,
    },
    store::Transaction,
};

pub(super) async fn resync(
    api: &ClusterApi,
    caller: &str,
    request: ResyncClusterRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "ResyncCluster", &request).await? {
        return Ok(Response::new(operation));
    }
    let (actor, record) = api.find(&request.name)?;
    let environment = api.0.directory.environment();
    let (judgements, _) = judge_all(environment, &record);
    let members = resync_members(&request, &record)?;
    let obstacle = |member| resyncing::obstacle(&record, &judgements, member);
    let of_member = members.iter().find_map(|member| obstacle(Some(member)));
    let in_the_way = of_member.or_else(|| obstacle(None).filter(|_| !record.is_pair()));
    if let Some((reason, why)) = in_the_way {
        let message = format!("cluster {} cannot be resynced: {why}; nothing was erased", record.name);
        return Err(refuse(reason, message));
    }
    if !request.validate_only {
        let wanted = match members.as_slice() {
            [one] if !request.members.is_empty() => one.as_str(),
            _ => record.name.as_str(),
        };
        confirm(&request.confirm_name, wanted)?;
    }
    let failovers = api.recent_failovers(&record).await?;
    let report = resyncing::report(&record, &judgements, &views(environment, &record), &members, &failovers);
    let parameters = json!({
        "members": members,
        "parallel": request.parallel.max(1),
        "max_bytes_per_second": request.max_bytes_per_second,
    });
    let new = asked_for(&kinds::resync::Resync, &parameters, caller);
    let transaction = api.0.remember(Transaction::default(), caller, "ResyncCluster", &request, &new.id);
    api.begin(&actor, &record, new, request.validate_only, report, transaction).await
}

pub(super) async fn compare(
    api: &ClusterApi,
    caller: &str,
    request: ComparePairRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "ComparePair", &request).await? {
        return Ok(Response::new(operation));
    }
    let (actor, record) = api.find(&request.name)?;
    let (judgements, _) = judge_all(api.0.directory.environment(), &record);
    if let Some((reason, why)) = incomparable(&record, &judgements) {
        let message = format!("cluster {} cannot be compared: {why}; nothing was changed", record.name);
        return Err(refuse(reason, message));
    }
    let report =
        record.members.iter().map(|(side, stored)| format!("{side} on node {} is read", stored.node)).collect();
    let new = asked_for(&kinds::compare::Compare, &json!({}), caller);
    let transaction = api.0.remember(Transaction::default(), caller, "ComparePair", &request, &new.id);
    api.begin(&actor, &record, new, request.validate_only, report, transaction).await
}

/// The members that are meant; all replicas when none is named. Of a pair it is one side.
fn resync_members(request: &ResyncClusterRequest, record: &ClusterRecord) -> Result<Vec<MemberName>, Status> {
    if request.members.len() != 1 {
        not_of_a_pair(record, Foreign::ResyncAll)?;
    }
    if record.is_pair() && request.max_bytes_per_second > 0 {
        let problem = "a side of a pair takes everything by the engine's own synchronization, which nothing holds back";
        return Err(bad_field("max_bytes_per_second", format!("{problem}; nothing was changed")));
    }
    if request.members.is_empty() {
        return Ok(record.replicas().map(|(member, _)| member.clone()).collect());
    }
    let mut members = Vec::new();
    for text in &request.members {
        let name = member_named(record, text)?;
        if members.contains(&name) {
            return Err(bad_field("members", format!("{name} is named twice")));
        }
        members.push(name);
    }
    Ok(members)
}
