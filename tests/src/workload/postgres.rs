//! Writing rows to PostgreSQL, and reading them again.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::AbortHandle;
use tokio_postgres::{Client, Config, NoTls, Statement, error::SqlState};

use super::{
    Login,
    checker::{Row, Stored},
    writer::{Refusal, Session},
};

/// Name of the table with the rows. It has no key on purpose: a row that is there twice has to be seen.
pub const TABLE: &str = "regent_rows";

/// Asks whether a member takes writes.
const WRITABLE: &str = "SELECT NOT pg_is_in_recovery()";

/// A connection with the statement prepared.
#[derive(Debug)]
pub struct PostgresSession {
    client: Client,
    insert: Statement,
    connection: AbortHandle,
}

/// A connection to `member` (host:port).
pub async fn connect(login: &Login, member: &str) -> Result<(Client, AbortHandle)> {
    let (host, port) = member.rsplit_once(':').context("a member is given as host:port")?;
    let (client, connection) = Config::new()
        .host(host)
        .port(port.parse().context("the port is not a number")?)
        .user(&login.user)
        .password(&login.password)
        .dbname(&login.database)
        .application_name("regent-workload")
        .connect_timeout(Duration::from_secs(1))
        .connect(NoTls)
        .await?;
    // The connection ends with the client; what it has to say is said by the calls that fail.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((client, task.abort_handle()))
}

/// Makes the table on `member`, which has to be the primary; rows of an earlier run go.
pub async fn create_table(login: &Login, member: &str) -> Result<()> {
    let (client, _) = connect(login, member).await?;
    let statements = format!(
        "DROP TABLE IF EXISTS {TABLE}; \
         CREATE TABLE {TABLE} (writer text NOT NULL, number bigint NOT NULL, member text NOT NULL);"
    );
    client.batch_execute(&statements).await.context("cannot make the table of rows")
}

/// Adds about so many mebibytes of data, so that a copy takes a while.
pub async fn add_ballast(login: &Login, member: &str, mebibytes: u32) -> Result<()> {
    let (client, _) = connect(login, member).await?;
    // Uncompressed, so that a row is a kilobyte.
    let statements = format!(
        "DROP TABLE IF EXISTS regent_ballast; \
         CREATE TABLE regent_ballast (filler text); \
         ALTER TABLE regent_ballast ALTER COLUMN filler SET STORAGE PLAIN; \
         INSERT INTO regent_ballast SELECT repeat('x', 1000) FROM generate_series(1, {});",
        u64::from(mebibytes) * 1024
    );
    client.batch_execute(&statements).await.context("cannot add ballast")
}

/// Reads all rows that `member` has.
pub async fn read_rows(login: &Login, member: &str) -> Result<Stored> {
    let (client, _) = connect(login, member).await?;
    let rows = client.query(&format!("SELECT writer, number, count(*) FROM {TABLE} GROUP BY 1, 2"), &[]).await?;
    let number = |value: i64| u64::try_from(value).context("a row's number is not negative");
    rows.iter().map(|row| Ok(((row.get(0), number(row.get(1))?), number(row.get(2))?))).collect()
}

/// Takes a row away on `member`, which has to be the primary; how often it was there.
pub async fn remove_row(login: &Login, member: &str, (writer, number): &Row) -> Result<u64> {
    let (client, _) = connect(login, member).await?;
    let delete = format!("DELETE FROM {TABLE} WHERE writer = $1 AND number = $2");
    Ok(client.execute(&delete, &[writer, &i64::try_from(*number)?]).await?)
}

/// Whether `member` says that it takes writes.
pub async fn takes_writes(login: &Login, member: &str) -> Result<bool> {
    let (client, _) = connect(login, member).await?;
    Ok(client.query_one(WRITABLE, &[]).await?.get(0))
}

/// The first of `members` that says that it takes writes.
pub async fn find_primary(login: &Login, members: &[String]) -> Result<String> {
    super::Client::from(login).find_primary(members).await
}

/// A transaction that writes a row, waits in the engine, and commits, sent as one message: after it was sent the client has
/// no say any more. `Err` is what the engine said, or that it said nothing.
pub async fn slow_commit(login: &Login, member: &str, writer: &str, row: u64, wait: Duration) -> Result<()> {
    let (client, _) = connect(login, member).await?;
    let statements = format!(
        "BEGIN; INSERT INTO {TABLE} (writer, number, member) VALUES ('{writer}', {row}, '{member}'); \
         SELECT pg_sleep({}); COMMIT;",
        wait.as_secs_f64()
    );
    Ok(client.batch_execute(&statements).await?)
}

// === impl PostgresSession ===

impl Drop for PostgresSession {
    fn drop(&mut self) {
        // A server that answers no more would keep the task and its socket.
        self.connection.abort();
    }
}

impl Session for PostgresSession {
    type Login = Login;

    async fn connect(login: &Login, member: &str) -> Result<Self, String> {
        let connect = async {
            let (client, connection) = connect(login, member).await?;
            // The timeline in which the row is written; the name of a WAL file begins with it.
            let insert = client
                .prepare(&format!(
                    "INSERT INTO {TABLE} (writer, number, member) VALUES ($1, $2, $3) \
                     RETURNING left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
                ))
                .await?;
            Ok::<_, anyhow::Error>(Self { client, insert, connection })
        };
        connect.await.map_err(|error| format!("{error:#}"))
    }

    async fn writable(&self) -> Result<bool, String> {
        let row = self.client.query_one(WRITABLE, &[]).await.map_err(|error| error.to_string())?;
        Ok(row.get(0))
    }

    async fn insert(&self, writer: &str, row: u64, member: &str) -> Result<String, Refusal> {
        let number = i64::try_from(row).expect("nobody writes so many rows");
        let row = self.client.query_one(&self.insert, &[&writer, &number, &member]).await;
        row.map(|row| row.get(0)).map_err(|error| refusal(&error))
    }

    async fn count(&self) -> Result<u64, String> {
        let count = format!("SELECT count(*) FROM {TABLE}");
        let row = self.client.query_one(&count, &[]).await.map_err(|error| error.to_string())?;
        u64::try_from(row.get::<_, i64>(0)).map_err(|error| error.to_string())
    }

    async fn touch(&self) -> Result<(), Refusal> {
        // Changes nothing where it is taken.
        let update = format!("UPDATE {TABLE} SET writer = writer WHERE false");
        self.client.execute(&update, &[]).await.map(drop).map_err(|error| refusal(&error))
    }
}

fn refusal(error: &tokio_postgres::Error) -> Refusal {
    Refusal {
        // Any other error can come after the commit.
        certain: error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
        reason: error
            .as_db_error()
            .map_or_else(|| error.to_string(), |e| format!("{}: {}", e.code().code(), e.message())),
    }
}
