//! A small world of agents that keeps ledgers as real agents do (rule T1) and refuses what no engine could do: two writable
//! members, a copy of a dead source, a start of dirty data. Calls can be made to fail, or to hang.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    error::Reason,
    ids::{ClusterId, Epoch, NodeName, OperationToken},
    lease::{Authority, Electorate},
    position::{IntervalSet, Position},
    topology::{EngineObservation, EngineState, Observation, Progress, Role, Ternary},
};
use regent_proto::{
    agent::v1::{
        CheckAllowListRequest, CheckAllowListResponse, CheckSettingsRequest, Difference, StepResult,
        SurveyInstancesResponse, action::Action,
    },
    types::v1::{Endpoint, EngineOffer, HeardPosition},
};
use tokio::sync::watch;

use crate::{
    cluster::ClusterHandle,
    nodes::{AgentError, Agents, NodeView, StepCall},
    operation::context::action_label,
};

/// One agent with its engine.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) member: Option<String>,
    pub(super) epoch: u64,
    pub(super) token: u64,
    /// Results by operation and step; the digest makes the same step with other content another one.
    pub(super) ledger: BTreeMap<(String, String), (Vec<u8>, StepResult)>,
    pub(super) executions: BTreeMap<(String, String), u32>,
    /// An instance that ran before there was a cluster.
    pub(super) found: Option<Found>,
    pub(super) has_data: bool,
    pub(super) copied: bool,
    pub(super) running: bool,
    pub(super) writable: bool,
    /// It can come back as a replica from what is on its disk.
    pub(super) may_hand_over: bool,
    /// Applications are kept out.
    pub(super) drained: bool,
    pub(super) writable_epoch: Option<u64>,
    pub(super) upstream: Option<String>,
    /// What it heard of how far a member had come.
    pub(super) heard: Option<(String, u64)>,
    pub(super) position: u64,
    pub(super) diverged: u64,
    /// Its engine is one that loses by a crash what it had acknowledged.
    pub(super) forgets: bool,
    /// It is a side of a pair.
    pub(super) active: bool,
    /// Applications, and the other side, are let in to a side of a pair.
    pub(super) open: bool,
    /// It does not answer.
    pub(super) hangs: bool,
    /// What the side that it follows writes reaches it.
    pub(super) attached: bool,
    /// All that it was loaded with had reached the other side.
    pub(super) delivered: bool,
    /// What a side of a pair has.
    pub(super) entries: BTreeSet<String>,
    /// Those that it has with another value than the other side.
    pub(super) otherwise: BTreeSet<String>,
}

/// An instance that is nobody's, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Whether it accepts writes.
    pub(super) primary: bool,
    /// Whether it has been taken over.
    pub(super) adopted: bool,
}

/// All agents, and what goes wrong next.
#[derive(Default)]
pub(super) struct World {
    pub(super) nodes: Mutex<BTreeMap<NodeName, Node>>,
    /// Fails the call with this number, as a refusal.
    pub(super) fail_call: Mutex<Option<usize>>,
    /// With what, when it is not the engine's failure.
    pub(super) fail_reason: Mutex<Option<Reason>>,
    /// Carries out the call with this number and then never answers: the coordinator "crashes".
    pub(super) hang_call: Mutex<Option<(usize, bool)>>,
    pub(super) calls: Mutex<usize>,
    /// Nodes whose agents take a call and never answer it.
    pub(super) hung: Mutex<BTreeSet<NodeName>>,
    /// Nodes whose agents were not heard yet, and answer all the same.
    pub(super) unheard: Mutex<BTreeSet<NodeName>>,
    /// Nodes that are known to be away.
    pub(super) away: Mutex<BTreeSet<NodeName>>,
    /// The cluster, whose electorate a primary acknowledges as soon as it is stored.
    pub(super) cluster: OnceLock<Arc<ClusterHandle>>,
}

/// The changes that all copies have in common, up to an end.
pub(super) fn changes(end: u64) -> Position {
    Position::new([("x".to_owned(), IntervalSet::from(vec![(0, end)]))], "")
}

fn drain_successor(action: &Action) -> Option<&str> {
    match action {
        Action::Drain(drain) => Some(&drain.successor),
        _ => None,
    }
}

impl World {
    fn electorate(&self) -> Option<Electorate> {
        let record = self.cluster.get()?.record()?;
        record.reign.as_ref().map(|reign| reign.newest().clone())
    }

    fn position(node: &Node) -> Position {
        let own = IntervalSet::from(vec![(0, node.diverged)]);
        let common = changes(node.position);
        let common = common.origins().map(|(origin, ends)| (origin.to_owned(), ends.clone()));
        Position::new(common.chain([("y".to_owned(), own)]), "")
    }

