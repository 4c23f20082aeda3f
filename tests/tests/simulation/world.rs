//! One simulation: the hosts, the engines, the clients, what goes wrong, and the judgement.
//!
//! Between two steps of 10 ms of virtual time the world beside the daemons goes on: streams bring rows, clients write, faults begin
//! and end, the oracle looks. All of it runs on one thread and draws from the seed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use regent_agent::engine::fake::FakeWorld;
use regent_common::{chance::repeatable, mutation, mutation::Rule};
use regent_coordinator::model::cluster::{MemberState, Phase};
use turmoil::Sim;
use ulid::Ulid;

use super::{
    chance::Chance,
    deliveries::Deliveries,
    engine,
    faults::{self, Fault},
    hosts,
    limits::PutBack,
    machine::Machine,
    network::Network,
    oracle::{Kind, MAX_LAG_ROWS, Oracle, Violation},
    script::Script,
    shown::{Shown, Wish},
    store::StoreDisk,
    strikes,
    themes::Theme,
    time,
    trace::{self, traced},
    writers::Writers,
};

/// Most nodes of a cluster.
pub(crate) const MOST_NODES: usize = 5;
/// Host of the coordinator.
pub(crate) const COORDINATOR: &str = "coordinator";
/// Host of the clients.
pub(crate) const CLIENTS: &str = "clients";
/// Name of the cluster.
pub(crate) const CLUSTER: &str = "db";

const TICK: Duration = Duration::from_millis(10);
/// Shortest time of a simulation, and fewest acknowledged rows.
const LEAST: (Duration, usize) = (Duration::from_secs(30), 100);
/// How long a script waits for a cluster that is well.
const CALM: Duration = Duration::from_secs(20);
/// How long a cluster may take to be well after all faults.
const RECOVERY: Duration = Duration::from_secs(180);
/// What a row weighs: so many are what the policy lets a failover lose.
const ROW_WEIGHT: u64 = 16 * 1024 * 1024 / MAX_LAG_ROWS as u64;
/// What `cluster show` says when only a person can go on.
const A_PERSON: &[&str] = &["a person must", "would be lost", "in quarantine", "needs a resync"];

/// What one seed came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) violations: Vec<Violation>,
    pub(crate) trace: Vec<String>,
    pub(crate) acknowledged: usize,
    pub(crate) lost: usize,
    pub(crate) failovers: usize,
    pub(crate) virtual_time: Duration,
    /// How often which fault struck in which state.
    pub(crate) reached: BTreeMap<(faults::Kind, &'static str), usize>,
    /// What a person was told to do, when the end was that.
    pub(crate) person: Option<String>,
    /// Steps of operations that have begun, as `KIND STEP`.
    pub(crate) steps: BTreeSet<String>,
    /// Whether a script came to its mark.
    pub(crate) marked: bool,
}

/// One simulation.
pub(crate) struct Simulation<'a> {
    pub(crate) sim: Sim<'a>,
    pub(crate) machines: Vec<Arc<Machine>>,
    pub(crate) network: Network,
    pub(crate) engines: FakeWorld,
    pub(crate) store: StoreDisk,
    /// What becomes of messages that have arrived.
    pub(crate) deliveries: Rc<RefCell<Deliveries>>,
    shown: Shown,
    writers: Writers,
    pub(crate) oracle: Oracle,
    chance: Chance,
    theme: Theme,
    streams: Chance,
    /// Reasons for which a host's process is down, and an engine hangs.
    pub(crate) down: BTreeMap<String, u32>,
    pub(crate) hung: BTreeMap<String, u32>,
    pub(crate) slow_streams: BTreeMap<String, u32>,
    pub(crate) put_back: PutBack,
    /// When whose data was lost.
    pub(crate) lost_at: BTreeMap<String, Duration>,
    pub(crate) reached: BTreeMap<(faults::Kind, &'static str), usize>,
    /// How often an agent was told to end and is not to be back yet, and whose process has ended so.
    pub(crate) leaving: BTreeMap<String, u32>,
    pub(crate) left: BTreeSet<String>,
    /// Whether a script came to its mark.
    pub(crate) marked: bool,
}

