//! Changes of a cluster's profile and of its allow-list, and adoptions: when they are taken, when not, and what they leave as it was.

use std::time::Duration;

use regent_common::{
    allow_list::AllowList,
    clock::ManualClock,
    error::reason_of,
    lease::Profile,
    topology::{ConnectionFormat, EngineOffer},
};
use regent_proto::{agent::v1::FoundInstance, coordinator::v1::AllowListChange};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    audit::AuditLog,
    authority::Authorities,
    cluster::{brake::Limits, directory::Directory},
    environment::Environment,
    events::EventLog,
    model::{cluster::MemberState, node::NodeRecord},
    nodes::double::Unheard,
    planner::fixtures::{cluster, name},
    secrets::Secrets,
    store::{Store, get_json, memory::MemoryStore},
};

struct Bench {
    api: ClusterApi,
    store: Arc<MemoryStore>,
    _changes: broadcast::Sender<NodeName>,
    stop: CancellationToken,
}

/// A coordinator that has just started on a store with one cluster.
async fn bench(change: impl FnOnce(&mut ClusterRecord)) -> Bench {
    bench_with(Unheard::default(), change).await
}

/// The same with these agents.
async fn bench_with(agents: Unheard, change: impl FnOnce(&mut ClusterRecord)) -> Bench {
    let mut record = cluster();
    change(&mut record);
    let store = Arc::new(MemoryStore::default());
    let key = keys::cluster(&record.name);
    store.commit(Transaction::default().put_json(key, &record)).await.unwrap();
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Store> = store.clone();
    let environment = Environment {
        clock: clock.clone(),
        started_at: Duration::ZERO,
        store: Arc::clone(&shared),
        agents: Arc::new(agents),
        secrets: Arc::new(Secrets::ephemeral()),
        audit: AuditLog::new(Arc::clone(&shared), clock.clone()),
        events: EventLog::new(Arc::clone(&shared), clock.clone()),
        addresses: Arc::new(|_| None),
        authorities: Arc::new(Authorities::new(clock)),
        default_profile: Profile::default(),
        limits: Limits::default(),
        brake: Arc::default(),
        own_machine: Default::default(),
    };
    let (sender, changes) = broadcast::channel(4);
    let stop = CancellationToken::new();
    let directory = Directory::open(environment, changes, stop.clone()).await.unwrap();
    let api = ClusterApi(Arc::new(Api { directory, table: Arc::default() }));
    Bench { api, store, _changes: sender, stop }
}

impl Bench {
    async fn update(&self, change: UpdateClusterRequest) -> Result<Cluster, Status> {
        let request = UpdateClusterRequest { name: "clusters/db".to_owned(), ..change };
        self.api.update_cluster(Request::new(request)).await.map(Response::into_inner)
    }

    async fn profile(&self, profile: &str, validate_only: bool) -> Result<Cluster, Status> {
        self.update(UpdateClusterRequest { profile: profile.to_owned(), validate_only, ..Default::default() }).await
    }

    async fn allow(&self, change: AllowListChange, ranges: &[&str], validate_only: bool) -> Result<Operation, Status> {
        let ranges = ranges.iter().map(|range| (*range).to_owned()).collect();
        let name = "clusters/db".to_owned();
        let request = SetAllowListRequest { name, change: change.into(), ranges, validate_only, ..Default::default() };
        self.api.set_allow_list(Request::new(request)).await.map(Response::into_inner)
    }

