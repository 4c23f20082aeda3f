//! Faults that are played together at the moments at which a rule of the protocol matters: scripts, whose stages wait for what the
//! store tells. They only make such moments frequent; what must not happen in them is the oracle's, as ever.

use std::{collections::VecDeque, time::Duration};

use regent_common::lease::Profile;

use super::{
    chance::Chance,
    faults::{Fault, Kind},
    shown::Wish,
    trace::traced,
    world::{COORDINATOR, MOST_NODES, Simulation},
};

/// In the place of a host: the candidate of the moment.
const CANDIDATE: &str = "the candidate";
/// How long a script waits at most until it is through.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a seed has a liking for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Nothing: any fault at any time.
    Free,
    /// Members that have endorsed a primary start again when it is cut off.
    EndorserRestarts,
    /// A primary that was cut off asks members which are being prepared.
    PreparedAsked,
    /// A coordinator starts again while the primary is cut off.
    CoordinatorRestarts,
    /// A member leaves the electorate, and the primary is cut off with the others.
    MemberLeaves,
    /// A member joins the electorate, and the primary's agent starts again on the other side of a partition.
    MemberJoins,
    /// The first member joins an empty electorate, and the primary's agent stops.
    GateOfOne,
    /// A primary is lost while a member is being resynced.
    ResyncCut,
    /// A promotion does not come to its end.
    PromotionFails,
    /// A coordinator dies while its store commits.
    SlowStore,
    /// Steps of an operation arrive after the coordinator that sent them has died.
    OldSteps,
    /// The cluster's times become shorter while the primary does not hear that.
    ShorterTimes,
    /// Answers arrive again, and late.
    Replays,
    /// An engine hangs and goes on when it is not expected to.
    EngineHangs,
    /// An agent stands still in the midst of a renewal.
    LateRenewals,
}

/// All but [`Theme::Free`].
const THEMES: &[Theme] = &[
    Theme::EndorserRestarts,
    Theme::PreparedAsked,
    Theme::CoordinatorRestarts,
    Theme::MemberLeaves,
    Theme::MemberJoins,
    Theme::GateOfOne,
    Theme::ResyncCut,
    Theme::PromotionFails,
    Theme::SlowStore,
    Theme::OldSteps,
    Theme::ShorterTimes,
    Theme::Replays,
    Theme::EngineHangs,
    Theme::LateRenewals,
];

/// What a script does.
enum Act {
    Begin(Kind, String, String, Duration),
    End(Kind, String),
    CatchUp(String),
    Pace(String, Duration),
    SlowStore(Duration),
    Ask(Wish),
}

/// A part of a script: waits for word from the store, and a time, and acts.
struct Stage {
    wait: Option<&'static str>,
    delay: Duration,
    acts: Vec<Act>,
}

/// A script that is being played.
pub(crate) struct Script {
    stages: VecDeque<Stage>,
    due: Option<Duration>,
    give_up_at: Duration,
}

/// Who plays.
struct Cast<'a> {
    primary: String,
    /// All other nodes, in any order.
    others: Vec<String>,
    ttl: Duration,
    chance: &'a mut Chance,
    stages: VecDeque<Stage>,
}

// === impl Theme ===

impl Theme {
    /// That of a seed: every other has one.
    pub(crate) fn of(seed: u64) -> Self {
        let mut chance = Chance::of(seed, "theme");
        if seed.is_multiple_of(2) { *chance.pick(THEMES) } else { Self::Free }
    }

    /// The times of its cluster.
    pub(crate) fn profile(self, seed: u64) -> Profile {
        match self {
            Self::EndorserRestarts | Self::CoordinatorRestarts | Self::ShorterTimes | Self::EngineHangs => {
                Profile::Standard
            }
            Self::Free
            | Self::PreparedAsked
            | Self::MemberLeaves
            | Self::MemberJoins
            | Self::GateOfOne
            | Self::ResyncCut
            | Self::PromotionFails
            | Self::SlowStore
            | Self::OldSteps
            | Self::Replays
            | Self::LateRenewals => {
                if seed.is_multiple_of(3) {
                    Profile::Standard
                } else {
                    Profile::Fast
                }
            }
        }
    }

