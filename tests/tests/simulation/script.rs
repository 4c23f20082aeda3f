//! A script: faults that are played together, in stages that wait for word from the store, so that they strike at the moment
//! at which a rule of the protocol matters.
//!
//! A script makes such moments frequent and is no judge: what must not happen is the oracle's, as ever. It may say that its faults
//! leave a writer possible, and then the oracle wants one ([`Act::WantWriter`]), if the cluster was whole when the script began: who
//! has not come back from an earlier fault may be the one that is left.

use std::{borrow::Cow, collections::VecDeque, time::Duration};

use super::{
    engine,
    faults::{Fault, Kind},
    hosts::member_on,
    oracle,
    shown::Wish,
    world::Simulation,
};

/// In the place of a host: the candidate of the moment.
pub(crate) const CANDIDATE: &str = "the candidate";
/// How long a script waits at most until it is through.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// What a script does.
pub(crate) enum Act {
    /// Lets a fault begin that ends after that time, unless something ends it before.
    Begin(Kind, String, String, Duration),
    /// Ends all faults of a kind about a host; about all hosts for an empty name.
    End(Kind, String),
    /// Brings a replica all that its upstream has.
    CatchUp(String),
    /// Makes a machine's kernel take so long for every opening of the gate.
    Pace(String, Duration),
    /// Makes every commit of the store take so much longer.
    SlowStore(Duration),
    /// Delivers that many of a hundred answers of the coordinator late.
    LateAnswers(u64),
    /// Delivers steps of this kind for this host late: so much later.
    LateSteps(String, &'static str, Duration),
    /// Delivers steps as they come again.
    StepsAsEver,
    /// Lets every start and promotion of a host's engine take so much longer.
    SlowEngine(String, Duration),
    /// Leaves a host no space for two copies of its data.
    ShortOfSpace(String),
    /// Makes a backup of the store.
    BackUp,
    /// Has the person do something.
    Ask(Wish),
    /// Has root of a machine make its member the primary, and name the others as off.
    Force(String),
    /// Takes note that the script has come so far.
    Mark,
    /// The faults that stand leave somebody who can take writes: there has to be one by now.
    WantWriter(&'static str),
    /// The same, if the agent of this host has handed its lease over.
    WantHandedOver(String),
}

/// A part of a script: waits for word from the store, and a time, and acts.
pub(crate) struct Stage {
    pub(crate) wait: Option<Cow<'static, str>>,
    pub(crate) delay: Duration,
    pub(crate) acts: Vec<Act>,
}

/// A script that is being played.
pub(crate) struct Script {
    stages: VecDeque<Stage>,
    due: Option<Duration>,
    give_up_at: Duration,
    /// Whether nothing was missing when it began.
    began_whole: bool,
}

// === impl Script ===

impl Script {
    /// One that begins now.
    pub(crate) fn new(stages: VecDeque<Stage>, simulation: &Simulation<'_>) -> Self {
        let (give_up_at, began_whole) = (simulation.now() + PATIENCE, simulation.is_whole_in_truth());
        Self { stages, due: None, give_up_at, began_whole }
    }

    /// Goes on; `words` came from the store since the last time. False when it is through.
    pub(crate) fn step(&mut self, simulation: &mut Simulation<'_>, words: &[String], active: &mut Vec<Fault>) -> bool {
        let now = simulation.now();
        let Some(stage) = self.stages.front().filter(|_| now < self.give_up_at) else {
            simulation.calm();
            return false;
        };
        let due = *self.due.get_or_insert_with(|| match &stage.wait {
            None => now + stage.delay,
            Some(_) => Duration::MAX,
        });
        if due == Duration::MAX && stage.wait.as_ref().is_some_and(|wait| words.iter().any(|word| word == wait)) {
            self.due = Some(now + stage.delay);
        }
        // A planned promotion keeps everybody out for a moment: whether there is a writer is seen when it has ended.
        let hands_over = simulation.store.operations().present() == Some("promote");
        let waits = hands_over && stage.acts.iter().any(|act| matches!(act, Act::WantWriter(_)));
        if self.due.is_some_and(|due| now >= due) && !waits {
            let stage = self.stages.pop_front().expect("it was there");
            self.due = None;
            let began_whole = self.began_whole;
            for act in stage.acts.into_iter().filter(|act| began_whole || !matches!(act, Act::WantWriter(_))) {
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
                let host = if host == CANDIDATE { simulation.candidate() } else { Some(host) };
                let other = if other == CANDIDATE { simulation.candidate() } else { Some(other) };
                let (Some(host), Some(other)) = (host, other) else { return };
                if host != other && !simulation.is_beyond_limit(kind, &host, &other) {
                    active.push(Fault::begin(simulation, kind, (host, other), now + lasts));
                }
            }
            Self::End(kind, host) => {
                let host = if host == CANDIDATE { simulation.candidate() } else { Some(host) };
                let Some(host) = host else { return };
                for fault in active.iter_mut().filter(|fault| fault.is(kind, &host)) {
                    fault.until = now;
                }
            }
            Self::CatchUp(host) => drop(simulation.engines.advance(&simulation.machine(&host).endpoint(), 10_000)),
            Self::Pace(host, pace) => simulation.machine(&host).passage.kernel().set_pace(pace),
            Self::SlowStore(takes) => simulation.store.slow(takes),
            Self::LateAnswers(percent) => simulation.deliveries.borrow_mut().late_answers(percent),
            Self::LateSteps(host, action, after) => {
                simulation.deliveries.borrow_mut().late_steps(member_on(&host), action, after);
            }
            Self::StepsAsEver => simulation.deliveries.borrow_mut().steps_as_ever(),
            Self::SlowEngine(host, by) => {
                let host = if host == CANDIDATE { simulation.candidate().unwrap_or_default() } else { host };
                engine::slow(&host, by);
            }
            Self::ShortOfSpace(host) => {
                simulation.engines.short_of_space(&simulation.machine(&host).endpoint(), true);
            }
            Self::Mark => simulation.marked = true,
            Self::BackUp => simulation.store.back_up(),
            Self::Ask(wish) => simulation.wish(wish),
            Self::Force(host) => simulation.force(&host),
            Self::WantHandedOver(host) => {
                let handed_over = simulation.machine(&host).leave.has_handed_over();
                if handed_over && simulation.oracle.able().is_empty() && simulation.is_active() {
                    let detail = format!("nobody accepts writes while the agent of {host} is restarted");
                    simulation.oracle.complain(oracle::Kind::NoWriter, detail);
                }
            }
            Self::WantWriter(when) => {
                if simulation.oracle.able().is_empty() && simulation.is_active() {
                    simulation.oracle.complain(oracle::Kind::NoWriter, format!("nobody accepts writes {when}"));
                }
            }
        }
    }
}
