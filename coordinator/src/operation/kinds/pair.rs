//! What the life of a pair is made of: two sides that follow each other are joined, one is brought back, one is filled anew.
//!
//! **What a side that was away has must reach nobody by itself.** The engines merge what they hear of each other, entry by entry, and keep
//! no memory of what was deleted: data of yesterday brings back what was deleted since. So the side that served meanwhile is taken off
//! the other one before that one starts; the other one starts *closed* (no application, nor the other side, gets anything of it) on the
//! data that it has, and is compared. What only it has was deleted while it was away, or written there before it went; where its agent
//! does not know that all of it had been passed on, only a person can tell these apart. Else it is opened, for which its agent fills it
//! anew from the side that served. That one was told to follow it before: it does from where there is nothing yet to take in, and takes
//! no copy of anything.
//!
//! Each call of a step has a key of its own, of step, action and member: no step calls the same action on a member in two forms.

use std::time::Duration;

use regent_common::{
    error::Reason,
    ids::MemberName,
    topology::{Difference, EngineState, Ternary},
};
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};

use super::{all_or_first_error, assign_again, configure};
use crate::{
    detector::is_open,
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::PlannedStep,
    },
    nodes::NodeView,
    operation::{StepContext, StepDone, StepError, context::Patience},
    planner::pair::either_data,
};

/// How long an agent is waited for before a return is given up and tried again later.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(10));
/// How long a side's word is waited for after this coordinator has started.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// How long a side that serves may take to be seen to follow the other one; it goes on trying after that.
const JOINED_WITHIN: Duration = Duration::from_secs(15);
/// How long the word that a side serves is waited for once it was opened.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks at that.
const LOOK: Duration = Duration::from_millis(200);
/// Most names of what differs in a sentence.
const MOST_NAMES: usize = 3;

/// The other side, when one is brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Other {
    /// It serves.
    Serves,
    /// Its agent says that it does not.
    Down,
    /// Its agent is not heard: its engine may serve.
    Unheard,
}

/// How a side comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    /// It follows the other one, which does not have this.
    Beside(Difference),
    /// It goes on without the other one, which is brought back after it.
    Alone,
}

/// What makes a side an active one.
fn activate(
    context: &StepContext<'_>,
    other: Option<&MemberName>,
    open: bool,
    first: bool,
) -> Result<Action, StepError> {
    let other = other.map(|other| context.peer(other)).transpose()?;
    Ok(Action::Activate(wire::Activate { other: other.as_ref().map(Into::into), open, first }))
}

/// The other side.
pub(super) fn other_of(context: &StepContext<'_>, member: &MemberName) -> Result<MemberName, StepError> {
    let cluster = context.cluster()?;
    cluster.other_side(member).cloned().ok_or_else(|| {
        StepError::new(Reason::MemberNotFound, format!("{member} has no other side in cluster {}", cluster.name))
    })
}

/// The steps that make the data of a new pair, between `assign` and `verify`.
pub(super) fn creation(all: &[MemberName]) -> Vec<PlannedStep> {
    let (first, second) = (all.first().cloned(), all.get(1).cloned());
    vec![
        PlannedStep::new("configure", all.to_vec()),
        PlannedStep::new("first", all.to_vec()),
        PlannedStep::new("open", first.clone()),
        PlannedStep::new("follow", second),
        PlannedStep::new("join", first),
    ]
}

/// Carries out one of them. Both sides are empty, so that neither can bring the other one anything it should not have.
pub(super) async fn create(
    context: &StepContext<'_>,
    step: &PlannedStep,
    patience: Patience,
) -> Result<StepDone, StepError> {
    match step.name.as_str() {
        "first" => {
            let action = activate(context, None, false, true)?;
            all_or_first_error(context.call_all(&step.members, patience, |_| action.clone()).await)?;
            Ok(StepDone::new())
        }
        "open" => {
            for member in &step.members {
                context.call(member, activate(context, None, true, false)?, patience).await?;
            }
            Ok(StepDone::new())
        }
        _ => {
            let mut done = StepDone::new();
            for member in &step.members {
                let other = other_of(context, member)?;
                context.call(member, activate(context, Some(&other), true, false)?, patience).await?;
                done = done.say(format!("{member} takes writes and follows {other}"));
            }
            Ok(done)
        }
    }
}

