//! Who is granted a lease, and until when one may stand: one [`Authority`] per cluster.
//!
//! It answers heartbeats, in the links' sessions, from the record as last committed (rule T3). **Invariants:** the latest end
//! is only ever raised (rule L2): it is at or after the end of every lease that was granted and of every acknowledgement
//! that was counted. A grant goes only to the stored primary, or candidate, of the present epoch, once that is stored as
//! established (rules L1, L5). After a start no lease counts as over before the longest that may have been granted is.
//!
//! A lease that outlives its agent (rule L7) has a latest end of its own ([`hand_over`]): that one goes back, when the agent
//! that has come since says that it relies on such a lease no more, or a fence was answered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use regent_common::{
    clock::{Clock, Moment},
    ids::{ClusterId, Epoch, MemberName, NodeName},
    lease::{Grant, LeaseReport, Timing, margin},
    mutation::{self, Rule},
    topology::Observation,
};
use regent_proto::agent::v1::{self as wire, HeartbeatAnswer};

use self::hand_over::HandOver;
use crate::{cluster::ClusterHandle, model::cluster::ClusterRecord};

mod hand_over;

/// All clusters' authorities, by id.
pub struct Authorities {
    clock: Arc<dyn Clock>,
    by_cluster: RwLock<BTreeMap<ClusterId, Arc<Authority>>>,
}

/// One cluster's authority.
pub struct Authority {
    clock: Arc<dyn Clock>,
    cluster: Arc<ClusterHandle>,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    /// Nothing that was granted stands after this, by both clocks, but for a hand-over.
    latest_end: Moment,
    /// Leases that were granted for the restart of an agent.
    hand_over: HandOver,
    /// The epoch whose lease is not renewed any more, because a failover waits for its end.
    suspended: Option<Epoch>,
    /// Nothing is granted at all (rule T4).
    frozen: bool,
    /// Until then a lease that has lapsed is not renewed: who reigns since may be known to members that were not heard yet, and
    /// not to this store (rule T4).
    lapsed_until: Moment,
    /// Who was granted the last lease, and the boot of its machine then; `None` while this coordinator has granted none.
    holder: Option<(MemberName, String)>,
}

// === impl State ===

impl State {
    /// Nothing that was granted stands after this, by both clocks.
    fn end(&self) -> Moment {
        self.latest_end.later(self.hand_over.end())
    }

    fn is_held_elsewhere(&self, member: &MemberName, boot: &str) -> bool {
        self.holder.as_ref().is_some_and(|(holder, granted)| holder == member && granted != boot)
    }

    fn keeps_lapsed(&self, now: Moment) -> bool {
        !self.lapsed_until.awaited_for(now).is_zero()
    }
}

// === impl Authorities ===

