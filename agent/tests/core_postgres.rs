//! The executor with the real PostgreSQL driver: a life of one member from its assignment to its release.
//! Needs the programs of PostgreSQL, and root or an ordinary user.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

// The same file as of the tests over the daemons, so that no two tests of one run find the same port.
#[allow(unreachable_pub, reason = "it is public where the other tests have it")]
#[path = "../../tests/src/ports.rs"]
mod ports;
mod support;

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::{
    engine::{ENGINES, Flush},
    firewall::{Keeper, Means, fake::FakeMachine},
    ledger::{LedgerStore, RealDisk, StepOutcome},
    member::{Member, Place},
    observe,
    steps::{Action, Execution, Executor},
    supervisor::Backend,
};
use regent_common::{
    ids::Epoch,
    topology::{ClusterSpec, EngineObservation, EngineState, Role},
};
use support::{SaidByTest, header, peer, spec, within};
use tokio_util::sync::CancellationToken;

struct Agent {
    executor: Arc<Executor>,
    member: Arc<Member>,
    stop: CancellationToken,
}

/// Kills what a failed test leaves running.
struct Undertaker(std::path::PathBuf);

impl Drop for Undertaker {
    fn drop(&mut self) {
        let file = std::fs::read_to_string(self.0.join("engines/db/data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = file.lines().next().and_then(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Agent {
    /// An agent as it is after a start on this folder.
    fn start(folder: &std::path::Path) -> Self {
        let ledger = LedgerStore::open(Arc::new(RealDisk), folder.join("state"), None).unwrap();
        let member = Arc::new(Member::new(
            ENGINES,
            Place {
                data_root: folder.join("engines"),
                run_directory: folder.join("run"),
                advertise_host: "127.0.0.1".to_owned(),
                ports: None,
                sections: Default::default(),
                agent_program: env!("CARGO_BIN_EXE_regent-agent").into(),
                supervisor: Backend::Process,
            },
        ));
        if let Some(membership) = &ledger.read().membership {
            member.reopen(membership).unwrap();
        }
        let peers = Arc::new(SaidByTest(std::sync::Mutex::new(Err("nobody".to_owned()))));
        let lease = support::lease::granted(&ledger);
        let means = Means::fake(FakeMachine::new());
        let firewall = Arc::new(Keeper::new(means, &[], ledger.clone()));
        let executor = Arc::new(Executor::new(ledger, member.clone(), peers, lease, firewall, support::lease::BOOT));
        let stop = CancellationToken::new();
        let steps = executor.table().changes();
        // A period that nobody waits for: what is seen sooner was pushed.
        tokio::spawn(observe::run(member.clone(), steps, Duration::from_secs(3600), stop.clone()));
        Self { executor, member, stop }
    }

    async fn done(&self, epoch: u64, step: &str, action: Action) -> StepOutcome {
        let asked = self.executor.execute(header(epoch, epoch, step, &action), action).await.unwrap();
        match asked {
            Execution::Answered(outcome) => *outcome,
            Execution::Running(running) => {
                tokio::time::timeout(Duration::from_secs(60), running.ended()).await.expect("it took too long").unwrap()
            }
        }
    }

    async fn until(&self, state: EngineState) -> EngineObservation {
        let mut seen = self.member.watch_seen();
        let fits = |seen: &Option<EngineObservation>| seen.as_ref().is_some_and(|seen| seen.state == state);
        within(seen.wait_for(fits)).await.unwrap().clone().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_from_its_assignment_to_its_release() {
    let folder = tempfile::Builder::new().prefix("regent-core").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let _undertaker = Undertaker(folder.path().to_owned());
    for name in ["state", "run", "engines"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let port = ports::free(1).unwrap()[0];
    let mut members = vec![peer(1)];
    members[0].engine.port = port;
    let secrets = ["replication", "application"].map(|name| (name.to_owned(), "hush".into())).into();
    let spec = ClusterSpec { engine: "postgresql".to_owned(), members, secrets, ..spec() };

    let agent = Agent::start(folder.path());
    let assigned = agent.done(1, "assign", Action::Assign { spec: spec.clone(), port }).await;
    assert_eq!(assigned.endpoint.unwrap().port, port);
    agent.done(1, "configure", Action::Configure { spec: spec.clone(), fingerprint: String::new() }).await;
    let made = agent.done(1, "initialize", Action::Initialize).await;
    assert!(made.position.as_ref().is_some_and(|position| !position.is_empty()));
    let seen = agent.until(EngineState::Running).await;
    assert_eq!(seen.role, Some(Role::Primary));
    let flushed = agent.done(1, "checkpoint", Action::Checkpoint { flush: Flush::HandOver }).await;
    assert!(flushed.position.unwrap().includes(made.position.as_ref().unwrap()));
    let postmaster = Pid::from_raw(seen.pid.unwrap().try_into().unwrap());

    // The agent ends and starts again: the engine is the same process.
    agent.stop.cancel();
    drop(agent);
    let agent = Agent::start(folder.path());
    assert_eq!(agent.until(EngineState::Running).await.pid, seen.pid);

    kill(postmaster, Signal::SIGKILL).unwrap();
    agent.until(EngineState::Crashed).await;
    let fenced = agent.done(2, "fence", Action::Fence).await;
    assert_eq!(fenced.writable_epoch, Some(Epoch(1)));
    // The same node takes the next reign: its data is the most advanced there is.
    let promoted = agent.done(3, "promote", Action::Promote).await;
    assert!(promoted.position.unwrap().includes(&made.position.unwrap()));
    assert_eq!(agent.until(EngineState::Running).await.role, Some(Role::Primary));
    let membership = agent.executor.ledger().read().membership.clone().unwrap();
    assert_eq!((membership.writable_epoch, membership.fenced), (Some(Epoch(3)), false));

    agent.done(4, "release", Action::Release { keep_data: false, give_back: false }).await;
    assert_eq!(regent_agent::member::data_in(&folder.path().join("engines")), None);
    assert!(agent.member.driver().is_none());
    agent.stop.cancel();
}
