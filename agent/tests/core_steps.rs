//! The executor on a ledger that is on disk: rule T1, the marks around each action, crashes and fences.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use std::{sync::Arc, time::Duration};

use regent_agent::{
    engine::Flush,
    firewall::fake::FakeMachine,
    lease::promises::Asker,
    steps::{Action, Execution, StepError},
};
use regent_common::{
    error::Reason,
    ids::{Epoch, OperationToken},
    lease::LeaseReport,
    topology::{EngineObservation, EngineState, HeardPosition, Role},
};
use support::*;

fn clone_action(wipe_first_if_needed: bool) -> Action {
    Action::Clone { source: peer(2), max_bytes_per_second: 0, wipe_first_if_needed }
}

fn follow() -> Action {
    Action::Follow { upstream: peer(2) }
}

fn swap() -> Action {
    Action::Swap { upstream: peer(2), keep_old: true }
}

async fn reason(bench: &Bench, epoch: u64, token: u64, step: &str, action: Action) -> Reason {
    let header = header(epoch, token, step, &action);
    bench.run(header, action).await.expect_err("it was carried out").reason()
}

async fn done(bench: &Bench, epoch: u64, token: u64, step: &str, action: Action) -> regent_agent::ledger::StepOutcome {
    let header = header(epoch, token, step, &action);
    bench.run(header, action).await.expect("it was not carried out")
}

#[tokio::test]
async fn executed_twice_is_one_execution() {
    let bench = Bench::assigned().await;
    let first = done(&bench, 1, 1, "init", Action::Initialize).await;
    let second = done(&bench, 1, 1, "init", Action::Initialize).await;
    assert_eq!(first, second);
    assert_eq!(first.position, Some(at(10)));
    assert_eq!((bench.machine.count("initialize"), bench.executions("init")), (1, 1));
    assert_eq!(done(&bench, 1, 1, "assign", assign()).await.endpoint.unwrap().port, 7777);
    assert_eq!(bench.membership().port, 7777, "the port is chosen once");
}

#[tokio::test]
async fn a_second_call_joins_the_first() {
    let bench = Bench::assigned().await;
    bench.machine.hold("follow");
    let header = header(1, 1, "follow", &follow());
    let first = bench.begin(header.clone(), follow()).await;
    let second = bench.begin(header, follow()).await;
    assert!(Arc::ptr_eq(&first, &second));
    bench.machine.release("follow");
    within(second.ended()).await.unwrap();
    assert_eq!((bench.machine.count("follow"), bench.executions("follow")), (1, 1));
}

#[tokio::test]
async fn a_call_that_breaks_off_leaves_the_step_running() {
    let bench = Bench::assigned().await;
    bench.machine.hold("follow");
    let header = header(1, 1, "follow", &follow());
    let call = tokio::spawn({
        let (executor, header) = (bench.executor.clone(), header.clone());
        async move { executor.execute(header, follow()).await }
    });
    called(&bench.machine, "follow", 1).await;
    call.abort();
    bench.machine.release("follow");
    bench.run(header, follow()).await.unwrap();
    assert_eq!(bench.executions("follow"), 1);
}

#[tokio::test]
async fn lower_epochs_and_tokens_are_refused() {
    let bench = Bench::assigned().await;
    done(&bench, 5, 7, "follow", follow()).await;
    assert_eq!(reason(&bench, 4, 9, "late", follow()).await, Reason::StaleEpoch);
    assert_eq!(reason(&bench, 6, 6, "late", follow()).await, Reason::StaleToken);
    assert_eq!(reason(&bench, 5, 7, "follow", Action::Follow { upstream: peer(3) }).await, Reason::StepContentDiffers);
    assert_eq!(bench.machine.count("follow"), 1);
    assert_eq!((bench.membership().epoch, bench.membership().token), (Epoch(5), OperationToken(7)));
}

