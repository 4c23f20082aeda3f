//! Runs one scenario on a bed: writes, injects, watches, heals, waits until all is well, accounts for every row.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use regent_proto::coordinator::v1 as wire;

use super::{
    Bed, CLUSTER, Cast, Injected, Rig, Scenario,
    measured::{Lost, Measured, Span, millis},
};
use crate::{
    api,
    cluster::CREATE,
    place::Place,
    profile::Profile,
    workload::{
        checker::{self, Gap},
        history::History,
        now_nanos,
        writers::Writers,
    },
};

/// Rows to see before the fault and after it.
const ROWS: usize = 50;
/// Acknowledgements from so long before the fault count for the outage.
const BEFORE: Duration = Duration::from_millis(200);
/// How many times its limit a failover is waited for, before it is said to be missing.
const LATE: u32 = 3;
/// The least that is waited, where the limit is very short: what is late is not missing.
const MISSING: Duration = Duration::from_secs(6);

/// How scenarios are run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long the coordinator is away when it is.
    pub coordinator_away: Duration,
}

/// Points in time of a run, by the writers' clock.
#[derive(Debug, Clone, Copy)]
struct Times {
    fault: u64,
    healed: u64,
    healthy: u64,
    end: u64,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a short time fits")
}

/// How long to watch where nothing is to happen: any lease that was held at the fault is over, and then some.
fn watching(profile: Profile) -> Duration {
    profile.ttl() * 3 + Duration::from_secs(1)
}

/// Starts all writers: the follower, one for each member, one patient one for each, and one on each member's machine.
/// `prefix` is this run's own: a row that was under way to a silent member when an earlier run ended may still arrive.
fn writers(bed: &Bed<impl Rig>, cast: &Cast, prefix: &str) -> Result<Writers> {
    let folder = bed.folder.join("writers").join(prefix);
    let mut writers = Writers::start_called(prefix, &folder, &bed.client, &bed.members, true)?;
    for actor in cast.members() {
        writers.add_patient(&format!("patient-{}", actor.node), &actor.endpoint)?;
        let place = bed.fleet.place(&actor.node)?;
        if let Place::Machine(_) = place {
            writers.add_at(&format!("local-{}", actor.node), &actor.endpoint, &place)?;
        }
    }
    Ok(writers)
}

/// Watches as long as the fault lasts; what should have happened meanwhile and did not.
async fn watch(
    scenario: &Scenario,
    settings: &Settings,
    bed: &Bed<impl Rig>,
    cast: &Cast,
    writers: &Writers,
    at: u64,
) -> Vec<String> {
    if scenario.expected.failover {
        let limit = scenario.expected.outage.limit(bed.profile).unwrap_or_default();
        let patience = (limit * LATE).max(MISSING);
        let seen = writers.acknowledged_except(&cast.primary.endpoint, at, ROWS, patience).await;
        return seen
            .err()
            .map(|error| format!("nobody took over while the fault lasted: {error:#}"))
            .into_iter()
            .collect();
    }
    let least = watching(bed.profile);
    let time = if scenario.takes_the_coordinator_away() { least.max(settings.coordinator_away) } else { least };
    tokio::time::sleep(time).await;
    Vec::new()
}

/// Runs a scenario. An error means that the bed did not get well again and cannot be used any more.
pub async fn run(
    bed: &mut Bed<impl Rig>,
    scenario: &'static Scenario,
    number: u32,
    settings: &Settings,
) -> Result<Measured> {
    let cast = bed.cast().await.context("before the fault")?;
    bed.client.make_room(&cast.primary.endpoint).await?;
    let prefix = format!("{}-{number}-", scenario.name);
    let writers = writers(bed, &cast, &prefix)?;
    writers.acknowledged(0, ROWS, CREATE).await.context("before the fault")?;

    let earlier: BTreeSet<String> = failovers(bed).await?.into_iter().map(|failover| failover.name).collect();
    let fault = now_nanos();
    let injected = Injected::make(&mut bed.fleet, &cast, scenario.faults, bed.profile).await?;
    let missed = watch(scenario, settings, bed, &cast, &writers, fault).await;
    let healed = now_nanos();
    injected.heal(&mut bed.fleet)?;
    bed.fleet.all_connected().await.context("after the fault was healed")?;
    let cluster = bed.healthy().await.context("after the fault was healed")?;
    let healthy = now_nanos();
    writers.acknowledged(healthy, ROWS, CREATE).await.context("after the fault was healed")?;
    let end = now_nanos();

    let histories = writers.stop().await?;
    let mut stored = bed.same_on_all().await?;
    stored.retain(|(writer, _), _| writer.starts_with(&prefix));
    let account = checker::account(&histories, &stored);
    let times = Times { fault, healed, healthy, end };
    let mut measured = measure(scenario, bed, &cast, &histories, times).with(&account);
    let by = |endpoint: &str| member_at(&cast, endpoint);
    measured.lost = checker::acknowledged(&histories, &account.lost)
        .into_iter()
        .map(|(row, at, member)| Lost { row, member: by(member), acknowledged_ms: since(fault, at) })
        .collect();
    measured.new_primary = api::plain(&cluster.primary).to_owned();
    measured.missed = missed;
    let failovers = failovers(bed).await?;
    // The list begins with the newest.
    measured.failovers = failovers.iter().rev().filter(|f| !earlier.contains(&f.name)).map(report).collect();
    match cluster.epoch.checked_sub(cast.epoch) {
        Some(epochs) => measured.epochs = epochs,
        None => measured.missed.push(format!("the epoch went back from {} to {}", cast.epoch, cluster.epoch)),
    }
    Ok(measured)
}

