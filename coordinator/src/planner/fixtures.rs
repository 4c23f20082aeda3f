//! A cluster and a healthy word of a member, for the tests of what decides.

use std::collections::{BTreeMap, BTreeSet};

use regent_common::{
    ids::{ClusterId, ClusterName, Epoch, MemberName, OperationToken},
    lease::Authority,
    topology::{EngineObservation, EngineState, Observation, Role, Ternary},
};

use crate::model::{
    cluster::{ClusterRecord, MemberRecord, MemberState, Phase, Policy},
    reign::Reign,
};

pub(crate) fn name(n: u32) -> MemberName {
    format!("db{n}").parse().unwrap()
}

/// Two members, the first is the primary, the second its electorate.
pub(crate) fn cluster() -> ClusterRecord {
    ClusterRecord {
        id: ClusterId::from_parts(1, 1),
        name: ClusterName::new("db").unwrap(),
        engine: "fake".to_owned(),
        version: String::new(),
        mode: String::new(),
        tls: false,
        epoch: Epoch(1),
        token: OperationToken(1),
        primary: Some(name(1)),
        candidate: None,
        established: true,
        reign: Some(Reign::new(Epoch(1), name(1), [name(2)].into(), true)),
        base: None,
        longest_ttl_millis: 0,
        hand_over_millis: 0,
        may_be_writable: BTreeSet::new(),
        reigned: BTreeMap::new(),
        members: (1..=2)
            .map(|n| {
                let node = format!("n{n}").parse().unwrap();
                (name(n), MemberRecord { state: MemberState::Ready, ..MemberRecord::new(node) })
            })
            .collect(),
        next_number: 3,
        phase: Phase::Active,
        labels: BTreeMap::new(),
        protected: false,
        settings: BTreeMap::new(),
        port: 0,
        connection: regent_common::topology::ConnectionFormat::default(),
        secrets: BTreeMap::new(),
        policy: Policy::default(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        created_by: String::new(),
        ready_at: None,
        keep_data_on_delete: false,
        operation: None,
        divergences: Vec::new(),
        allow_list: Default::default(),
        access_rules: String::new(),
        adopting: false,
        survivor: None,
    }
}

/// What the agent of a healthy primary says.
pub(crate) fn observation(member: MemberName) -> Observation {
    Observation {
        cluster_id: ClusterId::from_parts(1, 1),
        member,
        epoch: Epoch(1),
        token: OperationToken(1),
        fenced: false,
        dirty: false,
        endpoint: None,
        configuration: String::new(),
        observed_at: jiff::Timestamp::UNIX_EPOCH,
        observed_ago: Default::default(),
        allow_list: None,
        authority: Authority::default(),
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
    }
}