/// The steps that bring a side back.
pub(super) fn returning(cluster: &ClusterRecord, member: &MemberName) -> Vec<PlannedStep> {
    let other = cluster.other_side(member).cloned();
    vec![
        PlannedStep::new("detach", other.clone()),
        PlannedStep::new("return", [member.clone()]),
        PlannedStep::new("compare", [member.clone()]),
        PlannedStep::new("join", other.clone()),
        PlannedStep::new("open", [member.clone()]).no_return(),
        PlannedStep::new("verify", other),
    ]
}

/// Carries out one of them.
pub(super) async fn bring_back(
    context: &StepContext<'_>,
    step: &PlannedStep,
    member: &MemberName,
) -> Result<StepDone, StepError> {
    let other = other_of(context, member)?;
    match step.name.as_str() {
        "detach" => return detach(context, &other, member).await,
        "return" => return start_closed(context, member, &other).await,
        "compare" => return compare(context, member, &other).await,
        _ => {}
    }
    let (stands, way): (Other, Way) = (context.output("detach")?, context.output("compare")?);
    match (step.name.as_str(), way) {
        ("join", Way::Beside(difference)) if leaves_something(&difference) => {
            let why = why_not_whole(&*context.cluster()?, member, &other, &difference);
            Err(StepError::new(Reason::Diverged, format!("{why}; until then it lets nobody in")))
        }
        // One whose agent is not heard was not taken off this one, and follows it as before.
        ("join", Way::Beside(_)) if stands == Other::Serves => follow_closed(context, &other, member).await,
        ("join", Way::Beside(_) | Way::Alone) => Ok(StepDone::new()),
        ("open", Way::Beside(_)) => {
            let sentence = format!("{member} is back: it has taken everything from {other}, and takes writes");
            open_beside(context, member, &other, PATIENCE, sentence).await
        }
        ("open", Way::Alone) => {
            context.call(member, activate(context, None, true, false)?, PATIENCE).await?;
            let sentence = format!("{member} takes writes alone; {other} is brought back after it");
            let (member, other) = (member.clone(), other.clone());
            Ok(StepDone::new().say(sentence).change(move |cluster| goes_on_alone(cluster, &member, &other)))
        }
        (_, Way::Beside(_)) if stands == Other::Serves => verify(context, &other, member).await,
        (_, Way::Beside(_) | Way::Alone) => opened(context, member).map(|()| StepDone::new()),
    }
}

/// The steps that fill a side anew from the other one.
pub(super) fn filling(cluster: &ClusterRecord, member: &MemberName) -> Vec<PlannedStep> {
    let survivor = cluster.other_side(member).cloned();
    vec![
        PlannedStep::new("check", survivor.clone()),
        PlannedStep::new("withdraw", [member.clone()]),
        PlannedStep::new("close", [member.clone()]),
        PlannedStep::new("detach", survivor.clone()),
        PlannedStep::new("prepare", [member.clone()]),
        PlannedStep::new("join", survivor.clone()),
        PlannedStep::new("refill", [member.clone()]),
        PlannedStep::new("open", [member.clone()]).no_return(),
        PlannedStep::new("verify", survivor),
        PlannedStep::new("discard", [member.clone()]),
    ]
}

