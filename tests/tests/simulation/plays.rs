//! The scripts of the themes: who is kept from whom, and when, so that a rule of the protocol matters.

use std::{borrow::Cow, collections::VecDeque, time::Duration};

use regent_common::lease::Profile;

use super::{
    chance::Chance,
    faults::Kind,
    script::{Act, CANDIDATE, Stage},
    shown::Wish,
    strikes,
    themes::Theme,
    world::COORDINATOR,
};

/// Longer than what a script lets begin and ends itself may take.
pub(super) const UNTIL_ENDED: Duration = Duration::from_secs(20);
/// How long a machine is away that a script does not want back.
pub(super) const AWAY: Duration = Duration::from_secs(40);

/// Who plays.
pub(crate) struct Cast<'a> {
    pub(super) primary: String,
    /// All other nodes, in any order.
    pub(super) others: Vec<String>,
    ttl: Duration,
    pub(super) chance: &'a mut Chance,
    stages: VecDeque<Stage>,
}

pub(super) fn cut(one: &str, other: &str, lasts: Duration) -> Act {
    Act::Begin(Kind::Partition, one.to_owned(), other.to_owned(), lasts)
}

pub(super) fn on(kind: Kind, host: &str, lasts: Duration) -> Act {
    Act::Begin(kind, host.to_owned(), String::new(), lasts)
}

/// For what happens at one moment.
pub(super) fn crash() -> Duration {
    Duration::from_millis(1)
}

fn crash_coordinator(lasts: Duration) -> Act {
    on(Kind::CoordinatorCrash, COORDINATOR, lasts)
}

// === impl Cast ===

impl<'a> Cast<'a> {
    /// The primary and the others of a cluster whose leases last so long.
    pub(crate) fn new(primary: String, others: Vec<String>, ttl: Duration, chance: &'a mut Chance) -> Self {
        Self { primary, others, ttl, chance, stages: VecDeque::new() }
    }

    /// What is to be played.
    pub(crate) fn into_stages(self) -> VecDeque<Stage> {
        self.stages
    }

    pub(super) fn stage(&mut self, wait: Option<&'static str>, millis: std::ops::Range<u64>, acts: Vec<Act>) {
        let delay = self.chance.millis(millis);
        self.stages.push_back(Stage { wait: wait.map(Cow::Borrowed), delay, acts });
    }

    /// A stage that waits for a word which is put together.
    pub(super) fn stage_at(&mut self, word: String, millis: std::ops::Range<u64>, acts: Vec<Act>) {
        let delay = self.chance.millis(millis);
        self.stages.push_back(Stage { wait: Some(Cow::Owned(word)), delay, acts });
    }

    pub(super) fn seconds(&mut self, seconds: std::ops::Range<u64>) -> Duration {
        self.chance.millis(seconds.start * 1000..seconds.end * 1000)
    }

    /// As long as an outage that matters.
    pub(super) fn long(&mut self) -> Duration {
        self.seconds(8..14)
    }

    /// As long as a process takes to start again.
    pub(super) fn brief(&mut self) -> Duration {
        self.chance.millis(50..400)
    }

    pub(super) fn first(&self) -> String {
        self.others[0].clone()
    }

    /// Cuts the primary from all other members.
    fn cut_from_members(&self, lasts: Duration) -> Vec<Act> {
        self.others.iter().map(|other| cut(&self.primary, other, lasts)).collect()
    }

    /// The coordinator and the first of the others on one side, the primary and all others on the other.
    fn split(&self, lasts: Duration) -> Vec<Act> {
        let first = self.others[0].as_str();
        let beyond = || std::iter::once(self.primary.as_str()).chain(self.others[1..].iter().map(String::as_str));
        beyond().flat_map(|other| [cut(COORDINATOR, other, lasts), cut(first, other, lasts)]).collect()
    }

