//! Leases that outlive the agent that asked for them: what is granted before a planned restart, and until when it counts
//! (rule L7).
//!
//! ```text
//!   asked ── the store has the length ──► granted ──┬── its end passes, by both clocks
//!     (L2: open)                     (again: later) ├── the agent that came since says the mark: it relies on it no more
//!                                                   └── a fence of a higher epoch is answered
//! ```
//!
//! **Invariant:** the end goes back only by a word that cannot have been said before the last such grant was used up. Each grant
//! has a new *mark*, which is told to processes that do not ask themselves; only one that came after the asking one has heard
//! it and says it, and that one runs because the one that asked has ended. Whatever a process said before, and whatever comes
//! late, has no mark or an older one.

use regent_common::{
    chance,
    clock::Moment,
    ids::{Epoch, MemberName},
    lease::{Timing, margin},
    mutation::{self, Rule},
    topology::Observation,
};

/// What was granted for restarts of one cluster's primary.
#[derive(Debug, Clone, Default)]
pub(super) struct HandOver {
    /// Whether the store has the length of such leases, so that they may be granted.
    open: bool,
    lent: Option<Lent>,
}

#[derive(Debug, Clone)]
struct Lent {
    member: MemberName,
    epoch: Epoch,
    /// No such lease stands after this, by both clocks.
    end: Moment,
    mark: u64,
}

fn new_mark() -> u64 {
    u64::try_from(chance::ulid().random() >> 16).expect("an id has 80 random bits")
}

// === impl HandOver ===

impl HandOver {
    /// What an earlier coordinator may have granted, by the store: its mark is not known, and a new one does as well.
    pub(super) fn found(member: MemberName, epoch: Epoch, end: Moment) -> Self {
        Self { open: false, lent: Some(Lent { member, epoch, end, mark: new_mark() }) }
    }

    /// Latest end of all such leases.
    pub(super) fn end(&self) -> Moment {
        self.lent.as_ref().map_or_else(Moment::default, |lent| lent.end)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn open(&mut self) {
        self.open = true;
    }

    pub(super) fn close(&mut self, now: Moment) -> bool {
        if !self.end().awaited_for(now).is_zero() {
            return false;
        }
        *self = Self::default();
        true
    }

    /// One is granted now.
    pub(super) fn lend(&mut self, member: &MemberName, epoch: Epoch, now: Moment) {
        let ttl = Timing::HAND_OVER_TTL;
        let end = now.plus(ttl + margin(ttl)).later(self.end());
        let end = if mutation::broken(Rule::L7Wait) { Moment::default() } else { end };
        tracing::info!(%member, seconds = ttl.as_secs(), "a lease for the restart of the agent");
        self.lent = Some(Lent { member: member.clone(), epoch, end, mark: new_mark() });
    }

    /// What a process that does not ask is told, for it to say again.
    pub(super) fn mark(&self, member: &MemberName, epoch: Epoch, now: Moment) -> Option<u64> {
        let lent = self.lent.as_ref().filter(|lent| lent.member == *member && lent.epoch == epoch)?;
        (!lent.end.awaited_for(now).is_zero()).then_some(lent.mark)
    }

    /// Takes the word of the grantee.
    pub(super) fn hear(&mut self, seen: &Observation) {
        let Some(lent) = &self.lent else { return };
        let any = mutation::broken(Rule::L7Replaced) && !seen.authority.hand_over;
        let marked = seen.authority.replaced == Some(lent.mark) || any;
        if marked && seen.member == lent.member && seen.epoch == lent.epoch {
            tracing::info!(member = %lent.member, "the new agent has replaced the lease that was granted for its restart");
            self.lent = None;
        }
    }

    /// Whoever has answered a fence holds no lease of an epoch below it.
    pub(super) fn fenced(&mut self, member: &MemberName, below: Epoch) {
        if self.lent.as_ref().is_some_and(|lent| lent.member == *member && lent.epoch < below) {
            self.lent = None;
        }
    }
}
