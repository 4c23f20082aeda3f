//! The plain HTTP port: health for load balancers and measurements for Prometheus. Reads only, needs no certificate,
//! tells no secrets.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use regent_common::topology::{EngineState, Role};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// What the port shows.
#[derive(Clone)]
struct Shown {
    node: Arc<Node>,
    metrics: PrometheusHandle,
}

/// The state of the node, in short.
#[derive(Debug, Serialize)]
struct Health {
    node: String,
    member: Option<String>,
    role: Option<Role>,
    engine: Option<EngineState>,
    fenced: bool,
    reason: String,
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    node: Arc<Node>,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router =
        Router::new().route("/health", get(health)).route("/metrics", get(render)).with_state(Shown { node, metrics });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// 200 while the engine accepts connections, or on a spare; 503 else.
async fn health(State(shown): State<Shown>) -> (StatusCode, Json<Health>) {
    let seen = shown.node.observation();
    let member = shown.node.ledger().read().membership.as_ref().map(|m| m.member.to_string());
    let serving = match &seen {
        Some(seen) => seen.engine.state == EngineState::Running && !seen.fenced,
        None => member.is_none(),
    };
    let health = Health {
        node: shown.node.name.to_string(),
        member,
        role: seen.as_ref().and_then(|seen| seen.engine.role),
        engine: seen.as_ref().map(|seen| seen.engine.state),
        fenced: seen.as_ref().is_some_and(|seen| seen.fenced),
        reason: seen.map(|seen| seen.engine.reason).unwrap_or_default(),
    };
    (if serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}

async fn render(State(shown): State<Shown>) -> String {
    shown.metrics.render()
}
