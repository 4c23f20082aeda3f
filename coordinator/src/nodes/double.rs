//! Agents of the tests that want none: nothing is ever heard of them, and what they are told is kept.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    ids::{ClusterId, NodeName},
    topology::Progress,
};
use regent_proto::agent::v1::{
    CheckAllowListRequest, CheckAllowListResponse, CheckSettingsRequest, FoundInstance, StepResult,
    SurveyInstancesResponse,
};
use tokio::sync::watch;

use super::{AgentError, Agents, AllowListAbility, NodeView, StepCall};

/// Agents of which nothing is heard.
#[derive(Debug, Default)]
pub(crate) struct Unheard {
    obedient: bool,
    allow_list: AllowListAbility,
    instances: BTreeMap<NodeName, Vec<FoundInstance>>,
    told: Mutex<Vec<StepCall>>,
}

// === impl Unheard ===

impl Unheard {
    /// They do what they are told, whatever it is.
    pub(crate) fn obedient() -> Self {
        Self { obedient: true, ..Self::default() }
    }

    /// No allow-list can be in force on their nodes.
    pub(crate) fn without_allow_lists(why: &str) -> Self {
        Self { allow_list: AllowListAbility::Unable(why.to_owned()), ..Self::default() }
    }

    /// These instances run on their nodes and are nobody's; of other nodes nothing is known.
    pub(crate) fn with_instances(instances: BTreeMap<NodeName, Vec<FoundInstance>>) -> Self {
        Self { instances, ..Self::default() }
    }

    /// What they were told, in order.
    pub(crate) fn told(&self) -> Vec<StepCall> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Agents for Unheard {
    fn view(&self, _: &NodeName) -> NodeView {
        NodeView { allow_list: self.allow_list.clone(), ..NodeView::default() }
    }

    fn members_of(&self, _: &ClusterId) -> BTreeMap<NodeName, NodeView> {
        BTreeMap::new()
    }

    async fn check_settings(&self, _: &NodeName, _: CheckSettingsRequest) -> Result<(), AgentError> {
        Ok(())
    }

    async fn check_allow_list(
        &self,
        node: &NodeName,
        _: CheckAllowListRequest,
    ) -> Result<CheckAllowListResponse, AgentError> {
        Err(AgentError::Unreachable { node: node.clone(), detail: "nobody is there".to_owned() })
    }

    async fn survey_instances(&self, node: &NodeName) -> Result<SurveyInstancesResponse, AgentError> {
        match self.instances.get(node) {
            Some(instances) => Ok(SurveyInstancesResponse { instances: instances.clone() }),
            None => Err(AgentError::Unreachable { node: node.clone(), detail: "nobody is there".to_owned() }),
        }
    }

    async fn wait_for_change(&self, _: &NodeName, at_most: Duration) {
        tokio::time::sleep(at_most).await;
    }

    async fn execute(
        &self,
        node: &NodeName,
        call: StepCall,
        _: &watch::Sender<Progress>,
    ) -> Result<StepResult, AgentError> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        match self.obedient {
            true => Ok(StepResult::default()),
            false => Err(AgentError::Unreachable { node: node.clone(), detail: "nobody is there".to_owned() }),
        }
    }
}
