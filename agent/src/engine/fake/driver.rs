//! The driver interface over an instance of a [`FakeWorld`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use regent_common::{
    ids::MemberName,
    position::Position,
    topology::{ClusterSpec, Endpoint, EngineObservation, EngineState, HeardPosition, Peer, Progress, Role, Ternary},
};
use tokio::sync::watch;

use super::{Copy, FakeWorld, Instance, Running, State};
use crate::engine::{CloneOptions, Cloned, Driver, DriverError, Flush, StartAs, Stop, Work};

/// Settings that the fake engine knows.
const SETTINGS: &[&str] = &["shared_buffers", "max_connections", "flavor"];

#[derive(Debug)]
pub(super) struct FakeDriver {
    pub(super) world: FakeWorld,
    pub(super) member: MemberName,
    pub(super) root: PathBuf,
    pub(super) endpoint: Endpoint,
    pub(super) upstream_heard: Mutex<Option<HeardPosition>>,
}

/// What a method works on.
struct Hand<'a> {
    state: &'a mut State,
    driver: &'a FakeDriver,
}

// === impl FakeDriver ===

impl FakeDriver {
    /// Runs one method: at once, after the failures that were ordered for it.
    fn act<T>(
        &self,
        method: &'static str,
        act: impl FnOnce(&mut Hand<'_>) -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        let mut state = self.world.lock();
        if let Some(left) = state.failures.get_mut(&(self.endpoint.clone(), method))
            && *left > 0
        {
            *left -= 1;
            return Err(refused(method, "it was told to fail"));
        }
        let result = act(&mut Hand { state: &mut state, driver: self });
        state.stream();
        result
    }
}

// === impl Hand ===

impl Hand<'_> {
    fn instance(&mut self) -> &mut Instance {
        self.state.instances.get_mut(&self.driver.endpoint).expect("opening a driver registers its instance")
    }

    fn check_ours(&mut self) -> Result<(), DriverError> {
        if self.instance().foreign {
            return Err(DriverError::ForeignData {
                path: self.driver.root.clone(),
                member: self.driver.member.clone(),
            });
        }
        Ok(())
    }

    fn check_startable(&mut self) -> Result<(), DriverError> {
        self.check_ours()?;
        let path = self.driver.root.clone();
        match (self.instance().dirty, self.own_data()) {
            (true, _) => Err(DriverError::Dirty { path }),
            (false, None) => Err(DriverError::NoData { path }),
            (false, Some(_)) => Ok(()),
        }
    }

    fn copy(&mut self) -> Result<&mut Copy, DriverError> {
        let path = self.driver.root.clone();
        self.own_data().ok_or(DriverError::NoData { path })
    }

    /// The member's data: that of an engine which is nobody's is not.
    fn own_data(&mut self) -> Option<&mut Copy> {
        let instance = self.instance();
        if instance.is_nobodys() { None } else { instance.data.as_mut() }
    }

    fn position(&mut self) -> Result<Position, DriverError> {
        let weight = self.state.row_weight;
        Ok(self.copy()?.position(weight))
    }

    /// Runs the engine on its data as it is.
    fn run(&mut self) -> Result<(), DriverError> {
        let role = if self.copy()?.standby { Role::Replica } else { Role::Primary };
        let process = match self.instance().running {
            Some(running) => running.process,
            None => {
                self.state.processes += 1;
                self.state.processes
            }
        };
        let instance = self.instance();
        instance.crashed = false;
        if instance.running.is_none() {
            instance.drained = false;
        }
        if instance.running.replace(Running { process, role }).is_none() {
            instance.changed();
        }
        Ok(())
    }

    fn run_isolated(&mut self) -> Result<(), DriverError> {
        self.check_startable()?;
        let copy = self.copy()?;
        copy.standby = true;
        copy.upstream = None;
        self.run()
    }

    fn promote(&mut self) -> Result<Position, DriverError> {
        self.check_startable()?;
        if self.copy()?.standby {
            let branch = self.state.next_branch();
            let copy = self.copy()?;
            copy.standby = false;
            copy.upstream = None;
            copy.branch = branch;
        }
        self.run()?;
        self.position()
    }

    /// Another member's copy.
    fn source(&mut self, peer: &Peer) -> Result<Copy, DriverError> {
        self.state
            .reach(&self.driver.endpoint, &peer.engine)
            .cloned()
            .ok_or_else(|| refused("reach", &format!("{} does not answer", peer.member)))
    }