    /// Adds the stages of a theme.
    pub(crate) fn play(&mut self, theme: Theme) {
        match theme {
            Theme::Free => {}
            Theme::Struck => strikes::on_this_thread().expect("a run with this theme is a strike").play(self),
            Theme::EndorserRestarts => self.endorser_restarts(),
            Theme::EndorsedAnew => self.endorsed_anew(),
            Theme::PreparedAsked => self.prepared_asked(),
            Theme::CoordinatorRestarts => self.coordinator_restarts(),
            Theme::MemberLeaves => self.member_leaves(),
            Theme::MemberJoins => self.member_joins(),
            Theme::GateOfOne => self.gate_of_one(),
            Theme::OldElectorate => self.old_electorate(),
            Theme::ResyncCut => self.resync_cut(),
            Theme::ResyncAlone => self.resync_alone(),
            Theme::PromotionFails => self.promotion_fails(),
            Theme::PromotionUnheard => self.promotion_unheard(),
            Theme::TwoCandidates => self.two_candidates(),
            Theme::CandidateFails => self.candidate_fails(),
            Theme::SlowStore => self.slow_store(),
            Theme::OldSteps => self.old_steps(),
            Theme::ShorterTimes => self.shorter_times(),
            Theme::ShorterTimesForgotten => self.shorter_times_forgotten(),
            Theme::Replays => {
                let lost = on(Kind::Isolation, &self.primary, self.ttl * 6);
                self.stage(None, 0..1, vec![lost]);
            }
            Theme::EngineHangs => self.engine_hangs(),
            Theme::LateRenewals => self.late_renewals(),
            Theme::AgentRestarts => self.agent_restarts(),
            Theme::Sides => self.sides(),
            Theme::OldStore => self.old_store(),
            Theme::SourceGone => self.source_gone(),
            Theme::OffByWord => self.off_by_word(),
            Theme::FencedOnPaper => self.fenced_on_paper(),
            Theme::NeverReigned => self.never_reigned(),
            Theme::OldPrimaryBack => self.old_primary_back(),
            Theme::LateStep => self.late_step(),
            Theme::LongPromotion => self.long_promotion(),
            Theme::SourceLost => self.source_lost(),
            Theme::StreamGoesOn => self.stream_goes_on(),
            Theme::OldElectoratePutBack => self.old_electorate_put_back(),
            Theme::Forced => self.forced(),
        }
    }

    /// Longer away than the profile's lease, and gone for good; or lost again when the coordinator has heard the new process, and
    /// that one has not yet heard the coordinator.
    fn agent_restarts(&mut self) {
        let primary = self.primary.clone();
        match self.chance.within(0..4) {
            0 => {
                let away = self.ttl + self.chance.millis(1000..15_000);
                // Whoever was cut off before has to be in touch with the coordinator again: only that one is asked.
                self.stage(None, 6000..7000, vec![on(Kind::AgentRestart, &primary, away)]);
                let until = u64::try_from(away.as_millis()).expect("seconds");
                self.stage(None, until - 500..until, vec![Act::WantHandedOver(primary)]);
            }
            1 => {
                self.stage(None, 0..1, vec![on(Kind::AgentRestart, &primary, AWAY)]);
                self.stage(None, 38_000..39_000, vec![Act::WantWriter("after a lease that was handed over")]);
            }
            _ => {
                let away = self.ttl + self.chance.millis(1000..4000);
                self.stage(None, 0..1, vec![on(Kind::AgentRestart, &primary, away)]);
                let until = u64::try_from(away.as_millis()).expect("seconds");
                self.stage(None, until + 5..until + 400, vec![on(Kind::Isolation, &primary, AWAY)]);
                self.stage(None, 15_000..15_001, vec![]);
            }
        }
    }

    fn endorser_restarts(&mut self) {
        let (long, brief) = (self.long(), self.brief());
        let ttl = u64::try_from(self.ttl.as_millis()).expect("seconds");
        self.stage(None, 0..1, vec![cut(COORDINATOR, &self.primary, long + self.ttl)]);
        let mut acts = self.cut_from_members(long);
        acts.extend(self.others.iter().map(|other| on(Kind::AgentCrash, other, brief)));
        self.stage(None, ttl * 5 / 4..ttl * 2, acts);
    }

