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

/// Of the nodes a, b, c and d, these offer TLS.
fn speaking(able: &[&str]) -> BTreeMap<NodeName, Candidate> {
    let mut nodes = nodes();
    for (name, node) in &mut nodes {
        let offer = &mut node.view.engines[0];
        let with = |any: &str| ConnectionFormat { any: any.to_owned(), ..ConnectionFormat::default() };
        offer.connection = with("fake://{hosts}");
        offer.connection_with_tls = able.contains(&name.as_str()).then(|| with("fakes://{hosts}"));
    }
    nodes
}

/// What is said of a refusal for want of TLS.
fn mute<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    let refused = answer.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::NoTls), "{refused:?}");
    let said = refused.message();
    for part in ["nothing was changed", "agent.toml", "[engine.fake.tls]\ncertificate = ", "\nkey = ", "\nca = "] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    said.lines().next().unwrap().to_owned()
}

#[test]
fn a_cluster_with_tls_is_made_of_nodes_that_offer_it() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let with_tls = |change: &dyn Fn(&mut CreateClusterRequest)| {
        request(|r| {
            r.tls = true;
            change(r);
        })
    };
    let made = |request: &CreateClusterRequest, nodes: &BTreeMap<_, _>| outcome(request, nodes).unwrap();
    let nodes_of = |record: &ClusterRecord| record.members.values().map(|m| m.node.to_string()).collect::<Vec<_>>();

    let some = speaking(&["b", "d"]);
    let record = made(&with_tls(&|r| r.replicas = Some(1)), &some);
    assert_eq!((nodes_of(&record), record.tls), (named(&["b", "d"]), true), "spares that offer it");
    assert_eq!(record.connection.any, "fakes://{hosts}");
    let record = made(&with_tls(&|r| r.nodes = named(&["d", "b"])), &some);
    assert_eq!((nodes_of(&record), record.connection.any.as_str()), (named(&["d", "b"]), "fakes://{hosts}"));
    // Who does not ask for it has none, also where it is offered.
    let record = made(&request(|r| r.nodes = named(&["a", "b"])), &some);
    assert_eq!((record.tls, record.connection.any.as_str()), (false, "fake://{hosts}"));

    let mut pairs = speaking(&["a", "c", "d"]);
    for node in ["b", "c", "d"] {
        let node = pairs.get_mut(&node.parse::<NodeName>().unwrap()).unwrap();
        node.view.engines[0].modes.push("multi-master".to_owned());
    }
    let pair = made(&with_tls(&|r| r.mode = "multi-master".to_owned()), &pairs);
    assert_eq!(nodes_of(&pair), named(&["c", "d"]), "they have both");
}

#[test]
fn a_cluster_with_tls_is_refused_where_nodes_do_not_offer_it() {
    let refusal = |able: &[&str], change: &dyn Fn(&mut CreateClusterRequest)| {
        let asker = Asker {
            name: "me".to_owned(),
            now: Timestamp::UNIX_EPOCH,
            id: ClusterId::from_parts(1, 1),
            profile: Profile::Standard,
        };
        let request = request(|r| {
            r.tls = true;
            change(r);
        });
        mute(check(&request, &speaking(able), &BTreeSet::new(), asker))
    };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let said = refusal(&["b"], &|r| r.nodes = named(&["a", "b", "c"]));
    assert!(said.contains("nodes a, c do not offer TLS for fake"), "{said}");
    let said = refusal(&["b"], &|r| r.nodes = named(&["b", "d"]));
    assert!(said.contains("node d does not offer TLS for fake"), "{said}");
    // Enough are free, but for that.
    let said = refusal(&["b", "c"], &|_| ());
    assert!(said.contains("nodes a, d do not offer TLS for fake"), "{said}");
    for nodes in [&[][..], &["a", "b"]] {
        let said = refusal(&[], &|r| r.nodes = named(nodes));
        assert!(said.contains("no node offers TLS for engine fake"), "{said}");
    }
    // What else is wrong is said as ever.
    let wanted = request(|r| (r.tls, r.replicas) = (true, Some(7)));
    assert_eq!(outcome(&wanted, &speaking(&["a"])), Err(Some(Reason::NotEnoughSpares)));
    let mut broken = speaking(&[]);
    broken.values_mut().for_each(|node| node.view.engines[0].problem = "not installed".to_owned());
    let wanted = request(|r| (r.tls, r.nodes) = (true, named(&["a"])));
    assert_eq!(outcome(&wanted, &broken), Err(Some(Reason::EngineMissing)));
}

#[test]
fn a_member_of_a_cluster_with_tls_is_added_on_a_node_that_offers_it() {
    let wanted = request(|r| (r.nodes, r.tls) = (vec!["a".to_owned()], true));
    let record = outcome(&wanted, &speaking(&["a"])).unwrap();
    let added = |name: &str, able: &[&str]| {
        let mut nodes = speaking(able);
        let assignment = Assignment { cluster: record.name.clone(), member: record.name.member(1) };
        nodes.get_mut(&"a".parse::<NodeName>().unwrap()).unwrap().assignment = Some(assignment);
        added(&record, name, &nodes)
    };
    assert_eq!(added("", &["a", "c"]).unwrap().as_str(), "c", "b does not offer it");
    assert_eq!(added("d", &["a", "d"]).unwrap().as_str(), "d");
    assert!(mute(added("d", &["a", "c"])).contains("node d does not offer TLS"));
    assert!(mute(added("", &["a"])).contains("nodes b, c, d do not offer TLS"));
    let plain = ClusterRecord { tls: false, ..record.clone() };
    assert_eq!(
        super::added(&plain, "d", &speaking(&[])).unwrap().as_str(),
        "d",
        "a cluster without it asks for nothing"
    );
}
