//! What scenarios act on: the daemons of one cluster, each at a place of its own, and what can be done to them there.
//!
//! Daemons of the test itself, in namespaces or on loopback, are one rig ([`Fleet`]); installed packages on whole machines are
//! another ([`crate::vm::Installation`]). A daemon is named by its node, or [`COORDINATOR`], and so is its machine.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::Result;

use crate::{
    api::Api,
    cluster::{COORDINATOR, Fleet},
    network::Network,
    place::Place,
    process::Daemon,
};

/// Daemons, and what can be done to them.
pub trait Rig {
    /// The first administrator's connection.
    fn api(&self) -> &Api;

    /// Waits until every node is connected.
    fn all_connected(&self) -> impl Future<Output = Result<()>>;

    /// Connects anew: after a power cut the old connection says nothing for a long time.
    fn reconnect(&mut self) -> impl Future<Output = Result<()>>;

    /// The network between the machines, where there are machines.
    fn network(&self) -> Result<&Arc<Network>>;

    /// Where a daemon is.
    fn place(&self, name: &str) -> Result<Place>;

    /// Host's id of a process that is called so where the daemon is.
    fn host_pid(&self, name: &str, pid: u32) -> Result<u32>;

    /// Host's id of a daemon's process.
    fn daemon_pid(&self, name: &str) -> Result<u32>;

    /// SIGKILL for a daemon, which stays down.
    fn kill_daemon(&mut self, name: &str) -> Result<()>;

    /// SIGKILL for a daemon, which is there again within a second; `away` where it does not come back by itself.
    fn bounce_daemon(&mut self, name: &str, away: Duration) -> impl Future<Output = Result<()>>;

    /// Tells a daemon to end, and waits until it has; it stays down.
    fn stop_daemon(&mut self, name: &str) -> impl Future<Output = Result<()>>;

    /// Starts a daemon that is down.
    fn start_daemon(&mut self, name: &str) -> Result<()>;

    /// Pulls the plug of a machine.
    fn power_off(&mut self, name: &str) -> Result<()>;

    /// Switches a machine on, which starts what a boot starts.
    fn power_on(&mut self, name: &str) -> Result<()>;
}

/// The process of a daemon of the fleet.
fn daemon<'a>(fleet: &'a mut Fleet, name: &str) -> Result<&'a mut Daemon> {
    if name == COORDINATOR { fleet.coordinator.daemon() } else { fleet.agent(name).daemon() }
}

// === impl Fleet ===

impl Rig for Fleet {
    fn api(&self) -> &Api {
        &self.api
    }

    async fn all_connected(&self) -> Result<()> {
        self.all_connected().await
    }

    async fn reconnect(&mut self) -> Result<()> {
        self.reconnect().await
    }

    fn network(&self) -> Result<&Arc<Network>> {
        self.network()
    }

    fn place(&self, name: &str) -> Result<Place> {
        Ok(if name == COORDINATOR { self.coordinator.place().clone() } else { self.agents[name].place().clone() })
    }

    fn host_pid(&self, _: &str, pid: u32) -> Result<u32> {
        // Machines of the fleet have no process ids of their own.
        Ok(pid)
    }

    fn daemon_pid(&self, name: &str) -> Result<u32> {
        if name == COORDINATOR { self.coordinator.pid() } else { self.agents[name].pid() }
    }

    fn kill_daemon(&mut self, name: &str) -> Result<()> {
        Ok(daemon(self, name)?.kill().map(drop)?)
    }

    async fn bounce_daemon(&mut self, name: &str, away: Duration) -> Result<()> {
        self.kill_daemon(name)?;
        tokio::time::sleep(away).await;
        self.start_daemon(name)
    }

    async fn stop_daemon(&mut self, name: &str) -> Result<()> {
        daemon(self, name)?.stop().await.map(drop)
    }

    fn start_daemon(&mut self, name: &str) -> Result<()> {
        if name == COORDINATOR { self.coordinator.start() } else { self.agent(name).start() }
    }

    fn power_off(&mut self, name: &str) -> Result<()> {
        self.power_off(name)
    }

    fn power_on(&mut self, name: &str) -> Result<()> {
        self.power_on(name)
    }
}
