//! Changes of a cluster's profile: when they are taken, when not, and what they leave as it was.

use std::time::Duration;

use regent_common::{clock::ManualClock, error::reason_of, lease::Profile};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    audit::AuditLog,
    authority::Authorities,
    cluster::{brake::Limits, directory::Directory},
    environment::Environment,
    events::EventLog,
    model::cluster::MemberState,
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
        agents: Arc::<Unheard>::default(),
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
