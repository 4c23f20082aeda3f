//! The steps of one of two sides that both take writes: what the ledger says before and after each, and what is refused.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use regent_agent::{engine::Comparison, ledger::StepOutcome, steps::Action};
use regent_common::{
    error::Reason,
    ids::Epoch,
    topology::{Difference, EngineState, Mode, Role},
};
use support::*;

fn activate(other: bool, open: bool) -> Action {
    Action::Activate { other: other.then(|| peer(2)), open, first: false }
}

fn refill() -> Action {
    Action::Refill { source: peer(2), keep_old: true }
}

async fn side() -> Bench {
    let bench = Bench::new();
    let assign =
        Action::Assign { spec: regent_common::topology::ClusterSpec { mode: Mode::MultiMaster, ..spec() }, port: 0 };
    done(&bench, "assign", assign).await;
    bench
}

async fn done(bench: &Bench, step: &str, action: Action) -> StepOutcome {
    bench.run(header(1, 1, step, &action), action).await.expect("it was not carried out")
}

async fn refused(bench: &Bench, step: &str, action: Action) -> Reason {
    bench.run(header(1, 1, step, &action), action).await.expect_err("it was carried out").reason()
}

#[tokio::test]
async fn a_side_needs_no_lease_and_follows_whom_it_is_told() {
    let bench = side().await;
    let first = Action::Activate { other: None, open: false, first: true };
    let made = done(&bench, "first", first).await;
    assert_eq!((made.position, made.endpoint.unwrap().port), (Some(at(10)), 7777));
    let membership = bench.membership();
    assert_eq!((membership.role, membership.upstream, membership.writable_epoch), (Some(Role::Active), None, None));
    done(&bench, "open", activate(true, true)).await;
    let membership = bench.membership();
    assert_eq!((membership.role, membership.upstream), (Some(Role::Active), Some(peer(2).member)));
    assert!(bench.member.driver().unwrap().observe().await.is_open());
    // Answered, and not carried out again.
    done(&bench, "open", activate(true, true)).await;
    assert_eq!((bench.machine.count("activate"), bench.executions("open")), (2, 1));
}

#[tokio::test]
async fn the_ledger_says_that_it_is_a_side_before_it_is_opened() {
    let bench = side().await;
    bench.machine.set_running(Role::Active);
    bench.machine.hold("activate");
    let opening = bench.begin(header(1, 1, "open", &activate(false, true)), activate(false, true)).await;
    called(&bench.machine, "activate", 1).await;
    assert_eq!(bench.membership().role, Some(Role::Active));
    opening.stop();
    within(opening.ended()).await.unwrap_err();
    assert!(bench.executor.table().all().is_empty());
    bench.machine.release("activate");
    done(&bench, "open", activate(false, true)).await;
}

#[tokio::test]
async fn a_fence_ends_a_side_and_its_activation_lifts_it() {
    let bench = side().await;
    bench.machine.set_running(Role::Active);
    done(&bench, "open", activate(true, true)).await;
    let fenced = bench.run(header(2, 2, "fence", &Action::Fence), Action::Fence).await.unwrap();
    assert_eq!(fenced.writable_epoch, None);
    assert_eq!(bench.machine.state(), EngineState::Stopped);
    assert!(bench.membership().fenced);
    let again = activate(true, true);
    bench.run(header(2, 2, "again", &again), again).await.unwrap();
    let membership = bench.membership();
    assert_eq!((membership.fenced, membership.epoch), (false, Epoch(2)));
}

#[tokio::test]
async fn what_only_this_side_has_is_told_and_remembered() {
    let bench = side().await;
    bench.machine.set_running(Role::Active);
    let compare = Action::Compare { other: peer(2), what: Comparison::Presence };
    let examples = vec!["key".to_owned()];
    let found = Difference { compared: 3, only_here: 1, examples, ..Difference::default() };
    assert_eq!(done(&bench, "compare", compare.clone()).await.difference, Some(Box::new(found.clone())));
    let bench = bench.restart();
    assert_eq!(done(&bench, "compare", compare).await.difference, Some(Box::new(found)));
    assert_eq!(bench.executions("compare"), 1, "answered after a restart");
    let own = Action::Compare { other: peer(1), what: Comparison::Presence };
    assert_eq!(refused(&bench, "own", own).await, Reason::CopyNotWhole);
}

#[tokio::test]
async fn a_side_is_refilled_on_the_word_of_the_one_that_survives() {
    let bench = side().await;
    bench.machine.set_running(Role::Active);
    assert_eq!(refused(&bench, "refill", refill()).await, Reason::CopyNotWhole);
    assert_eq!((bench.machine.count("refill"), bench.membership().resyncing), (0, false));

    *bench.peers.0.lock().unwrap() = Ok(10);
    bench.machine.fail("refill", "no route");
    assert_eq!(refused(&bench, "refill", refill()).await, Reason::EngineFailed);
    let membership = bench.membership();
    assert_eq!((membership.resyncing, membership.dirty), (true, false), "its old data is back");
    bench.machine.set_dirty(true);
    assert_eq!(refused(&bench, "refill", refill()).await, Reason::EngineFailed);
    assert_eq!(refused(&bench, "open", activate(true, true)).await, Reason::DataDirty);
    bench.machine.set_dirty(false);
    bench.machine.mend("refill");
    assert!(done(&bench, "refill", refill()).await.old_data_kept);
    let membership = bench.membership();
    assert_eq!((membership.resyncing, membership.dirty, membership.fenced), (false, false, false));
    assert_eq!((membership.role, membership.upstream), (Some(Role::Active), Some(peer(2).member)));
    assert!(!bench.member.driver().unwrap().observe().await.is_open());
}

#[tokio::test]
async fn a_refill_that_was_broken_off_leaves_data_that_is_not_served() {
    let bench = side().await;
    bench.machine.set_running(Role::Active);
    *bench.peers.0.lock().unwrap() = Ok(10);
    bench.machine.hold("refill");
    let filling = bench.begin(header(1, 1, "refill", &refill()), refill()).await;
    called(&bench.machine, "refill", 1).await;
    let bench = bench.restart();
    within(filling.ended()).await.unwrap_err();
    bench.machine.release("refill");
    assert!(bench.membership().resyncing && bench.membership().dirty);
    assert_eq!(refused(&bench, "open", activate(true, true)).await, Reason::DataDirty);
    *bench.peers.0.lock().unwrap() = Ok(10);
    done(&bench, "refill", refill()).await;
    done(&bench, "open", activate(true, true)).await;
}

#[tokio::test]
async fn a_member_of_the_other_mode_is_no_side() {
    let bench = Bench::assigned().await;
    bench.machine.set_running(Role::Replica);
    assert_eq!(refused(&bench, "open", activate(true, true)).await, Reason::NotInThisMode);
    assert_eq!(refused(&bench, "refill", refill()).await, Reason::NotInThisMode);
    assert_eq!((bench.machine.count("activate"), bench.machine.count("refill")), (0, 0));
    assert_eq!(bench.membership().role, None);
}
