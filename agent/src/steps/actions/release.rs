//! Takes the node out of a cluster: nothing that the cluster sent before is obeyed here any more.
//!
//! A node that is not a member of the cluster has nothing to do, and ends well: a release is asked for again whenever
//! somebody is not sure. A release that gives back leaves an adopted instance as it was found, without a break.

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::{Ledger, StepOutcome};

pub(super) async fn run(context: &StepContext, keep_data: bool, give_back: bool) -> Result<Done, StepError> {
    let (cluster_id, token) = (context.header.cluster_id, context.header.token);
    let member = context.header.member.clone();
    let ledger = context.ledger.read();
    let detail = match &ledger.membership {
        Some(membership) if membership.cluster_id == cluster_id && membership.member == context.header.member => {
            let given_back = give_back && context.driver()?.give_back().await?;
            if given_back {
                context.lease.let_go().await?;
            } else {
                context.driver()?.release(keep_data || give_back).await?;
                context.lease.lay_down().await?;
            }
            context.firewall.forget().await?;
            context.ledger.remove_secrets().await?;
            context.member.let_go();
            if given_back { "the instance goes on as it was found".to_owned() } else { String::new() }
        }
        Some(_) | None => format!("this node is not a member of cluster {cluster_id}; nothing was removed"),
    };
    let outcome = StepOutcome { detail, ..StepOutcome::default() };
    Ok(Done { outcome, effect: Box::new(move |ledger: &mut Ledger| ledger.leave(cluster_id, &member, token)) })
}