    async fn stored(&self) -> ClusterRecord {
        let key = keys::cluster(&"db".parse().unwrap());
        get_json::<ClusterRecord>(self.store.as_ref(), &key).await.unwrap().unwrap().value
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn a_profile_is_not_changed_while_a_failover_runs() {
    let failing_over = |record: &mut ClusterRecord| {
        record.policy.profile = Profile::Relaxed;
        record.primary = None;
        record.set_state(&name(1), MemberState::NeedsRejoin);
        record.may_be_writable.insert(name(1));
    };
    let bench = bench(failing_over).await;
    let before = bench.stored().await;
    for (profile, validate_only) in [("fast", true), ("fast", false), ("relaxed", false)] {
        let refused = bench.profile(profile, validate_only).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::ClusterBusy), "{refused:?}");
        assert!(refused.message().contains("failing over") && refused.message().contains("nothing was changed"));
    }
    let label = UpdateClusterRequest {
        profile: "fast".to_owned(),
        protected: Some(true),
        labels: [("owner".to_owned(), "ann".to_owned())].into(),
        ..Default::default()
    };
    assert!(bench.update(label.clone()).await.is_err(), "and nothing of such a request is done");
    let after = bench.stored().await;
    assert_eq!((after.policy, after.longest_ttl()), (before.policy, before.longest_ttl()));
    assert_eq!((after.protected, after.labels.len()), (false, 0));
    // It is the profile alone that has to wait.
    bench.update(UpdateClusterRequest { profile: String::new(), ..label }).await.unwrap();
    assert!(bench.stored().await.protected);
}

#[tokio::test]
async fn a_new_profile_is_stored_with_the_longest_lease_of_both() {
    let bench = bench(|_| ()).await;
    let would_be = bench.profile("relaxed", true).await.unwrap();
    assert_eq!(would_be.profile, "relaxed");
    assert_eq!(bench.stored().await.policy.profile, Profile::Standard, "only checked");
    for (profile, longest) in [("fast", 5000), ("relaxed", 15_000), ("standard", 15_000)] {
        let shown = bench.profile(profile, false).await.unwrap();
        let stored = bench.stored().await;
        assert_eq!((shown.profile.as_str(), stored.policy.profile.as_str()), (profile, profile));
        assert_eq!(stored.longest_ttl(), Duration::from_millis(longest), "{profile}");
    }
}

#[tokio::test]
async fn a_profile_that_is_none_is_refused_and_so_is_one_for_what_has_changed() {
    let bench = bench(|_| ()).await;
    for wrong in ["quick", "FAST", "fast ", "ttl=100ms", "0"] {
        let refused = bench.profile(wrong, false).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::InvalidField), "{wrong}");
        assert!(refused.message().contains("fast, standard or relaxed"), "{refused:?}");
    }
    let old = UpdateClusterRequest { profile: "fast".to_owned(), etag: "old".to_owned(), ..Default::default() };
    assert_eq!(reason_of(&bench.update(old).await.unwrap_err()), Some(Reason::EtagMismatch));
    assert_eq!(bench.stored().await.policy.profile, Profile::Standard);
}

#[tokio::test]
async fn a_change_between_the_look_at_the_etag_and_the_commit_is_noticed() {
    let bench = bench(|_| ()).await;
    let cluster = bench.api.0.directory.get(&"db".parse().unwrap()).unwrap().cluster;
    let etag = cluster.version().await.unwrap().to_string();
    let (mine, others) = (at_etag(&etag, &cluster).await.unwrap(), at_etag(&etag, &cluster).await.unwrap());
    let protect = |record: &mut ClusterRecord| record.protected = true;
    let change = |transaction| {
        cluster.change(|record| {
            protect(record);
            Ok(transaction)
        })
    };
    change(others).await.unwrap();
    assert_eq!(reason_of(&failed_change(change(mine).await.unwrap_err())), Some(Reason::EtagMismatch));
}

fn allowing(ranges: &'static [&'static str]) -> impl FnOnce(&mut ClusterRecord) {
    move |record| record.allow_list = AllowList::parse(ranges).unwrap()
}