#[tokio::test]
async fn a_failed_step_runs_again() {
    let bench = Bench::assigned().await;
    bench.machine.fail("follow", "no route");
    assert_eq!(reason(&bench, 1, 1, "follow", follow()).await, Reason::EngineFailed);
    bench.machine.mend("follow");
    done(&bench, 1, 1, "follow", follow()).await;
    assert_eq!((bench.machine.count("follow"), bench.executions("follow")), (2, 2));
}

#[tokio::test]
async fn a_higher_token_ends_what_runs_under_a_lower_one_first() {
    let bench = Bench::assigned().await;
    bench.machine.hold("clone");
    let header_of_clone = header(1, 1, "clone", &clone_action(false));
    let copying = bench.begin(header_of_clone, clone_action(false)).await;
    called(&bench.machine, "clone", 1).await;
    done(&bench, 1, 2, "follow", follow()).await;
    assert_eq!(within(copying.ended()).await.unwrap_err().reason(), Reason::StepSuperseded);
    assert!(bench.executor.table().all().is_empty());
    assert_eq!(reason(&bench, 1, 1, "clone", clone_action(false)).await, Reason::StaleToken);
}

#[tokio::test]
async fn a_promotion_under_a_lower_token_is_waited_for() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    bench.machine.hold("promote");
    let promoting = bench.begin(header(2, 2, "promote", &Action::Promote), Action::Promote).await;
    called(&bench.machine, "promote", 1).await;
    let next = tokio::spawn({
        let executor = bench.executor.clone();
        async move { executor.execute(header(2, 3, "follow", &follow()), follow()).await }
    });
    bench.machine.release("promote");
    assert!(within(promoting.ended()).await.is_ok(), "it was dropped half-way");
    let Ok(Execution::Running(next)) = within(next).await.unwrap() else { panic!("it does not run") };
    within(next.ended()).await.unwrap();
    let calls = bench.machine.calls();
    let position = |name: &str| calls.iter().position(|call| call == name).unwrap();
    assert!(position("promote") < position("follow"));
}

#[tokio::test]
async fn a_resumed_coordinator_joins_under_its_higher_token() {
    let bench = Bench::assigned().await;
    bench.machine.hold("clone");
    let first = bench.begin(header(1, 1, "clone", &clone_action(false)), clone_action(false)).await;
    let resumed = bench.begin(header(1, 2, "clone", &clone_action(false)), clone_action(false)).await;
    assert!(Arc::ptr_eq(&first, &resumed));
    assert_eq!(first.token(), OperationToken(2));
    assert_eq!(bench.membership().token, OperationToken(2));
    bench.machine.release("clone");
    assert_eq!(within(resumed.ended()).await.unwrap().bytes_copied, 100);
    assert_eq!(bench.executions("clone"), 1);
}

#[tokio::test]
async fn the_same_action_at_a_higher_epoch_is_another_step() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    done(&bench, 2, 2, "promote", Action::Promote).await;
    assert_eq!(bench.membership().writable_epoch, Some(Epoch(2)));
    done(&bench, 3, 3, "promote", Action::Promote).await;
    assert_eq!(bench.membership().writable_epoch, Some(Epoch(3)));
    assert_eq!(bench.machine.count("promote"), 2);
}

#[tokio::test]
async fn a_crash_between_start_and_result_runs_the_step_again() {
    let bench = Bench::assigned().await;
    bench.machine.hold("clone");
    let copying = bench.begin(header(1, 1, "clone", &clone_action(false)), clone_action(false)).await;
    called(&bench.machine, "clone", 1).await;
    let bench = bench.restart();
    within(copying.ended()).await.unwrap_err();
    bench.machine.release("clone");
    assert!(bench.membership().resyncing, "the mark from before the first byte was lost");
    done(&bench, 1, 1, "clone", clone_action(false)).await;
    assert_eq!(bench.executions("clone"), 2);
    let bench = bench.restart();
    done(&bench, 1, 1, "clone", clone_action(false)).await;
    assert_eq!((bench.executions("clone"), bench.machine.count("clone")), (2, 2), "answered after a restart");
}

