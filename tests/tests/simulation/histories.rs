//! Longer scripts: histories at whose end one rule alone stands between the cluster and a loss, because what else would have
//! helped has been taken away before.

use std::time::Duration;

use super::{
    faults::Kind,
    plays::{AWAY, Cast, UNTIL_ENDED, crash, cut, on},
    script::{Act, CANDIDATE},
    shown::Wish,
    world::{CLIENTS, COORDINATOR},
};

/// How much later a step comes that is late: after whatever was done instead of it.
const MUCH_LATER: Duration = Duration::from_secs(19);
/// How long a promotion may take that nobody waits for.
const LONG_PROMOTION: Duration = Duration::from_secs(24);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("seconds")
}

// === impl Cast ===

impl Cast<'_> {
    /// The first of the others is out of the electorate, which is acknowledged, and has all rows.
    fn left_alone(&mut self, then: Vec<Act>) {
        let first = self.first();
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &first, UNTIL_ENDED)]);
        self.stage(Some("leaves"), 0..1, vec![]);
        let mut acts = vec![Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first)];
        acts.extend(then);
        self.stage(Some("acknowledged"), 0..300, acts);
    }

    /// The primary is kept from everybody for long.
    fn out_of_sight(&self) -> Vec<Act> {
        vec![cut(&self.primary, COORDINATOR, AWAY / 2), cut(&self.primary, &self.others[0], AWAY / 2)]
    }

    /// A primary that nobody could replace loses its power, a person vouches for that and promotes the other member; the engine
    /// comes up with the machine, and its agent hears nobody.
    pub(super) fn off_by_word(&mut self) {
        let primary = self.primary.clone();
        self.left_alone(vec![on(Kind::PowerCut, &primary, AWAY)]);
        self.stage(None, 2500..3500, vec![Act::Ask(Wish::Failover { off: Some(primary.clone()) })]);
        let mut acts = self.out_of_sight();
        acts.push(Act::End(Kind::PowerCut, primary.clone()));
        self.stage(Some("failover promote done"), 0..500, acts);
        self.stage(None, 1200..2500, vec![on(Kind::StartedByHand, &primary, crash())]);
        self.stage(None, 3000..4000, vec![]);
    }

    /// A primary that nobody could replace has a dead engine and a disk that hangs: a fence that is answered all the same is
    /// forgotten with the agent's process, and a person has promoted the other member on the strength of it.
    pub(super) fn fenced_on_paper(&mut self) {
        let primary = self.primary.clone();
        self.left_alone(vec![on(Kind::DiskStall, &primary, AWAY), on(Kind::EngineCrash, &primary, crash())]);
        self.stage(Some("failover fence done"), 0..1, vec![on(Kind::AgentCrash, &primary, AWAY)]);
        self.stage(None, 9000..10_000, vec![]);
        for _ in 0..6 {
            self.stage(None, 1200..1500, vec![Act::Ask(Wish::Failover { off: None })]);
        }
        let mut acts = self.out_of_sight();
        acts.push(Act::End(Kind::DiskStall, primary.clone()));
        acts.push(Act::End(Kind::AgentCrash, primary.clone()));
        self.stage(None, 0..1, acts);
        self.stage(None, 1200..2500, vec![on(Kind::StartedByHand, &primary, crash())]);
        self.stage(None, 3000..4000, vec![]);
    }

    /// The only member that was prepared dies before its promotion arrives, says that it never reigned, and is gone; the one that
    /// was not prepared then is back, and belonged to the electorate of who reigned.
    pub(super) fn never_reigned(&mut self) {
        let (first, second, primary) = (self.first(), self.others[1].clone(), self.primary.clone());
        // Who lacked more than the policy lets a failover lose would not take over.
        let acts = vec![
            Act::CatchUp(first.clone()),
            cut(&first, COORDINATOR, UNTIL_ENDED),
            Act::SlowStore(Duration::from_millis(60)),
            on(Kind::DiskStall, &primary, AWAY * 2),
            on(Kind::EngineCrash, &primary, crash()),
        ];
        self.stage(None, 0..1, acts);
        let hold = Act::Begin(Kind::Hold, second.clone(), COORDINATOR.to_owned(), UNTIL_ENDED);
        self.stage(Some("failover prepare coming"), 0..1, vec![hold]);
        let acts = vec![Act::SlowStore(Duration::ZERO), on(Kind::AgentCrash, &second, UNTIL_ENDED)];
        self.stage(Some("failover promote begins"), 20..100, acts);
        self.stage(None, 100..200, vec![Act::End(Kind::Hold, second.clone())]);
        self.stage(None, 10_500..11_500, vec![Act::End(Kind::Partition, first)]);
        self.stage(None, 2500..3000, vec![Act::End(Kind::AgentCrash, second.clone())]);
        self.stage(Some("fenced"), 0..1, vec![on(Kind::PowerCut, &second, AWAY)]);
        let wanted = Act::WantWriter("although only one that never reigned is away");
        let acts = vec![wanted, Act::End(Kind::PowerCut, second), Act::End(Kind::DiskStall, primary)];
        self.stage(None, 10_000..11_000, acts);
    }

    /// A primary that was given up meets the other member and the coordinator again before that member is prepared, so that it is
    /// endorsed anew, and does not hear what is answered to its heartbeats: only its own preparation ends its reign.
    pub(super) fn old_primary_back(&mut self) {
        let (first, primary, long) = (self.first(), self.primary.clone(), self.long());
        let slow = self.chance.millis(700..1100);
        // What is held arrives: a connection that lost what was sent would take too long to be made anew.
        let held = Act::Begin(Kind::Hold, primary.clone(), COORDINATOR.to_owned(), long);
        self.stage(None, 0..1, vec![held, cut(&first, &primary, UNTIL_ENDED), Act::SlowStore(slow)]);
        let acts = vec![
            Act::LateAnswers(100),
            Act::End(Kind::Partition, first.clone()),
            Act::End(Kind::Hold, primary.clone()),
        ];
        self.stage(Some("failover"), 0..1, acts);
        let acts = vec![Act::SlowStore(Duration::ZERO), cut(&primary, &first, long)];
        self.stage(Some("failover prepare begins"), 50..160, acts);
        self.stage(None, 4000..6000, vec![]);
    }

    /// A member that had diverged is to be rewound, and the step is under way when its operation is given up. Another operation
    /// rewinds it. When the step arrives the member serves: a rewind that breaks off then leaves nobody who could take over.
    pub(super) fn late_step(&mut self) {
        let (first, primary) = (self.first(), self.primary.clone());
        self.stage(None, 0..1, vec![on(Kind::Isolation, &primary, UNTIL_ENDED)]);
        let late = Act::LateSteps(primary.clone(), "rewind", MUCH_LATER);
        let acts = vec![late, Act::End(Kind::Isolation, primary.clone())];
        self.stage(Some("failover promote done"), 0..300, acts);
        let soon = 200;
        let unheard = cut(&primary, COORDINATOR, Duration::from_secs(11));
        self.stage(Some("rejoin restore begins"), soon..soon + 1, vec![Act::StepsAsEver, unheard]);
        let arrives = millis(MUCH_LATER) - soon + 40;
        let acts = vec![on(Kind::AgentCrash, &primary, Duration::from_secs(1)), on(Kind::PowerCut, &first, AWAY)];
        self.stage(None, arrives..arrives + 40, acts);
        let wanted = Act::WantWriter("although the only member that is left had been brought back");
        self.stage(None, 9000..10_000, vec![wanted, Act::End(Kind::PowerCut, first)]);
    }

    /// A candidate's engine takes long to become writable; when it does, another reigns, and the candidate follows that one.
    pub(super) fn long_promotion(&mut self) {
        self.stage(None, 0..1, vec![on(Kind::PowerCut, &self.primary, AWAY)]);
        let slow = Act::SlowEngine(CANDIDATE.to_owned(), LONG_PROMOTION);
        self.stage(Some("failover promote begins"), 0..1, vec![slow]);
        self.stage(None, 400..700, vec![on(Kind::Isolation, CANDIDATE, AWAY)]);
        self.stage(Some("failover promote done"), 0..300, vec![Act::End(Kind::Isolation, String::new())]);
        self.stage(None, 14_000..15_000, vec![]);
    }

    /// The copy of a member is to be replaced by a step that is late, and there is no space for two; the copy that is to survive
    /// is lost meanwhile.
    pub(super) fn source_lost(&mut self) {
        let (first, primary) = (self.first(), self.primary.clone());
        let late = self.seconds(3..6);
        let acts = vec![
            Act::ShortOfSpace(first.clone()),
            Act::LateSteps(first.clone(), "clone", late),
            Act::Ask(Wish::Resync(first)),
        ];
        self.stage(None, 0..1, acts);
        self.stage(Some("resync clone begins"), 300..900, vec![on(Kind::DataLost, &primary, crash())]);
        self.stage(None, 9000..10_000, vec![Act::Ask(Wish::Failover { off: None })]);
        self.stage(None, 4000..6000, vec![]);
    }

    /// A member that lags behind the others is prepared, and the old primary goes on streaming to it: what it would receive then
    /// its candidate has not.
    pub(super) fn stream_goes_on(&mut self) {
        let (first, second, primary, long) = (self.first(), self.others[1].clone(), self.primary.clone(), self.long());
        self.stage(None, 0..1, vec![on(Kind::SlowStream, &second, UNTIL_ENDED)]);
        let acts = vec![
            cut(&primary, COORDINATOR, long),
            cut(&primary, &first, long),
            Act::SlowStore(Duration::from_millis(150)),
        ];
        self.stage(None, 700..1000, acts);
        self.stage(None, 300..500, vec![cut(CLIENTS, &primary, long)]);
        let acts = vec![Act::End(Kind::SlowStream, second.clone()), Act::CatchUp(second)];
        self.stage(Some("failover prepare coming"), 0..1, acts);
        self.stage(None, 2000..3000, vec![]);
    }

    /// A primary that has acknowledged that it has nobody to ask is given a coordinator whose store still has a member to promote.
    pub(super) fn old_electorate_put_back(&mut self) {
        let (first, primary) = (self.first(), self.primary.clone());
        let (brief, long) = (self.brief(), self.long());
        self.stage(None, 0..1, vec![Act::BackUp, on(Kind::SlowStream, &first, UNTIL_ENDED)]);
        self.stage(Some("leaves"), 0..1, vec![]);
        let back = on(Kind::Restored, COORDINATOR, brief);
        let acts = vec![back, Act::End(Kind::SlowStream, first.clone()), Act::CatchUp(first.clone())];
        self.stage(Some("acknowledged"), 100..700, acts);
        let acts = vec![Act::CatchUp(first.clone()), cut(&primary, &first, long), cut(&primary, COORDINATOR, long)];
        self.stage(None, 11_500..13_000, acts);
        self.stage(None, 5000..6000, vec![]);
    }

    /// No coordinator can be brought back, and of the members one is left: root of its machine makes it the primary. A coordinator
    /// is back after all and takes it over, and the others come back.
    pub(super) fn forced(&mut self) {
        let first = self.first();
        let away: Vec<String> = self.others[1..].iter().chain([&self.primary]).cloned().collect();
        let mut acts: Vec<Act> = away.iter().map(|host| on(Kind::PowerCut, host, AWAY)).collect();
        acts.push(on(Kind::CoordinatorCrash, COORDINATOR, AWAY));
        self.stage(None, 0..1, acts);
        self.stage(None, 7000..9000, vec![Act::Force(first)]);
        let back = vec![
            Act::WantWriter("although root of the only machine that is left has said so"),
            Act::End(Kind::CoordinatorCrash, COORDINATOR.to_owned()),
        ];
        self.stage(None, 5000..7000, back);
        self.stage(Some("ADOPTED"), 0..2000, vec![Act::End(Kind::PowerCut, String::new())]);
        self.stage(None, 3000..6000, vec![]);
    }
}
