//! What is merely silent is not dead: nobody is promoted over a primary that may still take writes because its host has no gate,
//! and people are told why. And a cluster without a replica heals on its own data.

use regent_common::error::Reason;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api::{self, request_id},
    cluster::{Fleet, run},
    folder::TestFolder,
    process, wait,
    workload::{checker, now_nanos, postgres, writers::Writers},
};

use crate::support::{CLUSTER, ENGINE, SOON, Trio, refused};

/// Waits until the cluster says why there is no failover, and checks that there was none.
async fn says_why(trio: &Trio, before: &wire::Cluster) -> wire::Cluster {
    let cluster = wait::until("a word on why there is no failover", SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        anyhow::ensure!(!cluster.failover_note.is_empty() && !cluster.reasons.is_empty(), "{:?}", cluster.health());
        Ok(cluster)
    })
    .await
    .unwrap();
    assert_ne!(cluster.health(), wire::Health::Healthy);
    assert_eq!((&cluster.primary, cluster.epoch), (&before.primary, before.epoch), "{}", cluster.failover_note);
    assert!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().is_empty());
    cluster
}

/// Three members, the primary's host of which has no gate.
async fn without_a_gate() -> Trio {
    let mut trio = Trio::start().await;
    let agent = trio.fleet.agent("n1");
    agent.daemon().unwrap().kill().unwrap();
    agent.command("remove-gate").and_then(run).unwrap();
    agent.gate_table.clear();
    agent.configure("", "").unwrap();
    agent.start().unwrap();
    wait::until("a primary that says that it has no gate", SOON, || async {
        let node = trio.api().all_nodes().await?.into_iter().find(|node| api::plain(&node.name) == "n1");
        let fence = node.and_then(|node| node.fence);
        anyhow::ensure!(fence.as_ref().is_some_and(|fence| !fence.timed_gate), "{fence:?}");
        Ok(())
    })
    .await
    .unwrap();
    trio
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_without_a_gate_is_not_replaced_before_its_agent_has_answered() {
    let mut trio = without_a_gate().await;
    let before = trio.healthy().await;
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    trio.fleet.agent("n1").daemon().unwrap().kill().unwrap();
    let told = says_why(&trio, &before).await;
    assert!(told.failover_note.contains("db1"), "it names the member: {}", told.failover_note);
    assert!(told.situation.contains("no gate that closes by itself"), "it names what is missing: {}", told.situation);
    // Clients notice nothing.
    writers.acknowledged(now_nanos(), 200, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&trio.login, &trio.members[0]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.unknown == 0 && account.lost.is_empty() && account.is_consistent(), "{account:?}");

    // Now the engine dies as well, and nobody can say so.
    let pid = api::engine_pid(api::member(&before, "db1").unwrap()).unwrap();
    process::signal(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    process::ended(pid, SOON).await.unwrap();
    says_why(&trio, &before).await;
    // Until the agent is back: it answers a fence, and the cluster has a primary again.
    trio.fleet.agent("n1").start().unwrap();
    let after = trio.healthy().await;
    assert!(after.epoch > before.epoch, "the dead engine's reign has ended");
    assert_eq!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().len(), 1);
    for member in &trio.members {
        assert!(!postgres::read_rows(&trio.login, member).await.unwrap().is_empty());
    }
}

/// Rule P7: a person's word that the node is off takes the place of the agent's answer, and nothing else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_who_has_switched_a_node_off_gets_a_failover() {
    let mut trio = without_a_gate().await;
    let before = trio.healthy().await;
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    let asked = |change: fn(&mut wire::FailoverClusterRequest)| {
        let name = format!("clusters/{CLUSTER}");
        let mut request = wire::FailoverClusterRequest { name, request_id: request_id(), ..Default::default() };
        change(&mut request);
        let mut clusters = trio.fleet.api.clusters();
        async move { clusters.failover_cluster(request).await }
    };
    refused(asked(|_| ()).await, Reason::FailoverRefused);
    trio.fleet.agents.get_mut("n1").unwrap().daemon().unwrap().kill().unwrap();
    let pid = api::engine_pid(api::member(&before, "db1").unwrap()).unwrap();
    process::signal(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    process::ended(pid, SOON).await.unwrap();
    says_why(&trio, &before).await;

    refused(asked(|_| ()).await, Reason::FailoverRefused);
    refused(asked(|request| request.accept_data_loss = true).await, Reason::FailoverRefused);
    refused(asked(|request| request.confirm_off = vec!["n2".to_owned()]).await, Reason::FailoverRefused);
    refused(asked(|request| request.confirm_off = vec!["n9".to_owned()]).await, Reason::MemberNotFound);
    refused(asked(|request| request.confirm_off = vec!["n1".to_owned()]).await, Reason::ConfirmNameWrong);
    let planned = asked(|request| {
        request.confirm_off = vec!["n1".to_owned()];
        request.validate_only = true;
    });
    let planned = planned.await.unwrap().into_inner();
    assert!(planned.report.iter().any(|line| line.contains("db1 counts as off")), "{:?}", planned.report);
    assert_eq!(trio.api().cluster(CLUSTER).await.unwrap().epoch, before.epoch, "nothing has changed by all that");

    let begun = asked(|request| {
        request.confirm_off = vec!["n1".to_owned()];
        request.confirm_name = CLUSTER.to_owned();
    });
    let begun = begun.await.unwrap().into_inner();
    trio.api().succeed(&begun.name, SOON).await.unwrap();
    let after = trio.api().other_primary(CLUSTER, "db1", SOON).await.unwrap();
    assert!(after.epoch > before.epoch);
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    // Switched on again it comes back as a replica.
    trio.fleet.agent("n1").start().unwrap();
    let whole = trio.healthy().await;
    assert_eq!(api::member(&whole, "db1").unwrap().role(), types::Role::Replica);
    let histories = writers.stop().await.unwrap();
    assert_eq!(checker::overlaps(&histories, 0, u64::MAX), [], "two primaries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_heals_on_its_own_data() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1"]).await.unwrap();
    let request = wire::CreateClusterRequest {
        cluster: CLUSTER.to_owned(),
        engine: ENGINE.to_owned(),
        replicas: Some(0),
        request_id: request_id(),
        ..Default::default()
    };
    let cluster = fleet.api.create(request, SOON).await.unwrap();
    assert_eq!(cluster.members.len(), 1);
    let (login, members) = (fleet.api.login(CLUSTER).await.unwrap(), api::endpoints(&cluster).unwrap());
    postgres::create_table(&login, &members[0]).await.unwrap();
    let writers = Writers::start(&folder.join("writers"), &login, &members, false).unwrap();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    let pid = api::engine_pid(&cluster.members[0]).unwrap();
    process::signal(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let killed = now_nanos();
    writers.acknowledged(killed, 100, SOON).await.unwrap();
    let after = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    assert_ne!(api::engine_pid(&after.members[0]).unwrap(), pid);
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&login, &members[0]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.lost.is_empty() && account.is_consistent(), "nothing that was committed is lost: {account:?}");
}
