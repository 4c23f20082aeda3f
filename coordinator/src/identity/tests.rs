//! Over the memory store, with an authority of the test's own.

use std::{collections::BTreeMap, sync::Mutex};

use rcgen::{CertificateParams, KeyPair};
use regent_common::{
    clock::{ManualClock, wall_now},
    error::reason_of,
    ids::{ClusterId, ClusterName, MemberName, UserName},
    token::JoinToken,
    topology::ConnectionFormat,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::{
    model::{
        Assignment,
        certificate::CertificateRecord,
        cluster::Policy,
        user::{UserRecord, UserRole},
    },
    store::{get_json, memory::MemoryStore, paused::Paused},
};

const MINUTE: Duration = Duration::from_secs(60);

struct Fixture {
    _folder: tempfile::TempDir,
    identities: Identities,
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    authority: Arc<Authority>,
    told: Arc<Mutex<Vec<String>>>,
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn request(key: &KeyPair) -> PublicKey {
    let pem = CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
    PublicKey::of_request(&pem).unwrap()
}

fn reason<T: fmt::Debug>(outcome: Result<T, IdentityError>) -> Reason {
    reason_of(&Status::from(outcome.unwrap_err())).unwrap()
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(wall_now()));
        let authority = Arc::new(Authority::create(&folder.path().join("ca"), "01ABC", clock.wall()).unwrap());
        let (store, told) = (Arc::new(MemoryStore::default()), Arc::new(Mutex::new(Vec::new())));
        let identities = Self::open(&store, &clock, &authority, &told).await;
        Self { _folder: folder, identities, store, clock, authority, told }
    }

    async fn open(
        store: &Arc<MemoryStore>,
        clock: &Arc<ManualClock>,
        authority: &Arc<Authority>,
        told: &Arc<Mutex<Vec<String>>>,
    ) -> Identities {
        let hook = |what: &'static str| -> NodeHook {
            let told = told.clone();
            Arc::new(move |record: NodeRecord| told.lock().unwrap().push(format!("{what} {}", record.name)))
        };
        let revoked = told.clone();
        let hooks = Hooks {
            on_joined: hook("joined"),
            on_announced: hook("announced"),
            on_revoked: Arc::new(move |name| revoked.lock().unwrap().push(format!("revoked {name}"))),
            contest: Arc::new(|_, _, incarnation| {
                Box::pin(async move { (incarnation == "copy").then(|| "another agent speaks for it".to_owned()) })
            }),
        };
        let settings = Settings {
            store: Arc::new(Paused::between_reads(store.clone())),
            clock: clock.clone(),
            authority: authority.clone(),
            coordinator_id: "01ABC".to_owned(),
            certificate_life: 90 * 24 * 60 * MINUTE,
            reserved: BTreeSet::from(["coordinator.example".parse().unwrap()]),
            hooks,
        };
        Identities::open(settings).await.unwrap()
    }

    async fn token(&self, wish: TokenWish) -> JoinToken {
        self.identities.create_token(wish, "test", false).await.unwrap().token.unwrap()
    }

    async fn token_for(&self, name: &str) -> JoinToken {
        self.token(TokenWish { node: Some(node(name)), ..TokenWish::default() }).await
    }

    fn join(&self, token: &JoinToken, name: &str, key: &KeyPair) -> Join {
        Join {
            token: token.clone(),
            node: node(name),
            key: request(key),
            addresses: Addresses::new("10.0.0.7:7421", "coordinator.example", "").unwrap(),
            clock: self.clock.wall(),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            ledger_empty: true,
        }
    }

    /// A node that has joined, and the serial number of its certificate.
    async fn joined(&self, name: &str) -> (NodeRecord, String) {
        let token = self.token(TokenWish::default()).await;
        let join = self.join(&token, name, &KeyPair::generate().unwrap());
        let record = self.identities.join(&join).await.unwrap().record;
        let serial = record.serials[0].clone();
        (record, serial)
    }

    async fn put(&self, key: crate::store::Key, value: &impl serde::Serialize) {
        self.store.commit(Transaction::default().put_json(key, value)).await.unwrap();
    }

    async fn certificate(&self, serial: &str) -> CertificateRecord {
        get_json(self.store.as_ref(), &keys::certificate(serial)).await.unwrap().unwrap().value
    }

    async fn stored(&self, name: &str) -> Option<NodeRecord> {
        get_json(self.store.as_ref(), &keys::node(&node(name))).await.unwrap().map(|stored| stored.value)
    }

    async fn user(&self, name: &str, role: UserRole) -> Result<NewUser, IdentityError> {
        let wish = UserWish { name: name.parse().unwrap(), role, key: request(&KeyPair::generate().unwrap()) };
        self.identities.create_user(&wish, "test", false).await
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

#[tokio::test]
async fn a_token_admits_one_key_of_one_node() {
    let fixture = Fixture::new().await;
    let token = fixture.token(TokenWish::default()).await;
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let joined = fixture.identities.join(&fixture.join(&token, "n1", &key)).await.unwrap();
    assert_eq!(fixture.stored("n1").await.unwrap(), joined.record);
    assert!(!joined.record.data_lost && !joined.record.revoked);
    assert_eq!(
        joined.record.certificate_not_after.unwrap(),
        fixture.certificate(&joined.record.serials[0]).await.not_after
    );
    assert_eq!(fixture.told(), ["joined n1"]);
    let der = CertificateDer::from_pem_slice(joined.certificate.as_bytes()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let names = format!("{:?}", leaf.subject_alternative_name().unwrap().unwrap().value.general_names);
    assert!(names.contains("\"n1\"") && !names.contains("coordinator.example"), "{names}");

    let again = fixture.identities.join(&fixture.join(&token, "n1", &key)).await.unwrap();
    assert_eq!(again.record.serials.len(), 2, "the certificate of the lost answer counts as well");
    assert_eq!(reason(fixture.identities.join(&fixture.join(&token, "n1", &other)).await), Reason::TokenUsed);
    assert_eq!(reason(fixture.identities.join(&fixture.join(&token, "n2", &key)).await), Reason::TokenUsed);
    fixture.clock.advance(61 * MINUTE);
    assert_eq!(reason(fixture.identities.join(&fixture.join(&token, "n1", &key)).await), Reason::TokenExpired);
    assert!(fixture.stored("n2").await.is_none());
    assert_eq!(fixture.stored("n1").await.unwrap(), again.record, "refusals change nothing");
}

#[tokio::test]
async fn two_machines_with_one_token_at_once_get_one_certificate() {
    let fixture = Fixture::new().await;
    let token = fixture.token(TokenWish::default()).await;
    let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (one, two) = (fixture.join(&token, "n1", &one), fixture.join(&token, "n2", &two));
    let (one, two) = tokio::join!(fixture.identities.join(&one), fixture.identities.join(&two));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
}

#[tokio::test]
async fn tokens_that_do_not_fit_are_refused() {
    let fixture = Fixture::new().await;
    let key = KeyPair::generate().unwrap();
    let ours = fixture.authority.fingerprint();
    let unknown = JoinToken::generate(ours).unwrap();
    assert_eq!(reason(fixture.identities.join(&fixture.join(&unknown, "n1", &key)).await), Reason::TokenUnknown);
    let mut foreign = fixture.token(TokenWish::default()).await.to_string();
    foreign = foreign.replace(ours, &"0".repeat(64));
    let foreign = fixture.join(&foreign.parse().unwrap(), "n1", &key);
    assert_eq!(reason(fixture.identities.join(&foreign).await), Reason::TokenUnknown);
    let named = fixture.token_for("n2").await;
    assert_eq!(reason(fixture.identities.join(&fixture.join(&named, "n1", &key)).await), Reason::TokenWrongNode);
    fixture.clock.advance(60 * MINUTE);
    assert_eq!(reason(fixture.identities.join(&fixture.join(&named, "n2", &key)).await), Reason::TokenExpired);
    let cluster = Some(ClusterName::new("db").unwrap());
    let wish = TokenWish { cluster, ..TokenWish::default() };
    assert_eq!(reason(fixture.identities.create_token(wish, "test", false).await), Reason::ClusterNotFound);
    let wish = TokenWish { life: 8 * 24 * 60 * MINUTE, ..TokenWish::default() };
    assert_eq!(reason(fixture.identities.create_token(wish, "test", false).await), Reason::InvalidField);
    assert!(fixture.told().is_empty());
}

#[tokio::test]
async fn a_wrong_clock_is_told_by_how_much() {
    let fixture = Fixture::new().await;
    let token = fixture.token(TokenWish::default()).await;
    let key = KeyPair::generate().unwrap();
    let mut join = fixture.join(&token, "n1", &key);
    for (clock, said) in [
        (fixture.clock.wall() + Duration::from_secs(31), "31.0 s ahead of"),
        (fixture.clock.wall() - Duration::from_millis(90_500), "90.5 s behind"),
    ] {
        join.clock = clock;
        let error = fixture.identities.join(&join).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(reason(Err::<(), _>(error)), Reason::ClockWrong);
    }
    join.clock = fixture.clock.wall() + Duration::from_secs(30);
    fixture.identities.join(&join).await.unwrap();
}

#[tokio::test]
async fn a_name_is_taken_until_its_disk_was_lost_or_it_is_revoked() {
    let fixture = Fixture::new().await;
    let (_, first) = fixture.joined("n1").await;
    let key = KeyPair::generate().unwrap();
    let any = fixture.token(TokenWish::default()).await;
    assert_eq!(reason(fixture.identities.join(&fixture.join(&any, "n1", &key)).await), Reason::NameTaken);
    let named = fixture.token_for("n1").await;
    let mut with_ledger = fixture.join(&named, "n1", &key);
    with_ledger.ledger_empty = false;
    assert_eq!(reason(fixture.identities.join(&with_ledger).await), Reason::NameTaken);
    assert!(fixture.identities.revoked().borrow().is_empty());

    let record = fixture.identities.join(&fixture.join(&named, "n1", &key)).await.unwrap().record;
    assert!(record.data_lost && !record.serials.contains(&first));
    assert_eq!(*fixture.identities.revoked().borrow(), *std::slice::from_ref(&first));
    assert!(fixture.identities.revocations().contains(&first));
    let stale =
        fixture.identities.announce(&node("n1"), Some(&first), &Addresses::new("a:1", "", "").unwrap(), "one").await;
    assert_eq!(reason(stale), Reason::CertificateRevoked);

    fixture.identities.revoke_node(&node("n1")).await.unwrap();
    assert_eq!(reason(fixture.identities.join(&fixture.join(&named, "n1", &key)).await), Reason::NodeRevoked);
    let record = fixture.identities.join(&fixture.join(&any, "n1", &key)).await.unwrap().record;
    assert!(!record.revoked && record.serials.len() == 1);
}

#[tokio::test]
async fn an_old_token_does_not_bring_back_an_older_enrollment() {
    let fixture = Fixture::new().await;
    let (old, key) = (fixture.token(TokenWish::default()).await, KeyPair::generate().unwrap());
    fixture.identities.join(&fixture.join(&old, "n1", &key)).await.unwrap();
    let named = fixture.token_for("n1").await;
    fixture.identities.join(&fixture.join(&named, "n1", &KeyPair::generate().unwrap())).await.unwrap();
    assert_eq!(reason(fixture.identities.join(&fixture.join(&old, "n1", &key)).await), Reason::TokenUsed);
}

#[tokio::test]
async fn a_token_for_a_cluster_asks_for_the_membership_once() {
    let fixture = Fixture::new().await;
    let db = ClusterName::new("db").unwrap();
    let mut record = crate::planner::fixtures::cluster();
    record.mode = "multi-master".to_owned();
    fixture.put(keys::cluster(&db), &record).await;
    let wish = TokenWish { cluster: Some(db.clone()), ..TokenWish::default() };
    let refused = fixture.identities.create_token(wish, "me", false).await;
    assert_eq!(reason(refused), Reason::NotInThisMode, "a pair has its two sides");
    record.mode = "primary-replica".to_owned();
    fixture.put(keys::cluster(&db), &record).await;
    let wish = TokenWish { cluster: Some(db.clone()), ..TokenWish::default() };
    let (token, key) = (fixture.token(wish.clone()).await, KeyPair::generate().unwrap());
    let joined = fixture.identities.join(&fixture.join(&token, "n1", &key)).await.unwrap();
    assert_eq!((joined.record.join_cluster, joined.cluster), (Some(db.clone()), Some(db.clone())));

    let other = ClusterName::new("other").unwrap();
    let member = MemberName::new("other1").unwrap();
    fixture.put(keys::assignment(&node("n2")), &Assignment { cluster: other, member }).await;
    let token = fixture.token(wish).await;
    assert_eq!(reason(fixture.identities.join(&fixture.join(&token, "n2", &key)).await), Reason::NodeInCluster);
}

#[tokio::test]
async fn a_node_announces_its_address_and_renews() {
    let fixture = Fixture::new().await;
    let (record, serial) = fixture.joined("n1").await;
    fixture.told();
    let moved = Addresses::new("[fd00::7]:7421", "", "n1.internal").unwrap();
    let record =
        Box::new((record, fixture.identities.announce(&node("n1"), Some(&serial), &moved, "one").await.unwrap()));
    assert_ne!(record.0, record.1);
    assert_eq!(record.1.agent_address, "[fd00::7]:7421");
    assert_eq!(fixture.stored("n1").await.unwrap(), record.1);
    assert_eq!(fixture.told(), ["announced n1"]);
    let elsewhere = Addresses::new("copy.example:7421", "", "").unwrap();
    let refused = fixture.identities.announce(&node("n1"), Some(&serial), &elsewhere, "copy").await;
    assert_eq!(reason(refused), Reason::IdentityTwice);
    assert_eq!((fixture.stored("n1").await.unwrap(), fixture.told()), (record.1.clone(), vec![]));
    for bad in ["", "n1", "0.0.0.0:7421", "n1:0"] {
        assert_eq!(reason(Addresses::new(bad, "", "")), Reason::InvalidField, "{bad:?}");
    }

    let key = request(&KeyPair::generate().unwrap());
    let me: Identity = "regent://01ABC/node/n1".parse().unwrap();
    fixture.clock.advance(60 * 24 * 60 * MINUTE);
    fixture.identities.renew(&me, Some(&serial), &key).await.unwrap();
    let record = fixture.stored("n1").await.unwrap();
    assert_eq!(record.serials.len(), 2);
    assert!(record.certificate_not_after.unwrap() > fixture.clock.wall() + 89 * 24 * 60 * MINUTE);
    fixture.clock.advance(31 * 24 * 60 * MINUTE);
    fixture.identities.renew(&me, Some(&record.serials[1]), &key).await.unwrap();
    assert!(!fixture.stored("n1").await.unwrap().serials.contains(&serial), "it has ended by itself");
    let coordinator = "regent://01ABC/coordinator/c1".parse().unwrap();
    assert_eq!(reason(fixture.identities.renew(&coordinator, Some("1"), &key).await), Reason::WrongCaller);
    assert_eq!(reason(fixture.identities.renew(&me, None, &key).await), Reason::CertificateRevoked);
}

#[tokio::test]
async fn a_revoked_node_gets_nothing_more_and_a_restart_remembers() {
    let fixture = Fixture::new().await;
    let (_, serial) = fixture.joined("n1").await;
    fixture.told();
    let mut seen = fixture.identities.revoked();
    let (record, assignment) = fixture.identities.revoke_node(&node("n1")).await.unwrap();
    assert!(record.revoked && assignment.is_none());
    assert_eq!(*seen.borrow_and_update(), *std::slice::from_ref(&serial));
    assert_eq!(fixture.told(), ["revoked n1"]);
    assert_eq!(fixture.certificate(&serial).await.revoked_at, Some(fixture.clock.wall()));
    let me = "regent://01ABC/node/n1".parse().unwrap();
    let key = request(&KeyPair::generate().unwrap());
    assert_eq!(reason(fixture.identities.renew(&me, Some(&serial), &key).await), Reason::CertificateRevoked);
    assert_eq!(reason(fixture.identities.revoke_node(&node("n9")).await), Reason::NodeNotFound);

    let restarted = Fixture::open(&fixture.store, &fixture.clock, &fixture.authority, &fixture.told).await;
    assert!(restarted.revocations().contains(&serial));
    assert_eq!(*restarted.revoked().borrow(), *std::slice::from_ref(&serial));
    fixture.clock.advance(92 * 24 * 60 * MINUTE);
    // The certificate and the token of the join.
    assert_eq!(fixture.identities.sweep().await.unwrap(), 2);
    assert!(fixture.store.get(&keys::certificate(&serial)).await.unwrap().is_none());
    assert_eq!(fixture.identities.sweep().await.unwrap(), 0);
}

#[tokio::test]
async fn users_are_made_and_the_last_administrator_stays() {
    let fixture = Fixture::new().await;
    let ada = fixture.user("ada", UserRole::Admin).await.unwrap();
    assert!(ada.certificate.unwrap().matches("BEGIN CERTIFICATE").count() == 2);
    assert_eq!(reason(fixture.user("ada", UserRole::Viewer).await), Reason::NameTaken);
    let ada: UserName = "ada".parse().unwrap();
    assert_eq!(reason(fixture.identities.revoke_user(&ada).await), Reason::InvalidField);
    fixture.user("bob", UserRole::Operator).await.unwrap();
    assert_eq!(reason(fixture.identities.revoke_user(&ada).await), Reason::InvalidField);
    fixture.user("eve", UserRole::Admin).await.unwrap();
    let revoked = fixture.identities.revoke_user(&ada).await.unwrap();
    assert!(revoked.revoked && fixture.identities.revocations().contains(&revoked.serials[0]));
    assert_eq!(fixture.identities.revoke_user(&ada).await.unwrap(), revoked, "again does no harm");
    let names: Vec<_> = fixture.identities.users().await.unwrap().into_iter().map(|u| u.name.to_string()).collect();
    assert_eq!(names, ["ada", "bob", "eve"]);
    let again: UserRecord = fixture.user("ada", UserRole::Viewer).await.unwrap().record;
    assert!(!again.revoked && again.serials.len() == 1);
    assert!(fixture.identities.revocations().contains(&revoked.serials[0]), "the old certificate stays revoked");
    let nobody = fixture.identities.revoke_user(&"nobody".parse().unwrap()).await;
    assert_eq!(reason(nobody), Reason::UserNotFound);
}

#[tokio::test]
async fn a_check_changes_nothing() {
    let fixture = Fixture::new().await;
    let new = fixture.identities.create_token(TokenWish::default(), "test", true).await.unwrap();
    assert_eq!((new.token, new.expires_at), (None, fixture.clock.wall() + 60 * MINUTE));
    let wish =
        UserWish { name: "ada".parse().unwrap(), role: UserRole::Viewer, key: request(&KeyPair::generate().unwrap()) };
    assert!(fixture.identities.create_user(&wish, "test", true).await.unwrap().certificate.is_none());
    assert!(fixture.store.list("", None, 10).await.unwrap().is_empty());
}

/// A cluster whose primary lives on n1, with a replica on n2.
fn cluster(candidate: Option<&str>) -> serde_json::Value {
    serde_json::json!({
        "id": ClusterId::generate(), "name": "db", "engine": "none", "version": "1", "mode": "primary-replica",
        "epoch": 1, "token": 1, "primary": "db1", "candidate": candidate, "established": true,
        "may_be_writable": ["db1"], "members": {}, "next_number": 3, "phase": "active", "labels": {},
        "protected": false, "settings": {}, "port": 0, "connection": serde_json::to_value(ConnectionFormat::default()).unwrap(),
        "secrets": {}, "policy": Policy::default(), "created_at": wall_now(), "created_by": "test", "ready_at": null,
        "keep_data_on_delete": false, "operation": null, "divergences": [],
    })
}

#[tokio::test]
async fn a_primary_is_not_revoked() {
    let fixture = Fixture::new().await;
    let name = ClusterName::new("db").unwrap();
    for (number, node_name) in [(1, "n1"), (2, "n2")] {
        fixture.joined(node_name).await;
        let assignment = Assignment { cluster: name.clone(), member: name.member(number) };
        fixture.put(keys::assignment(&node(node_name)), &assignment).await;
    }
    fixture.put(keys::cluster(&name), &cluster(Some("db2"))).await;
    for (refused, why) in [("n1", "the primary"), ("n2", "the candidate of a failover")] {
        let outcome = fixture.identities.revoke_node(&node(refused)).await;
        assert_eq!(reason(outcome), Reason::MemberIsPrimary, "{why}");
    }
    fixture.put(keys::cluster(&name), &cluster(None)).await;
    let (record, assignment) = fixture.identities.revoke_node(&node("n2")).await.unwrap();
    assert!(record.revoked && assignment.unwrap().member == name.member(2));
    assert!(!fixture.stored("n1").await.unwrap().revoked);
}
