//! Whether a node is who it was (rule T5): pure.
//!
//! *An older ledger.* A ledger only ever grows, and what a node has answered was on its disk before. [`Shown`] is what it has
//! shown, taken **before** a session is opened; a hello of that session that shows less is of a ledger that was put back: a
//! machine's snapshot, a backup of its state directory. A word of an older session proves nothing, because it may be late; nor
//! does less than what the cluster has, because a member that was away is only behind. The coordinator's own store being the
//! older one (rule T4) is the reverse: then it remembers less, and nothing here is ever less than that.
//!
//! *Two processes at once.* Every start of an agent has an incarnation of its own. A process that has spoken, after another one
//! that came after it has spoken, lives beside it: neither a restart nor a boot nor a late message of a dead one looks like
//! that. **Invariant:** only a *fresh* word counts, one that answers a question asked after the other's word was there.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use regent_common::{
    ids::{ClusterId, ClusterName, Epoch, MemberName, NodeName, OperationToken, Revision},
    mutation::{self, Rule},
};
use regent_proto::agent::v1::{self as wire, LedgerMark};

use crate::model::shown::Shown;

/// How long a process that is refused counts as there after it was heard: it announces itself at least twice as often.
const THERE_FOR: Duration = Duration::from_secs(120);

/// Most processes of one node that are remembered.
const REMEMBERED: usize = 16;

/// A ledger, as a hello shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Cluster that it names.
    pub cluster_id: ClusterId,
    /// Member that it names.
    pub member: MemberName,
    /// How far it has come.
    pub shown: Shown,
}

/// A node that this coordinator keeps out: it is granted nothing, and nothing is asked of it but to be made a member anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptOut {
    /// Its ledger; `None` for a spare's.
    pub mark: Option<Mark>,
    /// Why, for people, and what to do.
    pub why: String,
}

/// A process that speaks for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// Names the process.
    pub incarnation: String,
    /// Boot of its machine.
    pub boot_id: String,
    /// Where it is reached, as host:port.
    pub address: String,
    /// Whether it says that a lease of its stands.
    pub holds_lease: bool,
}

/// The processes that have spoken for a node, as one coordinator has heard them.
#[derive(Debug, Clone, Default)]
pub struct Claimants {
    /// In the order of their last fresh word, the last one at the end.
    heard: VecDeque<Claimant>,
    /// Incarnations that were refused: another one lives and stays.
    refused: VecDeque<String>,
}

/// That two processes speak for one node at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Twice {
    /// Who stays: the holder of the lease, else who was here first.
    pub stays: Claimant,
    /// Who is refused.
    pub goes: Claimant,
}

/// The process that is refused, while another one speaks for the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Both.
    pub twice: Twice,
    /// When the refused one was heard last, in wall time.
    pub heard_at: Timestamp,
    /// The same by the coordinator's CLOCK_BOOTTIME.
    pub heard: Duration,
}

/// The ledger that a hello shows; `None` when it names none, or names it in no way that can be read.
pub fn mark_of(mark: Option<&LedgerMark>) -> Option<Mark> {
    let mark = mark?;
    let epoch = Epoch(mark.epoch);
    let shown = Shown {
        epoch,
        token: OperationToken(mark.token),
        revision: Revision(mark.revision),
        electorate: mark.electorate_version.map(|version| (epoch, version)),
    };
    Some(Mark { cluster_id: mark.cluster_id.parse().ok()?, member: mark.member.parse().ok()?, shown })
}

/// Whether the ledger of a hello is older than what it had shown before the session was opened.
///
/// Not where another rule is broken on purpose that would make it so: the simulation has to find what that rule alone prevents.
pub fn rolled_back(cluster: &ClusterName, mark: &Mark, before: &Shown) -> Option<KeptOut> {
    if [Rule::LedgerFlush, Rule::G5Ledger, Rule::M1Ledger].into_iter().any(mutation::broken) {
        return None;
    }
    let less = mark.shown.less(before)?;
    let member = &mark.member;
    let why = format!(
        "the state directory of {member} was put back to an older one, by a snapshot or a backup: {less}; what it has promised \
         since is lost, so it is in quarantine until `regentctl cluster resync {cluster} {member} --confirm {member}` makes it anew, or its \
         newest state directory is back"
    );
    Some(KeptOut { mark: Some(mark.clone()), why })
}

// === impl KeptOut ===

impl KeptOut {
    /// What the agent is told, so that it keeps itself out as well.
    pub fn word(&self) -> Option<wire::Quarantine> {
        let Mark { cluster_id, member, shown } = self.mark.as_ref()?;
        Some(wire::Quarantine {
            cluster_id: cluster_id.to_string(),
            member: member.to_string(),
            epoch: shown.epoch.0,
            token: shown.token.0,
            reason: self.why.clone(),
        })
    }
}

// === impl Claimants ===

impl Claimants {
    /// Takes a fresh word of a process. Two live at once when it has spoken before, and another one has since.
    pub fn hear(&mut self, claimant: Claimant) -> Option<Twice> {
        if claimant.incarnation.is_empty() {
            // An agent that does not name its process yet.
            return None;
        }
        let known = self.heard.iter().position(|known| known.incarnation == claimant.incarnation);
        let last = self.heard.back().filter(|last| last.incarnation != claimant.incarnation).cloned();
        if let Some(known) = known {
            self.heard.remove(known);
        }
        self.heard.push_back(claimant.clone());
        if self.heard.len() > REMEMBERED {
            self.heard.pop_front();
        }
        let other = last.filter(|_| known.is_some())?;
        // Who speaks again was here before the other one.
        Some(self.rule(claimant, other))
    }

