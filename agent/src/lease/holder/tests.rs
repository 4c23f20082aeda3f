//! The holder: stamps, answers, endorsement, the empty electorate, revocation.

use regent_common::lease::Profile;

use super::*;

fn at(millis: u64) -> Moment {
    Moment::default().plus(Duration::from_millis(millis))
}

fn member(name: &str) -> MemberName {
    name.parse().unwrap()
}

fn electorate(version: u64, members: &[&str]) -> Electorate {
    Electorate { version, members: members.iter().map(|name| member(name)).collect() }
}

fn grant(epoch: u64, electorate: Electorate) -> Option<Grant> {
    Some(Grant { epoch: Epoch(epoch), ttl: Duration::from_millis(1500), electorate, handed_over: None })
}

fn reign(recorded: Option<Electorate>) -> Reign {
    Reign {
        epoch: Epoch(3),
        established: recorded.is_some(),
        recorded,
        others: [member("db2"), member("db3")].into(),
        rebooted: false,
    }
}

fn holder(recorded: Option<Electorate>) -> Holder {
    let mut holder = Holder::new(at(0), Profile::Fast.timing(), 100);
    holder.set_reign(Some(reign(recorded)));
    holder
}

fn both() -> Electorate {
    electorate(2, &["db2", "db3"])
}

#[test]
fn a_lease_ends_at_the_stamp_however_late_the_answer_comes() {
    let mut holder = holder(None);
    let nonce = holder.stamp(at(1000));
    assert_eq!(holder.standing(at(1000)), None);
    assert!(holder.answered(at(1), nonce, grant(3, both()), Epoch(3)));
    let standing = holder.standing(at(2400)).unwrap();
    assert_eq!((standing.end, standing.source), (Some(at(2500)), LeaseSource::Coordinator));
    assert_eq!(holder.standing(at(2500)), None, "the end itself is over");
}

#[test]
fn an_answer_counts_once_and_only_to_a_question_of_this_process() {
    let mut holder = holder(None);
    assert!(!holder.answered(at(1), 7, grant(3, both()), Epoch(3)), "nobody asked that");
    let nonce = holder.stamp(at(0));
    assert!(holder.answered(at(1), nonce, grant(3, both()), Epoch(3)));
    assert!(!holder.answered(at(1), nonce, grant(3, both()), Epoch(3)), "a duplicate");
    assert_eq!(holder.standing(at(100)).unwrap().end, Some(at(1500)));
}

#[test]
fn a_grant_of_another_epoch_or_an_earlier_one_changes_nothing() {
    let mut holder = holder(None);
    for epoch in [2, 4] {
        let nonce = holder.stamp(at(0));
        holder.answered(at(1), nonce, grant(epoch, both()), Epoch(3));
        assert_eq!(holder.standing(at(1)), None, "epoch {epoch}");
    }
    let (early, late) = (holder.stamp(at(10)), holder.stamp(at(500)));
    holder.answered(at(1), late, grant(3, both()), Epoch(3));
    holder.answered(at(1), early, grant(3, electorate(1, &[])), Epoch(3));
    assert_eq!(holder.standing(at(600)).unwrap().end, Some(at(2000)), "a reordered answer shortens nothing");
    assert_eq!(holder.obeyed(), Some(&both()), "and versions never go back");
}

#[test]
fn all_have_to_endorse_and_the_oldest_stamp_counts() {
    let mut holder = holder(Some(both()));
    assert!(holder.ask(at(100)).is_empty(), "the coordinator may still be called");
    let first = holder.ask(at(1000));
    assert_eq!(first.iter().map(|(member, _)| member.as_str()).collect::<Vec<_>>(), ["db2", "db3"]);
    holder.endorsed(at(1001), first[0].1, true, Epoch(3));
    assert_eq!(holder.standing(at(1001)), None, "one is missing");
    let second = holder.ask(at(1200));
    holder.endorsed(at(1250), second[1].1, true, Epoch(3));
    let standing = holder.standing(at(1300)).unwrap();
    assert_eq!((standing.end, standing.source), (Some(at(2500)), LeaseSource::Endorsement));
    holder.endorsed(at(1250), second[0].1, false, Epoch(4));
    assert_eq!(holder.standing(at(1300)), None, "a member knows a higher epoch: this one is over");
    assert!(holder.ask(at(1500)).is_empty(), "a higher epoch is stored: nobody is asked any more");
}

