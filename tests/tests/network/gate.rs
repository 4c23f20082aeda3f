//! The kernel's gate: what leaves a primary whose lease has ended is nothing, whoever runs, sleeps or is dead on its machine,
//! and whatever was under way.
//!
//! A client sends a whole transaction as one message, which commits in the engine long after the lease has ended. Its agent is
//! stopped meanwhile, so that no process of Regent can prevent the acknowledgement: the gate has to, and the sockets must be
//! gone before the gate opens for another epoch or role.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use regent_tests::{
    cluster::{Agent, run},
    place::Place,
    process,
    scenario::{Bed, CLUSTER, Cast},
    wait,
    workload::{checker, history::Outcome, now_nanos, postgres, writers::Writers},
};

use crate::support::{PROFILE, SOON, bed, inside, place};

/// The commit comes so long after the lease's end that no slack of anybody's explains an acknowledgement.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// How long after everything is well an acknowledgement is still looked for: it would be sent again within this time.
const STILL: Duration = Duration::from_secs(3);
/// Clients of the transactions, by the names of their writers.
const COMMITS: [&str; 3] = ["commit-client", "commit-replica-host", "commit-own-loopback"];

/// Sends a transaction from each place from which a client can, and waits until the engine works on all.
async fn begin_commits(bed: &Bed, cast: &Cast, writers: &mut Writers) {
    let wait = PROFILE.ttl() + COMMIT_AFTER;
    let (_, port) = cast.primary.endpoint.rsplit_once(':').unwrap();
    let own = format!("127.0.0.1:{port}");
    let places = [
        (Place::Loopback, cast.primary.endpoint.as_str()),
        (place(bed, &cast.first.node), cast.primary.endpoint.as_str()),
        (place(bed, &cast.primary.node), own.as_str()),
    ];
    for (name, (place, member)) in COMMITS.iter().zip(&places) {
        writers.add_commit(name, member, wait, place).unwrap();
    }
    let (client, _) = postgres::connect(&bed.client.login, &cast.primary.endpoint).await.unwrap();
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait::until("transactions that wait in the engine", SOON, || async {
        let count: i64 = client.query_one(asleep, &[]).await?.get(0);
        ensure!(usize::try_from(count)? == COMMITS.len(), "{count}");
        Ok(())
    })
    .await
    .unwrap();
}

/// None of the transactions was acknowledged.
fn none_acknowledged(writers: &Writers, when: &str) {
    for name in COMMITS {
        let history = writers.of(name).unwrap();
        let answered = history.attempts.iter().find(|a| matches!(a.outcome, Outcome::Acknowledged(..)));
        assert!(answered.is_none(), "{name} was told of a commit {when}: {answered:?}");
    }
}

/// A tool of the system on a node's machine.
fn on(bed: &Bed, node: &str, words: &[&str]) -> Result<String> {
    let mut command = place(bed, node).command(words[0].as_ref())?;
    command.args(&words[1..]);
    run(command)
}

fn agent<'a>(bed: &'a mut Bed, cast: &Cast) -> &'a mut Agent {
    bed.fleet.agent(&cast.primary.node)
}

/// What is done to the rules of the primary's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Never,
    /// While the agent runs: it has to notice.
    BeforeTheStop,
    /// While it cannot notice: the table must not go.
    WhileStopped,
}

/// Rules of nftables on a machine.
fn rules(bed: &Bed, node: &str) -> String {
    on(bed, node, &["nft", "list", "ruleset"]).unwrap()
}

