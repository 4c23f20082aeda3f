//! Keeps the allow-list of this node's member: durable before it is in force, in force before an engine is started, and put back when
//! something removed it.
//!
//! What is kept is the list as the coordinator told it last. What it comes to on this machine, a [`Passage`], is worked out anew
//! whenever something of it changes: the list, the members, the port, the addresses of names.
//!
//! **Invariants:** a list is on disk before it is in force, and before its teller is answered; one that could not be put in force is
//! tried again until it is, is said in every heartbeat, and no step that may start the engine is carried out meanwhile
//! ([`Keeper::ensure`]). A file that cannot be read counts as such a list: nobody knows who was to be let in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use regent_common::{
    allow_list::{AllowList, canonical},
    error::ErrorChain,
    ids::ClusterId,
    topology::{AllowListState, Peer},
};
use tokio_util::sync::CancellationToken;

use super::{
    Firewall, FirewallError, Judge, Means, Passage,
    names::{Names, host_of},
    stored::Stored,
};
use crate::ledger::{LedgerError, LedgerStore, Membership};

/// Time between two looks at what is in force.
const VERIFY_PERIOD: Duration = Duration::from_secs(1);

/// Looks after which names are asked again.
const LOOKS_PER_LOOKUP: u32 = 30;

/// What is reported in place of a list's fingerprint when the file with the list cannot be read: no list has it, so that the list is
/// told again.
const UNREADABLE: &str = "unreadable";

/// Why a list is not in force.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It could not be kept over a restart, and is not in force.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It is kept, and not in force.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

/// Keeps the allow-list of this node.
pub struct Keeper {
    firewall: Arc<dyn Firewall>,
    names: Arc<dyn Names>,
    extra_ports: BTreeSet<u16>,
    /// Hosts of the coordinators.
    coordinators: Vec<String>,
    ledger: LedgerStore,
    /// Held while what is in force changes, so that changes follow one another.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

/// What is known of the list.
#[derive(Debug, Default)]
struct Known {
    /// What has to be in force; `None` for a node that keeps nobody out.
    told: Option<Told>,
    /// Addresses that names had last.
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    in_force: Option<Arc<Passage>>,
    /// Why what was told is not in force; empty when it is.
    problem: String,
    /// Whether there may be a file.
    is_stored: bool,
    /// Whether the file could not be read, and nothing was told since.
    unreadable: bool,
}

/// A list, and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    cluster_id: ClusterId,
    list: AllowList,
    port: u16,
    /// Hosts of the members' engines and agents.
    hosts: BTreeSet<String>,
}

// === impl Keeper ===

impl Keeper {
    /// A keeper that knows of no list; `coordinators` are named as host:port.
    pub fn new(means: Means, coordinators: &[String], ledger: LedgerStore) -> Self {
        let Means { firewall, names, extra_ports } = means;
        let coordinators = coordinators.iter().map(|coordinator| host_of(coordinator).to_owned()).collect();
        let (turn, known) = Default::default();
        Self { firewall, names, extra_ports, coordinators, ledger, turn, known }
    }

    /// Puts in force what was kept, at a start: after a boot nothing of it is in the kernel. No name is asked for, as nothing may be
    /// known of names yet.
    pub async fn restore(&self, membership: Option<&Membership>) {
        let _turn = self.turn.lock().await;
        let told = match membership {
            // What a spare has kept is of a cluster that it has left.
            None => None,
            Some(membership) => match Stored::load(&self.ledger).await {
                Ok(stored) => {
                    self.known().is_stored = stored.is_some();
                    let own = stored.filter(|stored| stored.cluster_id == membership.cluster_id);
                    own.map(|stored| {
                        self.known().addresses = stored.addresses;
                        told(membership.cluster_id, stored.list, membership.port, &membership.spec.members)
                    })
                }
                Err(error) => {
                    let error = ErrorChain(&error).to_string();
                    tracing::error!(
                        error,
                        "the allow-list cannot be read: no engine is started before it is told again"
                    );
                    let mut known = self.known();
                    (known.is_stored, known.unreadable, known.problem) = (true, true, error);
                    return;
                }
            },
        };
        self.put(told).await.unwrap_or_else(|error| self.warn(&error));
    }