#[tokio::test]
async fn a_fence_kills_a_running_clone_and_the_engine() {
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "init", Action::Initialize).await;
    bench.machine.hold("checkpoint");
    let checkpoint = Action::Checkpoint { flush: Flush::Copies };
    let stuck = bench.begin(header(1, 1, "checkpoint", &checkpoint), checkpoint).await;
    called(&bench.machine, "checkpoint", 1).await;
    let fenced = done(&bench, 2, 2, "fence", Action::Fence).await;
    assert_eq!(fenced.writable_epoch, Some(Epoch(1)));
    assert_eq!(within(stuck.ended()).await.unwrap_err().reason(), Reason::StepSuperseded);
    assert_eq!(bench.machine.state(), EngineState::Stopped);
    let membership = bench.membership();
    assert!(membership.fenced);
    assert_eq!((membership.epoch, membership.fenced_epoch), (Epoch(2), Some(Epoch(2))));
    assert_eq!(reason(&bench, 1, 1, "late", Action::Promote).await, Reason::StaleEpoch);
}

#[tokio::test]
async fn a_fence_does_not_wait_behind_one_who_waits() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    bench.machine.hold("promote");
    let promoting = bench.begin(header(2, 2, "promote", &Action::Promote), Action::Promote).await;
    called(&bench.machine, "promote", 1).await;
    let waiting = tokio::spawn({
        let executor = bench.executor.clone();
        async move { executor.execute(header(2, 3, "follow", &follow()), follow()).await }
    });
    // The step with token 3 waits for the promotion, which will never end by itself.
    within(async {
        while !promoting.is_stopping() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let fenced = done(&bench, 3, 4, "fence", Action::Fence).await;
    assert_eq!(fenced.writable_epoch, Some(Epoch(2)), "nobody can say that the promotion did not happen");
    assert_eq!(bench.machine.state(), EngineState::Stopped);
    let _ = within(waiting).await;
}

#[tokio::test]
async fn a_late_fence_does_not_end_the_reign_at_its_own_epoch() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    done(&bench, 2, 2, "promote", Action::Promote).await;
    let answer = done(&bench, 2, 2, "fence", Action::Fence).await;
    assert_eq!(answer.writable_epoch, Some(Epoch(2)));
    assert_eq!((bench.machine.count("kill"), bench.machine.state()), (0, EngineState::Running));
}

#[tokio::test]
async fn a_fence_is_not_answered_while_the_engine_cannot_be_killed() {
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "init", Action::Initialize).await;
    bench.machine.fail("kill", "state D");
    assert_eq!(reason(&bench, 2, 2, "fence", Action::Fence).await, Reason::EngineFailed);
    assert!(bench.membership().fenced, "the ledger has it before the engine is touched");
    bench.machine.mend("kill");
    let first = done(&bench, 2, 2, "fence", Action::Fence).await;
    // Regression: of a fence whose answer was lost, the next one, at a higher epoch, said that its engine never wrote.
    let next = done(&bench, 3, 3, "fence", Action::Fence).await;
    assert_eq!((first.writable_epoch, next.writable_epoch), (Some(Epoch(1)), Some(Epoch(1))));
}

