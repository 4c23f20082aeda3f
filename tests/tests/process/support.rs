//! What the tests have in common: a fleet with a cluster, and the faults.

use std::time::Duration;

use nix::sys::signal::Signal;
use regent_common::error::{Reason, reason_of};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, Api, request_id},
    cluster::Fleet,
    folder::TestFolder,
    logcheck, process,
    workload::{Login, postgres, writers::Writers},
};
use tonic::Status;

pub(crate) const ENGINE: &str = "postgresql";
pub(crate) const CLUSTER: &str = "db";
/// How long anything may take that a person would wait for.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// A fleet of three nodes with one cluster on them.
pub(crate) struct Trio {
    pub(crate) fleet: Fleet,
    pub(crate) login: Login,
    /// host:port of the engines.
    pub(crate) members: Vec<String>,
    /// Dropped last: it ends what is left in the folder.
    pub(crate) folder: TestFolder,
}

// === impl Trio ===

impl Trio {
    pub(crate) async fn start() -> Self {
        let folder = TestFolder::new().unwrap();
        let fleet = Fleet::start(&folder, &["n1", "n2", "n3"]).await.unwrap();
        let cluster = fleet.create(CLUSTER, ENGINE, &["n1", "n2", "n3"]).await.unwrap();
        assert_eq!(cluster.primary, "db1", "the first node becomes the primary");
        let (login, members) = (fleet.api.login(CLUSTER).await.unwrap(), api::endpoints(&cluster).unwrap());
        postgres::create_table(&login, &members[0]).await.unwrap();
        Self { fleet, login, members, folder }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.fleet.api
    }

    /// Starts the writers: one that follows the primary and one for each member.
    pub(crate) fn write(&self) -> Writers {
        Writers::start(&self.folder.join("writers"), &self.login, &self.members, true).unwrap()
    }

    pub(crate) async fn healthy(&self) -> wire::Cluster {
        self.api().healthy(CLUSTER, SOON).await.unwrap()
    }

    /// SIGKILL for the first process of the primary's engine; the primary's member name and node.
    pub(crate) async fn kill_primary(&self) -> (String, String) {
        let cluster = self.healthy().await;
        let primary = api::member(&cluster, &cluster.primary).unwrap();
        process::signal(api::engine_pid(primary).unwrap(), Signal::SIGKILL).unwrap();
        (cluster.primary.clone(), api::plain(&primary.node).to_owned())
    }

    /// Process ids of all engines, by member in order.
    pub(crate) async fn engine_pids(&self) -> Vec<u32> {
        self.healthy().await.members.iter().map(|member| api::engine_pid(member).unwrap()).collect()
    }

    /// Resyncs members; the operation's name.
    pub(crate) async fn resync(&self, members: &[&str], bytes_per_second: u64) -> String {
        let request = wire::ResyncClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            confirm_name: members.first().map_or(CLUSTER, |only| only).to_owned(),
            max_bytes_per_second: bytes_per_second,
            request_id: request_id(),
            ..Default::default()
        };
        self.api().clusters().resync_cluster(request).await.unwrap().into_inner().name
    }

    /// Fails on a warning that is not expected, and ends.
    pub(crate) fn check_logs(&self, expected: &[&str]) {
        let logs = self.fleet.logs();
        logcheck::check(logs.iter().map(std::path::PathBuf::as_path), expected).unwrap();
    }
}

/// Checks that a call was refused with this reason and code, and that the message tells a person something.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>, reason: Reason) {
    let status = answer.expect_err("it should have been refused");
    assert_eq!(reason_of(&status), Some(reason), "{status:?}");
    assert_eq!(status.code(), reason.code(), "{status:?}");
    assert!(status.message().len() > 10, "{status:?}");
}

pub(crate) fn create(cluster: &str, nodes: &[&str]) -> wire::CreateClusterRequest {
    wire::CreateClusterRequest {
        cluster: cluster.to_owned(),
        engine: ENGINE.to_owned(),
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        request_id: request_id(),
        ..Default::default()
    }
}
