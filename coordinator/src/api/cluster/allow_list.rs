//! Which addresses reach the engines of a cluster: checks the change, and says whose connections it would cut.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use regent_common::{
    allow_list::AllowList,
    error::{Reason, bad_field, refuse},
    ids::NodeName,
};
use regent_proto::{
    agent::v1::CheckAllowListRequest,
    coordinator::v1::{AllowListChange, Operation, SetAllowListRequest},
};
use tonic::{Response, Status};

use super::{ClusterApi, asked_for, at_etag};
use crate::{
    environment::Environment,
    model::cluster::ClusterRecord,
    nodes::AllowListAbility,
    operation::kinds::set_allow_list::{Change, ChangeError, Parameters, SetAllowList, without_effect},
};

/// How long an agent may take to say whose connections would be cut.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn set(
    api: &ClusterApi,
    caller: &str,
    request: SetAllowListRequest,
) -> Result<Response<Operation>, Status> {
    if let Some(operation) = api.0.repeated(caller, "SetAllowList", &request).await? {
        return Ok(Response::new(operation));
    }
    let parameters = read(&request)?;
    let (actor, record) = api.find(&request.name)?;
    let unchanged = at_etag(&request.etag, &actor.cluster).await?;
    let list = parameters.applied(&record.allow_list).map_err(|error| match error {
        ChangeError::List(error) => bad_field("ranges", format!("{error}; nothing was changed")),
        ChangeError::OpensToAll => bad_field("open_to_all", format!("{error}; nothing was changed")),
    })?;
    let environment = api.0.directory.environment();
    if !list.is_empty() {
        for (member, stored) in &record.members {
            possible_on(environment, &stored.node).map_err(|why| {
                let message = format!("cluster {} can have no allow-list, because of {member}: {why}", record.name);
                refuse(Reason::AllowListImpossible, format!("{message}; nothing was changed"))
            })?;
        }
    }
    let report =
        if request.validate_only { report(environment, &record, &parameters, &list).await } else { Vec::new() };
    let new = asked_for(&SetAllowList, &parameters, caller);
    let transaction = api.0.remember(unchanged, caller, "SetAllowList", &request, &new.id);
    api.begin(&actor, &record, new, request.validate_only, report, transaction).await
}

fn read(request: &SetAllowListRequest) -> Result<Parameters, Status> {
    let change = match AllowListChange::try_from(request.change) {
        Ok(AllowListChange::Set) => Change::Set,
        Ok(AllowListChange::Add) => Change::Add,
        Ok(AllowListChange::Remove) => Change::Remove,
        Ok(AllowListChange::Unspecified) => return Err(bad_field("change", "is not set; nothing was changed")),
        Err(_) => return Err(bad_field("change", format!("{} is not known here", request.change))),
    };
    let ranges = AllowList::parse(&request.ranges)
        .map_err(|error| bad_field("ranges", format!("{error}; nothing was changed")))?;
    if ranges.is_empty() && change != Change::Set {
        return Err(bad_field("ranges", "none is named; nothing was changed"));
    }
    Ok(Parameters { change, ranges, open_to_all: request.open_to_all })
}

/// Whether a list can be in force on a member's node, or why not. Of a node that was not heard nothing is known: it says so itself
/// when it returns.
pub(super) fn possible_on(environment: &Environment, node: &NodeName) -> Result<(), String> {
    match environment.agents.view(node).allow_list {
        AllowListAbility::Unknown | AllowListAbility::Able => Ok(()),
        AllowListAbility::Unable(why) => Err(format!("node {node}: {why}")),
    }
}

/// What a change would do, with whose connections it would cut.
async fn report(
    environment: &Environment,
    record: &ClusterRecord,
    parameters: &Parameters,
    list: &AllowList,
) -> Vec<String> {
    let mut report = without_effect(parameters, &record.allow_list);
    report.push(match (list == &record.allow_list, list.len()) {
        (true, _) => "the list stays as it is".to_owned(),
        (false, 0) => "the list becomes empty".to_owned(),
        (false, 1) => "the list becomes 1 address or range".to_owned(),
        (false, many) => format!("the list becomes {many} addresses and ranges"),
    });
    if record.allow_list.is_empty() && !list.is_empty() {
        report.push("until now everybody was let in: whoever is not on the list is kept out then".to_owned());
    }
    report.extend(list.remarks());
    let ranges: Vec<String> = list.networks().map(|network| network.to_string()).collect();
    let asked = CheckAllowListRequest { cluster_id: record.id.to_string(), allow_list: ranges };
    let answers = join_all(record.members.iter().map(|(member, stored)| {
        let asked = asked.clone();
        async move {
            let answer = environment.agents.check_allow_list(&stored.node, asked);
            (member, tokio::time::timeout(ANSWER_WITHIN, answer).await)
        }
    }))
    .await;
    let mut nobody = true;
    for (member, answer) in answers {
        match answer {
            Ok(Ok(answer)) => {
                let clients: BTreeMap<_, _> =
                    answer.cut.into_iter().map(|client| (client.address, client.connections)).collect();
                nobody &= clients.is_empty();
                report.extend(clients.into_iter().map(|(address, count)| match count {
                    1 => format!("{member}: 1 connection of {address} would be cut"),
                    count => format!("{member}: {count} connections of {address} would be cut"),
                }));
            }
            Ok(Err(error)) => {
                nobody = false;
                report.push(format!(
                    "{member} does not say whose connections it would cut: {error}; it gets the list when it returns"
                ));
            }
            Err(_) => {
                nobody = false;
                report.push(format!("{member} did not say in time whose connections it would cut"));
            }
        }
    }
    if nobody {
        report.push("no connection would be cut".to_owned());
    }
    report
}