/// All failovers of the bed's cluster, the newest first.
async fn failovers(bed: &Bed<impl Rig>) -> Result<Vec<wire::Operation>> {
    bed.fleet.api().operations_of(CLUSTER, "failover").await
}

/// What a failover says of itself, in a line.
fn report(operation: &wire::Operation) -> String {
    let state = operation.state().as_str_name().to_lowercase();
    let state = state.trim_start_matches("operation_state_");
    format!("{state}; because: {}; {}{}", operation.reason, operation.report.join("; "), operation.error)
}

/// Milliseconds from one point in time to another, either way.
fn since(from: u64, at: u64) -> f64 {
    if at >= from { millis(Duration::from_nanos(at - from)) } else { -millis(Duration::from_nanos(from - at)) }
}

/// Name of the member at an endpoint.
fn member_at(cast: &Cast, endpoint: &str) -> String {
    let known = cast.members().into_iter().find(|actor| actor.endpoint == endpoint);
    known.map_or_else(|| endpoint.to_owned(), |actor| actor.member.clone())
}

/// What the histories say.
fn measure(scenario: &Scenario, bed: &Bed<impl Rig>, cast: &Cast, histories: &[History], times: Times) -> Measured {
    let begin = times.fault - nanos(BEFORE);
    let follower: Vec<_> = histories.iter().filter(|history| history.writer.ends_with("-follower")).cloned().collect();
    let acknowledgements = || histories.iter().flat_map(History::acknowledgements);
    let elsewhere = acknowledgements().filter(|(at, by)| *at > times.fault && *by != cast.primary.endpoint);
    let before_healing = acknowledgements().map(|(at, _)| at).filter(|at| (times.fault..times.healed).contains(at));
    let resumed = follower.iter().flat_map(History::acknowledgements).map(|(at, _)| at).filter(|at| *at > times.healed);
    let reigns = checker::reigns(histories, 0, u64::MAX).into_iter().map(|reign| Span {
        member: member_at(cast, &reign.member),
        reign: reign.word,
        from_ms: since(times.fault, reign.from),
        until_ms: since(times.fault, reign.until),
        rows: reign.rows,
    });
    let outage = checker::longest_gap(&follower, begin, times.end);
    let overlap = checker::overlaps(histories, 0, u64::MAX).first().map_or(0, |overlap| overlap.nanos);
    Measured {
        scenario: scenario.name,
        profile: bed.profile,
        old_primary: cast.primary.member.clone(),
        new_primary: String::new(),
        epochs: 0,
        write_outage_ms: outage.millis(),
        outage_from_ms: since(times.fault, outage.from),
        elsewhere_ms: elsewhere.map(|(at, _)| at).min().map(|at| since(times.fault, at)),
        healed_ms: since(times.fault, times.healed),
        healthy_ms: since(times.fault, times.healthy),
        last_before_healing_ms: before_healing.max().map(|at| since(times.fault, at)),
        resumed_ms: resumed.min().map(|at| since(times.fault, at)),
        reigns: reigns.collect(),
        overlap_ms: Gap { from: 0, until: overlap }.millis(),
        attempted: 0,
        acknowledged: 0,
        lost: Vec::new(),
        duplicated: 0,
        unexpected: 0,
        failovers: Vec::new(),
        missed: Vec::new(),
    }
}
