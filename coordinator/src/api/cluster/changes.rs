//! What is changed of a cluster without an operation: labels, protection, policy.
//!
//! Everything is checked before anything is changed, and changed in one commit.

use std::collections::BTreeMap;

use regent_common::{
    error::{Reason, bad_field, refuse},
    ids::MemberName,
    lease::Profile,
};
use regent_proto::coordinator::v1::{HealingMode, UpdateClusterRequest};
use tonic::Status;

use super::{member_named, not_of_a_pair};
use crate::{
    api::create,
    model::cluster::{ClusterRecord, Healing, Phase, Priority},
    planner::pair::Foreign,
};

/// A request that has been checked.
pub(super) struct Changes<'a> {
    request: &'a UpdateClusterRequest,
    profile: Option<Profile>,
    healing: Option<Healing>,
    priorities: BTreeMap<MemberName, Priority>,
}

// === impl Changes ===

impl<'a> Changes<'a> {
    /// Checks a request against the cluster as it is.
    pub(super) fn read(request: &'a UpdateClusterRequest, record: &ClusterRecord) -> Result<Self, Status> {
        let profile = if request.profile.is_empty() { None } else { Some(create::profile(&request.profile)?) };
        let of_failovers = request.automatic_failover.is_some()
            || request.max_lag_on_failover.is_some()
            || request.restart_budget.is_some()
            || request.healing != i32::from(HealingMode::Unspecified)
            || !request.priorities.is_empty();
        if of_failovers {
            not_of_a_pair(record, Foreign::Policy)?;
        }
        let healing = match HealingMode::try_from(request.healing) {
            Ok(HealingMode::Unspecified) => None,
            Ok(HealingMode::PromoteReplica) => Some(Healing::PromoteReplica),
            Ok(HealingMode::RestorePrimary) => Some(Healing::RestorePrimary),
            Err(_) => return Err(bad_field("healing", format!("{} is not known here", request.healing))),
        };
        let mut priorities = BTreeMap::new();
        for (text, priority) in &request.priorities {
            let member = member_named(record, text)?;
            if priorities.insert(member.clone(), Priority(*priority)).is_some() {
                return Err(bad_field("priorities", format!("{member} is named twice")));
            }
        }
        Ok(Self { request, profile, healing, priorities })
    }

    /// Makes the changes; none of them where one is refused.
    pub(super) fn apply(&self, record: &mut ClusterRecord) -> Result<(), Status> {
        // A failover's waits are those of the profile that it began with.
        let failing_over = record.primary.is_none() && !record.is_pair() && record.phase == Phase::Active;
        if self.profile.is_some() && failing_over {
            let message = "the cluster is failing over: its profile can be changed after that; nothing was changed";
            return Err(refuse(Reason::ClusterBusy, message));
        }
        for (label, value) in &self.request.labels {
            if value.is_empty() {
                record.labels.remove(label);
            } else {
                record.labels.insert(label.clone(), value.clone());
            }
        }
        record.protected = self.request.protected.unwrap_or(record.protected);
        if let Some(profile) = self.profile {
            record.set_profile(profile);
        }
        let policy = &mut record.policy;
        policy.automatic_failover = self.request.automatic_failover.unwrap_or(policy.automatic_failover);
        policy.max_lag_on_failover = self.request.max_lag_on_failover.unwrap_or(policy.max_lag_on_failover);
        policy.healing = self.healing.unwrap_or(policy.healing);
        policy.paused = self.request.paused.unwrap_or(policy.paused);
        if let Some(restarts) = self.request.restart_budget {
            policy.restart_budget = Some(restarts).filter(|restarts| *restarts > 0);
        }
        for (member, priority) in &self.priorities {
            if let Some(stored) = record.members.get_mut(member) {
                stored.priority = *priority;
            }
        }
        Ok(())
    }
}
