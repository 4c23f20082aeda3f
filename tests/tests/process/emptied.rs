//! A primary of Redis that is killed and there again at once, with nothing in its data directory, as a service manager and a new
//! disk would have it: at every moment of the failover, its agent there, killed as well, or back with it. No replica is ever emptied.
//!
//! A copy of its data is what a replica of this engine takes from its primary whatever that has.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api,
    process::{self, Daemon, as_user},
    scenario::Engine,
    wait,
    workload::{now_nanos, readers::Readers, writers::Writers},
};

use crate::support::{CLUSTER, SOON, Trio, how_it_was_started};

/// Rows that every replica has before the primary dies.
const ROWS: usize = 100;
/// What the engines say that are there again.
const LOG: &str = "by-hand.log";
/// Rows that may go with a dead primary: what it had not sent.
const UNSENT: usize = 5;

/// When the engine is there again with nothing.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// At once.
    Death,
    /// When an operation of this kind, one of those that the death brings about, is in this step.
    Step(&'static str, &'static str),
}

/// What becomes of its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Lives,
    /// It dies as well, and is started when another member is the primary.
    Dies,
    /// It dies as well, and is back right after the engine: neither has seen the other end.
    IsBack,
}

/// All moments, in the order in which they come.
const MOMENTS: [Moment; 8] = [
    Moment::Death,
    Moment::Step("failover", "fence"),
    Moment::Step("failover", "prepare"),
    Moment::Step("failover", "promote"),
    Moment::Step("failover", "follow"),
    Moment::Step("rejoin", "examine"),
    Moment::Step("rejoin", "restore"),
    Moment::Step("rejoin", "verify"),
];
/// Those that are another thing when the agent is dead: before anybody knows, and around the promotion.
const WITHOUT_AGENT: [Moment; 3] = [MOMENTS[0], MOMENTS[3], MOMENTS[4]];
/// What the engine says when it is there.
const READY: &str = "Ready to accept connections";

/// Removes all files in a folder.
fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        // The engine's own may go with it meanwhile.
        drop(fs::remove_file(entry.path()));
    }
}

/// Operations of the cluster of the kinds that a death brings about.
async fn operations(trio: &Trio) -> Vec<wire::Operation> {
    let mut found = trio.api().operations_of(CLUSTER, "failover").await.unwrap();
    found.extend(trio.api().operations_of(CLUSTER, "rejoin").await.unwrap());
    found
}

/// Waits until a moment has come. What is too fast to be seen has come as well.
async fn comes(trio: &Trio, moment: Moment, before: &BTreeSet<String>) {
    let Moment::Step(kind, step) = moment else { return };
    wait::until(&format!("{step} of a {kind}"), SOON, || async {
        let all = operations(trio).await;
        let seen = all.iter().find(|seen| seen.kind == kind && !before.contains(&seen.name));
        let seen = seen.context("it has not begun")?;
        let there = seen.steps.iter().find(|seen| seen.name == step).context("no such step")?;
        let has_begun = !matches!(there.state(), wire::StepState::Unspecified | wire::StepState::Pending);
        ensure!(has_begun || seen.done, "{}", api::describe(seen));
        Ok(())
    })
    .await
    .unwrap();
}

/// The engine of a member, if one runs; the member's agent may be dead.
async fn running_engine(trio: &Trio, member: &str) -> Option<u32> {
    let cluster = trio.api().cluster(CLUSTER).await.unwrap();
    let pid = api::engine_pid(api::member(&cluster, member).unwrap()).ok()?;
    process::lives(pid).then_some(pid)
}

