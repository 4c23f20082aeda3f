//! The conformance suite over the fake engine, and what only the fake engine has.

use async_trait::async_trait;
use regent_common::{
    allow_list::AllowList,
    ids::{ClusterName, NodeName},
    topology::{Mode, Peer, Ternary},
};

use super::*;
use crate::engine::{
    CloneOptions, Work,
    conformance::{self, Harness, World},
};
use crate::supervisor::Backend;

struct Fakes;

struct Trio {
    world: FakeWorld,
}

impl Trio {
    fn context(&self, member: u32) -> Context {
        let cluster = ClusterName::new("db").unwrap();
        Context {
            member: cluster.member(member),
            cluster,
            root: format!("/nowhere/{member}").into(),
            run_directory: "/nowhere".into(),
            section: None,
            advertise_host: format!("host{member}"),
            port: 1,
            version: String::new(),
            agent_program: "/nowhere".into(),
            supervisor: Backend::Process,
        }
    }

    fn endpoint(&self, member: u32) -> Endpoint {
        endpoint_of(&self.context(member))
    }
}

#[async_trait]
impl Harness for Fakes {
    async fn world(&self) -> Box<dyn World> {
        Box::new(Trio { world: FakeWorld::new() })
    }
}

#[async_trait]
impl World for Trio {
    fn spec(&self) -> ClusterSpec {
        ClusterSpec {
            cluster: ClusterName::new("db").unwrap(),
            engine: "fake".to_owned(),
            version: String::new(),
            members: (1..=3).map(|member| self.peer(member)).collect(),
            settings: BTreeMap::new(),
            secrets: BTreeMap::new(),
            allow_list: AllowList::default(),
            access_rules: String::new(),
            mode: Mode::default(),
            tls: false,
        }
    }

    fn peer(&self, member: u32) -> Peer {
        Peer {
            member: self.context(member).member,
            node: NodeName::new(format!("node{member}")).unwrap(),
            engine: self.endpoint(member),
            agent_address: String::new(),
        }
    }

    fn open(&self, member: u32) -> Result<Arc<dyn Driver>, DriverError> {
        self.world.open(self.context(member))
    }

    async fn write(&self, member: u32) -> Result<(), String> {
        self.world.write(&self.endpoint(member)).map(drop)
    }

    async fn rows(&self, member: u32) -> Result<u64, String> {
        self.world.rows(&self.endpoint(member)).map(|rows| rows.len() as u64)
    }

    async fn crash(&self, member: u32) -> Result<(), String> {
        self.world.crash(&self.endpoint(member));
        Ok(())
    }

    fn processes(&self, member: u32) -> usize {
        usize::from(self.world.lock().instances[&self.endpoint(member)].running.is_some())
    }

    fn put_foreign_data(&self, member: u32) {
        self.world.put_foreign_data(&self.context(member));
    }

    fn has_foreign_data(&self, member: u32) -> bool {
        self.world.lock().instances[&self.endpoint(member)].foreign
    }

    fn has_traces(&self, member: u32) -> bool {
        let state = self.world.lock();
        let instance = &state.instances[&self.endpoint(member)];
        let data = instance.data.is_some() && !instance.is_nobodys();
        data || instance.incoming.is_some() || !instance.kept.is_empty()
    }

    async fn start_unmanaged(&self, member: u32, upstream: Option<u32>) -> Result<PathBuf, String> {
        let folder = self.context(member).root.join("main");
        let upstream = upstream.map(|member| self.endpoint(member));
        self.world.start_unmanaged(&self.endpoint(member), &folder, upstream.as_ref());
        Ok(folder)
    }

    async fn survey(&self, member: u32) -> Result<Vec<FoundInstance>, DriverError> {
        let data_root = self.context(member).root;
        self.world.survey(&Ground { section: None, agent_program: Path::new("/nowhere"), data_root: &data_root }).await
    }

    fn keeps_acknowledged_writes(&self) -> bool {
        true
    }

    fn adopts(&self) -> bool {
        true
    }

    fn interrupt_rewind(&self, member: u32) {
        self.world.interrupt_rewind(&self.endpoint(member));
    }

    async fn pause(&self) {
        tokio::task::yield_now().await;
    }

    async fn end(&self) {}
}

#[tokio::test]
async fn the_fake_engine_conforms() {
    conformance::run_all(&Fakes, "").await;
}

