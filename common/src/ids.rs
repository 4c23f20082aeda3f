//! Names and ids as types of their own, so that a node is never taken for a member.
//!
//! **Invariant:** a value of one of these types is valid; the only ways in are the checked constructors.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing but letters, digits and inner hyphens, 1 to 40 characters.
    #[error(
        "{kind} name {text:?} is not a DNS label: use 1 to 40 lower-case letters, digits and hyphens, starting with a \
         letter and not ending with a hyphen"
    )]
    NotALabel {
        /// What was to be named.
        kind: &'static str,
        /// What was given.
        text: String,
    },
    /// A cluster `db1` would clash with the first member of a cluster `db`.
    #[error("cluster name {text:?} ends in a digit: members are named CLUSTER + number, so the two could clash")]
    EndsInDigit {
        /// What was given.
        text: String,
    },
    /// Not a ULID.
    #[error("{text:?} is not an id: expected 26 letters and digits (a ULID)")]
    NotAUlid {
        /// What was given.
        text: String,
    },
    /// A resource name such as `clusters/C` was expected.
    #[error("{text:?} is not a resource name of the form {form}")]
    NotAResource {
        /// What was given.
        text: String,
        /// What was expected.
        form: &'static str,
    },
}

/// Longest name: a member name (cluster + number) must still be a DNS label of 63 characters.
const LONGEST: usize = 40;

fn check_label(kind: &'static str, text: &str) -> Result<(), NameError> {
    let valid = (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.as_bytes()[0].is_ascii_lowercase()
        && !text.ends_with('-');
    if valid { Ok(()) } else { Err(NameError::NotALabel { kind, text: text.to_owned() }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal, $form:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a plain name.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                check_label($kind, &text)?;
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(&text)?;
                Ok(Self(text))
            }

            /// Reads a resource name with its collection in front, or a plain name.
            pub fn from_resource(text: &str) -> Result<Self, NameError> {
                let plain = text.rsplit_once($prefix).map_or(text, |(_, plain)| plain);
                if plain.contains('/') {
                    return Err(NameError::NotAResource { text: text.to_owned(), form: $form });
                }
                Self::new(plain)
            }

            /// The plain name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// A machine with an agent.
    NodeName, "node", "nodes/", "nodes/NODE", |_| Ok(())
);
name_type!(
    /// A cluster; never ends in a digit.
    ClusterName, "cluster", "clusters/", "clusters/CLUSTER", |text| {
        if text.ends_with(|c: char| c.is_ascii_digit()) {
            Err(NameError::EndsInDigit { text: text.to_owned() })
        } else {
            Ok(())
        }
    }
);
name_type!(
    /// A node's place in a cluster: the cluster's name and a number that is never used again.
    MemberName, "member", "members/", "clusters/CLUSTER/members/MEMBER", |_| Ok(())
);
name_type!(
    /// A person or a program that calls the coordinator.
    UserName, "user", "users/", "users/USER", |_| Ok(())
);

// === impl NodeName ===

impl NodeName {
    /// The name with its collection, as on the wire.
    pub fn resource(&self) -> String {
        format!("nodes/{self}")
    }
}

// === impl ClusterName ===

impl ClusterName {
    /// The name with its collection, as on the wire.
    pub fn resource(&self) -> String {
        format!("clusters/{self}")
    }

    /// The name of this cluster's member number `number`.
    pub fn member(&self, number: u32) -> MemberName {
        MemberName(format!("{self}{number}"))
    }
}

// === impl UserName ===

impl UserName {
    /// The name with its collection, as on the wire.
    pub fn resource(&self) -> String {
        format!("users/{self}")
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Ulid);

        impl $name {
            /// Makes an id of a time (milliseconds since 1970) and 80 random bits; ids sort by time.
            pub fn from_parts(unix_millis: u64, random: u128) -> Self {
                Self(Ulid::from_parts(unix_millis, random))
            }

            /// Makes a new id from the wall clock and chance.
            pub fn generate() -> Self {
                Self(crate::chance::ulid())
            }

            /// Milliseconds since 1970 at which it was made; for display only.
            pub fn unix_millis(&self) -> u64 {
                self.0.timestamp_ms()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Ulid::from_string(text).map(Self).map_err(|_| NameError::NotAUlid { text: text.to_owned() })
            }
        }
    };
}

id_type!(
    /// A cluster, never reused (rule T1): a cluster made again under an old name is another one.
    ClusterId
);
id_type!(
    /// An operation.
    OperationId
);

// === impl OperationId ===

impl OperationId {
    /// The id with its collection, as on the wire.
    pub fn resource(&self) -> String {
        format!("operations/{self}")
    }

    /// Reads `operations/ULID` or a plain ULID.
    pub fn from_resource(text: &str) -> Result<Self, NameError> {
        text.strip_prefix("operations/").unwrap_or(text).parse()
    }
}

macro_rules! counter_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The next one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter_type!(
    /// Counts the changes of primary of one cluster; a lower one is refused everywhere.
    Epoch
);
counter_type!(
    /// Raised whenever an operation of the cluster starts, resumes or is cancelled (rule T1).
    OperationToken
);
counter_type!(
    /// Counts the commits of a coordinator's store (rule T4).
    Revision
);
counter_type!(
    /// Counts the leaderships of a coordinator's store; a commit under a lower one is refused.
    Term
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "pg-main", "n1", &"x".repeat(40)] {
            assert_eq!(NodeName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "1a", "a/b", "ä", &"x".repeat(41)] {
            assert!(NodeName::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_cluster_name_must_not_clash_with_a_member() {
        assert!(matches!(ClusterName::new("db1"), Err(NameError::EndsInDigit { .. })));
        assert_eq!(ClusterName::new("db").unwrap().member(1).as_str(), "db1");
    }

    #[test]
    fn resource_names_are_read_with_or_without_their_collection() {
        assert_eq!(ClusterName::from_resource("clusters/db").unwrap().as_str(), "db");
        assert_eq!(ClusterName::from_resource("db").unwrap().as_str(), "db");
        assert_eq!(MemberName::from_resource("clusters/db/members/db2").unwrap().as_str(), "db2");
        assert!(ClusterName::from_resource("nodes/db").is_err());
    }
}
