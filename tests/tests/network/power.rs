//! The power of everything fails at once and comes back, in whatever order: one primary, nothing lost, nobody needed.

use std::time::Duration;

use regent_tests::{
    cluster::COORDINATOR,
    scenario::{Bed, Who},
    workload::{checker, now_nanos, postgres, writers::Writers},
};

use crate::support::{SOON, bed, inside};

/// Orders of return: the coordinator first and last, the old primary first, in the middle and last.
const ORDERS: [[Who; 4]; 4] = [
    [Who::Coordinator, Who::Primary, Who::FirstReplica, Who::SecondReplica],
    [Who::Primary, Who::FirstReplica, Who::SecondReplica, Who::Coordinator],
    [Who::Coordinator, Who::SecondReplica, Who::FirstReplica, Who::Primary],
    [Who::FirstReplica, Who::Coordinator, Who::SecondReplica, Who::Primary],
];
/// Between the return of one machine and the next.
const BETWEEN: Duration = Duration::from_secs(1);

/// Writes for a while, and sees to it that every copy has it all before the power goes.
async fn write_and_settle(bed: &Bed, name: &str) -> (Vec<regent_tests::workload::history::History>, checker::Stored) {
    let folder = bed.folder.join("writers").join(name);
    let writers = Writers::start_called("settled-", &folder, &bed.login, &bed.members, true).unwrap();
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let stored = bed.same_on_all().await.unwrap();
    assert!(checker::account(&histories, &stored).lost.is_empty());
    (histories, stored)
}

#[test]
fn after_a_power_cut_of_everything_there_is_one_primary_and_nothing_is_lost() {
    inside(|| async {
        let mut bed = bed().await;
        for (round, order) in ORDERS.into_iter().enumerate() {
            let cast = bed.cast().await.unwrap();
            postgres::create_table(&bed.login, &cast.primary.endpoint).await.unwrap();
            let (histories, stored) = write_and_settle(&bed, &format!("before-{round}")).await;
            // Writers are there throughout: who takes their rows while machines come back is seen.
            let mut writers = Writers::start(
                &bed.folder.join("writers").join(format!("cut-{round}")),
                &bed.login,
                &bed.members,
                true,
            )
            .unwrap();
            for actor in cast.members() {
                writers.add_patient(&format!("patient-{}", actor.node), &actor.endpoint).unwrap();
            }
            writers.acknowledged(0, 20, SOON).await.unwrap();
            for name in [COORDINATOR, &cast.primary.node, &cast.first.node, &cast.second.node] {
                bed.fleet.power_off(name).unwrap();
            }
            let off = now_nanos();
            for who in order {
                tokio::time::sleep(BETWEEN).await;
                bed.fleet.power_on(cast.machine(who)).unwrap();
            }
            bed.fleet.reconnect().await.unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
            bed.fleet.all_connected().await.unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
            let after = bed.healthy().await.unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
            assert!(after.epoch >= cast.epoch, "{order:?}: the epoch went back");
            writers.acknowledged(off, 50, SOON).await.unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
            let during = writers.stop().await.unwrap();
            assert_eq!(checker::overlaps(&during, 0, u64::MAX), [], "{order:?}");
            let now = bed.same_on_all().await.unwrap();
            let missing: Vec<_> = stored.keys().filter(|row| !now.contains_key(*row)).collect();
            assert!(missing.is_empty(), "{order:?}: {} rows that every copy had are gone", missing.len());
            // What was written in the last moment may be lost with the old primary, and nothing after that.
            let all = [histories, during].concat();
            let account = checker::account(&all, &now);
            assert!(account.is_consistent(), "{order:?}: {account:?}");
            for (row, at, member) in checker::acknowledged(&all, &account.lost) {
                let lost_with_it = after.primary != cast.primary.member && member == cast.primary.endpoint;
                assert!(lost_with_it && at < off, "{order:?}: {row:?} of {member} is lost");
            }
        }
    });
}

#[test]
fn a_single_machine_that_loses_power_comes_back_as_what_it_was() {
    inside(|| async {
        let mut bed = bed().await;
        let cast = bed.cast().await.unwrap();
        let (_, stored) = write_and_settle(&bed, "before").await;
        for actor in [&cast.first, &cast.second] {
            bed.fleet.power_off(&actor.node).unwrap();
            bed.fleet.power_on(&actor.node).unwrap();
            bed.fleet.all_connected().await.unwrap();
            let after = bed.healthy().await.unwrap();
            assert_eq!((after.epoch, &after.primary), (cast.epoch, &cast.primary.member), "a replica is no reason");
        }
        assert_eq!(bed.same_on_all().await.unwrap(), stored);
    });
}