#[tokio::test]
async fn prepare_and_promote_carry_the_failover() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    let heard = |member: &str, end| HeardPosition { member: member.parse().unwrap(), position: at(end) };
    let asker = |epoch, end| Asker {
        member: "db2".parse().unwrap(),
        boot_id: "b".to_owned(),
        epoch: Epoch(epoch),
        ttl: Duration::ZERO,
        lease: LeaseReport { epoch: Epoch(epoch), stands: true, source: None, remaining: Duration::ZERO },
        position: Some(at(end)),
    };
    let ask = |epoch, end| {
        let now = bench.lease.clock().now();
        bench.lease.promises().endorse(now, asker(epoch, end), Epoch(epoch), false).unwrap();
    };
    ask(1, 15);
    bench.machine.hear_upstream(heard("db2", 16));
    let prepared = done(&bench, 2, 2, "prepare", Action::Prepare { old_primary_fenced: false }).await;
    assert_eq!(prepared.position, Some(at(12)));
    assert_eq!(
        prepared.heard,
        [heard("db2", 15), heard("db2", 16)],
        "what it was asked with, and what its stream told"
    );
    assert_eq!(bench.membership().epoch, Epoch(2));
    let promoted = done(&bench, 2, 2, "promote", Action::Promote).await;
    assert_eq!(promoted.position, Some(at(13)));
    let membership = bench.membership();
    assert_eq!((membership.role, membership.writable_epoch), (Some(Role::Primary), Some(Epoch(2))));
    // An old primary that is prepared is fenced in full.
    done(&bench, 3, 3, "prepare", Action::Prepare { old_primary_fenced: false }).await;
    assert_eq!(bench.machine.count("kill"), 1);
    assert!(bench.membership().fenced);
    done(&bench, 3, 3, "follow", follow()).await;
    let membership = bench.membership();
    assert_eq!((membership.role, membership.fenced), (Some(Role::Replica), false));
}

#[tokio::test]
async fn a_stopped_engine_is_started_isolated_before_it_is_promoted() {
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "init", Action::Initialize).await;
    done(&bench, 2, 2, "fence", Action::Fence).await;
    done(&bench, 2, 2, "promote", Action::Promote).await;
    assert_eq!((bench.machine.count("start"), bench.machine.state()), (1, EngineState::Running));
    assert!(!bench.membership().fenced);
}

#[tokio::test]
async fn dirty_data_is_never_promoted_followed_or_prepared() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    bench.machine.set_dirty(true);
    for action in [Action::Promote, follow(), Action::Prepare { old_primary_fenced: false }, Action::Examine] {
        assert_eq!(reason(&bench, 2, 2, action.name(), action.clone()).await, Reason::DataDirty);
    }
    assert_eq!(bench.membership().writable_epoch, None, "the mark is for engines that become writable");
}

#[tokio::test]
async fn nothing_is_wiped_without_the_word_of_the_copy_that_survives() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    assert_eq!(reason(&bench, 1, 1, "clone", clone_action(true)).await, Reason::CopyNotWhole);
    assert_eq!(reason(&bench, 1, 1, "swap", swap()).await, Reason::CopyNotWhole);
    assert_eq!((bench.machine.count("clone"), bench.machine.count("swap")), (0, 0));
    assert!(!bench.membership().dirty && !bench.membership().resyncing);
    *bench.peers.0.lock().unwrap() = Ok(99);
    done(&bench, 1, 1, "clone", clone_action(true)).await;
    assert!(bench.membership().resyncing);
    assert_eq!(reason(&bench, 1, 1, "promote", Action::Promote).await, Reason::DataDirty);
    assert!(done(&bench, 1, 1, "swap", swap()).await.old_data_kept);
    let membership = bench.membership();
    assert!(!membership.dirty && !membership.resyncing);
}

#[tokio::test]
async fn no_copy_is_made_of_a_member_over_itself() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    *bench.peers.0.lock().unwrap() = Ok(99);
    for action in [
        Action::Clone { source: peer(1), max_bytes_per_second: 0, wipe_first_if_needed: true },
        Action::Swap { upstream: peer(1), keep_old: false },
        Action::Rewind { source: peer(1) },
        Action::Follow { upstream: peer(1) },
    ] {
        assert_eq!(reason(&bench, 1, 1, action.name(), action.clone()).await, Reason::CopyNotWhole);
        assert_eq!(bench.machine.count(action.name()), 0);
    }
}

