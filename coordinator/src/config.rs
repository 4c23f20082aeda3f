//! The coordinator's configuration file, `coordinator.toml`. An unknown key is an error with its line.

use std::path::PathBuf;

use regent_common::{config::HumanDuration, telemetry::LogFormat};
use serde::Deserialize;

/// Everything that can be set. Each key has a default; the shipped example documents them all.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address on which the gRPC API listens.
    pub listen: String,
    /// Address on which health and metrics are served by HTTP; empty for none.
    pub http_listen: String,
    /// Folder of the store, the CA and the coordinator's identity.
    pub state_dir: PathBuf,
    /// Names and addresses under which clients reach the coordinator: they stand in its certificate.
    pub advertise: Vec<String>,
    /// Time between heartbeats of an agent.
    pub heartbeat: HumanDuration,
    /// Silence of a connected agent after which its node is suspect.
    pub suspect_after: HumanDuration,
    /// How long a node's or the coordinator's certificate is valid.
    pub certificate_life: HumanDuration,
    /// Form of the log lines: "text" or "json".
    pub log_format: LogFormat,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        let seconds = |seconds| HumanDuration(std::time::Duration::from_secs(seconds));
        Self {
            listen: "[::]:7420".to_owned(),
            http_listen: "[::]:7422".to_owned(),
            state_dir: PathBuf::from("/var/lib/regent/coordinator"),
            advertise: Vec::new(),
            heartbeat: seconds(1),
            suspect_after: seconds(3),
            certificate_life: seconds(90 * 24 * 3600),
            log_format: LogFormat::Text,
        }
    }
}
