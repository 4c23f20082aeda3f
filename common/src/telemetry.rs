//! Logs to stderr and the recorder of metrics. It opens no port: whoever serves metrics renders the handle.
//!
//! The filter is `REGENT_LOG`, else `RUST_LOG`, else `info`.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people: time, level, spans, target, message.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logs or metrics cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("the log filter {variable}={value:?} is not valid")]
    Filter {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs were started before.
    #[error("the log was started already")]
    LogStarted,
    /// A recorder was installed before.
    #[error("metrics cannot be recorded")]
    Recorder(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Starts the log of this process; once.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    let filter = filter_from(|variable| std::env::var(variable).ok())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().with_current_span(true).with_span_list(true).try_init(),
    }
    .map_err(|_| TelemetryError::LogStarted)
}

/// Installs the recorder of this process, once. Whoever holds the handle renders it, and calls `run_upkeep` every few
/// seconds so that histograms do not grow without bound.
pub fn metrics_recorder() -> Result<PrometheusHandle, TelemetryError> {
    PrometheusBuilder::new().install_recorder().map_err(|error| TelemetryError::Recorder(Box::new(error)))
}

fn filter_from(read: impl Fn(&'static str) -> Option<String>) -> Result<EnvFilter, TelemetryError> {
    for variable in ["REGENT_LOG", "RUST_LOG"] {
        if let Some(value) = read(variable).filter(|value| !value.is_empty()) {
            return EnvFilter::try_new(&value).map_err(|source| TelemetryError::Filter { variable, value, source });
        }
    }
    Ok(EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_variable_wins_and_a_bad_one_is_named() {
        let both = filter_from(|name| Some(if name == "REGENT_LOG" { "debug" } else { "trace" }.to_owned())).unwrap();
        assert_eq!(both.to_string(), "debug");
        assert_eq!(filter_from(|_| None).unwrap().to_string(), "info");
        let error = filter_from(|name| (name == "RUST_LOG").then(|| "a=b=c".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "the log filter RUST_LOG=\"a=b=c\" is not valid");
    }

    #[test]
    fn metrics_are_rendered_by_the_handle() {
        let handle = metrics_recorder().unwrap();
        metrics::counter!("regent_test_total").increment(3);
        assert!(handle.render().contains("regent_test_total 3"));
    }
}