    /// What an open side of a pair has reaches whoever follows it, whatever that one has deleted.
    fn spread(nodes: &mut BTreeMap<NodeName, Node>) {
        let open = |node: &&Node| node.active && node.running && node.open;
        let has: BTreeMap<_, _> =
            nodes.values().filter(open).filter_map(|node| Some((node.member.clone()?, node.entries.clone()))).collect();
        for node in nodes.values_mut().filter(|node| node.active && node.running && node.attached) {
            let heard = node.upstream.as_ref().and_then(|upstream| has.get(upstream));
            node.entries.extend(heard.into_iter().flatten().cloned());
        }
    }

    fn act(
        nodes: &mut BTreeMap<NodeName, Node>,
        name: &NodeName,
        call: &StepCall,
    ) -> Result<StepResult, (Reason, String)> {
        let action = call.action.action.as_ref().expect("actions are set");
        let source = |nodes: &BTreeMap<NodeName, Node>, member: &str| {
            nodes.values().find(|node| node.member.as_deref() == Some(member)).cloned()
        };
        let member = call.header.member.clone();
        let others_writable = nodes.iter().any(|(other, node)| other != name && node.writable);
        let snapshot = nodes.clone();
        let node = nodes.get_mut(name).expect("the node exists");
        let (mut result, mut drained) = (StepResult::default(), false);
        match action {
            Action::Assign(assign) => {
                node.member = Some(member);
                result.endpoint = Some(Endpoint { host: name.to_string(), port: assign.port.max(1) });
            }
            Action::Configure(_) | Action::DiscardKept(_) => {}
            Action::Checkpoint(checkpoint) => {
                if !node.writable {
                    return Err((Reason::PrimaryUnhealthy, "not a primary".to_owned()));
                }
                node.may_hand_over |= !checkpoint.for_copies;
            }
            Action::Initialize(_) | Action::Promote(_) => {
                assert!(!others_writable, "two writable members");
                node.writable_epoch = Some(node.epoch);
                (node.has_data, node.running, node.writable, node.upstream) = (true, true, true, None);
            }
            Action::Clone(clone) => {
                let source = source(&snapshot, &clone.source.as_ref().expect("set").member).expect("a source");
                if !source.writable {
                    return Err((Reason::CopyNotWhole, "the source is no primary".to_owned()));
                }
                (node.copied, node.position, node.diverged) = (true, source.position, 0);
            }
            Action::Swap(swap) => {
                assert!(node.copied, "nothing to swap in");
                (node.has_data, node.running, node.writable) = (true, true, false);
                node.upstream = Some(swap.upstream.as_ref().expect("set").member.clone());
            }
            Action::Drain(_) => {
                if !node.writable {
                    return Err((Reason::PrimaryUnhealthy, "not a primary".to_owned()));
                }
                assert!(node.may_hand_over, "nothing on the disk to come back from");
                (node.may_hand_over, node.drained) = (false, true);
                let (successor, position) = (drain_successor(action), node.position);
                let successor = nodes.values_mut().find(|node| node.member.as_deref() == successor);
                let successor = successor.expect("the successor exists");
                successor.position = successor.position.max(position);
            }
            Action::UndoDrain(_) => node.drained = false,
            Action::Fence(_) => {
                (result.drained, node.drained) = (node.drained, false);
                drained = result.drained;
                result.writable_epoch = node.writable_epoch;
                (node.running, node.writable, node.open, node.hangs) = (false, false, false, false);
                node.attached = false;
            }
            Action::Prepare(_) | Action::Examine(_) => {
                if !node.has_data {
                    return Err((Reason::EngineFailed, "no data".to_owned()));
                }
                let heard = node.heard.iter().filter(|_| matches!(action, Action::Prepare(_)));
                result.heard = heard
                    .map(|(member, end)| HeardPosition {
                        member: member.clone(),
                        position: Some((&changes(*end)).into()),
                    })
                    .collect();
                (node.running, node.upstream) = (true, None);
            }
            Action::Follow(follow) => {
                let upstream = follow.upstream.as_ref().expect("set").member.clone();
                let source = source(&snapshot, &upstream).expect("an upstream");
                if !Self::position(&source).includes(&Self::position(node)) {
                    return Err((Reason::Diverged, "diverged".to_owned()));
                }
                (node.running, node.writable, node.upstream) = (true, false, Some(upstream));
            }
            Action::Rewind(rewind) => {
                let source = source(&snapshot, &rewind.source.as_ref().expect("set").member).expect("a source");
                (node.position, node.diverged) = (source.position, 0);
                (node.running, node.upstream) = (true, rewind.source.as_ref().map(|s| s.member.clone()));
            }
            Action::Adopt(adopt) => {
                let upstream = adopt.upstream.as_ref().map(|upstream| upstream.member.clone());
                assert!(upstream.is_some() || !others_writable, "two writable members");
                let found = node.found.as_mut().expect("an instance runs there");
                assert_eq!(found.primary, upstream.is_none());
                assert_eq!(adopt.data_directory, format!("/data/{name}"));
                if let Some(upstream) = &upstream {
                    let source = source(&snapshot, upstream).expect("an upstream");
                    assert!(source.writable, "a replica was taken over before its primary");
                }
                found.adopted = true;
                node.writable_epoch = upstream.is_none().then_some(node.epoch).or(node.writable_epoch);
                (node.has_data, node.running, node.writable) = (true, true, upstream.is_none());
                node.upstream = upstream;
            }
            Action::Activate(activate) => {
                if !node.has_data && !activate.first {
                    return Err((Reason::EngineFailed, "no data".to_owned()));
                }
                assert!(!node.hangs, "a hung engine does nothing");
                let other = activate.other.as_ref().map(|other| other.member.clone());
                let theirs = other.as_deref().and_then(|other| source(&snapshot, other));
                let was_open = node.running && node.open;
                if !(node.running && node.attached) {
                    node.attached = false;
                }
                (node.has_data, node.running, node.active, node.open) = (true, true, true, activate.open);
                node.upstream.clone_from(&other);
                // What was loaded from the disk is merged with nobody's: it is replaced when it is opened beside another one.
                let is_old = !node.attached && !was_open && !node.entries.is_empty();
                match theirs {
                    None => node.attached = false,
                    Some(_) if !is_old => node.attached = true,
                    Some(theirs) if activate.open && theirs.running && theirs.open => {
                        if !(node.delivered || node.entries.is_subset(&theirs.entries)) {
                            return Err((Reason::Diverged, "it would be lost".to_owned()));
                        }
                        node.entries.clear();
                        node.attached = true;
                    }
                    Some(_) => {}
                }
            }
            Action::Compare(compare) => {
                let other = source(&snapshot, &compare.other.as_ref().expect("set").member).expect("a side");
                if !(node.running && other.running) {
                    return Err((Reason::EngineFailed, "it does not run".to_owned()));
                }
                let own: Vec<_> = node.entries.difference(&other.entries).cloned().collect();
                let (compared, only_here) = (node.entries.len() as u64, own.len() as u64);
                let differing_examples: Vec<_> = node
                    .otherwise
                    .iter()
                    .filter(|entry| compare.values && other.entries.contains(*entry))
                    .cloned()
                    .collect();
                result.difference = Some(Difference {
                    compared,
                    only_here,
                    examples: own,
                    delivered: node.delivered,
                    values: compare.values,
                    differing: differing_examples.len() as u64,
                    differing_examples,
                    undecided: 0,
                });
            }
            Action::Refill(refill) => {
                let survivor = source(&snapshot, &refill.source.as_ref().expect("set").member).expect("a side");
                if survivor.token != node.token || !(survivor.running && survivor.open) {
                    return Err((Reason::CopyNotWhole, "nobody vouches for the copy that survives".to_owned()));
                }
                assert!(!node.open, "it is open, and its old data reaches whoever follows it");
                node.entries.clear();
                (node.has_data, node.running, node.active, node.open, node.attached) = (true, true, true, false, true);
                node.upstream = refill.source.as_ref().map(|source| source.member.clone());
            }
            Action::Release(release) => {
                if let Some(found) = &mut node.found {
                    assert!(release.give_back, "a running instance was taken away");
                    found.adopted = false;
                }
                (node.member, node.has_data, node.running, node.writable) = (None, false, false, false);
                (node.active, node.open) = (false, false);
            }
        }
        Self::spread(nodes);
        let node = &nodes[name];
        // A fence does not wait for the disk: what the dead engine had written is not known from it.
        if drained || !matches!(action, Action::Fence(_)) {
            result.position = Some((&Self::position(node)).into());
        }
        Ok(result)
    }
}

