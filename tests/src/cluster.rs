//! A coordinator and its agents as real processes, from the programs of this workspace: on loopback, or each on a machine
//! of its own in a network of the test's ([`Site`]).
//!
//! Everything of them stands in the test's folder: `coordinator/`, one folder for each node, `logs/`. The fleet knows how
//! the daemons are started and told things; what to do with them is the test's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use regent_proto::coordinator::v1 as wire;

use crate::{
    api::{Api, request_id},
    engines::{find_server, redis_user},
    folder::TestFolder,
    network::Network,
    place::{Place, Site},
    process::{Daemon, program},
    profile::Profile,
    wait,
};

/// How long a daemon may take until it answers, and a node until it is connected.
pub(crate) const UP: Duration = Duration::from_secs(30);
/// How long creating a cluster may take.
pub const CREATE: Duration = Duration::from_secs(180);

/// The coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// host:port of its API.
    pub address: String,
    /// host:port of health and metrics.
    pub http: String,
    /// Folder of its configuration and state.
    pub home: PathBuf,
    place: Place,
    program: PathBuf,
    log: PathBuf,
    environment: BTreeMap<String, String>,
    daemon: Option<Daemon>,
}

/// An agent.
#[derive(Debug)]
pub struct Agent {
    /// Name of its node.
    pub node: String,
    /// host:port of its API.
    pub address: String,
    /// host:port of health and metrics.
    pub http: String,
    /// Port that its engine gets.
    pub engine_port: u16,
    /// Folder of its configuration, state, engines and sockets.
    pub home: PathBuf,
    /// Name of its gate's table: agents that share a network share its nftables. Empty for no gate, from the next
    /// [`Agent::configure`] and start on.
    pub gate_table: String,
    place: Place,
    program: PathBuf,
    log: PathBuf,
    daemon: Option<Daemon>,
}

/// A coordinator with agents that have joined.
#[derive(Debug)]
pub struct Fleet {
    /// The coordinator.
    pub coordinator: Coordinator,
    /// Agents by node.
    pub agents: BTreeMap<String, Agent>,
    /// The first administrator's connection.
    pub api: Api,
    root: PathBuf,
    site: Site,
}

/// Engines that are one program, and have the same keys in their sections.
const ONE_PROGRAM: [&str; 3] = ["redis", "valkey", "keydb"];

/// Name of the coordinator's place.
pub const COORDINATOR: &str = "coordinator";

/// Runs a command to its end; what it wrote is in the error when it fails.
pub fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Connects to a coordinator as its first administrator, as soon as it answers.
async fn connect(coordinator: &Coordinator) -> Result<Api> {
    wait::until("the coordinator", UP, || async {
        let api = Api::connect(&coordinator.address, &coordinator.admin()).await?;
        api.all_nodes().await?;
        Ok(api)
    })
    .await
}

/// What is asked to create a cluster: the one place in which the harness says what every cluster of a test is like.
pub fn create_request(cluster: &str, engine: &str, nodes: &[&str], profile: Profile) -> wire::CreateClusterRequest {
    wire::CreateClusterRequest {
        cluster: cluster.to_owned(),
        engine: engine.to_owned(),
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        profile: profile.name().to_owned(),
        request_id: request_id(),
        ..Default::default()
    }
}

// === impl Coordinator ===

impl Coordinator {
    /// Makes its folder, configuration, authority and first administrator on loopback; does not start it.
    pub fn init(root: &Path, program: PathBuf) -> Result<Self> {
        Self::init_at(root, program, &Site::Loopback)
    }

