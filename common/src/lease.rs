//! What both sides say about leases: the profiles, the electorate, and what a member reports of its own authority.
//!
//! The rules are those of the safety protocol, named L1 to L7 (lease), E1 to E4 (endorsement), M1 to M3 (electorate). What
//! they permit is decided in the agent (`lease`) and in the coordinator (`authority`, `detector`); nothing here decides.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{Epoch, MemberName},
    position::Position,
    topology::Role,
};

/// How fast a cluster notices the loss of a node: the times of its lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A lost node is replaced within two seconds. For networks that never hesitate for half a second.
    Fast,
    /// A lost node is replaced within six seconds.
    #[default]
    Standard,
    /// A lost node is replaced within seventeen seconds. For members that are far apart.
    Relaxed,
}

/// The times of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats; with each the lease is renewed.
    pub heartbeat: Duration,
    /// How long a lease lasts, from the moment at which the agent asked for it.
    pub ttl: Duration,
    /// Silence after which a node counts as unreachable.
    pub suspect_after: Duration,
}

/// Why times that came from outside are not taken: nobody could keep a lease by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UntenableTimes {
    /// One late answer would end the lease.
    #[error("a lease of {} ms does not outlive three heartbeats of {} ms", ttl.as_millis(), heartbeat.as_millis())]
    TooShort {
        /// Between two heartbeats.
        heartbeat: Duration,
        /// How long the lease lasts.
        ttl: Duration,
    },
    /// Whoever has promised that long waits that long after every start.
    #[error("a lease of {} s is longer than any that is granted, which is {} s", ttl.as_secs(), Timing::LONGEST_TTL.as_secs())]
    TooLong {
        /// How long the lease lasts.
        ttl: Duration,
    },
}

/// How much longer than a lease of this length those wait who wait for its end: clock rates differ by less than one percent
/// (assumption A1).
pub fn margin(ttl: Duration) -> Duration {
    ttl / 50
}

/// Whom the primary asks for endorsement, and who may be promoted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Electorate {
    /// Counts within an epoch and never goes back (rule M1).
    pub version: u64,
    /// Its members, without the primary.
    pub members: BTreeSet<MemberName>,
}

/// From whom a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseSource {
    /// The coordinator granted it.
    Coordinator,
    /// Every member of the electorate endorsed it (rule E1).
    Endorsement,
    /// There is nobody who could be promoted: a recorded empty electorate (rule E1).
    Alone,
}

/// What a primary says of its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// The epoch of which it is the primary.
    pub epoch: Epoch,
    /// Whether the lease stands. Only this makes a primary count as alive (rule E4).
    pub stands: bool,
    /// From whom it is; absent when none stands.
    pub source: Option<LeaseSource>,
    /// How long it still stands; zero when it does not, or when it has no end.
    pub remaining: Duration,
}

/// What a member heard from a primary that asked it for endorsement (rule E4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardLease {
    /// Who asked.
    pub member: MemberName,
    /// What it said of its lease.
    pub lease: LeaseReport,
    /// How far it had come.
    pub position: Option<Position>,
    /// How long ago that was when the report was made.
    pub age: Duration,
}

/// What a host can do of the fence, found out by trying (rules G3, G4, G6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceStages {
    /// The gate closes by itself at the end of the lease, also under a frozen agent.
    pub timed_gate: bool,
    /// Established sockets are destroyed, so that no queued answer leaves later.
    pub destroys_sockets: bool,
    /// The gate survives a foreign flush of the rules and the end of the agent.
    pub survives_flush: bool,
    /// What is missing and what to do, a sentence each.
    pub problems: Vec<String>,
}

/// That a person has made a member the primary while no coordinator answered (rule P9). It is of the member's present epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forced {
    /// When, by the wall clock of its machine; for display.
    pub at: Timestamp,
    /// Members that the person named as off, to stay so until a coordinator is back.
    pub confirmed_off: BTreeSet<MemberName>,
}

/// What a member reports of its authority: by its ledger, its lease, and its promises to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Role by the ledger.
    pub role: Option<Role>,
    /// Whether the present epoch's primary was granted a lease once (rule L5).
    pub established: bool,
    /// Highest epoch in which the engine may have become writable here.
    pub writable_epoch: Option<Epoch>,
    /// The electorate that it obeys and that its ledger and its kernel have: the acknowledgement of rule M1.
    pub electorate: Option<Electorate>,
    /// Its own lease, when it is the primary by its ledger.
    pub lease: Option<LeaseReport>,
    /// What it heard of a primary that asks for endorsement.
    pub heard: Option<HeardLease>,
    /// How long it would still answer a preparation with "not yet": a promise, or the wait after a start (rule E2).
    pub prepare_in: Duration,
    /// What its host can do of the fence.
    pub fence: FenceStages,
    /// Whether a person has made it the primary of its epoch without a coordinator.
    pub forced: Option<Forced>,
    /// Whether its agent is about to be restarted and asks for a lease that outlives it (rule L7).
    pub hand_over: bool,
    /// The mark ([`Grant::handed_over`]) of the lease of an earlier process that this one relies on no more: since its own
    /// first grant the gate stands open by that alone (rule L7).
    pub replaced: Option<u64>,
}

