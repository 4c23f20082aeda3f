//! An engine in memory: the same promises as a real one, without processes, threads, files or time.
//!
//! All instances of a [`FakeWorld`] know each other, so that clones, streams, divergence and rewinds work between them; links
//! can be cut, engines crashed and hung, disks broken, methods told to fail. Everything happens at once and in order:
//! the same calls give the same results, which a simulation with a seed relies on. Streams bring rows at once too, unless
//! somebody else moves them ([`FakeWorld::stream_by_hand`]).
//!
//! A copy is a list of rows, each with the branch it was written on. A promotion begins a new branch. A position has one
//! origin per branch; its offsets are places in the list.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use regent_common::{
    ids::MemberName,
    position::{IntervalSet, Position},
    topology::{ClusterSpec, ConnectionFormat, Endpoint, EngineOffer, EngineState, HeardPosition, Role},
};
use tokio::sync::watch;

use super::{Context, Driver, DriverError, Factory, FoundInstance, Ground, SettingsCheck};

mod driver;
#[cfg(test)]
mod tests;

/// Engines in memory that know each other. Cloning gives another handle on the same ones.
#[derive(Debug, Clone, Default)]
pub struct FakeWorld {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    instances: BTreeMap<Endpoint, Instance>,
    /// Pairs without a link, both ways.
    cut: BTreeSet<(Endpoint, Endpoint)>,
    /// Methods that are to fail, and how often.
    failures: BTreeMap<(Endpoint, &'static str), u32>,
    branches: u64,
    rows: u64,
    processes: u32,
    /// Rows move only when they are told to.
    by_hand: bool,
    /// What one row counts in a position; 0 for 1.
    row_weight: u64,
}

/// One engine on one node.
#[derive(Debug)]
struct Instance {
    /// Whose it is.
    member: Option<MemberName>,
    data: Option<Copy>,
    incoming: Option<Copy>,
    kept: Vec<Copy>,
    foreign: bool,
    /// What the engine was before it was a member's.
    unmanaged: Option<Unmanaged>,
    dirty: bool,
    /// The running engine, if any.
    running: Option<Running>,
    crashed: bool,
    hung: bool,
    /// Applications are kept out.
    drained: bool,
    disk_broken: bool,
    /// Whether there is no space for two copies.
    short_of_space: bool,
    /// Rows that the stream may bring before it stops; `None` for all.
    stream_limit: Option<u64>,
    wanted: Option<ClusterSpec>,
    changes: watch::Sender<u64>,
}

/// An engine of nobody's.
#[derive(Debug)]
struct Unmanaged {
    /// Where its data is.
    folder: PathBuf,
    upstream: Option<(MemberName, Endpoint)>,
    /// Whether it is a member's by now.
    adopted: bool,
}

/// A copy of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Copy {
    system: u64,
    branch: u64,
    rows: Vec<Row>,
    standby: bool,
    upstream: Option<(MemberName, Endpoint)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    branch: u64,
    /// Unique over the whole world.
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    process: u32,
    role: Role,
}

// === impl FakeWorld ===

impl FakeWorld {
    /// A world without engines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a row as a client of the engine at `endpoint`; its number is the acknowledgement.
    pub fn write(&self, endpoint: &Endpoint) -> Result<u64, String> {
        let mut state = self.lock();
        let number = state.rows + 1;
        let instance = state.instances.get_mut(endpoint).ok_or("nobody listens")?;
        instance.answers()?;
        if instance.running.is_none_or(|running| running.role != Role::Primary) {
            return Err("read-only".to_owned());
        }
        if instance.drained {
            return Err("no login".to_owned());
        }
        if instance.disk_broken {
            return Err("the write does not end".to_owned());
        }
        let copy = instance.data.as_mut().ok_or("no data")?;
        copy.rows.push(Row { branch: copy.branch, number });
        state.rows = number;
        state.stream();
        Ok(number)
    }

