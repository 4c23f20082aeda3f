//! The engine's programs: where they are, their version, and running the short-lived ones.
//!
//! Tools run through `helper attached`, as the engine's user, with a cleared environment, and end with the agent.
//! Passwords reach them by a password file only. What a tool has forked does not end with an agent that is killed, and is ended
//! by the next one before it touches the same files ([`end_leftovers`]).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{sys::signal, unistd::Pid};
use regent_common::ids::MemberName;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::Command,
    time,
};
use tokio_util::sync::CancellationToken;

use super::layout::EngineUser;
use crate::engine::DriverError;

/// Programs that must be there.
const PROGRAMS: &[&str] = &["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"];
/// How long processes that were killed may take to be gone, and how often to look.
const LEFTOVERS_END_WITHIN: Duration = Duration::from_secs(5);
const LEFTOVERS_LOOK: Duration = Duration::from_millis(20);
/// Lines of a tool's output that are kept for its error text.
const KEPT_LINES: usize = 12;

/// `[engine.postgresql]` of the agent's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    /// Folder with the programs; unset: the newest under /usr/lib/postgresql, or the version that the cluster wants.
    pub(super) bin_dir: Option<PathBuf>,
    /// User that the engine runs as when the agent is root.
    pub(super) user: Option<String>,
    /// Port when the cluster names none.
    pub(super) port: Option<u16>,
    /// Addresses to listen on; unset: all.
    pub(super) listen_addresses: Option<String>,
}

/// The programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tools {
    pub(super) bin: PathBuf,
    /// Such as "15.13".
    pub(super) version: String,
    /// Such as 15.
    pub(super) major: u32,
}

/// Runs tools for one member.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub(super) agent_program: PathBuf,
    pub(super) user: EngineUser,
    pub(super) tools: Tools,
}

/// How a tool ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) status: String,
    pub(super) stdout: String,
    /// Last lines of its messages.
    pub(super) messages: String,
}

// === impl Section ===

impl Section {
    pub(super) fn read(table: Option<&toml::Table>) -> Result<Self, DriverError> {
        let Some(table) = table else { return Ok(Self::default()) };
        table.clone().try_into().map_err(|error: toml::de::Error| DriverError::InvalidSetting {
            name: "engine.postgresql".to_owned(),
            problem: error.message().to_owned(),
        })
    }

    /// Who the engine runs as.
    pub(super) fn engine_user(&self) -> Result<EngineUser, DriverError> {
        EngineUser::find("postgresql", self.user.as_deref(), "postgres")
    }
}

// === impl Tools ===

impl Tools {
    /// All installed versions, newest first.
    pub(super) fn installed(section: &Section) -> Vec<Self> {
        let folders = match &section.bin_dir {
            Some(folder) => vec![folder.clone()],
            None => fs::read_dir("/usr/lib/postgresql")
                .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path().join("bin")).collect())
                .unwrap_or_default(),
        };
        let mut found: Vec<Self> = folders.into_iter().filter_map(Self::look_at).collect();
        found.sort_by_key(|tools| std::cmp::Reverse(tools.sort_key()));
        found
    }

    /// The programs of `version` (a prefix such as "15", or empty for the newest).
    pub(super) fn find(section: &Section, version: &str) -> Result<Self, DriverError> {
        let matches =
            |tools: &Self| version.is_empty() || tools.version == version || tools.major.to_string() == version;
        Self::installed(section).into_iter().find(matches).ok_or_else(|| DriverError::MissingProgram {
            program: if version.is_empty() { "postgres".to_owned() } else { format!("postgres {version}") },
            searched: section
                .bin_dir
                .as_ref()
                .map_or_else(|| "/usr/lib/postgresql/*/bin".to_owned(), |folder| folder.display().to_string()),
            package: if version.is_empty() { "postgresql".to_owned() } else { format!("postgresql-{version}") },
            engine: "postgresql",
        })
    }

    fn look_at(bin: PathBuf) -> Option<Self> {
        if !PROGRAMS.iter().all(|program| bin.join(program).is_file()) {
            return None;
        }
        let output = std::process::Command::new(bin.join("postgres")).arg("--version").env_clear().output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().nth(2)?.to_owned();
        let major = version.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?;
        Some(Self { bin, version, major })
    }

    fn sort_key(&self) -> Vec<u32> {
        self.version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    }
}

/// Processes whose command line has this argument; those that are dead already have none.
fn with_argument(argument: &str) -> Vec<i32> {
    let processes = procfs::process::all_processes().into_iter().flatten().filter_map(Result::ok);
    let has = |process: &procfs::process::Process| {
        process.cmdline().is_ok_and(|arguments| arguments.iter().any(|own| own == argument))
    };
    processes.filter(has).map(|process| process.pid()).collect()
}

/// Ends what tools of an agent that was killed have left behind: processes whose command line has this argument. `pg_basebackup`
/// streams the log in a process of its own, which neither the death signal nor the end of its parent reaches: it would
/// write into the next copy, and hold the slot of this one.
pub(super) async fn end_leftovers(argument: &str) {
    let started = time::Instant::now();
    loop {
        let left = with_argument(argument);
        if left.is_empty() || started.elapsed() > LEFTOVERS_END_WITHIN {
            return;
        }
        for pid in left {
            tracing::info!(pid, argument, "a process that an earlier agent's tool has left behind is ended");
            if let Err(error) = signal::kill(Pid::from_raw(pid), signal::Signal::SIGKILL) {
                tracing::debug!(%error, "it had just ended");
            }
        }
        time::sleep(LEFTOVERS_LOOK).await;
    }
}