async fn a_late_commit_is_never_acknowledged(flush: Flush) {
    let mut bed = bed().await;
    let cast = bed.cast().await.unwrap();
    let node = cast.primary.node.clone();
    let mut writers = Writers::start(&bed.folder.join("writers"), &bed.client, &bed.members, true).unwrap();
    writers.add_patient("patient", &cast.primary.endpoint).unwrap();
    writers.acknowledged(0, 50, SOON).await.unwrap();
    assert!(!rules(&bed, &node).is_empty(), "the primary's machine has a gate");
    if flush == Flush::BeforeTheStop {
        on(&bed, &node, &["nft", "flush", "ruleset"]).unwrap();
        wait::until("the gate, installed again", SOON, || async {
            ensure!(!rules(&bed, &node).is_empty(), "no rules");
            Ok(())
        })
        .await
        .unwrap();
        bed.healthy().await.unwrap();
    }
    begin_commits(&bed, &cast, &mut writers).await;
    agent(&mut bed, &cast).daemon().unwrap().signal(Signal::SIGSTOP).unwrap();
    let stopped = now_nanos();
    if flush == Flush::WhileStopped {
        // Refused or without effect, where the table has an owner.
        drop(on(&bed, &node, &["nft", "flush", "ruleset"]));
        assert!(!rules(&bed, &node).is_empty(), "the gate is gone while its agent could not see it");
    }
    writers.acknowledged_except(&cast.primary.endpoint, stopped, 50, SOON).await.unwrap();
    // The engine has committed by now, or was ended.
    let late = PROFILE.ttl() + COMMIT_AFTER + STILL;
    wait::until("the time after every commit", SOON, || async {
        ensure!(Duration::from_nanos(now_nanos() - stopped) > late, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    none_acknowledged(&writers, "after the lease's end");

    // The gate opens again, in another role.
    agent(&mut bed, &cast).daemon().unwrap().signal(Signal::SIGCONT).unwrap();
    bed.fleet.all_connected().await.unwrap();
    let after = bed.healthy().await.unwrap();
    assert_ne!(after.primary, cast.primary.member);
    tokio::time::sleep(STILL).await;
    none_acknowledged(&writers, "when the gate opened again in another role");

    // And in another epoch: the old primary is the only one left to take over from the new one.
    let now = bed.cast().await.unwrap();
    let third = [&now.first, &now.second].into_iter().find(|actor| actor.node != node).unwrap().node.clone();
    bed.fleet.power_off(&third).unwrap();
    process::signal(now.primary.engine, Signal::SIGKILL).unwrap();
    let again = bed.fleet.api.other_primary(CLUSTER, &now.primary.member, SOON).await.unwrap();
    assert_eq!(again.primary, cast.primary.member);
    bed.fleet.power_on(&third).unwrap();
    bed.fleet.all_connected().await.unwrap();
    bed.healthy().await.unwrap();
    tokio::time::sleep(STILL).await;
    none_acknowledged(&writers, "when the gate opened again in another epoch");

    let histories = writers.stop().await.unwrap();
    let account = checker::account(&histories, &bed.same_on_all().await.unwrap());
    assert!(account.is_consistent(), "{account:?}");
    assert_eq!(checker::overlaps(&histories, 0, u64::MAX), []);
}

#[test]
fn a_commit_after_the_leases_end_is_never_acknowledged() {
    inside(|| a_late_commit_is_never_acknowledged(Flush::Never));
}

#[test]
fn a_gate_that_somebody_flushed_is_there_again() {
    inside(|| a_late_commit_is_never_acknowledged(Flush::BeforeTheStop));
}

#[test]
fn a_gate_cannot_be_flushed_while_its_agent_is_stopped() {
    inside(|| a_late_commit_is_never_acknowledged(Flush::WhileStopped));
}

/// Pauses of the primary's agent.
const PAUSES: u32 = 8;

#[test]
fn an_agent_that_is_paused_between_grant_and_renewal_opens_nothing_late() {
    inside(|| async {
        let mut bed = bed().await;
        let mut seed: u64 =
            std::env::var("REGENT_TEST_SEED").map_or_else(|_| now_nanos(), |seed| seed.parse().unwrap());
        println!("REGENT_TEST_SEED={seed}");
        let mut writers = Writers::start(&bed.folder.join("writers"), &bed.client, &bed.members, true).unwrap();
        for (number, member) in bed.members.iter().enumerate() {
            writers.add_patient(&format!("patient-{number}"), member).unwrap();
        }
        for round in 0..PAUSES {
            let cast = bed.cast().await.unwrap();
            writers.acknowledged(now_nanos(), 50, SOON).await.unwrap();
            // A linear congruential step; any pause up to two leases, with the lease's own length among them.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let longest = u64::try_from(PROFILE.ttl().as_millis() * 2).unwrap();
            let pause = if round % 2 == 0 { (seed >> 33) % longest } else { longest / 2 - 50 + (seed >> 33) % 100 };
            let at = agent(&mut bed, &cast);
            at.daemon().unwrap().signal(Signal::SIGSTOP).unwrap();
            tokio::time::sleep(Duration::from_millis(pause)).await;
            agent(&mut bed, &cast).daemon().unwrap().signal(Signal::SIGCONT).unwrap();
            println!("round {round}: {} paused for {pause} ms", cast.primary.node);
        }
        bed.healthy().await.unwrap();
        writers.acknowledged(now_nanos(), 50, SOON).await.unwrap();
        let histories = writers.stop().await.unwrap();
        let account = checker::account(&histories, &bed.same_on_all().await.unwrap());
        assert!(account.is_consistent(), "{account:?}");
        assert_eq!(checker::overlaps(&histories, 0, u64::MAX), [], "{:?}", checker::reigns(&histories, 0, u64::MAX));
    });
}
