//! `force-primary`: a person makes this member the primary when no coordinator can be brought back (rule P9). The last resort.
//!
//! The command is carried out by the running agent, because nobody else may write the ledger, drive the engine or open the gate.
//! It comes in over the agent's own socket ([`crate::local`]) and not over gRPC: that it is root of this machine who asks is
//! then the kernel's word, and no certificate, which anybody with a copy of it could use from anywhere, is ever good for it.
//!
//! - [`decision`]: whether it may be done (pure); this file: what is asked before, and how it is carried out.
//!
//! **Invariants:** a refusal changes nothing, here or elsewhere. What is done is a step like any other, admitted by the ledger:
//! epoch and mark are on disk before the lease stands, and the lease stands before the engine is writable. One command at a
//! time; a command that was cut short is said again and goes on.

pub mod decision;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use regent_common::{
    error::ErrorChain,
    ids::{ClusterName, Epoch, MemberName, OperationId},
    lease::Forced,
    tls::ReloadingIdentity,
    topology::{Endpoint, Peer},
    transport::Dialer,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub use self::decision::Word;
use self::decision::{Engine, Facts, Other, Plan, Refusal, judge};
use crate::{
    enroll,
    ledger::{Digest, Header, StepKey},
    node::Node,
    peer::PeerCalls,
    steps::{Action, Execution, StepError},
};

/// How long a connection that only shows that something is there may take.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// What the person says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Name of this member; it may be left out where nothing is to be changed.
    pub confirm: Option<String>,
    /// Members or nodes that are off.
    pub confirm_off: Vec<String>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// In one word.
    pub outcome: Outcome,
    /// The cluster; absent for a spare.
    pub cluster: Option<ClusterName>,
    /// This member; absent for a spare.
    pub member: Option<MemberName>,
    /// Epoch of the forced reign; absent when it was refused.
    pub epoch: Option<Epoch>,
    /// Members that are named as off.
    pub confirmed_off: Vec<MemberName>,
    /// Why it was refused; empty when it was not.
    pub refusals: Vec<Refused>,
    /// Why it did not come to its end; empty when it did.
    pub problem: String,
    /// What came of asking the others, a sentence each.
    pub others: BTreeMap<MemberName, String>,
}

/// What came of it, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is the primary now.
    Forced,
    /// It was so already.
    AlreadyForced,
    /// It would be the primary.
    WouldForce,
    /// Nothing was changed.
    Refused,
    /// It was begun and not ended: said again, it goes on.
    Failed,
}

/// One reason of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its name, for programs.
    pub reason: String,
    /// A sentence for people: what it is and what to do.
    pub message: String,
    /// Whether it is about how the command was written.
    pub usage: bool,
}

/// Carries the command out.
#[derive(Debug)]
pub struct Force {
    node: Arc<Node>,
    calls: PeerCalls,
    dialer: Arc<dyn Dialer>,
    identity: ReloadingIdentity,
    coordinators: Vec<String>,
    turn: Mutex<()>,
}

// === impl Force ===

impl Force {
    /// For this node, which reaches others so.
    pub fn new(
        node: Arc<Node>,
        calls: PeerCalls,
        dialer: Arc<dyn Dialer>,
        identity: ReloadingIdentity,
        coordinators: Vec<String>,
    ) -> Self {
        Self { node, calls, dialer, identity, coordinators, turn: Mutex::new(()) }
    }

    /// Asks everybody, decides, and does it unless it is only to be said. A caller that goes away does not stop it.
    pub async fn run(self: Arc<Self>, words: Words) -> Answer {
        let task = tokio::spawn(async move { self.run_to_end(words).await });
        task.await.unwrap_or_else(|error| Answer::of_problem(format!("the agent failed: {error}")))
    }

    async fn run_to_end(&self, words: Words) -> Answer {
        let _turn = self.turn.lock().await;
        let facts = self.facts().await;
        let mut answer = Answer::of_facts(&facts);
        let plan = match judge(&facts, &words) {
            Ok(plan) => plan,
            Err(refusals) => {
                answer.refusals = refusals.iter().map(Refused::from).collect();
                tracing::info!(reasons = ?answer.reasons(), "a person wants to force this member to be the primary: refused");
                return answer;
            }
        };
        answer.epoch = Some(plan.epoch);
        answer.confirmed_off = plan.confirmed_off.iter().cloned().collect();
        if plan.done || words.dry_run {
            answer.outcome = if plan.done { Outcome::AlreadyForced } else { Outcome::WouldForce };
            return answer;
        }
        match self.carry_out(&facts, &plan).await {
            Ok(()) => answer.outcome = Outcome::Forced,
            Err(error) => match (&*error, answer.member.clone()) {
                // It was given while the others were asked.
                (StepError::PromiseStands { left }, Some(member)) => {
                    let (to, left) = ("the primary, just now,".to_owned(), *left);
                    answer.epoch = None;
                    answer.refusals = vec![Refused::from(&Refusal::PromiseStands { member, to, left })];
                }
                (error, _) => {
                    answer.outcome = Outcome::Failed;
                    answer.problem = ErrorChain(error).to_string();
                }
            },
        }
        answer
    }

