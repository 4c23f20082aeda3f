//! Every reason for which a person is refused, one at a time; and the epoch of who is not.

use regent_common::{
    ids::ClusterId,
    lease::{Authority, Forced, LeaseReport},
};

use super::*;
use crate::status::tests::membership;

const TTL: Duration = Duration::from_secs(5);

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn words() -> Words {
    let confirm_off = ["db2", "n3"].map(ToOwned::to_owned).to_vec();
    Words { confirm: Some("db1".to_owned()), confirm_off, dry_run: false }
}

fn silent() -> Other {
    Other { word: Word::Silent("connection refused".to_owned()), engine_answers: false }
}

fn report(epoch: u64, change: impl FnOnce(&mut Authority)) -> Other {
    let mut authority = Authority::default();
    change(&mut authority);
    let observation = Observation {
        cluster_id: ClusterId::from_parts(1, 1),
        member: name("db2"),
        epoch: Epoch(epoch),
        token: Default::default(),
        fenced: false,
        dirty: false,
        engine: crate::observe::without_driver(String::new()),
        authority,
        endpoint: None,
        configuration: String::new(),
        observed_at: jiff::Timestamp::UNIX_EPOCH,
        observed_ago: Default::default(),
        allow_list: None,
    };
    Other { word: Word::Report { observation: Box::new(observation), sessions: 0 }, engine_answers: false }
}

fn lease(stands: bool, remaining: Duration) -> LeaseReport {
    LeaseReport { epoch: Epoch(3), stands, source: None, remaining }
}

fn heard(stands: bool, remaining: Duration, age: Duration) -> HeardLease {
    HeardLease { member: name("db2"), lease: lease(stands, remaining), position: None, age }
}

/// db1, a replica of db2 at epoch 3 with db3 beside it: nobody else answers, and nothing is in the way.
fn facts() -> Facts {
    let mut membership = membership();
    membership.role = Some(Role::Replica);
    membership.upstream = Some(name("db2"));
    membership.writable_epoch = None;
    membership.electorate = None;
    Facts {
        ledger: Ledger { membership: Some(membership), ..Ledger::default() },
        engine: Engine { problem: String::new(), has_data: true, dirty: false, seen: Some(seen(Role::Replica)) },
        lease_stands: false,
        told_epoch: Epoch(0),
        promised_for: Duration::ZERO,
        heard: None,
        sessions: 0,
        coordinator: None,
        others: [(name("db2"), silent()), (name("db3"), silent())].into(),
    }
}

fn seen(role: Role) -> EngineObservation {
    let nothing = crate::observe::without_driver(String::new());
    EngineObservation { state: EngineState::Running, role: Some(role), ..nothing }
}

fn member(facts: &mut Facts) -> &mut Membership {
    facts.ledger.membership.as_mut().unwrap()
}

fn forced_at(epoch: u64) -> Facts {
    let mut facts = facts();
    let membership = member(&mut facts);
    membership.epoch = Epoch(epoch);
    let forced = Forced { at: jiff::Timestamp::UNIX_EPOCH, confirmed_off: [name("db2"), name("db3")].into() };
    membership.force(Epoch(epoch), forced);
    membership.begin_reign(Epoch(epoch), "boot");
    facts
}

#[test]
fn a_member_with_nothing_in_its_way_begins_far_above_every_epoch_that_is_known() {
    let plan = judge(&facts(), &words()).unwrap();
    assert_eq!(plan, Plan { epoch: Epoch(1003), confirmed_off: [name("db2"), name("db3")].into(), done: false });
    let told = Facts { told_epoch: Epoch(9), ..facts() };
    assert_eq!(judge(&told, &words()).unwrap().epoch, Epoch(1009), "a coordinator had said so");
    let mut over = heard(true, TTL, TTL * 2);
    over.lease.epoch = Epoch(12);
    assert_eq!(judge(&Facts { heard: Some(over), ..facts() }, &words()).unwrap().epoch, Epoch(1012));
}

#[test]
fn an_old_primary_whose_lease_is_over_can_be_forced_too() {
    let mut facts = facts();
    *member(&mut facts) = membership();
    facts.engine.seen = Some(seen(Role::Primary));
    assert_eq!(judge(&facts, &words()).unwrap().epoch, Epoch(1003));
}

#[test]
fn said_again_it_goes_on_at_the_same_epoch_and_is_done_when_it_is_done() {
    let begun = forced_at(1003);
    let plan = judge(&begun, &words()).unwrap();
    assert_eq!((plan.epoch, plan.done), (Epoch(1003), false), "the engine is a replica yet");
    let stands = Facts { lease_stands: true, ..begun };
    assert!(!judge(&stands, &words()).unwrap().done, "a lease alone is not enough");
    let mut done = stands;
    done.engine.seen = Some(seen(Role::Primary));
    assert!(judge(&done, &words()).unwrap().done);
    done.lease_stands = false;
    assert!(!judge(&done, &words()).unwrap().done, "nobody reaches it");
}

#[test]
fn a_side_of_two_is_no_primary_and_is_made_none() {
    let mut facts = facts();
    member(&mut facts).spec.mode = Mode::MultiMaster;
    let refused = judge(&facts, &words()).unwrap_err();
    assert_eq!(refused, [Refusal::BothSides { member: name("db1") }]);
}

