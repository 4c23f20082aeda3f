//! Every kind of operation with a fault in the middle of it, once each: the coordinator is killed, the agent that carries out the
//! step is, the engine that is copied from is, its machine is cut off from everything, the disk that is written to is full. (The
//! coordinator is killed at every step of most kinds by the process tests as well.)
//!
//! The fault is mended after a while, and nobody does anything else: in the end the cluster is well, no row is lost that did not go
//! with a failover, and there were never two primaries.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, request_id},
    cluster::{COORDINATOR, Fleet, create_request},
    folder::TestFolder,
    network::{CLIENTS, Network},
    place::Site,
    process::{self, program},
    wait,
    workload::{Login, checker, now_nanos, postgres, writers::Writers},
};

use crate::support::{PROFILE, SOON, inside};

const CLUSTER: &str = "db";
const ENGINE: &str = "postgresql";
const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// Nodes of the cluster between two runs; the last one is the spare.
const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];
/// What is copied, at which rate: long enough for a fault to come into the middle.
const BALLAST_MIB: u32 = 48;
const RATE: u64 = 16 << 20;
/// How long a fault lasts: longer than a primary may be silent.
const LASTS: Duration = Duration::from_secs(4);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL for the coordinator.
    Coordinator,
    /// SIGKILL for the agent of the member that the step is about.
    Agent,
    /// SIGKILL for the engine of the primary.
    Donor,
    /// The primary's machine hears nobody, and nobody hears it.
    DonorCut,
    /// Nothing more can be written to the disk of the member that the step is about.
    DiskFull,
}

/// What is asked for, or happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Create,
    Add,
    Remove,
    Resync,
    Promote,
    Failover,
    Rejoin,
    Configure,
    Delete,
}

const FAULTS: [Fault; 5] = [Fault::Coordinator, Fault::Agent, Fault::Donor, Fault::DonorCut, Fault::DiskFull];
/// Those that copy a member's data, or bring it back.
const COPYING: [Change; 4] = [Change::Add, Change::Resync, Change::Rejoin, Change::Create];
/// All others.
const OTHERS: [Change; 5] = [Change::Remove, Change::Promote, Change::Failover, Change::Configure, Change::Delete];

// === impl Change ===

impl Change {
    /// The kind of its operation.
    fn kind(self) -> &'static str {
        match self {
            Self::Create => "create_cluster",
            Self::Add => "add_member",
            Self::Remove => "remove_member",
            Self::Resync => "resync",
            Self::Promote => "promote",
            Self::Failover => "failover",
            Self::Rejoin => "rejoin",
            Self::Configure => "configure",
            Self::Delete => "delete_cluster",
        }
    }

    /// The step in the middle of which the fault comes.
    fn step(self) -> &'static str {
        match self {
            Self::Create | Self::Add | Self::Resync => "clone",
            Self::Remove | Self::Delete => "release",
            Self::Promote => "drain",
            Self::Failover => "promote",
            Self::Rejoin => "restore",
            Self::Configure => "configure",
        }
    }

    /// Whether the step copies, so that the fault waits for the first bytes.
    fn copies(self) -> bool {
        matches!(self, Self::Add | Self::Resync)
    }
}

/// The machines and what is on them.
struct Stage {
    fleet: Fleet,
    folder: TestFolder,
    runs: u32,
}

// === impl Stage ===

impl Stage {
    async fn new() -> Result<Self> {
        let folder = TestFolder::new()?;
        let site = Site::Network(Network::new(folder.path())?);
        let fleet = Fleet::start_at(&folder, &NODES, program("regent-coordinator")?, site).await?;
        Ok(Self { fleet, folder, runs: 0 })
    }

    fn name() -> String {
        format!("clusters/{CLUSTER}")
    }

    async fn cluster(&self) -> Result<wire::Cluster> {
        self.fleet.api.cluster(CLUSTER).await
    }

    /// Sees to it that there is a cluster of these nodes, with data, and waits until it is well.
    async fn whole(&self) -> Result<wire::Cluster> {
        if self.cluster().await.is_err() {
            let request = create_request(CLUSTER, ENGINE, &MEMBERS, PROFILE);
            let cluster = self.fleet.api.create(request, SOON).await?;
            let login = self.fleet.api.login(CLUSTER).await?;
            let primary = &api::endpoints(&cluster)?[0];
            postgres::create_table(&login, primary).await?;
            postgres::add_ballast(&login, primary, BALLAST_MIB).await?;
        }
        loop {
            let cluster = self.fleet.api.healthy(CLUSTER, SOON).await?;
            let on: BTreeMap<_, _> =
                cluster.members.iter().map(|member| (api::plain(&member.node), api::plain(&member.name))).collect();
            let missing = MEMBERS.iter().find(|node| !on.contains_key(*node));
            let operation = match (missing, on.get(NODES[3])) {
                (Some(node), _) => self.add(node, 0).await?,
                (None, Some(extra)) if *extra == cluster.primary => self.promote(on[MEMBERS[0]]).await?,
                (None, Some(extra)) => self.remove(extra).await?,
                (None, None) => return Ok(cluster),
            };
            self.fleet.api.finish(&operation.name, SOON).await?;
        }
    }