    /// The same where the site has its place.
    pub fn init_at(root: &Path, program: PathBuf, site: &Site) -> Result<Self> {
        let home = root.join(COORDINATOR);
        fs::create_dir_all(&home)?;
        fs::create_dir_all(root.join("logs"))?;
        let place = site.place(COORDINATOR, &home)?;
        let ([grpc, http], address) = (place.ports([7420, 7422])?, place.address());
        let coordinator = Self {
            address: format!("{address}:{grpc}"),
            http: format!("{address}:{http}"),
            place,
            program,
            log: root.join("logs/coordinator.log"),
            environment: BTreeMap::new(),
            daemon: None,
            home,
        };
        let config = format!(
            "listen = {:?}\nhttp_listen = {:?}\nstate_dir = {:?}\npromote_on_this_machine = true\nfailover_budget = 1000\n",
            coordinator.address,
            coordinator.http,
            coordinator.home.join("state"),
        );
        fs::write(coordinator.config(), config)?;
        let mut init = coordinator.command("init")?;
        init.args(["--advertise", &address]);
        run(init)?;
        Ok(coordinator)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.join("coordinator.toml")
    }

    /// Identity directory of the first administrator.
    pub fn admin(&self) -> PathBuf {
        self.home.join("state/admin")
    }

    /// Identity directory of the coordinator itself, which agents obey.
    pub fn own_identity(&self) -> PathBuf {
        self.home.join("state/identity")
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its program with a subcommand and its configuration.
    pub fn command(&self, verb: &str) -> Result<Command> {
        let mut command = self.place.command(&self.program)?;
        command.arg(verb).arg("--config").arg(self.config()).envs(&self.environment);
        Ok(command)
    }

    /// Runs another build of it from now on (failpoints).
    pub fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Sets or removes a variable of its environment, from its next start on.
    pub fn set_environment(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.environment.insert(name.to_owned(), value.to_owned())),
            None => drop(self.environment.remove(name)),
        }
    }

    /// Starts it; returns at once.
    pub fn start(&mut self) -> Result<()> {
        self.daemon = Some(Daemon::start(COORDINATOR, self.command("serve")?, &self.log)?);
        Ok(())
    }

    /// Its process.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the coordinator does not run")
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the coordinator does not run")?.pid())
    }
}

// === impl Agent ===

impl Agent {
    /// Makes the folder and the configuration of a node on loopback; does not join and does not start.
    pub fn prepare(root: &Path, node: &str, program: PathBuf) -> Result<Self> {
        Self::prepare_at(root, node, program, &Site::Loopback)
    }

    /// The same where the site has its place.
    pub fn prepare_at(root: &Path, node: &str, program: PathBuf, site: &Site) -> Result<Self> {
        let home = root.join(node);
        fs::create_dir_all(&home)?;
        let place = site.place(node, &home)?;
        for folder in ["state", "engines", "run"] {
            fs::create_dir_all(home.join(folder))?;
        }
        fs::create_dir_all(root.join("logs"))?;
        let ([grpc, http, engine_port], address) = (place.ports([7421, 7423, 5432])?, place.address());
        let agent = Self {
            node: node.to_owned(),
            address: format!("{address}:{grpc}"),
            http: format!("{address}:{http}"),
            engine_port,
            gate_table: format!("regent-test-{engine_port}"),
            place,
            program,
            log: root.join(format!("logs/{node}.log")),
            daemon: None,
            home,
        };
        agent.configure("", "")?;
        Ok(agent)
    }

    /// Writes the configuration; `more` are keys of the agent, `engine` keys of PostgreSQL's section, which is the last.
    pub fn configure(&self, more: &str, engine: &str) -> Result<()> {
        // Whatever the engine of its cluster is: a node has one.
        let place = format!("port = {}\nlisten_addresses = {:?}\n", self.engine_port, self.place.engine_addresses());
        let others = ONE_PROGRAM.map(|engine| {
            let server = find_server(engine).map_or(String::new(), |server| format!("server = {server:?}\n"));
            format!("[engine.{engine}]\n{place}{server}user = {:?}\n", redis_user(engine))
        });
        let bin = std::env::var("REGENT_POSTGRES_BIN").map_or(String::new(), |bin| format!("bin_dir = {bin:?}\n"));
        let config = format!(
            "listen = {:?}\nhttp_listen = {:?}\nadvertise = {:?}\nstate_dir = {:?}\ndata_root = {:?}\nrun_dir = {:?}\n\
             gate_table = {:?}\nallow_table = {:?}\nsupervisor = \"process\"\n\
             {more}\n{}[engine.postgresql]\n{place}{bin}{engine}\n",
            self.address,
            self.http,
            self.place.address(),
            self.home.join("state"),
            self.home.join("engines"),
            self.home.join("run"),
            self.gate_table,
            self.allow_table(),
            others.concat(),
        );
        Ok(fs::write(self.config(), config)?)
    }

