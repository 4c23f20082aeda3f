//! The power of everything fails at once and comes back, in whatever order: one primary, nothing lost, nobody needed.

use std::time::Duration;

use regent_tests::{
    cluster::COORDINATOR,
    scenario::{Who, blackout, write_and_settle},
    workload::now_nanos,
};

use crate::support::{bed, inside};

/// Orders of return: the coordinator first and last, the old primary first, in the middle and last.
const ORDERS: [[Who; 4]; 4] = [
    [Who::Coordinator, Who::Primary, Who::FirstReplica, Who::SecondReplica],
    [Who::Primary, Who::FirstReplica, Who::SecondReplica, Who::Coordinator],
    [Who::Coordinator, Who::SecondReplica, Who::FirstReplica, Who::Primary],
    [Who::FirstReplica, Who::Coordinator, Who::SecondReplica, Who::Primary],
];
/// Between the return of one machine and the next.
const BETWEEN: Duration = Duration::from_secs(1);

#[test]
fn after_a_power_cut_of_everything_there_is_one_primary_and_nothing_is_lost() {
    inside(|| async {
        let mut bed = bed().await;
        for (round, order) in ORDERS.into_iter().enumerate() {
            let name = format!("cut-{round}");
            let ended = blackout(&mut bed, &name, async |fleet, cast| {
                for name in [COORDINATOR, &cast.primary.node, &cast.first.node, &cast.second.node] {
                    fleet.power_off(name)?;
                }
                let off = now_nanos();
                for who in order {
                    tokio::time::sleep(BETWEEN).await;
                    fleet.power_on(cast.machine(who))?;
                }
                Ok(off)
            });
            ended.await.unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
        }
    });
}

#[test]
fn a_single_machine_that_loses_power_comes_back_as_what_it_was() {
    inside(|| async {
        let mut bed = bed().await;
        let cast = bed.cast().await.unwrap();
        let (_, stored) = write_and_settle(&bed, "before").await.unwrap();
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