    /// Asks the coordinators and every other member at the same time.
    async fn facts(&self) -> Facts {
        let asked = self.node.ledger().read();
        let others = asked.membership.iter().flat_map(|membership| {
            let others = membership.spec.members.iter().filter(|peer| peer.member != membership.member);
            others.map(|peer| async { (peer.member.clone(), self.ask(peer, membership.cluster_id).await) })
        });
        let coordinator = enroll::answering(&self.dialer, &self.coordinators, &self.identity);
        let (others, coordinator) = tokio::join!(join_all(others), coordinator);
        // What this node knows by itself is looked at last: it may have changed while others were waited for.
        let node = &self.node;
        let ledger = node.ledger().read();
        let driver = node.member.driver();
        let now = node.lease.clock().now();
        let promises = node.lease.promises();
        let (promised_for, heard) = (promises.force_in(now, ledger.membership.as_ref()), promises.heard(now));
        drop(promises);
        let missing = "it has no driver: see the agent's log of its start".to_owned();
        Facts {
            engine: Engine {
                problem: if driver.is_some() { String::new() } else { missing },
                has_data: driver.as_ref().is_some_and(|driver| driver.has_data()),
                dirty: driver.as_ref().is_some_and(|driver| driver.is_dirty()),
                seen: node.member.watch_seen().borrow().clone(),
            },
            lease_stands: node.lease.standing().is_some(),
            told_epoch: node.lease.told_epoch(),
            promised_for,
            heard,
            sessions: node.contact.borrow().sessions,
            coordinator,
            others: others.into_iter().collect(),
            ledger: (*ledger).clone(),
        }
    }

    async fn ask(&self, peer: &Peer, cluster_id: regent_common::ids::ClusterId) -> Other {
        let agent = async {
            match self.calls.report(peer, cluster_id).await {
                // What takes connections and cannot secure them is stopped or broken, and not off.
                Word::Silent(problem) if self.accepts_at(&peer.agent_address).await => {
                    Word::Unreadable(format!("its agent's port takes connections, and: {problem}"))
                }
                word => word,
            }
        };
        let (word, engine_answers) = tokio::join!(agent, self.accepts(&peer.engine));
        Other { word, engine_answers }
    }

    /// Whether something takes connections there.
    async fn accepts(&self, endpoint: &Endpoint) -> bool {
        let dialing = self.dialer.dial(&endpoint.host, endpoint.port);
        matches!(tokio::time::timeout(PROBE_WITHIN, dialing).await, Ok(Ok(_)))
    }

    async fn accepts_at(&self, address: &str) -> bool {
        let Some((host, port)) = address.rsplit_once(':') else { return false };
        let Ok(port) = port.parse() else { return false };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        self.accepts(&Endpoint { host, port }).await
    }

    /// Does it, as a step of its own that the ledger admits.
    async fn carry_out(&self, facts: &Facts, plan: &Plan) -> Result<(), Arc<StepError>> {
        let membership = facts.ledger.membership.as_ref().ok_or(StepError::NoMember).map_err(Arc::new)?;
        let forced = Forced { at: self.node.wall(), confirmed_off: plan.confirmed_off.clone() };
        let header = Header {
            cluster_id: membership.cluster_id,
            member: membership.member.clone(),
            epoch: plan.epoch,
            token: membership.token,
            key: StepKey { operation: OperationId::generate(), step: "force_primary".to_owned() },
            digest: Digest::of(b"force_primary"),
            revision: facts.ledger.revision,
        };
        tracing::warn!(
            member = %membership.member,
            epoch = %plan.epoch,
            confirmed_off = ?plan.confirmed_off,
            "a person makes this member the primary without a coordinator"
        );
        let step = self.node.executor.execute(header, Action::ForcePrimary { forced }).await.map_err(Arc::new)?;
        match step {
            Execution::Answered(_) => Ok(()),
            Execution::Running(running) => running.ended().await.map(drop),
        }
    }
}

// === impl Answer ===

impl Answer {
    fn of_facts(facts: &Facts) -> Self {
        let membership = facts.ledger.membership.as_ref();
        Self {
            outcome: Outcome::Refused,
            cluster: membership.map(|membership| membership.spec.cluster.clone()),
            member: membership.map(|membership| membership.member.clone()),
            epoch: None,
            confirmed_off: Vec::new(),
            refusals: Vec::new(),
            problem: String::new(),
            others: facts.others.iter().map(|(member, other)| (member.clone(), other.sentence())).collect(),
        }
    }

    fn of_problem(problem: String) -> Self {
        Self {
            outcome: Outcome::Failed,
            cluster: None,
            member: None,
            epoch: None,
            confirmed_off: Vec::new(),
            refusals: Vec::new(),
            problem,
            others: BTreeMap::new(),
        }
    }

    fn reasons(&self) -> Vec<&str> {
        self.refusals.iter().map(|refused| refused.reason.as_str()).collect()
    }
}

// === impl Refused ===

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self { reason: refusal.reason().to_owned(), message: refusal.to_string(), usage: refusal.is_usage() }
    }
}
