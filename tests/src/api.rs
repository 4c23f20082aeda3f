//! A client of the coordinator, and the waiting that tests and benches do with it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use regent_common::{
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity},
    transport,
};
use regent_proto::{
    agent::v1::{GetLedgerRequest, GetLedgerResponse, step_service_client::StepServiceClient},
    coordinator::v1::{
        self as wire, audit_service_client::AuditServiceClient, catalog_service_client::CatalogServiceClient,
        cluster_service_client::ClusterServiceClient, event_service_client::EventServiceClient,
        identity_service_client::IdentityServiceClient, node_service_client::NodeServiceClient,
        operation_service_client::OperationServiceClient,
    },
};
use tonic::transport::Channel;
use ulid::Ulid;

use crate::{
    wait,
    workload::{Client, Dialect, Login},
};

/// Clients of all services over one connection.
#[derive(Debug, Clone)]
pub struct Api {
    channel: Channel,
}

/// An id for one change.
pub fn request_id() -> String {
    Ulid::generate().to_string()
}

// === impl Api ===

impl Api {
    /// Connects with the identity in a directory.
    pub async fn connect(address: &str, identity: &Path) -> Result<Self> {
        let identity = ReloadingIdentity::open(&IdentityDirectory::new(identity))?;
        let expected = ExpectedServer::AnyCoordinatorOf(identity.identity().coordinator_id);
        Ok(Self { channel: transport::connect(address, Some(identity), expected).await? })
    }

    /// Connects to the agent of a node.
    pub async fn connect_to_agent(address: &str, identity: &Path, node: &str) -> Result<Self> {
        let identity = ReloadingIdentity::open(&IdentityDirectory::new(identity))?;
        let expected = format!("regent://{}/node/{node}", identity.identity().coordinator_id).parse()?;
        Ok(Self { channel: transport::connect(address, Some(identity), ExpectedServer::Identity(expected)).await? })
    }

    /// ClusterService.
    pub fn clusters(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    /// NodeService.
    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    /// OperationService.
    pub fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }

