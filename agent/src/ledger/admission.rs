//! What the ledger permits (rule T1): pure decisions on a [`Ledger`] value, and the changes that go with them.
//!
//! ```text
//!             wrong cluster, member, quarantined ──► Refuse
//!             lower epoch or token ────────────────► Refuse
//!  a step ──► same step, same content, running ────► Join
//!             same step, same content, finished ───► Answer
//!             same step, other content, token not higher ► Refuse
//!             else ────────────────────────────────► Run
//! ```
//!
//! The epoch belongs to a step's content: a promotion at epoch 6 is another step than the same promotion at epoch 5,
//! and must not be answered with the other's result. A resumed coordinator that sends the same step with the same
//! content at the same epoch under a higher token joins the one that runs: what runs is exactly what the new token asks
//! for, so letting it end under the new token is the same as stopping it and running it again, only sooner.
//!
//! **Invariant:** nothing here lowers an epoch, a token or a revision, and nothing here does I/O.

use regent_common::{
    ids::{ClusterId, Epoch, MemberName, OperationToken, Revision},
    mutation::{self, Rule},
};

use super::record::{Content, DRAIN, Digest, Ledger, StepKey, StepOutcome, StepRecord};

/// Who asks for what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Cluster that is meant.
    pub cluster_id: ClusterId,
    /// Member that is meant.
    pub member: MemberName,
    /// Epoch of the cluster.
    pub epoch: Epoch,
    /// Operation token of the cluster.
    pub token: OperationToken,
    /// The step.
    pub key: StepKey,
    /// Digest of its action.
    pub digest: Digest,
    /// Revision of the coordinator's store from which it was made.
    pub revision: Revision,
}

/// What a step needs of the node's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Makes the node a member.
    Enter,
    /// Is for a member.
    Act,
    /// Ends the membership; done already where there is none.
    Leave,
}

/// What becomes of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// It is carried out, after everything lower has ended.
    Run,
    /// It is running; the caller waits for the same end.
    Join,
    /// It has been carried out; this was the result.
    Answer(StepOutcome),
    /// It is not carried out.
    Refuse(Refusal),
}

/// Why a step is not carried out. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A higher epoch is known.
    #[error("epoch {given} is over: this node has accepted epoch {known}")]
    StaleEpoch {
        /// Of the step.
        given: Epoch,
        /// In the ledger.
        known: Epoch,
    },
    /// A higher token is known.
    #[error("operation token {given} is over: this node has accepted token {known}")]
    StaleToken {
        /// Of the step.
        given: OperationToken,
        /// In the ledger.
        known: OperationToken,
    },
    /// The step was sent before with another content.
    #[error(
        "step {step} was begun under token {known} with another content; other content needs a higher token than that"
    )]
    ContentDiffers {
        /// Key of the step.
        step: String,
        /// Token under which it was accepted.
        known: OperationToken,
    },
    /// The node belongs to no cluster.
    #[error("this node is not a member of cluster {given}")]
    NotAMember {
        /// Of the step.
        given: ClusterId,
    },
    /// The node belongs to another cluster.
    #[error("this node is member {member} of cluster {known}, not of cluster {given}")]
    OtherCluster {
        /// Of the step.
        given: ClusterId,
        /// In the ledger.
        known: ClusterId,
        /// In the ledger.
        member: MemberName,
        /// Whether the step was to make the node a member.
        entering: bool,
    },
    /// The node is another member.
    #[error("this node is member {known}, not {given}")]
    OtherMember {
        /// Of the step.
        given: MemberName,
        /// In the ledger.
        known: MemberName,
    },
    /// The node was released from that cluster.
    #[error(
        "this node was released from cluster {given} under operation token {known}: only a later operation takes it in again"
    )]
    PastCluster {
        /// Of the step.
        given: ClusterId,
        /// Of the release.
        known: OperationToken,
    },
    /// The ledger is not to be believed.
    #[error("this node is in quarantine: {reason}")]
    Quarantined {
        /// Why.
        reason: String,
    },
}

// === impl Header ===

impl Header {
    /// What the step does.
    pub fn content(&self) -> Content {
        Content { digest: self.digest, epoch: self.epoch }
    }
}

// === impl Ledger ===

impl Ledger {
    /// Decides on a step. `running` is the content of the step of this key that runs in this process, if one does.
    pub fn admit(&self, header: &Header, claim: Claim, running: Option<Content>) -> Admission {
        if let (Some(reason), Claim::Act) = (&self.quarantine, claim) {
            return Admission::Refuse(Refusal::Quarantined { reason: reason.clone() });
        }
        match &self.membership {
            Some(membership) if membership.cluster_id == header.cluster_id => {
                if membership.member != header.member {
                    Admission::Refuse(Refusal::OtherMember {
                        given: header.member.clone(),
                        known: membership.member.clone(),
                    })
                } else if header.epoch < membership.epoch {
                    Admission::Refuse(Refusal::StaleEpoch { given: header.epoch, known: membership.epoch })
                } else if header.token < membership.token && !mutation::broken(Rule::T1Token) {
                    Admission::Refuse(Refusal::StaleToken { given: header.token, known: membership.token })
                } else {
                    self.compare(header, running)
                }
            }
            // Leaving is done already wherever the node is not a member, and must end well when it is asked for twice.
            Some(_) | None if claim == Claim::Leave => self.compare(header, running),
            Some(_) | None if !self.may_enter(header, claim) => {
                let known = self.released_under.get(&header.cluster_id).copied().unwrap_or_default();
                Admission::Refuse(Refusal::PastCluster { given: header.cluster_id, known })
            }
            Some(membership) => Admission::Refuse(Refusal::OtherCluster {
                given: header.cluster_id,
                known: membership.cluster_id,
                member: membership.member.clone(),
                entering: claim == Claim::Enter,
            }),
            None => match claim {
                Claim::Enter => self.compare(header, running),
                Claim::Act => Admission::Refuse(Refusal::NotAMember { given: header.cluster_id }),
                Claim::Leave => unreachable!("handled above"),
            },
        }
    }

