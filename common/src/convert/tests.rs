//! What is sent comes back as it was, and what makes no sense is refused.

use std::time::Duration;

use super::*;
use crate::lease::{Electorate, FenceStages, Forced, Grant, HeardLease, LeaseReport, LeaseSource};

#[test]
fn an_observation_survives_the_wire() {
    let seen = Observation {
        allow_list: Some(AllowListState { fingerprint: "f1".to_owned(), problem: "none".to_owned() }),
        cluster_id: crate::ids::ClusterId::from_parts(1, 2),
        member: "db1".parse().unwrap(),
        epoch: Epoch(3),
        token: OperationToken(4),
        fenced: true,
        dirty: true,
        endpoint: Some(Endpoint { host: "h".to_owned(), port: 8 }),
        configuration: "c0".to_owned(),
        observed_at: Timestamp::new(5, 6).unwrap(),
        observed_ago: Duration::from_millis(7),
        engine: EngineObservation {
            state: EngineState::Hung,
            role: Some(Role::Replica),
            storage_writable: Ternary::No,
            position: Some(Position::new([("a/1".to_owned(), IntervalSet::from(vec![(0, 7)]))], "seven")),
            streaming: Ternary::Yes,
            upstream: Some("db2".parse().unwrap()),
            replay_lag_bytes: Some(8),
            pid: Some(9),
            version: "15.1".to_owned(),
            reason: "hung".to_owned(),
            details: [("k".to_owned(), "v".to_owned())].into(),
            data_bytes: 10,
            stale: "old".to_owned(),
        },
        authority: authority(),
    };
    assert_eq!(Observation::try_from(wire::MemberObservation::from(&seen)), Ok(seen));
}

fn authority() -> Authority {
    let millis = Duration::from_millis;
    let lease = |source| LeaseReport { epoch: Epoch(3), stands: true, source, remaining: millis(900) };
    Authority {
        role: Some(Role::Primary),
        established: true,
        writable_epoch: Some(Epoch(3)),
        electorate: Some(Electorate { version: 2, members: ["db2".parse().unwrap()].into() }),
        lease: Some(lease(Some(LeaseSource::Endorsement))),
        heard: Some(HeardLease { member: "db2".parse().unwrap(), lease: lease(None), position: None, age: millis(30) }),
        prepare_in: millis(40),
        fence: FenceStages {
            timed_gate: true,
            destroys_sockets: true,
            survives_flush: true,
            problems: vec!["none".to_owned()],
        },
        forced: Some(Forced {
            at: jiff::Timestamp::UNIX_EPOCH,
            confirmed_off: ["db2", "db3"].map(|member| member.parse().unwrap()).into(),
        }),
        hand_over: true,
        replaced: Some(77),
    }
}

#[test]
fn a_grant_without_a_time_or_an_electorate_is_refused() {
    let grant =
        Grant { epoch: Epoch(1), ttl: Duration::from_secs(5), electorate: Electorate::default(), handed_over: Some(9) };
    let sent = agent::Grant::from(&grant);
    assert_eq!(Grant::try_from(sent.clone()), Ok(grant));
    assert!(Grant::try_from(agent::Grant { ttl_millis: 0, ..sent.clone() }).is_err());
    assert!(Grant::try_from(agent::Grant { electorate: None, ..sent }).is_err());
}

#[test]
fn an_unspecified_engine_state_is_refused() {
    assert_eq!(EngineState::try_from(wire::EngineState::Unspecified), Err(missing("engine_state")));
    assert!(role_from_wire(99).is_err());
}

#[test]
fn a_port_out_of_range_is_refused() {
    assert!(Endpoint::try_from(wire::Endpoint { host: "h".to_owned(), port: 70_000 }).is_err());
}
