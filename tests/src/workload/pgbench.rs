//! Load beside the writers: pgbench's own transactions against whichever member is the primary.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{process::Command, task::AbortHandle};

use super::Login;
use crate::engines::postgres_bin;

/// Clients at once.
const CLIENTS: &str = "8";
/// Size of pgbench's tables: ten times 100,000 accounts.
const SCALE: &str = "10";
/// Pause after it was thrown out, as by a promotion, before it tries again.
const PAUSE: Duration = Duration::from_millis(100);

/// Load that lasts until this is dropped.
#[derive(Debug)]
pub struct Load(AbortHandle);

// === impl Load ===

impl Load {
    /// Fills pgbench's tables, then loads the primary among `members` (host:port): as much as it takes, or with so many transactions
    /// per second.
    pub async fn start(login: &Login, members: &[String], rate: Option<u32>) -> Result<Self> {
        let program = postgres_bin()?.join("pgbench");
        let filled = pgbench(&program, login, members, &["--initialize", "--quiet", "--scale", SCALE]).output().await;
        let filled = filled.context("cannot run pgbench")?;
        ensure!(filled.status.success(), "pgbench could not fill its tables: {}", filled.status);
        let (login, members) = (login.clone(), members.to_vec());
        let task = tokio::spawn(async move {
            let rate = rate.map(|rate| format!("--rate={rate}"));
            loop {
                let arguments = ["--client", CLIENTS, "--jobs", "2", "--time", "3600", "--no-vacuum"];
                let arguments: Vec<&str> = arguments.into_iter().chain(rate.as_deref()).collect();
                // Whatever ended it: the next one finds the primary that there is then.
                drop(pgbench(&program, &login, &members, &arguments).status().await);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Self(task.abort_handle()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// pgbench against the member that takes writes.
fn pgbench(program: &Path, login: &Login, members: &[String], arguments: &[&str]) -> Command {
    let part = |index: usize| {
        let parts = members.iter().filter_map(|member| member.rsplit_once(':'));
        parts.map(|(host, port)| if index == 0 { host } else { port }).collect::<Vec<_>>().join(",")
    };
    let mut command = Command::new(program);
    command.args(arguments).arg(format!(
        "host={} port={} user={} dbname={} target_session_attrs=read-write connect_timeout=2",
        part(0),
        part(1),
        login.user,
        login.database
    ));
    command.env("PGPASSWORD", &login.password).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
