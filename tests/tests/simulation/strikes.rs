//! Every step of every kind of operation, struck by every kind of fault: one run for each pair, with nothing else amiss.
//!
//! The steps are those that a run without a fault has shown, so that a new step is struck without anybody thinking of it, and a
//! kind that nobody brings about here is missed. What has to hold in the end is the oracle's, as ever: the cluster gets well by
//! itself, or says what a person has to do.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    faults::Kind,
    plays::{Cast, on},
    script::Act,
    shown::Wish,
    world::{self, COORDINATOR, Outcome},
};

/// Nodes of the cluster, so that one can be away, one leave, and two whole copies be left.
pub(crate) const NODES: usize = 4;

/// What one run is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strike {
    /// The kind of operation.
    operation: &'static str,
    /// The step, and what strikes when it begins; `None` to see which steps there are.
    at: Option<(String, Kind)>,
}

thread_local! {
    static STRIKE: RefCell<Option<Strike>> = const { RefCell::new(None) };
}

/// What the run on this thread is for, if that is a strike.
pub(crate) fn on_this_thread() -> Option<Strike> {
    STRIKE.with_borrow(Clone::clone)
}

/// Runs one with this seed.
pub(crate) fn run(seed: u64, strike: &Strike) -> Outcome {
    STRIKE.set(Some(strike.clone()));
    let outcome = world::run(seed, &[]);
    STRIKE.set(None);
    outcome
}

// === impl Strike ===

