//! The coordinator put together from its parts: what it is wherever it runs, on a machine or in a simulation.
//!
//! Files, sockets and signals are the caller's: [`crate::commands::serve`] has those of a machine.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use regent_common::{
    clock::Clock,
    error::ErrorChain,
    ids::NodeName,
    lease::Profile,
    tls::ReloadingIdentity,
    transport::{Dialer, Revocations},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    api::{Api, idempotency, routes::routes},
    audit::AuditLog,
    authority::Authorities,
    cluster::{brake::Limits, directory::Directory},
    environment::{Environment, OwnMachine},
    events::EventLog,
    identity::{Hooks, Identities, Settings},
    model::node::NodeRecord,
    nodes::{
        Agents, NodeTable, joiner,
        link::{LinkSettings, Links},
        reaper,
    },
    pki::{Authority, Host},
    secrets::Secrets,
    store::{Store, keys, list_json},
};

/// Time between heartbeats of a spare; a member's is its cluster's.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often old records are looked for.
const TIDY_PERIOD: Duration = Duration::from_secs(3600);

/// What a coordinator is made of.
pub struct Assembly {
    /// What must survive a crash.
    pub store: Arc<dyn Store>,
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Its identity.
    pub identity: ReloadingIdentity,
    /// Its way to the agents.
    pub dialer: Arc<dyn Dialer>,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Seals what is secret in the store.
    pub secrets: Arc<Secrets>,
    /// Profile of new clusters that name none.
    pub default_profile: Profile,
    /// What automatic failovers may do.
    pub limits: Limits,
    /// This machine.
    pub own_machine: OwnMachine,
    /// How long a node's certificate is valid.
    pub certificate_life: Duration,
    /// Hosts of the coordinator, which no node's certificate ever carries.
    pub hosts: BTreeSet<Host>,
}

/// A coordinator that runs, but for its services, which nobody serves yet.
pub struct Assembled {
    /// Its services.
    pub routes: Routes,
    /// Certificates that count no more.
    pub revocations: Revocations,
    /// What happens.
    pub events: EventLog,
}

/// What the identities tell the links.
enum Word {
    Dial(NodeName, String),
    /// Node, address and name of a process that announces itself; who waits hears why it is refused.
    Contest(NodeName, String, String, oneshot::Sender<Option<String>>),
    HangUp(NodeName),
}

// === impl Assembly ===

impl Assembly {
    /// Puts a coordinator together: dials the nodes, resumes what was running, and goes on beside its services until `stop`.
    pub async fn start(self, stop: &CancellationToken) -> anyhow::Result<Assembled> {
        let store = Arc::clone(&self.store);
        let clock = Arc::clone(&self.clock);
        let table = Arc::new(NodeTable::default());
        let (dial, dialled) = mpsc::unbounded_channel();
        let identities = self.identities(&dial).await?;
        let authorities = Arc::new(Authorities::new(Arc::clone(&clock)));
        let links = Arc::new(Links::new(LinkSettings {
            dialer: self.dialer,
            identity: self.identity,
            clock: Arc::clone(&clock),
            table: Arc::clone(&table),
            authorities: Arc::clone(&authorities),
            heartbeat: HEARTBEAT,
            term: store.term().0,
            store: Arc::clone(&store),
            revoked: identities.revoked(),
            stop: stop.clone(),
        }));
        tokio::spawn(follow_words(Arc::clone(&links), dialled));
        for (_, node) in list_json::<NodeRecord>(store.as_ref(), keys::NODES).await? {
            if !node.value.revoked {
                links.dial(&node.value.name, &node.value.agent_address);
            }
        }
        let agents: Arc<dyn Agents> = links.clone();
        let addresses = Arc::new(move |node: &NodeName| links.address(node));
        let environment = Environment {
            started_at: clock.boottime(),
            clock: Arc::clone(&clock),
            store: Arc::clone(&store),
            agents: Arc::clone(&agents),
            secrets: self.secrets,
            audit: AuditLog::new(Arc::clone(&store), Arc::clone(&clock)),
            events: EventLog::new(Arc::clone(&store), Arc::clone(&clock)),
            addresses,
            authorities,
            default_profile: self.default_profile,
            limits: self.limits,
            brake: Arc::default(),
            own_machine: self.own_machine,
        };
        let events = environment.events.clone();
        let directory = Directory::open(environment, table.changes(), stop.clone()).await?;
        tokio::spawn(reaper::run(Arc::clone(&store), agents, Arc::clone(&table), stop.clone()));
        tokio::spawn(joiner::run(directory.clone(), Arc::clone(&table), stop.clone()));
        tokio::spawn(tidy_up(store, clock, Arc::clone(&identities), stop.clone()));
        let api = Arc::new(Api { directory, table });
        let routes = routes(&api, &identities).await?;
        Ok(Assembled { routes, revocations: identities.revocations(), events })
    }

    async fn identities(&self, dial: &mpsc::UnboundedSender<Word>) -> anyhow::Result<Arc<Identities>> {
        // Nobody is left to listen only when the coordinator stops.
        let tell = |dial: &mpsc::UnboundedSender<Word>| {
            let dial = dial.clone();
            Arc::new(move |node: NodeRecord| drop(dial.send(Word::Dial(node.name, node.agent_address))))
        };
        let (hang_up, contest) = (dial.clone(), dial.clone());
        let settings = Settings {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            authority: Arc::clone(&self.authority),
            coordinator_id: self.identity.identity().coordinator_id,
            certificate_life: self.certificate_life,
            reserved: self.hosts.clone(),
            hooks: Hooks {
                on_joined: tell(dial),
                on_announced: tell(dial),
                contest: Arc::new(move |node, address, incarnation| {
                    let (reply, ruled) = oneshot::channel();
                    drop(contest.send(Word::Contest(node, address, incarnation, reply)));
                    // Nobody is left to rule only when the coordinator stops.
                    Box::pin(async move { ruled.await.unwrap_or_default() })
                }),
                on_revoked: Arc::new(move |node| drop(hang_up.send(Word::HangUp(node)))),
            },
        };
        Ok(Arc::new(Identities::open(settings).await?))
    }
}

async fn follow_words(links: Arc<Links>, mut words: mpsc::UnboundedReceiver<Word>) {
    while let Some(word) = words.recv().await {
        match word {
            Word::Dial(node, address) => links.dial(&node, &address),
            Word::HangUp(node) => links.hang_up(&node),
            Word::Contest(node, address, incarnation, reply) => {
                let links = Arc::clone(&links);
                tokio::spawn(async move { reply.send(links.contest(&node, &address, &incarnation).await) });
            }
        }
    }
}

/// Forgets what has no use any more: old requests, ended certificates and tokens.
async fn tidy_up(store: Arc<dyn Store>, clock: Arc<dyn Clock>, identities: Arc<Identities>, stop: CancellationToken) {
    let mut period = tokio::time::interval(TIDY_PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        let outcome = match idempotency::prune(store.as_ref(), clock.as_ref()).await {
            Ok(_) => identities.sweep().await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(error = %ErrorChain(&error), "what has no use any more could not be forgotten");
        }
    }
}
