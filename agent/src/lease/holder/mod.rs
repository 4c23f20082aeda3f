//! What a primary may do now: a pure state machine of grants, endorsements and the ledger's word.
//!
//! A lease ends at the stamp of the question that was answered + ttl, whoever answered and whenever the answer came
//! (rule L1). Three things make a lease stand:
//!
//! ```text
//!   the coordinator granted it          ── until stamp + ttl
//!   every member of the electorate      ── until the oldest of their stamps + ttl     (rule E1; established only)
//!     has endorsed it
//!   the recorded electorate is empty    ── without an end                             (rule E1; established only)
//! ```
//!
//! A fence revokes epochs for good: nothing that comes later makes them stand again (rule G5).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use regent_common::{
    clock::Moment,
    ids::{Epoch, MemberName},
    lease::{Electorate, Grant, LeaseSource, Timing},
    mutation::{self, Rule},
};

/// Questions that are remembered; an answer to an older one comes too late to matter.
const QUESTIONS: usize = 64;

/// What the ledger says of this member as a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    /// Of which epoch.
    pub epoch: Epoch,
    /// Whether a lease was granted in this epoch (rule L5).
    pub established: bool,
    /// The electorate that the ledger has; `None` is not known.
    pub recorded: Option<Electorate>,
    /// Every other member that the ledger names.
    pub others: BTreeSet<MemberName>,
    /// Whether the machine was booted since the engine became writable here.
    pub rebooted: bool,
}

/// A lease that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Of which epoch.
    pub epoch: Epoch,
    /// Its end; `None` for none.
    pub end: Option<Moment>,
    /// From whom it is.
    pub source: LeaseSource,
}

/// A question to another member.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    member: MemberName,
    epoch: Epoch,
    stamp: Moment,
}

/// The state.
#[derive(Debug, Clone)]
pub struct Holder {
    started: Moment,
    timing: Timing,
    reign: Option<Reign>,
    /// The electorate that is obeyed: the recorded one or a newer one that a grant brought (rule M1).
    obeyed: Option<Electorate>,
    revoked_below: Epoch,
    /// Highest epoch that the coordinator said is stored.
    stored_epoch: Epoch,
    next_nonce: u64,
    heartbeats: BTreeMap<u64, Moment>,
    asked: BTreeMap<u64, Asked>,
    granted: Option<Granted>,
    /// Stamp of the newest question that each member answered with yes, in the present epoch.
    endorsed: BTreeMap<MemberName, Moment>,
    /// Whether, since the machine was booted, somebody who would know has said that nobody else reigns.
    confirmed_alone: bool,
    /// The mark of an earlier process's lease, as the last grant named it (rule L7).
    handed_over: Option<u64>,
}

/// What the coordinator granted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Granted {
    epoch: Epoch,
    stamp: Moment,
    end: Moment,
}

fn remember<T>(table: &mut BTreeMap<u64, T>, nonce: u64, value: T) {
    table.insert(nonce, value);
    while table.len() > QUESTIONS {
        table.pop_first();
    }
}

// === impl Holder ===

impl Holder {
    /// A holder of nothing. `first_nonce` is one that no earlier process used.
    pub fn new(now: Moment, timing: Timing, first_nonce: u64) -> Self {
        Self {
            started: now,
            timing,
            reign: None,
            obeyed: None,
            revoked_below: Epoch(0),
            stored_epoch: Epoch(0),
            next_nonce: first_nonce,
            heartbeats: BTreeMap::new(),
            asked: BTreeMap::new(),
            granted: None,
            endorsed: BTreeMap::new(),
            confirmed_alone: false,
            handed_over: None,
        }
    }

    /// Stamps a heartbeat that is about to be sent; the nonce under which its answer is known.
    pub fn stamp(&mut self, now: Moment) -> u64 {
        let nonce = self.nonce();
        remember(&mut self.heartbeats, nonce, now);
        nonce
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }

    /// Takes the times of the cluster's profile. An endorsement was promised for the length of lease that was asked for, so that
    /// none of another length counts any more.
    pub fn set_timing(&mut self, timing: Timing) {
        if self.timing.ttl != timing.ttl {
            self.endorsed.clear();
            self.asked.clear();
        }
        self.timing = timing;
    }

