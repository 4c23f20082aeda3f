//! Every refusal of a new cluster, by its reason, and what is made when there is none.

use regent_common::{error::reason_of, topology::ConnectionFormat};

use super::*;
use crate::planner::fixtures::observation;

fn candidate(name: &str) -> (NodeName, Candidate) {
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
    let name: NodeName = name.parse().unwrap();
    let record = NodeRecord {
        name: name.clone(),
        agent_address: String::new(),
        public_address: String::new(),
        private_address: String::new(),
        labels: BTreeMap::new(),
        joined_at: Timestamp::UNIX_EPOCH,
        certificate_not_after: None,
        serials: Vec::new(),
        revoked: false,
        data_lost: false,
        join_cluster: None,
    };
    let view = NodeView { connected: true, engines: vec![offer], ..NodeView::default() };
    (name, Candidate { record, view, assignment: None })
}

fn nodes() -> BTreeMap<NodeName, Candidate> {
    ["a", "b", "c", "d"].map(candidate).into()
}

fn request(change: impl FnOnce(&mut CreateClusterRequest)) -> CreateClusterRequest {
    let mut request =
        CreateClusterRequest { cluster: "db".to_owned(), engine: "fake".to_owned(), ..CreateClusterRequest::default() };
    change(&mut request);
    request
}

fn outcome(
    request: &CreateClusterRequest,
    nodes: &BTreeMap<NodeName, Candidate>,
) -> Result<ClusterRecord, Option<Reason>> {
    let taken = BTreeSet::from(["taken".parse().unwrap()]);
    let asker = Asker {
        name: "me".to_owned(),
        now: Timestamp::UNIX_EPOCH,
        id: ClusterId::from_parts(1, 1),
        profile: Profile::Standard,
    };
    check(request, nodes, &taken, asker).map_err(|status| reason_of(&status))
}

#[test]
fn named_nodes_become_members_in_the_order_given() {
    let wanted = request(|r| r.nodes = ["c", "nodes/a"].map(ToOwned::to_owned).into());
    let record = outcome(&wanted, &nodes()).unwrap();
    let members: Vec<_> = record.members.iter().map(|(m, r)| (m.as_str(), r.node.as_str())).collect();
    assert_eq!(members, [("db1", "c"), ("db2", "a")]);
    assert_eq!((record.version.as_str(), record.mode.as_str(), record.next_number), ("2", "primary-replica", 3));
}

#[test]
fn spares_are_taken_when_no_node_is_named() {
    assert_eq!(outcome(&request(|_| ()), &nodes()).unwrap().members.len(), 3);
    assert_eq!(outcome(&request(|r| r.replicas = Some(0)), &nodes()).unwrap().members.len(), 1);
}

#[test]
fn a_member_is_added_on_a_spare_that_has_the_version() {
    let record =
        outcome(&request(|r| (r.nodes, r.version) = (vec!["a".to_owned()], "1".to_owned())), &nodes()).unwrap();
    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }
    let added = |name: &str, change: fn(&mut BTreeMap<NodeName, Candidate>)| {
        let mut nodes = nodes();
        let assignment = Assignment { cluster: record.name.clone(), member: record.name.member(1) };
        nodes.get_mut(&node("a")).unwrap().assignment = Some(assignment);
        change(&mut nodes);
        added(&record, name, &nodes).map(|node| node.to_string()).map_err(|status| reason_of(&status))
    };
    let newer = |nodes: &mut BTreeMap<NodeName, Candidate>| {
        nodes.get_mut(&node("b")).unwrap().view.engines[0].versions.truncate(1)
    };
    let away =
        |nodes: &mut BTreeMap<NodeName, Candidate>| nodes.values_mut().for_each(|node| node.view.connected = false);
    assert_eq!(added("", |_| ()), Ok("b".to_owned()));
    assert_eq!(added("", newer), Ok("c".to_owned()), "b has another version only");
    assert_eq!(added("nodes/c", |_| ()), Ok("c".to_owned()));
    assert_eq!(added("b", newer), Err(Some(Reason::EngineMissing)));
    assert_eq!(added("a", |_| ()), Err(Some(Reason::NodeInCluster)));
    assert_eq!(added("x", |_| ()), Err(Some(Reason::NodeNotFound)));
    assert_eq!(added("b", away), Err(Some(Reason::NodeUnreachable)));
    assert_eq!(added("", away), Err(Some(Reason::NotEnoughSpares)));
    let mut full = record.clone();
    for node in ["b", "c", "d"] {
        let member = full.take_member_name();
        full.members.insert(member, MemberRecord::new(node.parse().unwrap()));
    }
    assert!(super::added(&full, "", &nodes()).is_err(), "the engine takes three replicas");
}

