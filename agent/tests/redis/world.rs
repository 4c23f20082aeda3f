//! Three members of real engines on loopback, each with its own folder and port.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo,
    TlsCertificates, aio::MultiplexedConnection,
};
use regent_agent::engine::{
    Context, Driver, DriverError, Factory, FoundInstance, Ground,
    conformance::{Harness, World},
    redis::RedisFactory,
};
use regent_agent::supervisor::Backend;
use regent_common::{
    allow_list::AllowList,
    ids::{ClusterName, MemberName, NodeName},
    topology::{ClusterSpec, Endpoint, Mode, Peer},
};

use crate::{
    ports,
    tls::{Authority, files_in},
    unmanaged::Unmanaged,
};

/// Passwords with everything in them that has to be escaped somewhere.
pub(crate) const REPLICATION_SECRET: &str = "replication's: \\ \"secret\" #1";
pub(crate) const APPLICATION_SECRET: &str = "application's: \\ \"secret\" #1";
/// The application.
pub(crate) const APPLICATION: &str = "app";
/// The list of rows.
const ROWS: &str = "rows";

/// Where all members are.
const HOST: &str = "127.0.0.1";

/// How long a connection, and an answer, may take.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);

/// Makes worlds of a flavor for the conformance suite.
pub(crate) struct Real {
    pub(crate) factory: &'static RedisFactory,
    /// Whether the members' ports speak TLS only.
    pub(crate) tls: bool,
}

pub(crate) struct RealWorld {
    pub(crate) factory: &'static RedisFactory,
    pub(crate) server: PathBuf,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) mode: Mode,
    /// Who signs the members' certificates, where their ports speak TLS only.
    pub(crate) tls: Option<Authority>,
    ports: [u16; 3],
}

/// The server's program of a flavor: what the environment names, else what is on the path. The error says what is missing.
pub(crate) fn server_of(factory: &RedisFactory) -> Result<PathBuf, String> {
    let flavor = factory.name();
    let (variable, program) = (format!("REGENT_{}_SERVER", flavor.to_uppercase()), format!("{flavor}-server"));
    if let Some(named) = std::env::var_os(&variable).map(PathBuf::from) {
        // A wrong path is a mistake, and no flavor that is not there.
        assert!(named.is_file(), "{variable}={} is no program", named.display());
        return Ok(named);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(&program)).filter(|file| file.is_file());
    found.next().ok_or_else(|| format!("{flavor}: there is no {program} on the path, and {variable} names none"))
}

/// Whether a flavor's server is there; says so where it is not. Redis has to be there, a package registry may not have the others.
pub(crate) fn is_there(factory: &RedisFactory) -> bool {
    match server_of(factory) {
        Ok(_) => true,
        Err(missing) if factory.name() == "redis" => panic!("{missing}: apt-get install redis-server"),
        Err(missing) => {
            println!("not run: {missing}");
            false
        }
    }
}

/// User as whom a root's engine runs: the flavor's own, or that of the family's eldest, where the flavor came without a package.
pub(crate) fn user_of(factory: &RedisFactory) -> Option<nix::unistd::User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let users = [factory.name(), "redis"].map(|name| nix::unistd::User::from_name(name).unwrap());
    Some(users.into_iter().flatten().next().expect("a package makes its user: apt-get install redis-server"))
}

/// A connection to an engine of this machine; `login` is a user's name and password.
pub(crate) async fn connect(port: u16, login: Option<(&str, &str)>) -> Result<MultiplexedConnection, String> {
    connect_to(ConnectionAddr::Tcp(HOST.to_owned(), port), None, login).await
}

/// The same to any address; `authority` is whom the server's certificate has to be of.
pub(crate) async fn connect_to(
    address: ConnectionAddr,
    authority: Option<&Authority>,
    login: Option<(&str, &str)>,
) -> Result<MultiplexedConnection, String> {
    let connection = async {
        let mut handshake = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some((user, password)) = login {
            handshake = handshake.set_username(user).set_password(password);
        }
        let info = address.into_connection_info()?.set_redis_settings(handshake);
        let client = match authority {
            None => Client::open(info)?,
            Some(authority) => {
                let root_cert = Some(authority.pem().into_bytes());
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?
            }
        };
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        Box::pin(client.get_multiplexed_async_connection_with_config(&config)).await
    };
    connection.await.map_err(|error| error.to_string())
}

/// Sends one command to an engine of this machine.
pub(crate) async fn ask<T: FromRedisValue>(port: u16, login: Option<(&str, &str)>, command: &Cmd) -> Result<T, String> {
    let mut connection = connect(port, login).await?;
    command.query_async(&mut connection).await.map_err(|error| error.to_string())
}

#[async_trait]
impl Harness for Real {
    async fn world(&self) -> Box<dyn World> {
        let world = RealWorld::new(self.factory);
        Box::new(if self.tls { world.with_tls() } else { world })
    }
}

impl RealWorld {
    pub(crate) fn new(factory: &'static RedisFactory) -> Self {
        let folder = tempfile::Builder::new().prefix("regent-redis").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let ports = ports::free(3).unwrap().try_into().unwrap();
        let mut settings = BTreeMap::from([("maxmemory".to_owned(), "256mb".to_owned())]);
        if factory.name() == "keydb" {
            // As its package's configuration has it.
            settings.insert("server-threads".to_owned(), "2".to_owned());
        }
        let server = server_of(factory).unwrap();
        RealWorld { factory, server, folder, settings, mode: Mode::default(), tls: None, ports }
    }