    /// The times in force.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Takes the ledger's word. Another epoch begins without an electorate, a grant or an endorsement.
    pub fn set_reign(&mut self, reign: Option<Reign>) {
        let epoch = |reign: &Option<Reign>| reign.as_ref().map(|reign| reign.epoch);
        if epoch(&self.reign) != epoch(&reign) {
            self.obeyed = None;
            self.granted = None;
            self.endorsed.clear();
            self.asked.clear();
            self.confirmed_alone = false;
            self.handed_over = None;
        }
        if let Some(recorded) = reign.as_ref().and_then(|reign| reign.recorded.clone()) {
            self.obey(recorded);
        }
        self.reign = reign;
    }

    /// Forgets what was said of another cluster: its epochs are not this one's.
    pub fn change_cluster(&mut self) {
        self.set_reign(None);
        (self.revoked_below, self.stored_epoch) = (Epoch(0), Epoch(0));
        self.heartbeats.clear();
    }

    /// Highest epoch that a coordinator or a member has told of.
    pub fn told_epoch(&self) -> Epoch {
        self.stored_epoch.max(self.revoked_below)
    }

    /// What the ledger says.
    pub fn reign(&self) -> Option<&Reign> {
        self.reign.as_ref()
    }

    /// The mark of an earlier process's lease that the coordinator still counts with, as its last grant named it (rule L7).
    pub fn handed_over(&self) -> Option<u64> {
        self.handed_over
    }

    /// The electorate that is obeyed.
    pub fn obeyed(&self) -> Option<&Electorate> {
        self.obeyed.as_ref()
    }

    /// A version is obeyed from its receipt, and versions never go back (rule M1).
    fn obey(&mut self, electorate: Electorate) {
        let older = self.obeyed.as_ref().is_some_and(|known| known.version >= electorate.version);
        if !older || mutation::broken(Rule::M1Monotone) {
            self.obeyed = Some(electorate);
        }
    }

    /// Takes the coordinator's answer to a heartbeat. One whose nonce is not known is dropped (rule L1); true when it counted.
    pub fn answered(&mut self, now: Moment, nonce: u64, grant: Option<Grant>, stored_epoch: Epoch) -> bool {
        let stamp = match self.heartbeats.remove(&nonce) {
            Some(_) if mutation::broken(Rule::L1Stamp) => now,
            Some(stamp) => stamp,
            None if mutation::broken(Rule::L1Nonce) => now,
            None => return false,
        };
        self.stored_epoch = self.stored_epoch.max(stored_epoch);
        let Some(grant) = grant else { return true };
        let Some(reign) = &self.reign else { return true };
        if grant.epoch != reign.epoch || grant.epoch < self.revoked_below {
            return true;
        }
        self.obey(grant.electorate);
        self.handed_over = grant.handed_over;
        let granted = Granted { epoch: grant.epoch, stamp, end: stamp.plus(grant.ttl) };
        let newer = |known: &Granted| known.epoch != granted.epoch || known.end.held_for(granted.end).is_zero();
        if self.granted.as_ref().is_none_or(newer) {
            self.granted = Some(granted);
        }
        self.confirmed_alone = true;
        true
    }

    /// Whom to ask for endorsement now, each under a nonce of its own; nobody while the coordinator renews the lease, or when
    /// nobody's word would help.
    pub fn ask(&mut self, now: Moment) -> Vec<(MemberName, u64)> {
        let members: Vec<MemberName> = self.whom_to_ask(now).into_iter().collect();
        let Some(epoch) = self.reign.as_ref().map(|reign| reign.epoch) else { return Vec::new() };
        let mut questions = Vec::new();
        for member in members {
            let nonce = self.nonce();
            remember(&mut self.asked, nonce, Asked { member: member.clone(), epoch, stamp: now });
            questions.push((member, nonce));
        }
        questions
    }

    fn whom_to_ask(&self, now: Moment) -> BTreeSet<MemberName> {
        let nobody = BTreeSet::new();
        let Some(reign) = &self.reign else { return nobody };
        let told_of_a_higher_epoch = self.stored_epoch > reign.epoch;
        if !reign.established || reign.epoch < self.revoked_below || told_of_a_higher_epoch || self.is_renewed(now) {
            return nobody;
        }
        match &self.obeyed {
            None => nobody,
            Some(electorate) if electorate.is_empty() => {
                // After a reboot somebody may have gone on without us: everybody has to say that he has not.
                if reign.rebooted { reign.others.clone() } else { nobody }
            }
            Some(electorate) => electorate.members.clone(),
        }
    }