    /// Takes what the coordinator says: on disk first, then in force.
    ///
    /// # Errors
    /// [`FirewallError::Impossible`] for a list that cannot be in force here, of which nothing is kept. After any other error the list is
    /// kept, tried again by itself, and no engine is started before it is in force.
    pub async fn tell(
        &self,
        cluster_id: ClusterId,
        list: &AllowList,
        port: u16,
        members: &[Peer],
    ) -> Result<(), KeepError> {
        if let Some(why) = self.firewall.problem().filter(|_| !list.is_empty()) {
            return Err(FirewallError::Impossible { why }.into());
        }
        let told = told(cluster_id, list.clone(), port, members);
        if !told.list.is_empty() {
            self.look_up(&told).await;
        }
        let _turn = self.turn.lock().await;
        if told.list.is_empty() {
            self.forget_stored().await?;
        } else {
            let addresses = self.known().addresses.clone();
            // Before it is written: of a write that fails nobody knows what it left.
            self.known().is_stored = true;
            Stored::new(cluster_id, told.list.clone(), addresses).save(&self.ledger).await?;
        }
        let present = self.known().told.as_ref() == Some(&told);
        self.put(Some(told)).await?;
        if !present {
            tracing::info!(ranges = list.len(), "the allow-list is in force");
        }
        Ok(())
    }

    /// The node keeps nobody out any more: it has left its cluster, and its engine is gone.
    pub async fn forget(&self) -> Result<(), KeepError> {
        let _turn = self.turn.lock().await;
        self.forget_stored().await?;
        Ok(self.put(None).await?)
    }

    async fn forget_stored(&self) -> Result<(), LedgerError> {
        if self.known().is_stored {
            Stored::forget(&self.ledger).await?;
            self.known().is_stored = false;
        }
        Ok(())
    }

    /// Before an engine is started: what was told is in force.
    pub async fn ensure(&self) -> Result<(), FirewallError> {
        let _turn = self.turn.lock().await;
        let (told, unreadable, problem) = {
            let known = self.known();
            (known.told.clone(), known.unreadable, known.problem.clone())
        };
        if unreadable {
            let detail = format!("{problem}; no engine is started before it is told again");
            return Err(FirewallError::Kernel { doing: "put the allow-list in force", detail });
        }
        if problem.is_empty() { Ok(()) } else { self.put(told).await }
    }

    /// How the list stands, for heartbeats.
    pub fn state(&self) -> AllowListState {
        let known = self.known();
        let told = known.told.as_ref().map(|told| told.list.fingerprint());
        let fingerprint = if known.unreadable { UNREADABLE.to_owned() } else { told.unwrap_or_default() };
        AllowListState { fingerprint, problem: known.problem.clone() }
    }

    /// Why no list can be in force on this node; empty when one can.
    pub fn inability(&self) -> String {
        self.firewall.problem().unwrap_or_default()
    }

    /// Clients whose connections a list would cut, with how many each has.
    pub async fn would_cut(
        &self,
        list: &AllowList,
        membership: &Membership,
    ) -> Result<BTreeMap<IpAddr, u32>, FirewallError> {
        let told = told(membership.cluster_id, list.clone(), membership.port, &membership.spec.members);
        self.look_up(&told).await;
        let passage = self.passage(&told);
        let judge = Judge::new(list, passage.always);
        let clients = self.firewall.clients(&passage.ports).await?;
        Ok(clients.into_iter().filter(|(address, _)| !judge.lets_in(*address)).collect())
    }