    /// The primary is given up and meets the member again before that one is prepared: only the member's promise keeps it from
    /// being promoted beside a lease that stands again.
    fn endorsed_anew(&mut self) {
        let (first, long, slow) = (self.first(), self.long(), self.chance.millis(400..700));
        let acts =
            vec![cut(&self.primary, COORDINATOR, long), cut(&first, &self.primary, UNTIL_ENDED), Act::SlowStore(slow)];
        self.stage(None, 0..1, acts);
        self.stage(Some("failover"), 0..1, vec![Act::End(Kind::Partition, first)]);
        self.stage(Some("failover prepare begins"), 0..1, vec![Act::SlowStore(Duration::ZERO)]);
    }

    /// The candidate's disk keeps it from beginning its reign, so that there is time to be asked.
    fn prepared_asked(&mut self) {
        let (long, stalled) = (self.long() * 2, self.chance.millis(2500..4500));
        let mut acts = self.cut_from_members(long);
        acts.push(cut(COORDINATOR, &self.primary, long));
        self.stage(None, 0..1, acts);
        let stall = on(Kind::DiskStall, CANDIDATE, stalled);
        let met = Act::End(Kind::Partition, self.primary.clone());
        self.stage(Some("failover promote begins"), 0..1, vec![stall, met]);
    }

    fn coordinator_restarts(&mut self) {
        let (long, brief) = (self.long(), self.brief());
        let crash = crash_coordinator(brief);
        // An agent that is gone is known to be at once; one that is cut off is waited for.
        let kind = *self.chance.pick(&[Kind::Isolation, Kind::AgentCrash, Kind::AgentCrash]);
        let lost = on(kind, &self.primary, long);
        let (one, other) = if self.chance.percent(50) { (crash, lost) } else { (lost, crash) };
        self.stage(None, 0..1, vec![one]);
        self.stage(None, 0..150, vec![other]);
    }

