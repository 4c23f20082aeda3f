//! What scenarios happen to: a rig with one cluster of three, on machines of a network of its own.

use anyhow::{Result, ensure};
use regent_proto::coordinator::v1 as wire;

use crate::{
    api,
    cluster::{CREATE, Fleet},
    folder::TestFolder,
    network::Network,
    place::Site,
    process::program,
    profile::Profile,
    scenario::{Cast, Engine, Rig},
    workload::{Client, checker::Stored},
};

/// A rig with a cluster.
#[derive(Debug)]
pub struct Bed<R: Rig = Fleet> {
    /// The daemons.
    pub fleet: R,
    /// How clients speak and log in.
    pub client: Client,
    /// host:port of the engines.
    pub members: Vec<String>,
    /// What the cluster was created with.
    pub profile: Profile,
    /// Dropped last: it ends what is left in the folder.
    pub folder: TestFolder,
}

/// Name of the cluster.
pub const CLUSTER: &str = "db";
/// Names of the nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

// === impl Bed ===

impl Bed {
    /// Starts everything; to be called inside [`crate::network::inside`].
    pub async fn start(engine: Engine, profile: Profile) -> Result<Self> {
        let folder = TestFolder::new()?;
        let site = Site::Network(Network::new(folder.path())?);
        Self::start_at(folder, site, engine, profile).await
    }

    /// Starts everything at a site.
    pub async fn start_at(folder: TestFolder, site: Site, engine: Engine, profile: Profile) -> Result<Self> {
        let fleet = Fleet::start_at(&folder, &NODES, program("regent-coordinator")?, site).await?;
        fleet.create_with(CLUSTER, engine.name(), &NODES, profile).await?;
        Self::new(folder, fleet, profile).await
    }
}

impl<R: Rig> Bed<R> {
    /// A bed of a rig whose cluster was just created.
    pub async fn new(folder: TestFolder, fleet: R, profile: Profile) -> Result<Self> {
        let cluster = fleet.api().healthy(CLUSTER, CREATE).await?;
        let (client, members) = (fleet.api().client(CLUSTER).await?, api::endpoints(&cluster)?);
        ensure!(members.len() == NODES.len(), "{} members", members.len());
        client.make_room(&members[0]).await?;
        Ok(Self { fleet, client, members, profile, folder })
    }

    /// Waits until the cluster is healthy.
    pub async fn healthy(&self) -> Result<wire::Cluster> {
        self.fleet.api().healthy(CLUSTER, CREATE).await
    }

    /// Waits until the cluster is healthy and any replica may be promoted; who plays which part then.
    pub async fn cast(&self) -> Result<Cast> {
        Cast::of(&self.fleet.api().complete(CLUSTER, CREATE).await?, &self.fleet)
    }

    /// The rows of the primary, when every other member has the same.
    pub async fn same_on_all(&self) -> Result<Stored> {
        self.client.same_on_all(&self.members, CREATE).await
    }
}

impl<R: Rig> Drop for Bed<R> {
    #[expect(clippy::print_stderr, reason = "who reads a failed test has to learn why it hangs")]
    fn drop(&mut self) {
        // A daemon that hangs with its disk could not be ended.
        if let Ok(network) = self.fleet.network()
            && let Err(error) = network.thaw_all()
        {
            eprintln!("a disk stays frozen: {error:#}");
        }
    }
}
