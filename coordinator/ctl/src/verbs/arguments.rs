//! Arguments that several verbs share, and how names become resource names.

use std::{collections::BTreeMap, time::Duration};

use crate::output::units::{self, Since, UnitError};

/// Only check.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct DryRun {
    /// Change nothing; say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Only what was read.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Unchanged {
    /// Only if the record is still as it was read (`etag` of `cluster show`)
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) etag: String,
}

/// The names of the profiles.
pub(crate) const PROFILES: [&str; 3] = ["fast", "standard", "relaxed"];

/// Splits `k=v`; the value may be empty and may contain `=`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE".to_owned()),
    }
}

/// The pairs as a map; a key that is given twice is refused, for one of the two would be lost.
pub(crate) fn map(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, crate::failure::Failure> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value).is_some() {
            return Err(crate::failure::Failure::Usage(format!("the key {key:?} is given twice")));
        }
    }
    Ok(map)
}

/// A size per second for clap.
pub(crate) fn size(text: &str) -> Result<u64, UnitError> {
    units::parse_bytes(text)
}

/// A duration for clap.
pub(crate) fn duration(text: &str) -> Result<Duration, UnitError> {
    units::parse_duration(text)
}

/// A look back for clap.
pub(crate) fn since(text: &str) -> Result<Since, UnitError> {
    Since::parse(text)
}

/// "clusters/db" for "db" and for "clusters/db".
pub(crate) fn resource(kind: &str, name: &str) -> String {
    if name.starts_with(&format!("{kind}/")) { name.to_owned() } else { format!("{kind}/{name}") }
}

/// The resource name of an optional cluster; empty without one.
pub(crate) fn cluster_or_empty(name: Option<&str>) -> String {
    name.map(|name| resource("clusters", name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_keep_what_follows_the_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err());
        assert!(pair("=b").is_err());
    }

    #[test]
    fn a_key_twice_is_a_usage_error() {
        let twice = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert_eq!(map(twice).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn resources_are_taken_by_either_name() {
        assert_eq!(resource("clusters", "db"), "clusters/db");
        assert_eq!(resource("clusters", "clusters/db"), "clusters/db");
    }
}