impl Authorities {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, by_cluster: RwLock::default() }
    }

    /// Makes a cluster's authority. For one that this coordinator found in its store a lease of an earlier process may stand.
    pub fn register(&self, cluster: &Arc<ClusterHandle>, found: bool) -> Arc<Authority> {
        let record = cluster.record();
        let found = found && !mutation::broken(Rule::L2Restart);
        let granted = record.as_ref().filter(|_| found);
        let end = |ttl: Duration| self.clock.now().plus(ttl + margin(ttl));
        let latest_end = granted.map_or_else(Moment::default, |record| end(record.longest_ttl()));
        let lent = granted.and_then(|record| Some((record.reign.as_ref()?, record.hand_over_ttl()?)));
        let hand_over = lent.map_or_else(HandOver::default, |(reign, ttl)| {
            HandOver::found(reign.primary.clone(), reign.epoch, end(ttl))
        });
        let lapsed_until = latest_end.later(hand_over.end());
        let state =
            Mutex::new(State { latest_end, hand_over, suspended: None, frozen: false, lapsed_until, holder: None });
        let authority = Arc::new(Authority { clock: self.clock.clone(), cluster: Arc::clone(cluster), state });
        if let Some(record) = record {
            let mut by_cluster = self.by_cluster.write().unwrap_or_else(PoisonError::into_inner);
            // Clusters that are gone leave with the next one that comes.
            by_cluster.retain(|_, authority| authority.cluster.record().is_some());
            by_cluster.insert(record.id, Arc::clone(&authority));
        }
        authority
    }

    /// How many clusters there are.
    pub fn len(&self) -> usize {
        let by_cluster = self.by_cluster.read().unwrap_or_else(PoisonError::into_inner);
        by_cluster.values().filter(|authority| authority.cluster.record().is_some()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A cluster's authority.
    pub fn get(&self, cluster: ClusterId) -> Option<Arc<Authority>> {
        self.by_cluster.read().unwrap_or_else(PoisonError::into_inner).get(&cluster).cloned()
    }

    /// Answers a heartbeat of a node with this boot; `None` for one that is in quarantine, which is granted nothing (rule T5).
    pub fn answer(
        &self,
        node: &NodeName,
        boot: Option<&str>,
        nonce: u64,
        seen: Option<&Observation>,
    ) -> HeartbeatAnswer {
        let nothing = HeartbeatAnswer { nonce, ..HeartbeatAnswer::default() };
        let Some(seen) = seen else { return nothing };
        match self.get(seen.cluster_id) {
            Some(authority) => authority.answer(node, boot, nonce, seen),
            None => nothing,
        }
    }
}

// === impl Authority ===

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Who may be granted a lease: the stored primary, or the candidate that is about to be promoted, of an established epoch.
fn grantee(record: &ClusterRecord) -> Option<(&MemberName, Grant)> {
    let reign = record.reign.as_ref().filter(|reign| reign.epoch == record.epoch && record.established)?;
    let stored = record.primary.as_ref().or(record.candidate.as_ref())?;
    let ttl = record.policy.profile.timing().ttl;
    let grant = Grant { epoch: record.epoch, ttl, electorate: reign.newest().clone(), handed_over: None };
    (*stored == reign.primary).then_some((stored, grant))
}

impl Authority {
    fn state(&self) -> MutexGuard<'_, State> {
        // Changed by assignments that cannot stop half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, node: &NodeName, boot: Option<&str>, nonce: u64, seen: &Observation) -> HeartbeatAnswer {
        let nothing = HeartbeatAnswer { nonce, ..HeartbeatAnswer::default() };
        // Held from before the record is read until the grant is made: a lease that was suspended meanwhile, for a record that is
        // newer than this one, is not granted again (rule L2).
        let mut state = self.state();
        let Some(record) = self.cluster.record() else { return nothing };
        let known = record.members.get(&seen.member).is_some_and(|member| member.node == *node);
        if !known {
            return nothing;
        }
        let timing = record.policy.profile.timing();
        // A lease that is longer than what is counted here was granted before: by a coordinator whose store this one is an old
        // backup of. It is known from its holder alone (rules L2, T4).
        let reigns = |epoch: Epoch| record.reign.as_ref().is_some_and(|r| r.primary == seen.member && r.epoch == epoch);
        let longer = |lease: &&LeaseReport| lease.stands && lease.remaining > timing.ttl && reigns(lease.epoch);
        let heeded = !mutation::broken(Rule::L7Wait) && !mutation::broken(Rule::L7Replaced);
        if let Some(lease) = seen.authority.lease.as_ref().filter(longer).filter(|_| heeded) {
            let (now, left) = (self.clock.now(), lease.remaining.min(Timing::LONGEST_TTL));
            if state.end().awaited_for(now) < left {
                state.latest_end = state.latest_end.later(now.plus(left + margin(left)));
            }
        }
        let granted = grantee(&record).filter(|(member, _)| **member == seen.member);
        let grant = granted.zip(boot).and_then(|((_, mut grant), boot)| {
            let now = self.clock.now();
            state.hand_over.hear(seen);
            // An acknowledgement counts like a grant, also one that gets none in return (rules M1, L2): when it is news. It is said
            // again with every heartbeat, and would keep the end away from who waits for it as long as somebody is heard.
            let news = |version| record.reign.as_ref().is_some_and(|reign| version > reign.acknowledged().version);
            let acknowledges = seen.epoch == record.epoch
                && seen.authority.electorate.as_ref().is_some_and(|electorate| news(electorate.version));
            let stands = seen.authority.lease.as_ref().is_some_and(|lease| lease.stands && lease.epoch == record.epoch);
            let lapsed = !stands && state.keeps_lapsed(now);
            // Of two boots that say that they are the primary the one that holds the lease keeps it (rule T5): another one waits
            // until it is over, as for an endorsement (rule E2).
            let other = state.is_held_elsewhere(&seen.member, boot) && !state.end().awaited_for(now).is_zero();
            let withheld = other || state.frozen || state.suspended == Some(record.epoch) || lapsed;
            if !withheld || acknowledges {
                let end = now.plus(grant.ttl + margin(grant.ttl));
                state.latest_end = if mutation::broken(Rule::L2Maximum) { end } else { state.latest_end.later(end) };
            }
            if withheld {
                return None;
            }
            state.holder = Some((seen.member.clone(), boot.to_owned()));
            if seen.authority.hand_over && seen.epoch == record.epoch && state.hand_over.is_open() {
                grant.ttl = Timing::HAND_OVER_TTL;
                state.hand_over.lend(&seen.member, record.epoch, now);
            } else if !seen.authority.hand_over {
                grant.handed_over = state.hand_over.mark(&seen.member, record.epoch, now);
            }
            Some(grant)
        });
        let grant = grant.map(|grant| wire::Grant {
            cluster_id: record.id.to_string(),
            member: seen.member.to_string(),
            ..wire::Grant::from(&grant)
        });
        HeartbeatAnswer {
            nonce,
            grant,
            stored_epoch: record.epoch.0,
            heartbeat_millis: millis(timing.heartbeat),
            ttl_millis: millis(timing.ttl),
        }
    }

    /// Grants nothing at this epoch any more, and says how long a lease may still stand: first the one, then the other
    /// (rule L2).
    pub fn suspend(&self, epoch: Epoch) -> Duration {
        self.state().suspended = Some(epoch);
        self.lease_left()
    }

    /// Grants again.
    pub fn resume(&self) {
        self.state().suspended = None;
    }

    /// Whether a lease that has lapsed is not renewed yet, so that who holds none cannot be blamed for it.
    pub fn keeps_lapsed(&self) -> bool {
        let now = self.clock.now();
        self.state().keeps_lapsed(now)
    }

    /// Every member has been heard since this coordinator started: none knows of a reign that the store does not (rule T4).
    pub fn heard_all(&self) {
        self.state().lapsed_until = Moment::default();
    }

    /// Grants nothing at all, or again (rule T4).
    pub fn freeze(&self, frozen: bool) {
        self.state().frozen = frozen;
    }

    /// Whether a member was granted the last lease with another boot than this one: the machine was booted since, or this is a copy
    /// of it, whose word says nothing of the holder (rule T5).
    pub fn is_held_elsewhere(&self, member: &MemberName, boot: &str) -> bool {
        self.state().is_held_elsewhere(member, boot)
    }

    /// How long a lease that was granted may still stand, for who waits for its end.
    pub fn lease_left(&self) -> Duration {
        if mutation::broken(Rule::L2Wait) {
            return Duration::ZERO;
        }
        let now = self.clock.now();
        self.state().end().awaited_for(now)
    }

    /// How long a lease may still stand that was granted for the restart of an agent (rule L7); zero when none can.
    pub fn handed_over_left(&self) -> Duration {
        let now = self.clock.now();
        self.state().hand_over.end().awaited_for(now)
    }

    /// Whether leases are granted for restarts of an agent.
    pub fn grants_hand_over(&self) -> bool {
        self.state().hand_over.is_open()
    }

    /// Grants leases for restarts from now on. Only once the store has their length (rules L2, L7).
    pub fn open_hand_over(&self) {
        self.state().hand_over.open();
    }

    /// Grants none any more, unless one may still stand; whether none can, so that the store need not have their length.
    pub fn close_hand_over(&self) -> bool {
        let now = self.clock.now();
        self.state().hand_over.close(now)
    }

    /// A member has answered the fence of a higher epoch: no lease of its earlier ones stands (rule G5).
    pub fn fenced(&self, member: &MemberName, below: Epoch) {
        self.state().hand_over.fenced(member, below);
    }
}

#[cfg(test)]
mod tests;
