//! What all services of this agent share: the node's name, its ledger, its member, what is seen of them.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use regent_common::{
    clock::Clock,
    error::ErrorChain,
    hex::hex,
    ids::NodeName,
    lease::UntenableTimes,
    topology::{HostFacts, Observation},
};
use regent_proto::agent::v1 as wire;
use ring::rand::SecureRandom as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    answers::Answers,
    engine::Stop,
    firewall::{self, Means},
    gate::Gate,
    lease::{Endorsers, Keeper, LeaseHandle, recorder::Recorder},
    ledger::{Ledger, LedgerStore, Quarantine},
    member::Member,
    observe, quarantine,
    steps::{Executor, Peers, actions::drain, running::Running},
};

/// How long a starting agent waits until its engine has taken the settings again.
const CONFIGURE_WITHIN: Duration = Duration::from_secs(10);

/// Pause before an engine that could not be stopped is stopped again.
const STOP_AGAIN: Duration = Duration::from_millis(100);

/// One agent's state.
pub struct Node {
    /// Name of the node.
    pub name: NodeName,
    /// Id of the coordinator that it belongs to.
    pub coordinator_id: String,
    /// Boot id of its kernel.
    pub boot_id: String,
    /// Names this process; another one after every start (rule T5).
    pub incarnation: String,
    /// When this process started; for display.
    pub started_at: Timestamp,
    /// The member's driver and what is seen of the engine.
    pub member: Arc<Member>,
    /// Carries out steps; holds the ledger.
    pub executor: Arc<Executor>,
    /// Facts of the machine.
    pub host: watch::Sender<HostFacts>,
    /// The connection to the coordinator, for display.
    pub contact: watch::Sender<Contact>,
    /// The lease of this member, and its promises.
    pub lease: LeaseHandle,
    /// Keeps what the coordinator's answers bring.
    pub recorder: Recorder,
    /// What others answered when they were asked for endorsement, for display.
    pub answers: Arc<Answers>,
    /// The gate, for display: only the lease's keeper changes it.
    pub gate: Arc<dyn Gate>,
    /// Who is let in to the engine's ports.
    pub firewall: Arc<firewall::Keeper>,
    clock: Arc<dyn Clock>,
}

/// The standing connection to the coordinator, for display.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// Sessions that are open.
    pub sessions: usize,
    /// When a coordinator was heard last.
    pub heard_at: Option<Timestamp>,
    /// Whether the coordinator's store is older than one that this node has seen (rule T4).
    pub stale_store: bool,
    /// Times that it named last and that were not taken.
    pub refused_times: Option<UntenableTimes>,
}

/// What a node is made of.
pub struct Parts {
    /// Name of the node.
    pub name: NodeName,
    /// Id of the coordinator that it belongs to.
    pub coordinator_id: String,
    /// Boot id of its kernel; another one after every boot.
    pub boot_id: String,
    /// The ledger.
    pub ledger: LedgerStore,
    /// The member.
    pub member: Arc<Member>,
    /// The way to other agents.
    pub peers: Arc<dyn Peers>,
    /// The gate.
    pub gate: Arc<dyn Gate>,
    /// What it needs for its allow-list.
    pub firewall: Means,
    /// Where coordinators are reached, as host:port.
    pub coordinators: Vec<String>,
    /// The way to other members for endorsement.
    pub endorsers: Arc<dyn Endorsers>,
    /// Where the lease's keeper runs.
    pub keeper: KeeperRuns,
    /// Ends what runs beside.
    pub stop: CancellationToken,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

/// Where the lease's keeper runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperRuns {
    /// On a thread and a runtime of its own, so that nothing delays it.
    OnOwnThread,
    /// On the caller's runtime: where time is simulated.
    OnThisRuntime,
}

