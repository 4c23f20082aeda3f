//! The allow-list of an agent: when it is in force, what outlives a restart and a boot, and which steps wait for it.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use std::{collections::BTreeSet, fs, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use regent_agent::{
    firewall::{Keeper, Means, names::Names},
    steps::Action,
};
use regent_common::{allow_list::AllowList, error::Reason, topology::ClusterSpec};
use support::{Bench, assign, header, spec};

const FILE: &str = "allow-list.json";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn list(texts: &[&str]) -> AllowList {
    AllowList::parse(texts).unwrap()
}

/// What a member is told, with this list.
fn told(texts: &[&str]) -> ClusterSpec {
    ClusterSpec { allow_list: list(texts), ..spec() }
}

fn configure(texts: &[&str]) -> Action {
    Action::Configure { spec: told(texts), fingerprint: "f".to_owned() }
}

/// Port of the test engine.
fn port(bench: &Bench) -> u16 {
    bench.executor.ledger().read().membership.as_ref().unwrap().port
}

/// The machine is started again: nothing is in its kernel, and its agent is what starts.
async fn boot(bench: Bench) -> Bench {
    bench.packets.flush();
    let bench = bench.restart();
    let ledger = bench.executor.ledger().read();
    bench.firewall.restore(ledger.membership.as_ref()).await;
    bench
}

#[tokio::test]
async fn a_member_has_the_list_from_its_assignment_on_and_after_a_boot() {
    let bench = Bench::new();
    let assign = Action::Assign { spec: told(&["192.0.2.0/24"]), port: 0 };
    bench.run(header(1, 1, "assign", &assign), assign).await.unwrap();
    let closed = |bench: &Bench| {
        let port = port(bench);
        bench.packets.passes(address("192.0.2.7"), port) && !bench.packets.passes(address("198.51.100.7"), port)
    };
    assert!(closed(&bench), "before anything could start the engine");
    assert!(bench.packets.passes(address("127.0.0.1"), port(&bench)));
    let bench = boot(bench).await;
    assert!(closed(&bench));
    assert_eq!(bench.firewall.state().fingerprint, list(&["192.0.2.0/24"]).fingerprint());
}

#[tokio::test]
async fn a_configuration_cuts_who_is_not_let_in_any_more_and_an_empty_list_opens() {
    let bench = Bench::new();
    bench.run(header(1, 1, "assign", &assign()), assign()).await.unwrap();
    let (port, client) = (port(&bench), address("198.51.100.7"));
    assert!(bench.packets.connect(client, port));
    let narrow = configure(&["192.0.2.0/24"]);
    bench.run(header(1, 2, "narrow", &narrow), narrow).await.unwrap();
    assert_eq!(bench.packets.connections(client, port), 0);
    assert!(!bench.packets.passes(client, port));
    assert!(bench.directory.path().join(FILE).exists());
    let open = configure(&[]);
    bench.run(header(1, 3, "open", &open), open).await.unwrap();
    assert!(bench.packets.passes(client, port));
    assert!(!bench.directory.path().join(FILE).exists());
    assert_eq!(bench.firewall.state(), Default::default());
    let bench = boot(bench).await;
    assert_eq!(bench.packets.passage(), None);
}

#[tokio::test]
async fn a_released_node_keeps_nobody_out() {
    let bench = Bench::new();
    let assign = Action::Assign { spec: told(&["192.0.2.0/24"]), port: 0 };
    bench.run(header(1, 1, "assign", &assign), assign).await.unwrap();
    let release = Action::Release { keep_data: false, give_back: false };
    bench.run(header(1, 2, "release", &release), release).await.unwrap();
    assert_eq!(bench.packets.passage(), None);
    assert!(!bench.directory.path().join(FILE).exists());
}

#[tokio::test]
async fn a_list_is_refused_where_none_can_be_in_force() {
    let bench = Bench::new();
    bench.packets.set_problem(Some("there are no tables here"));
    bench.run(header(1, 1, "assign", &assign()), assign()).await.unwrap();
    let narrow = configure(&["192.0.2.0/24"]);
    let refused = bench.run(header(1, 2, "narrow", &narrow), narrow).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AllowListImpossible);
    assert!(refused.to_string().contains("there are no tables here"), "{refused}");
    assert!(!bench.directory.path().join(FILE).exists(), "nothing of it is kept");
    let open = configure(&[]);
    bench.run(header(1, 3, "open", &open), open).await.unwrap();
}