    /// The same, whose members' ports speak TLS only.
    pub(crate) fn with_tls(mut self) -> Self {
        let authority = self.tls.insert(Authority::new());
        for member in 1..=3 {
            authority.issue_into(&self.folder.path().join(format!("tls{member}")), HOST);
        }
        self
    }

    /// Folder with a member's certificate, key and authority.
    pub(crate) fn certificate(&self, member: u32) -> PathBuf {
        self.folder.path().join(format!("tls{member}"))
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
        section.insert("listen_addresses".to_owned(), HOST.into());
        section.insert("server".to_owned(), self.server.display().to_string().into());
        if let Some(user) = user_of(self.factory) {
            section.insert("user".to_owned(), user.name.into());
        }
        if self.tls.is_some() {
            section.insert("tls".to_owned(), files_in(&self.certificate(member)).into());
        }
        Context {
            cluster: self.cluster(),
            member: self.member(member),
            root: self.root(member),
            run_directory: self.folder.path().join(format!("run{member}")),
            section: Some(section),
            advertise_host: HOST.to_owned(),
            port: self.port(member),
            version: String::new(),
            agent_program: env!("CARGO_BIN_EXE_regent-agent").into(),
            supervisor: Backend::Process,
        }
    }

    /// Sends one command as the application.
    pub(crate) async fn command<T: FromRedisValue>(&self, member: u32, command: &Cmd) -> Result<T, String> {
        let login = Some((APPLICATION, APPLICATION_SECRET));
        let Some(authority) = &self.tls else { return ask(self.port(member), login, command).await };
        let (host, port) = (HOST.to_owned(), self.port(member));
        let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
        let mut connection = connect_to(address, Some(authority), login).await?;
        command.query_async(&mut connection).await.map_err(|error| error.to_string())
    }
}

/// Processes that work in a directory: the engine, and what it has forked to write a snapshot.
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
            engine: self.factory.name().to_owned(),
            version: String::new(),
            members: match self.mode {
                Mode::PrimaryReplica => (1..=3).map(|member| self.peer(member)).collect(),
                Mode::MultiMaster => (1..=2).map(|member| self.peer(member)).collect(),
            },
            settings: self.settings.clone(),
            secrets: secrets.map(|(name, secret)| (name.to_owned(), secret.into())).into(),
            allow_list: AllowList::default(),
            access_rules: String::new(),
            mode: self.mode,
            tls: self.tls.is_some(),
        }
    }

    fn peer(&self, member: u32) -> Peer {
        Peer {
            member: self.member(member),
            node: NodeName::new(format!("node{member}")).unwrap(),
            engine: Endpoint { host: HOST.to_owned(), port: self.port(member) },
            agent_address: String::new(),
        }
    }

    fn open(&self, member: u32) -> Result<Arc<dyn Driver>, DriverError> {
        self.factory.open(self.context(member))
    }

    async fn write(&self, member: u32) -> Result<(), String> {
        // One element more for each acknowledgement, whatever was there before.
        self.command::<u64>(member, redis::cmd("RPUSH").arg(ROWS).arg("row")).await.map(drop)
    }

    async fn rows(&self, member: u32) -> Result<u64, String> {
        self.command(member, redis::cmd("LLEN").arg(ROWS)).await
    }

    async fn crash(&self, member: u32) -> Result<(), String> {
        let pids = processes_in(&self.data(member));
        if pids.is_empty() {
            return Err("no process".to_owned());
        }
        for pid in pids {
            // What it has forked may have ended by itself.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(())
    }

    fn processes(&self, member: u32) -> usize {
        processes_in(&self.data(member)).len()
    }

    fn put_foreign_data(&self, member: u32) {
        std::fs::create_dir_all(self.data(member)).unwrap();
        std::fs::write(self.data(member).join("dump.rdb"), "REDIS0010 of nobody's").unwrap();
    }

    fn has_foreign_data(&self, member: u32) -> bool {
        std::fs::read(self.data(member).join("dump.rdb")).is_ok_and(|data| data.ends_with(b"of nobody's"))
    }

    fn has_traces(&self, member: u32) -> bool {
        self.root(member).exists()
    }

    async fn start_unmanaged(&self, member: u32, upstream: Option<u32>) -> Result<PathBuf, String> {
        Unmanaged::of(self, member).start(upstream.map(|upstream| self.port(upstream))).await
    }

    async fn survey(&self, member: u32) -> Result<Vec<FoundInstance>, DriverError> {
        let context = self.context(member);
        let (section, agent_program) = (context.section.as_ref(), &*context.agent_program);
        let found = self.factory.survey(&Ground { section, agent_program, data_root: &self.root(member) }).await?;
        // Other tests of this machine have instances of their own.
        let port = self.port(member);
        Ok(found.into_iter().filter(|found| found.port == port).collect())
    }

    fn keeps_acknowledged_writes(&self) -> bool {
        // They are in memory until there is a snapshot.
        false
    }

    fn adopts(&self) -> bool {
        self.factory.name() != "keydb" && self.tls.is_none()
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
                    let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
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
