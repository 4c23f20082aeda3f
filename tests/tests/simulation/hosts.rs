//! The processes: the real coordinator, the real agents, and a person with the API, each on a host of the simulated network.
//!
//! A process that ends by itself is started again after a second, as systemd would.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use regent_agent::{
    daemon,
    engine::{Factory, fake::FakeWorld},
    enroll::Addresses,
    firewall::{Means, fake::FakeMachine},
    force::Force,
    gate::fake::FakeGate,
    hand_over::{HandedOver, hand_over},
    ledger::LedgerStore,
    member::{Member, Place},
    node::KeeperRuns,
    supervisor::Backend,
};
use regent_common::{
    clock::Clock,
    error::{Reason, reason_of},
    ids::NodeName,
    lease::Profile,
    tls::ExpectedServer,
    transport::{self, ServeOptions},
};
use regent_coordinator::{
    assembly,
    cluster::brake::Limits,
    model::{
        node::NodeRecord,
        user::{UserRecord, UserRole},
    },
    store::{Store, Transaction, keys},
};
use regent_proto::coordinator::v1::{self as wire, cluster_service_client::ClusterServiceClient};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use turmoil::net::TcpListener;

use super::{
    certificates::Certificates,
    chance::Chance,
    engine::SimulatedEngine,
    machine::{ENGINE_PORT, Machine},
    network::{SimulatedDialer, incoming},
    shown::{Shown, Wish},
    store::StoreDisk,
    strikes,
    themes::Theme,
    time,
    trace::traced,
    world::{CLUSTER, COORDINATOR},
};

/// How the host's software of the simulated network ends.
pub(crate) type Ended = Result<(), Box<dyn std::error::Error>>;

/// The engines of every agent.
static ENGINES: &[&dyn Factory] = &[&SimulatedEngine];
/// Pause before a process that ended is started again.
const RESTART: Duration = Duration::from_secs(1);
/// How often the person looks.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked whether root of a machine has said something.
const ROOT_LOOKS: Duration = Duration::from_millis(50);
/// How long an answer of the API is waited for.
const ANSWER: Duration = Duration::from_secs(3);
const COORDINATOR_PORT: u16 = 7420;

/// Puts into an empty store what `init` and `join` leave there.
pub(crate) async fn install(store: &dyn Store, machines: &[Arc<Machine>]) {
    let certificates = Certificates::all();
    let now = time::wall(time::now());
    let admin = UserRecord {
        name: "admin".parse().unwrap(),
        role: UserRole::Admin,
        revoked: false,
        created_at: now,
        created_by: "init".to_owned(),
        certificate_not_after: None,
        serials: vec![certificates.administrator.serial()],
    };
    let mut all = Transaction::default().put_json(keys::user(&admin.name), &admin);
    for machine in machines {
        let name: NodeName = machine.name.parse().unwrap();
        let node = NodeRecord {
            name: name.clone(),
            agent_address: machine.agent_address(),
            public_address: String::new(),
            private_address: String::new(),
            labels: BTreeMap::new(),
            joined_at: now,
            certificate_not_after: None,
            serials: vec![certificates.nodes[&machine.name].serial()],
            revoked: false,
            data_lost: false,
            join_cluster: None,
        };
        all = all.put_json(keys::node(&name), &node);
    }
    store.commit(all).await.unwrap();
}

/// Runs coordinators, one after the other.
pub(crate) async fn coordinator(machine: Arc<Machine>, disk: StoreDisk) -> Ended {
    loop {
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        if let Err(error) = run_coordinator(&machine, &disk, &stop).await {
            traced!("the coordinator ended: {error:#}");
        }
        tokio::time::sleep(RESTART).await;
    }
}

async fn run_coordinator(machine: &Machine, disk: &StoreDisk, stop: &CancellationToken) -> anyhow::Result<()> {
    let certificates = Certificates::all();
    let store: Arc<dyn Store> = Arc::new(disk.open());
    traced!("the coordinator starts, term {}", store.term());
    let clock: Arc<dyn Clock> = Arc::new(machine.clock.clone());
    let assembly = assembly::Assembly {
        store,
        clock,
        identity: certificates.coordinator.clone(),
        dialer: Arc::new(SimulatedDialer),
        authority: Arc::clone(&certificates.authority),
        secrets: Arc::clone(&certificates.secrets),
        default_profile: machine.profile,
        limits: Limits { failover_budget: 1000, ..Limits::default() },
        own_machine: Default::default(),
        certificate_life: Duration::from_secs(90 * 24 * 3600),
        hosts: BTreeSet::new(),
    };
    let assembly::Assembled { routes, revocations, .. } = assembly.start(stop).await?;
    let listener = TcpListener::bind(("0.0.0.0", COORDINATOR_PORT)).await?;
    let identity = certificates.coordinator.clone();
    let options = ServeOptions { revocations };
    Ok(transport::serve_incoming(incoming(listener), identity, routes, options, stop.clone()).await?)
}

