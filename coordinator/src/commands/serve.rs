//! `regent-coordinator serve`: opens the store, dials the nodes, resumes what was running, answers.

use std::{os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use nix::unistd::{User, geteuid};
use regent_common::{
    clock::{Clock, SystemClock},
    config,
    identity::IdentityDirectory,
    service_manager, telemetry,
    tls::ReloadingIdentity,
    transport::{self, ServeOptions, TcpDialer},
};
use tokio::{net::TcpListener, signal::unix};
use tokio_util::sync::CancellationToken;

use crate::{
    assembly::{Assembled, Assembly},
    config::Config,
    environment::OwnMachine,
    http,
    pki::{
        Authority, Host, StateDirectory,
        renewal::{OwnCertificate, server_hosts},
    },
    secrets::Secrets,
    store::{Store, sqlite::SqliteStore},
};

/// How often changed identity files are looked for.
const IDENTITY_PERIOD: Duration = Duration::from_secs(10);
/// How often the metrics' recorder tidies up.
const METRICS_PERIOD: Duration = Duration::from_secs(5);

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
    refuse_as_another(&config.state_dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let identity = ReloadingIdentity::open(&IdentityDirectory::new(config.state_dir.join("identity")))
        .context("read the coordinator's identity; was `regent-coordinator init` run?")?;
    tokio::spawn(watch_identity(identity.clone(), stop.clone()));
    let state = StateDirectory(config.state_dir.clone());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&state.store())?);
    let authority = Arc::new(Authority::open(&state.authority())?);
    let hosts = config.advertise.iter().map(|host| host.parse::<Host>()).collect::<Result<_, _>>()?;
    let assembly = Assembly {
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        identity: identity.clone(),
        dialer: Arc::new(TcpDialer),
        authority: Arc::clone(&authority),
        secrets: Arc::new(Secrets::load(&state.secrets_key())?),
        default_profile: config.profile,
        limits: config.limits(),
        own_machine: OwnMachine { boot_id: own_boot_id(), promotes: config.promote_on_this_machine },
        certificate_life: config.certificate_life.0,
        hosts,
    };
    let hosts = server_hosts(assembly.hosts.iter().cloned());
    let term = store.term();
    let Assembled { routes, revocations, events } = assembly.start(&stop).await?;
    if let Some(hook) = config.hook() {
        tokio::spawn(hook.run(Arc::clone(&store), events, stop.clone()));
    }
    let certificate = OwnCertificate {
        store,
        clock,
        authority,
        directory: IdentityDirectory::new(state.identity()),
        identity: identity.clone(),
        hosts,
        life: config.certificate_life.0,
    };
    tokio::spawn(certificate.keep(stop.clone()));
    serve_http(&config, &stop).await?;
    let listener = TcpListener::bind(&config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    tracing::info!(listen = %listener.local_addr()?, identity = %identity.identity(), %term, "the coordinator is ready");
    service_manager::ready(&identity.identity().to_string());
    tokio::spawn(service_manager::keep_watchdog(stop.clone()));
    transport::serve_with(listener, identity, routes, ServeOptions { revocations }, stop).await?;
    Ok(())
}

/// What root writes into the folder of the coordinator's own user would shut that one out at its next start.
fn refuse_as_another(state_dir: &Path) -> anyhow::Result<()> {
    let Ok(owner) = std::fs::metadata(state_dir).map(|folder| folder.uid()) else { return Ok(()) };
    let user = User::from_uid(owner.into()).ok().flatten().map_or_else(|| owner.to_string(), |user| user.name);
    anyhow::ensure!(
        owner == geteuid().as_raw(),
        "{} belongs to {user}: start the coordinator as that user, with `systemctl start regent-coordinator`; nothing was changed",
        state_dir.display()
    );
    Ok(())
}

/// Boot of this machine; a member that reports the same one is on it.
fn own_boot_id() -> Option<Arc<str>> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot_id.trim().into())
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
