//! ClusterService: checks requests, answers from what is stored and heard, and begins operations.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use regent_common::{
    error::{Reason, refuse},
    ids::{ClusterId, ClusterName, MemberName, NodeName, Revision},
};
use regent_proto::agent::v1::CheckSettingsRequest;
use regent_proto::coordinator::v1::{
    self as wire, AddMemberRequest, AdoptClusterRequest, Cluster, ComparePairRequest, CreateClusterRequest,
    Credentials, DeleteClusterRequest, FailoverClusterRequest, GetClusterRequest, GetCredentialsRequest,
    ListClustersRequest, ListClustersResponse, Operation, PromoteMemberRequest, RemoveMemberRequest,
    ResyncClusterRequest, SetAllowListRequest, UpdateClusterRequest, cluster_service_server::ClusterService,
};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use tonic::{Request, Response, Status};

use self::changes::Changes;
use super::{
    Api, Repeatable,
    create::{Asker, check},
    failed_change, failed_store,
    idempotency::is_request,
    page,
    situation::Frozen,
    view,
};
use crate::{
    cluster::{
        ClusterHandle,
        actor::ActorHandle,
        adoption,
        judging::{self, judge_all},
    },
    detector::{Judgement, Succession},
    environment::secret_name,
    model::{
        cluster::ClusterRecord,
        operation::{OperationRecord, PlannedStep},
    },
    nodes::{AgentError, NodeView},
    operation::{Kind, executor::NewOperation, kinds, log},
    planner::{
        Cause,
        asked::{Consent, asked},
        pair::{Foreign, foreign},
    },
    secrets::generate_password,
    store::{StoreError, Transaction, keys, list_json},
};

mod adopt;
mod allow_list;
mod changes;
mod copies;
mod members;

/// How long a failover counts as recent.
const RECENT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// The service.
pub struct ClusterApi(pub Arc<Api>);

impl ClusterApi {
    fn find(&self, name: &str) -> Result<(ActorHandle, Arc<ClusterRecord>), Status> {
        let name = ClusterName::from_resource(name).map_err(|e| refuse(Reason::NameInvalid, format!("name: {e}")))?;
        let actor = self.0.directory.get(&name);
        let found = actor.and_then(|actor| actor.cluster.record().map(|record| (actor, record)));
        found.ok_or_else(|| {
            refuse(Reason::ClusterNotFound, format!("there is no cluster {name}: see `regentctl cluster list`"))
        })
    }

    async fn render(&self, actor: &ActorHandle, record: &ClusterRecord) -> Result<Cluster, Status> {
        let environment = self.0.directory.environment();
        let (judgements, succession) = judge_all(environment, record);
        let members = || record.members.values().map(|member| member.node.clone());
        let views: BTreeMap<_, _> = members().map(|node| (node.clone(), environment.agents.view(&node))).collect();
        let mut nodes = BTreeMap::new();
        for node in members() {
            if let Some(stored) = self.0.node_record(&node).await? {
                nodes.insert(node, stored);
            }
        }
        let version = actor.cluster.version().await.unwrap_or_default();
        let now = environment.clock.boottime();
        let clusters = environment.authorities.len();
        Ok(view::cluster(&view::ClusterFacts {
            record,
            version,
            judgements: &judgements,
            succession: &succession,
            views: &views,
            nodes: &nodes,
            now,
            frozen: self.frozen(record, &views).await,
            paused: environment
                .brake
                .holds(clusters, now, &environment.limits)
                .or_else(|| actor.budget.exhausted(now, environment.limits.failovers_of(record))),
            in_vain: actor.backoff.sentences(now),
            wall: environment.clock.wall(),
            own_machine: &environment.own_machine,
        }))
    }

    /// Why nothing is granted and nothing fails over, and who has not reported yet (rule T4).
    async fn frozen(&self, record: &ClusterRecord, views: &BTreeMap<NodeName, NodeView>) -> Option<Frozen> {
        let by_member: BTreeMap<MemberName, NodeView> = record
            .members
            .iter()
            .filter_map(|(member, stored)| Some((member.clone(), views.get(&stored.node)?.clone())))
            .collect();
        // The store is asked only when somebody has a word against it.
        let suspected = by_member.values().any(|view| view.stale_store);
        let revision = if suspected { self.0.directory.environment().revision().await } else { Revision(u64::MAX) };
        let why = adoption::frozen(record, &by_member, revision)?;
        let environment = self.0.directory.environment();
        let recast = adoption::recast(record, &by_member, &environment.agents.members_of(&record.id), revision);
        let missing =
            adoption::reports(record, &recast, &judging::views(environment, &recast)).err().unwrap_or_default();
        Some(Frozen { why, missing })
    }