/// Kills the primary, has it there again with nothing at a moment, and waits until all is well by itself.
#[expect(clippy::print_stdout, reason = "what readers have seen is for who reads the test's output")]
async fn comes_back_with_nothing(trio: &mut Trio, moment: Moment, agent: Agent) {
    let name = format!("{moment:?}, agent {agent:?}");
    let cluster = trio.api().complete(CLUSTER, SOON).await.unwrap();
    let old = cluster.primary.clone();
    let victim = api::member(&cluster, &old).unwrap();
    let node = api::plain(&victim.node).to_owned();
    let (_, data) = how_it_was_started(api::engine_pid(victim).unwrap());
    let configuration = data.parent().unwrap().join("conf/server.conf");
    let at_old = cluster.members.iter().position(|member| api::plain(&member.name) == old).unwrap();
    let address = trio.members[at_old].clone();
    let replicas: Vec<String> = trio.members.iter().filter(|member| **member != address).cloned().collect();
    let before: BTreeSet<String> = operations(trio).await.into_iter().map(|seen| seen.name).collect();

    trio.client.make_room(&address).await.unwrap();
    let folder = trio.folder.join(&format!("writers-{}", now_nanos()));
    let writers = Writers::start(&folder, &trio.client, &trio.members, true).unwrap();
    writers.acknowledged(0, ROWS, SOON).await.unwrap();
    for replica in &replicas {
        wait::until("rows on a replica", SOON, || async {
            let stored = trio.client.read_rows(replica).await?.len();
            ensure!(stored >= ROWS, "{replica} has {stored}");
            Ok(())
        })
        .await
        .unwrap();
    }
    let readers = Readers::start(&trio.client, &replicas.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();

    let at = now_nanos();
    if agent != Agent::Lives {
        trio.fleet.agent(&node).daemon().unwrap().kill().unwrap();
    }
    process::signal(api::engine_pid(victim).unwrap(), Signal::SIGKILL).unwrap();
    comes(trio, moment, &before).await;
    if let Some(engine) = running_engine(trio, &old).await {
        process::signal(engine, Signal::SIGKILL).unwrap();
    }
    empty(&data);
    let mut again = Command::new(Engine::Redis.server().unwrap());
    again.arg(configuration).current_dir(&data);
    as_user(&mut again, "redis").unwrap();
    let _by_hand = Daemon::start("by hand", again, &trio.folder.join(LOG)).unwrap();
    if agent == Agent::IsBack {
        trio.fleet.agent(&node).start().unwrap();
    }

    let after = trio.api().other_primary(CLUSTER, &old, SOON).await.unwrap();
    if agent == Agent::Dies {
        trio.fleet.agent(&node).start().unwrap();
    }
    writers.acknowledged_except(&address, at, ROWS, SOON).await.unwrap();
    let whole = trio.api().complete(CLUSTER, SOON).await.unwrap();
    assert_eq!(whole.primary, after.primary, "{name}: one death, one failover");
    let back = api::member(&whole, &old).unwrap();
    assert_eq!((back.role(), back.state()), (types::Role::Replica, wire::MemberState::Ready), "{name}");
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    for reading in readers.stop().await.unwrap() {
        println!("{name}: {reading:?}");
        assert!(reading.fewest_rows >= ROWS as u64, "{name}: it once had less than {ROWS} rows: {reading:?}");
    }
    let (_, account) = trio.settle(writers, at).await;
    assert!(account.lost.len() <= UNSENT, "{name}: {:?}", account.lost);
}

/// One after the other in the same cluster.
async fn at_each(moments: &[Moment], agent: Agent) {
    let mut trio = Trio::of(Engine::Redis.name(), &[]).await;
    for moment in moments {
        comes_back_with_nothing(&mut trio, *moment, agent).await;
    }
    // At its death it may be killed again before it can say anything.
    let there = fs::read_to_string(trio.folder.join(LOG)).unwrap().matches(READY).count();
    assert!(there > moments.len() / 2, "it was there {there} times only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_comes_back_with_nothing_at_any_moment_empties_nobody() {
    at_each(&MOMENTS, Agent::Lives).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_comes_back_with_nothing_and_without_its_agent_empties_nobody() {
    at_each(&WITHOUT_AGENT, Agent::Dies).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_comes_back_with_nothing_before_its_agent_is_replaced_and_empties_nobody() {
    at_each(&WITHOUT_AGENT[..1], Agent::IsBack).await;
}
