//! What the status says of a ledger, a gate and a lease.

use std::time::Duration;

use regent_common::{
    ids::{ClusterId, OperationToken},
    lease::LeaseReport,
    topology::{Endpoint, Mode, Peer},
};

use super::*;
use crate::ledger::{Membership, StoredSpec};

/// db1, primary of epoch 3 in a cluster of three.
pub(crate) fn membership() -> Membership {
    let peer = |number: u8| Peer {
        member: format!("db{number}").parse().unwrap(),
        node: format!("n{number}").parse().unwrap(),
        engine: Endpoint { host: "h".to_owned(), port: 5432 },
        agent_address: "h:1".to_owned(),
    };
    Membership {
        cluster_id: ClusterId::from_parts(1, 1),
        member: "db1".parse().unwrap(),
        port: 5432,
        spec: StoredSpec {
            cluster: ClusterName::new("db").unwrap(),
            engine: "fake".to_owned(),
            version: String::new(),
            members: (1..=3).map(peer).collect(),
            settings: BTreeMap::new(),
            access_rules: String::new(),
            mode: Mode::default(),
            tls: false,
        },
        configured: true,
        configuration: String::new(),
        epoch: Epoch(3),
        token: OperationToken(1),
        role: Some(Role::Primary),
        upstream: None,
        established: true,
        electorate: Some(Electorate { version: 2, members: ["db2", "db3"].map(|name| name.parse().unwrap()).into() }),
        longest_ttl_millis: None,
        ttl_millis: None,
        heartbeat_millis: None,
        dirty: false,
        distrusted: false,
        resyncing: false,
        writable_epoch: Some(Epoch(3)),
        writable_boot_id: None,
        fenced_epoch: None,
        fenced: false,
        drained: None,
        forced: None,
    }
}

fn ledger() -> Ledger {
    Ledger { membership: Some(membership()), ..Ledger::default() }
}

fn covered() -> Authority {
    Authority {
        electorate: membership().electorate,
        fence: FenceStages { timed_gate: true, destroys_sockets: true, survives_flush: true, problems: Vec::new() },
        ..Authority::default()
    }
}

#[test]
fn whether_another_member_would_take_over_depends_on_coordinator_store_electorate_and_gate() {
    let said = |sessions, stale, authority: &Authority| automatic_failover(sessions, stale, &ledger(), authority);
    assert!(said(0, false, &covered()).starts_with("off until a coordinator is connected"));
    assert!(said(1, true, &covered()).starts_with("off: the coordinator's store is older"));
    assert!(said(1, false, &covered()).starts_with("on: a coordinator is connected"));
    let empty = Authority { electorate: Some(Electorate::default()), ..covered() };
    assert!(said(1, false, &empty).ends_with("the electorate is empty"));
    let ungated = Authority { fence: FenceStages::default(), ..covered() };
    assert!(said(1, false, &ungated).ends_with("no gate closes here by itself"));
}

#[test]
fn a_gate_whose_time_is_over_is_closed() {
    let at = |millis| Moment::default().plus(Duration::from_millis(millis));
    let state = |open, gated: &[u16]| {
        let gate = GateStatus::of(GateState { gated: gated.iter().copied().collect(), open }, at(1000));
        (gate.state, gate.closes_in_millis)
    };
    assert_eq!(state(Open::Closed, &[]), (GateStands::Unarmed, None));
    assert_eq!(state(Open::Closed, &[5432]), (GateStands::Closed, None));
    assert_eq!(state(Open::Until(at(1000)), &[5432]), (GateStands::Closed, None));
    assert_eq!(state(Open::Until(at(1800)), &[5432]), (GateStands::Open, Some(800)));
    assert_eq!(state(Open::Untimed, &[5432]), (GateStands::OpenWithoutEnd, None));
}

#[test]
fn a_lease_has_an_end_only_while_it_stands_and_ends() {
    let shown = |stands, millis| {
        let remaining = Duration::from_millis(millis);
        let report = LeaseReport { epoch: Epoch(3), stands, source: None, remaining };
        let lease = LeaseStatus::of(&report, Timestamp::UNIX_EPOCH);
        (lease.remaining_millis, lease.until.map(|until| until.as_millisecond()))
    };
    assert_eq!(shown(true, 900), (Some(900), Some(900)));
    assert_eq!(shown(true, 0), (None, None), "without an end");
    assert_eq!(shown(false, 0), (None, None));
}

#[test]
fn a_status_of_an_older_agent_is_read() {
    let mut json = serde_json::to_value(Status::of_ledger(&ledger())).unwrap();
    for new in ["lease", "gate", "fence", "promise", "answers", "without_coordinator"] {
        json.as_object_mut().unwrap().remove(new).expect("it is written");
    }
    let read: Status = serde_json::from_value(json).unwrap();
    assert_eq!(read.member, Status::of_ledger(&ledger()).member);
}

#[test]
fn what_the_end_of_the_agent_means_is_said_by_the_ledger_alone() {
    assert!(Status::of_ledger(&ledger()).without_coordinator.contains("has a gate it closes, and writes stop"));
    assert_eq!(Status::of_ledger(&Ledger::default()).without_coordinator, "");
}
