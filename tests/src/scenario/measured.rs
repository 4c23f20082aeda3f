//! What came of a scenario, and what is wrong with that.

use std::time::Duration;

use serde::Serialize;

use super::Scenario;
use crate::{
    profile::Profile,
    workload::checker::{Account, Row},
};

/// A time in which a member took writes, in milliseconds from the fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Name of the member.
    pub member: String,
    /// The engine's word for its reign.
    pub reign: String,
    /// Request of the first acknowledged row.
    pub from_ms: f64,
    /// Answer of the last acknowledged row.
    pub until_ms: f64,
    /// Acknowledged rows.
    pub rows: u64,
}

/// A row that was acknowledged and is gone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lost {
    /// Which.
    pub row: Row,
    /// Name of the member that had acknowledged it.
    pub member: String,
    /// When, in milliseconds from the fault.
    pub acknowledged_ms: f64,
}

/// What came of a scenario. Times are milliseconds; points in time count from the fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Profile of the cluster.
    pub profile: Profile,
    /// Primary when the fault struck.
    pub old_primary: String,
    /// Primary when all was healthy again.
    pub new_primary: String,
    /// Changes of the epoch.
    pub epochs: u64,
    /// Longest time without an acknowledged row for the client that follows the primary.
    pub write_outage_ms: f64,
    /// When that began.
    pub outage_from_ms: f64,
    /// First row acknowledged by another member than the old primary; absent when there was none.
    pub elsewhere_ms: Option<f64>,
    /// When the fault was healed.
    pub healed_ms: f64,
    /// When the cluster was healthy after that.
    pub healthy_ms: f64,
    /// Last row that anybody acknowledged before the fault was healed; absent when there was none after the fault.
    pub last_before_healing_ms: Option<f64>,
    /// First row that the follower was told of after the fault was healed.
    pub resumed_ms: Option<f64>,
    /// Who took writes, and when.
    pub reigns: Vec<Span>,
    /// Longest time in which two members both took writes.
    pub overlap_ms: f64,
    /// Attempts.
    pub attempted: u64,
    /// Acknowledged rows.
    pub acknowledged: u64,
    /// Acknowledged rows that are gone.
    pub lost: Vec<Lost>,
    /// Rows that are there more than once.
    pub duplicated: usize,
    /// Rows that are there and should not be.
    pub unexpected: usize,
    /// Failovers of the run, each with what it reports.
    pub failovers: Vec<String>,
    /// What the runner missed while it watched.
    pub missed: Vec<String>,
}

/// Replication is asynchronous: rows acknowledged up to so long before the fault may be lost with the old primary.
const UNSENT: Duration = Duration::from_secs(1);
/// What the scheduler and the writers add to a point in time.
const SLOP: Duration = Duration::from_millis(500);

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

// === impl Measured ===

impl Measured {
    /// Takes over the account.
    pub(super) fn with(mut self, account: &Account) -> Self {
        self.attempted = account.attempted;
        self.acknowledged = account.acknowledged;
        self.duplicated = account.duplicated.len();
        self.unexpected = account.unexpected.len();
        self
    }