/// Runs agents of a machine, one after the other.
pub(crate) async fn agent(machine: Arc<Machine>, engines: FakeWorld) -> Ended {
    loop {
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        if let Err(error) = run_agent(&machine, &engines, &stop).await {
            traced!("the agent of {} ended: {error:#}", machine.name);
        }
        tokio::time::sleep(RESTART).await;
    }
}

async fn run_agent(machine: &Arc<Machine>, engines: &FakeWorld, stop: &CancellationToken) -> anyhow::Result<()> {
    machine.stalls.disk().await;
    traced!("the agent of {} starts, {}", machine.name, machine.boot_id());
    let identity = Certificates::all().nodes[&machine.name].clone();
    let data = machine.data_root().join("db/data");
    let foreign = engines.has_data(&machine.endpoint()).then_some(&*data);
    let ledger = LedgerStore::open(Arc::new(machine.disk.clone()), PathBuf::from("/simulated/state"), foreign)?;
    let place = Place {
        data_root: machine.data_root(),
        run_directory: PathBuf::from("/simulated/run"),
        advertise_host: machine.name.clone(),
        ports: None,
        sections: BTreeMap::new(),
        agent_program: PathBuf::from("/simulated/regent-agent"),
        supervisor: Backend::Process,
    };
    let assembly = daemon::Assembly {
        name: machine.name.parse()?,
        identity: identity.clone(),
        boot_id: machine.boot_id(),
        ledger,
        member: Arc::new(Member::new(ENGINES, place)),
        gate: Arc::new(FakeGate::new(machine.passage.kernel())),
        firewall: Means::fake(FakeMachine::new()),
        keeper: KeeperRuns::OnThisRuntime,
        clock: Arc::new(machine.clock.clone()),
        dialer: Arc::new(SimulatedDialer),
        coordinators: vec![format!("{COORDINATOR}:{COORDINATOR_PORT}")],
        addresses: Addresses { agent: machine.agent_address(), public: String::new(), private: String::new() },
    };
    let daemon::Assembled { node, routes, revocations, force } = assembly.start(stop).await?;
    tokio::spawn(stop.clone().run_until_cancelled_owned(obey_root(Arc::clone(machine), force)));
    let listener = TcpListener::bind(("0.0.0.0", 7421)).await?;
    let options = ServeOptions { revocations };
    let serving = transport::serve_incoming(incoming(listener), identity, routes, options, stop.clone());
    let leaving = async {
        machine.leave.told().await;
        machine.stalls.agent().await;
        let outcome = hand_over(&node).await;
        traced!("the agent of {} leaves: {outcome:?}", machine.name);
        machine.leave.set_ready(matches!(outcome, HandedOver::For(_)));
        std::future::pending().await
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = leaving => Ok(()),
    }
}

/// Does what root of the machine tells the agent, who has it from the agent's own socket.
async fn obey_root(machine: Arc<Machine>, force: Arc<Force>) {
    loop {
        if let Some(words) = machine.take_force() {
            let answer = Arc::clone(&force).run(words).await;
            let why: Vec<_> = answer.refusals.iter().map(|refused| refused.message.as_str()).collect();
            traced!("{} forced: {:?} {}{}", machine.name, answer.outcome, why.join("; "), answer.problem);
        }
        tokio::time::sleep(ROOT_LOOKS).await;
    }
}

