//! A reign: who is the primary of an epoch, and whom it has to ask, version by version (rules P2, M1, M2).
//!
//! Pure. **Invariants:** versions only grow within a reign; the first entry of `electorates` is the last version that the
//! primary is known to obey, the others were stored since and may or may not have reached it.

use std::collections::BTreeSet;

use regent_common::{
    ids::{Epoch, MemberName},
    lease::Electorate,
    mutation::{self, Rule},
};
use serde::{Deserialize, Serialize};

/// The reign of a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reign {
    /// Of which epoch.
    pub epoch: Epoch,
    /// The primary, or the candidate that is about to be.
    pub primary: MemberName,
    /// The last acknowledged electorate, then those that were stored since, oldest first.
    pub electorates: Vec<Electorate>,
    /// Whether the primary's host closes its gate by itself, so that the end of the lease is the end of its writes (rule G6).
    pub gated: bool,
}

// === impl Reign ===

impl Reign {
    /// A reign that begins. Its first electorate counts as acknowledged: no grant of this epoch is without it.
    pub fn new(epoch: Epoch, primary: MemberName, members: BTreeSet<MemberName>, gated: bool) -> Self {
        Self { epoch, primary, electorates: vec![Electorate { version: 1, members }], gated }
    }

    /// The newest electorate.
    pub fn newest(&self) -> &Electorate {
        self.electorates.last().expect("a reign begins with one and keeps one")
    }

    /// The last electorate that the primary has acknowledged.
    pub fn acknowledged(&self) -> &Electorate {
        self.electorates.first().expect("a reign begins with one and keeps one")
    }

    /// Whether the primary has acknowledged the newest electorate.
    pub fn is_acknowledged(&self) -> bool {
        self.electorates.len() == 1
    }

    /// Who may be promoted in place of the primary: who is in the last acknowledged version *and* in every one that was stored
    /// since. Leaving counts when it is stored, joining when it is acknowledged (rule M2).
    pub fn promotable(&self) -> BTreeSet<MemberName> {
        if mutation::broken(Rule::M2Leaving) {
            return self.electorates.first().map(|electorate| electorate.members.clone()).unwrap_or_default();
        }
        if mutation::broken(Rule::M2Joining) {
            return self.newest().members.clone();
        }
        let mut versions = self.electorates.iter();
        let first = versions.next().map(|electorate| electorate.members.clone()).unwrap_or_default();
        versions.fold(first, |kept, electorate| kept.intersection(&electorate.members).cloned().collect())
    }

    /// Stores the next version, if it differs from the newest.
    pub fn set_electorate(&mut self, members: BTreeSet<MemberName>) {
        if self.newest().members != members {
            let version = self.newest().version + 1;
            self.electorates.push(Electorate { version, members });
        }
    }

    /// Takes members out.
    pub fn leave(&mut self, members: &[MemberName]) {
        let left = self.newest().members.iter().filter(|member| !members.contains(member)).cloned().collect();
        self.set_electorate(left);
    }

    /// Counts the primary's acknowledgement of a version; one of an older or an unknown version changes nothing (rule M1).
    /// Whether it changed anything.
    pub fn acknowledge(&mut self, version: u64) -> bool {
        match self.electorates.iter().position(|electorate| electorate.version == version) {
            Some(index) if index > 0 => {
                self.electorates.drain(..index);
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> BTreeSet<MemberName> {
        text.split_whitespace().map(|name| name.parse().unwrap()).collect()
    }

    fn reign() -> Reign {
        Reign::new(Epoch(3), "db1".parse().unwrap(), names("db2 db3"), true)
    }

    #[test]
    fn leaving_counts_when_it_is_stored_and_joining_when_it_is_acknowledged() {
        let mut reign = reign();
        reign.set_electorate(names("db2 db3 db4"));
        assert_eq!(reign.promotable(), names("db2 db3"));
        reign.leave(&["db2".parse().unwrap()]);
        assert_eq!(reign.promotable(), names("db3"));
        assert!(reign.acknowledge(2));
        assert_eq!(reign.promotable(), names("db3 db4"), "db2 left in a version that was stored");
        assert!(reign.acknowledge(3));
        assert!(reign.is_acknowledged());
        reign.set_electorate(names("db2 db3 db4"));
        assert_eq!((reign.promotable(), reign.newest().version), (names("db3 db4"), 4), "versions never go back");
    }

    #[test]
    fn a_late_or_foreign_acknowledgement_changes_nothing() {
        let mut reign = reign();
        reign.set_electorate(names("db2"));
        assert!(!reign.acknowledge(1) && !reign.acknowledge(9));
        assert!(reign.acknowledge(2));
        assert!(!reign.acknowledge(1) && !reign.acknowledge(2));
    }

    #[test]
    fn storing_the_same_members_again_is_no_new_version() {
        let mut reign = reign();
        reign.set_electorate(names("db3 db2"));
        assert_eq!(reign.newest().version, 1);
    }
}