#[async_trait]
impl Agents for World {
    fn members_of(&self, _: &ClusterId) -> BTreeMap<NodeName, NodeView> {
        BTreeMap::new()
    }

    fn view(&self, node: &NodeName) -> NodeView {
        if self.unheard.lock().unwrap().contains(node) {
            return NodeView::default();
        }
        if self.away.lock().unwrap().contains(node) {
            return NodeView { last_contact: Some(Duration::ZERO), problem: "away".to_owned(), ..NodeView::default() };
        }
        let nodes = self.nodes.lock().unwrap();
        let Some(node) = nodes.get(node) else { return NodeView::default() };
        let observation = node.member.as_ref().map(|member| Observation {
            cluster_id: ClusterId::from_parts(1, 1),
            member: member.parse().unwrap(),
            epoch: Epoch(node.epoch),
            token: OperationToken(node.token),
            fenced: false,
            dirty: false,
            endpoint: None,
            configuration: String::new(),
            observed_at: jiff::Timestamp::UNIX_EPOCH,
            observed_ago: Default::default(),
            allow_list: None,
            authority: Authority { electorate: self.electorate().filter(|_| node.writable), ..Authority::default() },
            engine: EngineObservation {
                state: match (node.hangs, node.running) {
                    (true, _) => EngineState::Hung,
                    (false, true) => EngineState::Running,
                    (false, false) => EngineState::Crashed,
                },
                role: Some(match (node.active, node.writable) {
                    (true, _) => Role::Active,
                    (false, true) => Role::Primary,
                    (false, false) => Role::Replica,
                }),
                storage_writable: Ternary::Yes,
                position: Some(Self::position(node)),
                streaming: Ternary::Yes,
                upstream: node.upstream.as_ref().map(|u| u.parse().unwrap()),
                replay_lag_bytes: None,
                pid: None,
                version: "1".to_owned(),
                reason: String::new(),
                details: [("open".to_owned(), if node.open { "yes" } else { "no" }.to_owned())].into(),
                data_bytes: 0,
                stale: String::new(),
            },
        });
        let offer = EngineOffer { engine: "fake".to_owned(), forgets_on_crash: node.forgets, ..Default::default() };
        let engines = vec![offer.into()];
        NodeView { connected: true, last_contact: Some(Duration::ZERO), observation, engines, ..NodeView::default() }
    }

