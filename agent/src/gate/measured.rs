//! Counts what becomes of every change of a gate, for Prometheus. It adds nothing and delays nothing.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use regent_common::clock::Moment;

use super::{Abilities, Gate, GateError, GateState};

/// A gate whose changes are counted.
pub struct Measured(Arc<dyn Gate>);

// === impl Measured ===

impl Measured {
    /// Counts the changes of this gate.
    pub fn new(gate: Arc<dyn Gate>) -> Self {
        Self(gate)
    }
}

/// What became of a change, in a word.
fn outcome<T>(result: &Result<T, GateError>) -> &'static str {
    match result {
        Ok(_) => "made",
        Err(GateError::Late) => "late",
        Err(GateError::NoTimeLeft) => "no-time-left",
        Err(GateError::Kernel { .. }) => "refused",
    }
}

fn count<T>(change: &'static str, result: Result<T, GateError>) -> Result<T, GateError> {
    let outcome = outcome(&result);
    metrics::counter!("regent_agent_gate_changes_total", "change" => change, "outcome" => outcome).increment(1);
    result
}

#[async_trait]
impl Gate for Measured {
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    async fn state(&self) -> Result<GateState, GateError> {
        self.0.state().await
    }

    async fn arm(&self, ports: &BTreeSet<u16>) -> Result<(), GateError> {
        count("arm", self.0.arm(ports).await)
    }

    async fn open(&self, end: Option<Moment>) -> Result<(), GateError> {
        count("open", self.0.open(end).await)
    }

    async fn arm_open(&self, ports: &BTreeSet<u16>, end: Option<Moment>) -> Result<(), GateError> {
        count("arm-open", self.0.arm_open(ports, end).await)
    }

    async fn close(&self) -> Result<(), GateError> {
        count("close", self.0.close().await)
    }

    async fn destroy_sockets(&self) -> Result<u32, GateError> {
        count("destroy-sockets", self.0.destroy_sockets().await)
    }

    async fn disarm(&self) -> Result<(), GateError> {
        count("disarm", self.0.disarm().await)
    }

    async fn verify(&self) -> Result<Vec<String>, GateError> {
        let result = self.0.verify().await;
        if result.as_ref().is_ok_and(|missing| !missing.is_empty()) {
            metrics::counter!("regent_agent_gate_put_back_total").increment(1);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use regent_common::clock::{Clock, ManualClock};

    use super::*;
    use crate::gate::fake::{FakeGate, FakeKernel};

    #[test]
    fn late_changes_are_told_from_those_that_were_made() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let rendered = recorder.handle();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let clock = Arc::new(ManualClock::default());
                let kernel = FakeKernel::new(clock.clone());
                let gate = Measured::new(Arc::new(FakeGate::new(kernel.clone())));
                gate.arm(&[1].into()).await.unwrap();
                gate.open(Some(clock.now().plus(Duration::from_secs(5)))).await.unwrap();
                assert_eq!(gate.open(Some(clock.now())).await, Err(GateError::NoTimeLeft));
                kernel.set_delay(Duration::from_secs(1));
                let late = gate.open(Some(clock.now().plus(Duration::from_secs(5)))).await;
                assert_eq!(late, Err(GateError::Late));
            });
        });
        let text = rendered.render();
        for outcome in ["made", "no-time-left", "late"] {
            let line = format!("regent_agent_gate_changes_total{{change=\"open\",outcome=\"{outcome}\"}} 1");
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}
