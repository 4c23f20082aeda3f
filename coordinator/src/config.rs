//! The coordinator's configuration file, `coordinator.toml`. An unknown key is an error with its line.

use std::path::PathBuf;

use regent_common::{config::HumanDuration, lease::Profile, telemetry::LogFormat};
use serde::Deserialize;

use crate::{cluster::brake::Limits, hook::Hook};

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
    /// Profile of new clusters that name none: "fast", "standard" or "relaxed".
    pub profile: Profile,
    /// Whether members on this coordinator's own machine may be promoted by themselves. With that machine both are lost.
    pub promote_on_this_machine: bool,
    /// Most automatic failovers of one cluster within ten minutes.
    pub failover_budget: usize,
    /// Share of all clusters, 0 to 1, beyond which failing at once pauses automatic failovers.
    pub brake_share: f64,
    /// Fewest clusters failing at once for that.
    pub brake_clusters: usize,
    /// How long automatic failovers pause then, at most.
    pub brake_for: HumanDuration,
    /// How long a node's or the coordinator's certificate is valid.
    pub certificate_life: HumanDuration,
    /// Program that is run for each event, with the event as JSON on its standard input; empty for none.
    pub hook: PathBuf,
    /// After this time it is killed.
    pub hook_timeout: HumanDuration,
    /// Form of the log lines: "text" or "json".
    pub log_format: LogFormat,
}

// === impl Config ===

impl Config {
    /// What is run for each event; `None` for nothing.
    pub fn hook(&self) -> Option<Hook> {
        let program = self.hook.clone();
        (!program.as_os_str().is_empty()).then_some(Hook { program, timeout: self.hook_timeout.0 })
    }

    /// What automatic failovers may do.
    pub fn limits(&self) -> Limits {
        Limits {
            failover_budget: self.failover_budget,
            brake_share: self.brake_share,
            brake_clusters: self.brake_clusters,
            brake_for: self.brake_for.0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        let seconds = |seconds| HumanDuration(std::time::Duration::from_secs(seconds));
        Self {
            listen: "[::]:7420".to_owned(),
            http_listen: "[::]:7422".to_owned(),
            state_dir: PathBuf::from("/var/lib/regent/coordinator"),
            advertise: Vec::new(),
            profile: Profile::default(),
            promote_on_this_machine: false,
            failover_budget: limits.failover_budget,
            brake_share: limits.brake_share,
            brake_clusters: limits.brake_clusters,
            brake_for: HumanDuration(limits.brake_for),
            certificate_life: seconds(90 * 24 * 3600),
            hook: PathBuf::new(),
            hook_timeout: seconds(30),
            log_format: LogFormat::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use regent_common::config;

    use super::*;

    /// A lease's times come from a profile alone: nobody can write down one that three heartbeats do not fit into.
    #[test]
    fn times_of_leases_are_named_by_a_profile_and_by_nothing_else() {
        let parse = |text: &str| config::parse::<Config>(Path::new("coordinator.toml"), text);
        for profile in Profile::ALL {
            assert_eq!(parse(&format!("profile = \"{profile}\"")).unwrap().profile, profile);
        }
        for wrong in [
            "profile = \"quick\"",
            "profile = 100",
            "profile = { heartbeat = \"1s\", ttl = \"1s\" }",
            "ttl = \"100ms\"",
            "heartbeat = \"10s\"",
        ] {
            let refused = parse(&format!("# the first line\n{wrong}\n")).unwrap_err();
            let said = regent_common::error::ErrorChain(&refused).to_string();
            assert!(said.contains("coordinator.toml") && said.contains("2"), "it names the file and the line: {said}");
        }
    }
}