#[tokio::test]
async fn harm_can_be_done_and_undone() {
    let trio = Trio { world: FakeWorld::new() };
    let (one, two) = (trio.open(1).unwrap(), trio.open(2).unwrap());
    one.configure(&trio.spec()).await.unwrap();
    one.initialize().await.unwrap();
    let work = Work { progress: watch::Sender::default(), cancel: tokio_util::sync::CancellationToken::new() };
    two.as_ref().clone_from(&trio.peer(1), CloneOptions::default(), &work).await.unwrap();
    two.swap(&trio.peer(1), false).await.unwrap();
    let (first, second) = (trio.endpoint(1), trio.endpoint(2));

    trio.world.limit_stream(&second, Some(1));
    let acknowledged = [trio.world.write(&first).unwrap(), trio.world.write(&first).unwrap()];
    assert_eq!(trio.world.rows(&second).unwrap(), acknowledged[..1], "a slow stream lags");
    trio.world.limit_stream(&second, None);
    assert_eq!(trio.world.rows(&second).unwrap(), acknowledged, "and catches up");

    trio.world.cut_link(&first, &second);
    assert_eq!(two.observe().await.streaming, Ternary::No);
    assert!(two.follow(&trio.peer(1)).await.is_err());
    trio.world.write(&first).unwrap();
    trio.world.restore_link(&first, &second);
    assert_eq!(trio.world.rows(&second).unwrap().len(), 3);

    trio.world.hang(&first, true);
    assert_eq!(one.observe().await.state, EngineState::Hung);
    assert!(trio.world.write(&first).is_err() && !trio.world.accepts_writes(&first));
    trio.world.hang(&first, false);
    assert!(trio.world.accepts_writes(&first));

    trio.world.fail_next(&second, "promote", 1);
    assert!(two.promote().await.is_err());
    two.promote().await.unwrap();
    assert!(trio.world.accepts_writes(&second));
}

#[tokio::test]
async fn a_clone_without_space_removes_the_old_data_first_and_only_where_it_may() {
    let trio = Trio { world: FakeWorld::new() };
    let (spec, work) =
        (trio.spec(), Work { progress: watch::Sender::new(Default::default()), cancel: Default::default() });
    let open = |member| trio.world.open(trio.context(member)).unwrap();
    let (one, two) = (open(1), open(2));
    one.configure(&spec).await.unwrap();
    one.initialize().await.unwrap();
    two.configure(&spec).await.unwrap();
    let clone = async |wipe_first_if_needed| {
        let options = CloneOptions { max_bytes_per_second: 0, wipe_first_if_needed };
        (*two).clone_from(&trio.peer(1), options, &work).await
    };
    clone(false).await.unwrap();
    two.swap(&trio.peer(1), false).await.unwrap();
    trio.world.short_of_space(&trio.endpoint(2), true);
    clone(false).await.unwrap();
    assert!(two.has_data() && !two.is_dirty());
    trio.world.lose_data(&trio.endpoint(1));
    assert!(!one.has_data());
    clone(true).await.unwrap_err();
    assert!(!two.has_data() && two.is_dirty(), "that is what nobody may ask of it without the source's word");
}

#[tokio::test]
async fn an_engine_that_somebody_starts_is_what_its_data_says() {
    let trio = Trio { world: FakeWorld::new() };
    let one = trio.world.open(trio.context(1)).unwrap();
    one.configure(&trio.spec()).await.unwrap();
    assert!(!trio.world.start_by_hand(&trio.endpoint(1)), "there is nothing to start");
    one.initialize().await.unwrap();
    assert!(!trio.world.start_by_hand(&trio.endpoint(1)), "it runs");
    trio.world.crash(&trio.endpoint(1));
    assert!(!trio.world.accepts_writes(&trio.endpoint(1)));
    assert!(trio.world.start_by_hand(&trio.endpoint(1)));
    assert!(trio.world.accepts_writes(&trio.endpoint(1)));
}

#[tokio::test]
async fn it_has_no_tls() {
    let trio = Trio { world: FakeWorld::new() };
    let one = trio.world.open(trio.context(1)).unwrap();
    let refused = one.configure(&ClusterSpec { tls: true, ..trio.spec() }).await;
    assert!(matches!(refused, Err(DriverError::NoTls { .. })), "{refused:?}");
}