/// Carries out one of them.
pub(super) async fn fill(
    context: &StepContext<'_>,
    step: &PlannedStep,
    member: &MemberName,
) -> Result<StepDone, StepError> {
    let survivor = other_of(context, member)?;
    match step.name.as_str() {
        "check" => check(context, &survivor).await,
        "withdraw" => {
            let member = member.clone();
            Ok(StepDone::new().change(move |cluster| cluster.set_state(&member, MemberState::Resyncing)))
        }
        "close" => close(context, member).await,
        "detach" => {
            context.call(&survivor, activate(context, None, true, false)?, Patience::Forever).await?;
            Ok(StepDone::new().say(format!("{survivor} takes writes, and nothing of {member} reaches it")))
        }
        "prepare" => {
            // A node that has lost its ledger with its disk is a member again from here on; for others nothing changes.
            assign_again(context, &step.members).await?;
            context.call(member, configure(context)?, Patience::Forever).await?;
            silence(context, member).await
        }
        "join" => follow_closed(context, &survivor, member).await,
        "refill" => {
            // The side whose data survives is called first: after a crash of the coordinator this step carries a higher token than
            // the one that it has persisted (rule T2).
            context.call(&survivor, configure(context)?, Patience::Forever).await?;
            let source = Some(wire::Peer::from(&context.peer(&survivor)?));
            let refill = Action::Refill(wire::Refill { source, keep_old: true });
            context.call(member, refill, Patience::Forever).await?;
            Ok(StepDone::new().say(format!("{member} was emptied and has taken everything from {survivor}")))
        }
        "open" => {
            let sentence = format!("{member} and {survivor} both take writes");
            open_beside(context, member, &survivor, Patience::Forever, sentence).await
        }
        "verify" => verify(context, &survivor, member).await,
        _ => {
            context.call(member, Action::DiscardKept(wire::DiscardKept {}), Patience::Forever).await?;
            Ok(StepDone::new())
        }
    }
}

/// Lets applications and the other side in, and says so. Where that one would take in everything that this one has, it stays closed, and
/// waits for a person, which is committed here and told by the next step.
async fn open_beside(
    context: &StepContext<'_>,
    member: &MemberName,
    other: &MemberName,
    patience: Patience,
    sentence: String,
) -> Result<StepDone, StepError> {
    match context.call(member, activate(context, Some(other), true, false)?, patience).await {
        Ok(_) => Ok(StepDone::new().say(sentence).change(joined)),
        Err(error) if error.reason == Reason::HistoryForgotten => {
            let name = &context.cluster()?.name;
            let why = format!(
                "{member} lets nobody in, because {error}; write less for a while, and `regentctl cluster resync {name} {member} \
                 --confirm {member}` fills it again"
            );
            let member = member.clone();
            Ok(StepDone::new().change(move |cluster| {
                cluster.set_state(&member, MemberState::NeedsResync { why: why.clone() });
            }))
        }
        Err(error) => Err(error),
    }
}

/// Fails when a side could not be opened.
fn opened(context: &StepContext<'_>, member: &MemberName) -> Result<(), StepError> {
    let cluster = context.cluster()?;
    let state = cluster.members.get(member).map(|stored| &stored.state);
    let Some(MemberState::NeedsResync { why }) = state else { return Ok(()) };
    Err(StepError::new(Reason::HistoryForgotten, why.clone()))
}

/// Both sides are whole: also the one that was to be filled, where a person took its data for the other one's.
fn joined(cluster: &mut ClusterRecord) {
    for stored in cluster.members.values_mut() {
        stored.state = MemberState::Ready;
    }
    cluster.survivor = None;
}

fn goes_on_alone(cluster: &mut ClusterRecord, member: &MemberName, other: &MemberName) {
    cluster.set_state(member, MemberState::Ready);
    cluster.survivor = Some(member.clone());
    if cluster.members.get(other).is_some_and(|stored| stored.state == MemberState::Ready) {
        cluster.set_state(other, MemberState::NeedsRejoin);
    }
}