    fn follow(&mut self, upstream: &Peer) -> Result<(), DriverError> {
        self.check_startable()?;
        let source = self.source(upstream)?;
        let own = self.copy()?.clone();
        if !source.can_feed(&own) {
            let weight = self.state.row_weight;
            let detail = format!("it stands at {}, the upstream at {}", own.position(weight), source.position(weight));
            if !own.standby || own.upstream.is_some() {
                self.run_isolated()?;
            }
            return Err(DriverError::Diverged { upstream: upstream.member.clone(), detail });
        }
        *self.driver.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let copy = self.copy()?;
        copy.standby = true;
        copy.upstream = Some((upstream.member.clone(), upstream.engine.clone()));
        self.run()
    }
}

fn refused(doing: &str, detail: &str) -> DriverError {
    DriverError::Refused { doing: doing.to_owned(), detail: detail.to_owned() }
}

fn report(work: &Work, phase: &str, bytes: u64) {
    work.progress.send_replace(Progress {
        phase: phase.to_owned(),
        bytes_done: bytes,
        bytes_total: bytes,
        ..Progress::default()
    });
}

/// Bytes that a copy is said to have.
fn size(copy: &Copy) -> u64 {
    1024 + copy.rows.len() as u64
}

/// Refuses what a real engine's program would not take.
pub(super) fn check_settings(settings: &BTreeMap<String, String>) -> Result<(), DriverError> {
    match settings.keys().find(|name| !SETTINGS.contains(&name.as_str())) {
        Some(name) if name == "port" => {
            Err(DriverError::InvalidSetting { name: name.clone(), problem: "it is set and kept by regent".to_owned() })
        }
        Some(name) => Err(DriverError::UnknownSetting { name: name.clone(), engine: "fake" }),
        None => Ok(()),
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    fn version(&self) -> String {
        "1.0".to_owned()
    }

    fn process_changes(&self) -> watch::Receiver<u64> {
        Hand { state: &mut self.world.lock(), driver: self }.instance().changes.subscribe()
    }

    async fn observe(&self) -> EngineObservation {
        let mut state = self.world.lock();
        let streaming = state.is_streaming(&self.endpoint);
        let weight = state.row_weight;
        if let Some(heard) = streaming.then(|| state.upstream_position(&self.endpoint)).flatten() {
            *self.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
        }
        let mut hand = Hand { state: &mut state, driver: self };
        let instance = hand.instance();
        if instance.is_nobodys() {
            return EngineObservation {
                state: EngineState::Absent,
                role: None,
                storage_writable: Ternary::Yes,
                position: None,
                streaming: Ternary::Unknown,
                upstream: None,
                replay_lag_bytes: None,
                pid: None,
                version: self.version(),
                reason: String::new(),
                details: BTreeMap::new(),
                data_bytes: 0,
                stale: String::new(),
            };
        }
        let answering = instance.running.filter(|_| !instance.hung);
        let copy = instance.data.as_ref();
        let running_copy = copy.filter(|_| answering.is_some());
        EngineObservation {
            state: instance.state(),
            role: answering.map(|running| running.role),
            storage_writable: if instance.disk_broken { Ternary::No } else { Ternary::Yes },
            position: running_copy.map(|copy| copy.position(weight)),
            streaming: match answering.map(|running| running.role) {
                Some(Role::Replica) if streaming => Ternary::Yes,
                Some(Role::Replica) => Ternary::No,
                Some(Role::Primary | Role::Active) | None => Ternary::Unknown,
            },
            upstream: copy.and_then(|copy| copy.upstream.as_ref()).map(|(member, _)| member.clone()),
            replay_lag_bytes: answering.filter(|running| running.role == Role::Replica).map(|_| 0),
            pid: instance.running.map(|running| running.process),
            version: self.version(),
            reason: match instance.state() {
                EngineState::Crashed => "the engine's process ended".to_owned(),
                EngineState::Hung => "no answer".to_owned(),
                _ => String::new(),
            },
            details: copy.map(|copy| ("branch".to_owned(), copy.branch.to_string())).into_iter().collect(),
            data_bytes: copy.map_or(0, size),
            stale: String::new(),
        }
    }

    fn upstream_heard(&self) -> Option<HeardPosition> {
        self.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_dirty(&self) -> bool {
        Hand { state: &mut self.world.lock(), driver: self }.instance().dirty
    }

    fn has_data(&self) -> bool {
        Hand { state: &mut self.world.lock(), driver: self }.own_data().is_some()
    }

    async fn configure(&self, spec: &ClusterSpec) -> Result<(), DriverError> {
        self.act("configure", |hand| {
            hand.check_ours()?;
            if spec.tls {
                return Err(DriverError::NoTls { problem: "the engine has none".to_owned() });
            }
            check_settings(&spec.settings)?;
            hand.instance().wanted = Some(spec.clone());
            Ok(())
        })
    }

    async fn initialize(&self) -> Result<Position, DriverError> {
        self.act("initialize", |hand| {
            hand.check_ours()?;
            if hand.instance().wanted.is_none() {
                return Err(refused("initialize", "it was never configured"));
            }
            if hand.instance().is_nobodys() {
                return Err(DriverError::PortInUse { port: self.endpoint.port });
            }
            if hand.instance().data.is_none() {
                let system = hand.state.next_branch();
                let branch = hand.state.next_branch();
                let data = Copy { system, branch, rows: Vec::new(), standby: false, upstream: None };
                hand.instance().data = Some(data);
            }
            if hand.copy()?.standby {
                return Err(refused("initialize", "it has the data of a replica"));
            }
            hand.run()?;
            hand.position()
        })
    }

    async fn clone_from(&self, source: &Peer, options: CloneOptions, work: &Work) -> Result<Cloned, DriverError> {
        self.act("clone_from", |hand| {
            hand.check_ours()?;
            if work.cancel.is_cancelled() {
                return Err(DriverError::Cancelled { doing: "copying" });
            }
            let instance = hand.instance();
            if options.wipe_first_if_needed && instance.short_of_space && instance.data.is_some() {
                // Whoever called has the word of the copy that is to survive: it is not asked again here.
                instance.end();
                (instance.data, instance.dirty) = (None, true);
                instance.kept.clear();
            }
            let mut copy = hand.source(source)?;
            copy.standby = true;
            copy.upstream = None;
            let bytes = size(&copy);
            report(work, "copying", bytes);
            let instance = hand.instance();
            if options.wipe_first_if_needed && instance.disk_broken {
                return Err(DriverError::DiskFull { path: self.root.clone(), detail: "the disk is broken".to_owned() });
            }
            instance.incoming = Some(copy);
            Ok(Cloned { bytes, old_data_kept: instance.data.is_some() })
        })
    }

    async fn swap(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError> {
        self.act("swap", |hand| {
            let Some(new) = hand.instance().incoming.clone() else {
                let copy = hand.copy()?.clone();
                let follows = copy.upstream.as_ref().is_some_and(|(member, _)| *member == upstream.member);
                return if follows { Ok(()) } else { Err(DriverError::NoData { path: self.root.clone() }) };
            };
            if !hand.source(upstream)?.can_feed(&new) {
                let detail = "the new copy does not stream".to_owned();
                return Err(DriverError::Refused { doing: "swap".to_owned(), detail });
            }
            let instance = hand.instance();
            instance.end();
            instance.incoming = None;
            if let Some(old) = instance.data.replace(new) {
                instance.kept.push(old);
            }
            if !keep_old {
                instance.kept.clear();
            }
            instance.dirty = false;
            hand.follow(upstream)
        })
    }

    async fn discard_kept(&self) -> Result<(), DriverError> {
        self.act("discard_kept", |hand| {
            hand.instance().kept.clear();
            Ok(())
        })
    }

    async fn start(&self, how: StartAs) -> Result<(), DriverError> {
        self.act("start", |hand| {
            hand.check_startable()?;
            match &how {
                StartAs::Primary => hand.promote().map(drop),
                StartAs::Replica(upstream) => hand.follow(upstream),
                StartAs::Isolated => hand.run_isolated(),
            }
        })
    }

    async fn stop(&self, _how: Stop) -> Result<(), DriverError> {
        self.act("stop", |hand| {
            if !hand.instance().is_nobodys() {
                hand.instance().end();
            }
            Ok(())
        })
    }

    async fn cut(&self) -> Result<Position, DriverError> {
        self.act("cut", |hand| {
            hand.check_startable()?;
            if hand.instance().running.is_some_and(|running| running.role == Role::Primary) {
                return Err(refused("cut the stream", "it is a primary and follows nobody"));
            }
            hand.run_isolated()?;
            hand.position()
        })
    }

    async fn drain(&self, successor: &MemberName) -> Result<Position, DriverError> {
        self.act("drain", |hand| {
            hand.instance().answers().map_err(|detail| refused("drain", &detail))?;
            hand.instance().drained = true;
            Ok(())
        })?;
        // Rows may move by somebody else's hand.
        loop {
            let (position, behind) = self.act("drain", |hand| {
                hand.instance().answers().map_err(|detail| refused("drain", &detail))?;
                let (own, endpoint) = (hand.copy()?.clone(), hand.driver.endpoint.clone());
                let has_all = |copy: &Copy| copy.rows.len() >= own.rows.len() && copy.can_feed(&own);
                let follows = |copy: &Copy| copy.upstream.as_ref().is_some_and(|(_, upstream)| *upstream == endpoint);
                let caught_up = hand.state.instances.values().any(|instance| {
                    let copy = instance.data.as_ref().filter(|_| instance.member.as_ref() == Some(successor));
                    copy.is_some_and(|copy| follows(copy) && has_all(copy))
                });
                Ok((hand.position()?, !caught_up))
            })?;
            if !behind {
                return Ok(position);
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    async fn undo_drain(&self) -> Result<(), DriverError> {
        self.act("undo_drain", |hand| {
            hand.instance().drained = false;
            Ok(())
        })
    }

    async fn promote(&self) -> Result<Position, DriverError> {
        self.act("promote", |hand| hand.promote())
    }

    async fn follow(&self, upstream: &Peer) -> Result<String, DriverError> {
        self.act("follow", |hand| hand.follow(upstream)).map(|()| String::new())
    }

    async fn examine(&self) -> Result<Position, DriverError> {
        self.act("examine", |hand| {
            hand.check_startable()?;
            if hand.instance().running.is_none() {
                hand.run_isolated()?;
            }
            hand.position()
        })
    }

    async fn rewind(&self, source: &Peer, work: &Work) -> Result<String, DriverError> {
        self.act("rewind", |hand| {
            if hand.instance().dirty {
                return Err(DriverError::CannotRewind { reason: "an earlier rewind was interrupted".to_owned() });
            }
            hand.check_startable()?;
            let theirs = hand.source(source)?;
            let own = hand.copy()?.clone();
            if theirs.system != own.system {
                return Err(DriverError::CannotRewind { reason: "they never were copies of each other".to_owned() });
            }
            report(work, "rewinding", size(&own));
            let common = own.rows.iter().zip(&theirs.rows).take_while(|(own, their)| own == their).count();
            let detail = format!("{} rows were taken back", own.rows.len() - common);
            let copy = hand.copy()?;
            copy.rows.truncate(common);
            copy.branch = copy.rows.last().map_or(theirs.branch, |row| row.branch);
            hand.follow(source)?;
            Ok(detail)
        })
    }

    async fn checkpoint(&self, _: Flush) -> Result<(), DriverError> {
        self.act("checkpoint", |hand| hand.instance().answers().map_err(|detail| refused("flush", &detail)))
    }

    async fn adopt(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Position, DriverError> {
        self.act("adopt", |hand| {
            if hand.instance().wanted.is_none() {
                return Err(refused("adopt", "it was never configured"));
            }
            let path = data_directory.to_owned();
            let instance = hand.instance();
            instance.answers().map_err(|problem| DriverError::NotAdoptable { path: path.clone(), problem })?;
            let standby = instance.data.as_ref().is_some_and(|copy| copy.standby);
            let Some(unmanaged) = instance.unmanaged.as_mut().filter(|found| found.folder == data_directory) else {
                return Err(DriverError::NoData { path });
            };
            if standby != upstream.is_some() {
                let problem = "it has another role by now".to_owned();
                return Err(DriverError::NotAdoptable { path, problem });
            }
            unmanaged.adopted = true;
            instance.changed();
            if let Some(upstream) = upstream {
                hand.follow(upstream)?;
            }
            hand.position()
        })
    }

    async fn give_back(&self) -> Result<bool, DriverError> {
        self.act("give_back", |hand| {
            let instance = hand.instance();
            let Some(unmanaged) = instance.unmanaged.as_mut().filter(|unmanaged| unmanaged.adopted) else {
                return Ok(false);
            };
            unmanaged.adopted = false;
            if let Some(copy) = &mut instance.data {
                copy.upstream.clone_from(&unmanaged.upstream);
            }
            instance.wanted = None;
            Ok(true)
        })
    }

    async fn release(&self, keep_data: bool) -> Result<(), DriverError> {
        self.act("release", |hand| {
            hand.check_ours()?;
            let instance = hand.instance();
            if instance.is_nobodys() {
                instance.wanted = None;
                return Ok(());
            }
            instance.end();
            instance.unmanaged = None;
            let data = instance.data.take();
            instance.kept =
                if keep_data { data.into_iter().chain(instance.kept.drain(..)).collect() } else { Vec::new() };
            instance.incoming = None;
            instance.dirty = false;
            instance.wanted = None;
            Ok(())
        })
    }
}