/// A person with the API: makes the cluster, also when an attempt has failed and is gone, looks at it for ever, and asks for a
/// resync or a planned promotion now and then, or takes a member out and makes its node another one.
pub(crate) async fn person(nodes: Vec<String>, shown: Shown, seed: u64) -> Ended {
    let mut chance = Chance::of(seed, "person");
    let resyncs = chance.percent(40) && Theme::of(seed).is_resynced();
    let mut plans = Chance::of(seed, "plans");
    let promotes = plans.percent(40) && Theme::of(seed).is_resynced();
    let mut shapes = Chance::of(seed, "shapes");
    let reshapes = shapes.percent(50) && Theme::of(seed) == Theme::Free;
    let mut channel = None;
    loop {
        let outcome = tokio::time::timeout(ANSWER, async {
            let connected = match channel.take() {
                Some(channel) => channel,
                None => connect().await?,
            };
            if !look(&connected, &shown).await? {
                if strikes::on_this_thread().is_some_and(|strike| strike.is_of_adoption()) {
                    adopt(&connected, &nodes, chance.next()).await?;
                } else {
                    create(&connected, &nodes, chance.next()).await?;
                }
            }
            // What it says a person has to do is done when all else is over.
            if let Some(node) = nodes.iter().find(|node| shown.has_lost_data(node)) {
                resync(&connected, &shown, node).await?;
            }
            if resyncs && shown.disturbed() && chance.percent(5) {
                let node: &String = chance.pick(&nodes);
                resync(&connected, &shown, node).await?;
            }
            if promotes && shown.disturbed() && plans.percent(8) {
                let node: &String = plans.pick(&nodes);
                promote(&connected, node).await?;
            }
            if reshapes && shown.disturbed() && shapes.percent(8) {
                let node: &String = shapes.pick(&nodes);
                reshape(&connected, &shown, node).await?;
            }
            match shown.take_wish() {
                Some(Wish::Resync(node)) => resync(&connected, &shown, &node).await?,
                Some(Wish::Promote(node)) => promote(&connected, &node).await?,
                Some(Wish::Reshape(node)) => reshape(&connected, &shown, &node).await?,
                Some(Wish::Allow) => allow(&connected).await?,
                Some(Wish::Delete) => delete(&connected).await?,
                Some(Wish::Profile(profile)) => change_profile(&connected, profile).await?,
                Some(Wish::Failover { off }) => fail_over(&connected, off).await?,
                None => {}
            }
            Ok::<Channel, anyhow::Error>(connected)
        })
        .await;
        match outcome {
            Ok(Ok(connected)) => channel = Some(connected),
            Ok(Err(error)) => shown.not_answered(&error.to_string()),
            Err(_) => shown.not_answered("no answer"),
        }
        let next = tokio::time::Instant::now() + LOOK;
        while tokio::time::Instant::now() < next && !shown.wished() {
            tokio::time::sleep(LOOK / 20).await;
        }
    }
}

/// The member that lives on a node, as long as nobody has taken it out: they are numbered alike.
pub(crate) fn member_on(node: &str) -> String {
    node.replacen('n', CLUSTER, 1)
}

/// Gives the cluster other times, or is refused.
async fn change_profile(channel: &Channel, profile: Profile) -> anyhow::Result<()> {
    let request = wire::UpdateClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        profile: profile.to_string(),
        ..Default::default()
    };
    match ClusterServiceClient::new(channel.clone()).update_cluster(request).await {
        Ok(_) => traced!("the times are those of {profile}"),
        Err(status) => traced!("other times were refused: {}", status.message()),
    }
    Ok(())
}

/// Lets one more range of addresses in, and those that are not in the list not any more.
async fn allow(channel: &Channel) -> anyhow::Result<()> {
    let request = wire::SetAllowListRequest {
        name: format!("clusters/{CLUSTER}"),
        change: wire::AllowListChange::Add.into(),
        ranges: vec!["192.0.2.0/24".to_owned()],
        ..Default::default()
    };
    match ClusterServiceClient::new(channel.clone()).set_allow_list(request).await {
        Ok(_) => traced!("an allow-list was asked for"),
        Err(status) => traced!("an allow-list was refused: {}", status.message()),
    }
    Ok(())
}

async fn connect() -> anyhow::Result<Channel> {
    let identity = Certificates::all().administrator.clone();
    let expected = ExpectedServer::AnyCoordinatorOf(identity.identity().coordinator_id);
    let address = format!("{COORDINATOR}:{COORDINATOR_PORT}");
    Ok(transport::connect_through(Arc::new(SimulatedDialer), &address, Some(identity), expected).await?)
}

async fn create(channel: &Channel, nodes: &[String], request: u64) -> anyhow::Result<()> {
    let request = wire::CreateClusterRequest {
        cluster: CLUSTER.to_owned(),
        engine: "fake".to_owned(),
        nodes: nodes.to_vec(),
        port: ENGINE_PORT.into(),
        request_id: request.to_string(),
        ..Default::default()
    };
    let answer = ClusterServiceClient::new(channel.clone()).create_cluster(request).await;
    answer.map_err(|status| anyhow::anyhow!("create: {}", status.message()))?;
    traced!("the cluster was asked for");
    Ok(())
}