    /// Looks after it until told to stop: puts back what is missing, tries again what failed, asks for names again.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut looks: u32 = 0;
        while stop.run_until_cancelled(tokio::time::sleep(VERIFY_PERIOD)).await.is_some() {
            looks = looks.wrapping_add(1);
            // Names are asked for soon after a start, which had to do with what was known before.
            let asks = looks % LOOKS_PER_LOOKUP == 1;
            if stop.run_until_cancelled(self.look(asks)).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self, asks: bool) {
        let Some(told) = self.known().told.clone().filter(|told| !told.list.is_empty()) else { return };
        let news = asks && self.look_up(&told).await;
        let _turn = self.turn.lock().await;
        // Something else may have been told meanwhile; it was put in force with all that is known.
        if self.known().told.as_ref() != Some(&told) {
            return;
        }
        if news {
            let addresses = self.known().addresses.clone();
            if let Err(error) = Stored::new(told.cluster_id, told.list.clone(), addresses).save(&self.ledger).await {
                tracing::warn!(error = %ErrorChain(&error), "the addresses of the members could not be kept for the next start");
            }
        }
        let wanted = self.passage(&told);
        let stands = {
            let known = self.known();
            known.problem.is_empty() && known.in_force.as_deref() == Some(&wanted)
        };
        let before = self.known().problem.clone();
        if !stands {
            if let Err(error) = self.put(Some(told)).await {
                self.warn_unless(&before, &error);
            }
            return;
        }
        match self.firewall.verify().await {
            Ok(faults) if faults.is_empty() => {}
            Ok(faults) => {
                metrics::counter!("regent_agent_allow_list_put_back_total").increment(1);
                tracing::warn!(faults = faults.join("; "), "the allow-list was put back");
            }
            Err(error) => {
                self.warn_unless(&before, &error);
                self.known().problem = ErrorChain(&error).to_string();
            }
        }
    }

    fn warn(&self, error: &FirewallError) {
        tracing::error!(error = %ErrorChain(error), "the allow-list is not in force; it is tried again");
    }

    /// Says it once, not at each look.
    fn warn_unless(&self, before: &str, error: &FirewallError) {
        if before != ErrorChain(error).to_string() {
            self.warn(error);
        }
    }

    /// Puts this in force; what it is, and whether it is, is known afterwards.
    async fn put(&self, told: Option<Told>) -> Result<(), FirewallError> {
        let passage = told.as_ref().filter(|told| !told.list.is_empty()).map(|told| Arc::new(self.passage(told)));
        {
            let mut known = self.known();
            known.told = told;
            known.unreadable = false;
        }
        let kept = self.firewall.keep(passage.clone()).await;
        let mut known = self.known();
        match kept {
            Ok(cut) => {
                if cut > 0 {
                    tracing::info!(connections = cut, "cut, as their addresses are not in the allow-list");
                }
                known.in_force = passage;
                known.problem.clear();
                Ok(())
            }
            Err(error) => {
                known.problem = ErrorChain(&error).to_string();
                Err(error)
            }
        }
    }

    /// What a list comes to on this machine, by the addresses that names had last.
    fn passage(&self, told: &Told) -> Passage {
        let known = self.known();
        let addresses = |host: &String| match host.parse::<IpAddr>() {
            Ok(address) => [canonical(address)].into(),
            Err(_) => known.addresses.get(host).cloned().unwrap_or_default(),
        };
        let always = self.always(told).flat_map(|host| addresses(&host)).collect();
        let ports = self.extra_ports.iter().copied().chain([told.port]).collect();
        Passage { ports, allowed: told.list.clone(), always }
    }

    /// Hosts of those who always pass.
    fn always<'a>(&'a self, told: &'a Told) -> impl Iterator<Item = String> + 'a {
        told.hosts.iter().chain(&self.coordinators).cloned()
    }

    /// Asks for the names of those who always pass; whether anything is new. One that nobody knows now keeps what it had.
    async fn look_up(&self, told: &Told) -> bool {
        let names: BTreeSet<String> = self.always(told).filter(|host| host.parse::<IpAddr>().is_err()).collect();
        let asked = names.iter().map(|host| async move { Some((host.clone(), self.names.addresses(host).await?)) });
        let found: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let mut known = self.known();
        let before = known.addresses.clone();
        known.addresses.retain(|host, _| names.contains(host));
        known.addresses.extend(found);
        known.addresses != before
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("known", &self.known()).finish_non_exhaustive()
    }
}

fn told(cluster_id: ClusterId, list: AllowList, port: u16, members: &[Peer]) -> Told {
    let hosts = members.iter().flat_map(|peer| [peer.engine.host.clone(), host_of(&peer.agent_address).to_owned()]);
    Told { cluster_id, list, port, hosts: hosts.filter(|host| !host.is_empty()).collect() }
}