    /// Asks the first node whether its engine would take the settings.
    async fn check_settings(&self, record: &ClusterRecord) -> Result<(), Status> {
        let Some(first) = record.members.values().next().filter(|_| !record.settings.is_empty()) else {
            return Ok(());
        };
        let wanted = CheckSettingsRequest {
            engine: record.engine.clone(),
            version: record.version.clone(),
            settings: record.settings.clone(),
        };
        let agents = &self.0.directory.environment().agents;
        agents.check_settings(&first.node, wanted).await.map_err(|error| match error {
            AgentError::Refused { reason, message, .. } => refuse(reason, format!("{message}; nothing was changed")),
            AgentError::Unreachable { .. } => refuse(Reason::NodeUnreachable, error.to_string()),
        })
    }

    /// Names of clusters that there are.
    fn taken(&self) -> BTreeSet<ClusterName> {
        self.0.directory.all().iter().map(|actor| actor.cluster.name().clone()).collect()
    }

    /// Who asks for a new cluster, now.
    fn asker(&self, caller: &str) -> Asker {
        let environment = self.0.directory.environment();
        Asker {
            name: caller.to_owned(),
            now: environment.clock.wall(),
            id: ClusterId::generate(),
            profile: environment.default_profile,
        }
    }

    /// Stores a new cluster, with a password for each purpose, together with the operation that makes it. `asked` is the caller, the
    /// method and the request.
    async fn make<M: Repeatable>(
        &self,
        mut record: ClusterRecord,
        purposes: &[&str],
        new: NewOperation,
        asked: (&str, &str, &M),
    ) -> Result<Response<Operation>, Status> {
        let api = &self.0;
        let (caller, rpc, request) = asked;
        for purpose in purposes {
            let password = generate_password();
            let sealed = api.directory.environment().secrets.seal(&secret_name(&record, purpose), &password);
            record.secrets.insert((*purpose).to_owned(), sealed.map_err(|e| Status::internal(e.to_string()))?);
        }
        let transaction = api.remember(Transaction::default(), caller, rpc, request, &new.id);
        let name = record.name.clone();
        let operation = match api.directory.create(record, new, transaction).await {
            Ok(operation) => operation,
            Err(StoreError::Conflict { key }) if is_request(&key) => {
                // The same request arrived twice at once, and the other one was faster.
                let faster = api.repeated(caller, rpc, request).await?;
                return faster.map(Response::new).ok_or_else(|| failed_store(StoreError::Conflict { key }));
            }
            Err(StoreError::Conflict { .. }) => {
                return Err(refuse(
                    Reason::NodeInCluster,
                    "a node or the name was taken by another request just now: look again and retry; nothing was changed",
                ));
            }
            Err(error) => return Err(failed_store(error)),
        };
        let actor = api.directory.get(&name);
        Ok(Response::new(api.render_operation(&operation, actor.as_ref()).await?))
    }

    /// Failovers of the cluster within the last day, oldest first.
    async fn recent_failovers(&self, record: &ClusterRecord) -> Result<Vec<String>, Status> {
        let environment = self.0.directory.environment();
        let since = environment.clock.wall().checked_sub(RECENT).unwrap_or(jiff::Timestamp::MIN);
        let all =
            list_json::<OperationRecord>(environment.store.as_ref(), keys::OPERATIONS).await.map_err(failed_store)?;
        let failover = kinds::failover::Failover.name();
        let recent = all.into_iter().map(|(_, stored)| stored.value).filter(|operation| {
            operation.cluster_id == record.id && operation.kind == failover && operation.created_at >= since
        });
        Ok(recent.map(|operation| operation.id.resource()).collect())
    }

    /// Begins an operation, or answers what it would do.
    async fn begin(
        &self,
        actor: &ActorHandle,
        record: &ClusterRecord,
        new: NewOperation,
        validate_only: bool,
        report: Vec<String>,
        transaction: Transaction,
    ) -> Result<Response<Operation>, Status> {
        if validate_only {
            return Ok(Response::new(dry_run(&new, record.clone(), report)));
        }
        let operation = self.0.directory.begin(actor, new, transaction).await.map_err(failed_change)?;
        Ok(Response::new(self.0.render_operation(&operation, Some(actor)).await?))
    }
}