    async fn add(&self, node: &str, rate: u64) -> Result<wire::Operation> {
        let request = wire::AddMemberRequest {
            name: Self::name(),
            node: node.to_owned(),
            max_bytes_per_second: rate,
            request_id: request_id(),
            ..Default::default()
        };
        Ok(self.fleet.api.clusters().add_member(request).await?.into_inner())
    }

    async fn promote(&self, member: &str) -> Result<wire::Operation> {
        // It may still have to catch up.
        wait::until("a promotion", SOON, || async {
            let request = wire::PromoteMemberRequest {
                name: Self::name(),
                member: member.to_owned(),
                request_id: request_id(),
                ..Default::default()
            };
            Ok(self.fleet.api.clusters().promote_member(request).await?.into_inner())
        })
        .await
    }

    async fn remove(&self, member: &str) -> Result<wire::Operation> {
        let request = wire::RemoveMemberRequest {
            name: Self::name(),
            member: member.to_owned(),
            confirm_name: member.to_owned(),
            request_id: request_id(),
            ..Default::default()
        };
        Ok(self.fleet.api.clusters().remove_member(request).await?.into_inner())
    }

    /// Lets a change begin; the node of the member that it is about.
    async fn begin(&mut self, change: Change, cluster: &wire::Cluster) -> Result<String> {
        let replica = |nth: usize| {
            let mut replicas = cluster.members.iter().filter(|member| api::plain(&member.name) != cluster.primary);
            let replica = replicas.nth(nth).context("no replica")?;
            anyhow::Ok((api::plain(&replica.name).to_owned(), api::plain(&replica.node).to_owned()))
        };
        let primary = || api::member(cluster, &cluster.primary);
        let mut clusters = self.fleet.api.clusters();
        Ok(match change {
            Change::Create => {
                clusters.create_cluster(create_request(CLUSTER, ENGINE, &MEMBERS, PROFILE)).await?;
                MEMBERS[1].to_owned()
            }
            Change::Add => {
                self.add(NODES[3], RATE).await?;
                NODES[3].to_owned()
            }
            Change::Remove => {
                let (member, node) = replica(0)?;
                self.remove(&member).await?;
                node
            }
            Change::Resync => {
                let (member, node) = replica(0)?;
                let request = wire::ResyncClusterRequest {
                    name: Self::name(),
                    members: vec![member.clone()],
                    confirm_name: member,
                    max_bytes_per_second: RATE,
                    request_id: request_id(),
                    ..Default::default()
                };
                clusters.resync_cluster(request).await?;
                node
            }
            Change::Promote => {
                let (member, node) = replica(0)?;
                self.promote(&member).await?;
                node
            }
            Change::Failover | Change::Rejoin => {
                let primary = primary()?;
                process::signal(api::engine_pid(primary)?, Signal::SIGKILL)?;
                if change == Change::Rejoin { api::plain(&primary.node).to_owned() } else { replica(0)?.1 }
            }
            Change::Configure => {
                // Who was away while another one left has to be told.
                let ((leaves, _), (_, away)) = (replica(0)?, replica(1)?);
                self.add_spare().await?;
                self.fleet.agent(&away).daemon()?.kill()?;
                let operation = self.remove(&leaves).await?;
                self.fleet.api.succeed(&operation.name, SOON).await?;
                self.fleet.agent(&away).start()?;
                away
            }
            Change::Delete => {
                let request = wire::DeleteClusterRequest {
                    name: Self::name(),
                    confirm_name: CLUSTER.to_owned(),
                    request_id: request_id(),
                    ..Default::default()
                };
                clusters.delete_cluster(request).await?;
                replica(0)?.1
            }
        })
    }

    /// One more member, so that one may leave while another one is away.
    async fn add_spare(&self) -> Result<()> {
        let operation = self.add(NODES[3], 0).await?;
        self.fleet.api.succeed(&operation.name, SOON).await?;
        self.fleet.api.healthy(CLUSTER, SOON).await.map(drop)
    }

