//! The table: what each kind of evidence is judged to be.

use std::collections::BTreeMap;

use jiff::Timestamp;
use regent_common::{
    ids::{Epoch, OperationToken},
    topology::EngineObservation,
};

use super::*;

fn expected(role: Role) -> Expected {
    Expected {
        cluster_id: ClusterId::from_parts(1, 1),
        member: "db1".parse().unwrap(),
        role,
        primary: Some(if role == Role::Primary { "db1" } else { "db2" }.parse().unwrap()),
        other: (role == Role::Active).then(|| "db2".parse().unwrap()),
    }
}

fn seen(change: impl FnOnce(&mut Observation)) -> Evidence {
    let mut observation = Observation {
        cluster_id: ClusterId::from_parts(1, 1),
        member: "db1".parse().unwrap(),
        epoch: Epoch(1),
        token: OperationToken(1),
        fenced: false,
        dirty: false,
        endpoint: None,
        configuration: String::new(),
        observed_at: Timestamp::UNIX_EPOCH,
        observed_ago: Duration::ZERO,
        allow_list: None,
        authority: regent_common::lease::Authority::default(),
        engine: EngineObservation {
            state: EngineState::Running,
            role: Some(Role::Primary),
            storage_writable: Ternary::Yes,
            position: None,
            streaming: Ternary::Unknown,
            upstream: None,
            replay_lag_bytes: None,
            pid: Some(1),
            version: String::new(),
            reason: String::new(),
            details: BTreeMap::new(),
            data_bytes: 0,
            stale: String::new(),
        },
    };
    change(&mut observation);
    Evidence {
        quarantine: None,
        connected: true,
        silent_for: Some(Duration::ZERO),
        listening_for: Duration::ZERO,
        observation: Some(observation),
    }
}

fn verdict(role: Role, evidence: &Evidence) -> Verdict {
    let judgement = judge(
        &expected(role),
        evidence,
        &Thresholds { suspect_after: Duration::from_secs(3), startup_grace: Duration::from_secs(10) },
    );
    assert_eq!(judgement.reason.is_empty(), judgement.verdict == Verdict::Healthy, "{judgement:?}");
    judgement.verdict
}

#[test]
fn silence_is_not_death() {
    let mut silent = seen(|o| o.engine.state = EngineState::Crashed);
    silent.connected = false;
    silent.silent_for = Some(Duration::from_secs(3600));
    assert_eq!(verdict(Role::Primary, &silent), Verdict::NodeUnreachable);
    silent.silent_for = Some(Duration::from_secs(1));
    assert_eq!(verdict(Role::Primary, &silent), Verdict::Suspect);
    let never = |seconds| Evidence { listening_for: Duration::from_secs(seconds), ..Evidence::default() };
    assert_eq!(verdict(Role::Primary, &never(9)), Verdict::Suspect);
    assert_eq!(verdict(Role::Primary, &never(10)), Verdict::NodeUnreachable);
    let mut quiet = seen(|_| ());
    quiet.silent_for = Some(Duration::from_secs(4));
    assert_eq!(verdict(Role::Primary, &quiet), Verdict::NodeUnreachable, "a connection alone is no word");
}

#[test]
fn a_primary_that_is_not_heard_is_lost_only_when_its_lease_is_over_and_nobody_vouches_for_it() {
    let member: MemberName = "db1".parse().unwrap();
    let refined = |verdict: Verdict, succession: Succession| {
        refine(Judgement { verdict, reason: "silent".to_owned() }, &member, &succession).verdict
    };
    let over = Succession { gated: true, ..Succession::default() };
    let stands = Succession { lease_left: Duration::from_secs(1), ..over.clone() };
    let vouched = Succession { reported_by: Some("db2".parse().unwrap()), ..over.clone() };
    assert_eq!(refined(Verdict::NodeUnreachable, over.clone()), Verdict::NodeLost);
    assert_eq!(refined(Verdict::NodeUnreachable, stands), Verdict::NodeUnreachable);
    assert_eq!(refined(Verdict::NodeUnreachable, vouched), Verdict::Partitioned);
    assert_eq!(refined(Verdict::NodeUnreachable, Succession::default()), Verdict::NodeUnreachable, "no gate");
    assert_eq!(refined(Verdict::EngineDown, over), Verdict::EngineDown);
}

#[test]
fn a_primary_whose_lease_does_not_stand_serves_nobody() {
    let lease = |stands| {
        seen(|o| {
            let remaining = Duration::ZERO;
            o.authority.lease =
                Some(regent_common::lease::LeaseReport { epoch: Epoch(1), stands, source: None, remaining });
        })
    };
    assert_eq!(verdict(Role::Primary, &lease(true)), Verdict::Healthy);
    assert_eq!(verdict(Role::Primary, &lease(false)), Verdict::WithoutLease);
}

#[test]
fn the_state_of_the_process_comes_first() {
    for (state, wanted) in [
        (EngineState::Absent, Verdict::Lost),
        (EngineState::Crashed, Verdict::EngineDown),
        (EngineState::Stopped, Verdict::EngineDown),
        (EngineState::Stopping, Verdict::Starting),
        (EngineState::Starting, Verdict::Starting),
        (EngineState::Hung, Verdict::EngineHung),
        (EngineState::Running, Verdict::Healthy),
    ] {
        assert_eq!(verdict(Role::Primary, &seen(|o| o.engine.state = state)), wanted, "{state:?}");
    }
}