/// An operation that is only planned: what it would do, step by step.
fn dry_run(new: &NewOperation, mut cluster: ClusterRecord, report: Vec<String>) -> Operation {
    new.kind.begin(&mut cluster, &new.parameters);
    let steps: Vec<PlannedStep> = new.kind.plan(&cluster, &new.parameters);
    let record = OperationRecord {
        id: new.id,
        kind: new.kind.name().to_owned(),
        cluster: cluster.name.clone(),
        cluster_id: cluster.id,
        parameters: new.parameters.clone(),
        created_by: new.created_by.clone(),
        reason: new.reason.clone(),
        created_at: cluster.created_at,
        steps,
    };
    let status = log::Status::new(record.steps.len());
    let planned = view::operation(&record, &status, None);
    Operation { name: String::new(), create_time: None, validate_only: true, report, ..planned }
}

fn confirm(given: &str, wanted: &str) -> Result<(), Status> {
    if given == wanted {
        return Ok(());
    }
    let message =
        format!("this erases data: confirm it with the name {wanted:?} (given: {given:?}); nothing was changed");
    Err(refuse(Reason::ConfirmNameWrong, message))
}

/// What makes a commit fail when the cluster is not as it was when the caller read it, also by a change that comes between this
/// look and the commit. Nothing without an etag.
async fn at_etag(etag: &str, cluster: &ClusterHandle) -> Result<Transaction, Status> {
    if etag.is_empty() {
        return Ok(Transaction::default());
    }
    match cluster.version().await.filter(|version| version.to_string() == etag) {
        Some(version) => Ok(Transaction::default().require_version(keys::cluster(cluster.name()), version)),
        None => {
            let message = "the cluster has changed since it was read: read it again; nothing was changed";
            Err(refuse(Reason::EtagMismatch, message))
        }
    }
}

/// Refuses what is a primary's or a replica's where both sides take writes.
fn not_of_a_pair(record: &ClusterRecord, what: Foreign) -> Result<(), Status> {
    match foreign(record, what) {
        None => Ok(()),
        Some((reason, why)) => {
            let message = format!("this is not done to cluster {}: {why}; nothing was changed", record.name);
            Err(refuse(reason, message))
        }
    }
}

/// An operation that a caller has asked for.
fn asked_for(kind: &'static dyn Kind, parameters: &impl Serialize, caller: &str) -> NewOperation {
    NewOperation::new(kind, parameters, caller, "asked for".to_owned())
}

#[tonic::async_trait]
impl ClusterService for ClusterApi {
    async fn create_cluster(&self, request: Request<CreateClusterRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        let request = request.into_inner();
        let api = &self.0;
        if let Some(operation) = api.repeated(&caller, "CreateCluster", &request).await? {
            return Ok(Response::new(operation));
        }
        let record = check(&request, &api.candidates().await?, &self.taken(), self.asker(&caller))?;
        self.check_settings(&record).await?;
        let new = asked_for(&kinds::create_cluster::CreateCluster, &json!({}), &caller);
        if request.validate_only {
            let nodes = record.members.iter().map(|(member, stored)| format!("{member} on node {}", stored.node));
            let tls = record.tls.then(|| "their ports speak TLS only".to_owned());
            return Ok(Response::new(dry_run(&new, record.clone(), nodes.chain(tls).collect())));
        }
        self.make(record, &["replication", "application"], new, (&caller, "CreateCluster", &request)).await
    }

    async fn adopt_cluster(&self, request: Request<AdoptClusterRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        adopt::adopt(self, &caller, request.into_inner()).await
    }

    async fn get_cluster(&self, request: Request<GetClusterRequest>) -> Result<Response<Cluster>, Status> {
        let (actor, record) = self.find(&request.get_ref().name)?;
        Ok(Response::new(self.render(&actor, &record).await?))
    }

    async fn list_clusters(
        &self,
        request: Request<ListClustersRequest>,
    ) -> Result<Response<ListClustersResponse>, Status> {
        let request = request.into_inner();
        let wanted = |record: &ClusterRecord| request.labels.iter().all(|(k, v)| record.labels.get(k) == Some(v));
        let actors = self.0.directory.all().into_iter();
        let found = actors.filter_map(|actor| actor.cluster.record().filter(|r| wanted(r)).map(|r| (actor, r)));
        let named = found.map(|(actor, record)| (record.name.to_string(), (actor, record)));
        let (rows, next_page_token) = page(named, request.page_size, &request.page_token)?;
        let mut clusters = Vec::new();
        for (actor, record) in rows {
            let mut cluster = self.render(&actor, &record).await?;
            // Many clusters with long lists would be more than one answer takes.
            if let Some(list) = &mut cluster.allow_list {
                list.ranges.clear();
            }
            clusters.push(cluster);
        }
        Ok(Response::new(ListClustersResponse { clusters, next_page_token }))
    }

