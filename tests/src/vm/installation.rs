//! Regent on whole machines, installed from its packages by the commands that a user types: one coordinator, three nodes, and a
//! machine of a client.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::{Image, PACKAGES, System, Systems};
use crate::{
    api::Api,
    cluster::{COORDINATOR, UP},
    folder::TestFolder,
    network::Network,
    place::Place,
    process,
    profile::Profile,
    scenario::{Bed, CLUSTER, Engine, NODES, Rig},
    wait,
};

/// Name of the machine on which clients are.
pub const CLIENT: &str = "client";

/// While this file is there, a daemon that is not running is not started, by whomever. Gone with a reboot.
const STAY_DOWN: &str = "/run/regent-stay-down";

/// Installed packages, on machines that run.
#[derive(Debug)]
pub struct Installation {
    /// The first administrator's connection.
    pub api: Api,
    systems: Systems,
}

/// Unit of the daemon on a machine.
pub fn unit(name: &str) -> &'static str {
    if name == COORDINATOR { "regent-coordinator.service" } else { "regent-agent.service" }
}

/// Connects from the test's own place as the first administrator, as soon as the coordinator answers.
async fn connect(coordinator: &System) -> Result<Api> {
    let (address, admin) = (format!("{COORDINATOR}:7420"), coordinator.path("/var/lib/regent/coordinator/admin"));
    wait::until("the coordinator", UP, || async {
        let api = Api::connect(&address, &admin).await?;
        api.all_nodes().await?;
        Ok(api)
    })
    .await
}

// === impl Installation ===

impl Installation {
    /// Machines that run, with nothing of Regent on them. To be called inside [`crate::network::inside`].
    pub fn machines(folder: &TestFolder, image: Image) -> Result<Systems> {
        let systems = Systems::new(folder, image, &[&[COORDINATOR], &NODES[..], &[CLIENT]].concat())?;
        for system in systems.all().filter(|system| system.name() != CLIENT) {
            // Asked at every start, also when systemd itself starts what has ended.
            let condition = format!("[Service]\nExecCondition=/usr/bin/test ! -e {STAY_DOWN}\n");
            system.write(&format!("/etc/systemd/system/{}.d/regent-test.conf", unit(system.name())), &condition)?;
        }
        systems.boot()?;
        Ok(systems)
    }

    /// The same with Regent's packages on all, and an engine; no node has joined.
    pub fn install(folder: &TestFolder) -> Result<Systems> {
        let systems = Self::machines(folder, Image::WithEngine)?;
        systems.on_each(&[&[COORDINATOR], &NODES[..]].concat(), |system| {
            let packages =
                if system.name() == COORDINATOR { &["regent-coordinator", "regentctl"][..] } else { &["regent-agent"] };
            let files: Vec<_> = packages.iter().map(|package| format!("{PACKAGES}/{package}_*.deb")).collect();
            system.shell(&format!("apt-get install --yes --quiet {}", files.join(" "))).map(drop)
        })?;
        Ok(systems)
    }

    /// The same, and all nodes join, each with a token of its own.
    pub async fn start(folder: &TestFolder) -> Result<Self> {
        let systems = Self::install(folder)?;
        let coordinator = systems.system(COORDINATOR)?;
        coordinator.run(&["regent-coordinator", "init", "--advertise", COORDINATOR])?;
        // Scenarios are many failovers within ten minutes.
        coordinator.shell("echo 'failover_budget = 1000' >>/etc/regent/coordinator.toml")?;
        coordinator.run(&["systemctl", "enable", "--now", unit(COORDINATOR)])?;
        for node in NODES {
            let token = coordinator.run(&["regentctl", "token", "create", "--output", "json"])?;
            let token: serde_json::Value = serde_json::from_str(&token)?;
            let token = token["token"].as_str().context("the token has a token")?;
            let system = systems.system(node)?;
            system.run(&["regent-agent", "join", COORDINATOR, "--token", token])?;
            system.run(&["systemctl", "enable", "--now", unit(node)])?;
        }
        let api = connect(coordinator).await?;
        let installation = Self { api, systems };
        Rig::all_connected(&installation).await?;
        Ok(installation)
    }