#[test]
fn bad_requests_are_refused_with_their_reason() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let cases: Vec<(Reason, CreateClusterRequest)> = vec![
        (Reason::NameInvalid, request(|r| r.cluster = "Not.A.Label".to_owned())),
        (Reason::NameInvalid, request(|r| r.cluster = "db1".to_owned())),
        (Reason::NameTaken, request(|r| r.cluster = "taken".to_owned())),
        (Reason::UnknownEngine, request(|r| r.engine = "oracle".to_owned())),
        (Reason::UnknownMode, request(|r| r.mode = "triangle".to_owned())),
        (Reason::NodeTwice, request(|r| r.nodes = named(&["a", "nodes/a"]))),
        (Reason::NodeNotFound, request(|r| r.nodes = named(&["z"]))),
        (Reason::EngineMissing, request(|r| r.version = "9".to_owned())),
        (Reason::NotEnoughSpares, request(|r| r.replicas = Some(7))),
        (Reason::InvalidField, request(|r| r.port = 70_000)),
        (
            Reason::InvalidField,
            request(|r| {
                r.nodes = named(&["a"]);
                r.replicas = Some(2);
            }),
        ),
    ];
    for (reason, request) in cases {
        assert_eq!(outcome(&request, &nodes()), Err(Some(reason)), "{request:?}");
    }
}

#[test]
fn a_pair_is_made_of_two_nodes_that_offer_it() {
    let pair = |change: &dyn Fn(&mut CreateClusterRequest)| {
        request(|r| {
            r.mode = "multi-master".to_owned();
            change(r);
        })
    };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut able = nodes();
    for node in ["b", "c", "d"] {
        let node = able.get_mut(&node.parse::<NodeName>().unwrap()).unwrap();
        node.view.engines[0].modes.push("multi-master".to_owned());
    }
    let made = outcome(&pair(&|_| ()), &able).unwrap();
    let members: Vec<_> = made.members.iter().map(|(m, r)| (m.as_str(), r.node.as_str())).collect();
    assert_eq!((members, made.is_pair()), (vec![("db1", "b"), ("db2", "c")], true), "spares that offer it");
    assert!(outcome(&pair(&|r| r.nodes = named(&["d", "b"])), &able).is_ok());
    assert!(outcome(&pair(&|r| r.replicas = Some(1)), &able).is_ok());
    for (reason, request) in [
        (Reason::InvalidField, pair(&|r| r.nodes = named(&["b"]))),
        (Reason::InvalidField, pair(&|r| r.nodes = named(&["b", "c", "d"]))),
        (Reason::InvalidField, pair(&|r| r.replicas = Some(0))),
        (Reason::InvalidField, pair(&|r| r.replicas = Some(2))),
        (Reason::EngineMissing, pair(&|r| r.nodes = named(&["a", "b"]))),
    ] {
        assert_eq!(outcome(&request, &able), Err(Some(reason)), "{request:?}");
    }
    assert_eq!(outcome(&pair(&|_| ()), &nodes()), Err(Some(Reason::UnknownMode)), "no engine here has it");
}

#[test]
fn nodes_that_cannot_be_used_are_refused_with_their_reason() {
    type Spoil = fn(&mut Candidate);
    let cases: [(Reason, Spoil); 6] = [
        (Reason::NodeInCluster, |c| {
            c.assignment = Some(Assignment { cluster: "x".parse().unwrap(), member: "x1".parse().unwrap() });
        }),
        (Reason::NodeInCluster, |c| c.view.observation = Some(observation("x1".parse().unwrap()))),
        (Reason::NodeRevoked, |c| c.record.revoked = true),
        (Reason::NodeUnreachable, |c| c.view.connected = false),
        (Reason::EngineMissing, |c| c.view.engines[0].problem = "not installed".to_owned()),
        (Reason::VersionsDiffer, |c| c.view.engines[0].versions = vec!["3".to_owned()]),
    ];
    for (reason, spoil) in cases {
        let mut nodes = nodes();
        spoil(nodes.get_mut(&"b".parse().unwrap()).unwrap());
        let wanted = request(|r| r.nodes = ["a", "b"].map(ToOwned::to_owned).into());
        assert_eq!(outcome(&wanted, &nodes), Err(Some(reason)));
    }
    assert_eq!(outcome(&request(|_| ()), &BTreeMap::new()), Err(Some(Reason::UnknownEngine)));
}

#[test]
fn zero_usable_nodes_are_no_cluster() {
    let mut nodes = nodes();
    for node in nodes.values_mut() {
        node.record.revoked = true;
    }
    for replicas in [None, Some(0), Some(2)] {
        assert_eq!(outcome(&request(|r| r.replicas = replicas), &nodes), Err(Some(Reason::NoNodes)));
    }
}

#[test]
fn a_node_that_still_holds_data_of_a_cluster_is_no_spare() {
    let mut nodes = nodes();
    let spoiled = nodes.get_mut(&"a".parse().unwrap()).unwrap();
    spoiled.view.observation = Some(observation("old1".parse().unwrap()));
    let record = outcome(&request(|_| ()), &nodes).unwrap();
    assert!(record.members.values().all(|m| m.node.as_str() != "a"));
}
