//! No node that does not offer TLS becomes a member of a cluster whose ports speak it, whoever began the operation.

use regent_common::error::Reason;
use serde_json::json;

use super::{bench, member, node};
use crate::{
    model::cluster::{ClusterRecord, MemberState},
    operation::{
        Kind, executor,
        kinds::{add_member::AddMember, create_cluster::CreateCluster, rejoin::Rejoin, resync::Resync},
        log::{Outcome, Stage},
    },
    store::Transaction,
};

/// Runs an operation on a cluster with TLS, whose nodes do not offer it; the reason of its failure.
async fn failure(kind: &'static dyn Kind, parameters: Option<serde_json::Value>) -> String {
    let mut bench = bench(kind).await;
    bench.parameters = parameters.unwrap_or(bench.parameters);
    let speak = |record: &mut ClusterRecord| {
        record.tls = true;
        Ok(Transaction::default())
    };
    bench.cluster.change(speak).await.unwrap();
    let operation = bench.begin().await;
    let name = kind.name();
    assert_eq!(bench.run(&operation, false).await, Outcome::Failed, "{name}");
    bench.check(Outcome::Failed, name);
    let nodes = bench.world.nodes.lock().unwrap().clone();
    assert!(nodes[&node(4)].member.is_none(), "{name}: {nodes:?}");
    assert!(nodes.values().all(|node| !node.copied), "{name}: {nodes:?}");
    let record = bench.cluster.record();
    assert!(record.is_none_or(|record| !record.members.contains_key(&member(4))), "{name}");
    let status = executor::status(&bench.environment, &operation).await.unwrap();
    match status.stage {
        Stage::Ended(Outcome::Failed, Some(failure)) => {
            assert!(failure.message.contains("[engine.fake.tls]"), "{name}: {}", failure.message);
            failure.reason
        }
        stage => panic!("{name}: {stage:?}"),
    }
}

#[tokio::test]
async fn a_node_that_does_not_offer_it_becomes_no_member() {
    assert_eq!(failure(&CreateCluster, None).await, "NO_TLS");
    assert_eq!(failure(&AddMember, None).await, "NO_TLS");
    let members = json!({ "members": [member(2)], "parallel": 1, "max_bytes_per_second": 0 });
    assert_eq!(failure(&Resync, Some(members)).await, "NO_TLS");
}

#[tokio::test]
async fn a_copy_is_not_erased_because_its_node_has_lost_its_certificate() {
    // The one that examines it, and the one that turns it back.
    for call in [3, 5] {
        let bench = bench(&Rejoin).await;
        *bench.world.fail_call.lock().unwrap() = Some(call);
        *bench.world.fail_reason.lock().unwrap() = Some(Reason::NoTls);
        let operation = bench.begin().await;
        assert_eq!(bench.run(&operation, false).await, Outcome::Failed, "call {call}");
        assert!(!bench.world.nodes.lock().unwrap()[&node(3)].copied, "call {call}");
        assert_eq!(bench.cluster.record().unwrap().members[&member(3)].state, MemberState::NeedsRejoin);
    }
}