    /// Table of its allow-list; none where it has no gate either.
    pub fn allow_table(&self) -> String {
        if self.gate_table.is_empty() { String::new() } else { format!("{}-allow", self.gate_table) }
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.join("agent.toml")
    }

    /// Its identity directory.
    pub fn identity(&self) -> PathBuf {
        self.home.join("state/identity")
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its program with a subcommand and its configuration.
    pub fn command(&self, verb: &str) -> Result<Command> {
        let mut command = self.place.command(&self.program)?;
        command.arg(verb).arg("--config").arg(self.config());
        Ok(command)
    }

    /// What its next start runs.
    pub fn replace_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Joins a coordinator.
    pub fn join(&self, coordinator: &str, token: &str) -> Result<String> {
        let mut join = self.command("join")?;
        join.args([coordinator, "--token", token, "--name", &self.node]);
        run(join)
    }

    /// Starts it; returns at once.
    pub fn start(&mut self) -> Result<()> {
        self.daemon = Some(Daemon::start(&self.node, self.command("run")?, &self.log)?);
        Ok(())
    }

    /// Its process.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().with_context(|| format!("the agent of {} does not run", self.node))
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().with_context(|| format!("the agent of {} does not run", self.node))?.pid())
    }
}

impl Drop for Agent {
    /// What is gated would stay so for whoever gets these ports next.
    fn drop(&mut self) {
        drop(self.daemon.take());
        // A machine's own nftables are gone with it.
        let shared = matches!(self.place, Place::Loopback);
        if shared && let Err(error) = self.command("remove-gate").and_then(run) {
            tracing::warn!(node = self.node, error = format!("{error:#}"), "a gate was left in the kernel");
        }
    }
}

// === impl Fleet ===

impl Fleet {
    /// Starts a coordinator and one agent for each node, and waits until all are connected.
    pub async fn start(folder: &TestFolder, nodes: &[&str]) -> Result<Self> {
        Self::start_with(folder, nodes, program("regent-coordinator")?).await
    }

    /// The same with another build of the coordinator.
    pub async fn start_with(folder: &TestFolder, nodes: &[&str], program: PathBuf) -> Result<Self> {
        Self::start_at(folder, nodes, program, Site::Loopback).await
    }

    /// The same where the site has their places.
    pub async fn start_at(folder: &TestFolder, nodes: &[&str], program: PathBuf, site: Site) -> Result<Self> {
        let mut coordinator = Coordinator::init_at(folder.path(), program, &site)?;
        coordinator.start()?;
        let api = connect(&coordinator).await?;
        let mut fleet = Self { coordinator, agents: BTreeMap::new(), api, root: folder.path().to_owned(), site };
        for node in nodes {
            fleet.add(node).await?;
        }
        fleet.connected(nodes).await?;
        Ok(fleet)
    }

    /// Makes a token with which any node may join; `cluster` makes it a replica.
    pub async fn token(&self, cluster: &str) -> Result<String> {
        let request = wire::CreateTokenRequest {
            cluster: if cluster.is_empty() { String::new() } else { format!("clusters/{cluster}") },
            request_id: request_id(),
            ..Default::default()
        };
        Ok(self.api.identities().create_token(request).await?.into_inner().token)
    }