/// Makes the cluster of the instances that run on the nodes and are nobody's.
async fn adopt(channel: &Channel, nodes: &[String], request: u64) -> anyhow::Result<()> {
    let request = wire::AdoptClusterRequest {
        cluster: CLUSTER.to_owned(),
        nodes: nodes.to_vec(),
        request_id: request.to_string(),
        ..Default::default()
    };
    let answer = ClusterServiceClient::new(channel.clone()).adopt_cluster(request).await;
    answer.map_err(|status| anyhow::anyhow!("adopt: {}", status.message()))?;
    traced!("the adoption of the instances was asked for");
    Ok(())
}

/// Asks for a planned promotion, or is refused.
async fn promote(channel: &Channel, node: &str) -> anyhow::Result<()> {
    let (name, member) = (format!("clusters/{CLUSTER}"), node.to_owned());
    let request = wire::PromoteMemberRequest { name, member, ..Default::default() };
    match ClusterServiceClient::new(channel.clone()).promote_member(request).await {
        Ok(_) => traced!("a promotion of the member on {node} was asked for"),
        Err(status) => traced!("a promotion of the member on {node} was refused: {}", status.message()),
    }
    Ok(())
}

/// Removes the cluster, or is refused. It is made again by who finds none.
async fn delete(channel: &Channel) -> anyhow::Result<()> {
    let name = format!("clusters/{CLUSTER}");
    let request = wire::DeleteClusterRequest { name, confirm_name: CLUSTER.to_owned(), ..Default::default() };
    match ClusterServiceClient::new(channel.clone()).delete_cluster(request).await {
        Ok(_) => traced!("the removal of the cluster was asked for"),
        Err(status) => traced!("the removal of the cluster was refused: {}", status.message()),
    }
    Ok(())
}

/// Asks for a failover whatever it loses, and vouches that a node is off.
async fn fail_over(channel: &Channel, off: Option<String>) -> anyhow::Result<()> {
    let request = wire::FailoverClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: CLUSTER.to_owned(),
        accept_data_loss: true,
        confirm_off: off.into_iter().collect(),
        ..Default::default()
    };
    match ClusterServiceClient::new(channel.clone()).failover_cluster(request).await {
        Ok(_) => traced!("a failover was asked for"),
        Err(status) => traced!("a failover was refused: {}", status.message()),
    }
    Ok(())
}

/// Takes the member on a node out of the cluster, or makes one there. Refusals are no failure.
async fn reshape(channel: &Channel, shown: &Shown, node: &str) -> anyhow::Result<()> {
    let name = format!("clusters/{CLUSTER}");
    let mut clusters = ClusterServiceClient::new(channel.clone());
    let (what, answer) = match shown.member_on(node) {
        Some(member) => {
            let confirm_name = member.clone();
            let request = wire::RemoveMemberRequest { name, member, confirm_name, ..Default::default() };
            ("removal of the member", clusters.remove_member(request).await)
        }
        None => {
            let request = wire::AddMemberRequest { name, node: node.to_owned(), ..Default::default() };
            ("member", clusters.add_member(request).await)
        }
    };
    match answer {
        Ok(_) => traced!("a {what} on {node} was asked for"),
        Err(status) => traced!("a {what} on {node} was refused: {}", status.message()),
    }
    Ok(())
}

/// Refusals are no failure: the primary cannot be resynced, say.
async fn resync(channel: &Channel, shown: &Shown, node: &str) -> anyhow::Result<()> {
    let Some(member) = shown.member_on(node) else { return Ok(()) };
    let request = wire::ResyncClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        members: vec![member.clone()],
        confirm_name: member.clone(),
        ..Default::default()
    };
    match ClusterServiceClient::new(channel.clone()).resync_cluster(request).await {
        Ok(_) => traced!("a resync of {member} was asked for"),
        Err(status) => traced!("a resync of {member} was refused: {}", status.message()),
    }
    Ok(())
}

/// Looks at the cluster; false when there is none.
async fn look(channel: &Channel, shown: &Shown) -> anyhow::Result<bool> {
    let request = wire::GetClusterRequest { name: format!("clusters/{CLUSTER}") };
    match ClusterServiceClient::new(channel.clone()).get_cluster(request).await {
        Ok(cluster) => {
            shown.answered(cluster.into_inner());
            Ok(true)
        }
        Err(status) if reason_of(&status) == Some(Reason::ClusterNotFound) => Ok(false),
        Err(status) => Err(anyhow::anyhow!("{}", status.message())),
    }
}