/// What a view says of a side.
fn stands(view: &NodeView, cluster: &ClusterRecord, member: &MemberName) -> Other {
    let seen = view.observation.as_ref().filter(|seen| seen.cluster_id == cluster.id && seen.member == *member);
    match seen {
        _ if !view.connected => Other::Unheard,
        Some(seen) if is_open(seen) => Other::Serves,
        Some(_) | None => Other::Down,
    }
}

/// Takes a side that serves off the one that is about to come back.
async fn detach(context: &StepContext<'_>, other: &MemberName, member: &MemberName) -> Result<StepDone, StepError> {
    let stands = stands(&context.heard(other, HEARD_WITHIN).await?, &*context.cluster()?, other);
    let done = StepDone::new().output(&stands);
    Ok(match stands {
        Other::Serves => {
            context.call(other, activate(context, None, true, false)?, PATIENCE).await?;
            done.say(format!("{other} serves, and nothing of {member} reaches it until it is compared"))
        }
        Other::Down => done.say(format!("{other} does not serve either")),
        Other::Unheard => done.say(format!("the agent of {other} is not heard: whether it serves is tried")),
    })
}

/// Starts a side so that nobody is let in, where there is another one to compare it with.
async fn start_closed(
    context: &StepContext<'_>,
    member: &MemberName,
    other: &MemberName,
) -> Result<StepDone, StepError> {
    let seen = context.heard(member, HEARD_WITHIN).await?.observation;
    if seen.is_some_and(|seen| seen.engine.state == EngineState::Hung) {
        // It is ended: what it has not passed on is lost with it, and the other one serves meanwhile.
        context.call(member, Action::Fence(wire::Fence {}), PATIENCE).await?;
    }
    context.call(member, configure(context)?, PATIENCE).await?;
    match context.output("detach")? {
        Other::Down if took_writes_alone(context, other)? => Err(waits_for(member, other, "does not serve now")),
        Other::Down => Ok(StepDone::new()),
        Other::Serves | Other::Unheard => {
            context.call(member, activate(context, Some(other), false, false)?, PATIENCE).await?;
            Ok(StepDone::new().say(format!("{member} runs, and lets nobody in yet")))
        }
    }
}

fn took_writes_alone(context: &StepContext<'_>, member: &MemberName) -> Result<bool, StepError> {
    Ok(context.cluster()?.survivor.as_ref() == Some(member))
}

fn waits_for(member: &MemberName, other: &MemberName, why: &str) -> StepError {
    let message = format!("{other} took writes alone after {member}, and {why}: {member} waits for it, unchanged");
    StepError::new(Reason::PrimaryUnhealthy, message)
}

/// Whether a failure to compare says that there is nobody to compare with, and not that this side's agent is away, or that it is
/// somebody else's turn.
fn says_that_it_is_alone(reason: Reason) -> bool {
    matches!(reason, Reason::EngineFailed | Reason::Deadline | Reason::CopyNotWhole | Reason::PrimaryUnhealthy)
}

/// What a side has that the other one has not, and, if that is asked, has with another value.
pub(super) async fn difference_of(
    context: &StepContext<'_>,
    member: &MemberName,
    other: &MemberName,
    values: bool,
) -> Result<Difference, StepError> {
    let other = Some(wire::Peer::from(&context.peer(other)?));
    let result = context.call(member, Action::Compare(wire::Compare { other, values }), PATIENCE).await?;
    result
        .difference
        .map(Difference::from)
        .ok_or_else(|| StepError::new(Reason::Internal, format!("the agent of {member} did not say what only it has")))
}

