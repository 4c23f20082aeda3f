//! What becomes of the coordinator's messages that have arrived at an agent: they are taken at once, again, or only later. The
//! simulated network is a byte stream, which does none of that to a message; proxies, retries and processes that stand still do.

use std::time::Duration;

use regent_common::chance::{Delivery, Message};

use super::{chance::Chance, themes::Theme};

/// In how many of a hundred cases a step comes again, and in how many of these it comes only late.
const STEPS: (u64, u64) = (4, 25);

/// Decides.
pub(crate) struct Deliveries {
    answers: Chance,
    steps: Chance,
    /// In how many of a hundred cases an answer comes again.
    replays: u64,
    /// In how many of a hundred cases an answer comes late, by a script's wish.
    late_answers: u64,
    /// The member and the kind of step that comes late, and by how much, by a script's wish.
    late_steps: Option<(String, &'static str, Duration)>,
}

// === impl Deliveries ===

impl Deliveries {
    /// Those of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            answers: Chance::of(seed, "deliveries"),
            steps: Chance::of(seed, "deliveries of steps"),
            replays: Theme::of(seed).replays(),
            late_answers: 0,
            late_steps: None,
        }
    }

    /// Delivers so many of a hundred answers late.
    pub(crate) fn late_answers(&mut self, percent: u64) {
        self.late_answers = percent;
    }

    /// Delivers a member's steps of one kind so much later.
    pub(crate) fn late_steps(&mut self, member: String, action: &'static str, after: Duration) {
        self.late_steps = Some((member, action, after));
    }

    /// Delivers steps as they come again.
    pub(crate) fn steps_as_ever(&mut self) {
        self.late_steps = None;
    }

    /// Ends what scripts wished.
    pub(crate) fn calm(&mut self) {
        self.late_answers = 0;
        self.steps_as_ever();
    }

    /// When a message is taken.
    pub(crate) fn decide(&mut self, message: Message<'_>) -> Delivery {
        match message {
            Message::Answer => self.decide_on_answer(),
            Message::Step { member, action } => self.decide_on_step(member, action),
        }
    }

    fn decide_on_answer(&mut self) -> Delivery {
        let chance = &mut self.answers;
        if self.late_answers > 0 {
            let again = Some(chance.millis(1000..3000));
            return if chance.percent(self.late_answers) { Delivery { now: false, again } } else { Delivery::ONCE };
        }
        if !chance.percent(self.replays) {
            return Delivery::ONCE;
        }
        Delivery { now: chance.percent(70), again: Some(chance.millis(300..4000)) }
    }

    fn decide_on_step(&mut self, member: &str, action: &str) -> Delivery {
        if let Some((late, kind, after)) = &self.late_steps
            && late == member
            && *kind == action
        {
            return Delivery { now: false, again: Some(*after) };
        }
        let chance = &mut self.steps;
        if !chance.percent(STEPS.0) {
            return Delivery::ONCE;
        }
        // One that comes only late is waited for; one that comes again is nobody's any more.
        if chance.percent(STEPS.1) {
            return Delivery { now: false, again: Some(chance.millis(100..1500)) };
        }
        Delivery { now: true, again: Some(chance.millis(200..15_000)) }
    }
}
