//! Writing rows to Redis and its kin, and reading them again.
//!
//! The rows are elements of one list: one that is there twice is seen. Each is written in a transaction that also asks for the id of
//! the history, which the engine changes whenever a replica becomes a primary: so an acknowledgement tells its reign.

use std::{fs::File, io::Read, time::Duration};

use anyhow::{Context, Result, anyhow};
use redis::{
    AsyncConnectionConfig, IntoConnectionInfo, RedisConnectionInfo, RedisError, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};

use super::{
    Login,
    checker::{Row, Stored},
    writer::{Refusal, Session},
};

/// Name of the list with the rows.
pub const ROWS: &str = "regent_rows";
/// What the keys of other data begin with.
const BALLAST: &str = "regent_ballast";
/// A key that nobody has.
const NOTHING: &str = "regent_nothing";

/// What the engine says when a transaction was not carried out, because a command of it was refused.
const ABORTED: &str = "EXECABORT";

/// A connection.
#[derive(Debug)]
pub struct RedisSession(MultiplexedConnection);

/// A connection to `member` (host:port). It ends with what is returned.
pub async fn connect(login: &Login, member: &str) -> Result<MultiplexedConnection> {
    let (host, port) = member.rsplit_once(':').context("a member is given as host:port")?;
    let port: u16 = port.parse().context("the port is not a number")?;
    let handshake = RedisConnectionInfo::default()
        .set_username(&login.user)
        .set_password(&login.password)
        .set_db(login.database.parse().context("the database is not a number")?)
        // Not every flavor knows that.
        .set_skip_set_lib_name();
    // A row is one small packet, and is to leave at once.
    let settings = TcpSettings::default().set_nodelay(true);
    let info = (host, port).into_connection_info()?.set_redis_settings(handshake).set_tcp_settings(settings);
    // How long an answer may take is the caller's.
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(Duration::from_secs(1))).set_response_timeout(None);
    let client = redis::Client::open(info)?;
    Ok(Box::pin(client.get_multiplexed_async_connection_with_config(&config)).await?)
}

/// Removes the rows of an earlier run on `member`, which has to be the primary.
pub async fn clear_rows(login: &Login, member: &str) -> Result<()> {
    let mut connection = connect(login, member).await?;
    redis::cmd("DEL").arg(ROWS).exec_async(&mut connection).await.context("cannot remove the rows")?;
    // A writer that could not do this would never begin, and not say why.
    reign(&replication(&mut connection).await?).map(drop)
}

/// Adds so many mebibytes of data, so that a copy takes a while.
pub async fn add_ballast(login: &Login, member: &str, mebibytes: u32) -> Result<()> {
    let mut connection = connect(login, member).await?;
    // What repeats itself would be packed into nothing.
    let mut chance = File::open("/dev/urandom")?;
    let mut filler = [0; 1024];
    for mebibyte in 0..mebibytes {
        let mut together = redis::pipe();
        for kibibyte in 0..1024 {
            chance.read_exact(&mut filler)?;
            together.cmd("SET").arg(format!("{BALLAST}:{mebibyte}:{kibibyte}")).arg(&filler[..]).ignore();
        }
        together.exec_async(&mut connection).await.context("cannot add ballast")?;
    }
    Ok(())
}

/// Reads all rows that `member` has.
pub async fn read_rows(login: &Login, member: &str) -> Result<Stored> {
    let elements = elements(&mut connect(login, member).await?).await?;
    let mut stored = Stored::new();
    for element in elements {
        *stored.entry(row(&element)?).or_default() += 1;
    }
    Ok(stored)
}

/// Takes a row away on `member`, which has to be the primary; how often it was there.
pub async fn remove_row(login: &Login, member: &str, gone: &Row) -> Result<u64> {
    let mut connection = connect(login, member).await?;
    let mut removed = 0;
    for element in elements(&mut connection).await? {
        if row(&element)? == *gone {
            removed += redis::cmd("LREM").arg(ROWS).arg(1).arg(element).query_async::<u64>(&mut connection).await?;
        }
    }
    Ok(removed)
}