// === impl Node ===

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Node {
    /// Puts a node together and opens the driver that its ledger names; an engine that runs is adopted, one that is
    /// stopped stays stopped.
    ///
    /// A driver that cannot be opened is no reason not to start: the coordinator has to hear of it.
    pub async fn start(parts: Parts) -> Arc<Self> {
        let Parts {
            name,
            coordinator_id,
            boot_id,
            ledger,
            member,
            peers,
            gate,
            firewall,
            coordinators,
            endorsers,
            keeper,
            stop,
            clock,
        } = parts;
        let seen = member.clone();
        let answers = Arc::new(Answers::new(endorsers, clock.clone()));
        let (lease, task) = Keeper {
            gate: gate.clone(),
            endorsers: answers.clone(),
            ledger: ledger.watch(),
            position: Arc::new(move || seen.last_position()),
            boot_id: boot_id.clone(),
            clock: clock.clone(),
        }
        .prepare();
        // Before anything that may wait for a disk.
        match keeper {
            KeeperRuns::OnOwnThread => {
                task.run_on_own_thread(stop.clone()).expect("the system gives a thread at the start")
            }
            KeeperRuns::OnThisRuntime => drop(tokio::spawn(task.run(stop.clone()))),
        }
        // A drain does not outlive the agent that watched over its deadline (rule P6); the mark goes before what is taken up again
        // lets anybody in.
        let drained = drain::standing(&ledger.read());
        if drained.is_some()
            && let Err(error) = ledger.update(Ledger::end_drain).await
        {
            tracing::error!(error = %ErrorChain(&error), "the end of a drain could not be noted");
        }
        // Before any step can start an engine: after a boot nobody is kept out yet.
        let firewall = Arc::new(firewall::Keeper::new(firewall, &coordinators, ledger.clone()));
        firewall.restore(ledger.read().membership.as_ref()).await;
        tokio::spawn(firewall.clone().run(stop.clone()));
        reopen(&ledger, &member).await;
        if let Some(token) = drained {
            let (ledger, member) = (ledger.clone(), member.clone());
            tokio::spawn(async move { drain::lift_late(&ledger, &member, token).await });
        }
        tokio::spawn(stop_without_gate(lease.clone(), member.clone(), stop.clone()));
        tokio::spawn(quarantine::keep(ledger.clone(), lease.clone(), member.clone(), stop));
        Arc::new(Self {
            name,
            coordinator_id,
            incarnation: new_incarnation(),
            started_at: clock.wall(),
            recorder: Recorder::start(ledger.clone()),
            executor: Arc::new(Executor::new(ledger, member.clone(), peers, lease.clone(), firewall.clone(), &boot_id)),
            boot_id,
            member,
            host: watch::channel(HostFacts::default()).0,
            contact: watch::channel(Contact::default()).0,
            lease,
            answers,
            gate,
            firewall,
            clock,
        })
    }

    /// The ledger.
    pub fn ledger(&self) -> &LedgerStore {
        self.executor.ledger()
    }

    /// Takes the coordinator's word that this node's ledger is not to be believed (rule T5). It holds once it is on disk; a
    /// word that could not be kept is said again in the next session.
    pub fn enter_quarantine(&self, word: Quarantine) {
        let ledger = self.ledger().clone();
        tokio::spawn(async move {
            let reason = word.reason.clone();
            match ledger.update(move |ledger| ledger.quarantine(&word)).await {
                Ok(true) => {
                    tracing::error!(reason, "in quarantine: nothing but an assignment or a release is carried out")
                }
                Ok(false) => {}
                Err(error) => tracing::error!(error = %ErrorChain(&error), "the quarantine could not be recorded"),
            }
        });
    }

    /// Wall time, for display.
    pub fn wall(&self) -> Timestamp {
        self.clock.wall()
    }

    /// What is known of the member now; `None` for a spare. Until the engine was looked at once it counts as starting: a
    /// member that says nothing of itself would be taken for one whose disk was lost.
    pub fn observation(&self) -> Option<Observation> {
        self.observation_in(&self.ledger().read())
    }

    fn observation_in(&self, ledger: &Ledger) -> Option<Observation> {
        let membership = ledger.membership.as_ref()?;
        let engine = self.member.watch_seen().borrow().clone().unwrap_or_else(observe::not_yet);
        let driver = self.member.driver();
        Some(Observation {
            cluster_id: membership.cluster_id,
            member: membership.member.clone(),
            epoch: membership.epoch,
            token: membership.token,
            fenced: membership.fenced,
            dirty: membership.must_not_start()
                || ledger.quarantine.is_some()
                || driver.as_ref().is_some_and(|driver| driver.is_dirty()),
            endpoint: driver.map(|driver| driver.endpoint()),
            configuration: membership.configuration.clone(),
            engine,
            authority: self.lease.authority(ledger),
            observed_at: self.wall(),
            observed_ago: self.member.seen_ago(),
            allow_list: Some(self.firewall.state()),
        })
    }

    /// The running steps, as on the wire.
    pub fn jobs(&self) -> Vec<wire::Job> {
        self.executor.table().all().iter().map(|step| job(step)).collect()
    }
}

/// A name that no other process has.
fn new_incarnation() -> String {
    let mut random = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut random).expect("a system that speaks TLS has random numbers");
    hex(random)
}

fn job(running: &Running) -> wire::Job {
    wire::Job {
        operation: running.key.operation.to_string(),
        step: running.key.step.clone(),
        action: running.action.to_owned(),
        progress: Some((&*running.progress.borrow()).into()),
    }
}

/// Rule G6: where no gate closes by itself, the engine is stopped before its lease ends.
async fn stop_without_gate(lease: LeaseHandle, member: Arc<Member>, stop: CancellationToken) {
    let mut lapsed = lease.lapsed();
    loop {
        let epoch = tokio::select! {
            () = stop.cancelled() => return,
            epoch = lapsed.wait_for(Option::is_some) => match epoch {
                Ok(epoch) => *epoch,
                Err(_) => return,
            },
        };
        if let (Some(driver), Some(epoch)) = (member.driver(), epoch) {
            tracing::warn!(%epoch, "the lease ends and there is no gate on this host: the engine is stopped");
            if let Err(error) = driver.stop(Stop::Kill).await {
                tracing::error!(error = %ErrorChain(&error), "the engine could not be stopped at the end of its lease");
                tokio::time::sleep(STOP_AGAIN).await;
                continue;
            }
        }
        if lapsed.wait_for(Option::is_none).await.is_err() {
            return;
        }
    }
}

/// Opens the driver that the ledger names, and applies again what the cluster last told it.
async fn reopen(ledger: &LedgerStore, member: &Member) {
    let present = ledger.read();
    if let Some(reason) = &present.quarantine {
        tracing::error!(reason, "in quarantine: nothing but an assignment or a release is carried out");
    }
    let Some(membership) = &present.membership else { return };
    let driver = match member.reopen(membership) {
        Ok(driver) => driver,
        Err(error) => {
            tracing::error!(member = %membership.member, error = %ErrorChain(&error), "no driver for the member");
            member.note(Some(observe::without_driver(ErrorChain(&error).to_string())));
            return;
        }
    };
    if !membership.configured {
        return;
    }
    let secrets = match ledger.load_secrets().await {
        Ok(secrets) => secrets,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "the cluster's secrets cannot be read");
            return;
        }
    };
    // A data volume that hangs must not keep this agent from answering a fence.
    let spec = membership.spec.with_secrets(secrets);
    match tokio::time::timeout(CONFIGURE_WITHIN, driver.configure(&spec)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(member = %membership.member, error = %ErrorChain(&error), "the settings were not applied again");
        }
        Err(_) => tracing::warn!(member = %membership.member, "the settings could not be applied again in time"),
    }
}
