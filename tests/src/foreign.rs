//! An instance of PostgreSQL that is nobody's: made and started as Debian's packages do it, with its configuration outside its data
//! directory, on the place of a node whose agent knows nothing of it.
//!
//! ```text
//! FOLDER/foreign/NAME/data    its data
//! FOLDER/foreign/NAME/etc     postgresql.conf, pg_hba.conf, pg_ident.conf, start.conf, conf.d
//! FOLDER/foreign/NAME/run     its socket
//! FOLDER/foreign/NAME/log     what it has said
//! ```
//! Its processes are no children of the test, as those of an instance that a boot has started; they end with the test's folder, on
//! whose file system the agents' data is as well.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, chown, geteuid};
use regent_proto::coordinator::v1 as wire;

use crate::{
    api::request_id,
    cluster::{Agent, run},
    engines::postgres_bin,
    folder::TestFolder,
    place::Place,
    wait,
    workload::Login,
};

/// Owner of the instance, in the system and in the engine.
const OWNER: &str = "postgres";
/// Role as which a replica streams, and its password.
const STREAM: (&str, &str) = ("stream", "of its own");

/// What makes a configuration: what `initdb` leaves in the data directory, and the packages keep elsewhere.
const FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Who may log in: what Debian's packages write, and what somebody has put before and after that.
const RULES: &str = "\
# Rules of this instance's own.
host    all             barred          all                     reject
host    shop            reader          samenet                 trust
host    replication     stream          samenet                 scram-sha-256
# Rules that the packages bring.
local   all             postgres                                peer
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 scram-sha-256
local   replication     all                                     peer
host    replication     all             127.0.0.1/32            scram-sha-256
# And one more.
host    all             all             samenet                 scram-sha-256
";

/// An instance that runs.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// Name of its node.
    pub node: String,
    /// Where it is reached, as host:port.
    pub member: String,
    /// How its application logs in: as the owner of a database of its own.
    pub login: Login,
    /// How a superuser logs in who is not the owner of the instance.
    pub administrator: Login,
    /// Folder of its data, as the instance knows it.
    pub data: PathBuf,
    /// Folder of its configuration.
    pub etc: PathBuf,
    home: PathBuf,
    bin: PathBuf,
    place: Place,
    port: u16,
}

/// What is asked to adopt these instances as one cluster. Where agents share a machine each of them sees all: the folders are named.
pub fn adopt_request(cluster: &str, instances: &[&Foreign]) -> wire::AdoptClusterRequest {
    let folder = |instance: &&Foreign| (instance.node.clone(), instance.data.display().to_string());
    wire::AdoptClusterRequest {
        cluster: cluster.to_owned(),
        nodes: instances.iter().map(|instance| instance.node.clone()).collect(),
        data_directories: instances.iter().map(folder).collect(),
        request_id: request_id(),
        ..Default::default()
    }
}

fn give_to_owner(path: &Path) -> Result<()> {
    let user = User::from_name(OWNER)?.with_context(|| format!("there is no user {OWNER}: install postgresql"))?;
    Ok(chown(path, Some(user.uid), Some(user.gid))?)
}

/// Describes a file, or a folder with all that is in it, by its path.
fn describe(path: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    let facts = fs::symlink_metadata(path)?;
    let whose = format!("{}:{} {:o}", facts.uid(), facts.gid(), facts.mode());
    let what = if facts.is_symlink() {
        format!("a link to {}", fs::read_link(path)?.display())
    } else if facts.is_dir() {
        for entry in fs::read_dir(path)? {
            describe(&entry?.path(), found)?;
        }
        format!("a folder of {whose}")
    } else {
        format!("a file of {whose}\n{}", String::from_utf8_lossy(&fs::read(path)?))
    };
    found.insert(path.display().to_string(), what);
    Ok(())
}

// === impl Foreign ===