    /// How many nodes its cluster has.
    pub(crate) fn nodes(self, chance: &mut Chance) -> usize {
        let any = match chance.within(0..10) {
            0 => 1,
            1 => 2,
            2 => MOST_NODES,
            _ => 3,
        };
        match self {
            Self::Free => any,
            Self::GateOfOne => 2,
            Self::EndorserRestarts if chance.percent(70) => 2,
            Self::MemberLeaves | Self::MemberJoins | Self::SlowStore => 3,
            Self::EndorserRestarts
            | Self::PreparedAsked
            | Self::CoordinatorRestarts
            | Self::ResyncCut
            | Self::PromotionFails
            | Self::OldSteps
            | Self::ShorterTimes
            | Self::Replays
            | Self::EngineHangs
            | Self::LateRenewals => any.max(2),
        }
    }

    /// In how many of a hundred cases an answer is delivered again, or late.
    pub(crate) fn replays(self) -> u64 {
        if self == Self::Replays { 50 } else { 4 }
    }

    /// Its script for the state that is reached; none without a primary or a theme, or before the cluster is made.
    pub(crate) fn script(self, simulation: &Simulation<'_>, chance: &mut Chance) -> Option<Script> {
        let primary = simulation.primary()?;
        let mut others: Vec<String> =
            simulation.machines().iter().map(|machine| machine.name.clone()).filter(|name| *name != primary).collect();
        if chance.percent(50) {
            others.reverse();
        }
        if self == Self::Free || others.is_empty() || !simulation.is_active() {
            return None;
        }
        let ttl = simulation.machine(&primary).profile.timing().ttl;
        traced!("SCRIPT {self:?}");
        let mut cast = Cast { primary, others, ttl, chance, stages: VecDeque::new() };
        cast.play(self);
        Some(Script { stages: cast.stages, due: None, give_up_at: simulation.now() + PATIENCE })
    }
}

// === impl Cast ===

