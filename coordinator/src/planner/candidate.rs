//! Chooses whom to promote: a pure function of the positions that prepared members reported.

use std::cmp::Reverse;

use regent_common::{ids::MemberName, position::Position};

use crate::model::cluster::{ClusterRecord, Priority};

/// A prepared member.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The member.
    pub member: MemberName,
    /// Its final position.
    pub position: Position,
    /// How much it is wanted as the primary.
    pub priority: Priority,
}

// === impl Prepared ===

impl Prepared {
    /// A member of this cluster that was prepared.
    pub fn new(cluster: &ClusterRecord, member: MemberName, position: Position) -> Self {
        let priority = cluster.members.get(&member).map(|record| record.priority).unwrap_or_default();
        Self { member, position, priority }
    }
}

/// The choice, with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Whom to promote.
    pub member: MemberName,
    /// Offsets that the old primary is known to have had and the candidate has not.
    pub known_loss: u64,
    /// A sentence for people and the audit.
    pub why: String,
}

/// Why nobody can be promoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoChoice {
    /// No member was prepared.
    #[error("no member answered")]
    NobodyPrepared,
    /// Two members each have something that the other lacks, and no member has both.
    #[error("{left} and {right} have diverged: each has changes that the other lacks")]
    Diverged {
        /// One.
        left: MemberName,
        /// The other.
        right: MemberName,
    },
    /// The best candidate is known to lack more than the policy allows.
    #[error(
        "{member}, the most advanced, lacks {known_loss} of the old primary's changes; the policy allows {allowed}"
    )]
    TooFarBehind {
        /// The most advanced member.
        member: MemberName,
        /// What it lacks.
        known_loss: u64,
        /// What the policy allows.
        allowed: u64,
    },
}

/// Chooses the member whose position includes all others'; among equals the preferred one, else the one of the highest priority, else
/// the first by name.
///
/// `known` has the highest position that anybody heard of each member that reigned; the largest loss counts. What an old
/// primary wrote after it was last heard nobody can know here: that part of the loss is bounded by the time between two
/// reports and is stated when its data can be read again (rule P4).
pub fn choose(
    prepared: &[Prepared],
    known: &[Position],
    max_lag: u64,
    preferred: Option<&MemberName>,
) -> Result<Choice, NoChoice> {
    let mut members: Vec<&Prepared> = prepared.iter().collect();
    members.sort_by_key(|prepared| (Some(&prepared.member) != preferred, Reverse(prepared.priority), &prepared.member));
    let first = members.first().ok_or(NoChoice::NobodyPrepared)?;
    let best = members.iter().fold(first, |best, next| {
        if next.position.includes(&best.position) && !best.position.includes(&next.position) { next } else { best }
    });
    if let Some(other) = members.iter().find(|m| !best.position.includes(&m.position)) {
        return Err(NoChoice::Diverged { left: best.member.clone(), right: other.member.clone() });
    }
    let known_loss = loss(&best.position, known);
    if known_loss > max_lag {
        return Err(NoChoice::TooFarBehind { member: best.member.clone(), known_loss, allowed: max_lag });
    }
    let others: Vec<String> = members
        .iter()
        .filter(|m| m.member != best.member)
        .map(|m| {
            let behind = best.position.minus(&m.position).amount();
            if behind == 0 { format!("{} is equal", m.member) } else { format!("{} is {behind} behind", m.member) }
        })
        .collect();
    let compared = if others.is_empty() { "the only one prepared".to_owned() } else { others.join(", ") };
    Ok(Choice {
        member: best.member.clone(),
        known_loss,
        why: format!(
            "{} is the most advanced at {} ({compared}); it lacks {known_loss} of what the old primary was known to have",
            best.member, best.position
        ),
    })
}

/// The most that a copy at `position` lacks of one of the known positions.
pub fn loss<'a>(position: &Position, known: impl IntoIterator<Item = &'a Position>) -> u64 {
    known.into_iter().map(|known| known.minus(position).amount()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regent_common::position::IntervalSet;

    use super::*;

    fn at(member: &str, origins: &[(&str, u64)]) -> Prepared {
        Prepared { member: member.parse().unwrap(), position: position(origins), priority: Priority::default() }
    }

    fn position(origins: &[(&str, u64)]) -> Position {
        Position::new(origins.iter().map(|(o, end)| ((*o).to_owned(), IntervalSet::from(vec![(0, *end)]))), "")
    }

    #[test]
    fn the_most_advanced_wins_and_the_first_by_name_among_equals() {
        let choice = choose(&[at("c", &[("x", 5)]), at("b", &[("x", 7)]), at("a", &[("x", 7)])], &[], 0, None).unwrap();
        assert_eq!(choice.member.as_str(), "a");
    }

    #[test]
    fn the_preferred_one_wins_among_equals_alone() {
        let prepared = [at("a", &[("x", 7)]), at("b", &[("x", 7)]), at("c", &[("x", 6)])];
        let chosen = |preferred: &str| choose(&prepared, &[], 0, Some(&preferred.parse().unwrap())).unwrap().member;
        assert_eq!((chosen("b").as_str(), chosen("c").as_str()), ("b", "a"));
    }

    #[test]
    fn the_highest_priority_wins_among_equals_alone() {
        let mut prepared = [at("a", &[("x", 7)]), at("b", &[("x", 7)]), at("c", &[("x", 6)])];
        for (prepared, priority) in prepared.iter_mut().zip([100, 200, 300]) {
            prepared.priority = Priority(priority);
        }
        assert_eq!(choose(&prepared, &[], 0, None).unwrap().member.as_str(), "b");
        let asked = "a".parse().unwrap();
        assert_eq!(
            choose(&prepared, &[], 0, Some(&asked)).unwrap().member.as_str(),
            "a",
            "a person's word counts more"
        );
    }

    #[test]
    fn a_known_loss_beyond_the_policy_stops_the_choice() {
        let known = position(&[("x", 20)]);
        let prepared = [at("a", &[("x", 5)])];
        assert_eq!(choose(&prepared, std::slice::from_ref(&known), 15, None).unwrap().known_loss, 15);
        assert!(matches!(
            choose(&prepared, &[position(&[("x", 1)]), known], 14, None),
            Err(NoChoice::TooFarBehind { known_loss: 15, .. })
        ));
    }

    #[test]
    fn diverged_copies_are_not_chosen_between() {
        let prepared = [at("a", &[("x", 5), ("y", 1)]), at("b", &[("x", 6)])];
        assert!(matches!(choose(&prepared, &[], 100, None), Err(NoChoice::Diverged { .. })));
        assert_eq!(choose(&[], &[], 0, None), Err(NoChoice::NobodyPrepared));
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_can_be_followed_by_all(ends in prop::collection::vec((0u64..50, 0u64..50), 1..5)) {
            let prepared: Vec<_> = ends
                .iter()
                .enumerate()
                .map(|(i, (x, y))| at(&format!("m{i}"), &[("x", *x), ("y", *y)]))
                .collect();
            if let Ok(choice) = choose(&prepared, &[], 0, None) {
                let chosen = prepared.iter().find(|p| p.member == choice.member).unwrap();
                prop_assert!(prepared.iter().all(|p| chosen.position.includes(&p.position)));
            }
        }
    }
}
