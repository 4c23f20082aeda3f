//! Every refusal of an adoption, by its reason, and what is made when there is none.

use jiff::Timestamp;
use regent_common::{
    error::reason_of,
    ids::ClusterId,
    topology::{ConnectionFormat, EngineOffer},
};
use regent_proto::{agent::v1::SettingChange, types::v1::Endpoint as WireEndpoint};

use super::*;
use crate::{
    model::{Assignment, cluster::Phase, node::NodeRecord},
    nodes::NodeView,
};

/// Three nodes: on `b` runs a primary, on `a` and `c` its replicas.
struct Bench {
    nodes: BTreeMap<NodeName, Candidate>,
    surveys: Surveys,
    request: AdoptClusterRequest,
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn candidate(name: &str, address: &str) -> (NodeName, Candidate) {
    let offer = EngineOffer {
        engine: "fake".to_owned(),
        versions: vec!["2".to_owned(), "1".to_owned()],
        modes: vec!["primary-replica".to_owned()],
        min_replicas: 0,
        default_replicas: 2,
        max_replicas: 3,
        can_rewind: true,
        forgets_on_crash: false,
        connection_with_tls: None,
        problem: String::new(),
        connection: ConnectionFormat::default(),
    };
    let record = NodeRecord {
        name: node(name),
        agent_address: format!("{name}.example:7421"),
        public_address: String::new(),
        private_address: address.to_owned(),
        labels: BTreeMap::new(),
        joined_at: Timestamp::UNIX_EPOCH,
        certificate_not_after: None,
        serials: Vec::new(),
        revoked: false,
        data_lost: false,
        join_cluster: None,
    };
    let view = NodeView { connected: true, engines: vec![offer], ..NodeView::default() };
    (node(name), Candidate { record, view, assignment: None })
}

fn instance(port: u32, upstream: Option<(&str, u32)>) -> FoundInstance {
    FoundInstance {
        engine: "fake".to_owned(),
        version: "1".to_owned(),
        data_directory: "/data/main".to_owned(),
        port,
        replica: upstream.is_some(),
        history: "h1".to_owned(),
        upstream: upstream.map(|(host, port)| WireEndpoint { host: host.to_owned(), port }),
        settings: [("memory".to_owned(), "1GB".to_owned())].into(),
        access_rules: "host all".to_owned(),
        ..FoundInstance::default()
    }
}

fn bench() -> Bench {
    let nodes = [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")].map(|(name, ip)| candidate(name, ip)).into();
    let primary = FoundInstance {
        replicas: vec!["walreceiver at 10.0.0.1".to_owned(), "c at ::ffff:10.0.0.3".to_owned()],
        ..instance(5433, None)
    };
    let surveys = BTreeMap::from([
        (node("a"), vec![instance(5432, Some(("10.0.0.2", 5433)))]),
        (node("b"), vec![primary]),
        (node("c"), vec![instance(5432, Some(("B.example", 5433)))]),
    ]);
    let request = AdoptClusterRequest {
        cluster: "db".to_owned(),
        nodes: ["a", "nodes/b", "c"].map(ToOwned::to_owned).into(),
        labels: [("owner".to_owned(), "ann".to_owned())].into(),
        protected: true,
        ..AdoptClusterRequest::default()
    };
    Bench { nodes, surveys, request }
}

impl Bench {
    fn adopted(&self) -> Result<Adoption, Status> {
        let taken = BTreeSet::from(["taken".parse().unwrap()]);
        let asker = Asker {
            name: "me".to_owned(),
            now: Timestamp::UNIX_EPOCH,
            id: ClusterId::from_parts(1, 1),
            profile: Profile::Standard,
        };
        let wanted = Wanted::read(&self.request, &self.nodes, &taken, Profile::Relaxed)?;
        wanted.check(&self.nodes, &self.surveys, asker)
    }

    fn refusal(&self) -> (Option<Reason>, String) {
        let refused = self.adopted().map(|adoption| adoption.record).unwrap_err();
        (reason_of(&refused), refused.message().to_owned())
    }

    fn on(&mut self, name: &str) -> &mut FoundInstance {
        &mut self.surveys.get_mut(&node(name)).unwrap()[0]
    }
}

/// What is spoiled, the reason of the refusal, and a part of what it says.
type Case = (fn(&mut Bench), Reason, &'static str);

fn refused(cases: &[Case]) {
    for (spoil, reason, says) in cases {
        let mut bench = bench();
        spoil(&mut bench);
        let (found, message) = bench.refusal();
        assert_eq!(found, Some(*reason), "{message}");
        assert!(message.contains(says), "{says:?} is not in: {message}");
    }
}

#[test]
fn the_primary_becomes_the_first_member_and_gives_the_cluster_what_it_has() {
    let mut bench = bench();
    bench.on("a").settings.clear();
    let Adoption { record, parameters, .. } = bench.adopted().unwrap();
    let members: Vec<_> = record.members.iter().map(|(m, r)| (m.as_str(), r.node.as_str())).collect();
    assert_eq!(members, [("db1", "b"), ("db2", "a"), ("db3", "c")]);
    assert_eq!((record.version.as_str(), record.mode.as_str(), record.port), ("1", "primary-replica", 0));
    assert_eq!((record.settings["memory"].as_str(), record.access_rules.as_str()), ("1GB", "host all"));
    assert_eq!((record.labels.len(), record.protected, record.policy.profile), (1, true, Profile::Relaxed));
    assert!(record.adopting && record.phase == Phase::Creating && record.secrets.is_empty());
    let ports: Vec<_> = parameters.instances.values().map(|instance| instance.port).collect();
    assert_eq!(ports, [5433, 5432, 5432]);
    assert!(parameters.instances.values().all(|instance| instance.data_directory == "/data/main"));
}

#[test]
fn a_request_that_cannot_be_meant_is_refused_before_anybody_is_asked() {
    refused(&[
        (|b| b.request.cluster = "db1".to_owned(), Reason::NameInvalid, "digit"),
        (|b| b.request.cluster = "taken".to_owned(), Reason::NameTaken, "taken"),
        (|b| b.request.nodes.clear(), Reason::NoNodes, "no node is named"),
        (|b| b.request.nodes.push("a".to_owned()), Reason::NodeTwice, "twice"),
        (|b| b.request.nodes.push("x".to_owned()), Reason::NodeNotFound, "no node x"),
        (|b| b.request.profile = "quick".to_owned(), Reason::InvalidField, "profile"),
        (
            |b| b.request.data_directories = [("x".to_owned(), "/data".to_owned())].into(),
            Reason::InvalidField,
            "node x is not among",
        ),
        (|b| b.nodes.get_mut(&node("a")).unwrap().view.connected = false, Reason::NodeUnreachable, "not connected"),
        (
            |b| {
                let assignment = Assignment { cluster: "x".parse().unwrap(), member: "x1".parse().unwrap() };
                b.nodes.get_mut(&node("c")).unwrap().assignment = Some(assignment);
            },
            Reason::NodeInCluster,
            "member x1",
        ),
        (
            |b| b.nodes.get_mut(&node("c")).unwrap().view.engines[0].problem = "it is switched off".to_owned(),
            Reason::EngineMissing,
            "switched off",
        ),
        (
            |b| b.nodes.get_mut(&node("c")).unwrap().view.engines[0].versions = vec!["2".to_owned()],
            Reason::EngineMissing,
            "node c does not have the programs of fake 1",
        ),
    ]);
}

#[test]
fn on_each_node_one_instance_is_meant() {
    refused(&[
        (|b| b.surveys.get_mut(&node("a")).unwrap().clear(), Reason::NotAdoptable, "no instance runs on node a"),
        (
            |b| b.surveys.get_mut(&node("b")).unwrap().push(instance(5555, None)),
            Reason::InvalidField,
            "more than one instance runs on node b: name the one that is meant of /data/main (port 5433), /data/main (port 5555)",
        ),
        (
            |b| b.request.data_directories = [("b".to_owned(), "/elsewhere".to_owned())].into(),
            Reason::InvalidField,
            "in /elsewhere; there are /data/main (port 5433)",
        ),
    ]);
    let mut bench = bench();
    let other = FoundInstance { data_directory: "/data/other".to_owned(), ..instance(5555, None) };
    bench.surveys.get_mut(&node("b")).unwrap().insert(0, other);
    bench.request.data_directories = [("nodes/b".to_owned(), "/data/main/".to_owned())].into();
    let adoption = bench.adopted().unwrap();
    assert_eq!(adoption.parameters.instances.values().next().unwrap().port, 5433);
}

#[test]
fn one_primary_and_replicas_of_it_are_adopted_and_nothing_else() {
    refused(&[
        (
            |b| {
                b.request.nodes.remove(1);
            },
            Reason::NotAdoptable,
            "none of the instances is a primary (that on node a follows 10.0.0.2:5433)",
        ),
        (|b| *b.on("a") = instance(5432, None), Reason::NotAdoptable, "nodes a and b are both primaries"),
        (|b| b.on("c").engine = "other".to_owned(), Reason::NotAdoptable, "node b runs fake and node c runs other"),
        (|b| b.on("c").version = "2".to_owned(), Reason::VersionsDiffer, "node c version 2"),
        (|b| b.on("c").history = "h2".to_owned(), Reason::NotAdoptable, "node c is no copy of that on node b"),
        (|b| b.on("c").upstream = None, Reason::NotAdoptable, "follows nobody"),
        (|b| b.on("c").port = 70_000, Reason::Internal, "the port"),
    ]);
}

#[test]
fn a_replica_of_a_replica_or_of_somebody_else_is_refused() {
    fn follows(bench: &mut Bench, host: &str, port: u32) {
        bench.on("c").upstream = Some(WireEndpoint { host: host.to_owned(), port });
    }
    refused(&[
        (|b| follows(b, "10.0.0.1", 5432), Reason::NotAdoptable, "node c follows node a, which is a replica itself"),
        (
            |b| {
                follows(b, "some-name", 5433);
                b.on("a").replicas = vec!["c at 10.0.0.3".to_owned()];
            },
            Reason::NotAdoptable,
            "let it stream from node b directly",
        ),
        (|b| follows(b, "10.0.0.2", 5432), Reason::NotAdoptable, "node c follows 10.0.0.2:5432, and the primary is"),
        (|b| follows(b, "10.0.0.9", 5432), Reason::NotAdoptable, "on node b with port 5433"),
        (|b| follows(b, "10.0.0.1", 5433), Reason::NotAdoptable, "node c follows 10.0.0.1:5433"),
    ]);
    for unknown in ["some-name", "/run/engine", "localhost", ""] {
        let mut bench = bench();
        follows(&mut bench, unknown, 5433);
        assert!(bench.adopted().is_ok(), "{unknown:?} may be the primary's node");
    }
}

/// Regression: nodes on one machine have one address, and are told apart by their ports.
#[test]
fn instances_on_one_machine_are_told_apart_by_their_ports() {
    let mut bench = bench();
    for (name, candidate) in &mut bench.nodes {
        candidate.record.agent_address = format!("127.0.0.1:7{}", name.as_str().len());
        candidate.record.private_address = "127.0.0.1".to_owned();
    }
    for name in ["a", "c"] {
        bench.on(name).upstream = Some(WireEndpoint { host: "127.0.0.1".to_owned(), port: 5433 });
    }
    bench.on("b").replicas = vec!["a at 127.0.0.1".to_owned(), "c at 127.0.0.1".to_owned()];
    bench.on("a").port = 5434;
    let adoption = bench.adopted().unwrap();
    assert!(!adoption.report.join("\n").contains("no member"), "{:?}", adoption.report);
    bench.on("c").upstream = Some(WireEndpoint { host: "127.0.0.1".to_owned(), port: 5434 });
    assert!(bench.refusal().1.contains("node c follows node a"));
}

#[test]
fn all_problems_are_named_and_losses_want_consent() {
    refused(&[
        (
            |b| {
                b.on("a").problems = vec!["somebody else manages it.".to_owned(), "it is old".to_owned()];
                b.on("c").problems = vec!["it is on another disk".to_owned()];
            },
            Reason::NotAdoptable,
            "node a cannot be adopted: somebody else manages it; it is old; the instance on node c cannot be adopted: it is on",
        ),
        (|b| b.on("b").losses = vec!["its log is archived".to_owned()], Reason::NotAdoptable, "--accept-losses"),
    ]);
    let mut bench = bench();
    bench.on("b").losses = vec!["its log is archived".to_owned()];
    bench.request.validate_only = true;
    let report = bench.adopted().unwrap().report.join("\n");
    assert!(report.contains("db1 has what a cluster would not: its log is archived"), "{report}");
    assert!(report.contains("going on wants consent"), "{report}");
    bench.request.accept_losses = true;
    assert!(!bench.adopted().unwrap().report.join("\n").contains("going on wants consent"));
    bench.request.validate_only = false;
    let remarks = bench.adopted().unwrap().parameters.remarks.join("\n");
    assert!(remarks.contains("its log is archived"), "it is told afterwards as well: {remarks}");
}

#[test]
fn the_report_says_what_changes_what_waits_for_a_restart_and_who_is_left_out() {
    let change = |name: &str, now: &str, then: &str, needs_restart| {
        let [name, now, then] = [name, now, then].map(ToOwned::to_owned);
        SettingChange { name, now, then, needs_restart }
    };
    let mut bench = bench();
    bench.on("b").changes =
        vec![change("slots", "10", "16", true), change("hints", "", "on", false), change("same", "1", "1", true)];
    bench.on("c").settings.insert("workers".to_owned(), "3".to_owned());
    bench.on("c").access_rules = "host nobody".to_owned();
    bench.on("b").replicas.push("walreceiver at 10.0.0.9".to_owned());
    let adoption = bench.adopted().unwrap();
    assert_eq!(
        adoption.report,
        [
            "db1 on node b: the primary, fake 1 in /data/main at port 5433, which is not stopped",
            "db2 on node a: a replica, fake 1 in /data/main at port 5432, which is not stopped",
            "db3 on node c: a replica, fake 1 in /data/main at port 5432, which is not stopped",
            "db1: hints: (nothing) -> on",
            "db1: slots: 10 -> 16, after a restart",
            "what needs a restart stays as it is until its engine is restarted",
            "db3 has workers = 3, and gets what the primary has: the engine's default",
            "db3 lets in others than db1: the whole cluster gets the access rules of db1",
            "on none of the named nodes, as far as it can be told, runs what streams from db1: walreceiver at 10.0.0.9; it goes on, is \
             no member, and follows no other primary by itself",
        ]
    );
    assert_eq!(adoption.parameters.remarks, adoption.report[4..]);
    let quiet = self::bench().adopted().unwrap();
    assert_eq!(quiet.parameters.remarks, ["no setting needs a restart of an engine"]);
}