    /// Whether the coordinator renews the lease: one missed heartbeat is no reason to ask others.
    fn is_renewed(&self, now: Moment) -> bool {
        self.renewed_at().age(now) < self.patience()
    }

    fn renewed_at(&self) -> Moment {
        self.granted.map_or(self.started, |granted| granted.stamp)
    }

    /// How old a renewal may become before others are asked.
    fn patience(&self) -> Duration {
        self.timing.heartbeat * 5 / 2
    }

    /// Takes a member's answer. One whose nonce is not known is dropped.
    pub fn endorsed(&mut self, now: Moment, nonce: u64, endorsed: bool, known_epoch: Epoch) {
        let Some(asked) = self.asked.remove(&nonce) else { return };
        self.stored_epoch = self.stored_epoch.max(known_epoch);
        let Some(reign) = self.reign.as_ref().filter(|reign| endorsed && reign.epoch == asked.epoch) else { return };
        let stamp = self.endorsed.entry(asked.member).or_insert(asked.stamp);
        *stamp = stamp.later(asked.stamp);
        let ttl = self.timing.ttl;
        let answered = |other| self.endorsed.get(other).is_some_and(|stamp| !stamp.plus(ttl).held_for(now).is_zero());
        self.confirmed_alone |= reign.others.iter().all(answered);
    }

    /// Revokes every epoch below this one, for good (rule G5).
    pub fn revoke(&mut self, below: Epoch) {
        self.revoked_below = self.revoked_below.max(below);
    }

    /// The lease that stands now, if one does.
    pub fn standing(&self, now: Moment) -> Option<Standing> {
        let reign = self.reign.as_ref()?;
        // A higher epoch is raised only when no lease of this one can stand: that it is there says that our clocks do not.
        if reign.epoch < self.revoked_below || reign.epoch < self.stored_epoch {
            return None;
        }
        let epoch = reign.epoch;
        if self.goes_on_alone(reign) {
            return Some(Standing { epoch, end: None, source: LeaseSource::Alone });
        }
        let granted = self.granted.filter(|granted| granted.epoch == epoch).map(|granted| granted.end);
        let candidates = [(granted, LeaseSource::Coordinator), (self.endorsement(reign), LeaseSource::Endorsement)];
        candidates
            .into_iter()
            .filter_map(|(end, source)| Some((end?, source)))
            .filter(|(end, _)| !end.held_for(now).is_zero())
            .max_by_key(|(end, _)| end.held_for(now))
            .map(|(end, source)| Standing { epoch, end: Some(end), source })
    }

    /// Rule E1: nobody can be promoted, by the ledger's own word. After a reboot somebody has to have said so again.
    fn goes_on_alone(&self, reign: &Reign) -> bool {
        let recorded_empty = reign.recorded.as_ref().is_some_and(Electorate::is_empty);
        let obeyed_empty = self.obeyed.as_ref().is_some_and(Electorate::is_empty);
        let confirmed =
            !reign.rebooted || self.confirmed_alone || reign.others.is_empty() || mutation::broken(Rule::E1Reboot);
        reign.established && recorded_empty && obeyed_empty && confirmed
    }

    /// Rule E1: all must endorse, and the oldest of their stamps counts.
    fn endorsement(&self, reign: &Reign) -> Option<Moment> {
        let electorate = self.obeyed.as_ref().filter(|electorate| !electorate.is_empty())?;
        if !reign.established {
            return None;
        }
        let mut oldest: Option<Moment> = None;
        for member in &electorate.members {
            let stamp = match self.endorsed.get(member) {
                Some(stamp) => *stamp,
                None if mutation::broken(Rule::E1Some) => continue,
                None => return None,
            };
            oldest = Some(oldest.map_or(stamp, |oldest| oldest.earlier(stamp)));
        }
        oldest.map(|stamp| stamp.plus(self.timing.ttl))
    }

    /// When to look again at the latest.
    pub fn next_look(&self, now: Moment) -> Duration {
        let left = self.standing(now).and_then(|standing| standing.end).map(|end| end.held_for(now));
        let patience = self.patience().checked_sub(self.renewed_at().age(now)).filter(|left| !left.is_zero());
        self.timing.heartbeat.min(left.unwrap_or(Duration::MAX)).min(patience.unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests;
