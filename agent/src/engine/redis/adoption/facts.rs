//! What an instance says of itself, and what its configuration says besides.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use redis::{Cmd, FromRedisValue, Value};

use super::door::Door;
use crate::engine::redis::{
    info::Info,
    session::{BRIEF, Session, SessionError},
};

/// Commands without which nothing can be done with an engine.
pub(super) const NEEDED: &[&str] =
    &["acl", "bgsave", "client", "config", "exec", "info", "multi", "psync", "replconf", "replicaof", "shutdown"];
/// How many files may include one another.
const FILES: usize = 32;
/// The channel over which Sentinels find one another: each that watches an instance has subscribed to it.
const OF_SENTINELS: &str = "__sentinel__:hello";

/// What an instance says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) info: Info,
    /// All of its settings.
    pub(super) settings: BTreeMap<String, String>,
    /// Its users, as it lists them.
    pub(super) users: Vec<String>,
    pub(super) modules: Vec<String>,
    /// How many Sentinels watch it.
    pub(super) sentinels: u64,
    /// Commands that are needed and that it does not know.
    pub(super) missing: Vec<&'static str>,
    /// Commands that its configuration renames, by their own names.
    pub(super) renamed: Vec<String>,
    pub(super) config_file: Option<PathBuf>,
}

// === impl Facts ===

impl Facts {
    /// Asks a running instance; the error is a sentence with what to do.
    pub(super) async fn ask(door: &Door) -> Result<Self, String> {
        let session = door.enter().await?;
        Self::told(&session).await.map_err(|error| {
            format!(
                "it does not answer as an administrator is answered ({error}): let the user {} do everything",
                door.user()
            )
        })
    }

    async fn told(session: &Session) -> Result<Self, SessionError> {
        let info = Info::parse(&asked::<String>(session, &["INFO", "default"]).await?);
        let missing = missing(session).await?;
        let mut facts = Self { info, ..Self::default() };
        facts.config_file = facts.info.text("config_file").filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(path) = &facts.config_file {
            facts.renamed = renamed(&configuration(path));
        }
        facts.sentinels = sentinels(session).await?;
        if !missing.contains(&"config") {
            facts.settings = asked(session, &["CONFIG", "GET", "*"]).await?;
        }
        if !missing.contains(&"acl") {
            facts.users = asked(session, &["ACL", "LIST"]).await?;
        }
        facts.modules = modules(session).await;
        facts.missing = missing;
        Ok(facts)
    }

    /// The value of a setting; empty when it has none.
    pub(super) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.setting("port").parse().ok().filter(|port| *port != 0)
    }

    /// Version of the engine: Valkey also says with which one of Redis it gets on.
    pub(super) fn version(&self) -> &str {
        self.info.text("valkey_version").or_else(|| self.info.text("redis_version")).unwrap_or_default()
    }

    /// Whether the configuration file that it names is there for us too.
    pub(super) fn has_config_file(&self) -> bool {
        self.config_file.as_ref().is_none_or(|path| path.is_file())
    }
}

async fn asked<T: FromRedisValue>(session: &Session, words: &[&str]) -> Result<T, SessionError> {
    let mut command = Cmd::new();
    command.arg(words);
    session.ask(&command, BRIEF).await
}

async fn missing(session: &Session) -> Result<Vec<&'static str>, SessionError> {
    let words: Vec<&str> = ["COMMAND", "INFO"].into_iter().chain(NEEDED.iter().copied()).collect();
    let known: Vec<Value> = asked(session, &words).await?;
    let unknown = |(name, value): (&&'static str, &Value)| match value {
        Value::Nil => Some(*name),
        Value::Array(entry) if entry.is_empty() => Some(*name),
        _ => None,
    };
    Ok(NEEDED.iter().zip(&known).filter_map(unknown).collect())
}