impl Strike {
    /// The one of this name: KIND/STEP/FAULT, or KIND alone for a run without a fault.
    pub(crate) fn named(name: &str, kinds: &[&'static str]) -> Self {
        let mut parts = name.split('/');
        let wanted = parts.next().unwrap_or_default();
        let operation = *kinds.iter().find(|kind| **kind == wanted).expect("a kind of operation");
        let fault = |text: &str| Kind::all().find(|kind| format!("{kind:?}") == text).expect("a fault's name");
        Self { operation, at: parts.next().zip(parts.next()).map(|(step, text)| (step.to_owned(), fault(text))) }
    }

    /// Whether it comes before there is a cluster.
    pub(crate) fn is_of_creation(&self) -> bool {
        self.operation == "create_cluster" || self.is_of_adoption()
    }

    /// Whether the cluster is made of instances that run already.
    pub(crate) fn is_of_adoption(&self) -> bool {
        self.operation == "adopt_cluster"
    }

    /// Adds the stages that bring the operation about, and those of the fault.
    pub(crate) fn play(&self, cast: &mut Cast<'_>) {
        let (primary, first) = (cast.primary.clone(), cast.first());
        let crash = || on(Kind::EngineCrash, &primary, Duration::from_millis(1));
        // What is put back later is of before the operation.
        cast.stage(None, 0..1, vec![Act::BackUp]);
        match self.operation {
            "create_cluster" | "adopt_cluster" => {}
            "resync" => cast.stage(None, 0..1, vec![Act::Ask(Wish::Resync(first.clone()))]),
            "promote" => cast.stage(None, 0..1, vec![Act::Ask(Wish::Promote(first.clone()))]),
            "remove_member" => cast.stage(None, 0..1, vec![Act::Ask(Wish::Reshape(first.clone()))]),
            "add_member" => {
                cast.stage(None, 0..1, vec![Act::Ask(Wish::Reshape(first.clone()))]);
                cast.stage(
                    Some("remove_member configure done"),
                    500..1000,
                    vec![Act::Ask(Wish::Reshape(first.clone()))],
                );
            }
            "failover" | "rejoin" => cast.stage(None, 0..1, vec![crash()]),
            // A member that was away while another one left has to be told.
            "configure" => {
                let leaving = cast.others[1].clone();
                cast.stage(None, 0..1, vec![on(Kind::AgentCrash, &first, Duration::from_secs(15))]);
                cast.stage(None, 500..1000, vec![Act::Ask(Wish::Reshape(leaving))]);
            }
            "set_allow_list" => cast.stage(None, 0..1, vec![Act::Ask(Wish::Allow)]),
            "delete_cluster" => cast.stage(None, 0..1, vec![Act::Ask(Wish::Delete)]),
            unknown => panic!("nothing brings about an operation {unknown}"),
        }
        match &self.at {
            None => cast.stage(None, 25_000..25_001, vec![]),
            Some((step, fault)) => {
                let mut acts = acts(cast, *fault);
                acts.push(Act::Mark);
                cast.stage_at(format!("{} {step} begins", self.operation), 0..60, acts);
                cast.stage(None, 2000..2001, vec![]);
            }
        }
    }
}

/// A fault of a kind at somebody who takes part.
fn acts(cast: &mut Cast<'_>, kind: Kind) -> Vec<Act> {
    let lasts = cast.seconds(2..9);
    let (primary, first) = (cast.primary.clone(), cast.first());
    let begin = |host: &str, other: &str| vec![Act::Begin(kind, host.to_owned(), other.to_owned(), lasts)];
    let one = match cast.chance.within(0..5) {
        0 | 1 => primary.clone(),
        2 | 3 => first.clone(),
        _ => cast.others[1].clone(),
    };
    match kind {
        Kind::Partition | Kind::OneWay | Kind::Delay | Kind::Hold => {
            let pairs = [(COORDINATOR, one.as_str()), (COORDINATOR, &one), (&primary, &first)];
            let (from, to) = *cast.chance.pick(&pairs);
            if cast.chance.percent(50) { begin(from, to) } else { begin(to, from) }
        }
        Kind::AllPower => {
            let all = std::iter::once(&cast.primary).chain(&cast.others);
            let mut acts: Vec<_> =
                all.map(|host| Act::Begin(Kind::PowerCut, host.clone(), String::new(), lasts)).collect();
            acts.push(Act::Begin(Kind::CoordinatorCrash, COORDINATOR.to_owned(), String::new(), lasts));
            acts
        }
        Kind::CoordinatorCrash | Kind::StoreFailure | Kind::Restored => begin(COORDINATOR, ""),
        // What the primary had and nobody else is lost with its disk, and nobody's fault.
        Kind::DataLost => begin(&first, ""),
        Kind::Isolation
        | Kind::AgentCrash
        | Kind::AgentRestart
        | Kind::AgentPause
        | Kind::MachinePause
        | Kind::Sleep
        | Kind::PowerCut
        | Kind::EngineCrash
        | Kind::EngineHang
        | Kind::StartedByHand
        | Kind::SlowStream
        | Kind::DiskStall
        | Kind::DiskFailure => begin(&one, ""),
    }
}

/// The steps of every kind of operation, as runs without a fault show them.
pub(crate) fn steps(kinds: &[&'static str]) -> BTreeMap<&'static str, BTreeSet<String>> {
    let strikes: Vec<_> = kinds.iter().map(|operation| Strike { operation, at: None }).collect();
    let outcomes = run_all(&strikes, 1);
    let mut steps: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for (strike, outcome) in outcomes {
        assert!(outcome.violations.is_empty(), "{} without a fault: {:?}", strike.operation, outcome.violations);
        let own = outcome
            .steps
            .iter()
            .filter_map(|step| step.strip_prefix(&format!("{} ", strike.operation)).map(str::to_owned));
        steps.insert(strike.operation, own.collect());
    }
    steps
}

/// Every fault at every step.
pub(crate) fn all(steps: &BTreeMap<&'static str, BTreeSet<String>>) -> Vec<Strike> {
    let at = |operation: &'static str, step: &String| {
        Kind::all().map(|kind| Strike { operation, at: Some((step.clone(), kind)) }).collect::<Vec<_>>()
    };
    steps.iter().flat_map(|(operation, steps)| steps.iter().flat_map(|step| at(operation, step))).collect()
}

/// Runs them side by side, each with a seed of its own from `first` on; in their order.
pub(crate) fn run_all(strikes: &[Strike], first: u64) -> Vec<(Strike, Outcome)> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(strike) = strikes.get(place) else { return };
                    let outcome = run(first + place as u64, strike);
                    outcomes.lock().unwrap().push((place, strike.clone(), outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(place, ..)| *place);
    outcomes.into_iter().map(|(_, strike, outcome)| (strike, outcome)).collect()
}

/// The table for people: which faults a step was struck by, and which did not come to it.
pub(crate) fn table(outcomes: &[(Strike, Outcome)]) -> String {
    let mut rows: BTreeMap<(&str, &str), (usize, Vec<String>)> = BTreeMap::new();
    for (strike, outcome) in outcomes {
        let Some((step, fault)) = &strike.at else { continue };
        let (struck, missed) = rows.entry((strike.operation, step)).or_default();
        if outcome.marked {
            *struck += 1;
        } else {
            missed.push(format!("{fault:?}"));
        }
    }
    let mut text = format!("{:<16} {:<12} {:>7}  not reached by\n", "operation", "step", "faults");
    for ((operation, step), (struck, missed)) in rows {
        let _ = writeln!(text, "{operation:<16} {step:<12} {struck:>7}  {}", missed.join(" "));
    }
    for (strike, outcome) in outcomes {
        for violation in &outcome.violations {
            let _ = writeln!(text, "{strike}: {violation}");
            let _ = writeln!(
                text,
                "    REGENT_TEST_STRIKE={strike} REGENT_TEST_SEED={} tests/run simulation",
                outcome.seed
            );
        }
    }
    let person = outcomes.iter().filter(|(_, outcome)| outcome.person.is_some()).count();
    let _ = writeln!(text, "{} runs, {person} of them ended with a step for a person", outcomes.len());
    text
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some((step, fault)) => write!(f, "{}/{step}/{fault:?}", self.operation),
            None => write!(f, "{}", self.operation),
        }
    }
}