    /// What safety forbids, whatever the scenario expects: two primaries, and rows that nobody can account for.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.overlap_ms > 0.0 {
            found.push(format!("two members took writes over {:.1} ms: {:?}", self.overlap_ms, self.reigns));
        }
        if self.duplicated > 0 {
            found.push(format!("{} rows are there more than once", self.duplicated));
        }
        if self.unexpected > 0 {
            found.push(format!("{} rows are there that were refused or never sent", self.unexpected));
        }
        let (earliest, latest) = (-millis(UNSENT), millis(self.profile.ttl() + SLOP));
        let allowed = |lost: &&Lost| {
            // With a change of primary, what the old one had not sent, and what it took until its lease ended.
            self.epochs > 0 && lost.member == self.old_primary && (earliest..=latest).contains(&lost.acknowledged_ms)
        };
        let lost: Vec<_> = self.lost.iter().filter(|lost| !allowed(lost)).collect();
        if !lost.is_empty() {
            found.push(format!(
                "{} acknowledged rows are lost that no policy gives up, such as {:?}",
                lost.len(),
                lost[0]
            ));
        }
        found
    }

    /// Everything that is not as the scenario expects. `slack` widens the limits of time, which are those of a median on a
    /// machine with nothing else to do.
    pub fn complaints(&self, scenario: &Scenario, slack: f64) -> Vec<String> {
        let mut found = self.violations();
        found.extend(self.missed.iter().cloned());
        if scenario.is_planned() && !self.lost.is_empty() {
            found.push(format!("{} acknowledged rows are lost by a plan, such as {:?}", self.lost.len(), self.lost[0]));
        }
        let changed = self.epochs > 0;
        if scenario.expected.failover && self.new_primary == self.old_primary {
            found.push(format!("no failover: {} is the primary still", self.old_primary));
        }
        if !scenario.expected.failover && changed {
            let (old, new) = (&self.old_primary, &self.new_primary);
            found.push(format!("{} changes of epoch ({old} -> {new}) where none was called for", self.epochs));
        }
        if let Some(limit) = scenario.expected.outage.limit(self.profile) {
            let limit = millis(limit) * slack;
            if self.write_outage_ms > limit {
                found.push(format!("no writes for {:.0} ms; at most {limit:.0}", self.write_outage_ms));
            }
        } else {
            found.extend(self.stops_and_goes_on(slack));
        }
        found
    }

    /// For [`super::Outage::UntilHealed`]: writes have to stop with the lease and go on soon after the healing.
    fn stops_and_goes_on(&self, slack: f64) -> Vec<String> {
        let mut found = Vec::new();
        let last = millis(self.profile.ttl() + SLOP);
        if self.last_before_healing_ms.is_some_and(|at| at > last) {
            found.push(format!(
                "writes went on until {:?} ms; the lease ended by {last:.0}",
                self.last_before_healing_ms
            ));
        }
        let soon = self.healed_ms + millis(self.profile.node_lost()) * slack;
        if self.resumed_ms.is_none_or(|at| at > soon) {
            found.push(format!("writes went on again at {:?} ms; they should by {soon:.0}", self.resumed_ms));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(name: &str) -> &'static Scenario {
        Scenario::named(name).unwrap()
    }

    /// A failover as it should be.
    fn good() -> Measured {
        Measured {
            scenario: "node-cut",
            profile: Profile::Fast,
            old_primary: "db1".into(),
            new_primary: "db2".into(),
            epochs: 1,
            write_outage_ms: 1_800.0,
            outage_from_ms: 5.0,
            elsewhere_ms: Some(1_750.0),
            healed_ms: 3_000.0,
            healthy_ms: 6_000.0,
            last_before_healing_ms: Some(2_999.0),
            resumed_ms: Some(3_001.0),
            reigns: Vec::new(),
            overlap_ms: 0.0,
            attempted: 20,
            acknowledged: 10,
            lost: Vec::new(),
            duplicated: 0,
            unexpected: 0,
            failovers: Vec::new(),
            missed: Vec::new(),
        }
    }

    fn lost(member: &str, acknowledged_ms: f64) -> Vec<Lost> {
        vec![Lost { row: ("w".into(), 1), member: member.into(), acknowledged_ms }]
    }

    #[test]
    fn what_is_as_expected_is_no_complaint() {
        assert_eq!(good().complaints(scenario("node-cut"), 1.0), [""; 0]);
        let what_the_lease_allowed = Measured { lost: lost("db1", 1_400.0), ..good() };
        assert_eq!(what_the_lease_allowed.complaints(scenario("node-cut"), 1.0), [""; 0]);
        let quiet = Measured { new_primary: "db1".into(), epochs: 0, write_outage_ms: 80.0, ..good() };
        assert_eq!(quiet.complaints(scenario("split-c-pab"), 1.0), [""; 0]);
    }

    #[test]
    fn each_thing_that_is_wrong_is_one_complaint() {
        let cases = [
            ("node-cut", Measured { overlap_ms: 0.1, ..good() }, "two members"),
            ("node-cut", Measured { duplicated: 1, ..good() }, "more than once"),
            ("node-cut", Measured { unexpected: 1, ..good() }, "refused or never sent"),
            ("node-cut", Measured { lost: lost("db1", 2_500.0), ..good() }, "no policy"),
            ("node-cut", Measured { lost: lost("db1", -1_500.0), ..good() }, "no policy"),
            ("node-cut", Measured { lost: lost("db2", 100.0), ..good() }, "no policy"),
            ("node-cut", Measured { write_outage_ms: 2_001.0, ..good() }, "no writes for"),
            ("node-cut", Measured { new_primary: "db1".into(), ..good() }, "no failover"),
            ("node-cut", Measured { missed: vec!["missed it".into()], ..good() }, "missed it"),
            ("coordinator-kill", Measured { write_outage_ms: 10.0, ..good() }, "none was called for"),
            ("coordinator-kill", Measured { epochs: 0, write_outage_ms: 900.0, ..good() }, "no writes for"),
            (
                "coordinator-kill",
                Measured { epochs: 0, write_outage_ms: 1.0, lost: lost("db1", 1.0), ..good() },
                "no policy",
            ),
            ("promote", Measured { write_outage_ms: 200.0, lost: lost("db1", 1.0), ..good() }, "by a plan"),
            ("coordinator-and-replica-kill", Measured { epochs: 0, ..good() }, "writes went on until"),
            (
                "coordinator-and-replica-kill",
                Measured { epochs: 0, last_before_healing_ms: Some(1_400.0), resumed_ms: Some(5_500.0), ..good() },
                "writes went on again",
            ),
        ];
        for (name, measured, says) in cases {
            let complaints = measured.complaints(scenario(name), 1.0);
            assert_eq!(complaints.len(), 1, "{says}: {complaints:?}");
            assert!(complaints[0].contains(says), "{says}: {complaints:?}");
        }
    }

    #[test]
    fn slack_widens_times_and_nothing_else() {
        let slow = Measured { write_outage_ms: 3_900.0, ..good() };
        assert_eq!(slow.complaints(scenario("node-cut"), 2.0), [""; 0]);
        assert_eq!(slow.complaints(scenario("node-cut"), 1.0).len(), 1);
        let two = Measured { overlap_ms: 0.1, ..good() };
        assert_eq!(two.complaints(scenario("node-cut"), 1e9).len(), 1);
    }
}