    /// The numbers of the rows that a client reads, in order.
    pub fn rows(&self, endpoint: &Endpoint) -> Result<Vec<u64>, String> {
        let state = self.lock();
        let instance = state.instances.get(endpoint).ok_or("nobody listens")?;
        instance.answers()?;
        let copy = instance.data.as_ref().ok_or("no data")?;
        Ok(copy.rows.iter().map(|row| row.number).collect())
    }

    /// Whether a client could have a write acknowledged there now.
    pub fn accepts_writes(&self, endpoint: &Endpoint) -> bool {
        let state = self.lock();
        state.instances.get(endpoint).is_some_and(|instance| {
            instance.answers().is_ok()
                && !instance.disk_broken
                && !instance.drained
                && instance.running.is_some_and(|running| running.role == Role::Primary)
        })
    }

    /// Ends the engine's process, as SIGKILL or a power cut would.
    pub fn crash(&self, endpoint: &Endpoint) {
        self.change(endpoint, |instance| {
            if instance.running.take().is_some() {
                instance.crashed = true;
                instance.changed();
            }
        });
    }

    /// Makes the engine's process live on without answering, or answer again.
    pub fn hang(&self, endpoint: &Endpoint, hung: bool) {
        self.change(endpoint, |instance| instance.hung = hung);
    }

    /// Loses all data of the engine, as a volume that is gone: its process ends.
    pub fn lose_data(&self, endpoint: &Endpoint) {
        self.change(endpoint, |instance| {
            (instance.data, instance.incoming, instance.dirty) = (None, None, false);
            instance.kept.clear();
            if instance.running.take().is_some() {
                instance.crashed = true;
                instance.changed();
            }
        });
    }

    /// Starts the engine on its data as it is, as somebody would who knows nothing of its agent; false when it cannot be.
    pub fn start_by_hand(&self, endpoint: &Endpoint) -> bool {
        let mut state = self.lock();
        let process = state.processes + 1;
        let Some(instance) = state.instances.get_mut(endpoint) else { return false };
        let Some(copy) = instance.data.as_ref().filter(|_| instance.running.is_none() && !instance.dirty) else {
            return false;
        };
        let role = if copy.standby { Role::Replica } else { Role::Primary };
        instance.running = Some(Running { process, role });
        instance.crashed = false;
        instance.changed();
        state.processes = process;
        true
    }

    /// Leaves no space for two copies, or space again: a clone that may removes the old data first.
    pub fn short_of_space(&self, endpoint: &Endpoint, short: bool) {
        self.change(endpoint, |instance| instance.short_of_space = short);
    }

    /// Makes writes to the disk never end, or end again.
    pub fn break_disk(&self, endpoint: &Endpoint, broken: bool) {
        self.change(endpoint, |instance| instance.disk_broken = broken);
    }

    /// Lets the stream to this engine bring at most `rows` more rows; `None` lifts the limit.
    pub fn limit_stream(&self, endpoint: &Endpoint, rows: Option<u64>) {
        self.change(endpoint, |instance| instance.stream_limit = rows);
        self.lock().stream();
    }

    /// From now on a stream brings rows only by [`FakeWorld::advance`], so that a replica lags as somebody else decides.
    pub fn stream_by_hand(&self) {
        self.lock().by_hand = true;
    }

    /// Brings the replica at `endpoint` at most `rows` rows nearer to its upstream, if it streams; returns how many.
    pub fn advance(&self, endpoint: &Endpoint, rows: usize) -> usize {
        let mut state = self.lock();
        if state.is_streaming(endpoint) { state.stream_to(endpoint, rows).0 } else { 0 }
    }

    /// Lets each row count so much in a position, as a row of a real engine counts bytes.
    pub fn weigh_rows(&self, weight: u64) {
        self.lock().row_weight = weight;
    }

    /// The numbers of the rows on the disk of the engine at `endpoint`, whether it runs or not.
    pub fn stored_rows(&self, endpoint: &Endpoint) -> Vec<u64> {
        let state = self.lock();
        let copy = state.instances.get(endpoint).and_then(|instance| instance.data.as_ref());
        copy.map(|copy| copy.rows.iter().map(|row| row.number).collect()).unwrap_or_default()
    }

