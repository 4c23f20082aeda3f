//! The subcommands.

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use regent_tests::workload::{
    Client, Dialect, Login,
    checker::{self, Account, Gap, Overlap},
    history::{History, Recorder},
    now_nanos,
    postgres::{self, PostgresSession},
    redis::RedisSession,
    writer::{self, Plan, Target},
    writers::PASSWORD,
};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Writes numbered rows, and gives an account of them.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the table on the member that takes writes; rows of an earlier run go.
    Setup {
        /// Members as host:port,host:port.
        #[arg(long, value_delimiter = ',', required = true)]
        members: Vec<String>,
        /// Mebibytes of other data to add, so that a copy takes a while.
        #[arg(long, default_value_t = 0)]
        ballast_mib: u32,
        #[command(flatten)]
        login: LoginArguments,
    },
    /// Writes to whichever member takes writes, until SIGTERM.
    Follow {
        /// Members as host:port,host:port.
        #[arg(long, value_delimiter = ',', required = true)]
        members: Vec<String>,
        #[command(flatten)]
        write: WriteArguments,
    },
    /// Writes to one member, whatever it says, until SIGTERM.
    Node {
        /// Member as host:port.
        #[arg(long)]
        member: String,
        #[command(flatten)]
        write: WriteArguments,
    },
    /// Sends one transaction that writes a row, waits in the engine, and commits; records whether it is acknowledged.
    Commit {
        /// Member as host:port.
        #[arg(long)]
        member: String,
        /// Milliseconds that the transaction waits before it commits.
        #[arg(long)]
        wait_millis: u64,
        #[command(flatten)]
        write: WriteArguments,
    },
    /// Compares the writers' logs with what the primary has; prints JSON.
    Account {
        /// Members as host:port,host:port.
        #[arg(long, value_delimiter = ',', required = true)]
        members: Vec<String>,
        /// Logs of all writers.
        #[arg(long, num_args = 1.., required = true)]
        logs: Vec<PathBuf>,
        /// Outage and overlap are looked for from here on (nanoseconds, see `now`); default the first row.
        #[arg(long)]
        from: Option<u64>,
        #[command(flatten)]
        login: LoginArguments,
    },
    /// Prints the time of the writers' clock in nanoseconds.
    Now,
}

#[derive(Debug, Args)]
struct LoginArguments {
    /// Engine, by its name in a cluster.
    #[arg(long = "engine", default_value = "postgresql", value_parser = Dialect::of)]
    dialect: Dialect,
    /// User of the engine.
    #[arg(long)]
    user: String,
    /// Database.
    #[arg(long)]
    database: String,
}

#[derive(Debug, Args)]
struct WriteArguments {
    #[command(flatten)]
    login: LoginArguments,
    /// Name of this writer.
    #[arg(long)]
    writer: String,
    /// Where every attempt and every answer goes.
    #[arg(long)]
    log: PathBuf,
    /// Milliseconds of pause after each row.
    #[arg(long, default_value_t = 1)]
    pause_millis: u64,
    /// Milliseconds to wait for the answer to a row.
    #[arg(long, default_value_t = 1000)]
    patience_millis: u64,
}

/// What `account` prints.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    account: Account,
    write_outage_ms: f64,
    outage: Gap,
    overlaps: Vec<Overlap>,
}

/// Runs a subcommand.
pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    match dispatch(arguments.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            drop(writeln!(std::io::stderr(), "regent-workload: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Setup { members, ballast_mib, login } => {
            let client = login.read()?;
            let primary = client.find_primary(&members).await?;
            client.make_room(&primary).await?;
            client.add_ballast(&primary, ballast_mib).await
        }
        // A follower looks again at once: it measures the outage.
        Command::Follow { members, write: arguments } => {
            write(Target::Primary(members), Duration::from_millis(5), arguments).await
        }
        Command::Node { member, write: arguments } => {
            write(Target::Member(member), Duration::from_millis(20), arguments).await
        }
        Command::Commit { member, wait_millis, write } => {
            commit(&member, Duration::from_millis(wait_millis), write).await
        }
        Command::Account { members, logs, from, login } => account(&members, &logs, from, &login.read()?).await,
        Command::Now => Ok(writeln!(std::io::stdout(), "{}", now_nanos())?),
    }
}

/// Cancelled when somebody wants the process to end.
fn until_stopped() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.cancel();
    });
    Ok(stop)
}

/// Waits for the acknowledgement as long as nobody stops it: it must be seen however late it comes.
async fn commit(member: &str, wait: Duration, arguments: WriteArguments) -> Result<()> {
    let stop = until_stopped()?;
    let (client, row) = (arguments.login.read()?, 1);
    ensure!(client.dialect == Dialect::Postgres, "only a transaction of PostgreSQL waits in the engine");
    let mut recorder = Recorder::create(&arguments.log, &arguments.writer)
        .with_context(|| format!("cannot write {}", arguments.log.display()))?;
    recorder.attempt(row, member)?;
    let answer =
        stop.run_until_cancelled(postgres::slow_commit(&client.login, member, &arguments.writer, row, wait)).await;
    match answer {
        Some(Ok(())) => recorder.acknowledged(row, "")?,
        Some(Err(error)) => recorder.unknown(row, &format!("{error:#}"))?,
        None => recorder.unknown(row, "no answer until it was stopped")?,
    };
    Ok(())
}

async fn write(target: Target, retry: Duration, arguments: WriteArguments) -> Result<()> {
    let stop = until_stopped()?;
    let Client { dialect, login } = arguments.login.read()?;
    let plan = Plan {
        writer: arguments.writer,
        target,
        login,
        pause: Duration::from_millis(arguments.pause_millis),
        retry,
        patience: Duration::from_millis(arguments.patience_millis),
    };
    let mut recorder = Recorder::create(&arguments.log, &plan.writer)
        .with_context(|| format!("cannot write {}", arguments.log.display()))?;
    match dialect {
        Dialect::Postgres => writer::run::<PostgresSession>(&plan, &mut recorder, &stop).await?,
        Dialect::Redis => writer::run::<RedisSession>(&plan, &mut recorder, &stop).await?,
    }
    Ok(())
}

async fn account(members: &[String], logs: &[PathBuf], from: Option<u64>, client: &Client) -> Result<()> {
    let histories = logs.iter().map(|log| History::read(log)).collect::<Result<Vec<_>>>()?;
    let stored = client.read_rows(&client.find_primary(members).await?).await?;
    let times: Vec<u64> = histories.iter().flat_map(|h| h.acknowledgements().map(|(at, _)| at)).collect();
    let from = from.or_else(|| times.iter().min().copied()).unwrap_or_default();
    let until = times.iter().max().copied().unwrap_or(from).max(from);
    let outage = checker::longest_gap(&histories, from, until);
    let report = Report {
        account: checker::account(&histories, &stored),
        write_outage_ms: outage.millis(),
        outage,
        overlaps: checker::overlaps(&histories, from, until),
    };
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?)
}

// === impl LoginArguments ===

impl LoginArguments {
    fn read(self) -> Result<Client> {
        let password = std::env::var(PASSWORD).with_context(|| format!("{PASSWORD} is not set"))?;
        Ok(Client { dialect: self.dialect, login: Login { user: self.user, password, database: self.database } })
    }
}