/// A Sentinel says who it is by the name of its connections, and has subscribed to where all of them meet.
async fn sentinels(session: &Session) -> Result<u64, SessionError> {
    let (_, subscribed): (String, u64) = asked(session, &["PUBSUB", "NUMSUB", OF_SENTINELS]).await?;
    let clients: String = asked(session, &["CLIENT", "LIST"]).await?;
    let named = clients.lines().filter(|line| line.contains(" name=sentinel-") && line.contains("-cmd ")).count();
    Ok(subscribed.max(u64::try_from(named).unwrap_or(u64::MAX)))
}

/// Names of the modules that were loaded. Where they cannot be asked for there are none.
async fn modules(session: &Session) -> Vec<String> {
    loaded_modules(&asked::<Vec<Value>>(session, &["MODULE", "LIST"]).await.unwrap_or_default())
}

/// Names of those that come from a file: what is part of the server (release 8 lists `vectorset` with an empty path) a member has, too.
fn loaded_modules(listed: &[Value]) -> Vec<String> {
    let text = |value: &Value| String::from_redis_value(value.clone()).unwrap_or_default();
    let fields = |module: &Value| -> BTreeMap<String, String> {
        match module {
            Value::Array(fields) => {
                fields.chunks(2).filter_map(|pair| Some((text(pair.first()?), text(pair.get(1)?)))).collect()
            }
            Value::Map(fields) => fields.iter().map(|(name, value)| (text(name), text(value))).collect(),
            _ => BTreeMap::new(),
        }
    };
    let is_part = |module: &BTreeMap<String, String>| module.get("path").is_some_and(String::is_empty);
    let modules = listed.iter().map(fields).filter(|module| !is_part(module));
    modules.filter_map(|mut module| module.remove("name")).collect()
}

/// The lines of a configuration file and of those that it includes, where they can be read.
pub(super) fn configuration(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut files = vec![path.to_owned()];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned().filter(|_| next < FILES) {
        next += 1;
        for line in fs::read_to_string(&file).unwrap_or_default().lines() {
            let words = words(line);
            if let [name, included] = words.as_slice()
                && ["include", "aclfile"].contains(&name.to_ascii_lowercase().as_str())
            {
                files.push(PathBuf::from(included));
            }
            lines.push(line.trim().to_owned());
        }
    }
    lines
}

/// The words of a line of a configuration file; one may be in quotes.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() && !rest.starts_with('#') {
        let quote = rest.chars().next().filter(|first| ['"', '\''].contains(first));
        let (word, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).unwrap_or_else(|| (&rest[1..], "")),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

fn renamed(configuration: &[String]) -> Vec<String> {
    let line = |line: &String| match words(line).as_slice() {
        [setting, command, _] if setting.eq_ignore_ascii_case("rename-command") => Some(command.clone()),
        _ => None,
    };
    configuration.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_renames_is_found_in_the_files_that_it_includes() {
        let folder = tempfile::tempdir().unwrap();
        let (main, more) = (folder.path().join("main.conf"), folder.path().join("more.conf"));
        fs::write(
            &main,
            format!("# rename-command A \"\"\nrename-command FLUSHALL \"\"\ninclude {}\n", more.display()),
        )
        .unwrap();
        fs::write(&more, format!("Rename-Command keys 'k'\ninclude {}\n", main.display())).unwrap();
        assert_eq!(renamed(&configuration(&main))[..2], ["FLUSHALL", "keys"]);
        assert_eq!(words("  requirepass \"a b\" # c"), ["requirepass", "a b"]);
        assert!(words("# requirepass a").is_empty());
    }

    #[test]
    fn modules_that_are_part_of_the_server_are_no_loaded_ones() {
        let word = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let listed = |fields: &[&str]| {
            let mut module: Vec<Value> = fields.iter().map(|field| word(field)).collect();
            module.extend([word("args"), Value::Array(Vec::new())]);
            Value::Array(module)
        };
        let all = [
            listed(&["name", "vectorset", "path", ""]),
            listed(&["name", "search", "path", "/usr/lib/search.so"]),
            // As release 6 says it.
            listed(&["name", "older"]),
        ];
        assert_eq!(loaded_modules(&all), ["search", "older"]);
    }
}
