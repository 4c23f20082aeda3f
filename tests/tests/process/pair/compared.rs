//! Both sides of a pair are compared while they serve: what they do not have alike is told, and left as it is.

use ::redis::{cmd, pipe};
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::api::request_id;

use super::Pair;
use crate::support::{CLUSTER, SOON, refused};

/// Keys that both sides write at once.
const KEYS: usize = 1000;

fn request() -> wire::ComparePairRequest {
    wire::ComparePairRequest { name: format!("clusters/{CLUSTER}"), request_id: request_id(), ..Default::default() }
}

/// The operation once it has ended.
pub(super) async fn compared(pair: &Pair) -> wire::Operation {
    let operation = pair.api().clusters().compare_pair(request()).await.unwrap().into_inner();
    pair.api().finish(&operation.name, SOON).await.unwrap()
}

/// Has both sides write the same keys at once, until some have ended with other values on each.
async fn cross(pair: &Pair) {
    for round in 0..100 {
        let writes = async |side: usize| {
            let mut together = pipe();
            for key in 0..KEYS {
                together.cmd("SET").arg(format!("key:{key}")).arg(format!("{round} of {side}")).ignore();
            }
            together.query_async::<()>(&mut pair.side(side).await).await.unwrap();
        };
        tokio::join!(writes(1), writes(2));
        // What is written last has come to the other side after all that was written before.
        for side in [1, 2] {
            let (key, value) = (format!("end of {side}"), round.to_string());
            pair.set(side, &key, &value).await;
            regent_tests::wait::until("what was written last on the other side", SOON, || async {
                let found: Option<String> = cmd("GET").arg(&key).query_async(&mut pair.side(3 - side).await).await?;
                anyhow::ensure!(found.as_ref() == Some(&value), "{found:?}");
                Ok(())
            })
            .await
            .unwrap();
        }
        if pair.all(1).await.unwrap() != pair.all(2).await.unwrap() {
            return;
        }
    }
    panic!("no two writes crossed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_crossed_are_told_and_made_the_same_on_a_persons_word() {
    let Some(pair) = Pair::start().await else { return };
    pair.set(1, "first", "1").await;
    pair.same().await;
    let alike = compared(&pair).await;
    assert_eq!(alike.state(), wire::OperationState::Succeeded, "{}", alike.error);
    assert_eq!(alike.report, ["db1 and db2 have the same, 1 entry"]);

    cross(&pair).await;
    let before = (pair.healthy().await, pair.all(1).await.unwrap(), pair.all(2).await.unwrap());
    let unlike = compared(&pair).await;
    assert_eq!((unlike.state(), &*unlike.error_reason), (wire::OperationState::Failed, Reason::Diverged.as_str()));
    let differing = before.1.iter().filter(|(key, value)| before.2.get(*key) != Some(value)).count();
    assert!(unlike.error.contains("of both have other values on each"), "{}", unlike.error);
    let number = if differing == 1 { ": 1 entry ".to_owned() } else { format!(": {differing} entries ") };
    assert!(unlike.error.contains(&number), "{differing} keys differ: {}", unlike.error);
    assert!(unlike.error.contains("regentctl cluster resync db db2 --confirm db2"), "{}", unlike.error);
    let after = (pair.healthy().await, pair.all(1).await.unwrap(), pair.all(2).await.unwrap());
    assert_eq!((&after.1, &after.2), (&before.1, &before.2));
    assert_eq!(after.0.serving, before.0.serving);

    pair.resync("db2").await;
    assert_eq!(pair.same().await, before.1);
    pair.healthy().await;
    assert_eq!(compared(&pair).await.state(), wire::OperationState::Succeeded);

    // A dry run says what it would do.
    let planned = wire::ComparePairRequest { validate_only: true, ..request() };
    let planned = pair.api().clusters().compare_pair(planned).await.unwrap().into_inner();
    assert!(planned.validate_only && planned.report[0] == "db1 on node n1 is read", "{planned:?}");
    let unknown = wire::ComparePairRequest { name: "clusters/other".into(), ..request() };
    refused(pair.api().clusters().compare_pair(unknown).await, Reason::ClusterNotFound);
}