#[tokio::test]
async fn no_engine_is_started_before_the_list_is_in_force() {
    let bench = Bench::new();
    bench.run(header(1, 1, "assign", &assign()), assign()).await.unwrap();
    bench.packets.refuse(Some("not now"));
    let narrow = configure(&["192.0.2.0/24"]);
    let failed = bench.run(header(1, 2, "narrow", &narrow), narrow).await.unwrap_err();
    assert_eq!(failed.reason(), Reason::AllowListFailed);
    assert!(bench.firewall.state().problem.contains("not now"));
    // Also after a boot: it was on disk before it was to be in force.
    let bench = boot(bench).await;
    let failed = bench.run(header(1, 3, "initialize", &Action::Initialize), Action::Initialize).await.unwrap_err();
    assert_eq!((failed.reason(), bench.machine.count("initialize")), (Reason::AllowListFailed, 0));
    bench.packets.refuse(None);
    bench.run(header(1, 4, "initialize", &Action::Initialize), Action::Initialize).await.unwrap();
    assert!(!bench.packets.passes(address("198.51.100.7"), port(&bench)));
    assert_eq!(bench.firewall.state().problem, "");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_keeps_the_engine_from_starting_until_the_list_is_told_again() {
    let bench = Bench::new();
    let assign = Action::Assign { spec: told(&["192.0.2.0/24"]), port: 0 };
    bench.run(header(1, 1, "assign", &assign), assign).await.unwrap();
    fs::write(bench.directory.path().join(FILE), "{").unwrap();
    let bench = boot(bench).await;
    let failed = bench.run(header(1, 2, "initialize", &Action::Initialize), Action::Initialize).await.unwrap_err();
    assert_eq!(failed.reason(), Reason::AllowListFailed);
    let state = bench.firewall.state();
    assert!(state.fingerprint != list(&["192.0.2.0/24"]).fingerprint() && !state.fingerprint.is_empty(), "{state:?}");
    let again = configure(&["192.0.2.0/24"]);
    bench.run(header(1, 3, "configure", &again), again).await.unwrap();
    bench.run(header(1, 4, "initialize", &Action::Initialize), Action::Initialize).await.unwrap();
    assert!(!bench.packets.passes(address("198.51.100.7"), port(&bench)));
}

/// A resolver whose only name may move.
#[derive(Default)]
struct OneName(std::sync::Mutex<Option<IpAddr>>);

#[async_trait]
impl Names for OneName {
    async fn addresses(&self, host: &str) -> Option<BTreeSet<IpAddr>> {
        assert_eq!(host, "coordinator.example");
        Some([(*self.0.lock().unwrap())?].into())
    }
}

#[tokio::test(start_paused = true)]
async fn members_and_the_coordinator_pass_also_when_a_name_moves_or_nobody_knows_it() {
    let bench = Bench::new();
    let names = Arc::new(OneName::default());
    let means = || Means { names: names.clone(), extra_ports: [6432].into(), ..Means::fake(bench.packets.clone()) };
    let keeper =
        || Arc::new(Keeper::new(means(), &["coordinator.example:7420".to_owned()], bench.executor.ledger().clone()));
    bench.run(header(1, 1, "assign", &assign()), assign()).await.unwrap();
    let membership = bench.executor.ledger().read().membership.clone().unwrap();
    let port = membership.port;
    let mut members = spec().members;
    members[1].engine.host = "192.0.2.2".to_owned();
    members[1].agent_address = "[fd00::2]:7421".to_owned();
    *names.0.lock().unwrap() = Some(address("192.0.2.99"));
    let first = keeper();
    first.tell(membership.cluster_id, &list(&["198.51.100.0/24"]), port, &members).await.unwrap();
    let passes = |client: &str| bench.packets.passes(address(client), port);
    assert!(passes("192.0.2.2") && passes("fd00::2") && passes("192.0.2.99") && !passes("192.0.2.3"));
    assert!(!bench.packets.passes(address("192.0.2.3"), 6432) && bench.packets.passes(address("192.0.2.3"), 22));
    // The next agent starts where no resolver answers, and knows what was known.
    *names.0.lock().unwrap() = None;
    bench.packets.flush();
    let next = keeper();
    next.restore(Some(&membership)).await;
    assert!(passes("192.0.2.99") && !passes("192.0.2.3"));
    let stop = tokio_util::sync::CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(next.clone().run(stop));
    *names.0.lock().unwrap() = Some(address("192.0.2.100"));
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(passes("192.0.2.100") && !passes("192.0.2.99"));
    // Something removes it.
    bench.packets.flush();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!passes("192.0.2.3"));
}

#[tokio::test]
async fn whose_connections_a_list_would_cut_is_told_and_nothing_is_changed() {
    let bench = Bench::new();
    bench.run(header(1, 1, "assign", &assign()), assign()).await.unwrap();
    let membership = bench.executor.ledger().read().membership.clone().unwrap();
    for client in ["192.0.2.7", "192.0.2.7", "198.51.100.7", "127.0.0.1"] {
        assert!(bench.packets.connect(address(client), membership.port));
    }
    let cut = bench.firewall.would_cut(&list(&["198.51.100.0/24"]), &membership).await.unwrap();
    assert_eq!(cut, [(address("192.0.2.7"), 2)].into());
    assert_eq!(bench.firewall.would_cut(&AllowList::default(), &membership).await.unwrap(), [].into());
    assert_eq!((bench.packets.passage(), bench.packets.changes()), (None, 1));
}