#[tokio::test]
async fn an_allow_list_is_stored_with_the_operation_that_tells_it() {
    let bench = bench(allowing(&["192.0.2.0/24"])).await;
    let dry = bench.allow(AllowListChange::Add, &["192.0.2.0/24", "::ffff:198.51.100.7"], true).await.unwrap();
    assert!(dry.validate_only && bench.stored().await.allow_list.len() == 1);
    let report = dry.report.join("\n");
    for part in [
        "192.0.2.0/24 is in the list already",
        "becomes 2 addresses",
        "IPv6 is closed",
        "db1 does not say",
        "db2 does not say",
    ] {
        assert!(report.contains(part), "{part:?} is not in {report}");
    }
    let begun = bench.allow(AllowListChange::Add, &["::ffff:198.51.100.7"], false).await.unwrap();
    assert_eq!((begun.kind.as_str(), begun.done), ("set_allow_list", false));
    assert_eq!(bench.stored().await.allow_list, AllowList::parse(["192.0.2.0/24", "198.51.100.7"]).unwrap());
    let busy = bench.allow(AllowListChange::Set, &["::/0"], false).await.unwrap_err();
    assert_eq!(reason_of(&busy), Some(Reason::ClusterBusy));
}

#[tokio::test]
async fn a_bad_change_of_an_allow_list_is_refused_and_changes_nothing() {
    let bench = bench(allowing(&["192.0.2.0/24"])).await;
    for (change, ranges, says) in [
        (AllowListChange::Unspecified, &["::1"][..], "change"),
        (AllowListChange::Add, &[][..], "none is named"),
        (AllowListChange::Add, &["192.0.2.7/24"][..], "write 192.0.2.0/24"),
        (AllowListChange::Set, &["db.example"][..], "write it as"),
        (AllowListChange::Set, &[][..], "lets everybody in"),
        (AllowListChange::Remove, &["192.0.2.0/24"][..], "lets everybody in"),
    ] {
        let refused = bench.allow(change, ranges, false).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::InvalidField), "{refused:?}");
        assert!(refused.message().contains(says) && refused.message().contains("nothing was changed"), "{refused:?}");
    }
    assert_eq!(bench.stored().await.allow_list.len(), 1);
}

#[tokio::test]
async fn a_cluster_on_a_node_that_can_have_none_gets_no_allow_list() {
    let bench = bench_with(Unheard::without_allow_lists("it is switched off"), |_| ()).await;
    for validate_only in [true, false] {
        let refused = bench.allow(AllowListChange::Set, &["192.0.2.0/24"], validate_only).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::AllowListImpossible));
        assert!(refused.message().contains("db1") && refused.message().contains("it is switched off"), "{refused:?}");
    }
    bench.allow(AllowListChange::Set, &[], false).await.unwrap();
}

/// A coordinator with a node `spare`, on which a primary runs that is nobody's.
async fn bench_with_an_instance() -> Bench {
    let found = FoundInstance {
        engine: "fake".to_owned(),
        version: "1".to_owned(),
        data_directory: "/data/main".to_owned(),
        port: 5433,
        history: "h1".to_owned(),
        access_rules: "host all".to_owned(),
        ..FoundInstance::default()
    };
    let node: NodeName = "spare".parse().unwrap();
    let bench = bench_with(Unheard::with_instances([(node.clone(), vec![found])].into()), |_| ()).await;
    let record = NodeRecord {
        name: node.clone(),
        agent_address: "spare:7421".to_owned(),
        public_address: String::new(),
        private_address: String::new(),
        labels: BTreeMap::new(),
        joined_at: jiff::Timestamp::UNIX_EPOCH,
        certificate_not_after: None,
        serials: Vec::new(),
        revoked: false,
        data_lost: false,
        join_cluster: None,
    };
    bench.store.commit(Transaction::default().put_json(keys::node(&node), &record)).await.unwrap();
    let offer = EngineOffer {
        engine: "fake".to_owned(),
        versions: vec!["1".to_owned()],
        modes: Vec::new(),
        min_replicas: 0,
        default_replicas: 2,
        max_replicas: 3,
        can_rewind: true,
        forgets_on_crash: false,
        connection_with_tls: None,
        problem: String::new(),
        connection: ConnectionFormat::default(),
    };
    bench.api.0.table.update(&node, |view| (view.connected, view.engines) = (true, vec![offer]));
    bench
}