impl Foreign {
    /// Makes an instance with an application's database and starts it, on the place of an agent and on a port that is not the
    /// agent's choice. `name` is its folder's; `settings` are lines of its `postgresql.conf`.
    pub fn start(folder: &TestFolder, name: &str, agent: &Agent, settings: &str) -> Result<Self> {
        let foreign = Self::prepare(folder, name, agent)?;
        let mut initdb = foreign.tool("initdb")?;
        initdb.args(["--no-sync", "--username", OWNER, "--auth-local=peer", "--auth-host=scram-sha-256"]);
        initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "--pgdata"]).arg(&foreign.data);
        run(initdb)?;
        for file in FILES {
            let (from, to) = (foreign.data.join(file), foreign.etc.join(file));
            fs::rename(&from, &to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
        }
        foreign.configure(settings)?;
        foreign.run()?;
        let (application, administrator) = (&foreign.login, &foreign.administrator);
        foreign.sql(&[
            &format!("CREATE ROLE {} LOGIN PASSWORD '{}'", application.user, application.password),
            &format!("CREATE DATABASE {} OWNER {}", application.database, application.user),
            &format!("CREATE ROLE {} LOGIN SUPERUSER PASSWORD '{}'", administrator.user, administrator.password),
            &format!("CREATE ROLE {} LOGIN REPLICATION PASSWORD '{}'", STREAM.0, STREAM.1),
            "CREATE ROLE reader LOGIN",
            "CREATE ROLE barred LOGIN PASSWORD 'barred'",
        ])?;
        Ok(foreign)
    }

    /// Makes a replica, with a slot of its own and the same settings, on the place of another agent, and waits until it streams.
    pub async fn replica(&self, folder: &TestFolder, name: &str, agent: &Agent) -> Result<Self> {
        let replica = Self::prepare(folder, name, agent)?;
        let mut copy = replica.tool("pg_basebackup")?;
        copy.args(["--no-sync", "--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream", "--create-slot"]);
        copy.args(["--slot", name, "--host", &self.place.address(), "--port", &self.port.to_string()]);
        copy.args(["--username", STREAM.0, "--pgdata"]).arg(&replica.data).env("PGPASSWORD", STREAM.1);
        run(copy)?;
        for file in FILES {
            fs::copy(self.etc.join(file), replica.etc.join(file))?;
        }
        // What stands further down holds.
        replica.configure("")?;
        replica.run()?;
        let streams = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}' AND active");
        wait::until("the replica's stream", Duration::from_secs(30), || async {
            ensure!(self.sql(&[&streams])? == "1", "nobody streams from slot {name}");
            Ok(())
        })
        .await?;
        Ok(replica)
    }

    /// Runs statements as the owner of the instance, over its socket; what they say.
    pub fn sql(&self, statements: &[&str]) -> Result<String> {
        self.sql_in("postgres", statements)
    }

    /// The same in another database.
    pub fn sql_in(&self, database: &str, statements: &[&str]) -> Result<String> {
        let mut psql = self.tool("psql")?;
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-p", &self.port.to_string()]);
        psql.arg("-h").arg(self.socket());
        for statement in statements {
            psql.args(["-c", statement]);
        }
        run(psql)
    }

    /// Process id of its first process, as its data directory names it.
    pub fn pid(&self) -> Result<u32> {
        let file = fs::read_to_string(self.data.join("postmaster.pid"))?;
        file.lines().next().unwrap_or_default().trim().parse().context("the first line of postmaster.pid is no number")
    }

    /// What it is and how it is configured, by path: its configuration byte for byte with owners and modes, what stands at the path of
    /// its data, and what is in there by name. Where two are the same nothing was changed.
    pub fn state(&self) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        describe(&self.etc, &mut found)?;
        let auto = self.data.join("postgresql.auto.conf");
        describe(&auto, &mut found)?;
        let kind = fs::symlink_metadata(&self.data)?.file_type();
        let mut names = fs::read_dir(&self.data)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        found.insert(self.data.display().to_string(), format!("{kind:?} with {}", names.join(" ")));
        Ok(found)
    }

    fn prepare(folder: &TestFolder, name: &str, agent: &Agent) -> Result<Self> {
        ensure!(geteuid().is_root(), "an instance of {OWNER}'s wants root");
        let all = folder.join("foreign");
        fs::create_dir_all(&all)?;
        let home = all.join(name);
        let place = agent.place().clone();
        let ([port], address) = (place.ports([5432])?, place.address());
        let login = |user: &str, database: &str| Login {
            user: user.to_owned(),
            password: format!("of {user}"),
            database: database.to_owned(),
        };
        let foreign = Self {
            node: agent.node.clone(),
            member: format!("{address}:{port}"),
            login: login("writer", "shop"),
            administrator: login("administrator", "postgres"),
            data: home.join("data"),
            etc: home.join("etc"),
            bin: postgres_bin()?,
            home,
            place,
            port,
        };
        for made in [&foreign.home, &foreign.etc, &foreign.etc.join("conf.d"), &foreign.socket()] {
            fs::create_dir(made).with_context(|| format!("cannot make {}", made.display()))?;
            give_to_owner(made)?;
        }
        Ok(foreign)
    }

    /// Folder of its socket.
    fn socket(&self) -> PathBuf {
        self.home.join("run")
    }

    /// Adds to its configuration file what makes it this instance, and writes the others.
    fn configure(&self, settings: &str) -> Result<()> {
        let file = |name: &str| self.etc.join(name).display().to_string();
        let own = format!(
            "data_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\nexternal_pid_file = '{}'\n\
             listen_addresses = '{}'\nport = {}\nunix_socket_directories = '{}'\ncluster_name = '{}/main'\n\
             include_dir = 'conf.d'\n{settings}\n",
            self.data.display(),
            file("pg_hba.conf"),
            file("pg_ident.conf"),
            self.socket().join("pid").display(),
            self.place.engine_addresses(),
            self.port,
            self.socket().display(),
            self.node,
        );
        let main = fs::read_to_string(self.etc.join("postgresql.conf"))? + &own;
        let files = [
            ("postgresql.conf", main.as_str()),
            ("pg_hba.conf", RULES),
            ("pg_ident.conf", "# Nobody is somebody else.\n"),
            ("conf.d/memory.conf", "maintenance_work_mem = '97MB'\n"),
            ("start.conf", "# Automatic startup configuration\nauto\n"),
        ];
        for (name, text) in files {
            fs::write(self.etc.join(name), text)?;
            give_to_owner(&self.etc.join(name))?;
        }
        Ok(())
    }

    /// Starts the engine, and waits until it answers.
    fn run(&self) -> Result<()> {
        let mut start = self.tool("pg_ctl")?;
        start.args(["start", "--wait", "--timeout=60", "--pgdata"]).arg(&self.data);
        start.arg("--log").arg(self.home.join("log"));
        start.args(["--options", &format!("-c config_file={}", self.etc.join("postgresql.conf").display())]);
        run(start).map(drop).with_context(|| format!("see {}", self.home.join("log").display()))
    }

    /// A program of the engine's, as the owner.
    fn tool(&self, program: &str) -> Result<Command> {
        let mut command = self.place.command_as(OWNER, &self.bin.join(program))?;
        command.current_dir(&self.home);
        Ok(command)
    }
}