/// Runs a seed, with rules broken or none.
pub(crate) fn run(seed: u64, broken: &[Rule]) -> Outcome {
    trace::take();
    time::set_between(Duration::ZERO);
    mutation::break_on_this_thread(broken);
    let mut ids = Chance::of(seed, "ids");
    let next = move || {
        let millis = u64::try_from(time::wall(time::now()).as_millisecond()).unwrap_or(0);
        Ulid::from_parts(millis, u128::from(ids.next()) << 16)
    };
    repeatable::use_on_this_thread(Some(Box::new(next)));
    let deliveries = Rc::new(RefCell::new(Deliveries::new(seed)));
    let deciding = Rc::clone(&deliveries);
    repeatable::deliver_on_this_thread(Some(Box::new(move |message| deciding.borrow_mut().decide(message))));
    let simulated = catch_unwind(AssertUnwindSafe(|| Simulation::new(seed, deliveries).run()));
    let mut outcome = simulated.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let detail = format!("panic: {}", text.unwrap_or_default());
        Outcome { violations: vec![Violation { kind: Kind::Broken, detail }], ..Outcome::default() }
    });
    repeatable::use_on_this_thread(None);
    repeatable::deliver_on_this_thread(None);
    mutation::break_on_this_thread(&[]);
    engine::forget();
    outcome.seed = seed;
    outcome.trace = trace::take();
    outcome
}

// === impl Simulation ===

impl<'a> Simulation<'a> {
    fn new(seed: u64, deliveries: Rc<RefCell<Deliveries>>) -> Self {
        let mut chance = Chance::of(seed, "world");
        let theme = Theme::of(seed);
        let names: Vec<String> = (1..=theme.nodes(&mut chance)).map(|number| format!("n{number}")).collect();
        let machines: Vec<_> = names.iter().map(|name| Arc::new(Machine::new(name, seed))).collect();
        let own = Arc::new(Machine::new(COORDINATOR, seed));
        let engines = FakeWorld::new();
        engines.stream_by_hand();
        engines.weigh_rows(ROW_WEIGHT);
        let stalls = machines.iter().map(|machine| (machine.name.clone(), machine.stalls.clone())).collect();
        engine::use_on_this_thread(engines.clone(), stalls, seed);
        let store = StoreDisk::new(seed);
        let (shown, hosts) = (Shown::default(), [COORDINATOR.to_owned(), CLIENTS.to_owned()]);
        let network = Network::new(hosts.into_iter().chain(names.iter().cloned()).collect());

        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(24 * 3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(8))
            .tcp_capacity(4096)
            .build();
        let (disk, installed) = (store.clone(), machines.clone());
        sim.host(COORDINATOR, move || {
            let (own, disk, installed) = (own.clone(), disk.clone(), installed.clone());
            async move {
                if disk.is_empty() {
                    hosts::install(&disk.open(), &installed).await;
                }
                hosts::coordinator(own, disk).await
            }
        });
        for machine in &machines {
            let machine = machine.clone();
            let beside = engines.clone();
            sim.host(machine.name.clone(), move || hosts::agent(machine.clone(), beside.clone()));
        }
        let (nodes, person) = (names, shown.clone());
        sim.host(CLIENTS, move || hosts::person(nodes.clone(), person.clone(), seed));
        if strikes::on_this_thread().is_some_and(|strike| strike.is_of_adoption()) {
            let primary = machines[0].endpoint();
            for machine in &machines {
                let upstream = (machine.endpoint() != primary).then_some(&primary);
                engines.start_unmanaged(&machine.endpoint(), &machine.data_root().join("unmanaged"), upstream);
            }
        }
        let writers = Writers::new(machines.len(), seed);
        let streams = Chance::of(seed, "streams");
        let (down, hung, slow_streams, put_back, lost_at, reached) = Default::default();
        let oracle = Oracle::default();
        Self {
            sim,
            machines,
            network,
            engines,
            store,
            deliveries,
            shown,
            writers,
            oracle,
            chance,
            theme,
            streams,
            down,
            hung,
            slow_streams,
            put_back,
            lost_at,
            reached,
            leaving: BTreeMap::new(),
            left: BTreeSet::new(),
            marked: false,
        }
    }