#[tokio::test]
async fn an_adoption_is_stored_with_the_operation_that_makes_it_and_the_same_request_begins_no_other() {
    let bench = bench_with_an_instance().await;
    let adopt = |validate_only, nodes: &[&str]| {
        let request = AdoptClusterRequest {
            cluster: "taken-over".to_owned(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            request_id: "once".to_owned(),
            validate_only,
            ..AdoptClusterRequest::default()
        };
        bench.api.adopt_cluster(Request::new(request))
    };
    let key = keys::cluster(&"taken-over".parse().unwrap());
    let stored = || get_json::<ClusterRecord>(bench.store.as_ref(), &key);
    let dry = adopt(true, &["spare"]).await.unwrap().into_inner();
    assert!(dry.validate_only && dry.report[0].starts_with("taken-over1 on node spare: the primary"), "{dry:?}");
    assert!(stored().await.unwrap().is_none(), "only checked");
    let begun = adopt(false, &["spare"]).await.unwrap().into_inner();
    assert_eq!((begun.kind.as_str(), begun.done), ("adopt_cluster", false));
    let record = stored().await.unwrap().unwrap().value;
    assert!(record.adopting && record.access_rules == "host all");
    assert_eq!(record.secrets.keys().collect::<Vec<_>>(), ["replication"], "applications have logins of their own");
    assert_eq!(adopt(false, &["spare"]).await.unwrap().into_inner().name, begun.name);
    let other = adopt(false, &["n1"]).await.unwrap_err();
    assert_eq!(reason_of(&other), Some(Reason::RequestIdReused));
    let credentials = GetCredentialsRequest { name: "clusters/taken-over".to_owned() };
    let refused = bench.api.get_credentials(Request::new(credentials)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::NoCredentials));
    assert!(refused.message().contains("logins of their own"), "{refused:?}");
}

#[tokio::test]
async fn a_cluster_with_tls_is_stored_with_its_connection_and_the_same_request_without_it_is_another_one() {
    let bench = bench_with_an_instance().await;
    let node: NodeName = "spare".parse().unwrap();
    let format = |any: &str| ConnectionFormat { any: any.to_owned(), ..ConnectionFormat::default() };
    let create = |tls, validate_only| {
        let request = CreateClusterRequest {
            cluster: "shop".to_owned(),
            engine: "fake".to_owned(),
            mode: "primary-replica".to_owned(),
            nodes: vec!["spare".to_owned()],
            request_id: "once".to_owned(),
            tls,
            validate_only,
            ..CreateClusterRequest::default()
        };
        bench.api.create_cluster(Request::new(request))
    };
    bench.api.0.table.update(&node, |view| view.engines[0].modes = vec!["primary-replica".to_owned()]);
    for validate_only in [true, false] {
        let refused = create(true, validate_only).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::NoTls), "{refused:?}");
    }
    bench.api.0.table.update(&node, |view| {
        view.engines[0].connection = format("fake://{password}@{hosts}");
        view.engines[0].connection_with_tls = Some(format("fakes://{password}@{hosts}"));
    });
    let dry = create(true, true).await.unwrap().into_inner();
    assert_eq!(dry.report, ["shop1 on node spare", "their ports speak TLS only"]);
    assert_eq!(create(false, true).await.unwrap().into_inner().report, ["shop1 on node spare"]);

    let begun = create(true, false).await.unwrap().into_inner();
    assert_eq!(create(true, false).await.unwrap().into_inner().name, begun.name);
    assert_eq!(reason_of(&create(false, false).await.unwrap_err()), Some(Reason::RequestIdReused));
    let shown = bench.api.get_cluster(Request::new(GetClusterRequest { name: "clusters/shop".to_owned() }));
    assert!(shown.await.unwrap().into_inner().tls);
    let credentials = GetCredentialsRequest { name: "clusters/shop".to_owned() };
    let told = bench.api.get_credentials(Request::new(credentials)).await.unwrap().into_inner();
    assert_eq!(told.connection_strings["any"], format!("fakes://{}@", told.password), "no member is assigned yet");
}
