//! Health and metrics by HTTP, for load balancers and Prometheus. Nothing here is secret and nothing changes anything.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> Result<(), std::io::Error> {
    let router = Router::new()
        .route("/health", get(|| async { (StatusCode::OK, "ok\n") }))
        .route("/metrics", get(|State(metrics): State<PrometheusHandle>| async move { metrics.render() }))
        .with_state(metrics);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}