/// Looks for what only the returning side has, and leaves it to a person where there is some.
async fn compare(context: &StepContext<'_>, member: &MemberName, other: &MemberName) -> Result<StepDone, StepError> {
    let stands: Other = context.output("detach")?;
    let alone = StepDone::new().output(&Way::Alone);
    if stands == Other::Down {
        return Ok(alone);
    }
    let difference = match difference_of(context, member, other, false).await {
        Ok(difference) => difference,
        Err(error) if stands == Other::Serves || !says_that_it_is_alone(error.reason) => return Err(error),
        Err(_) if took_writes_alone(context, other)? => return Err(waits_for(member, other, "is not reached")),
        Err(error) => return Ok(alone.say(format!("{other} is not reached from {member} either: {error}"))),
    };
    let done = StepDone::new().output(&Way::Beside(difference.clone()));
    if difference.only_here == 0 {
        return Ok(done.say(format!("{member} has nothing that {other} has not, of {} entries", difference.compared)));
    }
    if !leaves_something(&difference) {
        let sentence = format!(
            "{member} has {} that {other} has not: all of its data had reached {other}, where they were deleted since",
            listed(difference.only_here, &difference.examples)
        );
        return Ok(done.say(sentence));
    }
    let why = why_not_whole(&*context.cluster()?, member, other, &difference);
    let (sentence, member) = (why.clone(), member.clone());
    Ok(done.say(sentence).change(move |cluster| {
        cluster.set_state(&member, MemberState::NeedsResync { why: why.clone() });
    }))
}

/// Whether a side has something that may never have reached the other one.
fn leaves_something(difference: &Difference) -> bool {
    difference.only_here > 0 && !difference.delivered
}

/// Why a side is not let in again, and both ways out.
fn why_not_whole(cluster: &ClusterRecord, member: &MemberName, other: &MemberName, difference: &Difference) -> String {
    format!(
        "{member} has {} that {other} has not: deleted while {member} was away, or written there before it went; {}",
        listed(difference.only_here, &difference.examples),
        either_data(cluster, member)
    )
}

/// "3 entries (such as a, b)".
pub(super) fn listed(number: u64, examples: &[String]) -> String {
    let names = examples.iter().take(MOST_NAMES).cloned().collect::<Vec<_>>().join(", ");
    let such = if names.is_empty() { String::new() } else { format!(" (such as {names})") };
    match number {
        1 => format!("1 entry{such}"),
        many => format!("{many} entries{such}"),
    }
}

/// Has a side that serves follow the other one, which is closed: it does as soon as that one lets it in, when there is nothing to take in
/// yet.
async fn follow_closed(
    context: &StepContext<'_>,
    serving: &MemberName,
    closed: &MemberName,
) -> Result<StepDone, StepError> {
    // One that has died since must not be started on what it had saved, for the other one to be filled from that.
    if !is_seen_to_serve(context, serving).await? {
        let message = format!("{serving} serves no more: nothing of {closed} was changed");
        return Err(StepError::new(Reason::PrimaryUnhealthy, message));
    }
    context.call(serving, activate(context, Some(closed), true, false)?, PATIENCE).await?;
    Ok(StepDone::new())
}

/// Whether a side serves: what its agent says of that may be of before it was opened, so that the next words are waited for.
async fn is_seen_to_serve(context: &StepContext<'_>, member: &MemberName) -> Result<bool, StepError> {
    let clock = &context.environment().clock;
    let (began, cluster) = (clock.boottime(), context.cluster()?);
    let Some(node) = cluster.members.get(member).map(|stored| &stored.node) else { return Ok(false) };
    loop {
        if stands(&context.view(member)?, &cluster, member) == Other::Serves {
            return Ok(true);
        }
        if clock.boottime().saturating_sub(began) >= SEEN_WITHIN {
            return Ok(false);
        }
        context.environment().agents.wait_for_change(node, LOOK).await;
    }
}

