//! The verbs on single members: add, remove, promote.

use std::collections::BTreeMap;

use regent_common::error::{Reason, bad_field, refuse};
use regent_proto::coordinator::v1::{AddMemberRequest, Operation, PromoteMemberRequest, RemoveMemberRequest};
use tonic::{Response, Status};

use super::{ClusterApi, allow_list::possible_on, asked_for, at_etag, confirm, member_named, not_of_a_pair};
use crate::{
    api::{create, failed_store},
    cluster::judging::{judge_all, views},
    model::{cluster::Phase, node::NodeRecord},
    operation::kinds::{add_member, failover, promote as promotion, remove_member},
    planner::{Cause, asked::Consent, pair::Foreign, planned, removal},
    store::{get_json, keys},
};

/// How long handing over may take before it is taken back, in milliseconds: when nothing is said, and at most.
const DRAIN_WITHIN_MILLIS: (u64, u64) = (5_000, 60_000);

pub(super) async fn add(
    api: &ClusterApi,
    caller: &str,
    request: AddMemberRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "AddMember", &request).await? {
        return Ok(Response::new(operation));
    }
    let (actor, record) = api.find(&request.name)?;
    let mut transaction = at_etag(&request.etag, &actor.cluster).await?;
    not_of_a_pair(&record, Foreign::Add)?;
    let Some(primary) = record.primary.as_ref().filter(|_| record.phase == Phase::Active) else {
        let message = format!("cluster {} has no primary to copy from; nothing was changed", record.name);
        return Err(refuse(Reason::ClusterHasNoPrimary, message));
    };
    let nodes = api.0.candidates().await?;
    let node = create::added(&record, &request.node, &nodes)?;
    if !record.allow_list.is_empty() {
        possible_on(api.0.directory.environment(), &node).map_err(|why| {
            let message = format!("cluster {} has an allow-list, which cannot be in force on {why}", record.name);
            refuse(Reason::AllowListImpossible, format!("{message}; nothing was changed"))
        })?;
    }
    let (judgements, _) = judge_all(api.0.directory.environment(), &record);
    let mut report = vec![
        format!("node {node} becomes a replica: {}", record.name.member(record.next_number)),
        format!("it is copied from {primary}, follows it, and may be promoted once it has caught up"),
    ];
    let ill = judgements.iter().filter(|(_, judgement)| !judgement.reason.is_empty());
    report.extend(ill.map(|(member, judgement)| format!("{member}: {}", judgement.reason)));
    // A token's word that the node is to join is kept by this.
    let (store, key) = (api.0.directory.environment().store.as_ref(), keys::node(&node));
    let known = get_json::<NodeRecord>(store, &key).await.map_err(failed_store)?;
    if let Some(asked) = known.filter(|known| known.value.join_cluster.is_some()) {
        let node = NodeRecord { join_cluster: None, ..asked.value };
        transaction = transaction.require_version(key.clone(), asked.version).put_json(key, &node);
    }
    let parameters = add_member::Parameters { node, max_bytes_per_second: request.max_bytes_per_second };
    let new = asked_for(&add_member::AddMember, &parameters, caller);
    let transaction = api.0.remember(transaction, caller, "AddMember", &request, &new.id);
    api.begin(&actor, &record, new, request.validate_only, report, transaction).await
}

pub(super) async fn remove(
    api: &ClusterApi,
    caller: &str,
    request: RemoveMemberRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "RemoveMember", &request).await? {
        return Ok(Response::new(operation));
    }
    let (actor, record) = api.find(&request.name)?;
    let unchanged = at_etag(&request.etag, &actor.cluster).await?;
    let environment = api.0.directory.environment();
    let (judgements, _) = judge_all(environment, &record);
    let member = member_named(&record, &request.member)?;
    // What a dry run is for is to see what would be left.
    let allow_single = request.allow_single || request.validate_only;
    if let Some((reason, why)) = removal::obstacle(&record, &judgements, &member, allow_single) {
        let message = format!("{member} of cluster {} cannot be removed: {why}; nothing was changed", record.name);
        return Err(refuse(reason, message));
    }
    if !request.validate_only {
        confirm(&request.confirm_name, member.as_str())?;
    }
    let report = removal::report(&record, &judgements, &views(environment, &record), &member, request.keep_data);
    let (keep_data, allow_single) = (request.keep_data, request.allow_single);
    let parameters = remove_member::Parameters { member, keep_data, allow_single };
    let new = asked_for(&remove_member::RemoveMember, &parameters, caller);
    let transaction = api.0.remember(unchanged, caller, "RemoveMember", &request, &new.id);
    api.begin(&actor, &record, new, request.validate_only, report, transaction).await
}

pub(super) async fn promote(
    api: &ClusterApi,
    caller: &str,
    request: PromoteMemberRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "PromoteMember", &request).await? {
        return Ok(Response::new(operation));
    }
    let (actor, record) = api.find(&request.name)?;
    let unchanged = at_etag(&request.etag, &actor.cluster).await?;
    let drain_within_millis = match request.drain_within_millis {
        0 => DRAIN_WITHIN_MILLIS.0,
        within if within <= DRAIN_WITHIN_MILLIS.1 => within,
        within => {
            let problem =
                format!("is {within}, and applications are not kept out for more than {}", DRAIN_WITHIN_MILLIS.1);
            return Err(bad_field("drain_within_millis", problem));
        }
    };
    let environment = api.0.directory.environment();
    let (judgements, succession) = judge_all(environment, &record);
    let member = member_named(&record, &request.member)?;
    if let Some((reason, why)) = planned::obstacle(&record, &judgements, &succession, &member) {
        let message = format!("{member} of cluster {} cannot be promoted: {why}; nothing was changed", record.name);
        return Err(refuse(reason, message));
    }
    let report = planned::report(&record, &views(environment, &record), &member, drain_within_millis);
    let failover = failover::Parameters {
        cause: Cause::Planned,
        known: BTreeMap::new(),
        consent: Consent::default(),
        successor: Some(member.clone()),
        in_place: false,
    };
    let parameters = promotion::Parameters { failover, member, drain_within_millis };
    let new = asked_for(&promotion::Promote, &parameters, caller);
    let transaction = api.0.remember(unchanged, caller, "PromoteMember", &request, &new.id);
    api.begin(&actor, &record, new, request.validate_only, report, transaction).await
}