    /// Waits until the change is in the middle of its step; the name of the operation.
    async fn middle(&self, change: Change, since: &[String]) -> Result<String> {
        wait::until(&format!("{change:?} in {}", change.step()), SOON, || async {
            let request = wire::ListOperationsRequest { cluster: Self::name(), ..Default::default() };
            let all = self.fleet.api.operations().list_operations(request).await?.into_inner().operations;
            let mut new = all.iter().filter(|seen| seen.kind == change.kind() && !since.contains(&seen.name));
            let seen = new.next().context("it has not begun")?;
            let step = seen.steps.iter().find(|step| step.name == change.step()).context("no such step")?;
            let bytes = step.progress.as_ref().map_or(0, |progress| progress.bytes_done);
            let there = match step.state() {
                wire::StepState::Running => !change.copies() || bytes > 0,
                wire::StepState::Unspecified | wire::StepState::Pending => false,
                // It was too fast to be seen.
                _ => true,
            };
            ensure!(there || seen.done, "{}", api::describe(seen));
            Ok(seen.name.clone())
        })
        .await
    }

    async fn operations(&self) -> Result<Vec<String>> {
        let request = wire::ListOperationsRequest { cluster: Self::name(), ..Default::default() };
        let all = self.fleet.api.operations().list_operations(request).await?.into_inner().operations;
        Ok(all.into_iter().map(|operation| operation.name).collect())
    }

    /// Lets a fault strike, waits, and mends it. `node` is that of the member, `primary` the one of before.
    async fn strike(&mut self, fault: Fault, node: &str, primary: &wire::Member) -> Result<()> {
        let donor = api::plain(&primary.node).to_owned();
        match fault {
            Fault::Coordinator => {
                self.fleet.coordinator.daemon()?.kill()?;
                tokio::time::sleep(LASTS).await;
                self.fleet.coordinator.start()?;
                self.fleet.all_connected().await
            }
            Fault::Agent => {
                self.fleet.agent(node).daemon()?.kill()?;
                tokio::time::sleep(LASTS).await;
                self.fleet.agent(node).start()
            }
            Fault::Donor => {
                // It may be the one that has died already.
                drop(process::signal(api::engine_pid(primary)?, Signal::SIGKILL));
                tokio::time::sleep(LASTS).await;
                Ok(())
            }
            Fault::DonorCut => {
                let others = NODES.iter().copied().filter(|other| *other != donor).chain([COORDINATOR, CLIENTS]);
                let cuts: Vec<_> =
                    others.flat_map(|other| [(donor.as_str(), other), (other, donor.as_str())]).collect();
                self.fleet.network()?.cut(&cuts)?;
                tokio::time::sleep(LASTS).await;
                self.fleet.network()?.heal()
            }
            Fault::DiskFull => {
                self.fleet.network()?.with_disk(node, |disk| disk.fill())?;
                tokio::time::sleep(LASTS).await;
                self.fleet.network()?.with_disk(node, |disk| disk.empty())
            }
        }
    }

    /// One run; what was seen, for people.
    async fn run(&mut self, change: Change, fault: Fault) -> Result<String> {
        self.runs += 1;
        let mut before = None;
        if change == Change::Create {
            self.gone().await?;
        } else {
            before = Some(self.whole().await?);
        }
        let writers = match &before {
            Some(cluster) => Some(self.write(cluster).await?),
            None => None,
        };
        let since = self.operations().await?;
        let began = now_nanos();
        let cluster = before.clone().unwrap_or_default();
        let node = self.begin(change, &cluster).await?;
        let name = self.middle(change, &since).await?;
        let donor = match &before {
            Some(cluster) => api::member(cluster, &cluster.primary)?.clone(),
            // Of a cluster that is being made: the first node's.
            None => self.cluster().await?.members.into_iter().next().context("no member")?,
        };
        self.strike(fault, &node, &donor).await?;
        let ended = self.fleet.api.finish(&name, SOON).await;
        let outcome = match &ended {
            Ok(ended) if ended.error.is_empty() => "succeeded".to_owned(),
            Ok(ended) => format!("{:?}: {} {}", ended.state(), ended.error_reason, ended.error),
            // With the cluster's own record its operations may go.
            Err(error) if change == Change::Delete => format!("{error:#}"),
            Err(error) => bail!("the operation does not end: {error:#}"),
        };
        if change == Change::Delete || (change == Change::Create && self.cluster().await.is_err()) {
            drop(writers);
            self.gone().await.context("what is left of it")?;
            return Ok(outcome);
        }
        let after = self.fleet.api.healthy(CLUSTER, SOON).await.with_context(|| outcome.clone())?;
        if let Some((login, writers)) = writers {
            writers.acknowledged(now_nanos(), 20, SOON).await?;
            let (members, failed_over) = (api::endpoints(&after)?, after.epoch > cluster.epoch);
            self.account(&login, writers, &members, began, failed_over).await?;
        }
        Ok(outcome)
    }