// === impl Runner ===

impl Runner {
    /// Runs a tool to its end, or until `cancel` or the deadline; `on_line` sees each line of its messages.
    pub(super) async fn run(
        &self,
        name: &str,
        arguments: &[String],
        password_file: Option<&Path>,
        limit: Duration,
        cancel: &CancellationToken,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<Ended, DriverError> {
        let program = self.tools.bin.join(name);
        let mut command = Command::new(&self.agent_program);
        command.args(["helper", "attached", "--parent", &std::process::id().to_string()]);
        if let Some(user) = &self.user.name {
            command.args(["--user", user]);
        }
        if let Some(file) = password_file {
            command.arg("--env").arg(format!("PGPASSFILE={}", file.display()));
        }
        command.arg("--").arg(&program).args(arguments);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: some tools fork, and a cancelled one must leave nothing behind.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| DriverError::Io { doing: "start", path: program.clone(), source })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let stdout = tokio::spawn(read_some(child.stdout.take().expect("stdout is piped")));
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut last: std::collections::VecDeque<String> = std::collections::VecDeque::new();
        let kill = || {
            if let Some(group) = group
                && let Err(error) = signal::killpg(group, signal::Signal::SIGKILL)
            {
                tracing::debug!(%error, "the tool had just ended");
            }
        };
        let work = async {
            let mut line = Vec::new();
            // Progress lines end with a carriage return when the tool thinks that somebody watches.
            while stderr.read_until(b'\n', &mut line).await.unwrap_or(0) > 0 {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                if text.is_empty() {
                    continue;
                }
                on_line(&text);
                if last.len() == KEPT_LINES {
                    last.pop_front();
                }
                last.push_back(text);
            }
            child.wait().await
        };
        let status = tokio::select! {
            () = cancel.cancelled() => {
                kill();
                drop(child.wait().await);
                return Err(DriverError::Cancelled { doing: "running a tool of the engine" });
            }
            status = time::timeout(limit, work) => status,
        };
        let Ok(status) = status else {
            kill();
            drop(child.wait().await);
            return Err(DriverError::Deadline {
                doing: name.to_owned(),
                seconds: limit.as_secs(),
                last: last.back().cloned().unwrap_or_default(),
            });
        };
        let status = status.map_err(|source| DriverError::Io { doing: "run", path: program, source })?;
        Ok(Ended {
            success: status.success(),
            status: status.to_string(),
            stdout: stdout.await.unwrap_or_default(),
            messages: Vec::from(last).join("; "),
        })
    }

    /// As [`Self::run`], for tools that must succeed and that nobody cancels.
    pub(super) async fn must(&self, name: &str, arguments: &[String], limit: Duration) -> Result<String, DriverError> {
        let ended = self.run(name, arguments, None, limit, &CancellationToken::new(), |_| {}).await?;
        if ended.success { Ok(ended.stdout) } else { Err(ended.failure(name)) }
    }

    /// A field of `pg_controldata`.
    pub(super) async fn control_data(&self, data: &Path) -> Result<String, DriverError> {
        self.must("pg_controldata", &[data.display().to_string()], Duration::from_secs(10)).await
    }

    /// Refuses data of another major version than the programs'.
    pub(super) fn check_version(&self, data: &Path, member: &MemberName) -> Result<(), DriverError> {
        let path = data.join("PG_VERSION");
        let text = fs::read_to_string(&path).map_err(|source| DriverError::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        if text.trim() == self.tools.major.to_string() {
            return Ok(());
        }
        Err(DriverError::InvalidSetting {
            name: "version".to_owned(),
            problem: format!(
                "the data of {member} is of version {}, the programs in {} are {}",
                text.trim(),
                self.tools.bin.display(),
                self.tools.version
            ),
        })
    }
}

// === impl Ended ===

impl Ended {
    pub(super) fn failure(self, program: &str) -> DriverError {
        DriverError::Program { program: program.to_owned(), status: self.status, stderr: self.messages }
    }
}

/// The value of a field in the output of `pg_controldata`.
pub(super) fn control_field<'a>(output: &'a str, name: &str) -> Option<&'a str> {
    output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

async fn read_some(stream: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // What a tool prints is short; a runaway one must not fill our memory.
    let mut stream = stream.take(256 * 1024);
    drop(stream.read_to_end(&mut text).await);
    // A tool whose output nobody reads would wait for ever.
    drop(tokio::io::copy(&mut stream.into_inner(), &mut tokio::io::sink()).await);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_tool_has_left_behind_is_found_by_its_argument_and_ended() {
        let argument = format!("--pgdata=/nowhere/of-{}", std::process::id());
        let start = |last: &str| {
            let mut child = std::process::Command::new("sh");
            child.args(["-c", "read -r _", "sh", last]).stdin(Stdio::piped()).spawn().expect("there is a shell")
        };
        let (mut left, mut other) = (start(&argument), start(&format!("{argument}-other")));
        end_leftovers(&argument).await;
        assert!(!left.wait().unwrap().success());
        assert_eq!(other.try_wait().unwrap(), None, "another argument");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