    /// Makes a token that admits only a node of this name, also in place of one that was lost.
    pub async fn token_for(&self, node: &str) -> Result<String> {
        let request =
            wire::CreateTokenRequest { node: node.to_owned(), request_id: request_id(), ..Default::default() };
        Ok(self.api.identities().create_token(request).await?.into_inner().token)
    }

    /// Joins and starts an agent.
    pub async fn add(&mut self, node: &str) -> Result<()> {
        let agent = Agent::prepare_at(&self.root, node, program("regent-agent")?, &self.site)?;
        self.add_prepared(agent).await
    }

    /// The same with one that was prepared otherwise.
    pub async fn add_prepared(&mut self, mut agent: Agent) -> Result<()> {
        agent.join(&self.coordinator.address, &self.token("").await?)?;
        agent.start()?;
        self.agents.insert(agent.node.clone(), agent);
        Ok(())
    }

    /// An agent by its node.
    pub fn agent(&mut self, node: &str) -> &mut Agent {
        let node = crate::api::plain(node);
        self.agents.get_mut(node).unwrap_or_else(|| panic!("the fleet has no node {node}"))
    }

    /// Waits until these nodes are connected.
    pub async fn connected(&self, nodes: &[&str]) -> Result<()> {
        wait::until("connected nodes", UP, || async {
            let seen = self.api.all_nodes().await?;
            for node in nodes {
                let found = seen.iter().find(|n| crate::api::plain(&n.name) == *node);
                ensure!(found.is_some_and(|n| n.connected), "{node}: {}", found.map_or("not joined", |n| &n.reason));
            }
            Ok(())
        })
        .await
    }

    /// Waits until a restarted coordinator has every node.
    pub async fn all_connected(&self) -> Result<()> {
        self.connected(&self.agents.keys().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Waits until a restarted coordinator answers.
    pub async fn answers(&self) -> Result<()> {
        wait::until("the coordinator", UP, || async { self.api.all_nodes().await.map(drop) }).await
    }

    /// Creates a cluster on nodes, with the default profile, and waits until it is healthy.
    pub async fn create(&self, cluster: &str, engine: &str, nodes: &[&str]) -> Result<wire::Cluster> {
        self.create_with(cluster, engine, nodes, Profile::Standard).await
    }

    /// The same with another profile.
    pub async fn create_with(
        &self,
        cluster: &str,
        engine: &str,
        nodes: &[&str],
        profile: Profile,
    ) -> Result<wire::Cluster> {
        self.api.create(create_request(cluster, engine, nodes, profile), CREATE).await
    }

    /// The network it stands in.
    pub fn network(&self) -> Result<&Arc<Network>> {
        self.site.network().context("this fleet is on loopback: it has no network of its own")
    }

    /// Pulls the plug of a machine, by its node's name or [`COORDINATOR`].
    pub fn power_off(&mut self, name: &str) -> Result<()> {
        self.network()?.machine(name)?.power_off()?;
        let daemon = if name == COORDINATOR { &mut self.coordinator.daemon } else { &mut self.agent(name).daemon };
        // It is dead; this only reaps it.
        drop(daemon.take());
        Ok(())
    }

    /// Switches a machine on: what a boot starts is started, which is its daemon.
    pub fn power_on(&mut self, name: &str) -> Result<()> {
        self.network()?.machine(name)?.power_on()?;
        if name == COORDINATOR { self.coordinator.start() } else { self.agent(name).start() }
    }

    /// Connects anew: after a power cut the old connection says nothing for a long time.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.api = connect(&self.coordinator).await?;
        Ok(())
    }

    /// Logs of all daemons.
    pub fn logs(&self) -> Vec<PathBuf> {
        let agents = self.agents.values().map(|agent| agent.log.clone());
        agents.chain([self.coordinator.log.clone()]).filter(|log| log.exists()).collect()
    }
}