#[test]
fn a_storage_that_takes_no_write_is_hung_and_an_unknown_one_is_not() {
    assert_eq!(verdict(Role::Primary, &seen(|o| o.engine.storage_writable = Ternary::No)), Verdict::StorageHung);
    assert_eq!(verdict(Role::Primary, &seen(|o| o.engine.storage_writable = Ternary::Unknown)), Verdict::Healthy);
}

#[test]
fn roles_and_upstreams_are_compared_with_the_stored_topology() {
    let replica = |upstream: Option<&str>, streaming| {
        seen(|o| {
            o.engine.role = Some(Role::Replica);
            o.engine.upstream = upstream.map(|u| u.parse().unwrap());
            o.engine.streaming = streaming;
        })
    };
    assert_eq!(verdict(Role::Replica, &replica(Some("db2"), Ternary::Yes)), Verdict::Healthy);
    assert_eq!(verdict(Role::Replica, &replica(Some("db2"), Ternary::No)), Verdict::NotStreaming);
    assert_eq!(verdict(Role::Replica, &replica(Some("db3"), Ternary::Yes)), Verdict::Astray);
    assert_eq!(verdict(Role::Replica, &replica(None, Ternary::No)), Verdict::Astray);
    assert_eq!(verdict(Role::Replica, &seen(|_| ())), Verdict::Astray);
    assert_eq!(verdict(Role::Primary, &replica(None, Ternary::No)), Verdict::Astray);
}

#[test]
fn a_side_of_a_pair_serves_while_it_is_open_and_follows_the_other() {
    let side = |upstream: Option<&str>, streaming, open: &str| {
        seen(|o| {
            o.engine.role = Some(Role::Active);
            o.engine.upstream = upstream.map(|u| u.parse().unwrap());
            o.engine.streaming = streaming;
            o.engine.set_open(open == "yes");
        })
    };
    let judged = |evidence: &Evidence| verdict(Role::Active, evidence);
    assert_eq!(judged(&side(Some("db2"), Ternary::Yes, "yes")), Verdict::Healthy);
    assert_eq!(judged(&side(Some("db2"), Ternary::No, "yes")), Verdict::NotStreaming);
    for (streaming, expected) in [(Ternary::No, Verdict::Stale), (Ternary::Yes, Verdict::Healthy)] {
        let mut late = side(Some("db2"), streaming, "yes");
        late.observation.as_mut().unwrap().engine.stale = "nobody remembers what it has missed".to_owned();
        assert_eq!(judged(&late), expected);
    }
    assert_eq!(judged(&side(Some("db2"), Ternary::Yes, "no")), Verdict::Astray);
    assert_eq!(judged(&side(Some("db3"), Ternary::Yes, "yes")), Verdict::Astray);
    assert_eq!(judged(&side(None, Ternary::Unknown, "yes")), Verdict::Astray);
    assert_eq!(judged(&seen(|_| ())), Verdict::Astray, "a primary is no side");
    assert_eq!(verdict(Role::Primary, &side(None, Ternary::Unknown, "yes")), Verdict::Astray);
    let alone = Expected { other: None, ..expected(Role::Active) };
    let thresholds = Thresholds { suspect_after: Duration::from_secs(3), startup_grace: Duration::from_secs(10) };
    for streaming in [Ternary::Yes, Ternary::No, Ternary::Unknown] {
        let judged = judge(&alone, &side(Some("db2"), streaming, "yes"), &thresholds);
        assert_eq!(judged.verdict, Verdict::Healthy, "it goes on while the other one has to be brought back");
    }
    assert_eq!(judge(&alone, &side(None, Ternary::Unknown, "no"), &thresholds).verdict, Verdict::Astray);
}

#[test]
fn a_node_that_lost_its_ledger_or_has_another_is_lost() {
    let mut spare = seen(|_| ());
    spare.observation = None;
    assert_eq!(verdict(Role::Replica, &spare), Verdict::Lost);
    let other = seen(|o| o.cluster_id = ClusterId::from_parts(2, 2));
    assert_eq!(verdict(Role::Replica, &other), Verdict::Lost);
    assert_eq!(verdict(Role::Replica, &seen(|o| o.dirty = true)), Verdict::Dirty);
}

#[test]
fn a_node_in_quarantine_is_judged_before_all_that_it_says() {
    let mut evidence = seen(|_| ());
    evidence.quarantine = Some("its ledger was put back".to_owned());
    let thresholds = Thresholds { suspect_after: Duration::from_secs(3), startup_grace: Duration::from_secs(10) };
    let said = judge(&expected(Role::Primary), &evidence, &thresholds);
    assert_eq!(said.verdict, Verdict::Quarantined);
    assert!(said.reason.contains("its ledger was put back"), "{}", said.reason);
    evidence.observation = None;
    assert_eq!(verdict(Role::Primary, &evidence), Verdict::Quarantined);
    evidence.connected = false;
    evidence.silent_for = Some(Duration::from_secs(60));
    assert_eq!(verdict(Role::Primary, &evidence), Verdict::NodeUnreachable);
}
