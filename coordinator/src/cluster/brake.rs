//! What keeps automatic failovers from doing harm: a budget for each cluster, and a brake for all of them.
//!
//! When many clusters fail at once the fault is more likely near the coordinator than in all of them: automatic failovers
//! pause, and it is said so. **Invariant:** the brake ends by itself, at the latest [`Limits::brake_for`] after it began.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use regent_common::ids::ClusterName;

/// What the configuration allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most automatic failovers of one cluster within [`Limits::BUDGET_PERIOD`].
    pub failover_budget: usize,
    /// Share of all clusters, 0 to 1, beyond which failing at once pauses automatic failovers.
    pub brake_share: f64,
    /// Fewest clusters failing at once for that.
    pub brake_clusters: usize,
    /// How long the brake holds at most.
    pub brake_for: Duration,
}

/// Automatic failovers of one cluster.
#[derive(Debug, Clone, Default)]
pub struct Budget(VecDeque<Duration>);

/// All clusters together. Shared by the actors.
#[derive(Debug, Default)]
pub struct Brake {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Clusters whose primary does not serve, and since when.
    failing: BTreeMap<ClusterName, Duration>,
    /// When the brake began to hold.
    since: Option<Duration>,
}

// === impl Limits ===

impl Limits {
    /// The time over which a cluster's failovers are counted.
    pub const BUDGET_PERIOD: Duration = Duration::from_secs(600);
}

impl Default for Limits {
    fn default() -> Self {
        Self { failover_budget: 6, brake_share: 0.5, brake_clusters: 5, brake_for: Duration::from_secs(60) }
    }
}

// === impl Budget ===

impl Budget {
    /// Counts a failover.
    pub fn count(&mut self, now: Duration) {
        self.0.push_back(now);
    }

    /// Why there is no further one now; `None` when there may be.
    pub fn exhausted(&mut self, now: Duration, limits: &Limits) -> Option<String> {
        while self.0.front().is_some_and(|at| now.saturating_sub(*at) > Limits::BUDGET_PERIOD) {
            self.0.pop_front();
        }
        let first = self.0.front().filter(|_| self.0.len() >= limits.failover_budget)?;
        let again = Limits::BUDGET_PERIOD.saturating_sub(now.saturating_sub(*first));
        Some(format!(
            "{} failovers happened within {} minutes, which points to a cause that they do not mend: the next one by itself \
             is in {} s",
            self.0.len(),
            Limits::BUDGET_PERIOD.as_secs() / 60,
            again.as_secs()
        ))
    }
}

// === impl Brake ===

impl Brake {
    /// Notes whether a cluster's primary serves.
    pub fn note(&self, cluster: &ClusterName, fails: bool, now: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if fails {
            state.failing.entry(cluster.clone()).or_insert(now);
        } else {
            state.failing.remove(cluster);
        }
    }

    /// Why automatic failovers pause; `None` when they do not. `clusters` is how many there are.
    pub fn holds(&self, clusters: usize, now: Duration, limits: &Limits) -> Option<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = state.failing.len();
        #[allow(clippy::cast_precision_loss, reason = "a share of a number of clusters")]
        let many = failing >= limits.brake_clusters && failing as f64 > limits.brake_share * clusters as f64;
        if !many {
            state.since = None;
            return None;
        }
        let since = *state.since.get_or_insert(now);
        let left = limits.brake_for.checked_sub(now.saturating_sub(since)).filter(|left| !left.is_zero())?;
        Some(format!(
            "{failing} of {clusters} clusters fail at once, so that the fault is more likely between them and this coordinator: \
             automatic failovers pause for {} s at most",
            left.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_budget_is_used_up_and_comes_back() {
        let (mut budget, limits) = (Budget::default(), Limits { failover_budget: 2, ..Limits::default() });
        budget.count(seconds(10));
        assert_eq!(budget.exhausted(seconds(11), &limits), None);
        budget.count(seconds(20));
        assert!(budget.exhausted(seconds(30), &limits).is_some());
        assert_eq!(budget.exhausted(seconds(611), &limits), None);
    }

    #[test]
    fn the_brake_holds_when_many_fail_at_once_and_ends_by_itself() {
        let (brake, limits) = (Brake::default(), Limits { brake_clusters: 2, ..Limits::default() });
        let name = |n: u32| ClusterName::new(format!("c{n}x")).unwrap();
        brake.note(&name(1), true, seconds(1));
        assert_eq!(brake.holds(3, seconds(1), &limits), None, "one of three");
        brake.note(&name(2), true, seconds(2));
        assert!(brake.holds(3, seconds(2), &limits).is_some());
        assert_eq!(brake.holds(4, seconds(2), &limits), None, "half is not more than half");
        assert!(brake.holds(3, seconds(3), &limits).is_some());
        assert_eq!(brake.holds(3, seconds(63), &limits), None, "it does not hold for ever");
        brake.note(&name(1), false, seconds(64));
        assert_eq!(brake.holds(3, seconds(64), &limits), None);
    }
}