    /// IdentityService.
    pub fn identities(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel.clone())
    }

    /// CatalogService.
    pub fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel.clone())
    }

    /// AuditService.
    pub fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone())
    }

    /// EventService.
    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    /// The ledger of an agent, when this is a connection to one.
    pub async fn ledger(&self) -> Result<GetLedgerResponse> {
        Ok(StepServiceClient::new(self.channel.clone()).get_ledger(GetLedgerRequest {}).await?.into_inner())
    }

    /// A cluster as it is shown.
    pub async fn cluster(&self, name: &str) -> Result<wire::Cluster> {
        let request = wire::GetClusterRequest { name: format!("clusters/{name}") };
        Ok(self.clusters().get_cluster(request).await?.into_inner())
    }

    /// An operation as it is shown.
    pub async fn operation(&self, name: &str) -> Result<wire::Operation> {
        Ok(self.operations().get_operation(wire::GetOperationRequest { name: name.to_owned() }).await?.into_inner())
    }

    /// All nodes.
    pub async fn all_nodes(&self) -> Result<Vec<wire::Node>> {
        Ok(self.nodes().list_nodes(wire::ListNodesRequest::default()).await?.into_inner().nodes)
    }

    /// Waits for the end of an operation, however it ends. A coordinator that is away for a while is waited for too.
    pub async fn finish(&self, name: &str, deadline: Duration) -> Result<wire::Operation> {
        wait::until(name, deadline, || async {
            let operation = self.operation(name).await?;
            ensure!(operation.done, "{}", describe(&operation));
            Ok(operation)
        })
        .await
    }

    /// Waits for an operation that has to succeed.
    pub async fn succeed(&self, name: &str, deadline: Duration) -> Result<wire::Operation> {
        let operation = self.finish(name, deadline).await?;
        ensure!(operation.state() == wire::OperationState::Succeeded, "{}", describe(&operation));
        Ok(operation)
    }

    /// Creates a cluster on nodes and waits until it is healthy.
    pub async fn create(&self, request: wire::CreateClusterRequest, deadline: Duration) -> Result<wire::Cluster> {
        let name = request.cluster.clone();
        let operation = self.clusters().create_cluster(request).await?.into_inner();
        self.succeed(&operation.name, deadline).await?;
        self.healthy(&name, deadline).await
    }

    /// Adopts running instances as a cluster and waits until it is healthy.
    pub async fn adopt(&self, request: wire::AdoptClusterRequest, deadline: Duration) -> Result<wire::Cluster> {
        let name = request.cluster.clone();
        let operation = self.clusters().adopt_cluster(request).await?.into_inner();
        self.succeed(&operation.name, deadline).await?;
        self.healthy(&name, deadline).await
    }

    /// Waits until a cluster is healthy and at rest, with every replica streaming.
    pub async fn healthy(&self, name: &str, deadline: Duration) -> Result<wire::Cluster> {
        wait::until(&format!("health of cluster {name}"), deadline, || async {
            let cluster = self.cluster(name).await?;
            let members: Vec<_> = cluster
                .members
                .iter()
                .map(|m| format!("{} {:?} {:?} {} {}", m.name, m.role(), m.state(), m.verdict, m.reason))
                .collect();
            ensure!(
                cluster.health() == wire::Health::Healthy && cluster.operation.is_empty(),
                "{:?}, operation {:?}, {:?}, members {members:?}",
                cluster.health(),
                cluster.operation,
                cluster.reasons,
            );
            Ok(cluster)
        })
        .await
    }

    /// Waits until a cluster is healthy, and every replica is in the electorate that its primary has acknowledged: then any of them
    /// can be promoted.
    pub async fn complete(&self, name: &str, deadline: Duration) -> Result<wire::Cluster> {
        wait::until(&format!("the electorate of cluster {name}"), deadline, || async {
            let cluster = self.healthy(name, deadline).await?;
            let electorate = cluster.electorate.clone().unwrap_or_default().members;
            ensure!(
                cluster.electorate_acknowledged && electorate.len() + 1 == cluster.members.len(),
                "{electorate:?}, {}",
                cluster.situation
            );
            Ok(cluster)
        })
        .await
    }

    /// How clients log in to a cluster.
    pub async fn login(&self, name: &str) -> Result<Login> {
        let request = wire::GetCredentialsRequest { name: format!("clusters/{name}") };
        let wire::Credentials { user, password, database, .. } =
            self.clusters().get_credentials(request).await?.into_inner();
        Ok(Login { user, password, database })
    }

    /// How clients speak to a cluster's engine and log in.
    pub async fn client(&self, name: &str) -> Result<Client> {
        let engine = self.cluster(name).await?.engine;
        Ok(Client { dialect: Dialect::of(&engine)?, login: self.login(name).await? })
    }

    /// Operations of a cluster of one kind, newest first.
    pub async fn operations_of(&self, cluster: &str, kind: &str) -> Result<Vec<wire::Operation>> {
        let request = wire::ListOperationsRequest { cluster: format!("clusters/{cluster}"), ..Default::default() };
        let mut found = self.operations().list_operations(request).await?.into_inner().operations;
        found.retain(|operation| operation.kind == kind);
        Ok(found)
    }

    /// Waits until a member other than `old` is the primary and takes writes.
    pub async fn other_primary(&self, cluster: &str, old: &str, deadline: Duration) -> Result<wire::Cluster> {
        wait::until(&format!("a primary of {cluster} other than {old}"), deadline, || async {
            let cluster = self.cluster(cluster).await?;
            if cluster.primary == old || cluster.primary.is_empty() {
                bail!("the primary is {:?}; {:?} {}", cluster.primary, cluster.reasons, cluster.failover_note);
            }
            Ok(cluster)
        })
        .await
    }
}

/// An operation with its steps, for a failed test.
pub fn describe(operation: &wire::Operation) -> String {
    let step = |step: &wire::Step| {
        let progress = step.progress.as_ref().map(|p| format!(" {} {}/{}", p.phase, p.bytes_done, p.bytes_total));
        format!("  {} {} {:?}{} {}", step.name, step.member, step.state(), progress.unwrap_or_default(), step.error)
    };
    let steps: Vec<_> = operation.steps.iter().map(step).collect();
    format!(
        "{} {:?} {} {}\n{}",
        operation.kind,
        operation.state(),
        operation.error_reason,
        operation.error,
        steps.join("\n")
    )
}

/// Plain name of the member in a resource name.
pub fn plain(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The member of a cluster by its plain name.
pub fn member<'a>(cluster: &'a wire::Cluster, name: &str) -> Result<&'a wire::Member> {
    cluster.members.iter().find(|m| plain(&m.name) == plain(name)).with_context(|| format!("no member {name}"))
}

/// host:port of every member's engine, in the cluster's order.
pub fn endpoints(cluster: &wire::Cluster) -> Result<Vec<String>> {
    let endpoint = |m: &wire::Member| {
        let endpoint = m.endpoint.as_ref().with_context(|| format!("{} has no endpoint", m.name))?;
        Ok(format!("{}:{}", endpoint.host, endpoint.port))
    };
    cluster.members.iter().map(endpoint).collect()
}

/// Process id of a member's engine.
pub fn engine_pid(member: &wire::Member) -> Result<u32> {
    let pid = member.observation.as_ref().map_or(0, |seen| seen.pid);
    ensure!(pid != 0, "the engine of {} does not run", member.name);
    Ok(pid)
}
