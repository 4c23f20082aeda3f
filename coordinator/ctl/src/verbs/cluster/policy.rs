//! `cluster policy`.

use std::collections::BTreeMap;

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::Context,
    failure::Failure,
    verbs::arguments::{DryRun, size},
};

/// Change what may happen to a cluster by itself; what is not named stays as it is
#[derive(Debug, clap::Args)]
#[group(id = "change", multiple = true, required = true, args = ["automatic_failover", "max_lag", "healing", "restart_budget", "priorities"])]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Whether a failover needs no person's word
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    automatic_failover: Option<bool>,
    /// Most that a replica may be known to lack and still take the primary's place by itself, such as 16MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_lag: Option<u64>,
    /// What is done when the primary fails: a replica takes its place, or it is restarted on its own data
    #[arg(long, value_enum)]
    healing: Option<Healing>,
    /// Most restarts in place within ten minutes; 0 for the coordinator's budget for failovers
    #[arg(long, value_name = "N")]
    restart_budget: Option<u32>,
    /// Among equals the member of the highest priority is promoted [default: 100]; one with "never" is not promoted at all; can be
    /// given several times
    #[arg(long = "priority", value_name = "MEMBER=N|never", value_parser = priority)]
    priorities: Vec<(String, u32)>,
    #[command(flatten)]
    check: DryRun,
}

/// What is done when the primary fails.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Healing {
    /// A replica takes its place
    PromoteReplica,
    /// It is restarted on its own data; a replica takes its place only on a person's word
    RestorePrimary,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("use on or off".to_owned()),
    }
}

fn priority(text: &str) -> Result<(String, u32), String> {
    let (member, priority) = text.split_once('=').ok_or("use MEMBER=N, or MEMBER=never")?;
    let priority = match priority {
        "never" => 0,
        number => number.parse().ok().filter(|number| *number > 0).ok_or("use a number from 1 on, or never")?,
    };
    Ok((member.to_owned(), priority))
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let healing = match arguments.healing {
        None => wire::HealingMode::Unspecified,
        Some(Healing::PromoteReplica) => wire::HealingMode::PromoteReplica,
        Some(Healing::RestorePrimary) => wire::HealingMode::RestorePrimary,
    };
    let change = wire::UpdateClusterRequest {
        automatic_failover: arguments.automatic_failover,
        max_lag_on_failover: arguments.max_lag,
        healing: healing.into(),
        restart_budget: arguments.restart_budget,
        priorities: BTreeMap::from_iter(arguments.priorities),
        ..Default::default()
    };
    super::update::update(context, "policy", &arguments.name, change, arguments.check).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_a_number_or_never() {
        assert_eq!(priority("db2=7"), Ok(("db2".to_owned(), 7)));
        assert_eq!(priority("db2=never"), Ok(("db2".to_owned(), 0)));
        for bad in ["db2", "db2=", "db2=0", "db2=-1", "db2=often"] {
            assert!(priority(bad).is_err(), "{bad}");
        }
    }
}
