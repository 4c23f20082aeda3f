//! Planned promotions: every member in turn is the primary, under writers, and nothing is lost.

use regent_common::error::Reason;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{api, process, workload::now_nanos};

use crate::support::{CLUSTER, SOON, Trio, refused};

fn request(member: &str) -> wire::PromoteMemberRequest {
    wire::PromoteMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        member: member.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    }
}

/// The processes that an engine's first process has started.
fn children(pid: u32) -> impl Iterator<Item = u32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>().into_iter()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_is_the_primary_once_and_nothing_is_lost() {
    let trio = Trio::start().await;
    everybody_reigns_once(&trio).await;
    let returned = trio.api().operations_of(CLUSTER, "rejoin").await.unwrap();
    let reports: Vec<_> = returned.iter().flat_map(|operation| operation.report.clone()).collect();
    assert!(!reports.iter().any(|line| line.contains("cloned")), "{reports:?}");
    trio.check_logs(&[]);
}

/// Every member of a cluster of any engine is made the primary under writers, and nothing is lost.
pub(crate) async fn everybody_reigns_once(trio: &Trio) {
    let began = now_nanos();
    let writers = trio.write();
    writers.acknowledged(0, 300, SOON).await.unwrap();
    let complete = || async { trio.api().complete(CLUSTER, SOON).await.unwrap() };
    let mut epoch = complete().await.epoch;
    for member in ["db2", "db3", "db1", "db2"] {
        let planned = wire::PromoteMemberRequest { validate_only: true, ..request(member) };
        let planned = trio.api().clusters().promote_member(planned).await.unwrap().into_inner();
        assert!(planned.validate_only && planned.report.iter().any(|line| line.contains(member)), "{planned:?}");
        let operation = trio.api().clusters().promote_member(request(member)).await.unwrap().into_inner();
        trio.api().succeed(&operation.name, SOON).await.unwrap();
        // The former primary comes back by itself.
        let cluster = complete().await;
        assert_eq!(cluster.primary, member);
        assert!(cluster.epoch > epoch);
        epoch = cluster.epoch;
        writers.acknowledged(now_nanos(), 200, SOON).await.unwrap();
    }
    assert_eq!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().len(), 0, "nothing has failed");
    let (_, account) = trio.settle(writers, began).await;
    assert!(account.lost.is_empty(), "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_that_cannot_begin_or_end_changes_nothing() {
    let trio = Trio::start().await;
    let before = trio.healthy().await;
    let ask = |change: fn(&mut wire::PromoteMemberRequest)| {
        let mut asked = request("db2");
        change(&mut asked);
        let mut clusters = trio.fleet.api.clusters();
        async move { clusters.promote_member(asked).await }
    };
    refused(ask(|asked| asked.member = "db1".to_owned()).await, Reason::MemberIsPrimary);
    refused(ask(|asked| asked.member = "n9".to_owned()).await, Reason::MemberNotFound);
    refused(ask(|asked| asked.drain_within_millis = 600_000).await, Reason::InvalidField);
    refused(ask(|asked| asked.etag = "old".to_owned()).await, Reason::EtagMismatch);

    // The successor does not take anything in any more: the drain is taken back, and the primary goes on in the same epoch.
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    let pid = api::engine_pid(api::member(&before, "db2").unwrap()).unwrap();
    let processes = children(pid).chain([pid]).collect::<Vec<_>>();
    for each in &processes {
        process::signal(*each, nix::sys::signal::Signal::SIGSTOP).unwrap();
    }
    let asked = wire::PromoteMemberRequest { drain_within_millis: 500, ..request("db2") };
    let operation = trio.api().clusters().promote_member(asked).await.unwrap().into_inner();
    let ended = trio.api().finish(&operation.name, SOON).await.unwrap();
    for each in &processes {
        process::signal(*each, nix::sys::signal::Signal::SIGCONT).unwrap();
    }
    assert_eq!(ended.state(), wire::OperationState::Failed, "{ended:?}");
    writers.acknowledged(now_nanos(), 200, SOON).await.unwrap();
    let after = trio.healthy().await;
    assert_eq!((after.epoch, after.primary.as_str()), (before.epoch, "db1"));
    assert_eq!(after.members[0].role(), types::Role::Primary);
    writers.stop().await.unwrap();
}
