//! Changes which addresses reach the engines of a cluster.
//!
//! The list is a part of what every member is told. What is wanted is stored with the beginning of the operation, and all members are
//! told at once; one that is away, or does not take it, is told again by itself when it is heard, as with every configuration. So the
//! operation ends well whoever is away, and says who.

use std::collections::BTreeMap;

use async_trait::async_trait;
use regent_common::{
    allow_list::{AllowList, AllowListError},
    error::Reason,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::configure::configure_all;
use crate::{
    model::{
        cluster::ClusterRecord,
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, parameters::read},
};

/// The kind.
pub struct SetAllowList;

/// How a list is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The ranges take the place of all that are there.
    Set,
    /// They are added.
    Add,
    /// They are taken away, each as it was written.
    Remove,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// How the list is changed.
    pub change: Change,
    /// By what.
    pub ranges: AllowList,
    /// Whether it may be empty afterwards, which lets everybody in.
    pub open_to_all: bool,
}

/// Why a list is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It would be too long.
    #[error(transparent)]
    List(#[from] AllowListError),
    /// It would be empty, and nobody said that everybody is meant to be let in.
    #[error("the list would be empty, which lets everybody in: ask for that by name (--open-to-all) if it is meant")]
    OpensToAll,
}

// === impl Parameters ===

impl Parameters {
    /// The list as it is after the change.
    pub fn applied(&self, present: &AllowList) -> Result<AllowList, ChangeError> {
        let list = match self.change {
            Change::Set => self.ranges.clone(),
            Change::Add => present.with(&self.ranges)?,
            Change::Remove => present.without(&self.ranges),
        };
        if list.is_empty() && !present.is_empty() && !self.open_to_all {
            return Err(ChangeError::OpensToAll);
        }
        Ok(list)
    }

    /// Whether a list is as this change leaves it.
    fn is_made(&self, list: &AllowList) -> bool {
        match self.change {
            Change::Set => *list == self.ranges,
            Change::Add => self.ranges.networks().all(|network| list.has(&network)),
            Change::Remove => !self.ranges.networks().any(|network| list.has(&network)),
        }
    }
}

#[async_trait]
impl Kind for SetAllowList {
    fn name(&self) -> &'static str {
        "set_allow_list"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let members: Vec<_> = cluster.members.keys().cloned().collect();
        vec![PlannedStep::new("allow", members)]
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let parameters: Parameters = read(parameters);
        // It was possible when it was asked for; another change that came between is found by the step.
        if let Ok(list) = parameters.applied(&cluster.allow_list) {
            cluster.allow_list = list;
        }
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        let list = context.cluster()?.allow_list.clone();
        if !context.parameters::<Parameters>().is_made(&list) {
            let message = "the list was changed by another request just now, and this change does not go with that: look at it and \
                           ask again; nothing was changed";
            return Err(StepError::new(Reason::EtagMismatch, message));
        }
        let told = configure_all(context, &step.members).await?;
        Ok(list.remarks().into_iter().fold(told, StepDone::say))
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        // What is wanted is stored: whoever was not told yet has another list, and the planner will see that.
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "ALLOW_LIST"
    }
}

/// Sentences about what a change does not change: a range that is there already, or that is not there to be taken away.
pub fn without_effect(parameters: &Parameters, present: &AllowList) -> Vec<String> {
    /// Most that are named one by one.
    const MOST: usize = 10;
    let (meant, what): (fn(&AllowList, &regent_common::allow_list::Network) -> bool, _) = match parameters.change {
        Change::Set => return Vec::new(),
        Change::Add => (|list, network| list.has(network), "is in the list already"),
        Change::Remove => {
            (|list, network| !list.has(network), "is not in the list as it was written, and is not taken away")
        }
    };
    let idle: BTreeMap<_, _> =
        parameters.ranges.networks().filter(|network| meant(present, network)).map(|n| (n, ())).collect();
    let mut sentences: Vec<_> = idle.keys().take(MOST).map(|network| format!("{network} {what}")).collect();
    if let Some(more) = idle.len().checked_sub(MOST).filter(|more| *more > 0) {
        sentences.push(format!("and so it is with {more} more"));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> AllowList {
        AllowList::parse(texts).unwrap()
    }

    fn change(change: Change, ranges: &[&str], open_to_all: bool) -> Parameters {
        Parameters { change, ranges: list(ranges), open_to_all }
    }

    #[test]
    fn a_list_is_opened_to_all_only_by_name() {
        let present = list(&["192.0.2.0/24"]);
        for (how, ranges) in [(Change::Set, &[][..]), (Change::Remove, &["192.0.2.0/24"][..])] {
            assert_eq!(change(how, ranges, false).applied(&present), Err(ChangeError::OpensToAll));
            assert_eq!(change(how, ranges, true).applied(&present), Ok(AllowList::default()));
        }
        assert_eq!(
            change(Change::Set, &[], false).applied(&AllowList::default()),
            Ok(AllowList::default()),
            "it was open"
        );
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let present = list(&["192.0.2.0/24", "2001:db8::/32"]);
        let add = change(Change::Add, &["192.0.2.0/24", "198.51.100.7"], false);
        assert_eq!(without_effect(&add, &present), ["192.0.2.0/24 is in the list already"]);
        let remove = change(Change::Remove, &["192.0.2.7"], false);
        assert!(without_effect(&remove, &present)[0].starts_with("192.0.2.7 is not in the list as it was written"));
        assert_eq!(remove.applied(&present), Ok(present.clone()));
        let many: Vec<_> = (0..15).map(|n| format!("10.0.0.{n}")).collect();
        let many = change(Change::Remove, &many.iter().map(String::as_str).collect::<Vec<_>>(), false);
        assert_eq!(without_effect(&many, &present).last().unwrap(), "and so it is with 5 more");
    }
}