impl Cast<'_> {
    fn stage(&mut self, wait: Option<&'static str>, millis: std::ops::Range<u64>, acts: Vec<Act>) {
        let delay = self.chance.millis(millis);
        self.stages.push_back(Stage { wait, delay, acts });
    }

    fn some(&mut self, seconds: std::ops::Range<u64>) -> Duration {
        self.chance.millis(seconds.start * 1000..seconds.end * 1000)
    }

    /// Cuts the primary from all other members.
    fn from_members(&self, lasts: Duration) -> Vec<Act> {
        let cut = |other: &String| Act::Begin(Kind::Partition, self.primary.clone(), other.clone(), lasts);
        self.others.iter().map(cut).collect()
    }

    fn on(&self, kind: Kind, host: &str, lasts: Duration) -> Act {
        Act::Begin(kind, host.to_owned(), String::new(), lasts)
    }

    /// The coordinator and the first of the others on one side, the primary and all others on the other.
    fn split(&self, lasts: Duration) -> Vec<Act> {
        let cut = |one: &str, other: &str| Act::Begin(Kind::Partition, one.to_owned(), other.to_owned(), lasts);
        let first = self.others[0].as_str();
        let beyond = || std::iter::once(self.primary.as_str()).chain(self.others[1..].iter().map(String::as_str));
        beyond().flat_map(|other| [cut(COORDINATOR, other), cut(first, other)]).collect()
    }

    fn play(&mut self, theme: Theme) {
        let (primary, first) = (self.primary.clone(), self.others[0].clone());
        let long = self.some(8..14);
        let brief = self.chance.millis(50..400);
        let ttl = u64::try_from(self.ttl.as_millis()).expect("seconds");
        match theme {
            Theme::Free => {}
            Theme::EndorserRestarts => {
                let cut = Act::Begin(Kind::Partition, COORDINATOR.to_owned(), primary, long + self.ttl);
                self.stage(None, 0..1, vec![cut]);
                let mut acts = self.from_members(long);
                for other in self.others.clone() {
                    acts.push(self.on(Kind::AgentCrash, &other, brief));
                }
                self.stage(None, ttl * 5 / 4..ttl * 2, acts);
            }
            Theme::PreparedAsked => {
                let mut acts = self.from_members(long * 2);
                acts.push(Act::Begin(Kind::Partition, COORDINATOR.to_owned(), primary.clone(), long * 2));
                self.stage(None, 0..1, acts);
                let word = if self.chance.percent(50) { "failover" } else { "failover prepare begins" };
                // The cut from the coordinator is the coordinator's, and stays.
                self.stage(Some(word), 0..80, vec![Act::End(Kind::Partition, primary)]);
            }
            Theme::CoordinatorRestarts => {
                let crash = self.on(Kind::CoordinatorCrash, COORDINATOR, brief);
                // An agent that is gone is known to be at once; one that is cut off is waited for.
                let kind = *self.chance.pick(&[Kind::Isolation, Kind::AgentCrash, Kind::AgentCrash]);
                let lost = self.on(kind, &primary, long);
                let (one, other) = if self.chance.percent(50) { (crash, lost) } else { (lost, crash) };
                self.stage(None, 0..1, vec![one]);
                self.stage(None, 0..150, vec![other]);
            }
            Theme::MemberLeaves => {
                self.stage(None, 0..1, vec![self.on(Kind::SlowStream, &first, PATIENCE)]);
                let stall = self.on(Kind::DiskStall, &primary, long);
                self.stage(
                    Some("leaves"),
                    0..1,
                    vec![Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first), stall],
                );
                // Soon: the member has caught up, and joins again.
                self.stage(None, 20..240, self.split(long));
            }
            Theme::MemberJoins => {
                self.stage(None, 0..1, vec![self.on(Kind::SlowStream, &first, PATIENCE)]);
                self.stage(Some("leaves"), 500..2000, vec![Act::End(Kind::SlowStream, first.clone())]);
                self.stage(Some("joins"), 0..1, vec![self.on(Kind::DiskStall, &primary, long)]);
                let mut acts = self.split(long);
                acts.push(self.on(Kind::AgentCrash, &primary, brief));
                acts.push(Act::End(Kind::DiskStall, primary));
                self.stage(Some("acknowledged"), 0..60, acts);
            }
            Theme::GateOfOne => {
                let pace = self.chance.millis(120..190);
                self.stage(
                    None,
                    0..1,
                    vec![self.on(Kind::SlowStream, &first, PATIENCE), Act::Pace(primary.clone(), pace)],
                );
                self.stage(Some("leaves"), 700..2500, vec![Act::End(Kind::SlowStream, first)]);
                self.stage(Some("joins"), 0..1, vec![]);
                let pause = self.on(Kind::AgentPause, &primary, long);
                self.stage(Some("acknowledged"), 0..40, vec![pause]);
                self.stage(None, 15_000..15_001, vec![Act::Pace(primary, Duration::ZERO)]);
            }
            Theme::ResyncCut => {
                self.stage(None, 0..1, vec![Act::Ask(Wish::Resync(first))]);
                let kind = *self.chance.pick(&[Kind::PowerCut, Kind::Isolation, Kind::EngineCrash, Kind::AgentCrash]);
                self.stage(Some("resync"), 0..1500, vec![self.on(kind, &primary, long)]);
            }
            Theme::PromotionFails => {
                let kind = *self.chance.pick(&[Kind::EngineCrash, Kind::Isolation, Kind::PowerCut]);
                self.stage(None, 0..1, vec![self.on(kind, &primary, long)]);
                let kinds = [Kind::EngineHang, Kind::PowerCut, Kind::AgentCrash, Kind::Isolation, Kind::AgentPause];
                let kind = *self.chance.pick(&kinds);
                let lasts = self.some(2..10);
                self.stage(Some("failover promote begins"), 0..200, vec![self.on(kind, CANDIDATE, lasts)]);
                self.stage(None, 300..6000, vec![Act::End(Kind::Isolation, primary.clone())]);
                self.stage(None, 0..1500, vec![Act::End(Kind::PowerCut, primary)]);
            }
            Theme::SlowStore => {
                let slow = Act::SlowStore(Duration::from_millis(600));
                self.stage(None, 0..1, vec![self.on(Kind::SlowStream, &first, PATIENCE), slow]);
                let caught = vec![Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first)];
                self.stage(Some("leaving"), 0..1, caught);
                let mut acts = self.split(long);
                acts.push(self.on(Kind::CoordinatorCrash, COORDINATOR, brief));
                acts.push(Act::SlowStore(Duration::ZERO));
                self.stage(None, 250..580, acts);
            }
            Theme::OldSteps => {
                let begin = match self.chance.within(0..3) {
                    0 => Act::Ask(Wish::Resync(first.clone())),
                    1 => self.on(Kind::EngineCrash, &primary, brief),
                    _ => self.on(Kind::Isolation, &primary, Duration::from_secs(3)),
                };
                self.stage(None, 0..1, vec![begin]);
                let steps = ["step begins", "failover", "failover promote begins", "failover follow begins", "rejoin"];
                let step = *self.chance.pick(&steps);
                let held = self.some(1..6);
                let mut acts: Vec<Act> = (self.others.iter().chain([&primary]))
                    .map(|host| Act::Begin(Kind::Hold, COORDINATOR.to_owned(), host.clone(), held))
                    .collect();
                acts.retain(|_| self.chance.percent(60));
                self.stage(Some(step), 0..60, acts);
                self.stage(None, 0..300, vec![self.on(Kind::CoordinatorCrash, COORDINATOR, brief)]);
            }
            Theme::ShorterTimes => {
                let deaf = Act::Begin(Kind::OneWay, COORDINATOR.to_owned(), primary.clone(), long);
                let ask = Act::Ask(Wish::Profile(Profile::Fast));
                let acts = if self.chance.percent(50) { vec![deaf, ask] } else { vec![ask, deaf] };
                self.stage(None, 0..1, acts);
                self.stage(Some("times"), 300..1300, vec![self.on(Kind::Isolation, &primary, long)]);
                self.stage(None, 14_000..16_000, vec![Act::Ask(Wish::Profile(Profile::Standard))]);
            }
            Theme::Replays => {
                let begin = self.on(Kind::Isolation, &primary, long);
                self.stage(None, 0..1, vec![begin]);
            }
            Theme::EngineHangs => {
                self.stage(None, 0..1, vec![self.on(Kind::EngineHang, &primary, PATIENCE)]);
                self.stage(Some("failover"), 0..30, vec![self.on(Kind::Isolation, &primary, long)]);
                self.stage(Some("failover promote done"), 0..100, vec![Act::End(Kind::EngineHang, primary)]);
            }
            Theme::LateRenewals => {
                let pace = self.chance.millis(120..190);
                self.stage(None, 0..1, vec![Act::Pace(primary.clone(), pace)]);
                self.stage(None, 300..2500, vec![self.on(Kind::AgentPause, &primary, long)]);
                self.stage(None, 15_000..15_001, vec![Act::Pace(primary, Duration::ZERO)]);
            }
        }
    }
}

