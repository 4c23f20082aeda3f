//! StepService: steps come in, progress and a result go out.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use prost::Message;
use regent_common::{
    allow_list::AllowList,
    chance::{self, Message as Arrived},
    error::bad_field,
    ids::{Epoch, MemberName, OperationId, OperationToken, Revision},
};
use regent_proto::agent::v1::{
    self as wire, CheckAllowListRequest, CheckAllowListResponse, CheckSettingsRequest, CheckSettingsResponse,
    ClientConnections, ExecuteRequest, ExecuteResponse, GetLedgerRequest, GetLedgerResponse, LedgerStep, StepHeader,
    SurveyInstancesRequest, SurveyInstancesResponse, execute_response::Event, step_service_server::StepService,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    access,
    engine::{FoundInstance, SettingChange},
    ledger::{Digest, Header, Ledger, StepKey, StepOutcome},
    node::Node,
    steps::{Action, Execution, StepError, running::Running},
};

/// StepService of a node.
#[derive(Debug, Clone)]
pub struct Steps(pub Arc<Node>);

type Events = Pin<Box<dyn Stream<Item = Result<ExecuteResponse, Status>> + Send>>;

/// Least time between two messages about progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

#[tonic::async_trait]
impl StepService for Steps {
    type ExecuteStream = Events;

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<Events>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        let (header, action) = read(request.into_inner())?;
        match self.deliver(header, action).await.map_err(|error| error.status())? {
            Execution::Answered(outcome) => Ok(Response::new(Box::pin(tokio_stream::once(Ok(result(&outcome)))))),
            Execution::Running(running) => {
                // One message of progress may wait for the caller, and the end behind it.
                let (sender, receiver) = mpsc::channel(2);
                tokio::spawn(follow(running, sender));
                Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
            }
        }
    }

    async fn check_settings(
        &self,
        request: Request<CheckSettingsRequest>,
    ) -> Result<Response<CheckSettingsResponse>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        let asked = request.into_inner();
        let checked = self.0.member.check_settings(&asked.engine, &asked.version, &asked.settings).await;
        checked.map_err(|error| StepError::from(error).status())?;
        Ok(Response::new(CheckSettingsResponse {}))
    }

    async fn survey_instances(
        &self,
        request: Request<SurveyInstancesRequest>,
    ) -> Result<Response<SurveyInstancesResponse>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        let found = self.0.member.survey().await.map_err(|error| StepError::from(error).status())?;
        let instances = found.into_iter().map(|(engine, instance)| found_to_wire(engine, instance)).collect();
        Ok(Response::new(SurveyInstancesResponse { instances }))
    }

    async fn check_allow_list(
        &self,
        request: Request<CheckAllowListRequest>,
    ) -> Result<Response<CheckAllowListResponse>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        let asked = request.into_inner();
        let list = AllowList::parse(asked.allow_list).map_err(|error| bad_field("allow_list", error.to_string()))?;
        let membership = self.0.ledger().read().membership.clone();
        let meant = membership.filter(|membership| membership.cluster_id.to_string() == asked.cluster_id);
        let membership = meant.ok_or_else(|| StepError::NoMember.status())?;
        let cut = self.0.firewall.would_cut(&list, &membership).await;
        let cut = cut.map_err(|error| StepError::from(error).status())?;
        let of_client =
            |(address, connections): (IpAddr, u32)| ClientConnections { address: address.to_string(), connections };
        Ok(Response::new(CheckAllowListResponse { cut: cut.into_iter().map(of_client).collect() }))
    }

    async fn get_ledger(&self, request: Request<GetLedgerRequest>) -> Result<Response<GetLedgerResponse>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        let dirty = self.0.member.driver().is_some_and(|driver| driver.is_dirty());
        Ok(Response::new(ledger_to_wire(&self.0.ledger().read(), dirty)))
    }
}

// === impl Steps ===

impl Steps {
    /// Asks for a step when it is delivered, which in a simulation may be later or twice.
    async fn deliver(&self, header: Header, action: Action) -> Result<Execution, StepError> {
        let executor = &self.0.executor;
        let delivery = chance::delivery(Arrived::Step { member: header.member.as_str(), action: action.name() });
        if let Some(after) = delivery.again {
            let (executor, header, action) = (Arc::clone(executor), header.clone(), action.clone());
            let late = tokio::spawn(async move {
                tokio::time::sleep(after).await;
                executor.execute(header, action).await
            });
            if !delivery.now {
                return late.await.unwrap_or(Err(StepError::Killed { action: "a step that is under way" }));
            }
        }
        executor.execute(header, action).await
    }
}

fn found_to_wire(engine: &str, found: FoundInstance) -> wire::FoundInstance {
    let change = |SettingChange { name, now, then, needs_restart }: SettingChange| wire::SettingChange {
        name,
        now,
        then,
        needs_restart,
    };
    wire::FoundInstance {
        engine: engine.to_owned(),
        version: found.version,
        data_directory: found.data_directory.display().to_string(),
        port: found.port.into(),
        replica: found.replica,
        history: found.history,
        upstream: found.upstream.as_ref().map(Into::into),
        replicas: found.replicas,
        settings: found.settings,
        access_rules: found.access_rules,
        changes: found.changes.into_iter().map(change).collect(),
        problems: found.problems,
        losses: found.losses,
    }
}

