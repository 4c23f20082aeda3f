//! An actor's failovers: begun within the brake and the budget, ahead of what yields to them; and why there is none, told once.

use std::collections::BTreeMap;

use regent_common::{error::Reason, ids::MemberName};

use super::Actor;
use crate::{
    detector::{Judgement, Succession, Verdict, refine},
    model::cluster::{ClusterRecord, Healing},
    operation::{
        executor::NewOperation,
        kind,
        kinds::failover::{self, Failover},
        log::Failure,
    },
    planner::{Cause, asked::Consent},
};

// === impl Actor ===

impl Actor {
    pub(super) async fn fail_over(&mut self, record: &ClusterRecord, cause: Cause, why: String) {
        let now = self.environment.clock.boottime();
        let clusters = self.environment.authorities.len();
        let paused = self.environment.brake.holds(clusters, now, &self.environment.limits);
        let allowed = self.environment.limits.failovers_of(record);
        if let Some(pause) = paused.or_else(|| self.budget.exhausted(now, allowed)) {
            return self.no_failover(record, format!("{why}; {pause}")).await;
        }
        if let Some(running) = &self.running {
            let yields = kind(&running.operation.kind).is_some_and(|kind| kind.yields_to_failover());
            if yields && running.interrupt.borrow().is_none() {
                let message =
                    format!("a failover takes precedence ({why}); what is left to do is taken up again after it");
                let failure = Failure { reason: Reason::StepSuperseded.as_str().to_owned(), message };
                running.interrupt.send_replace(Some(failure));
            }
            return;
        }
        let known = failover::heard(&self.environment, record);
        let in_place = record.policy.healing == Healing::RestorePrimary;
        let parameters = failover::Parameters { cause, known, consent: Consent::default(), successor: None, in_place };
        if self.start_automatic(NewOperation::automatic(&Failover, &parameters, why)).await {
            self.budget.count(now);
        }
    }

    pub(super) async fn no_failover(&mut self, record: &ClusterRecord, why: String) {
        // What changes from look to look, such as a number of milliseconds, is no new reason.
        let same = |told: &String| without_digits(told) == without_digits(&why);
        if self.running.is_none() && !self.told.as_ref().is_some_and(same) {
            tracing::warn!(why, "no failover");
            self.write_down("NO_FAILOVER", &record.name.resource(), "decided", &why).await;
            self.tell("NO_FAILOVER", &record.name.resource(), &why, BTreeMap::new()).await;
            self.told = Some(why);
        }
    }

    /// A primary whose words arrive and which has not served for longer than a node may be silent is replaced.
    ///
    /// - One that holds no lease does not hear the answers: it counts like one that is not heard (rule E4). Granting on would only
    ///   push the end of its lease away.
    /// - One whose engine runs read-only was started again by others than its agent: it counts like one whose engine is down, and
    ///   the failover begins with its fence (rule P1 a). A look says nothing of this: what it shows may be of before it was promoted.
    pub(super) fn look_for_idleness(
        &mut self,
        record: &ClusterRecord,
        judgements: &mut BTreeMap<MemberName, Judgement>,
        succession: &Succession,
    ) {
        let judged = record.primary.as_ref().and_then(|primary| Some((primary, judgements.get_mut(primary)?)));
        let granted = !self.authority.keeps_lapsed();
        let is_idle = |(_, judgement): &(&MemberName, &mut Judgement)| match judgement.verdict {
            Verdict::WithoutLease => granted,
            Verdict::Astray => self.running.is_none(),
            _ => false,
        };
        let Some((primary, judgement)) = judged.filter(is_idle) else {
            self.idle_since = None;
            return;
        };
        let now = self.environment.clock.boottime();
        let since = match self.idle_since.take() {
            Some((verdict, since)) if verdict == judgement.verdict => since,
            _ => now,
        };
        self.idle_since = Some((judgement.verdict.clone(), since));
        let suspect_after = record.policy.profile.timing().suspect_after;
        if now < since + suspect_after {
            self.look_at = self.look_at.min(since + suspect_after);
            return;
        }
        let reason = &judgement.reason;
        *judgement = if judgement.verdict == Verdict::Astray {
            let reason = format!("{reason}, and it stays so: something else than its agent has started or demoted it");
            Judgement { verdict: Verdict::EngineDown, reason }
        } else {
            let reason = format!("{reason}, and it does not hear that one is: what is sent to its node is lost");
            refine(Judgement { verdict: Verdict::NodeUnreachable, reason }, primary, succession)
        };
    }
}

/// A sentence without its numbers.
fn without_digits(text: &str) -> String {
    text.chars().filter(|character| !character.is_ascii_digit()).collect()
}
