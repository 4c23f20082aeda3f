//! What the engine's settings are where nobody has set any: asked of the engine's own program, which runs for a moment without data,
//! in a folder of its own, and listens only on a socket in it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use redis::{Cmd, ConnectionAddr};
use tokio::{process::Command, time};

use crate::engine::{
    DriverError,
    layout::{EngineUser, io_error},
    redis::{
        flavor::Server,
        session::{BRIEF, Session},
    },
};

/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two tries.
const POLL: Duration = Duration::from_millis(5);

/// Counts the folders, so that each has a name of its own.
static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

// === impl Folder ===

impl Folder {
    fn make(user: &EngineUser) -> Result<Self, DriverError> {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("regent-defaults-{}-{number}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(io_error("create", &path))?;
        let folder = Self(path);
        if user.name.is_some() {
            chown(&folder.0, Some(user.uid), Some(user.gid)).map_err(io_error("set the owner of", &folder.0))?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a folder of nobody's is left");
        }
    }
}

/// All settings of the engine, as it has them by itself.
pub(super) async fn of(
    server: &Server,
    agent_program: &Path,
    user: &EngineUser,
) -> Result<BTreeMap<String, String>, DriverError> {
    let folder = Folder::make(user)?;
    let socket = folder.0.join("socket");
    let failed = |source| DriverError::Io { doing: "run", path: server.program.clone(), source };
    let mut command = Command::new(agent_program);
    command.args(["helper", "attached", "--parent", &std::process::id().to_string()]);
    if let Some(user) = &user.name {
        command.args(["--user", user]);
    }
    command
        .arg("--")
        .arg(&server.program)
        .args(["--port", "0", "--unixsocket"])
        .arg(&socket)
        .arg("--dir")
        .arg(&folder.0);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let asked = async {
        loop {
            if let Ok(session) = Session::open(ConnectionAddr::Unix(socket.clone()), BRIEF).await {
                let all = session.ask(Cmd::new().arg("CONFIG").arg("GET").arg("*"), BRIEF).await;
                return all.map_err(|error| error.refused("tell its own defaults"));
            }
            time::sleep(POLL).await;
        }
    };
    let told = time::timeout(LIMIT, asked).await.unwrap_or_else(|_| {
        Err(DriverError::Deadline {
            doing: "asking the engine's program for its defaults".to_owned(),
            seconds: LIMIT.as_secs(),
            last: "it did not answer".to_owned(),
        })
    });
    child.kill().await.map_err(failed)?;
    told
}
