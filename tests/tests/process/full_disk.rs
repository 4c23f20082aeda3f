//! A disk that is too small for a clone: said so, by name, and nothing else suffers.
//!
//! Needs root, for a small file system of its own: run `tests/run process` as root.

use std::{path::PathBuf, process::Command};

use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::{Agent, Fleet, run},
    folder::{TestFolder, end_processes_in},
    process::program,
    wait,
    workload::postgres,
};

use crate::support::{CLUSTER, ENGINE, SOON};

/// A small file system, unmounted when it is dropped.
struct SmallDisk(PathBuf);

// === impl SmallDisk ===

impl SmallDisk {
    fn mount(at: PathBuf, mebibytes: u32) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=755"), "regent-test"]).arg(&at);
        run(mount).expect("root may mount a tmpfs: run tests/run process as root");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        end_processes_in(&self.0).unwrap();
        let mut unmount = Command::new("umount");
        unmount.arg(&self.0);
        run(unmount).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_that_does_not_fit_fails_and_hurts_nobody() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let cluster = fleet.create(CLUSTER, ENGINE, &["n1", "n2"]).await.unwrap();
    let (login, members) = (fleet.api.login(CLUSTER).await.unwrap(), api::endpoints(&cluster).unwrap());
    postgres::add_ballast(&login, &members[0], 256).await.unwrap();
    let mut third = Agent::prepare(folder.path(), "n3", program("regent-agent").unwrap()).unwrap();
    let disk = SmallDisk::mount(third.home.join("engines"), 128);
    third.join(&fleet.coordinator.address, &fleet.token(CLUSTER).await.unwrap()).unwrap();
    third.start().unwrap();
    fleet.agents.insert("n3".to_owned(), third);
    let failed = wait::until("the operation that adds the member", SOON * 2, || async {
        let request = wire::ListOperationsRequest { cluster: format!("clusters/{CLUSTER}"), ..Default::default() };
        let operations = fleet.api.operations().list_operations(request).await?.into_inner().operations;
        let failed = operations.iter().find(|operation| operation.done && !operation.error.is_empty());
        failed.cloned().ok_or_else(|| anyhow::anyhow!("{:?}", operations.iter().map(api::describe).collect::<Vec<_>>()))
    })
    .await
    .unwrap();
    assert_eq!(failed.error_reason, Reason::DiskFull.to_string(), "{}", api::describe(&failed));
    // The others serve on, and take writes.
    let now = fleet.api.cluster(CLUSTER).await.unwrap();
    assert_eq!(now.primary, cluster.primary);
    postgres::create_table(&login, &members[0]).await.unwrap();
    fleet.agent("n3").daemon().unwrap().stop().await.unwrap();
    drop(disk);
}