#[tokio::test]
async fn a_member_in_resync_is_not_prepared() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    done(&bench, 1, 1, "clone", clone_action(false)).await;
    assert_eq!(reason(&bench, 2, 2, "prepare", Action::Prepare { old_primary_fenced: false }).await, Reason::DataDirty);
}

#[tokio::test]
async fn the_fence_of_a_dead_engine_tells_how_far_it_was_seen_to_come() {
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "init", Action::Initialize).await;
    let seen =
        |state, position| EngineObservation { state, position, ..regent_agent::observe::without_driver(String::new()) };
    bench.member.note(Some(seen(EngineState::Running, Some(at(40)))));
    bench.machine.crash();
    bench.member.note(Some(seen(EngineState::Crashed, None)));
    assert_eq!(done(&bench, 2, 2, "fence", Action::Fence).await.position, Some(at(40)));
}

#[tokio::test]
async fn a_new_member_without_data_asks_nobody() {
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "clone", clone_action(true)).await;
    done(&bench, 1, 1, "swap", swap()).await;
    assert_eq!(bench.machine.state(), EngineState::Running);
}

#[tokio::test]
async fn the_dirty_mark_is_on_disk_before_the_old_data_goes() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    *bench.peers.0.lock().unwrap() = Ok(99);
    bench.machine.hold("swap");
    bench.begin(header(1, 1, "swap", &swap()), swap()).await;
    called(&bench.machine, "swap", 1).await;
    let bench = bench.restart();
    assert!(bench.membership().dirty);
    assert_eq!(reason(&bench, 2, 2, "follow", follow()).await, Reason::DataDirty);
}

#[tokio::test]
async fn an_unknown_engine_is_refused_and_nothing_is_kept() {
    let bench = Bench::new();
    let unknown =
        Action::Assign { spec: regent_common::topology::ClusterSpec { engine: "x".to_owned(), ..spec() }, port: 0 };
    assert_eq!(reason(&bench, 1, 1, "assign", unknown).await, Reason::UnknownEngine);
    assert_eq!(bench.executor.ledger().read().membership, None);
}

#[tokio::test]
async fn a_node_is_in_one_cluster_only() {
    let bench = Bench::assigned().await;
    let other = regent_common::ids::ClusterId::from_parts(9, 9);
    let elsewhere = regent_agent::ledger::Header { cluster_id: other, ..header(1, 1, "assign", &assign()) };
    assert_eq!(bench.run(elsewhere, assign()).await.unwrap_err().reason(), Reason::NodeInCluster);
    let elsewhere = regent_agent::ledger::Header { cluster_id: other, ..header(9, 9, "x", &follow()) };
    assert_eq!(bench.run(elsewhere, follow()).await.unwrap_err().reason(), Reason::WrongCluster);
}

#[tokio::test]
async fn foreign_data_is_not_taken_over() {
    let bench = Bench::new();
    let data = bench.directory.path().join("engines/db/data");
    std::fs::create_dir_all(data.join("something")).unwrap();
    assert_eq!(reason(&bench, 1, 1, "assign", assign()).await, Reason::ForeignData);
    assert!(data.join("something").exists());
    // The next start finds data beside a ledger: the ledger is known, only the data is foreign.
    let bench = bench.restart();
    assert_eq!(bench.executor.ledger().read().quarantine, None);
}

#[tokio::test]
async fn data_without_a_ledger_is_quarantine_until_a_resync() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("engines/db/data/something")).unwrap();
    let machine = Machine::new();
    machine.set_running(Role::Primary);
    let bench = Bench::on(machine, FakeMachine::new(), directory);
    assert!(bench.executor.ledger().read().quarantine.is_some());
    assert_eq!(reason(&bench, 7, 7, "follow", follow()).await, Reason::LedgerLost);
    done(&bench, 7, 7, "assign", assign()).await;
    assert_eq!(bench.machine.count("kill"), 1, "nobody knows what that engine has promised");
    for action in [follow(), Action::Promote, Action::Initialize, Action::Rewind { source: peer(2) }] {
        assert_eq!(reason(&bench, 7, 7, action.name(), action.clone()).await, Reason::DataDirty);
    }
    *bench.peers.0.lock().unwrap() = Ok(99);
    done(&bench, 7, 7, "clone", clone_action(false)).await;
    assert!(bench.membership().distrusted);
    done(&bench, 7, 7, "swap", swap()).await;
    assert!(!bench.membership().distrusted);
}