/// A lease, for one member at one epoch: what the coordinator answers a heartbeat with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Epoch of which the member is the stored primary.
    pub epoch: Epoch,
    /// How long, from the stamp of the heartbeat that is answered (rule L1).
    pub ttl: Duration,
    /// Whom to ask when the coordinator is away.
    pub electorate: Electorate,
    /// The mark of a lease that an earlier process of this member's agent was granted for its restart and that may stand yet:
    /// the coordinator counts with it until it hears the mark again (rule L7).
    pub handed_over: Option<u64>,
}

/// Why a name is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no profile: choose fast, standard or relaxed")]
pub struct UnknownProfile(pub String);

// === impl Profile ===

impl Profile {
    /// All profiles, the fastest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Standard, Self::Relaxed];

    /// Its times.
    pub fn timing(self) -> Timing {
        let millis = Duration::from_millis;
        match self {
            Self::Fast => Timing { heartbeat: millis(250), ttl: millis(1500), suspect_after: millis(750) },
            Self::Standard => Timing { heartbeat: millis(1000), ttl: millis(5000), suspect_after: millis(3000) },
            Self::Relaxed => Timing { heartbeat: millis(3000), ttl: millis(15_000), suspect_after: millis(9000) },
        }
    }

    /// Its name, as in configurations and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Standard => "standard",
            Self::Relaxed => "relaxed",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;
    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == text).ok_or_else(|| UnknownProfile(text.to_owned()))
    }
}

// === impl Timing ===

impl Default for Timing {
    fn default() -> Self {
        Profile::default().timing()
    }
}

impl Timing {
    /// The least time between two heartbeats.
    pub const LEAST_HEARTBEAT: Duration = Duration::from_millis(50);
    /// The longest lease that anybody is granted or promises.
    pub const LONGEST_TTL: Duration = Duration::from_secs(120);
    /// How long a lease lasts that an agent asks for before its restart (rule L7). Longer than that of any profile.
    pub const HAND_OVER_TTL: Duration = Duration::from_secs(30);

    /// The times that were said, if a lease can be kept by them: three heartbeats fit into it, and it is not absurdly long.
    pub fn checked(heartbeat: Duration, ttl: Duration) -> Result<Self, UntenableTimes> {
        if ttl < heartbeat * 3 {
            return Err(UntenableTimes::TooShort { heartbeat, ttl });
        }
        if ttl > Self::LONGEST_TTL {
            return Err(UntenableTimes::TooLong { ttl });
        }
        Ok(Self { heartbeat, ttl, suspect_after: ttl / 2 })
    }
}

// === impl Electorate ===

impl Electorate {
    /// Whether nobody could be promoted.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

impl fmt::Display for Electorate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.members.iter().map(MemberName::as_str).collect();
        write!(f, "version {}: {}", self.version, if names.is_empty() { "nobody".to_owned() } else { names.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_leaves_room_for_three_heartbeats_and_is_found_by_its_name() {
        for profile in Profile::ALL {
            let Timing { heartbeat, ttl, suspect_after } = profile.timing();
            assert!(ttl >= heartbeat * 3, "{profile}: a lease has to outlive three heartbeats");
            assert!(suspect_after > heartbeat * 2 && suspect_after < ttl);
            assert!(margin(ttl) >= ttl / 100, "{profile}: rule A1 wants one percent");
            assert!(Timing::checked(heartbeat, ttl).is_ok(), "{profile}: what is granted is taken");
            assert!(Timing::HAND_OVER_TTL > ttl && Timing::checked(heartbeat, Timing::HAND_OVER_TTL).is_ok());
            assert_eq!(profile.as_str().parse(), Ok(profile));
        }
        assert!("quick".parse::<Profile>().is_err());
    }

    #[test]
    fn times_by_which_no_lease_can_be_kept_are_refused_with_a_reason() {
        let (beat, millis) = (Duration::from_millis(1000), Duration::from_millis);
        assert_eq!(Timing::checked(beat, millis(3000)).map(|timing| timing.ttl), Ok(millis(3000)));
        for ttl in [0, 1, 2999] {
            let refused = Timing::checked(beat, millis(ttl)).unwrap_err();
            assert_eq!(refused, UntenableTimes::TooShort { heartbeat: beat, ttl: millis(ttl) });
            assert!(refused.to_string().contains("three heartbeats of 1000 ms"), "{refused}");
        }
        let longest = Timing::LONGEST_TTL;
        assert!(Timing::checked(beat, longest).is_ok());
        let refused = Timing::checked(beat, longest + millis(1)).unwrap_err();
        assert_eq!(refused, UntenableTimes::TooLong { ttl: longest + millis(1) });
        assert!(refused.to_string().contains("120 s"), "{refused}");
    }
}