/// Sends progress until the end; the caller going away ends only this.
async fn follow(running: Arc<Running>, caller: mpsc::Sender<Result<ExecuteResponse, Status>>) {
    let mut progress = running.progress.clone();
    let mut ended = Box::pin(running.ended());
    let end = loop {
        tokio::select! {
            biased;
            end = &mut ended => break end,
            () = caller.closed() => return,
            // The sender lives as long as the step: an error here is its end, which the first branch brings.
            Ok(()) = progress.changed() => {
                let event = Event::Progress((&*progress.borrow_and_update()).into());
                if caller.send(Ok(ExecuteResponse { event: Some(event) })).await.is_err() {
                    return;
                }
                tokio::select! {
                    end = &mut ended => break end,
                    () = tokio::time::sleep(PROGRESS_PERIOD) => {}
                }
            }
        }
    };
    let last = match end {
        Ok(outcome) => Ok(result(&outcome)),
        Err(error) => Err(error.status()),
    };
    // A caller that went away asks again.
    let _ = caller.send(last).await;
}

fn result(outcome: &StepOutcome) -> ExecuteResponse {
    ExecuteResponse { event: Some(Event::Result(outcome_to_wire(outcome))) }
}

/// Checks a step from the wire, its digest included.
fn read(request: ExecuteRequest) -> Result<(Header, Action), Status> {
    let header = request.header.ok_or_else(|| bad_field("header", "is missing"))?;
    let action = request.action.ok_or_else(|| bad_field("action", "is missing"))?;
    let digest = Digest::of(&action.encode_to_vec());
    if Digest::from_bytes(&header.digest) != Some(digest) {
        return Err(bad_field("header.digest", "is not the SHA-256 of the encoded action"));
    }
    let action = Action::try_from(action).map_err(|error| bad_field("action", error.to_string()))?;
    Ok((read_header(header, digest)?, action))
}

fn read_header(header: StepHeader, digest: Digest) -> Result<Header, Status> {
    let name = |field: &'static str| move |error: regent_common::ids::NameError| bad_field(field, error.to_string());
    if header.step.is_empty() || header.step.len() > 200 {
        return Err(bad_field("header.step", "is a key of 1 to 200 bytes"));
    }
    Ok(Header {
        cluster_id: header.cluster_id.parse().map_err(name("header.cluster_id"))?,
        member: MemberName::from_resource(&header.member).map_err(name("header.member"))?,
        epoch: Epoch(header.epoch),
        token: OperationToken(header.token),
        key: StepKey {
            operation: OperationId::from_resource(&header.operation).map_err(name("header.operation"))?,
            step: header.step,
        },
        digest,
        revision: Revision(header.revision),
    })
}

fn outcome_to_wire(outcome: &StepOutcome) -> wire::StepResult {
    wire::StepResult {
        position: outcome.position.as_ref().map(Into::into),
        endpoint: outcome.endpoint.as_ref().map(Into::into),
        engine_version: outcome.engine_version.clone(),
        bytes_copied: outcome.bytes_copied,
        old_data_kept: outcome.old_data_kept,
        detail: outcome.detail.clone(),
        heard: outcome.heard.iter().map(Into::into).collect(),
        drained: outcome.drained,
        difference: outcome.difference.as_deref().map(Into::into),
        writable_epoch: outcome.writable_epoch.map(|epoch| epoch.0),
    }
}

/// The ledger for people and for recovery.
fn ledger_to_wire(ledger: &Ledger, driver_dirty: bool) -> GetLedgerResponse {
    let steps = ledger
        .operations
        .iter()
        .flat_map(|operation| {
            operation.steps.iter().map(|(key, record)| LedgerStep {
                operation: operation.operation.to_string(),
                step: key.clone(),
                executions: record.executions,
                finished: record.outcome.is_some(),
                action: record.action.clone(),
            })
        })
        .collect();
    let membership = ledger.membership.as_ref();
    GetLedgerResponse {
        cluster_id: membership.map(|m| m.cluster_id.to_string()).unwrap_or_default(),
        cluster: membership.map(|m| m.spec.cluster.to_string()).unwrap_or_default(),
        member: membership.map(|m| m.member.to_string()).unwrap_or_default(),
        epoch: membership.map(|m| m.epoch.0).unwrap_or_default(),
        token: membership.map(|m| m.token.0).unwrap_or_default(),
        revision: ledger.revision.0,
        steps,
        dirty: driver_dirty || membership.is_some_and(|m| m.must_not_start()),
        writable_epoch: membership.and_then(|m| m.writable_epoch).map(|epoch| epoch.0).unwrap_or_default(),
        established: membership.is_some_and(|m| m.established),
        electorate: membership.and_then(|m| m.electorate.as_ref()).map(Into::into),
    }
}
