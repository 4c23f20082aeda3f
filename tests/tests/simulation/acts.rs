//! What faults do to a simulation, and the state in which they strike.
//!
//! Faults overlap: what several of them keep down, hanging or cut comes back when the last of them is over.

use std::sync::Arc;

use regent_agent::force::Words;
use regent_coordinator::model::cluster::{MemberState, Phase};

use super::{engine, faults::Kind, hosts::member_on, machine::Machine, world::Simulation};

// === impl Simulation ===

impl Simulation<'_> {
    /// All machines with an engine.
    pub(crate) fn machines(&self) -> &[Arc<Machine>] {
        &self.machines
    }

    /// The machine of this name; there is one.
    pub(crate) fn machine(&self, name: &str) -> Arc<Machine> {
        self.machines.iter().find(|machine| machine.name == name).expect("faults name machines").clone()
    }

    /// Node of the stored primary.
    pub(crate) fn primary(&self) -> Option<String> {
        let cluster = self.store.cluster()?;
        let record = cluster.members.get(cluster.primary.as_ref()?)?;
        Some(record.node.to_string())
    }

    /// Node of the candidate that is being promoted.
    pub(crate) fn candidate(&self) -> Option<String> {
        let cluster = self.store.cluster()?;
        let record = cluster.members.get(cluster.candidate.as_ref()?)?;
        Some(record.node.to_string())
    }

    /// Ends a host's process, or starts it again when nothing else keeps it down.
    pub(crate) fn kill(&mut self, host: &str, down: bool) {
        let reasons = self.down.entry(host.to_owned()).or_default();
        *reasons = if down { *reasons + 1 } else { reasons.saturating_sub(1) };
        match (down, *reasons) {
            (true, 1) => self.sim.crash(host),
            (false, 0) => self.sim.bounce(host),
            (_, _) => {}
        }
    }

    /// The volume with the engine's data is gone; the one with the agent's ledger is not.
    pub(crate) fn lose_data(&mut self, host: &str) {
        self.engines.lose_data(&self.machine(host).endpoint());
        let now = self.now();
        self.lost_at.insert(host.to_owned(), now);
    }

    /// Root of a machine makes its member the primary, whoever else there is being off by his word.
    pub(crate) fn force(&self, host: &str) {
        let others = self.machines.iter().filter(|machine| machine.name != host);
        let confirm_off = others.map(|machine| member_on(&machine.name)).collect();
        let words = Words { confirm: Some(member_on(host)), confirm_off, dry_run: false };
        self.machine(host).order_force(words);
    }

    /// Judges what steps have removed. Whoever gave its word for a copy had it then: one that is lost later is nobody's fault.
    pub(crate) fn judge_removals(&mut self) {
        let removed = engine::take_removed();
        if self.store.cluster().is_none_or(|cluster| cluster.phase == Phase::Deleting) {
            // By a person's word.
            return;
        }
        for removed in removed {
            let others = || self.machines.iter().filter(|machine| machine.name != removed.host);
            if others().any(|other| self.lost_at.get(&other.name).is_some_and(|at| *at >= removed.begun)) {
                continue;
            }
            let elsewhere = others().flat_map(|other| self.engines.stored_rows(&other.endpoint())).collect();
            self.oracle.removed(&removed.host, &removed.rows, &elsewhere);
        }
    }

    /// Tells an agent to end, or starts it again. One that has not ended by then does at once.
    pub(crate) fn leave(&mut self, host: &str, away: bool) {
        if away {
            self.oracle.hands_over(self.now());
            *self.leaving.entry(host.to_owned()).or_default() += 1;
            self.machine(host).leave.tell(true);
            return;
        }
        let Some(times) = self.leaving.get_mut(host) else { return };
        *times -= 1;
        if *times == 0 {
            self.leaving.remove(host);
            self.end_left(host, true);
            self.left.remove(host);
            self.kill(host, false);
        }
    }

    /// Ends the processes of agents that have handed over what they had.
    pub(crate) fn end_all_left(&mut self) {
        let hosts: Vec<String> = self.leaving.keys().cloned().collect();
        hosts.iter().for_each(|host| self.end_left(host, false));
    }

    fn end_left(&mut self, host: &str, in_any_case: bool) {
        let ready = self.machine(host).leave.is_ready() || in_any_case;
        if ready && self.left.insert(host.to_owned()) {
            self.machine(host).leave.tell(false);
            self.kill(host, true);
        }
    }

    /// Turns a machine's power off, or on again.
    pub(crate) fn power(&mut self, host: &str, on: bool) {
        self.network.isolate(host, !on);
        self.follow_network();
        let machine = self.machine(host);
        if on {
            machine.power_on();
            self.kill(host, false);
        } else {
            self.engines.crash(&machine.endpoint());
            self.kill(host, true);
            machine.power_off();
        }
    }

    /// Lets an engine hang, or go on when nothing else keeps it.
    pub(crate) fn hang(&mut self, host: &str, hung: bool) {
        let reasons = self.hung.entry(host.to_owned()).or_default();
        *reasons = if hung { *reasons + 1 } else { reasons.saturating_sub(1) };
        let hangs = *reasons > 0;
        self.engines.hang(&self.machine(host).endpoint(), hangs);
    }

    /// Lets a stream bring little, or as much as always.
    pub(crate) fn slow_stream(&mut self, host: &str, slow: bool) {
        let reasons = self.slow_streams.entry(host.to_owned()).or_default();
        *reasons = if slow { *reasons + 1 } else { reasons.saturating_sub(1) };
    }

    /// Makes sockets and streams follow the network.
    pub(crate) fn follow_network(&mut self) {
        self.network.apply(&self.sim);
        for (index, one) in self.machines.iter().enumerate() {
            for other in &self.machines[index + 1..] {
                if self.network.connected(&one.name, &other.name) {
                    self.engines.restore_link(&one.endpoint(), &other.endpoint());
                } else {
                    self.engines.cut_link(&one.endpoint(), &other.endpoint());
                }
            }
        }
    }

    /// Counts a fault in the state that is reached.
    pub(crate) fn reached(&mut self, kind: Kind) {
        *self.reached.entry((kind, self.state())).or_default() += 1;
    }

    /// The state that is reached, for the table.
    fn state(&self) -> &'static str {
        let Some(cluster) = self.store.cluster() else { return "no cluster" };
        let operations = self.store.operations();
        match (cluster.phase, operations.present()) {
            (Phase::Creating | Phase::Deleting, _) => "creating",
            (Phase::Active, Some("failover")) => "failing over",
            (Phase::Active, Some("rejoin")) => "rejoining",
            (Phase::Active, Some("resync")) => "resyncing",
            (Phase::Active, Some(_)) => "other operation",
            (Phase::Active, None) if cluster.primary.is_none() => "no primary",
            (Phase::Active, None) if cluster.members.values().any(|member| member.state != MemberState::Ready) => {
                "degraded"
            }
            (Phase::Active, None) if self.oracle.able().is_empty() => "not writable",
            (Phase::Active, None) => "healthy",
        }
    }
}
