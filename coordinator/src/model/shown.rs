//! What a member's ledger has shown to have on its disk (rule T5). It only grows.

use regent_common::ids::{Epoch, OperationToken, Revision};
use serde::{Deserialize, Serialize};

/// How far a ledger has come: stored with the member in the commit that says what a step of it brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Highest epoch.
    pub epoch: Epoch,
    /// Highest operation token.
    pub token: OperationToken,
    /// Highest revision of a store.
    #[serde(default)]
    pub revision: Revision,
    /// Of a primary: epoch and version of the electorate that it has acknowledged (rule M1).
    #[serde(default)]
    pub electorate: Option<(Epoch, u64)>,
}

// === impl Shown ===

impl Shown {
    /// The higher of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            epoch: self.epoch.max(other.epoch),
            token: self.token.max(other.token),
            revision: self.revision.max(other.revision),
            electorate: self.electorate.max(other.electorate),
        }
    }

    /// What this one has less than what was shown before, in a few words; `None` when it has nothing less.
    pub fn less(&self, before: &Self) -> Option<String> {
        if self.epoch < before.epoch {
            return Some(format!("its ledger has epoch {} and has had {}", self.epoch, before.epoch));
        }
        if self.token < before.token {
            return Some(format!("its ledger has operation token {} and has had {}", self.token, before.token));
        }
        if self.revision < before.revision {
            return Some(format!("its ledger has revision {} and has had {}", self.revision, before.revision));
        }
        match (self.electorate, before.electorate) {
            (Some((epoch, version)), Some((same, acknowledged))) if epoch == same && version < acknowledged => {
                Some(format!("its ledger has version {version} of its electorate and has had {acknowledged}"))
            }
            (Some(_) | None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_highest_of_each() {
        let shown = |epoch, token, revision, version| Shown {
            epoch: Epoch(epoch),
            token: OperationToken(token),
            revision: Revision(revision),
            electorate: Some((Epoch(epoch), version)),
        };
        let both = shown(2, 9, 5, 8).max(shown(3, 4, 7, 1));
        assert_eq!(both, Shown { token: OperationToken(9), ..shown(3, 4, 7, 1) });
        assert_eq!(both.less(&both), None);
    }
}
