//! Reading configuration: TOML files, and durations and sizes as people write them.
//!
//! It knows no daemon's settings. Every settings struct says `deny_unknown_fields` itself; errors name file, line and key.
//!
//! **Invariant:** what [`HumanDuration`] and [`HumanBytes`] print, they also read, as the same value.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what was expected.
    #[error("{}:{line}: {}{problem}", path.display(), key.as_ref().map(|key| format!("key {key:?}: ")).unwrap_or_default())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// The key with its tables (`store.path`), when the fault belongs to one.
        key: Option<String>,
        /// What is wrong.
        problem: String,
    },
    /// A value that does not go with the others.
    #[error("{}: key {key:?}: {problem}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// The key with its tables.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Why a text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HumanError {
    /// Not a duration.
    #[error("{0:?} is not a duration: write a number and a unit, such as \"250ms\", \"5s\", \"2h 30m\"")]
    Duration(String),
    /// Not a size.
    #[error("{0:?} is not a size: write a whole number and a unit, such as \"512KiB\", \"16MiB\", \"2GiB\"")]
    Bytes(String),
}

/// A duration written as `5s` or `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanDuration(pub Duration);

/// A size in bytes, written as `16MiB` (powers of 1024) or `16MB` (powers of 1000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HumanBytes(pub u64);

/// Reads a file. An unknown key is an error when `T` denies unknown fields.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Reads a text; `path` is only named in errors.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        ConfigError::Content {
            path: path.to_owned(),
            line: text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1,
            key: key_at(text, start),
            problem: error.message().to_owned(),
        }
    })
}

/// The key, with its table, of the line in which `position` is.
fn key_at(text: &str, position: usize) -> Option<String> {
    let (mut table, mut offset) = (String::new(), 0);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[') {
            table = header.trim_start_matches('[').split(']').next().unwrap_or_default().trim().to_owned();
        }
        offset += line.len();
        if offset > position {
            return match trimmed.split_once('=') {
                Some((key, _)) if !trimmed.starts_with('[') => {
                    let key = key.trim();
                    Some(if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") })
                }
                _ => (trimmed.starts_with('[') && !table.is_empty()).then_some(table),
            };
        }
    }
    None
}

const UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TiB", 1 << 40),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

// === impl HumanDuration ===

impl FromStr for HumanDuration {
    type Err = HumanError;
    fn from_str(text: &str) -> Result<Self, HumanError> {
        let wrong = || HumanError::Duration(text.to_owned());
        let duration: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        Duration::try_from(duration).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::SignedDuration::try_from(self.0) {
            Ok(duration) => write!(f, "{duration:#}"),
            // Longer than 292 thousand million years.
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

// === impl HumanBytes ===

impl FromStr for HumanBytes {
    type Err = HumanError;
    fn from_str(text: &str) -> Result<Self, HumanError> {
        let wrong = || HumanError::Bytes(text.to_owned());
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(*factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = ["GiB", "MiB", "KiB"]
            .iter()
            .zip([1u64 << 30, 1 << 20, 1 << 10])
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = HumanError;
            fn try_from(text: String) -> Result<Self, HumanError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}
as_text!(HumanDuration);
as_text!(HumanBytes);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        name: String,
        store: Store,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Store {
        period: HumanDuration,
        budget: HumanBytes,
    }

    fn read(text: &str) -> Result<Settings, String> {
        parse(Path::new("/etc/x.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_file_is_read() {
        let settings = read("name = 'a'\n[store]\nperiod = '250ms'\nbudget = '16MiB'\n").unwrap();
        assert_eq!(settings.name, "a");
        assert_eq!(settings.store.period.0, Duration::from_millis(250));
        assert_eq!(settings.store.budget.0, 16 << 20);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let unknown = read("name = 'a'\n[store]\nperiod = '5s'\nbudgte = '1MiB'\n").unwrap_err();
        assert!(unknown.starts_with("/etc/x.toml:4: key \"store.budgte\": unknown field"), "{unknown}");
        let wrong = read("name = 'a'\n[store]\nperiod = 'soon'\nbudget = '1MiB'\n").unwrap_err();
        assert!(wrong.starts_with("/etc/x.toml:3: key \"store.period\": \"soon\" is not a duration"), "{wrong}");
        let kind = read("name = 7\n").unwrap_err();
        assert!(kind.starts_with("/etc/x.toml:1: key \"name\": invalid type"), "{kind}");
        let syntax = read("name = 'a'\n[store\n").unwrap_err();
        assert!(syntax.starts_with("/etc/x.toml:2: "), "{syntax}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Settings>("/nonexistent/x.toml").unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration /nonexistent/x.toml");
    }

    #[test]
    fn sizes_and_durations_are_read_as_printed() {
        for bytes in [0, 1, 1023, 1024, 1536, 16 << 20, 3 << 30, u64::MAX] {
            assert_eq!(HumanBytes(bytes).to_string().parse(), Ok(HumanBytes(bytes)));
        }
        for millis in [0, 1, 250, 1500, 5000, 90_000, 86_400_000] {
            let duration = HumanDuration(Duration::from_millis(millis));
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
        assert_eq!("16 MB".parse(), Ok(HumanBytes(16_000_000)));
    }

    #[test]
    fn bad_sizes_and_durations_are_refused() {
        for bad in ["", "5", "MiB", "-1MiB", "1.5MiB", "5 parsecs", "99999999999GiB"] {
            assert!(bad.parse::<HumanBytes>().is_err(), "{bad:?} was taken");
        }
        for bad in ["", "5", "-5s", "5 parsecs"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad:?} was taken");
        }
    }
}