// === impl Script ===

impl Script {
    /// Goes on; `words` came from the store since the last time. False when it is through.
    pub(crate) fn step(&mut self, simulation: &mut Simulation<'_>, words: &[String], active: &mut Vec<Fault>) -> bool {
        let now = simulation.now();
        if now >= self.give_up_at {
            simulation.machines().iter().for_each(|machine| machine.passage.kernel().set_pace(Duration::ZERO));
            simulation.store.slow(Duration::ZERO);
            return false;
        }
        let Some(stage) = self.stages.front() else { return false };
        let due = *self.due.get_or_insert_with(|| match stage.wait {
            None => now + stage.delay,
            Some(_) => Duration::MAX,
        });
        if due == Duration::MAX && stage.wait.is_some_and(|wait| words.iter().any(|word| word == wait)) {
            self.due = Some(now + stage.delay);
        }
        if self.due.is_some_and(|due| now >= due) {
            let stage = self.stages.pop_front().expect("it was there");
            self.due = None;
            for act in stage.acts {
                act.play(simulation, active);
            }
            simulation.follow_network();
        }
        true
    }
}

// === impl Act ===

impl Act {
    fn play(self, simulation: &mut Simulation<'_>, active: &mut Vec<Fault>) {
        let now = simulation.now();
        match self {
            Self::Begin(kind, host, other, lasts) => {
                let host = if host == CANDIDATE {
                    let Some(candidate) = simulation.candidate() else { return };
                    candidate
                } else {
                    host
                };
                active.push(Fault::begin(simulation, kind, (host, other), now + lasts));
            }
            Self::End(kind, host) => {
                for fault in active.iter_mut().filter(|fault| fault.is(kind, &host)) {
                    fault.until = now;
                }
            }
            Self::CatchUp(host) => drop(simulation.engines.advance(&simulation.machine(&host).endpoint(), 10_000)),
            Self::Pace(host, pace) => simulation.machine(&host).passage.kernel().set_pace(pace),
            Self::SlowStore(takes) => simulation.store.slow(takes),
            Self::Ask(wish) => simulation.wish(wish),
        }
    }
}
