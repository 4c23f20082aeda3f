//! `regent-coordinator serve`: opens the store, dials the nodes, resumes what was running, answers.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use regent_common::{
    clock::{Clock, SystemClock},
    config,
    error::ErrorChain,
    identity::IdentityDirectory,
    ids::NodeName,
    telemetry,
    tls::ReloadingIdentity,
    transport::{self, ServeOptions},
};
use tokio::{
    net::TcpListener,
    signal::unix,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Api, idempotency, routes::routes},
    audit::AuditLog,
    authority::Authorities,
    cluster::directory::Directory,
    config::Config,
    environment::Environment,
    events::EventLog,
    http,
    identity::{Hooks, Identities, Settings},
    model::node::NodeRecord,
    nodes::{
        Agents, NodeTable, joiner,
        link::{LinkSettings, Links},
        reaper,
    },
    pki::{
        Authority, Host, StateDirectory,
        renewal::{OwnCertificate, server_hosts},
    },
    secrets::Secrets,
    store::{Store, keys, list_json, sqlite::SqliteStore},
};

/// Time between heartbeats of a spare; a member's is its cluster's.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often changed identity files are looked for.
const IDENTITY_PERIOD: Duration = Duration::from_secs(10);
/// How often the metrics' recorder tidies up.
const METRICS_PERIOD: Duration = Duration::from_secs(5);
/// How often old records are looked for.
const TIDY_PERIOD: Duration = Duration::from_secs(3600);
/// How often the store's revision is read for the sessions' hello.
const REVISION_PERIOD: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: &Path) -> anyhow::Result<()> {
    let config = if config.exists() { config::load::<Config>(config)? } else { Config::default() };
    telemetry::init(config.log_format)?;
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;
    serve(config, stop).await
}

/// Runs until `stop`.
pub async fn serve(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock);
    let identity = ReloadingIdentity::open(&IdentityDirectory::new(config.state_dir.join("identity")))
        .context("read the coordinator's identity; was `regent-coordinator init` run?")?;
    tokio::spawn(watch_identity(identity.clone(), stop.clone()));
    let state = StateDirectory(config.state_dir.clone());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&state.store())?);
    let table = Arc::new(NodeTable::default());
    let (revision, revisions) = watch::channel(store.revision().await?);
    let (dial, mut dialled) = mpsc::unbounded_channel();
    let identities = open_identities(&config, &state, &store, &identity, &dial).await?;
    let authorities = Arc::new(Authorities::new(clock.clone()));
    let links = Arc::new(Links::new(LinkSettings {
        identity: identity.clone(),
        clock: clock.clone(),
        table: Arc::clone(&table),
        authorities: Arc::clone(&authorities),
        heartbeat: HEARTBEAT,
        term: store.term().0,
        revision: revisions,
        revoked: identities.revoked(),
        stop: stop.clone(),
    }));
    {
        let links = Arc::clone(&links);
        tokio::spawn(async move {
            while let Some(word) = dialled.recv().await {
                match word {
                    Word::Dial(node, address) => links.dial(&node, &address),
                    Word::HangUp(node) => links.hang_up(&node),
                }
            }
        });
    }
    for (_, node) in list_json::<NodeRecord>(store.as_ref(), keys::NODES).await? {
        if !node.value.revoked {
            links.dial(&node.value.name, &node.value.agent_address);
        }
    }
    let agents: Arc<dyn Agents> = links.clone();
    let addresses = {
        let links = Arc::clone(&links);
        Arc::new(move |node: &NodeName| links.address(node))
    };
    let environment = Environment {
        started_at: clock.boottime(),
        clock: clock.clone(),
        store: Arc::clone(&store),
        agents: Arc::clone(&agents),
        secrets: Arc::new(Secrets::load(&state.secrets_key())?),
        audit: AuditLog::new(Arc::clone(&store), clock.clone()),
        events: EventLog::new(Arc::clone(&store), clock.clone()),
        addresses,
        authorities,
        default_profile: config.profile,
        limits: config.limits(),
        brake: Arc::default(),
        own_boot_id: (!config.promote_on_this_machine).then(own_boot_id).flatten(),
    };
    let directory = Directory::open(environment, table.changes(), stop.clone()).await?;
    tokio::spawn(reaper::run(Arc::clone(&store), agents, Arc::clone(&table), stop.clone()));
    tokio::spawn(joiner::run(directory.clone(), Arc::clone(&table), stop.clone()));
    tokio::spawn(follow_revision(Arc::clone(&store), revision, stop.clone()));
    let certificate = OwnCertificate {
        store: Arc::clone(&store),
        clock,
        authority: Arc::new(Authority::open(&state.authority())?),
        directory: IdentityDirectory::new(state.identity()),
        identity: identity.clone(),
        hosts: server_hosts(config.advertise.iter().map(|host| host.parse::<Host>()).collect::<Result<Vec<_>, _>>()?),
        life: config.certificate_life.0,
    };
    tokio::spawn(certificate.keep(stop.clone()));
    tokio::spawn(tidy_up(Arc::clone(&store), Arc::clone(&identities), stop.clone()));
    let api = Arc::new(Api { directory, table });
    let routes = routes(&api, &identities).await?;
    serve_http(&config, &stop).await?;
    let listener = TcpListener::bind(&config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    tracing::info!(listen = %listener.local_addr()?, identity = %identity.identity(), term = %store.term(),
        "the coordinator is ready");
    // Systemd is told when there is one; nobody listening is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let options = ServeOptions { revocations: identities.revocations() };
    transport::serve_with(listener, identity, routes, options, stop).await?;
    Ok(())
}

