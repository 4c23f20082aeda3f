//! The account of every row: what was acknowledged against what is there, and who acknowledged when.
//!
//! Pure: histories and stored rows in, findings out. What counts as too much (rows lost, milliseconds of outage) is the
//! caller's: a policy, not a fact.
//!
//! A member *reigns* from the request of the first row that it acknowledged to the answer of the last one, once for each
//! word that the engine has for the reign (a timeline of PostgreSQL). A primary that comes back with its old word seems to
//! have reigned throughout, and that is meant: it should not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;

use super::history::{History, Outcome};

/// A row by its writer and its number.
pub type Row = (String, u64);

/// Rows found in the engine, with how often each was there.
pub type Stored = BTreeMap<Row, u64>;

/// What became of all rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Attempts.
    pub attempted: u64,
    /// Rows that the writers were told are written.
    pub acknowledged: u64,
    /// Rows of which an engine said that they are not written.
    pub refused: u64,
    /// Rows of which nobody said anything.
    pub unknown: u64,
    /// Those of them that are there.
    pub unknown_stored: u64,
    /// Rows that were acknowledged and are not there.
    pub lost: Vec<Row>,
    /// Rows that are there more than once.
    pub duplicated: Vec<Row>,
    /// Rows that are there and were refused, or that nobody ever tried to write.
    pub unexpected: Vec<Row>,
}

/// A time without an acknowledgement, in nanoseconds of the shared clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Last acknowledgement before it.
    pub from: u64,
    /// First one after it.
    pub until: u64,
}

/// A time in which a member took writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reign {
    /// The member, as host:port.
    pub member: String,
    /// The engine's word for it.
    pub word: String,
    /// Request of the first acknowledged row, in nanoseconds of the shared clock.
    pub from: u64,
    /// Answer of the last acknowledged row.
    pub until: u64,
    /// Acknowledged rows.
    pub rows: u64,
}

/// A time in which two members both reigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overlap {
    /// One member.
    pub one: String,
    /// The other.
    pub other: String,
    /// How long, in nanoseconds.
    pub nanos: u64,
}

/// Compares what the writers were told with what is there.
pub fn account(histories: &[History], stored: &Stored) -> Account {
    let mut account = Account::default();
    let mut possible = BTreeSet::new();
    for history in histories {
        for attempt in &history.attempts {
            let row = (history.writer.clone(), attempt.row);
            let there = stored.contains_key(&row);
            account.attempted += 1;
            match &attempt.outcome {
                Outcome::Acknowledged(..) => {
                    account.acknowledged += 1;
                    if !there {
                        account.lost.push(row.clone());
                    }
                    possible.insert(row);
                }
                Outcome::Refused(_) => account.refused += 1,
                Outcome::Unknown(_) => {
                    account.unknown += 1;
                    account.unknown_stored += u64::from(there);
                    possible.insert(row);
                }
            }
        }
    }
    for (row, count) in stored {
        if *count > 1 {
            account.duplicated.push(row.clone());
        }
        if !possible.contains(row) {
            account.unexpected.push(row.clone());
        }
    }
    account
}

/// The longest time without an acknowledgement of any writer between `from` and `until`. Time before the first and after
/// the last one counts, so that a service that never came back is not taken for a short outage.
pub fn longest_gap(histories: &[History], from: u64, until: u64) -> Gap {
    let mut times: Vec<u64> = histories
        .iter()
        .flat_map(|h| h.acknowledgements().map(|(at, _)| at))
        .filter(|at| (from..=until).contains(at))
        .collect();
    times.push(from);
    times.push(until);
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| Gap { from: pair[0], until: pair[1] });
    gaps.max_by_key(Gap::nanos).unwrap_or_default()
}

/// Rows that were sent between `from` and `until` and not acknowledged within `limit`, with what became of each. The last row of a
/// history that is still being written has no end yet: there have to be some after `until`.
pub fn failed_or_late(histories: &[History], limit: Duration, from: u64, until: u64) -> Vec<(Row, String)> {
    let mut found = Vec::new();
    for history in histories {
        for attempt in history.attempts.iter().filter(|attempt| (from..=until).contains(&attempt.sent)) {
            let trouble = match &attempt.outcome {
                Outcome::Acknowledged(at, _) => {
                    let took = Duration::from_nanos(at.saturating_sub(attempt.sent));
                    (took > limit).then(|| format!("acknowledged after {took:?}"))
                }
                Outcome::Refused(reason) => Some(format!("refused: {reason}")),
                Outcome::Unknown(reason) => Some(format!("unknown: {reason}")),
            };
            found.extend(trouble.map(|trouble| ((history.writer.clone(), attempt.row), trouble)));
        }
    }
    found
}

