//! The list of scenarios. Clients are where the hub is, and see every member, unless a scenario says otherwise.
//!
//! In the names of splits the coordinator is c, the primary p, the replicas a and b.

use super::{
    Expectation, Fault, Outage, Part, Scenario,
    Who::{self, Clients, Coordinator, FirstReplica, Primary, SecondReplica},
};

/// Everybody but the primary.
const OTHERS: &[Who] = &[Coordinator, FirstReplica, SecondReplica, Clients];

/// Nobody notices.
const NOTHING: Expectation = Expectation { failover: false, outage: Outage::None };
/// Another member takes over, as fast as the profile says.
const FAILOVER: Expectation = Expectation { failover: true, outage: Outage::NodeLost };

/// Cuts both ways between two groups.
macro_rules! split {
    ($one:expr, $other:expr) => {
        &[Fault::Cut { from: $one, to: $other }, Fault::Cut { from: $other, to: $one }]
    };
}

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "engine-kill",
        about: "SIGKILL for the primary's first process",
        faults: &[Fault::Kill(Part::Engine(Primary))],
        expected: Expectation { failover: true, outage: Outage::EngineDied },
    },
    Scenario {
        name: "engine-stop",
        about: "SIGSTOP for every process of the primary's engine",
        faults: &[Fault::Stop(Part::Engine(Primary))],
        expected: Expectation { failover: true, outage: Outage::EngineHung },
    },
    Scenario {
        name: "agent-kill",
        about: "SIGKILL for the primary's agent, which stays down",
        faults: &[Fault::Kill(Part::Agent(Primary))],
        expected: FAILOVER,
    },
    Scenario {
        name: "agent-restart",
        about: "SIGKILL for the primary's agent, which is back within a second",
        faults: &[Fault::Bounce(Part::Agent(Primary))],
        expected: NOTHING,
    },
    Scenario {
        name: "agent-stop",
        about: "SIGSTOP for the primary's agent",
        faults: &[Fault::Stop(Part::Agent(Primary))],
        expected: FAILOVER,
    },
    Scenario {
        name: "agent-planned-restart",
        about: "the primary's agent is told to end, and is back when a usual lease would be over",
        faults: &[Fault::Restart(Primary)],
        expected: NOTHING,
    },
    Scenario {
        name: "promote",
        about: "a person promotes a replica",
        faults: &[Fault::Promote(FirstReplica)],
        expected: Expectation { failover: true, outage: Outage::Planned },
    },
    Scenario {
        name: "node-kill",
        about: "the plug of the primary's machine is pulled",
        faults: &[Fault::PowerOff(Primary)],
        expected: FAILOVER,
    },
    Scenario {
        name: "node-cut",
        about: "the primary's machine is cut from everything",
        faults: split!(&[Primary], OTHERS),
        expected: FAILOVER,
    },
    Scenario {
        name: "node-cut-coordinator",
        about: "the primary's machine is cut from the coordinator only",
        faults: split!(&[Primary], &[Coordinator]),
        expected: NOTHING,
    },
    Scenario {
        name: "node-cut-replicas",
        about: "the primary's machine is cut from the replicas only",
        faults: split!(&[Primary], &[FirstReplica, SecondReplica]),
        expected: NOTHING,
    },
    Scenario {
        name: "node-cut-inbound",
        about: "nothing reaches the primary's machine any more; what it sends arrives",
        faults: &[Fault::Cut { from: OTHERS, to: &[Primary] }],
        expected: Expectation { failover: true, outage: Outage::NodeHalfLost },
    },
    Scenario {
        name: "node-cut-outbound",
        about: "nothing that the primary's machine sends arrives; what is sent to it does",
        faults: &[Fault::Cut { from: &[Primary], to: OTHERS }],
        expected: FAILOVER,
    },
    Scenario {
        name: "disk-hang",
        about: "the disk of the primary's machine hangs",
        faults: &[Fault::FreezeDisk(Primary)],
        expected: Expectation { failover: true, outage: Outage::DiskHung },
    },
    Scenario {
        name: "coordinator-kill",
        about: "the coordinator is away for a while",
        faults: &[Fault::Kill(Part::Coordinator)],
        expected: NOTHING,
    },
    Scenario {
        name: "coordinator-and-replica-kill",
        about: "the coordinator is away, and the plug of a replica's machine is pulled: nobody may go on alone",
        faults: &[Fault::Kill(Part::Coordinator), Fault::PowerOff(FirstReplica)],
        expected: Expectation { failover: false, outage: Outage::UntilHealed },
    },
    Scenario {
        name: "split-c-pab",
        about: "the coordinator is cut from all members",
        faults: split!(&[Coordinator], &[Primary, FirstReplica, SecondReplica]),
        expected: NOTHING,
    },
    Scenario {
        name: "split-cp-ab",
        about: "coordinator and primary are cut from both replicas",
        faults: split!(&[Coordinator, Primary], &[FirstReplica, SecondReplica]),
        expected: NOTHING,
    },
    Scenario {
        name: "split-ca-pb",
        about: "coordinator and one replica are cut from the primary and the other replica",
        faults: split!(&[Coordinator, FirstReplica], &[Primary, SecondReplica]),
        expected: FAILOVER,
    },
    Scenario {
        name: "split-cab-p",
        about: "the primary is cut from coordinator and replicas; clients still reach it",
        faults: split!(&[Coordinator, FirstReplica, SecondReplica], &[Primary]),
        expected: FAILOVER,
    },
];