    async fn update_cluster(&self, request: Request<UpdateClusterRequest>) -> Result<Response<Cluster>, Status> {
        let request = request.into_inner();
        let (actor, stored) = self.find(&request.name)?;
        let unchanged = at_etag(&request.etag, &actor.cluster).await?;
        let changes = Changes::read(&request, &stored)?;
        let record = if request.validate_only {
            let mut changed = (*stored).clone();
            changes.apply(&mut changed)?;
            Arc::new(changed)
        } else {
            let mut refusal = None;
            let change = actor.cluster.change(|record| {
                refusal = changes.apply(record).err();
                Ok(unchanged)
            });
            let changed = change.await.map_err(failed_change)?;
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            changed
        };
        Ok(Response::new(self.render(&actor, &record).await?))
    }

    async fn delete_cluster(&self, request: Request<DeleteClusterRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        let request = request.into_inner();
        if let Some(operation) = self.0.repeated(&caller, "DeleteCluster", &request).await? {
            return Ok(Response::new(operation));
        }
        let (actor, record) = self.find(&request.name)?;
        let unchanged = at_etag(&request.etag, &actor.cluster).await?;
        if record.protected {
            let message = format!("cluster {0} is protected: `regentctl cluster unprotect {0}` first", record.name);
            return Err(refuse(Reason::ClusterProtected, message));
        }
        if !request.validate_only {
            confirm(&request.confirm_name, record.name.as_str())?;
        }
        let fate = if request.keep_data { "its data is kept aside" } else { "its data is erased" };
        let report =
            record.members.iter().map(|(member, stored)| format!("{member} on node {}: {fate}", stored.node)).collect();
        let parameters = kinds::delete_cluster::Parameters { keep_data: request.keep_data };
        let new = asked_for(&kinds::delete_cluster::DeleteCluster, &parameters, &caller);
        let transaction = self.0.remember(unchanged, &caller, "DeleteCluster", &request, &new.id);
        self.begin(&actor, &record, new, request.validate_only, report, transaction).await
    }

    async fn resync_cluster(&self, request: Request<ResyncClusterRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        copies::resync(self, &caller, request.into_inner()).await
    }

    async fn compare_pair(&self, request: Request<ComparePairRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        copies::compare(self, &caller, request.into_inner()).await
    }

    async fn failover_cluster(&self, request: Request<FailoverClusterRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        let request = request.into_inner();
        if let Some(operation) = self.0.repeated(&caller, "FailoverCluster", &request).await? {
            return Ok(Response::new(operation));
        }
        let (actor, record) = self.find(&request.name)?;
        let unchanged = at_etag(&request.etag, &actor.cluster).await?;
        not_of_a_pair(&record, Foreign::Failover)?;
        let environment = self.0.directory.environment();
        let (judgements, succession) = judge_all(environment, &record);
        let off = request.confirm_off.iter().map(|text| member_named(&record, text)).collect::<Result<_, _>>()?;
        let consent = Consent { data_loss: request.accept_data_loss, off };
        let cause = asked(&record, &judgements, &succession, &consent).map_err(|why| {
            let message = format!("cluster {} cannot be failed over: {why}; nothing was changed", record.name);
            refuse(Reason::FailoverRefused, message)
        })?;
        if !request.validate_only && consent != Consent::default() {
            confirm(&request.confirm_name, record.name.as_str())?;
        }
        let report = failover_report(&record, &judgements, &succession, &consent, cause);
        let known = kinds::failover::heard(environment, &record);
        let parameters = kinds::failover::Parameters { cause, known, consent, successor: None, in_place: false };
        let new = asked_for(&kinds::failover::Failover, &parameters, &caller);
        let transaction = self.0.remember(unchanged, &caller, "FailoverCluster", &request, &new.id);
        self.begin(&actor, &record, new, request.validate_only, report, transaction).await
    }

    async fn add_member(&self, request: Request<AddMemberRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        members::add(self, &caller, request.into_inner()).await
    }