/// All reigns of which something was acknowledged between `from` and `until`, in order of their beginning.
pub fn reigns(histories: &[History], from: u64, until: u64) -> Vec<Reign> {
    let mut reigns: BTreeMap<(&str, &str), Reign> = BTreeMap::new();
    for attempt in histories.iter().flat_map(|history| &history.attempts) {
        let Outcome::Acknowledged(at, word) = &attempt.outcome else { continue };
        if !(from..=until).contains(at) {
            continue;
        }
        let reign = reigns.entry((&attempt.member, word)).or_insert_with(|| Reign {
            member: attempt.member.clone(),
            word: word.clone(),
            from: attempt.sent,
            until: *at,
            rows: 0,
        });
        reign.from = reign.from.min(attempt.sent);
        reign.until = reign.until.max(*at);
        reign.rows += 1;
    }
    let mut reigns: Vec<_> = reigns.into_values().collect();
    reigns.sort_by_key(|reign| reign.from);
    reigns
}

/// Pairs of members that both reigned over the same time between `from` and `until`, the worst first.
pub fn overlaps(histories: &[History], from: u64, until: u64) -> Vec<Overlap> {
    let reigns = reigns(histories, from, until);
    let mut found = Vec::new();
    for (index, one) in reigns.iter().enumerate() {
        for other in reigns[index + 1..].iter().filter(|other| other.member != one.member) {
            let (start, end) = (one.from.max(other.from), one.until.min(other.until));
            if start <= end {
                // A single row within the other's reign still makes two primaries.
                let nanos = (end - start).max(1);
                found.push(Overlap { one: one.member.clone(), other: other.member.clone(), nanos });
            }
        }
    }
    found.sort_by_key(|overlap| std::cmp::Reverse(overlap.nanos));
    found
}

/// When each of these rows was acknowledged, and by whom.
pub fn acknowledged<'a>(histories: &'a [History], rows: &[Row]) -> Vec<(Row, u64, &'a str)> {
    let rows: BTreeSet<&Row> = rows.iter().collect();
    let mut found = Vec::new();
    for history in histories {
        for attempt in &history.attempts {
            let row = (history.writer.clone(), attempt.row);
            if let Outcome::Acknowledged(at, _) = &attempt.outcome
                && rows.contains(&row)
            {
                found.push((row, *at, attempt.member.as_str()));
            }
        }
    }
    found
}

// === impl Gap ===

impl Gap {
    /// Its length.
    pub fn nanos(&self) -> u64 {
        self.until - self.from
    }

    /// Its length in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "an outage is no astronomical number")]
    pub fn millis(&self) -> f64 {
        self.nanos() as f64 / 1e6
    }
}

// === impl Account ===