    /// Whether there is data of a member on the disk of the engine at `endpoint`.
    pub fn has_data(&self, endpoint: &Endpoint) -> bool {
        let own = |instance: &Instance| instance.data.is_some() && !instance.is_nobodys();
        self.lock().instances.get(endpoint).is_some_and(own)
    }

    /// The branch on which the engine at `endpoint` would write; each promotion begins a higher one.
    pub fn branch(&self, endpoint: &Endpoint) -> Option<u64> {
        Some(self.lock().instances.get(endpoint)?.data.as_ref()?.branch)
    }

    /// Cuts the link between two engines, both ways.
    pub fn cut_link(&self, one: &Endpoint, other: &Endpoint) {
        self.lock().cut.insert(pair(one, other));
    }

    /// Restores the link between two engines.
    pub fn restore_link(&self, one: &Endpoint, other: &Endpoint) {
        let mut state = self.lock();
        state.cut.remove(&pair(one, other));
        state.stream();
    }

    /// Lets the next `times` calls of a driver method (its name in the trait) at this engine fail, with nothing changed.
    pub fn fail_next(&self, endpoint: &Endpoint, method: &'static str, times: u32) {
        self.lock().failures.insert((endpoint.clone(), method), times);
    }

    /// Puts data of nobody's into the member's place.
    pub fn put_foreign_data(&self, context: &Context) {
        self.register(context);
        self.change(&endpoint_of(context), |instance| instance.foreign = true);
    }

    /// Starts an engine that is nobody's, with its data in `folder`: as a primary, or as a replica of the one at `upstream`.
    pub fn start_unmanaged(&self, endpoint: &Endpoint, folder: &Path, upstream: Option<&Endpoint>) {
        let mut state = self.lock();
        let stranger = || MemberName::new("unmanaged1").expect("it is a name");
        let upstream = upstream.map(|upstream| (stranger(), upstream.clone()));
        let source = upstream.as_ref().and_then(|(_, upstream)| state.instances.get(upstream)?.data.clone());
        let copy = match source {
            Some(copy) => Copy { standby: true, upstream: upstream.clone(), ..copy },
            None => {
                let (system, branch) = (state.next_branch(), state.next_branch());
                Copy { system, branch, rows: Vec::new(), standby: false, upstream: None }
            }
        };
        state.processes += 1;
        let role = if copy.standby { Role::Replica } else { Role::Primary };
        let process = state.processes;
        let instance = state.instances.entry(endpoint.clone()).or_insert_with(Instance::new);
        instance.unmanaged = Some(Unmanaged { folder: folder.to_owned(), upstream, adopted: false });
        instance.data = Some(copy);
        instance.running = Some(Running { process, role });
    }

    /// Starts an engine that is nobody's and has ended again, as its machine does, and a person who makes a replica anew that has lost
    /// its data; false when there is none.
    pub fn restart_unmanaged(&self, endpoint: &Endpoint) -> bool {
        let replaced = {
            let state = self.lock();
            let Some(instance) = state.instances.get(endpoint) else { return false };
            if !instance.is_nobodys() || instance.running.is_some() {
                return false;
            }
            let unmanaged = instance.unmanaged.as_ref().filter(|_| instance.data.is_none());
            unmanaged.and_then(|unmanaged| Some((unmanaged.folder.clone(), unmanaged.upstream.clone()?.1)))
        };
        match replaced {
            Some((folder, upstream)) => {
                self.start_unmanaged(endpoint, &folder, Some(&upstream));
                true
            }
            None => self.start_by_hand(endpoint),
        }
    }

    /// Leaves the member as an interrupted rewind would.
    pub fn interrupt_rewind(&self, endpoint: &Endpoint) {
        self.change(endpoint, |instance| instance.dirty = true);
    }