#[test]
fn nobody_is_asked_before_the_epoch_is_established() {
    let mut holder = holder(None);
    assert!(holder.ask(at(5000)).is_empty());
    let nonce = holder.stamp(at(5000));
    holder.answered(at(1), nonce, grant(3, both()), Epoch(3));
    assert!(holder.ask(at(9000)).is_empty(), "obeyed, but the ledger has not said that it is established");
    holder.set_reign(Some(reign(Some(both()))));
    assert_eq!(holder.ask(at(9000)).len(), 2);
}

#[test]
fn only_a_recorded_empty_electorate_lets_it_go_on_alone() {
    let mut holder = holder(Some(electorate(1, &[])));
    let alone = holder.standing(at(100_000)).unwrap();
    assert_eq!((alone.end, alone.source), (None, LeaseSource::Alone));
    let nonce = holder.stamp(at(100_000));
    holder.answered(at(1), nonce, grant(3, electorate(2, &["db2"])), Epoch(3));
    let timed = holder.standing(at(100_001)).unwrap();
    assert_eq!(timed.source, LeaseSource::Coordinator, "the newer version is obeyed from its receipt");
    assert!(holder.standing(at(101_500)).is_none());
}

#[test]
fn after_a_reboot_everybody_has_to_answer_before_it_goes_on_alone() {
    let mut holder = holder(None);
    let recorded = Some(electorate(1, &[]));
    holder.set_reign(Some(Reign { rebooted: true, ..reign(recorded) }));
    assert_eq!(holder.standing(at(10)), None);
    let asked = holder.ask(at(1000));
    assert_eq!(asked.len(), 2);
    holder.endorsed(at(1001), asked[0].1, true, Epoch(3));
    assert_eq!(holder.standing(at(1001)), None);
    holder.endorsed(at(1001), asked[1].1, true, Epoch(3));
    assert_eq!(holder.standing(at(1001)).unwrap().source, LeaseSource::Alone);
}

#[test]
fn what_is_revoked_stays_revoked() {
    let mut holder = holder(Some(electorate(1, &[])));
    holder.revoke(Epoch(4));
    assert_eq!(holder.standing(at(0)), None);
    let nonce = holder.stamp(at(1));
    holder.answered(at(1), nonce, grant(3, both()), Epoch(3));
    holder.revoke(Epoch(2));
    assert_eq!(holder.standing(at(2)), None);
    assert!(holder.ask(at(9000)).is_empty());
}

#[test]
fn a_higher_epoch_says_that_this_one_is_over_whatever_the_clocks_say() {
    let mut holder = holder(None);
    let (first, second) = (holder.stamp(at(0)), holder.stamp(at(10)));
    holder.answered(at(1), first, grant(3, both()), Epoch(3));
    assert!(holder.standing(at(20)).is_some());
    holder.answered(at(21), second, None, Epoch(4));
    assert_eq!(holder.standing(at(21)), None);
}

#[test]
fn a_new_epoch_begins_with_nothing() {
    let mut holder = holder(Some(both()));
    let nonce = holder.stamp(at(0));
    holder.answered(at(1), nonce, grant(3, both()), Epoch(3));
    assert!(holder.standing(at(1)).is_some());
    holder.set_reign(Some(Reign { epoch: Epoch(4), ..reign(None) }));
    assert_eq!((holder.standing(at(1)), holder.obeyed()), (None, None));
}

#[test]
fn epochs_of_another_cluster_are_forgotten() {
    let mut holder = Holder::new(Moment::default(), Timing::default(), 0);
    holder.revoke(Epoch(1000));
    let nonce = holder.stamp(Moment::default());
    holder.answered(Moment::default(), nonce, None, Epoch(1000));
    holder.change_cluster();
    assert_eq!((holder.revoked_below, holder.stored_epoch), (Epoch(0), Epoch(0)));
}