    async fn remove_member(&self, request: Request<RemoveMemberRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        members::remove(self, &caller, request.into_inner()).await
    }

    async fn promote_member(&self, request: Request<PromoteMemberRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        members::promote(self, &caller, request.into_inner()).await
    }

    async fn set_allow_list(&self, request: Request<SetAllowListRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        allow_list::set(self, &caller, request.into_inner()).await
    }

    async fn get_credentials(&self, request: Request<GetCredentialsRequest>) -> Result<Response<Credentials>, Status> {
        let (_, record) = self.find(&request.get_ref().name)?;
        let spec = self.0.directory.environment().spec(&record).map_err(|e| Status::internal(e.to_string()))?;
        let Some(password) = spec.secrets.get("application").map(|secret| secret.expose_secret().to_owned()) else {
            let message = format!(
                "cluster {} was adopted: its applications have logins of their own, which Regent does not know, and connect as before",
                record.name
            );
            return Err(refuse(Reason::NoCredentials, message));
        };
        let format = &record.connection;
        let fill = |template: &str, hosts: &str| {
            template
                .replace("{user}", &format.user)
                .replace("{password}", &password)
                .replace("{hosts}", hosts)
                .replace("{database}", &format.database)
        };
        let hosts = |member: &MemberName| {
            let endpoint = record.members.get(member)?.endpoint.as_ref()?;
            Some(format!("{}:{}", endpoint.host, endpoint.port))
        };
        let known: Vec<(String, String)> =
            record.members.keys().filter_map(|m| hosts(m).map(|h| (m.to_string(), h))).collect();
        // Clients of a pair take the first host that answers: one that lacks something, or that lets nobody in, is not named to them.
        let (judgements, _) = judge_all(self.0.directory.environment(), &record);
        let serving = view::serving(&record, &judgements);
        let named = |member: &str| {
            !record.is_pair() || serving.is_empty() || serving.iter().any(|name| name.as_str() == member)
        };
        let all = known.iter().filter(|(member, _)| named(member)).map(|(_, host)| host.as_str());
        let all = all.collect::<Vec<_>>().join(",");
        let mut connection_strings: BTreeMap<String, String> =
            known.iter().map(|(member, host)| (member.clone(), fill(&format.any, host))).collect();
        connection_strings.insert("any".to_owned(), fill(&format.any, &all));
        if !format.primary.is_empty() {
            connection_strings.insert("primary".to_owned(), fill(&format.primary, &all));
        }
        Ok(Response::new(wire::Credentials {
            user: format.user.clone(),
            password,
            database: format.database.clone(),
            connection_strings,
        }))
    }
}

/// What a failover that is only planned would do, as far as it is known before anybody is prepared.
fn failover_report(
    record: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    consent: &Consent,
    cause: Cause,
) -> Vec<String> {
    let mut report: Vec<String> = record
        .may_reign()
        .filter_map(|member| Some(format!("{member}: {}", judgements.get(member)?.reason)))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    report.push(match cause {
        Cause::EngineFailed | Cause::Planned => "what is left of it is fenced first: its agent answers".to_owned(),
        Cause::LeaseOver => {
            format!("a lease may stand for {} ms yet, which is waited for", succession.lease_left.as_millis())
        }
    });
    report.extend(consent.off.iter().map(|member| format!("{member} counts as off, on your word: keep it off")));
    let names = |members: &BTreeSet<MemberName>| members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    report.push(match (succession.reachable.is_empty(), consent.data_loss) {
        (false, _) => format!("the most advanced of {} is promoted", names(&succession.reachable)),
        (true, _) => "the most advanced of the members that are heard is promoted".to_owned(),
    });
    report.push(match succession.known_loss {
        Some(0) => "nothing is known to be lost".to_owned(),
        Some(loss) => format!("{loss} bytes of changes are known to be lost"),
        None => "how much would be lost is not known".to_owned(),
    });
    report
}

/// The member that a name of a member or of its node means.
fn member_named(record: &ClusterRecord, text: &str) -> Result<MemberName, Status> {
    let found = record.members.iter().find(|(name, stored)| {
        name.as_str() == text || stored.node.as_str() == text || text.ends_with(&format!("/{name}"))
    });
    found.map(|(name, _)| name.clone()).ok_or_else(|| {
        let message = format!("{text:?} is neither a member nor a node of cluster {}", record.name);
        refuse(Reason::MemberNotFound, message)
    })
}

#[cfg(test)]
mod tests;
