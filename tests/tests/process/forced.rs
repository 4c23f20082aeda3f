//! The last resort: no coordinator can be brought back, the primary's node is lost, and a person makes a replica the primary on
//! its node. Everything that could be wrong about that is refused; and when a coordinator is back it adopts what was done.

use std::{process::Command, time::Duration};

use nix::sys::signal::Signal;
use regent_common::ids::Epoch;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api, process, wait,
    workload::{checker, now_nanos, postgres, writers::Writers},
};
use serde_json::Value;

use crate::support::{CLUSTER, SOON, Trio, how_it_was_started, write_by_hand};

/// How often it is said again while something is waited for.
const PERIOD: Duration = Duration::from_millis(50);

/// What the command said: its exit code, and what it printed for programs.
struct Said {
    code: Option<i32>,
    answer: Value,
    errors: String,
}

// === impl Said ===

impl Said {
    fn outcome(&self) -> &str {
        self.answer["outcome"].as_str().unwrap_or_default()
    }

    fn reasons(&self) -> Vec<&str> {
        let refusals = self.answer["refusals"].as_array().into_iter().flatten();
        refusals.filter_map(|refusal| refusal["reason"].as_str()).collect()
    }

    #[track_caller]
    fn has(&self, code: i32, outcome: &str) {
        assert_eq!((self.code, self.outcome()), (Some(code), outcome), "{}\n{}", self.answer, self.errors);
    }
}

