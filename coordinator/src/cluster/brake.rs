//! What keeps automatic failovers from doing harm: a budget for each cluster, and a brake for all of them.
//!
//! When many clusters fail at once the fault is more likely near the coordinator than in all of them: automatic failovers
//! pause, and it is said so. **Invariant:** the brake ends by itself, at the latest [`Limits::brake_for`] after it began.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use regent_common::ids::ClusterName;

use crate::model::cluster::{ClusterRecord, Healing};

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

/// Automatic failovers of one cluster: when they began. Counted by its actor, shown by the API.
#[derive(Debug, Default)]
pub struct Budget(Mutex<VecDeque<Duration>>);

/// Why there are no automatic failovers now. It ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Many clusters fail at once.
    Brake {
        /// How many fail.
        failing: usize,
        /// How many there are.
        clusters: usize,
        /// How long this lasts at most.
        left: Duration,
    },
    /// This cluster has failed over again and again.
    Budget {
        /// How often within [`Limits::BUDGET_PERIOD`].
        failovers: usize,
        /// How long until the next one.
        left: Duration,
    },
}

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

    /// Most automatic failovers of this cluster within that time: where its primary is restarted in place its own policy counts.
    pub fn failovers_of(&self, cluster: &ClusterRecord) -> usize {
        let in_place = cluster.policy.healing == Healing::RestorePrimary || cluster.members.len() < 2;
        let own = cluster.policy.restart_budget.filter(|_| in_place);
        own.map_or(self.failover_budget, |restarts| usize::try_from(restarts).unwrap_or(usize::MAX))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { failover_budget: 6, brake_share: 0.5, brake_clusters: 5, brake_for: Duration::from_secs(60) }
    }
}

// === impl Budget ===

impl Budget {
    /// Counts a failover.
    pub fn count(&self, now: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(now);
    }

    /// Why there is no further one now; `None` when there may be.
    pub fn exhausted(&self, now: Duration, allowed: usize) -> Option<Pause> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while counted.front().is_some_and(|at| now.saturating_sub(*at) > Limits::BUDGET_PERIOD) {
            counted.pop_front();
        }
        let failovers = counted.len();
        let first = counted.front().filter(|_| failovers >= allowed)?;
        Some(Pause::Budget { failovers, left: Limits::BUDGET_PERIOD.saturating_sub(now.saturating_sub(*first)) })
    }
}

// === impl Pause ===

impl Pause {
    /// What it is, when it ends, and what a person can do, in a sentence.
    pub fn sentence(&self, now: Timestamp) -> String {
        let (left, hand) = match self {
            Self::Brake { left, .. } => (
                *left,
                "or as soon as fewer fail; look at this coordinator's machine and its network first, then at those of \
                 `regentctl cluster list` that are down",
            ),
            Self::Budget { left, .. } => (
                *left,
                "; `regentctl audit` says why each of them began: mend that first, or the next one will not last either",
            ),
        };
        let end = now.checked_add(left).unwrap_or(now).strftime("%H:%M:%S UTC");
        let join = if hand.starts_with(';') { "" } else { " at the latest, " };
        format!(
            "automatic failover is paused: {}; this ends by itself at {end} (in {} s){join}{hand}",
            self.why(),
            left.as_secs()
        )
    }

    fn why(&self) -> String {
        match self {
            Self::Brake { failing, clusters, .. } => format!(
                "{failing} of {clusters} clusters fail at once, so that the fault is more likely between them and this coordinator"
            ),
            Self::Budget { failovers, .. } => format!(
                "{failovers} failovers of this cluster within {} minutes point to a cause that they do not mend",
                Limits::BUDGET_PERIOD.as_secs() / 60
            ),
        }
    }
}

impl fmt::Display for Pause {
    /// For the audit, which has a time of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Brake { left, .. } => {
                write!(f, "{}: automatic failovers pause for {} s at most", self.why(), left.as_secs())
            }
            Self::Budget { left, .. } => write!(f, "{}: the next one by itself is in {} s", self.why(), left.as_secs()),
        }
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
    pub fn holds(&self, clusters: usize, now: Duration, limits: &Limits) -> Option<Pause> {
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
        Some(Pause::Brake { failing, clusters, left })
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
        let budget = Budget::default();
        budget.count(seconds(10));
        assert_eq!(budget.exhausted(seconds(11), 2), None);
        budget.count(seconds(20));
        assert!(budget.exhausted(seconds(30), 2).is_some());
        assert_eq!(budget.exhausted(seconds(611), 2), None);
    }

    #[test]
    fn a_clusters_own_budget_counts_where_its_primary_is_restarted_in_place() {
        let (limits, mut cluster) = (Limits::default(), crate::planner::fixtures::cluster());
        cluster.policy.restart_budget = Some(3);
        assert_eq!(limits.failovers_of(&cluster), 6, "a replica takes over");
        cluster.policy.healing = Healing::RestorePrimary;
        assert_eq!(limits.failovers_of(&cluster), 3);
        cluster.policy.restart_budget = None;
        assert_eq!(limits.failovers_of(&cluster), 6);
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

    #[test]
    fn a_pause_says_when_it_ends_and_what_a_person_can_do() {
        let now: Timestamp = "2026-03-01T11:59:30Z".parse().unwrap();
        let brake = Pause::Brake { failing: 6, clusters: 8, left: seconds(40) };
        assert_eq!(
            brake.sentence(now),
            "automatic failover is paused: 6 of 8 clusters fail at once, so that the fault is more likely between them and this \
             coordinator; this ends by itself at 12:00:10 UTC (in 40 s) at the latest, or as soon as fewer fail; look at this \
             coordinator's machine and its network first, then at those of `regentctl cluster list` that are down"
        );
        let budget = Pause::Budget { failovers: 6, left: seconds(90) };
        assert_eq!(
            budget.sentence(now),
            "automatic failover is paused: 6 failovers of this cluster within 10 minutes point to a cause that they do not mend; \
             this ends by itself at 12:01:00 UTC (in 90 s); `regentctl audit` says why each of them began: mend that first, or \
             the next one will not last either"
        );
        assert!(brake.to_string().ends_with("pause for 40 s at most"), "{brake}");
        assert!(budget.to_string().ends_with("the next one by itself is in 90 s"), "{budget}");
    }

    #[test]
    fn what_is_left_of_a_pause_is_told() {
        let (brake, limits) = (Brake::default(), Limits { brake_clusters: 1, ..Limits::default() });
        brake.note(&ClusterName::new("db").unwrap(), true, seconds(10));
        assert_eq!(
            brake.holds(1, seconds(10), &limits),
            Some(Pause::Brake { failing: 1, clusters: 1, left: seconds(60) })
        );
        assert_eq!(
            brake.holds(1, seconds(30), &limits),
            Some(Pause::Brake { failing: 1, clusters: 1, left: seconds(40) })
        );
        let budget = Budget::default();
        budget.count(seconds(5));
        let left = Limits::BUDGET_PERIOD - seconds(10);
        assert_eq!(budget.exhausted(seconds(15), 1), Some(Pause::Budget { failovers: 1, left }));
    }
}