#[test]
fn every_reason_is_found_alone() {
    type Change = fn(&mut Facts, &mut Words);
    fn other(facts: &mut Facts, of: Other) {
        facts.others.insert(name("db2"), of);
    }
    let table: &[(&str, Change)] = &[
        ("not_a_member", |facts, _| facts.ledger.membership = None),
        ("quarantined", |facts, _| facts.ledger.quarantine = Some("no ledger".to_owned())),
        ("engine_unusable", |facts, _| facts.engine.problem = "no program".to_owned()),
        ("no_data", |facts, _| facts.engine.has_data = false),
        ("data_not_whole", |facts, _| facts.engine.dirty = true),
        ("data_not_whole", |facts, _| member(facts).dirty = true),
        ("data_not_whole", |facts, _| member(facts).distrusted = true),
        ("data_not_whole", |facts, _| member(facts).resyncing = true),
        ("confirm_wrong", |_, words| words.confirm = Some("db".to_owned())),
        ("confirm_wrong", |_, words| words.confirm = None),
        ("nobody_called_so", |_, words| words.confirm_off.push("db4".to_owned())),
        ("nobody_called_so", |_, words| words.confirm_off.push("db1".to_owned())),
        ("not_named_off", |_, words| words.confirm_off.truncate(1)),
        ("coordinator_connected", |facts, _| facts.sessions = 1),
        ("coordinator_answers", |facts, _| facts.coordinator = Some("c:7420".to_owned())),
        ("promise_stands", |facts, _| facts.promised_for = Duration::from_millis(1)),
        ("lease_heard", |facts, _| facts.heard = Some(heard(true, TTL, TTL))),
        ("lease_heard", |facts, _| facts.heard = Some(heard(true, Duration::ZERO, TTL))),
        ("reigns", |facts, _| facts.lease_stands = true),
        ("lease_stands", |facts, _| other(facts, report(3, |said| said.lease = Some(lease(true, TTL))))),
        ("lease_stands", |facts, _| other(facts, report(2, |said| said.lease = Some(lease(true, TTL))))),
        ("higher_epoch", |facts, _| other(facts, report(4, |_| ()))),
        ("lease_heard", |facts, _| other(facts, report(3, |said| said.heard = Some(heard(true, TTL, TTL / 2))))),
        ("coordinator_elsewhere", |facts, _| {
            let mut told = report(3, |_| ());
            let Word::Report { sessions, .. } = &mut told.word else { unreachable!("it is one") };
            *sessions = 1;
            other(facts, told);
        }),
        ("not_off", |facts, _| other(facts, report(3, |_| ()))),
        ("not_off", |facts, _| other(facts, report(3, |said| said.lease = Some(lease(false, TTL))))),
        ("not_off", |facts, _| {
            other(facts, Other { word: Word::Unreadable("unimplemented".to_owned()), engine_answers: true });
        }),
        ("engine_not_off", |facts, _| other(facts, Other { engine_answers: true, ..silent() })),
        ("streams", |facts, _| {
            let seen = facts.engine.seen.as_mut().unwrap();
            (seen.streaming, seen.upstream) = (Ternary::Yes, Some(name("db2")));
        }),
    ];
    for (index, (reason, change)) in table.iter().enumerate() {
        let (mut facts, mut words) = (facts(), words());
        change(&mut facts, &mut words);
        let refusals = judge(&facts, &words).expect_err(reason);
        let found: Vec<_> = refusals.iter().map(Refusal::reason).collect();
        assert_eq!(found, [*reason], "row {index}");
        let said = refusals[0].to_string();
        assert!(said.len() > 40, "it says what to do: {said}");
    }
    let reasons: BTreeSet<_> = table.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons.len(), 19, "a new reason has a row here");
}

#[test]
fn what_is_over_is_no_reason() {
    for over in [
        heard(false, TTL, Duration::ZERO),
        heard(true, TTL / 5, TTL / 2),
        heard(true, TTL, TTL + margin(TTL) + Duration::from_millis(1)),
        heard(true, Duration::ZERO, TTL * 2),
    ] {
        assert!(judge(&Facts { heard: Some(over.clone()), ..facts() }, &words()).is_ok(), "{over:?}");
    }
}

#[test]
fn all_reasons_are_told_at_once_and_a_wrong_command_is_known_as_one() {
    let mut facts = Facts { sessions: 1, promised_for: TTL, ..facts() };
    facts.others.insert(name("db3"), report(4, |_| ()));
    let all = judge(&facts, &Words { confirm: Some("db9".to_owned()), ..Words::default() }).unwrap_err();
    let found: Vec<_> = all.iter().map(Refusal::reason).collect();
    assert_eq!(found, ["confirm_wrong", "not_named_off", "coordinator_connected", "promise_stands", "higher_epoch"]);
    assert_eq!(all.iter().map(Refusal::is_usage).collect::<Vec<_>>(), [true, true, false, false, false]);
}

#[test]
fn a_dry_run_needs_no_confirmation_by_name() {
    let dry = Words { confirm: None, dry_run: true, ..words() };
    assert!(judge(&facts(), &dry).is_ok());
}

#[test]
fn a_lone_member_names_nobody() {
    let mut alone = Facts { others: BTreeMap::new(), ..facts() };
    member(&mut alone).spec.members.truncate(1);
    let words = Words { confirm: Some("db1".to_owned()), ..Words::default() };
    assert_eq!(judge(&alone, &words).unwrap().confirmed_off, BTreeSet::new());
}