    async fn write(&self, cluster: &wire::Cluster) -> Result<(Login, Writers)> {
        let login = self.fleet.api.login(CLUSTER).await?;
        let spare = format!("{}:5432", self.fleet.agents[NODES[3]].place().address());
        let members: Vec<_> = api::endpoints(cluster)?.into_iter().chain([spare]).collect();
        let folder = self.folder.join(&format!("writers-{}", self.runs));
        let writers = Writers::start_called(&self.prefix(), &folder, &login, &members, true)?;
        writers.acknowledged(0, 20, SOON).await?;
        Ok((login, writers))
    }

    /// Before each writer's name in this run: a row of an earlier one may still arrive.
    fn prefix(&self) -> String {
        format!("run{}-", self.runs)
    }

    /// Stops the writers and compares what they were told with what is stored, on every member.
    async fn account(
        &self,
        login: &Login,
        writers: Writers,
        members: &[String],
        began: u64,
        failed_over: bool,
    ) -> Result<()> {
        let histories = writers.stop().await?;
        let primary = postgres::find_primary(login, members).await?;
        let mut stored = wait::until("the same rows on every member", SOON, || async {
            let stored = postgres::read_rows(login, &primary).await?;
            for member in members {
                let copy = postgres::read_rows(login, member).await?;
                ensure!(copy == stored, "{member} has {} rows, {primary} has {}", copy.len(), stored.len());
            }
            Ok(stored)
        })
        .await?;
        stored.retain(|(writer, _), _| writer.starts_with(&self.prefix()));
        let account = checker::account(&histories, &stored);
        ensure!(account.is_consistent(), "{account:?}");
        ensure!(failed_over || account.lost.is_empty(), "lost without a failover: {:?}", account.lost);
        let overlaps = checker::overlaps(&histories, began, u64::MAX);
        ensure!(overlaps.is_empty(), "two primaries: {overlaps:?}");
        Ok(())
    }

    /// Sees to it that there is no cluster and that every node is a spare with nothing on it.
    async fn gone(&self) -> Result<()> {
        if let Ok(cluster) = self.cluster().await
            && cluster.operation.is_empty()
        {
            let request = wire::DeleteClusterRequest {
                name: Self::name(),
                confirm_name: CLUSTER.to_owned(),
                request_id: request_id(),
                ..Default::default()
            };
            self.fleet.api.clusters().delete_cluster(request).await?;
        }
        wait::until("spares", SOON, || async {
            if let Ok(cluster) = self.cluster().await {
                bail!("the cluster is there: {:?}", cluster.reasons);
            }
            for node in self.fleet.api.all_nodes().await? {
                let left = std::fs::read_dir(self.fleet.agents[api::plain(&node.name)].home.join("engines"))?;
                let left: Vec<_> = left.filter_map(Result::ok).map(|entry| entry.path()).collect();
                ensure!(node.connected && node.reason.is_empty(), "{}: {}", node.name, node.reason);
                ensure!(left.is_empty(), "{left:?}");
            }
            Ok(())
        })
        .await
    }
}

/// Whether one is to be run: all are, or those whose names a variable lists, such as `REGENT_TEST_CHANGES=Add,Resync` or
/// `REGENT_TEST_FAULTS=Agent`.
fn wanted(variable: &str, one: impl std::fmt::Debug) -> bool {
    std::env::var(variable).map_or(true, |names| names.split(',').any(|name| name == format!("{one:?}")))
}

#[test]
fn every_operation_that_copies_ends_well_with_a_fault_in_the_middle_of_it() {
    run_all(&COPYING);
}

#[test]
fn every_other_operation_ends_well_with_a_fault_in_the_middle_of_it() {
    run_all(&OTHERS);
}

/// Every fault in every one of these changes.
#[expect(clippy::print_stdout, reason = "what each run came to is for who reads the test's output")]
fn run_all(changes: &[Change]) {
    inside(|| async {
        let mut stage: Option<Stage> = None;
        let mut complaints = Vec::new();
        for change in changes.iter().copied().filter(|change| wanted("REGENT_TEST_CHANGES", change)) {
            for fault in FAULTS.into_iter().filter(|fault| wanted("REGENT_TEST_FAULTS", fault)) {
                let mut used = match stage.take() {
                    Some(stage) => stage,
                    None => Stage::new().await.unwrap(),
                };
                let began = now_nanos();
                match used.run(change, fault).await {
                    Ok(outcome) => {
                        let seconds = Duration::from_nanos(now_nanos() - began).as_secs_f64();
                        println!("{change:?} {fault:?}: {seconds:.1} s, {outcome}");
                        stage = Some(used);
                    }
                    Err(error) => {
                        println!("{change:?} {fault:?}: WRONG");
                        let folder = used.folder.path().display();
                        complaints.push(format!("{change:?} {fault:?}: {error:#} (logs: {folder})"));
                        // The next one needs another stage; the logs of this one are worth keeping.
                        used.folder.keep();
                    }
                }
            }
        }
        assert!(complaints.is_empty(), "\n  {}", complaints.join("\n  "));
    });
}