    /// The primary hears that a member has left, cannot acknowledge it, and is cut off before the member joins again: that one has
    /// caught up, and would make a fine candidate.
    fn member_leaves(&mut self) {
        let (first, long) = (self.first(), self.long());
        let slow = Act::SlowStore(Duration::from_millis(100));
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &first, UNTIL_ENDED), slow]);
        self.stage(Some("leaving"), 0..1, vec![on(Kind::DiskStall, &self.primary, long)]);
        self.stage(Some("leaves"), 0..1, vec![Act::SlowStore(Duration::ZERO)]);
        let mut acts = vec![Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first)];
        acts.extend(self.split(long));
        self.stage(None, 300..700, acts);
    }

    fn member_joins(&mut self) {
        let (first, long, brief) = (self.first(), self.long(), self.brief());
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &first, UNTIL_ENDED)]);
        self.stage(Some("leaves"), 500..2000, vec![Act::End(Kind::SlowStream, first)]);
        self.stage(Some("joins"), 0..1, vec![on(Kind::DiskStall, &self.primary, long)]);
        let mut acts = self.split(long);
        acts.push(on(Kind::AgentCrash, &self.primary, brief));
        acts.push(Act::End(Kind::DiskStall, self.primary.clone()));
        self.stage(Some("acknowledged"), 0..60, acts);
    }

    /// The kernel is slow to make the gate a timed one, and the agent stops before it is.
    fn gate_of_one(&mut self) {
        let (first, long, pace) = (self.first(), self.long(), self.chance.millis(120..190));
        let primary = self.primary.clone();
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &first, UNTIL_ENDED), Act::Pace(primary.clone(), pace)]);
        self.stage(Some("leaves"), 700..2500, vec![Act::End(Kind::SlowStream, first)]);
        self.stage(Some("joins"), 0..1, vec![]);
        self.stage(Some("acknowledged"), 0..40, vec![on(Kind::AgentPause, &primary, long)]);
        self.stage(None, 15_000..15_001, vec![Act::Pace(primary, Duration::ZERO)]);
    }

    /// Answers that name the electorate without a member are under way while it joins and that is acknowledged; they arrive when
    /// the primary is cut off with the others.
    fn old_electorate(&mut self) {
        let (first, long) = (self.first(), self.long());
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &first, UNTIL_ENDED)]);
        let acts = vec![Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first), Act::LateAnswers(50)];
        self.stage(Some("leaves"), 300..900, acts);
        self.stage(Some("joins"), 0..1, vec![Act::LateAnswers(0)]);
        let acts = self.split(long);
        self.stage(Some("acknowledged"), 0..100, acts);
    }

    fn resync_cut(&mut self) {
        let long = self.long();
        self.stage(None, 0..1, vec![Act::Ask(Wish::Resync(self.first()))]);
        let kind = *self.chance.pick(&[Kind::PowerCut, Kind::Isolation, Kind::EngineCrash, Kind::AgentCrash]);
        self.stage(Some("resync"), 0..1500, vec![on(kind, &self.primary, long)]);
    }

    /// The member in the resync is gone, and so is the coordinator: nobody else can be promoted, and the primary goes on.
    fn resync_alone(&mut self) {
        let first = self.first();
        self.stage(None, 0..1, vec![Act::Ask(Wish::Resync(first.clone()))]);
        self.stage(Some("resync clone begins"), 0..1, vec![on(Kind::AgentCrash, &first, AWAY / 2)]);
        self.stage(None, 2000..3000, vec![cut(&self.primary, COORDINATOR, AWAY / 3)]);
        self.stage(None, 8000..9000, vec![Act::WantWriter("beside a member in a resync")]);
    }

    fn promotion_fails(&mut self) {
        let (long, lasts, primary) = (self.long(), self.seconds(2..10), self.primary.clone());
        let kind = *self.chance.pick(&[Kind::EngineCrash, Kind::Isolation, Kind::PowerCut]);
        self.stage(None, 0..1, vec![on(kind, &primary, long)]);
        let kinds = [Kind::EngineHang, Kind::PowerCut, Kind::AgentCrash, Kind::Isolation, Kind::AgentPause];
        let kind = *self.chance.pick(&kinds);
        self.stage(Some("failover promote begins"), 0..200, vec![on(kind, CANDIDATE, lasts)]);
        self.stage(None, 300..6000, vec![Act::End(Kind::Isolation, primary.clone())]);
        self.stage(None, 0..1500, vec![Act::End(Kind::PowerCut, primary)]);
    }

    /// The first of the others is not prepared, so that the second reigns with nobody in its electorate.
    fn promotion_unheard(&mut self) {
        let (first, second, primary) = (self.first(), self.others[1].clone(), self.primary.clone());
        self.stage(None, 0..1, vec![cut(&first, COORDINATOR, UNTIL_ENDED)]);
        self.stage(None, 800..1000, vec![on(Kind::PowerCut, &primary, AWAY)]);
        self.stage(Some("failover promote begins"), 40..140, vec![cut(&second, COORDINATOR, AWAY)]);
        self.stage(None, 500..3000, vec![Act::End(Kind::Partition, first)]);
        self.stage(None, 20_000..22_000, vec![]);
    }

    /// A candidate that reigns and was not heard of meets the next one, whose disk keeps it from beginning its reign.
    fn two_candidates(&mut self) {
        let (first, second) = (self.first(), self.others[1].clone());
        self.stage(None, 0..1, vec![on(Kind::PowerCut, &self.primary, AWAY)]);
        let acts = vec![cut(COORDINATOR, CANDIDATE, AWAY), cut(&first, CANDIDATE, AWAY), cut(&second, CANDIDATE, AWAY)];
        self.stage(Some("failover promote begins"), 60..160, acts);
        let stalled = self.chance.millis(2500..4500);
        let acts = vec![
            on(Kind::DiskStall, CANDIDATE, stalled),
            Act::End(Kind::Partition, first),
            Act::End(Kind::Partition, second),
        ];
        self.stage(Some("failover promote begins"), 0..1, acts);
        self.stage(None, 6000..8000, vec![]);
    }

    /// One machine is lost for good and the one in its place hesitates: somebody has to be promoted all the same.
    fn candidate_fails(&mut self) {
        let mut acts = vec![on(Kind::PowerCut, &self.primary, AWAY)];
        if self.chance.percent(40) {
            // Its agent is heard, and cannot answer a fence.
            acts = vec![on(Kind::DiskStall, &self.primary, AWAY), on(Kind::EngineCrash, &self.primary, AWAY)];
        }
        self.stage(None, 0..1, acts);
        let kinds = [Kind::EngineHang, Kind::EngineHang, Kind::AgentCrash, Kind::EngineCrash, Kind::Isolation];
        let kind = *self.chance.pick(&kinds);
        let lasts = self.seconds(6..9);
        self.stage(Some("failover promote begins"), 0..80, vec![on(kind, CANDIDATE, lasts)]);
        self.stage(None, 30_000..31_000, vec![Act::WantWriter("although only the old primary is away")]);
    }

    fn slow_store(&mut self) {
        let (first, long, brief) = (self.first(), self.long(), self.brief());
        let slow = Act::SlowStore(Duration::from_millis(600));
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &first, UNTIL_ENDED), slow]);
        let caught = vec![Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first)];
        self.stage(Some("leaving"), 0..1, caught);
        let mut acts = self.split(long);
        acts.push(crash_coordinator(brief));
        acts.push(Act::SlowStore(Duration::ZERO));
        self.stage(None, 250..580, acts);
    }

    fn old_steps(&mut self) {
        let (primary, brief) = (self.primary.clone(), self.brief());
        let begin = match self.chance.within(0..3) {
            0 => Act::Ask(Wish::Resync(self.first())),
            1 => on(Kind::EngineCrash, &primary, brief),
            _ => on(Kind::Isolation, &primary, Duration::from_secs(3)),
        };
        self.stage(None, 0..1, vec![begin]);
        let steps = ["step begins", "failover", "failover promote begins", "failover follow begins", "rejoin"];
        let step = *self.chance.pick(&steps);
        let held = self.seconds(1..6);
        let mut acts: Vec<Act> = (self.others.iter().chain([&primary]))
            .map(|host| Act::Begin(Kind::Hold, COORDINATOR.to_owned(), host.clone(), held))
            .collect();
        acts.retain(|_| self.chance.percent(60));
        self.stage(Some(step), 0..60, acts);
        self.stage(None, 0..300, vec![crash_coordinator(brief)]);
    }

    fn shorter_times(&mut self) {
        let long = self.long();
        let deaf = Act::Begin(Kind::OneWay, COORDINATOR.to_owned(), self.primary.clone(), long);
        let ask = Act::Ask(Wish::Profile(Profile::Fast));
        let acts = if self.chance.percent(50) { vec![deaf, ask] } else { vec![ask, deaf] };
        self.stage(None, 0..1, acts);
        self.stage(Some("times"), 300..1300, vec![on(Kind::Isolation, &self.primary, long)]);
        self.stage(None, 14_000..16_000, vec![Act::Ask(Wish::Profile(Profile::Standard))]);
    }

    /// The next coordinator counts by the shorter times, and the lease stands by the longer ones. A member that was copied has
    /// heard how far the primary had come: without that nobody is promoted by a coordinator that never heard it.
    fn shorter_times_forgotten(&mut self) {
        let (long, brief) = (self.long(), self.chance.millis(20..60));
        self.stage(None, 0..1, vec![Act::Ask(Wish::Resync(self.first()))]);
        self.stage(Some("joins"), 0..1, vec![]);
        self.stage(Some("acknowledged"), 0..1000, vec![Act::Ask(Wish::Profile(Profile::Fast))]);
        let lost = on(Kind::Isolation, &self.primary, long);
        self.stage(Some("times"), 0..1, vec![lost, crash_coordinator(brief)]);
        self.stage(None, 14_000..16_000, vec![Act::Ask(Wish::Profile(Profile::Standard))]);
        self.stage(None, 1000..2000, vec![]);
    }

    fn engine_hangs(&mut self) {
        let (long, primary) = (self.long(), self.primary.clone());
        self.stage(None, 0..1, vec![on(Kind::EngineHang, &primary, UNTIL_ENDED)]);
        self.stage(Some("failover"), 0..30, vec![on(Kind::Isolation, &primary, long)]);
        self.stage(Some("failover promote done"), 0..100, vec![Act::End(Kind::EngineHang, primary)]);
    }

    fn late_renewals(&mut self) {
        let (long, pace, primary) = (self.long(), self.chance.millis(120..190), self.primary.clone());
        self.stage(None, 0..1, vec![Act::Pace(primary.clone(), pace)]);
        self.stage(None, 300..2500, vec![on(Kind::AgentPause, &primary, long)]);
        self.stage(None, 15_000..15_001, vec![Act::Pace(primary, Duration::ZERO)]);
    }

    /// The partitions of which the protocol promises that each ends with one writer, and one in which a member hears a primary
    /// whose lease does not stand.
    fn sides(&mut self) {
        let (first, second, primary) = (self.first(), self.others[1].clone(), self.primary.clone());
        let lasts = Duration::from_secs(16);
        let pairs: &[(&str, &str)] = match self.chance.within(0..6) {
            0 => &[(COORDINATOR, &primary), (COORDINATOR, &first), (COORDINATOR, &second)],
            1 => &[(COORDINATOR, &first), (COORDINATOR, &second), (&primary, &first), (&primary, &second)],
            2 => &[(COORDINATOR, &primary), (COORDINATOR, &second), (&first, &primary), (&first, &second)],
            3 => &[(COORDINATOR, &primary), (&first, &primary), (&second, &primary)],
            _ => &[(COORDINATOR, &primary), (&first, &primary)],
        };
        let acts = pairs.iter().map(|(one, other)| cut(one, other, lasts)).collect();
        self.stage(None, 0..1, acts);
        self.stage(None, 14_000..15_000, vec![Act::WantWriter("in a partition that leaves room for one")]);
    }

    fn old_store(&mut self) {
        let brief = self.brief();
        let kind = *self.chance.pick(&[Kind::Isolation, Kind::PowerCut, Kind::EngineCrash, Kind::AgentCrash]);
        let lasts = self.seconds(4..12);
        let back = on(Kind::Restored, COORDINATOR, brief);
        self.stage(None, 0..1, vec![Act::BackUp, on(kind, &self.primary, lasts)]);
        let word = *self.chance.pick(&["failover promote begins", "failover promote done", "rejoin", "failover"]);
        self.stage(Some(word), 0..800, vec![back]);
        self.stage(None, 4000..9000, vec![]);
    }

    fn source_gone(&mut self) {
        let lasts = self.seconds(2..9);
        self.stage(None, 0..1, vec![Act::Ask(Wish::Resync(self.first()))]);
        let kinds = [Kind::PowerCut, Kind::Isolation, Kind::EngineCrash, Kind::CoordinatorCrash, Kind::Hold];
        let kind = *self.chance.pick(&kinds);
        let host = if kind == Kind::Hold { COORDINATOR.to_owned() } else { self.primary.clone() };
        let other = if kind == Kind::Hold { self.first() } else { String::new() };
        let word = *self.chance.pick(&["resync clone begins", "resync swap begins", "resync clone done"]);
        self.stage(Some(word), 0..200, vec![Act::Begin(kind, host, other, lasts)]);
        self.stage(None, 2000..6000, vec![]);
    }
}