    /// Whether the cluster is not one that this node has left, or takes it in anew by a later operation than the one that released
    /// it: what was sent before that, and arrives late, is not obeyed.
    fn may_enter(&self, header: &Header, claim: Claim) -> bool {
        let later = || self.released_under.get(&header.cluster_id).is_some_and(|released| header.token > *released);
        !self.past_clusters.contains(&header.cluster_id) || (claim == Claim::Enter && later())
    }

    /// Compares with what is known of the same step.
    fn compare(&self, header: &Header, running: Option<Content>) -> Admission {
        let content = header.content();
        let Some(record) = self.step(&header.key) else { return Admission::Run };
        if running == Some(content) {
            return Admission::Join;
        }
        if record.content == content && running.is_none() {
            return match &record.outcome {
                Some(outcome) => Admission::Answer(outcome.clone()),
                None => Admission::Run,
            };
        }
        if header.token > record.token {
            Admission::Run
        } else {
            Admission::Refuse(Refusal::ContentDiffers { step: header.key.step.clone(), known: record.token })
        }
    }

    /// Accepts a step: raises what it raises. Returns whether that changed anything.
    pub fn accept(&mut self, header: &Header) -> bool {
        let before = (self.revision, self.membership.as_ref().map(|m| (m.epoch, m.token)));
        self.revision = self.revision.max(header.revision);
        if let Some(membership) = self.membership.as_mut().filter(|m| m.cluster_id == header.cluster_id) {
            membership.raise_epoch(header.epoch);
            membership.token = membership.token.max(header.token);
        }
        let mut changed = before != (self.revision, self.membership.as_ref().map(|m| (m.epoch, m.token)));
        if let Some(record) = self.step_mut(&header.key)
            && record.token < header.token
            && record.content == header.content()
        {
            record.token = header.token;
            changed = true;
        }
        changed
    }

    /// Accepts a step and notes that it begins.
    pub fn begin(&mut self, header: &Header, action: &str) {
        self.accept(header);
        let executions = self.step(&header.key).map_or(0, |record| record.executions);
        let record = StepRecord {
            cluster_id: header.cluster_id,
            action: action.to_owned(),
            content: header.content(),
            token: header.token,
            executions: executions.saturating_add(1),
            outcome: None,
            last_error: String::new(),
        };
        self.put_step(&header.key, record);
    }

    /// Notes the result of a step. A step that has been begun anew with another content since is left alone.
    pub fn finish(&mut self, key: &StepKey, content: Content, outcome: StepOutcome) {
        if let Some(record) = self.step_mut(key).filter(|record| record.content == content) {
            record.outcome = Some(outcome);
            record.last_error.clear();
        }
    }

    /// Notes that an attempt failed; the step stays unfinished.
    pub fn fail(&mut self, key: &StepKey, content: Content, error: &str) {
        if let Some(record) = self.step_mut(key).filter(|record| record.content == content) {
            error.clone_into(&mut record.last_error);
        }
    }

    /// Applications are let in again: the drain of before is not carried out any more, and its result says nothing (rule T1).
    pub fn end_drain(&mut self) {
        if let Some(membership) = &mut self.membership {
            membership.drained = None;
        }
        let steps = self.operations.iter_mut().flat_map(|operation| operation.steps.values_mut());
        for record in steps.filter(|record| record.action == DRAIN) {
            record.outcome = None;
        }
    }

    /// Leaves a cluster: membership and results of its steps go; its id stays as one that is not obeyed again, but for a later
    /// operation that makes this node a new member.
    ///
    /// Undoing a step erases its result (rule T1), and a release undoes everything before it.
    /// A node that has come back as another member of it stays that.
    pub fn leave(&mut self, cluster_id: ClusterId, member: &MemberName, token: OperationToken) {
        match &self.membership {
            Some(present) if present.cluster_id == cluster_id && present.member != *member => return,
            Some(present) if present.cluster_id == cluster_id => self.membership = None,
            Some(_) | None => {}
        }
        self.quarantine = None;
        let released_before = !self.past_clusters.insert(cluster_id);
        let known = self.released_under.get(&cluster_id).copied();
        if !released_before || known.is_some() {
            self.released_under.insert(cluster_id, token.max(known.unwrap_or_default()));
        }
        for record in self.operations.iter_mut().flat_map(|operation| operation.steps.values_mut()) {
            if record.cluster_id == cluster_id {
                record.outcome = None;
            }
        }
    }
}