    fn change(&self, endpoint: &Endpoint, change: impl FnOnce(&mut Instance)) {
        if let Some(instance) = self.lock().instances.get_mut(endpoint) {
            change(instance);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, context: &Context) {
        let mut state = self.lock();
        let instance = state.instances.entry(endpoint_of(context)).or_insert_with(Instance::new);
        instance.member = Some(context.member.clone());
    }
}

#[async_trait]
impl Factory for FakeWorld {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn offer(&self, _section: Option<&toml::Table>) -> EngineOffer {
        EngineOffer {
            engine: self.name().to_owned(),
            versions: vec!["1.0".to_owned()],
            modes: vec!["primary-replica".to_owned()],
            min_replicas: 0,
            default_replicas: 2,
            max_replicas: 8,
            can_rewind: true,
            forgets_on_crash: false,
            connection_with_tls: None,
            problem: String::new(),
            connection: ConnectionFormat::default(),
        }
    }

    /// The data root stands for the node: what is in it and nobody's is found.
    async fn survey(&self, ground: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError> {
        let state = self.lock();
        let unmanaged = state.instances.iter().filter(|(_, instance)| instance.is_nobodys());
        let found = unmanaged.filter_map(|(endpoint, instance)| {
            let unmanaged = instance.unmanaged.as_ref().filter(|found| found.folder.starts_with(ground.data_root))?;
            let copy = instance.data.as_ref().filter(|_| instance.answers().is_ok())?;
            Some(FoundInstance {
                version: "1.0".to_owned(),
                data_directory: unmanaged.folder.clone(),
                port: endpoint.port,
                replica: copy.standby,
                history: copy.system.to_string(),
                upstream: unmanaged.upstream.as_ref().map(|(_, upstream)| upstream.clone()),
                access_rules: "everybody".to_owned(),
                ..FoundInstance::default()
            })
        });
        Ok(found.collect())
    }

    async fn check_settings(&self, asked: &SettingsCheck<'_>) -> Result<(), DriverError> {
        driver::check_settings(asked.settings)
    }

    fn open(&self, context: Context) -> Result<Arc<dyn Driver>, DriverError> {
        self.register(&context);
        let endpoint = endpoint_of(&context);
        let (world, member, root) = (self.clone(), context.member, context.root);
        Ok(Arc::new(driver::FakeDriver { world, member, root, endpoint, upstream_heard: Mutex::default() }))
    }
}

fn endpoint_of(context: &Context) -> Endpoint {
    Endpoint { host: context.advertise_host.clone(), port: context.port }
}

fn pair(one: &Endpoint, other: &Endpoint) -> (Endpoint, Endpoint) {
    if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) }
}

// === impl State ===

impl State {
    /// The copy of a running engine that `from` can reach.
    fn reach(&self, from: &Endpoint, to: &Endpoint) -> Option<&Copy> {
        let instance = self.instances.get(to)?;
        let linked = from == to || !self.cut.contains(&pair(from, to));
        if linked && instance.answers().is_ok() { instance.data.as_ref() } else { None }
    }

    /// Whether the replica at `endpoint` receives a stream now.
    fn is_streaming(&self, endpoint: &Endpoint) -> bool {
        let Some(instance) = self.instances.get(endpoint) else { return false };
        let Some(copy) = instance.data.as_ref().filter(|copy| copy.standby && instance.running.is_some()) else {
            return false;
        };
        let Some((_, upstream)) = &copy.upstream else { return false };
        self.reach(endpoint, upstream).is_some_and(|source| source.can_feed(copy))
    }

    /// How far the upstream of the streaming replica at `endpoint` has come.
    fn upstream_position(&self, endpoint: &Endpoint) -> Option<HeardPosition> {
        let (member, upstream) = self.instances.get(endpoint)?.data.as_ref()?.upstream.clone()?;
        Some(HeardPosition { member, position: self.reach(endpoint, &upstream)?.position(self.row_weight) })
    }

    /// Brings every streaming replica as far as its upstream, cascades included.
    fn stream(&mut self) {
        if self.by_hand {
            return;
        }
        let endpoints: Vec<Endpoint> = self.instances.keys().cloned().collect();
        let mut moved = true;
        while moved {
            moved = false;
            for endpoint in &endpoints {
                if self.is_streaming(endpoint) {
                    let (taken, changed) = self.stream_to(endpoint, usize::MAX);
                    moved |= taken > 0 || changed;
                }
            }
        }
    }