/// Boot of this machine; a member that reports the same one is on it.
fn own_boot_id() -> Option<Arc<str>> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot_id.trim().into())
}

/// What the identities tell the links.
enum Word {
    Dial(NodeName, String),
    HangUp(NodeName),
}

async fn open_identities(
    config: &Config,
    state: &StateDirectory,
    store: &Arc<dyn Store>,
    identity: &ReloadingIdentity,
    dial: &mpsc::UnboundedSender<Word>,
) -> anyhow::Result<Arc<Identities>> {
    let reserved = config.advertise.iter().map(|host| host.parse::<Host>()).collect::<Result<_, _>>()?;
    // Nobody is left to listen only when the coordinator stops.
    let tell = |dial: &mpsc::UnboundedSender<Word>| {
        let dial = dial.clone();
        Arc::new(move |node: NodeRecord| drop(dial.send(Word::Dial(node.name, node.agent_address))))
    };
    let hang_up = dial.clone();
    let settings = Settings {
        store: Arc::clone(store),
        clock: Arc::new(SystemClock),
        authority: Arc::new(Authority::open(&state.authority())?),
        coordinator_id: identity.identity().coordinator_id,
        certificate_life: config.certificate_life.0,
        reserved,
        hooks: Hooks {
            on_joined: tell(dial),
            on_announced: tell(dial),
            on_revoked: Arc::new(move |node| drop(hang_up.send(Word::HangUp(node)))),
        },
    };
    Ok(Arc::new(Identities::open(settings).await?))
}

async fn serve_http(config: &Config, stop: &CancellationToken) -> anyhow::Result<()> {
    let metrics = telemetry::metrics_recorder()?;
    let upkeep = metrics.clone();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut period = tokio::time::interval(METRICS_PERIOD);
        while !stopped.is_cancelled() {
            period.tick().await;
            upkeep.run_upkeep();
        }
    });
    if config.http_listen.is_empty() {
        return Ok(());
    }
    let listener =
        TcpListener::bind(&config.http_listen).await.with_context(|| format!("listen on {}", config.http_listen))?;
    let stop = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = http::serve(listener, metrics, stop).await {
            tracing::error!(%error, "health and metrics are no longer served");
        }
    });
    Ok(())
}

async fn watch_identity(identity: ReloadingIdentity, stop: CancellationToken) {
    identity.watch(IDENTITY_PERIOD, stop).await;
}

/// Keeps the revision at hand, so that a session's hello needs no read of the store.
async fn follow_revision(
    store: Arc<dyn Store>,
    revision: watch::Sender<regent_common::ids::Revision>,
    stop: CancellationToken,
) {
    let mut period = tokio::time::interval(REVISION_PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        if let Ok(now) = store.revision().await {
            revision.send_replace(now);
        }
    }
}

/// Forgets what has no use any more: old requests, ended certificates and tokens.
async fn tidy_up(store: Arc<dyn Store>, identities: Arc<Identities>, stop: CancellationToken) {
    let mut period = tokio::time::interval(TIDY_PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        let outcome = match idempotency::prune(store.as_ref(), &SystemClock).await {
            Ok(_) => identities.sweep().await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(error = %ErrorChain(&error), "what has no use any more could not be forgotten");
        }
    }
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(())
}