impl Account {
    /// Whether nothing is wrong apart from lost rows, which a policy may allow.
    pub fn is_consistent(&self) -> bool {
        self.duplicated.is_empty() && self.unexpected.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::history::Attempt;

    /// A history of (row, member, time of acknowledgement); no time is an unknown outcome.
    fn history(writer: &str, attempts: &[(u64, &str, Option<u64>)]) -> History {
        let attempt = |&(row, member, at): &(u64, &str, Option<u64>)| Attempt {
            row,
            member: member.to_owned(),
            sent: at.unwrap_or(0).saturating_sub(1),
            outcome: at.map_or(Outcome::Unknown(String::new()), |at| Outcome::Acknowledged(at, "1".to_owned())),
        };
        History { writer: writer.to_owned(), attempts: attempts.iter().map(attempt).collect() }
    }

    fn stored(writer: &str, rows: &[(u64, u64)]) -> Stored {
        rows.iter().map(|(row, count)| ((writer.to_owned(), *row), *count)).collect()
    }

    #[test]
    fn a_clean_run_is_clean() {
        let histories = [history("w", &[(1, "a", Some(10)), (2, "a", Some(20)), (3, "b", Some(90))])];
        let account = account(&histories, &stored("w", &[(1, 1), (2, 1), (3, 1)]));
        assert_eq!(account, Account { attempted: 3, acknowledged: 3, ..Account::default() });
        assert!(account.is_consistent());
        assert_eq!(overlaps(&histories, 0, 100), []);
        assert_eq!(longest_gap(&histories, 10, 100), Gap { from: 20, until: 90 });
    }

    #[test]
    fn a_lost_row_is_found() {
        let histories = [history("w", &[(1, "a", Some(10)), (2, "a", Some(20)), (3, "b", Some(90))])];
        let account = account(&histories, &stored("w", &[(1, 1), (3, 1)]));
        assert_eq!(account.lost, [("w".to_owned(), 2)]);
    }

    #[test]
    fn a_row_of_another_writer_does_not_make_up_for_a_lost_one() {
        let histories = [history("w", &[(1, "a", Some(10))]), history("v", &[(2, "a", Some(11))])];
        let account = account(&histories, &stored("v", &[(1, 1), (2, 1)]));
        assert_eq!(account.lost, [("w".to_owned(), 1)]);
        assert_eq!(account.unexpected, [("v".to_owned(), 1)]);
    }

    #[test]
    fn a_row_that_is_there_twice_or_should_not_be_there_is_found() {
        let mut histories = [history("w", &[(1, "a", Some(10)), (2, "a", None)])];
        histories[0].attempts[1].outcome = Outcome::Refused("read-only".to_owned());
        let account = account(&histories, &stored("w", &[(1, 2), (2, 1), (9, 1)]));
        assert_eq!(account.duplicated, [("w".to_owned(), 1)]);
        assert_eq!(account.unexpected, [("w".to_owned(), 2), ("w".to_owned(), 9)]);
        assert!(!account.is_consistent());
    }

    #[test]
    fn a_row_with_an_unknown_outcome_may_be_there_or_not() {
        let histories = [history("w", &[(1, "a", None), (2, "a", None)])];
        let account = account(&histories, &stored("w", &[(2, 1)]));
        assert_eq!((account.unknown, account.unknown_stored), (2, 1));
        assert!(account.lost.is_empty() && account.is_consistent());
    }

    #[test]
    fn two_primaries_are_found_also_by_different_writers() {
        // Rows are sent one nanosecond before they are acknowledged.
        let histories = [
            history("follower", &[(1, "a", Some(10)), (2, "b", Some(50))]),
            history("node-a", &[(1, "a", Some(20)), (2, "a", Some(57))]),
        ];
        assert_eq!(overlaps(&histories, 0, 100), [Overlap { one: "a".into(), other: "b".into(), nanos: 1 }]);
        let histories = [histories[0].clone(), histories[1].clone(), history("node-b", &[(1, "b", Some(80))])];
        assert_eq!(overlaps(&histories, 0, 100), [Overlap { one: "a".into(), other: "b".into(), nanos: 8 }]);
        assert_eq!(overlaps(&histories, 0, 55), [], "outside the time that was asked for");
    }

    #[test]
    fn an_answer_that_comes_when_another_reigns_is_two_primaries() {
        let mut late = history("w", &[(1, "a", Some(10)), (2, "a", Some(70))]);
        late.attempts[1].sent = 12;
        let histories = [late, history("v", &[(1, "b", Some(50)), (2, "b", Some(80))])];
        assert_eq!(overlaps(&histories, 0, 100), [Overlap { one: "a".into(), other: "b".into(), nanos: 21 }]);
    }

    #[test]
    fn a_member_that_reigns_again_is_no_second_primary_unless_it_comes_with_its_old_word() {
        let mut one = history("w", &[(1, "a", Some(10)), (2, "b", Some(50)), (3, "a", Some(90))]);
        assert_eq!(overlaps(std::slice::from_ref(&one), 0, 100).len(), 1, "the same word: it never stopped");
        for (index, word) in [(0, "1"), (1, "2"), (2, "3")] {
            let Outcome::Acknowledged(at, _) = one.attempts[index].outcome.clone() else { panic!() };
            one.attempts[index].outcome = Outcome::Acknowledged(at, word.to_owned());
        }
        assert_eq!(overlaps(std::slice::from_ref(&one), 0, 100), []);
        let seen: Vec<_> = reigns(&[one], 0, 100).into_iter().map(|r| (r.member, r.from, r.until, r.rows)).collect();
        assert_eq!(seen, [("a".into(), 9, 10, 1), ("b".into(), 49, 50, 1), ("a".into(), 89, 90, 1)]);
    }

    #[test]
    fn rows_that_failed_or_took_long_are_found_among_those_that_were_sent_in_time() {
        let mut one = history("w", &[(1, "a", Some(10)), (2, "a", Some(20)), (3, "a", None), (4, "a", Some(90))]);
        for (attempt, sent) in one.attempts.iter_mut().zip([9, 12, 50, 80]) {
            attempt.sent = sent;
        }
        let found = |limit, from, until| {
            let found = failed_or_late(std::slice::from_ref(&one), Duration::from_nanos(limit), from, until);
            found.into_iter().map(|((_, row), _)| row).collect::<Vec<_>>()
        };
        assert_eq!(found(10, 0, 100), [3]);
        assert_eq!(found(9, 0, 100), [3, 4]);
        assert_eq!(found(5, 10, 49), [2], "outside the time that was asked for");
    }

    #[test]
    fn an_outage_that_never_ends_is_an_outage() {
        let histories = [history("w", &[(1, "a", Some(10)), (2, "a", Some(20))])];
        assert_eq!(longest_gap(&histories, 5, 1000), Gap { from: 20, until: 1000 });
        assert_eq!(longest_gap(&[], 5, 1000), Gap { from: 5, until: 1000 });
    }
}
