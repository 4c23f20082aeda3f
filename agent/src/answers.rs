//! What other members answered when they were asked for endorsement: for people on this machine, and for measurements.
//!
//! **Invariant:** nothing is decided by what is noted here; the lease has its own record.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    clock::{Clock, Moment},
    ids::MemberName,
};
use serde::{Deserialize, Serialize};

use crate::lease::{Endorsers, Question, Word};

/// What came of asking a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answering {
    /// It endorses.
    Endorses,
    /// It answers that it does not.
    Refuses,
    /// It does not answer.
    Silent,
}

/// The way to other members, with a note of what came of it.
pub struct Answers {
    inner: Arc<dyn Endorsers>,
    clock: Arc<dyn Clock>,
    members: Mutex<BTreeMap<MemberName, Exchange>>,
}

/// Questions to one member, and its answers.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    /// When it was asked last.
    asked_at: Moment,
    /// The oldest question since its last answer.
    waiting_since: Option<Moment>,
    /// What came of the last question that has an end.
    last: Option<Answering>,
}

// === impl Answers ===

impl Answers {
    /// Notes what comes of asking through `inner`.
    pub fn new(inner: Arc<dyn Endorsers>, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, members: Mutex::default() }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<MemberName, Exchange>> {
        // Changed by assignments that cannot stop half-way.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the members that are being asked now answer. One that was not asked within three heartbeats is left out: the
    /// coordinator renews the lease, so that nobody asks.
    pub fn of_late(&self, heartbeat: Duration) -> BTreeMap<MemberName, Answering> {
        let now = self.clock.now();
        let asked = self.members().clone().into_iter().filter(|(_, it)| it.asked_at.age(now) <= heartbeat * 3);
        asked.filter_map(|(member, exchange)| Some((member, exchange.answering(now, heartbeat)?))).collect()
    }

    fn ended(&self, member: &MemberName, how: Answering) {
        if let Some(exchange) = self.members().get_mut(member) {
            exchange.last = Some(how);
            if how != Answering::Silent {
                exchange.waiting_since = None;
            }
        }
        let answer = match how {
            Answering::Endorses => "given",
            Answering::Refuses => "refused",
            Answering::Silent => "none",
        };
        metrics::counter!("regent_agent_endorsements_wanted_total", "answer" => answer).increment(1);
    }
}

impl Exchange {
    /// `None` while the first question has neither an answer nor waited long enough to mean something.
    fn answering(&self, now: Moment, heartbeat: Duration) -> Option<Answering> {
        if self.waiting_since.is_some_and(|since| since.age(now) > heartbeat * 2) {
            return Some(Answering::Silent);
        }
        self.last
    }
}

#[async_trait]
impl Endorsers for Answers {
    async fn ask(&self, question: Question) -> Result<Word, String> {
        let (member, now) = (question.peer.member.clone(), self.clock.now());
        let new = Exchange { asked_at: now, waiting_since: None, last: None };
        {
            let mut members = self.members();
            let exchange = members.entry(member.clone()).or_insert(new);
            exchange.asked_at = now;
            exchange.waiting_since = exchange.waiting_since.or(Some(now));
        }
        let answer = self.inner.ask(question).await;
        self.ended(
            &member,
            match &answer {
                Ok(Word { endorsed: true, .. }) => Answering::Endorses,
                Ok(Word { endorsed: false, .. }) => Answering::Refuses,
                Err(_) => Answering::Silent,
            },
        );
        answer
    }
}

#[cfg(test)]
mod tests {
    use regent_common::{
        clock::ManualClock,
        ids::{ClusterId, Epoch},
        lease::LeaseReport,
        topology::{Endpoint, Peer},
    };

    use super::*;

    const BEAT: Duration = Duration::from_secs(1);

    /// db2 endorses, db3 refuses, db4 cannot be reached, db5 never answers.
    struct Others;

    #[async_trait]
    impl Endorsers for Others {
        async fn ask(&self, question: Question) -> Result<Word, String> {
            match question.peer.member.as_str() {
                "db2" => Ok(Word { endorsed: true, known_epoch: Epoch(1) }),
                "db3" => Ok(Word { endorsed: false, known_epoch: Epoch(2) }),
                "db4" => Err("connection refused".to_owned()),
                _ => std::future::pending().await,
            }
        }
    }

    fn owned((member, how): (&str, Answering)) -> (String, Answering) {
        (member.to_owned(), how)
    }

    fn question(member: &str) -> Question {
        let peer = Peer {
            member: member.parse().unwrap(),
            node: "n1".parse().unwrap(),
            engine: Endpoint { host: "h".to_owned(), port: 1 },
            agent_address: "h:1".to_owned(),
        };
        Question {
            peer,
            cluster_id: ClusterId::from_parts(1, 1),
            member: "db1".parse().unwrap(),
            epoch: Epoch(1),
            nonce: 1,
            boot_id: "b".to_owned(),
            ttl: BEAT * 5,
            lease: LeaseReport { epoch: Epoch(1), stands: true, source: None, remaining: BEAT },
            position: None,
        }
    }

    #[tokio::test]
    async fn who_endorses_refuses_and_is_silent_is_told_apart() {
        let clock = Arc::new(ManualClock::default());
        let answers = Answers::new(Arc::new(Others), clock.clone());
        let of_late = || {
            let told = answers.of_late(BEAT);
            told.into_iter().map(|(member, how)| (member.to_string(), how)).collect::<Vec<_>>()
        };
        for member in ["db2", "db3", "db4"] {
            let _ = answers.ask(question(member)).await;
        }
        // A question without an answer is given up by who asks.
        let mut waiting = answers.ask(question("db5"));
        assert!(futures::poll!(&mut waiting).is_pending());
        let expected =
            [("db2", Answering::Endorses), ("db3", Answering::Refuses), ("db4", Answering::Silent)].map(owned).to_vec();
        assert_eq!(of_late(), expected, "db5 may still answer");
        clock.advance(BEAT * 5 / 2);
        assert_eq!(of_late().last(), Some(&owned(("db5", Answering::Silent))));
        clock.advance(BEAT);
        assert!(of_late().is_empty(), "nobody is asked any more");
        drop(waiting);
    }
}