#[tokio::test]
async fn a_node_in_quarantine_joins_no_other_cluster_beside_unknown_data() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("engines/other/data/something")).unwrap();
    let bench = Bench::on(Machine::new(), FakeMachine::new(), directory);
    assert_eq!(reason(&bench, 1, 1, "assign", assign()).await, Reason::ForeignData);
    assert!(bench.executor.ledger().read().quarantine.is_some(), "the quarantine stands");
}

#[tokio::test]
async fn a_release_is_for_good_until_a_later_operation_takes_the_node_in_again() {
    let bench = Bench::assigned().await;
    let release = || Action::Release { keep_data: false, give_back: false };
    done(&bench, 1, 2, "release", release()).await;
    assert!(!bench.directory.path().join("secrets.json").exists());
    assert!(bench.member.driver().is_none());
    let bench = bench.restart();
    done(&bench, 1, 2, "release", release()).await;
    assert_eq!(bench.executions("release"), 1);
    assert_eq!(reason(&bench, 9, 2, "assign-late", assign()).await, Reason::WrongCluster);
    done(&bench, 1, 3, "assign-anew", assign()).await;
    assert_eq!(reason(&bench, 1, 2, "release", release()).await, Reason::StaleToken);
    assert!(bench.member.driver().is_some());
}

#[tokio::test]
async fn a_job_can_be_cancelled() {
    let bench = Bench::assigned().await;
    bench.machine.hold("clone");
    let copying = bench.begin(header(1, 1, "clone", &clone_action(false)), clone_action(false)).await;
    called(&bench.machine, "clone", 1).await;
    assert!(bench.executor.cancel(operation(), "clone"));
    let error = within(copying.ended()).await.unwrap_err();
    assert!(matches!(*error, StepError::Driver(_)));
    assert_eq!(error.reason(), Reason::Cancelled);
    assert!(!bench.executor.cancel(operation(), "clone"));
    assert!(!bench.membership().resyncing, "nothing of the old data was touched");
}

#[tokio::test]
async fn secrets_are_in_their_own_file_and_nowhere_else() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "configure", Action::Configure { spec: spec(), fingerprint: "c1".to_owned() }).await;
    let ledger = std::fs::read_to_string(bench.directory.path().join("ledger.json")).unwrap();
    assert!(!ledger.contains("hush"));
    let secrets = bench.directory.path().join("secrets.json");
    assert!(std::fs::read_to_string(&secrets).unwrap().contains("hush"));
    assert_eq!(std::fs::metadata(&secrets).unwrap().permissions().mode() & 0o777, 0o600);
    let other = Action::Configure {
        spec: regent_common::topology::ClusterSpec { cluster: "other".parse().unwrap(), ..spec() },
        fingerprint: "c2".to_owned(),
    };
    assert_eq!(reason(&bench, 1, 1, "configure-other", other).await, Reason::WrongCluster);
    assert_eq!(bench.membership().configuration, "c1", "what was refused is not what is applied");
}

fn drain(within: u64, hold: u64) -> Action {
    let (within, hold) = (Duration::from_millis(within), Duration::from_millis(hold));
    Action::Drain { successor: "db2".parse().unwrap(), within, hold }
}

/// A primary whose lease stands.
async fn reigning() -> Bench {
    let bench = Bench::assigned().await;
    done(&bench, 1, 1, "initialize", Action::Initialize).await;
    bench
}