    fn run(mut self) -> Outcome {
        self.follow_network();
        self.shown.disturb(true);
        let mut chance = Chance::of(self.chance.next(), "faults");
        let of_creation = strikes::on_this_thread().is_some_and(|strike| strike.is_of_creation());
        let early = chance.percent(25) && self.theme != Theme::Struck || of_creation;
        // What is played together takes longer than one fault.
        let wanted = match self.theme {
            Theme::Free => chance.within(4..25),
            Theme::Struck => 1,
            _ => chance.within(2..6),
        };
        let begin = self.live_until(Duration::from_secs(60), |world| early || world.is_active());
        let mut active: Vec<Fault> = Vec::new();
        let mut script: Option<Script> = None;
        let mut struck = 0;
        let mut calm_by = Duration::MAX;
        let mut next = begin + if of_creation { Duration::ZERO } else { chance.millis(200..3000) };
        while (struck < wanted || script.is_some()) && self.oracle.violations().is_empty() {
            self.step();
            self.end_faults(&mut active);
            let words = self.store.take_words();
            self.go_on_with_put_back(&words);
            if let Some(playing) = &mut script {
                if playing.step(&mut self, &words, &mut active) {
                    continue;
                }
                script = None;
                next = self.now() + chance.millis(600..6000);
            }
            if self.now() >= next {
                // A script begins at a cluster that is well, mostly: that is waited for.
                calm_by = calm_by.min(self.now() + CALM);
                if self.theme != Theme::Free
                    && !of_creation
                    && self.now() < calm_by
                    && !(active.is_empty() && self.is_whole())
                {
                    continue;
                }
                calm_by = Duration::MAX;
                struck += 1;
                if struck == 1 || chance.percent(75) {
                    script = self.theme.script(&self, &mut chance);
                }
                if script.is_some() {
                    continue;
                }
                active.extend(faults::strike(&mut self, &mut chance));
                next = self.now() + if chance.percent(35) { chance.millis(10..600) } else { chance.millis(600..6000) };
            }
            if chance.within(0..400) == 0 {
                self.store.back_up();
            }
        }
        self.calm();
        let standing_by = |world: &Self| matches!(world.put_back, PutBack::Wanted { .. });
        while (!active.is_empty() || standing_by(&self)) && self.oracle.violations().is_empty() {
            self.step();
            self.end_faults(&mut active);
            let words = self.store.take_words();
            self.go_on_with_put_back(&words);
        }
        traced!("all faults are over");
        self.shown.disturb(false);
        let person = self.recover();
        Outcome {
            violations: self.oracle.violations().to_vec(),
            acknowledged: self.oracle.acknowledged(),
            lost: self.oracle.lost(),
            failovers: self.store.operations().ended("failover"),
            virtual_time: self.now(),
            reached: self.reached,
            steps: self.store.operations().begun,
            marked: self.marked,
            person,
            ..Outcome::default()
        }
    }

    /// Ends what a script has made slow.
    pub(crate) fn calm(&self) {
        self.machines.iter().for_each(|machine| machine.passage.kernel().set_pace(Duration::ZERO));
        self.store.slow(Duration::ZERO);
        self.deliveries.borrow_mut().calm();
        engine::calm();
        for machine in &self.machines {
            self.engines.short_of_space(&machine.endpoint(), false);
        }
    }

    /// Whether nothing is missing: every member serves and is in an electorate that was acknowledged, and nothing runs.
    fn is_whole(&self) -> bool {
        let whole = self.store.cluster().is_some_and(|cluster| {
            let all = cluster.members.values().all(|member| member.state == MemberState::Ready);
            let reign = cluster.reign.as_ref().filter(|_| cluster.phase == Phase::Active && cluster.primary.is_some());
            all && reign.is_some_and(|reign| reign.promotable().len() + 1 == cluster.members.len())
        });
        whole && self.oracle.able().len() == 1 && self.store.operations().running().is_empty()
    }

    /// The same, and every engine answers and has nearly all rows, be that known to the coordinator or not.
    pub(crate) fn is_whole_in_truth(&self) -> bool {
        let rows: Option<Vec<usize>> =
            self.machines.iter().map(|machine| Some(self.engines.rows(&machine.endpoint()).ok()?.len())).collect();
        let lag = |rows: Vec<usize>| rows.iter().max()?.checked_sub(*rows.iter().min()?);
        self.is_whole() && rows.and_then(lag).is_some_and(|lag| lag <= MAX_LAG_ROWS)
    }

    /// Gives the person something to do.
    pub(crate) fn wish(&self, wish: Wish) {
        self.shown.wish(wish);
    }

    fn end_faults(&mut self, active: &mut Vec<Fault>) {
        let now = self.now();
        let (over, left): (Vec<_>, Vec<_>) = active.drain(..).partition(|fault| fault.until <= now);
        *active = left;
        for fault in over {
            fault.end(self);
        }
    }

