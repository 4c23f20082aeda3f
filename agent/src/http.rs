//! The plain HTTP port: health for load balancers and measurements for Prometheus. Reads only, needs no certificate,
//! tells no secrets.
//!
//! **Invariant:** a primary whose lease does not stand is reported as one that cannot be written to: its gate is closed. So is a side of
//! a multi-master cluster that is not open.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use regent_common::{
    ids::Epoch,
    lease::{Authority, LeaseSource},
    topology::{EngineState, Observation, Role, Ternary},
};
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
    /// Whether this is the primary, its lease stands and its gate is open; or a side that is open.
    writable: bool,
    /// Whether the lease of a primary stands; absent unless it is one.
    lease_stands: Option<bool>,
    reason: String,
}

/// Whom a load balancer looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Any member that serves in its role.
    Serving,
    /// The one that accepts writes.
    Primary,
    /// One that answers reads and follows the primary.
    Replica,
}

/// Serves until told to stop.
pub async fn serve(
    listener: TcpListener,
    node: Arc<Node>,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route("/primary", get(primary))
        .route("/replica", get(replica))
        .route("/metrics", get(render))
        .with_state(Shown { node, metrics });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

// === impl Wanted ===

impl Wanted {
    /// Whether what is seen of a member is what is looked for.
    fn is(self, seen: &Observation) -> bool {
        let serves = seen.engine.state == EngineState::Running && !seen.fenced;
        let lease = seen.authority.lease.as_ref().map(|lease| lease.stands);
        match self {
            // A primary without a lease stands behind a closed gate.
            Self::Serving if seen.engine.role == Some(Role::Active) => serves && seen.engine.is_open(),
            Self::Serving => serves && lease != Some(false),
            Self::Primary => {
                let reigns = seen.engine.role == Some(Role::Primary) && lease == Some(true);
                let takes_writes = seen.engine.role == Some(Role::Active) && seen.engine.is_open();
                serves && (reigns || takes_writes)
            }
            Self::Replica => serves && seen.engine.role == Some(Role::Replica) && seen.engine.streaming != Ternary::No,
        }
    }
}

/// 200 while the engine accepts connections in its role, or on a spare; 503 else.
async fn health(State(shown): State<Shown>) -> (StatusCode, Json<Health>) {
    answer(&shown, Wanted::Serving)
}

/// 200 on a member that accepts writes now; 503 else.
async fn primary(State(shown): State<Shown>) -> (StatusCode, Json<Health>) {
    answer(&shown, Wanted::Primary)
}

/// 200 on a replica that follows the primary; 503 else.
async fn replica(State(shown): State<Shown>) -> (StatusCode, Json<Health>) {
    answer(&shown, Wanted::Replica)
}

fn answer(shown: &Shown, wanted: Wanted) -> (StatusCode, Json<Health>) {
    let seen = shown.node.observation();
    let member = shown.node.ledger().read().membership.as_ref().map(|m| m.member.to_string());
    let quarantine = shown.node.ledger().read().quarantine.clone();
    let found = match &seen {
        // Whatever runs there, nobody is to be sent to it (rule T5).
        Some(_) | None if quarantine.is_some() => false,
        Some(seen) => wanted.is(seen),
        None => member.is_none() && wanted == Wanted::Serving,
    };
    let health = Health {
        node: shown.node.name.to_string(),
        member,
        role: seen.as_ref().and_then(|seen| seen.engine.role),
        engine: seen.as_ref().map(|seen| seen.engine.state),
        fenced: seen.as_ref().is_some_and(|seen| seen.fenced),
        writable: quarantine.is_none() && seen.as_ref().is_some_and(|seen| Wanted::Primary.is(seen)),
        lease_stands: seen.as_ref().and_then(|seen| seen.authority.lease.as_ref()).map(|lease| lease.stands),
        reason: match quarantine {
            Some(why) => format!("in quarantine: {why}"),
            None => seen.map(reason).unwrap_or_default(),
        },
    };
    (if found { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}

/// Why it is not as it should be; empty when it is.
fn reason(seen: Observation) -> String {
    let lapsed = seen.authority.lease.is_some_and(|lease| !lease.stands);
    if lapsed && seen.engine.reason.is_empty() {
        return "no lease stands: nothing passes to the engine's ports".to_owned();
    }
    if seen.engine.role == Some(Role::Active) && !seen.engine.is_open() && seen.engine.reason.is_empty() {
        return "this side is closed: applications are let in when its data is known to be whole".to_owned();
    }
    seen.engine.reason
}

async fn render(State(shown): State<Shown>) -> String {
    let ledger = shown.node.ledger().read();
    measure(&shown.node.lease.authority(&ledger), ledger.membership.as_ref().map(|membership| membership.epoch));
    shown.metrics.render()
}

/// Measurements of the lease as it stands now. A spare has none.
#[allow(clippy::cast_precision_loss, reason = "epochs are small, and a gauge is a float")]
fn measure(authority: &Authority, epoch: Option<Epoch>) {
    let Some(epoch) = epoch else { return };
    let lease = authority.lease.as_ref().filter(|lease| lease.stands);
    let left = match lease {
        None => 0.0,
        Some(lease) if lease.source == Some(LeaseSource::Alone) => f64::INFINITY,
        Some(lease) => lease.remaining.as_secs_f64(),
    };
    let one_if = |is: bool| if is { 1.0 } else { 0.0 };
    metrics::gauge!("regent_agent_epoch").set(epoch.0 as f64);
    metrics::gauge!("regent_agent_lease_remaining_seconds").set(left);
    // From whom a lease is that stands, only a process does not know which has found the gate open (rule L7).
    let found = lease.is_some_and(|lease| lease.source.is_none());
    metrics::gauge!("regent_agent_lease_of_the_process_before").set(one_if(found));
    // A lease is told to stand only with the gate open, where there is one.
    metrics::gauge!("regent_agent_gate_open").set(one_if(lease.is_some() && authority.fence.timed_gate));
    metrics::gauge!("regent_agent_promise_remaining_seconds").set(authority.prepare_in.as_secs_f64());
    metrics::gauge!("regent_agent_gate_closes_by_itself").set(one_if(authority.fence.timed_gate));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use regent_common::{
        ids::{ClusterId, OperationToken},
        lease::LeaseReport,
    };

    use super::*;
    use crate::observe;

    fn seen(role: Role, lease: Option<bool>) -> Observation {
        let lease = lease.map(|stands| LeaseReport {
            epoch: Epoch(1),
            stands,
            source: stands.then_some(LeaseSource::Coordinator),
            remaining: if stands { Duration::from_millis(2500) } else { Duration::ZERO },
        });
        let mut engine = observe::not_yet();
        (engine.state, engine.role, engine.streaming) = (EngineState::Running, Some(role), Ternary::Yes);
        engine.reason.clear();
        Observation {
            cluster_id: ClusterId::from_parts(1, 1),
            member: "db1".parse().unwrap(),
            epoch: Epoch(1),
            token: OperationToken(1),
            fenced: false,
            dirty: false,
            engine,
            authority: Authority { lease, ..Authority::default() },
            endpoint: None,
            configuration: String::new(),
            observed_at: jiff::Timestamp::UNIX_EPOCH,
            observed_ago: Default::default(),
            allow_list: None,
        }
    }

    #[test]
    fn only_a_primary_whose_lease_stands_is_writable() {
        let is = |seen: &Observation| [Wanted::Serving, Wanted::Primary, Wanted::Replica].map(|wanted| wanted.is(seen));
        assert_eq!(is(&seen(Role::Primary, Some(true))), [true, true, false]);
        assert_eq!(is(&seen(Role::Primary, Some(false))), [false, false, false], "its gate is closed");
        assert!(reason(seen(Role::Primary, Some(false))).starts_with("no lease stands"));
        assert_eq!(is(&seen(Role::Primary, None)), [true, false, false], "it does not reign by its ledger");
        assert_eq!(is(&seen(Role::Replica, None)), [true, false, true]);
        let mut cut = seen(Role::Replica, None);
        cut.engine.streaming = Ternary::No;
        assert_eq!(is(&cut), [true, false, false]);
        let mut fenced = seen(Role::Primary, Some(true));
        fenced.fenced = true;
        assert_eq!(is(&fenced), [false, false, false]);
    }

    #[test]
    fn a_side_is_writable_while_it_is_open() {
        let is = |seen: &Observation| [Wanted::Serving, Wanted::Primary, Wanted::Replica].map(|wanted| wanted.is(seen));
        let mut side = seen(Role::Active, None);
        assert_eq!(is(&side), [false, false, false], "nobody is let in");
        assert!(reason(side.clone()).starts_with("this side is closed"));
        side.engine.set_open(true);
        assert_eq!(is(&side), [true, true, false]);
        side.engine.streaming = Ternary::No;
        assert_eq!(is(&side), [true, true, false], "the other side is away");
        side.engine.set_open(false);
        assert_eq!(is(&side), [false, false, false]);
        side.fenced = true;
        side.engine.set_open(true);
        assert_eq!(is(&side), [false, false, false]);
    }

    #[test]
    fn the_lease_is_measured_as_it_stands() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let rendered = recorder.handle();
        let shown = |authority: &Authority, epoch| {
            metrics::with_local_recorder(&recorder, || measure(authority, epoch));
            rendered.render()
        };
        assert_eq!(shown(&Authority::default(), None), "", "a spare has none");
        let mut authority = seen(Role::Primary, Some(true)).authority;
        authority.fence.timed_gate = true;
        let open = shown(&authority, Some(Epoch(7)));
        for line in ["regent_agent_epoch 7", "regent_agent_lease_remaining_seconds 2.5", "regent_agent_gate_open 1"] {
            assert!(open.contains(line), "{line}: {open}");
        }
        assert!(open.contains("regent_agent_lease_of_the_process_before 0"), "{open}");
        authority.lease.as_mut().unwrap().source = None;
        let found = shown(&authority, Some(Epoch(7)));
        assert!(found.contains("regent_agent_lease_of_the_process_before 1"), "{found}");
        authority.lease = seen(Role::Primary, Some(false)).authority.lease;
        let closed = shown(&authority, Some(Epoch(7)));
        assert!(closed.contains("regent_agent_lease_remaining_seconds 0\n"), "{closed}");
        assert!(closed.contains("regent_agent_gate_open 0"), "{closed}");
    }
}