    /// Brings a streaming replica at most so many rows; returns how many, and whether it is on another branch now.
    fn stream_to(&mut self, endpoint: &Endpoint, rows: usize) -> (usize, bool) {
        let copy = self.instances[endpoint].data.as_ref().expect("it streams, so it has data");
        let (_, upstream) = copy.upstream.clone().expect("it streams, so it has an upstream");
        let source = self.reach(endpoint, &upstream).expect("it streams, so it reaches its upstream");
        let (branch, missing) = (source.branch, source.rows[copy.rows.len()..].to_vec());
        let instance = self.instances.get_mut(endpoint).expect("it was just looked at");
        let limit = instance.stream_limit.unwrap_or(u64::MAX);
        let taken = usize::try_from(limit).unwrap_or(usize::MAX).min(missing.len()).min(rows);
        if let Some(limit) = &mut instance.stream_limit {
            *limit -= taken as u64;
        }
        let copy = instance.data.as_mut().expect("it streams, so it has data");
        copy.rows.extend_from_slice(&missing[..taken]);
        let before = copy.branch;
        if taken == missing.len() {
            copy.branch = branch;
        } else if let Some(last) = copy.rows.last() {
            copy.branch = last.branch;
        }
        (taken, copy.branch != before)
    }

    fn next_branch(&mut self) -> u64 {
        self.branches += 1;
        self.branches
    }
}

// === impl Instance ===

impl Instance {
    fn new() -> Self {
        Self {
            member: None,
            data: None,
            incoming: None,
            kept: Vec::new(),
            foreign: false,
            unmanaged: None,
            dirty: false,
            running: None,
            crashed: false,
            hung: false,
            drained: false,
            disk_broken: false,
            short_of_space: false,
            stream_limit: None,
            wanted: None,
            changes: watch::Sender::new(0),
        }
    }

    /// Whether a running engine is no member's.
    fn is_nobodys(&self) -> bool {
        self.unmanaged.as_ref().is_some_and(|unmanaged| !unmanaged.adopted)
    }

    fn answers(&self) -> Result<(), String> {
        match self.running {
            None => Err("nobody listens".to_owned()),
            Some(_) if self.hung => Err("no answer".to_owned()),
            Some(_) => Ok(()),
        }
    }

    fn state(&self) -> EngineState {
        match (&self.running, self.crashed, &self.data) {
            (Some(_), _, _) if self.hung => EngineState::Hung,
            (Some(_), _, _) => EngineState::Running,
            (None, true, _) => EngineState::Crashed,
            (None, false, None) => EngineState::Absent,
            (None, false, Some(_)) => EngineState::Stopped,
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn end(&mut self) {
        self.crashed = false;
        self.hung = false;
        if self.running.take().is_some() {
            self.changed();
        }
    }
}

// === impl Copy ===

impl Copy {
    /// Whether this copy's rows begin with all of `other`'s. Row numbers are unique, so that one row stands for all before it.
    fn can_feed(&self, other: &Self) -> bool {
        if self.system != other.system {
            return false;
        }
        match other.rows.len().checked_sub(1) {
            None => true,
            Some(last) => self.rows.get(last) == other.rows.last(),
        }
    }

    /// Where the copy stands; each row counts `weight`.
    fn position(&self, weight: u64) -> Position {
        let weight = weight.max(1);
        // The instance itself is one change, so that a copy without rows still has a position.
        let mut origins: BTreeMap<String, Vec<(u64, u64)>> =
            BTreeMap::from([(format!("{}/0", self.system), vec![(0, 1)])]);
        let mut begin = 0;
        for run in self.rows.chunk_by(|one, next| one.branch == next.branch) {
            let end = begin + run.len() as u64;
            let origin = format!("{}/{}", self.system, run[0].branch);
            origins.entry(origin).or_default().push((begin * weight, end * weight));
            begin = end;
        }
        Position::new(
            origins.into_iter().map(|(origin, intervals)| (origin, IntervalSet::from(intervals))),
            format!("branch {} at {}", self.branch, self.rows.len()),
        )
    }
}