    /// A bed for scenarios, whose cluster is created by the command line on the coordinator's machine.
    pub async fn bed(engine: Engine, profile: Profile) -> Result<Bed<Self>> {
        let mut folder = TestFolder::new()?;
        match Self::start_with_cluster(&folder, engine, profile).await {
            Ok(installation) => Bed::new(folder, installation, profile).await,
            Err(error) => {
                folder.keep();
                Err(error)
            }
        }
    }

    async fn start_with_cluster(folder: &TestFolder, engine: Engine, profile: Profile) -> Result<Self> {
        let installation = Self::start(folder).await?;
        let create = ["regentctl", "cluster", "create", CLUSTER, "--engine", engine.name(), "--replicas", "2"];
        installation.system(COORDINATOR)?.run(&[&create[..], &["--profile", profile.name()]].concat())?;
        Ok(installation)
    }

    /// All machines.
    pub fn systems(&self) -> &Systems {
        &self.systems
    }

    /// A machine, by its node's name, [`COORDINATOR`] or [`CLIENT`].
    pub fn system(&self, name: &str) -> Result<&System> {
        self.systems.system(name)
    }

    /// Values of a daemon's unit as systemd shows them.
    pub fn show(&self, name: &str, properties: &[&str]) -> Result<BTreeMap<String, String>> {
        let shown = self.system(name)?.run(&["systemctl", "show", unit(name), "--property", &properties.join(",")])?;
        Ok(shown.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// Lets a daemon's unit be started again, or not.
    fn stays_down(&self, name: &str, down: bool) -> Result<()> {
        let system = self.system(name)?;
        if down { system.run(&["touch", STAY_DOWN]) } else { system.run(&["rm", "--force", STAY_DOWN]) }.map(drop)
    }
}

impl Rig for Installation {
    fn api(&self) -> &Api {
        &self.api
    }

    async fn all_connected(&self) -> Result<()> {
        wait::until("connected nodes", UP, || async {
            let nodes = self.api.all_nodes().await?;
            let away: Vec<_> = nodes.iter().filter(|node| !node.connected).map(|n| (&n.name, &n.reason)).collect();
            ensure!(nodes.len() == NODES.len() && away.is_empty(), "{} nodes, not connected: {away:?}", nodes.len());
            Ok(())
        })
        .await
    }

    async fn reconnect(&mut self) -> Result<()> {
        self.api = connect(self.system(COORDINATOR)?).await?;
        Ok(())
    }

    fn network(&self) -> Result<&Arc<Network>> {
        Ok(self.systems.network())
    }

    fn place(&self, name: &str) -> Result<Place> {
        Ok(Place::Machine(Arc::clone(self.system(name)?.machine())))
    }

    fn host_pid(&self, name: &str, pid: u32) -> Result<u32> {
        self.system(name)?.host_pid(pid)
    }

    fn daemon_pid(&self, name: &str) -> Result<u32> {
        let pid = self.show(name, &["MainPID"])?.remove("MainPID").context("a unit has a main process")?.parse()?;
        if pid == 0 {
            bail!("the daemon of {name} does not run");
        }
        self.host_pid(name, pid)
    }

    fn kill_daemon(&mut self, name: &str) -> Result<()> {
        let pid = self.daemon_pid(name)?;
        self.stays_down(name, true)?;
        process::signal(pid, nix::sys::signal::Signal::SIGKILL)
    }

    async fn bounce_daemon(&mut self, name: &str, _: Duration) -> Result<()> {
        // Its unit brings it back, as fast as the unit says.
        process::signal(self.daemon_pid(name)?, nix::sys::signal::Signal::SIGKILL)
    }

    async fn stop_daemon(&mut self, name: &str) -> Result<()> {
        self.system(name)?.run(&["systemctl", "stop", unit(name)]).map(drop)
    }

    fn start_daemon(&mut self, name: &str) -> Result<()> {
        self.stays_down(name, false)?;
        self.system(name)?.run(&["systemctl", "start", unit(name)]).map(drop)
    }

    fn power_off(&mut self, name: &str) -> Result<()> {
        self.system(name)?.machine().power_off()
    }

    fn power_on(&mut self, name: &str) -> Result<()> {
        self.system(name)?.machine().power_on()
    }
}