    async fn check_settings(&self, _: &NodeName, _: CheckSettingsRequest) -> Result<(), AgentError> {
        Ok(())
    }

    async fn check_allow_list(
        &self,
        _: &NodeName,
        _: CheckAllowListRequest,
    ) -> Result<CheckAllowListResponse, AgentError> {
        Ok(CheckAllowListResponse::default())
    }

    async fn survey_instances(&self, _: &NodeName) -> Result<SurveyInstancesResponse, AgentError> {
        Ok(SurveyInstancesResponse::default())
    }

    async fn wait_for_change(&self, _: &NodeName, _: Duration) {
        tokio::task::yield_now().await;
    }

    async fn execute(
        &self,
        name: &NodeName,
        call: StepCall,
        _: &watch::Sender<Progress>,
    ) -> Result<StepResult, AgentError> {
        let refuse = |reason, message: String| AgentError::Refused { node: name.clone(), reason, message };
        let number = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls
        };
        if *self.fail_call.lock().unwrap() == Some(number) {
            let reason = self.fail_reason.lock().unwrap().unwrap_or(Reason::EngineFailed);
            return Err(refuse(reason, "made to fail".to_owned()));
        }
        if self.hung.lock().unwrap().contains(name) {
            std::future::pending::<()>().await;
        }
        let hang = *self.hang_call.lock().unwrap();
        if hang == Some((number, false)) {
            std::future::pending::<()>().await;
        }
        let outcome = {
            let mut nodes = self.nodes.lock().unwrap();
            let node = nodes.get_mut(name).expect("the node exists");
            if call.header.epoch < node.epoch {
                return Err(refuse(Reason::StaleEpoch, "stale epoch".to_owned()));
            }
            if call.header.token < node.token {
                return Err(refuse(Reason::StaleToken, "stale token".to_owned()));
            }
            (node.epoch, node.token) = (call.header.epoch, call.header.token);
            let key = (call.header.operation.clone(), call.header.step.clone());
            match node.ledger.get(&key) {
                Some((digest, result)) if *digest == call.header.digest => Ok(result.clone()),
                Some(_) | None => {
                    *node.executions.entry(key.clone()).or_default() += 1;
                    let outcome = Self::act(&mut nodes, name, &call);
                    if let Ok(result) = &outcome {
                        let node = nodes.get_mut(name).expect("the node exists");
                        node.ledger.insert(key, (call.header.digest.clone(), result.clone()));
                    }
                    outcome.map_err(|(reason, message)| {
                        refuse(reason, format!("{}: {message}", action_label(call.action.action.as_ref().unwrap())))
                    })
                }
            }
        };
        if hang == Some((number, true)) {
            std::future::pending::<()>().await;
        }
        outcome
    }
}