/// `regent-agent VERB` on a node, with `--output json`.
fn say(trio: &mut Trio, node: &str, verb: &str, words: &[&str]) -> Said {
    let mut command: Command = trio.fleet.agent(node).command(verb).unwrap();
    let output = command.args(["--output", "json"]).args(words).output().unwrap();
    Said {
        code: output.status.code(),
        answer: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What a person says to make db2 the primary; either name of a member will do for who is off.
const WORDS: [&str; 6] = ["--confirm", "db2", "--confirm-off", "db1", "--confirm-off", "n3"];

fn force(trio: &mut Trio, more: &[&str]) -> Said {
    say(trio, "n2", "force-primary", &[&WORDS, more].concat())
}

/// Says it until the answer is the one that is waited for.
async fn forced_until(trio: &mut Trio, what: &str, more: &[&str], is: impl Fn(&Said) -> bool) -> Said {
    let begin = now_nanos();
    loop {
        let said = force(trio, more);
        if is(&said) {
            return said;
        }
        let waited = Duration::from_nanos(now_nanos() - begin);
        assert!(waited < SOON, "{what}: {:?} {}\n{}", said.code, said.answer, said.errors);
        tokio::time::sleep(PERIOD).await;
    }
}

/// What the ledger of a node says, by `regent-agent status`.
fn ledger(trio: &mut Trio, node: &str) -> Value {
    let said = say(trio, node, "status", &[]);
    assert_eq!(said.code, Some(0), "{}", said.errors);
    said.answer["member"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_a_person_forces_serves_alone_and_is_adopted_when_a_coordinator_is_back() {
    let mut trio = Trio::start().await;
    let before = trio.healthy().await;
    let writers = trio.write();
    writers.acknowledged(0, 300, SOON).await.unwrap();
    let pids = trio.engine_pids().await;

    // While there is a coordinator it decides, and nobody is off who answers.
    let refused = force(&mut trio, &[]);
    refused.has(3, "refused");
    assert_eq!(
        refused.reasons(),
        ["coordinator_connected", "streams", "lease_stands", "not_off"],
        "{}",
        refused.errors
    );
    assert!(refused.errors.contains("nothing was changed"), "{}", refused.errors);
    let wrong = say(&mut trio, "n2", "force-primary", &["--confirm", "db1"]);
    assert_eq!(wrong.code, Some(3), "{}", wrong.errors);
    assert!(wrong.reasons().contains(&"confirm_wrong") && wrong.reasons().contains(&"not_named_off"));

    // The engine's own user, in whose folder the socket stands, may not say it.
    let mut stranger = trio.fleet.agent("n2").command("force-primary").unwrap();
    process::as_user(&mut stranger, "postgres").unwrap();
    let denied = stranger.args(WORDS).output().unwrap();
    assert_eq!(denied.status.code(), Some(5), "{}", String::from_utf8_lossy(&denied.stderr));

    // Without one the primary lives by the endorsement of both: the promise keeps db2 from taking its place.
    let at = now_nanos();
    trio.fleet.coordinator.daemon().unwrap().kill().unwrap();
    let promised = forced_until(&mut trio, "a promise", &[], |said| said.reasons().contains(&"promise_stands")).await;
    promised.has(3, "refused");
    assert!(promised.reasons().contains(&"lease_stands"), "{}", promised.errors);
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();

    // The primary's node is lost, and so is the third.
    let (command, data) = how_it_was_started(pids[0]);
    for (node, pid) in [("n1", pids[0]), ("n3", pids[2])] {
        trio.fleet.agent(node).daemon().unwrap().kill().unwrap();
        process::signal(pid, Signal::SIGKILL).unwrap();
        process::ended(pid, SOON).await.unwrap();
    }
    // The promise outlives them.
    let unheard = force(&mut trio, &[]);
    assert!(unheard.reasons().contains(&"promise_stands"), "{}", unheard.errors);
    let dry = forced_until(&mut trio, "a dry run", &["--dry-run"], |said| said.outcome() == "would_force").await;
    dry.has(0, "would_force");
    let forced_epoch = before.epoch + 1000;
    assert_eq!(dry.answer["epoch"], forced_epoch);
    let kept = ledger(&mut trio, "n2");
    assert_eq!((kept["epoch"].as_u64(), kept["role"].as_str()), (Some(before.epoch), Some("replica")), "{kept}");
    let partly = say(&mut trio, "n2", "force-primary", &["--confirm", "db2", "--confirm-off", "db1"]);
    assert_eq!((partly.code, partly.reasons()), (Some(2), vec!["not_named_off"]), "{}", partly.errors);

    let begun = now_nanos();
    let done = force(&mut trio, &[]);
    done.has(0, "forced");
    assert_eq!(done.answer["epoch"], forced_epoch);
    assert_eq!(done.answer["confirmed_off"], serde_json::json!(["db1", "db3"]));
    writers.acknowledged(begun, 300, SOON).await.unwrap();
    let status = say(&mut trio, "n2", "status", &[]).answer;
    assert_eq!(status["lease"]["source"], "alone", "{status}");
    assert_eq!(status["member"]["forced"]["confirmed_off"], serde_json::json!(["db1", "db3"]), "{status}");

    // Said again it changes nothing; and an agent that is killed and comes back goes on without anybody (rule E1).
    force(&mut trio, &[]).has(0, "already_forced");
    trio.fleet.agent("n2").daemon().unwrap().kill().unwrap();
    trio.fleet.agent("n2").start().unwrap();
    forced_until(&mut trio, "the agent", &[], |said| said.outcome() == "already_forced").await;
    assert!(process::lives(pids[1]), "the engine was left alone");
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();

    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&trio.login, &trio.members[1]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent(), "{account:?}");
    let lost = checker::acknowledged(&histories, &account.lost);
    assert!(lost.iter().all(|(_, when, _)| *when < begun), "of what was acknowledged since nothing is lost: {lost:?}");
    assert!(lost.len() <= 5, "asynchronous: what the dead primary had not sent, a row or two: {lost:?}");
    assert_eq!(checker::overlaps(&histories, at, u64::MAX), [], "two primaries");

    // Somebody brings the lost primary's engine up by hand and it goes its own way for a while.
    write_by_hand(&mut trio, "n1", &before_address(&before), &command, &data).await;

    // A coordinator is back. It adopts the forced primary without waiting for those that are off.
    trio.fleet.coordinator.start().unwrap();
    trio.fleet.reconnect().await.unwrap();
    let api = trio.api().clone();
    let adopted = wait::until("the forced primary adopted", SOON, || async {
        let cluster = api.cluster(CLUSTER).await?;
        anyhow::ensure!(
            cluster.primary == "db2" && cluster.epoch == forced_epoch,
            "{} {}",
            cluster.primary,
            cluster.epoch
        );
        Ok(cluster)
    })
    .await
    .unwrap();
    assert_ne!(adopted.health(), wire::Health::Healthy, "two members are away");
    let later = trio.folder.join("later");
    let writers = Writers::start_called("later", &later, &trio.login, &trio.members, true).unwrap();
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();

    // The others come back as its replicas, the one that went its own way as well.
    for node in ["n1", "n3"] {
        trio.fleet.agent(node).start().unwrap();
    }
    let whole = trio.healthy().await;
    assert_eq!((whole.primary.as_str(), whole.epoch), ("db2", forced_epoch), "it stayed the primary, at its epoch");
    for member in ["db1", "db3"] {
        assert_eq!(api::member(&whole, member).unwrap().role(), types::Role::Replica);
    }
    let report = whole.divergence_reports.iter().find(|report| api::plain(&report.member) == "db1");
    assert!(report.is_some_and(|report| report.resolution == "rewound"), "{:?}", whole.divergence_reports);
    assert!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().is_empty(), "nobody else was promoted");
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();

    drop(writers.stop().await.unwrap());
    let kept = stored;
    let stored = postgres::read_rows(&trio.login, &trio.members[1]).await.unwrap();
    assert!(kept.iter().all(|(row, count)| stored.get(row) == Some(count)), "rows of the forced reign went away");
    assert!(!stored.keys().any(|(writer, _)| writer == "by hand"), "rows that only the lost primary had");
    for member in &trio.members {
        wait::until(&format!("all rows on {member}"), SOON, || async {
            let copy = postgres::read_rows(&trio.login, member).await?;
            anyhow::ensure!(copy == stored, "{} rows of {}", copy.len(), stored.len());
            Ok(())
        })
        .await
        .unwrap();
    }
    written_down_once(&trio, Epoch(forced_epoch)).await;
    trio.check_logs(&[
        "a person makes this member the primary without a coordinator",
        "no coordinator answers",
        "a person has made db2 the primary of epoch",
        "db2 holds the lease of epoch",
    ]);
}

/// host:port of the primary's engine.
fn before_address(cluster: &wire::Cluster) -> String {
    let endpoint = api::member(cluster, &cluster.primary).unwrap().endpoint.clone().unwrap();
    format!("{}:{}", endpoint.host, endpoint.port)
}

/// The audit has what the person did, once.
async fn written_down_once(trio: &Trio, epoch: Epoch) {
    let request =
        wire::ListAuditRecordsRequest { cluster: format!("clusters/{CLUSTER}"), page_size: 1000, ..Default::default() };
    let records = trio.api().audit().list_audit_records(request).await.unwrap().into_inner().records;
    let forced: Vec<_> = records.iter().filter(|record| record.action == "FORCED").collect();
    assert_eq!(forced.len(), 1, "{records:#?}");
    let detail = &forced[0].detail;
    assert!(detail.contains(&format!("made db2 the primary of epoch {epoch}")), "{detail}");
    assert!(detail.contains("named as off: db1, db3"), "{detail}");
}