/// What `member` says of itself, by the engine's name for a section of it.
pub async fn info(login: &Login, member: &str, section: &str) -> Result<String> {
    Ok(redis::cmd("INFO").arg(section).query_async(&mut connect(login, member).await?).await?)
}

/// Whether `member` says that it takes writes.
pub async fn takes_writes(login: &Login, member: &str) -> Result<bool> {
    Ok(is_primary(&replication(&mut connect(login, member).await?).await?))
}

/// A row as an element of the list. Names of writers may have blanks.
fn element(writer: &str, number: u64, member: &str) -> String {
    format!("{writer}\t{number}\t{member}")
}

async fn elements(connection: &mut MultiplexedConnection) -> Result<Vec<String>> {
    Ok(redis::cmd("LRANGE").arg(ROWS).arg(0).arg(-1).query_async(connection).await?)
}

fn row(element: &str) -> Result<Row> {
    let mut fields = element.split('\t');
    let (writer, number) = fields.next().zip(fields.next()).with_context(|| format!("{element:?} is no row"))?;
    Ok((writer.to_owned(), number.parse().with_context(|| format!("{element:?} has no number"))?))
}

/// What the engine says of its part, while it serves.
async fn replication(connection: &mut MultiplexedConnection) -> Result<String> {
    // It would also tell while it loads its data; the other question is refused then.
    let mut both = redis::pipe();
    both.cmd("EXISTS").arg(ROWS).ignore().cmd("INFO").arg("replication");
    let (info,): (String,) = both.query_async(connection).await?;
    Ok(info)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

fn is_primary(info: &str) -> bool {
    field(info, "role") == Some("master")
}

/// The engine's word for the reign.
fn reign(info: &str) -> Result<String> {
    field(info, "master_replid").map(str::to_owned).ok_or_else(|| anyhow!("the engine names no history: {info:?}"))
}

/// Why a transaction whose first command is the write was not acknowledged.
fn refusal(error: RedisError) -> Refusal {
    let (reason, aborted) = (error.to_string(), error.code() == Some(ABORTED));
    // An error of all, or of the write itself. Any other one can come after it.
    let of_the_write = error.into_server_errors().is_some_and(|errors| errors.iter().any(|(command, _)| *command == 0));
    Refusal { certain: aborted || of_the_write, reason }
}

// === impl RedisSession ===

impl Session for RedisSession {
    type Login = Login;

    async fn connect(login: &Login, member: &str) -> Result<Self, String> {
        connect(login, member).await.map(Self).map_err(|error| format!("{error:#}"))
    }

    async fn writable(&self) -> Result<bool, String> {
        let info = replication(&mut self.0.clone()).await;
        info.map(|info| is_primary(&info)).map_err(|error| format!("{error:#}"))
    }

    async fn insert(&self, writer: &str, row: u64, member: &str) -> Result<String, Refusal> {
        let mut transaction = redis::pipe();
        transaction.atomic().cmd("RPUSH").arg(ROWS).arg(element(writer, row, member));
        transaction.cmd("INFO").arg("replication");
        let answer = transaction.query_async::<(u64, String)>(&mut self.0.clone()).await;
        let (_, info) = answer.map_err(refusal)?;
        reign(&info).map_err(|error| Refusal { certain: false, reason: error.to_string() })
    }

    async fn count(&self) -> Result<u64, String> {
        redis::cmd("LLEN").arg(ROWS).query_async(&mut self.0.clone()).await.map_err(|error| error.to_string())
    }

    async fn touch(&self) -> Result<(), Refusal> {
        redis::cmd("DEL").arg(NOTHING).exec_async(&mut self.0.clone()).await.map_err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str =
        "# Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_replid:8f3c\r\nmaster_replid2:0000\r\n";

    #[test]
    fn part_and_reign_are_read() {
        assert!(is_primary(INFO) && !is_primary(&INFO.replace("role:master", "role:slave")));
        assert_eq!(reign(INFO).unwrap(), "8f3c");
        assert!(reign("# Replication\r\nrole:master\r\n").is_err());
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        assert_eq!(row(&element("by hand", 7, "127.0.0.1:1")).unwrap(), ("by hand".to_owned(), 7));
        assert!(row("7").is_err() && row("w\tx\th:1").is_err());
    }
}