    /// Of two that live at once: the one that holds the lease stays, else the one that was here first. A ruling stands.
    fn rule(&mut self, first: Claimant, second: Claimant) -> Twice {
        let second_stays = self.is_refused(&first.incarnation)
            || (second.holds_lease && !first.holds_lease) && !self.is_refused(&second.incarnation);
        let twice =
            if second_stays { Twice { stays: second, goes: first } } else { Twice { stays: first, goes: second } };
        if !self.is_refused(&twice.goes.incarnation) {
            self.refused.push_back(twice.goes.incarnation.clone());
            if self.refused.len() > REMEMBERED {
                self.refused.pop_front();
            }
        }
        twice
    }

    /// A person has had it made a member anew: it is refused no longer.
    pub fn pardon(&mut self, incarnation: &str) {
        self.refused.retain(|refused| refused != incarnation);
        self.heard.retain(|known| known.incarnation == incarnation);
    }

    /// Whether a process was refused.
    pub fn is_refused(&self, incarnation: &str) -> bool {
        self.refused.iter().any(|refused| refused == incarnation)
    }
}

// === impl Rival ===

impl Rival {
    /// Whether it was heard lately.
    pub fn is_there(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) <= THERE_FOR
    }
}

// === impl Twice ===

impl Twice {
    /// One sentence with both and the person's step.
    pub fn sentence(&self, node: &NodeName) -> String {
        let Self { stays, goes } = self;
        format!(
            "two agents speak for node {node} at once: the one at {} (boot {}, process {}) stays, the one at {} (boot {}, process {}) is \
             refused: stop the copy and remove its state directory; if its identity may be in other hands, revoke {node} and let \
             it join again",
            stays.address,
            stays.boot_id,
            short(&stays.incarnation),
            goes.address,
            goes.boot_id,
            short(&goes.incarnation)
        )
    }
}

/// Enough of a process's name for a person.
fn short(incarnation: &str) -> &str {
    incarnation.get(..8).unwrap_or(incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(epoch: u64, token: u64, revision: u64, version: Option<u64>) -> Shown {
        let electorate = version.map(|version| (Epoch(epoch), version));
        Shown { epoch: Epoch(epoch), token: OperationToken(token), revision: Revision(revision), electorate }
    }

    fn mark(shown: Shown) -> Mark {
        Mark { cluster_id: ClusterId::from_parts(1, 1), member: "db2".parse().unwrap(), shown }
    }

    #[test]
    fn only_less_than_what_the_node_itself_has_shown_is_a_ledger_put_back() {
        let before = shown(3, 9, 50, Some(4));
        for (now, less) in [
            (shown(2, 9, 60, None), "epoch 2"),
            (shown(3, 8, 60, None), "operation token 8"),
            (shown(3, 9, 49, Some(4)), "revision 49"),
            (shown(3, 9, 50, Some(3)), "version 3 of its electorate"),
        ] {
            let found = rolled_back(&"db".parse().unwrap(), &mark(now), &before).unwrap();
            assert!(found.why.contains(less) && found.why.contains("resync db db2"), "{}", found.why);
        }
        for fine in [before, shown(3, 9, 50, None), shown(4, 10, 51, Some(1)), shown(3, 10, 50, Some(7))] {
            assert_eq!(rolled_back(&"db".parse().unwrap(), &mark(fine), &before), None, "{fine:?}");
        }
        assert_eq!(
            rolled_back(&"db".parse().unwrap(), &mark(shown(0, 0, 0, None)), &Shown::default()),
            None,
            "nothing was shown before"
        );
    }

    fn claimant(name: &str, holds_lease: bool) -> Claimant {
        let address = format!("{name}.example:7421");
        Claimant { incarnation: name.to_owned(), boot_id: "boot".to_owned(), address, holds_lease }
    }

    fn heard(words: &[(&str, bool)]) -> Vec<Option<(String, String)>> {
        let mut claimants = Claimants::default();
        let of = |twice: Twice| (twice.stays.incarnation, twice.goes.incarnation);
        words.iter().map(|(name, holds)| claimants.hear(claimant(name, *holds)).map(of)).collect()
    }

    fn pair(stays: &str, goes: &str) -> Option<(String, String)> {
        Some((stays.to_owned(), goes.to_owned()))
    }

    #[test]
    fn a_process_that_ends_and_its_successors_are_never_two() {
        let words = [("a", true), ("a", true), ("b", false), ("b", true), ("c", false)];
        assert_eq!(heard(&words), [const { None }; 5]);
        assert_eq!(heard(&[("", false), ("a", false), ("", false)]), [const { None }; 3], "an agent of before");
    }

    #[test]
    fn a_former_process_that_speaks_again_is_one_of_two_and_was_here_first() {
        assert_eq!(heard(&[("a", false), ("b", false), ("a", false)])[2], pair("a", "b"));
        let on = heard(&[("a", false), ("b", false), ("a", false), ("b", false), ("a", false)]);
        assert_eq!(on[3..], [pair("a", "b"), pair("a", "b")], "a ruling stands");
    }

    #[test]
    fn the_holder_of_the_lease_stays() {
        assert_eq!(heard(&[("a", false), ("b", true), ("a", false)])[2], pair("b", "a"));
        assert_eq!(heard(&[("a", true), ("b", true), ("a", true)])[2], pair("a", "b"));
        let late = heard(&[("a", false), ("b", false), ("a", false), ("b", true)]);
        assert_eq!(late[3], pair("a", "b"), "who was refused gets no lease, and none makes him stay");
    }

    #[test]
    fn the_sentence_names_both_and_the_step() {
        let twice = Twice { stays: claimant("a", false), goes: claimant("b", false) };
        let said = twice.sentence(&"n1".parse().unwrap());
        for part in ["node n1", "a.example:7421", "b.example:7421", "stop the copy", "revoke n1"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
