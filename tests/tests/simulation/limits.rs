//! The stated limit of a store that is put back: one live coordinator is an axiom, and its machine rolled back while all who know
//! more are cut off is beyond it. So an old backup is put back only while somebody who knows more can be heard, and he is not
//! silenced before the coordinator has heard him.
//!
//! The person stands by for that: the coordinator stays down until the moment has come. Who knows more is asked of the ledgers on
//! the disks, which is what the members have said that they keep.

use std::{path::Path, time::Duration};

use regent_agent::ledger::LedgerStore;
use regent_common::ids::{ClusterId, Epoch, Revision};

use super::{
    faults::Kind,
    machine::Machine,
    trace::traced,
    world::{COORDINATOR, Simulation},
};

/// How long a coordinator may take until it has started and heard whom it can hear.
const UNTIL_HEARD: Duration = Duration::from_secs(10);

/// What a backup has, as far as others can know more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) revision: Revision,
    /// The cluster's id and epoch, if there was one.
    pub(crate) cluster: Option<(ClusterId, Epoch)>,
    /// The newest version of the electorate of that epoch.
    pub(crate) electorate: u64,
}

/// How far it is with putting a backup back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum PutBack {
    /// No backup was put back, or all that others knew has been taken over.
    #[default]
    None,
    /// It is to be put back; `over` when nothing but that keeps the coordinator down any more.
    Wanted { over: bool },
    /// It was put back, the coordinator is up since then, and has not heard this node, who knows more.
    Unheard { witness: String, since: Duration },
    /// The coordinator knows that its store is old. It forgets that when it dies.
    Heard,
}

// === impl Simulation ===

impl Simulation<'_> {
    /// A backup is to be put back, or the time for that is over.
    pub(crate) fn want_put_back(&mut self, begins: bool) {
        if begins {
            self.kill(COORDINATOR, true);
            self.put_back = PutBack::Wanted { over: false };
        } else if self.put_back == (PutBack::Wanted { over: false }) {
            self.put_back = PutBack::Wanted { over: true };
        } else {
            self.kill(COORDINATOR, false);
        }
    }

    /// Goes on with it; `words` came from the store.
    pub(crate) fn go_on_with_put_back(&mut self, words: &[String]) {
        let said = |what: &str| words.iter().any(|word| word == what);
        match self.put_back.clone() {
            PutBack::None => {}
            PutBack::Wanted { over } => self.try_to_put_back(over),
            PutBack::Unheard { .. } | PutBack::Heard if said("ADOPTED") => self.put_back = PutBack::None,
            PutBack::Unheard { .. } if said("FROZEN") => self.put_back = PutBack::Heard,
            PutBack::Unheard { witness, .. } if self.down.get(COORDINATOR).is_some_and(|reasons| *reasons > 0) => {
                self.put_back = PutBack::Unheard { witness, since: self.now() };
            }
            PutBack::Unheard { since, .. } if since + UNTIL_HEARD <= self.now() => {
                traced!("nobody was found to know more than the backup");
                self.put_back = PutBack::None;
            }
            PutBack::Unheard { .. } | PutBack::Heard => {}
        }
    }

    fn try_to_put_back(&mut self, over: bool) {
        let Some(backup) = self.store.backed_up() else {
            traced!("there is no backup");
            self.put_back = PutBack::None;
            if over {
                self.kill(COORDINATOR, false);
            }
            return;
        };
        let knowing: Vec<_> = self.machines.iter().filter(|machine| knows_more(machine, backup)).collect();
        if self.oracle.may_be_handed_over(self.now()) {
            // Who alone could know that the backup is older than a lease for its restart may be away.
            return;
        }
        let heard = knowing.iter().find(|machine| self.is_heard(machine)).map(|machine| machine.name.clone());
        if heard.is_none() && !knowing.is_empty() {
            return;
        }
        self.store.restore();
        traced!("an old backup was put back; {} knows more and is heard", heard.as_deref().unwrap_or("nobody"));
        let since = self.now();
        self.put_back = heard.map_or(PutBack::None, |witness| PutBack::Unheard { witness, since });
        if over {
            self.kill(COORDINATOR, false);
        }
    }

    /// Whether a fault is beyond the limit now, because it would silence the one who knows more, or make the coordinator forget him.
    pub(crate) fn is_beyond_limit(&self, kind: Kind, host: &str, other: &str) -> bool {
        match &self.put_back {
            PutBack::None => false,
            PutBack::Wanted { .. } => kind == Kind::Restored,
            PutBack::Unheard { witness, .. } => {
                kind == Kind::AllPower
                    || kind == Kind::Restored
                    || (silences(kind) && [host, other].iter().any(|name| name == witness || *name == COORDINATOR))
            }
            PutBack::Heard => matches!(kind, Kind::AllPower | Kind::Restored | Kind::CoordinatorCrash),
        }
    }

    /// Whether a coordinator would hear a machine's agent now.
    fn is_heard(&self, machine: &Machine) -> bool {
        let up = self.down.get(&machine.name).is_none_or(|reasons| *reasons == 0);
        up && machine.stalls.answers() && self.network.connected(COORDINATOR, &machine.name)
    }
}

/// Whether a fault can keep a host from being heard.
fn silences(kind: Kind) -> bool {
    match kind {
        Kind::Partition
        | Kind::OneWay
        | Kind::Isolation
        | Kind::Delay
        | Kind::Hold
        | Kind::AgentCrash
        | Kind::AgentRestart
        | Kind::AgentPause
        | Kind::MachinePause
        | Kind::Sleep
        | Kind::PowerCut
        | Kind::AllPower
        | Kind::DiskStall
        | Kind::DiskFailure => true,
        Kind::EngineCrash
        | Kind::EngineHang
        | Kind::StartedByHand
        | Kind::DataLost
        | Kind::SlowStream
        | Kind::CoordinatorCrash
        | Kind::Restored
        | Kind::StoreFailure => false,
    }
}

fn knows_more(machine: &Machine, backup: Known) -> bool {
    let Ok(Some(ledger)) = LedgerStore::peek(&machine.disk, Path::new("/simulated/state")) else { return false };
    let ours = ledger.membership.as_ref().zip(backup.cluster).filter(|(own, (cluster, _))| own.cluster_id == *cluster);
    let later = ours.is_some_and(|(membership, (_, epoch))| {
        let obeyed = membership.electorate.as_ref().map_or(0, |electorate| electorate.version);
        membership.epoch > epoch || (membership.epoch == epoch && obeyed > backup.electorate)
    });
    ledger.revision > backup.revision || later
}