/// Waits until the side that served follows the other one, and looks whether it has something that the other one has not. Both serve by
/// now, or the other one could not be opened, so that nothing is changed for it, and a look that fails fails nothing.
async fn verify(context: &StepContext<'_>, served: &MemberName, back: &MemberName) -> Result<StepDone, StepError> {
    opened(context, back)?;
    if !streams(context, served, back).await? {
        let sentence = format!(
            "{served} is not seen to follow {back} yet: `regentctl cluster show` says whether it can by itself"
        );
        return Ok(StepDone::new().say(sentence));
    }
    Ok(match difference_of(context, served, back, false).await {
        Ok(difference) if difference.only_here == 0 => StepDone::new(),
        Ok(difference) => StepDone::new().say(format!(
            "{served} has {} that {back} has not, most likely deleted just while the two were joined, and brought back by that: delete \
             them again",
            listed(difference.only_here, &difference.examples)
        )),
        Err(error) if matches!(error.reason, Reason::StaleEpoch | Reason::StaleToken) => return Err(error),
        Err(error) => StepDone::new().say(format!("{served} and {back} could not be compared at the end: {error}")),
    })
}

/// Whether a side is seen to stream from the other one, which is waited for.
async fn streams(context: &StepContext<'_>, served: &MemberName, back: &MemberName) -> Result<bool, StepError> {
    let clock = &context.environment().clock;
    let (began, cluster) = (clock.boottime(), context.cluster()?);
    let Some(node) = cluster.members.get(served).map(|stored| &stored.node) else { return Ok(false) };
    loop {
        let seen = context.view(served)?.observation;
        let engine = seen.filter(|seen| seen.cluster_id == cluster.id).map(|seen| seen.engine);
        if engine.is_some_and(|engine| engine.upstream.as_ref() == Some(back) && engine.streaming == Ternary::Yes) {
            return Ok(true);
        }
        if clock.boottime().saturating_sub(began) >= JOINED_WITHIN {
            return Ok(false);
        }
        context.environment().agents.wait_for_change(node, LOOK).await;
    }
}

/// Refuses when the side whose data is to survive is not there, or has none that is whole.
async fn check(context: &StepContext<'_>, survivor: &MemberName) -> Result<StepDone, StepError> {
    let (view, cluster) = (context.heard(survivor, HEARD_WITHIN).await?, context.cluster()?);
    let seen = view.observation.as_ref().filter(|seen| seen.cluster_id == cluster.id && seen.member == *survivor);
    let whole =
        seen.is_some_and(|seen| !seen.dirty && !matches!(seen.engine.state, EngineState::Absent | EngineState::Hung));
    if !(view.connected && whole) {
        let message = format!("{survivor}, whose data is to survive, is not there or not whole: nothing was erased");
        return Err(StepError::new(Reason::PrimaryUnhealthy, message));
    }
    Ok(StepDone::new().say(format!("the data of {survivor} survives")))
}

/// Keeps applications out of a side that is about to be emptied, before the other one is taken off it: what it is told after that
/// would be lost. One that is not heard, or does not do that, is silenced when it is.
async fn close(context: &StepContext<'_>, member: &MemberName) -> Result<StepDone, StepError> {
    let seen = context.heard(member, HEARD_WITHIN).await?;
    let runs = seen.observation.as_ref().is_some_and(|seen| seen.engine.state == EngineState::Running);
    if !(seen.connected && runs) {
        return Ok(StepDone::new());
    }
    match context.call(member, activate(context, None, false, false)?, PATIENCE).await {
        Ok(_) => Ok(StepDone::new().say(format!("{member} lets nobody in"))),
        Err(error) if matches!(error.reason, Reason::StaleEpoch | Reason::StaleToken) => Err(error),
        Err(error) => Ok(StepDone::new().say(format!("{member} could not be closed first: {error}"))),
    }
}

/// Makes sure that nothing of a side that is about to be emptied reaches the other one: one that is open all the same is ended. One that
/// is started later is closed.
async fn silence(context: &StepContext<'_>, member: &MemberName) -> Result<StepDone, StepError> {
    let seen = context.view(member)?.observation;
    let may_be_open = seen.is_some_and(|seen| is_open(&seen) || seen.engine.state == EngineState::Hung);
    if may_be_open {
        context.call(member, Action::Fence(wire::Fence {}), Patience::Forever).await?;
    }
    Ok(StepDone::new())
}