#[tokio::test]
async fn a_drain_that_a_fence_follows_is_final() {
    let bench = reigning().await;
    assert_eq!(done(&bench, 1, 1, "drain", drain(1000, 60_000)).await.position, Some(at(11)));
    assert_eq!(bench.membership().drained, Some(OperationToken(1)));
    assert_eq!(bench.machine.count("undo_drain"), 0);
    let fenced = done(&bench, 2, 2, "fence", Action::Fence).await;
    assert!(fenced.drained, "nobody was let in");
    assert_eq!(fenced.position, Some(at(11)), "the drain's, not what was seen last");
    assert_eq!(bench.membership().drained, None);
    assert!(!done(&bench, 3, 3, "fence", Action::Fence).await.drained, "of another reign");
}

#[tokio::test]
async fn a_drain_ends_by_itself_and_its_result_with_it() {
    let bench = reigning().await;
    done(&bench, 1, 1, "drain", drain(1, 1)).await;
    called(&bench.machine, "undo_drain", 1).await;
    assert_eq!(bench.membership().drained, None);
    assert!(!done(&bench, 2, 2, "fence", Action::Fence).await.drained, "somebody may have been let in");
    let bench = reigning().await;
    done(&bench, 1, 1, "drain", drain(1000, 60_000)).await;
    done(&bench, 1, 1, "undo", Action::UndoDrain).await;
    assert_eq!((bench.machine.count("undo_drain"), bench.membership().drained), (1, None));
    done(&bench, 1, 2, "drain", drain(1000, 60_000)).await;
    assert_eq!(bench.machine.count("drain"), 2, "it is not answered from the ledger any more");
}

#[tokio::test]
async fn a_drain_that_fails_or_takes_too_long_is_taken_back() {
    let bench = reigning().await;
    bench.machine.fail("drain", "no");
    assert_eq!(reason(&bench, 1, 1, "drain", drain(1000, 1000)).await, Reason::EngineFailed);
    bench.machine.mend("drain");
    bench.machine.hold("drain");
    reason(&bench, 1, 1, "late", drain(10, 60_000)).await;
    assert_eq!((bench.machine.count("undo_drain"), bench.membership().drained), (2, None));
}

#[tokio::test]
async fn letting_applications_in_is_tried_until_it_succeeds() {
    let bench = reigning().await;
    bench.machine.fail("undo_drain", "no space left");
    done(&bench, 1, 1, "drain", drain(1000, 1)).await;
    called(&bench.machine, "undo_drain", 2).await;
    assert_eq!(bench.membership().drained, None, "the mark goes first");
    bench.machine.fail("drain", "no");
    assert_eq!(reason(&bench, 1, 2, "again", drain(1, 1)).await, Reason::EngineFailed);
    let tried = bench.machine.count("undo_drain");
    bench.machine.mend("undo_drain");
    called(&bench.machine, "undo_drain", tried + 1).await;
}

#[tokio::test]
async fn a_drain_that_comes_again_late_is_a_drain_of_its_own() {
    let bench = reigning().await;
    done(&bench, 1, 1, "drain", drain(1000, 60_000)).await;
    done(&bench, 1, 1, "undo", Action::UndoDrain).await;
    // The mark of a drain that did not succeed says nothing to a fence.
    bench.machine.hold("drain");
    let late = drain(60_000, 60_000);
    let running = bench.begin(header(1, 1, "drain-again", &late), late).await;
    called(&bench.machine, "drain", 2).await;
    assert_eq!(bench.membership().drained, Some(OperationToken(1)));
    let fenced = done(&bench, 2, 2, "fence", Action::Fence).await;
    assert!(!fenced.drained && fenced.position != Some(at(11)), "{fenced:?}");
    assert!(within(running.ended()).await.is_err());
}

#[tokio::test]
async fn a_replica_hands_nothing_over() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    assert_eq!(reason(&bench, 1, 1, "drain", drain(1000, 1000)).await, Reason::PrimaryUnhealthy);
    assert_eq!(bench.machine.count("drain"), 0);
}