    /// Waits until all is well, and accounts for every row; what a person is told when that is the end.
    fn recover(&mut self) -> Option<String> {
        let begin = self.now();
        let end = self.live_until(RECOVERY, |world| {
            world.is_well(begin) && world.now() >= LEAST.0 && world.oracle.acknowledged() >= LEAST.1
        });
        if !self.oracle.violations().is_empty() {
            return None;
        }
        let well = self.is_well(begin);
        let said = self.shown.said();
        if !well {
            let named = A_PERSON.iter().any(|words| said.contains(words));
            let running = self.store.operations().running();
            if self.oracle.able().is_empty() && !named {
                self.oracle
                    .complain(Kind::NoPrimary, format!("{} s after all faults: {said}", (end - begin).as_secs()));
            } else if !running.is_empty() {
                self.oracle.complain(Kind::OperationNeverEnds, format!("{}: {said}", running.join(", ")));
            } else if !named {
                self.oracle.complain(Kind::NoPrimary, format!("a primary, but not well: {said}"));
            }
        }
        if let [primary] = *self.oracle.able() {
            let rows = self.engines.stored_rows(&self.machines[primary].endpoint());
            let name = self.machines[primary].name.clone();
            self.oracle.account(&name, &rows);
        }
        (!well).then_some(said)
    }

    /// Goes on until something holds, at most for so long; the time then.
    fn live_until(&mut self, at_most: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let end = self.now() + at_most;
        while self.now() < end && !holds(self) && self.oracle.violations().is_empty() {
            self.step();
        }
        self.now()
    }

    fn step(&mut self) {
        let before = self.store.exists();
        if let Err(error) = self.sim.step() {
            self.oracle.complain(Kind::Broken, error.to_string());
        }
        let now = self.sim.elapsed();
        time::set_between(now);
        self.end_all_left();
        if before && !self.store.exists() {
            self.oracle.forget_rows();
        }
        self.judge_removals();
        for machine in self.machines.iter().filter(|machine| machine.stalls.runs()) {
            // What is nobody's is started again by its machine, as Debian's units are at its boot.
            self.engines.restart_unmanaged(&machine.endpoint());
        }
        self.stream();
        let rows = self.writers.step(now, &self.engines, &self.network, &self.machines);
        self.oracle.look(&self.engines, &self.machines);
        // What is left of a cluster that is gone may take writes until it is found; nobody was promised anything of them.
        let rows = if self.store.exists() { rows } else { Vec::new() };
        self.oracle.note(rows, &self.machines);
        for names in self.store.take_prepared() {
            let rows =
                |member: &str| match self.store.cluster().as_ref().and_then(|c| c.members.get(&member.parse().ok()?)) {
                    Some(record) => {
                        let machine = self.machines.iter().find(|machine| machine.name == record.node.as_str());
                        machine.map(|machine| self.engines.stored_rows(&machine.endpoint())).unwrap_or_default()
                    }
                    None => Vec::new(),
                };
            self.oracle.prepared(&names, rows);
        }
    }

    fn stream(&mut self) {
        for machine in &self.machines {
            let slow = self.slow_streams.get(&machine.name).is_some_and(|reasons| *reasons > 0);
            // A burst every few steps, so that an acknowledged row is mostly, but not always, on a replica soon.
            let (often, rows) = if slow { (8, 1..2) } else { (45, 1..12) };
            if self.streams.percent(often) {
                let rows = usize::try_from(self.streams.within(rows)).expect("a small number");
                self.engines.advance(&machine.endpoint(), rows);
            }
        }
    }

    /// Virtual time.
    pub(crate) fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Whether the cluster is made.
    pub(crate) fn is_active(&self) -> bool {
        self.store.cluster().is_some_and(|cluster| cluster.phase == Phase::Active)
    }

    /// Whether the person saw a healthy cluster after `begin`, and it takes writes and runs nothing.
    fn is_well(&self, begin: Duration) -> bool {
        let writes = self.oracle.last_acknowledged().is_some_and(|at| at + Duration::from_secs(1) >= self.now());
        self.shown.is_healthy_since(begin + Duration::from_secs(2))
            && self.oracle.able().len() == 1
            && writes
            && self.store.operations().running().is_empty()
    }
}
