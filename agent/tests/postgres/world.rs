//! Three members of real PostgreSQL on loopback, each with its own folder and port.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use regent_agent::engine::{
    Context, Driver, DriverError, Factory, FoundInstance, Ground,
    conformance::{Harness, World},
    postgres::PostgresFactory,
};
use regent_agent::supervisor::Backend;
use regent_common::{
    allow_list::AllowList,
    ids::{ClusterName, MemberName, NodeName},
    topology::{ClusterSpec, Endpoint, Mode, Peer},
};

use crate::{ports, unmanaged::Unmanaged};

/// Passwords with everything in them that has to be escaped somewhere.
pub(crate) const REPLICATION_SECRET: &str = "replication's: \\ secret";
pub(crate) const APPLICATION_SECRET: &str = "application's: \\ secret";

/// Makes worlds for the conformance suite.
pub(crate) struct Real;

pub(crate) struct RealWorld {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) settings: BTreeMap<String, String>,
    ports: [u16; 3],
}

#[async_trait]
impl Harness for Real {
    async fn world(&self) -> Box<dyn World> {
        Box::new(RealWorld::new())
    }
}

impl RealWorld {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("regent-pg").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let ports = ports::free(3).unwrap().try_into().unwrap();
        let settings = BTreeMap::from([("shared_buffers".to_owned(), "16MB".to_owned())]);
        RealWorld { folder, ports, settings }
    }

    fn cluster(&self) -> ClusterName {
        ClusterName::new("db-main").unwrap()
    }

    fn member(&self, member: u32) -> MemberName {
        self.cluster().member(member)
    }

    pub(crate) fn root(&self, member: u32) -> PathBuf {
        self.folder.path().join(format!("root{member}"))
    }

    pub(crate) fn port(&self, member: u32) -> u16 {
        self.ports[member as usize - 1]
    }

    pub(crate) fn data(&self, member: u32) -> PathBuf {
        self.root(member).join("data")
    }

    pub(crate) fn context(&self, member: u32) -> Context {
        let mut section = toml::Table::new();
        section.insert("listen_addresses".to_owned(), "127.0.0.1".into());
        if let Ok(folder) = std::env::var("REGENT_POSTGRES_BIN") {
            section.insert("bin_dir".to_owned(), folder.into());
        }
        Context {
            cluster: self.cluster(),
            member: self.member(member),
            root: self.root(member),
            run_directory: self.folder.path().join(format!("run{member}")),
            section: Some(section),
            advertise_host: "127.0.0.1".to_owned(),
            port: self.peer(member).engine.port,
            version: String::new(),
            agent_program: env!("CARGO_BIN_EXE_regent-agent").into(),
            supervisor: Backend::Process,
        }
    }

    pub(crate) async fn sql(&self, member: u32, sql: &str) -> Result<Option<String>, String> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.peer(member).engine.port)
            .user("app")
            .password(APPLICATION_SECRET)
            .dbname("app")
            .connect_timeout(Duration::from_secs(5));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|error| format!("{error:?}"))?;
        let task = tokio::spawn(connection);
        let answer = tokio::time::timeout(Duration::from_secs(10), client.simple_query(sql)).await;
        drop(client);
        let _ = task.await;
        let messages = answer.map_err(|_| "no answer".to_owned())?.map_err(|error| format!("{error:?}"))?;
        Ok(messages.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }
}

pub(crate) fn processes_in(directory: &Path) -> Vec<i32> {
    procfs::process::all_processes()
        .unwrap()
        .filter_map(Result::ok)
        .filter(|process| process.cwd().is_ok_and(|cwd| cwd == directory))
        .map(|process| process.pid)
        .collect()
}

#[async_trait]
impl World for RealWorld {
    fn spec(&self) -> ClusterSpec {
        let secrets = [("replication", REPLICATION_SECRET), ("application", APPLICATION_SECRET)];
        ClusterSpec {
            cluster: self.cluster(),
            engine: "postgresql".to_owned(),
            version: String::new(),
            members: (1..=3).map(|member| self.peer(member)).collect(),
            settings: self.settings.clone(),
            secrets: secrets.map(|(name, secret)| (name.to_owned(), secret.into())).into(),
            allow_list: AllowList::default(),
            access_rules: String::new(),
            mode: Mode::default(),
            tls: false,
        }
    }

    fn peer(&self, member: u32) -> Peer {
        Peer {
            member: self.member(member),
            node: NodeName::new(format!("node{member}")).unwrap(),
            engine: Endpoint { host: "127.0.0.1".to_owned(), port: self.port(member) },
            agent_address: String::new(),
        }
    }

    fn open(&self, member: u32) -> Result<Arc<dyn Driver>, DriverError> {
        PostgresFactory.open(self.context(member))
    }

    async fn write(&self, member: u32) -> Result<(), String> {
        self.sql(member, "CREATE TABLE IF NOT EXISTS rows (id serial)").await?;
        self.sql(member, "INSERT INTO rows DEFAULT VALUES").await.map(drop)
    }

    async fn rows(&self, member: u32) -> Result<u64, String> {
        let rows = self.sql(member, "SELECT count(*) FROM rows").await?;
        rows.and_then(|rows| rows.parse().ok()).ok_or_else(|| "no number".to_owned())
    }

    async fn crash(&self, member: u32) -> Result<(), String> {
        let file =
            std::fs::read_to_string(self.data(member).join("postmaster.pid")).map_err(|error| error.to_string())?;
        let pid = file.lines().next().and_then(|line| line.parse().ok()).ok_or("no pid")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .map_err(|error| error.to_string())
    }

    fn processes(&self, member: u32) -> usize {
        processes_in(&self.data(member)).len()
    }

    fn put_foreign_data(&self, member: u32) {
        std::fs::create_dir_all(self.data(member)).unwrap();
        std::fs::write(self.data(member).join("PG_VERSION"), "15\n").unwrap();
    }

    fn has_foreign_data(&self, member: u32) -> bool {
        self.data(member).join("PG_VERSION").exists()
    }

    fn has_traces(&self, member: u32) -> bool {
        self.root(member).exists()
    }

    async fn start_unmanaged(&self, member: u32, upstream: Option<u32>) -> Result<PathBuf, String> {
        Unmanaged::of(self, member).start(upstream.map(|upstream| Unmanaged::of(self, upstream)))
    }

    async fn survey(&self, member: u32) -> Result<Vec<FoundInstance>, DriverError> {
        let context = self.context(member);
        let (section, agent_program) = (context.section.as_ref(), &*context.agent_program);
        let found = PostgresFactory.survey(&Ground { section, agent_program, data_root: &self.root(member) }).await?;
        // Other tests of this machine have instances of their own.
        let port = self.peer(member).engine.port;
        Ok(found.into_iter().filter(|found| found.port == port).collect())
    }

    fn keeps_acknowledged_writes(&self) -> bool {
        true
    }

    fn adopts(&self) -> bool {
        true
    }

    fn interrupt_rewind(&self, member: u32) {
        std::fs::write(self.root(member).join("dirty"), "rewinding").unwrap();
    }

    async fn pause(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    async fn end(&self) {
        self.kill_everything();
    }
}

impl RealWorld {
    fn kill_everything(&self) {
        for data in (1..=3).flat_map(|member| [self.data(member), Unmanaged::of(self, member).data()]) {
            while let pids @ [_, ..] = processes_in(&data).as_slice() {
                for pid in pids {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
                }
                std::thread::yield_now();
            }
        }
    }
}

/// A test that fails leaves no engine behind either.
impl Drop for RealWorld {
    fn drop(&mut self) {
        self.kill_everything();
    }
}
