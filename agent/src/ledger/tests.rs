//! Tests of the ledger: what it permits, what it keeps, what it refuses to be read from.

use std::{path::Path, sync::Arc};

use proptest::prelude::*;
use regent_common::ids::{ClusterId, Epoch, MemberName, OperationId, OperationToken, Revision};

use super::{
    disk::{Disk, RealDisk},
    record::{FORMAT, OperationRecord},
    store::{FILE, SECRETS_FILE},
    *,
};

fn cluster(number: u128) -> ClusterId {
    ClusterId::from_parts(1, number)
}

fn key(operation: u128, step: &str) -> StepKey {
    StepKey { operation: OperationId::from_parts(2, operation), step: step.to_owned() }
}

fn member() -> MemberName {
    "db1".parse().unwrap()
}

fn header(epoch: u64, token: u64, step: &str, content: &str) -> Header {
    Header {
        cluster_id: cluster(1),
        member: "db1".parse().unwrap(),
        epoch: Epoch(epoch),
        token: OperationToken(token),
        key: key(1, step),
        digest: Digest::of(content.as_bytes()),
        revision: Revision(0),
    }
}

fn membership(epoch: u64, token: u64) -> Membership {
    Membership {
        cluster_id: cluster(1),
        member: "db1".parse().unwrap(),
        port: 5432,
        spec: StoredSpec {
            cluster: "db".parse().unwrap(),
            engine: "some".to_owned(),
            version: String::new(),
            members: Vec::new(),
            settings: Default::default(),
            access_rules: String::new(),
            mode: regent_common::topology::Mode::default(),
            tls: false,
        },
        configured: false,
        configuration: String::new(),
        epoch: Epoch(epoch),
        token: OperationToken(token),
        role: None,
        upstream: None,
        established: false,
        electorate: None,
        longest_ttl_millis: None,
        ttl_millis: None,
        heartbeat_millis: None,
        dirty: false,
        distrusted: false,
        resyncing: false,
        writable_epoch: None,
        writable_boot_id: None,
        fenced_epoch: None,
        fenced: false,
        drained: None,
        forced: None,
    }
}

fn member_at(epoch: u64, token: u64) -> Ledger {
    Ledger { membership: Some(membership(epoch, token)), ..Ledger::default() }
}

fn refusal(admission: Admission) -> Refusal {
    match admission {
        Admission::Refuse(refusal) => refusal,
        Admission::Run | Admission::Join | Admission::Answer(_) => panic!("admitted: {admission:?}"),
    }
}

fn outcome(detail: &str) -> StepOutcome {
    StepOutcome { detail: detail.to_owned(), ..StepOutcome::default() }
}

#[test]
fn a_lower_epoch_or_token_is_refused() {
    let ledger = member_at(5, 7);
    assert_eq!(
        refusal(ledger.admit(&header(4, 9, "s", "a"), Claim::Act, None)),
        Refusal::StaleEpoch { given: Epoch(4), known: Epoch(5) }
    );
    assert_eq!(
        refusal(ledger.admit(&header(6, 6, "s", "a"), Claim::Act, None)),
        Refusal::StaleToken { given: OperationToken(6), known: OperationToken(7) }
    );
    assert_eq!(ledger.admit(&header(5, 7, "s", "a"), Claim::Act, None), Admission::Run);
}

#[test]
fn a_finished_step_is_answered_a_running_one_joined_a_failed_one_run_again() {
    let mut ledger = member_at(5, 7);
    let sent = header(5, 7, "s", "a");
    ledger.begin(&sent, "configure");
    assert_eq!(ledger.admit(&sent, Claim::Act, Some(sent.content())), Admission::Join);
    assert_eq!(ledger.admit(&sent, Claim::Act, None), Admission::Run, "a crash left it unfinished");
    ledger.fail(&sent.key, sent.content(), "the disk was full");
    assert_eq!(ledger.admit(&sent, Claim::Act, None), Admission::Run);
    ledger.begin(&sent, "configure");
    ledger.finish(&sent.key, sent.content(), outcome("done"));
    assert_eq!(ledger.admit(&sent, Claim::Act, None), Admission::Answer(outcome("done")));
    assert_eq!(ledger.step(&sent.key).unwrap().executions, 2);
    assert_eq!(ledger.step(&sent.key).unwrap().last_error, "");
}

#[test]
fn other_content_needs_a_higher_token() {
    let mut ledger = member_at(5, 7);
    let first = header(5, 7, "s", "a");
    ledger.begin(&first, "follow");
    ledger.finish(&first.key, first.content(), outcome("done"));
    let other = header(5, 7, "s", "b");
    assert!(matches!(refusal(ledger.admit(&other, Claim::Act, None)), Refusal::ContentDiffers { .. }));
    assert!(matches!(refusal(ledger.admit(&other, Claim::Act, Some(first.content()))), Refusal::ContentDiffers { .. }));
    assert_eq!(ledger.admit(&header(5, 8, "s", "b"), Claim::Act, None), Admission::Run);
    // The same action at a later epoch is another content: the result at epoch 5 says nothing about epoch 6.
    assert!(matches!(refusal(ledger.admit(&header(6, 7, "s", "a"), Claim::Act, None)), Refusal::ContentDiffers { .. }));
    assert_eq!(ledger.admit(&header(6, 8, "s", "a"), Claim::Act, None), Admission::Run);
}

#[test]
fn a_resumed_coordinator_joins_and_raises_the_token() {
    let mut ledger = member_at(5, 7);
    let first = header(5, 7, "s", "a");
    ledger.begin(&first, "clone");
    let resumed = header(5, 8, "s", "a");
    assert_eq!(ledger.admit(&resumed, Claim::Act, Some(first.content())), Admission::Join);
    assert!(ledger.accept(&resumed));
    assert!(!ledger.accept(&resumed), "nothing is left to raise");
    assert_eq!(ledger.step(&first.key).unwrap().token, OperationToken(8));
    assert!(matches!(refusal(ledger.admit(&first, Claim::Act, None)), Refusal::StaleToken { .. }));
    ledger.finish(&first.key, first.content(), outcome("done"));
    assert_eq!(ledger.admit(&resumed, Claim::Act, None), Admission::Answer(outcome("done")));
}

#[test]
fn only_the_right_cluster_and_member_is_obeyed() {
    let ledger = member_at(5, 7);
    let elsewhere = Header { cluster_id: cluster(2), ..header(9, 9, "s", "a") };
    assert!(matches!(refusal(ledger.admit(&elsewhere, Claim::Act, None)), Refusal::OtherCluster { .. }));
    assert!(matches!(refusal(ledger.admit(&elsewhere, Claim::Enter, None)), Refusal::OtherCluster { .. }));
    let other = Header { member: "db2".parse().unwrap(), ..header(9, 9, "s", "a") };
    assert!(matches!(refusal(ledger.admit(&other, Claim::Act, None)), Refusal::OtherMember { .. }));
    let spare = Ledger::default();
    assert!(matches!(refusal(spare.admit(&header(1, 1, "s", "a"), Claim::Act, None)), Refusal::NotAMember { .. }));
    assert_eq!(spare.admit(&header(1, 1, "s", "a"), Claim::Enter, None), Admission::Run);
}

#[test]
fn a_past_cluster_is_not_obeyed_and_its_release_is_answered_again() {
    let mut ledger = member_at(5, 7);
    let assigned = header(5, 7, "assign", "a");
    ledger.begin(&assigned, "assign");
    ledger.finish(&assigned.key, assigned.content(), outcome("assigned"));
    let release = header(5, 8, "release", "r");
    ledger.begin(&release, "release");
    ledger.leave(cluster(1), &member(), OperationToken(8));
    ledger.finish(&release.key, release.content(), outcome("gone"));
    assert_eq!(ledger.membership, None);
    assert_eq!(ledger.admit(&release, Claim::Leave, None), Admission::Answer(outcome("gone")));
    assert_eq!(ledger.admit(&header(5, 9, "again", "r"), Claim::Leave, None), Admission::Run);
    let past = |token, claim| matches!(ledger.admit(&header(9, token, "late", "a"), claim, None), Admission::Refuse(_));
    assert!(past(8, Claim::Enter) && past(9, Claim::Act), "what was sent before, and what is not for a new member");
    assert_eq!(
        ledger.admit(&header(9, 9, "anew", "a"), Claim::Enter, None),
        Admission::Run,
        "a later operation takes it in"
    );
    let mut of_before = ledger.clone();
    of_before.released_under.clear();
    let refused = refusal(of_before.admit(&header(9, 9, "anew", "a"), Claim::Enter, None));
    assert!(matches!(refused, Refusal::PastCluster { .. }), "nobody knows under which token it was released");
    of_before.leave(cluster(1), &member(), OperationToken(10));
    assert!(of_before.released_under.is_empty());
    assert_eq!(ledger.step(&assigned.key).unwrap().outcome, None, "undoing a step erases its result");
}

#[test]
fn leaving_a_cluster_that_this_node_is_not_in_leaves_its_own_alone() {
    let mut ledger = member_at(5, 7);
    let elsewhere = Header { cluster_id: cluster(2), ..header(90, 90, "s", "a") };
    assert_eq!(ledger.admit(&elsewhere, Claim::Leave, None), Admission::Run);
    ledger.begin(&elsewhere, "release");
    ledger.leave(cluster(2), &member(), OperationToken(90));
    assert_eq!(ledger.membership, Some(membership(5, 7)));
}

#[test]
fn a_late_release_of_who_it_was_leaves_who_it_is_now_alone() {
    let mut ledger = member_at(5, 7);
    ledger.leave(cluster(1), &"db9".parse().unwrap(), OperationToken(7));
    assert_eq!(ledger, member_at(5, 7));
}

#[test]
fn a_node_in_quarantine_can_only_be_assigned_or_released() {
    let ledger = Ledger { quarantine: Some("no ledger".to_owned()), ..Ledger::default() };
    assert!(matches!(refusal(ledger.admit(&header(1, 1, "s", "a"), Claim::Act, None)), Refusal::Quarantined { .. }));
    assert_eq!(ledger.admit(&header(1, 1, "s", "a"), Claim::Enter, None), Admission::Run);
    assert_eq!(ledger.admit(&header(1, 1, "s", "a"), Claim::Leave, None), Admission::Run);
}

#[test]
fn raising_the_epoch_ends_what_was_established() {
    let mut known = Membership { established: true, ..membership(5, 1) };
    known.raise_epoch(Epoch(5));
    assert!(known.established);
    known.raise_epoch(Epoch(7));
    assert!(!known.established);
    assert_eq!(known.epoch, Epoch(7));
}

#[test]
fn only_the_last_operations_are_remembered() {
    let mut ledger = member_at(1, 1);
    for number in 0..30 {
        let sent = Header { key: key(number, "s"), ..header(1, 1, "s", "a") };
        ledger.begin(&sent, "configure");
    }
    assert_eq!(ledger.operations.len(), 20);
    assert!(ledger.step(&key(9, "s")).is_none());
    assert!(ledger.step(&key(10, "s")).is_some());
}

proptest! {
    /// Whatever is sent in whatever order: nothing goes back, nothing lower is carried out, and an answer is always the
    /// one that exactly this content got.
    #[test]
    fn no_sequence_of_steps_goes_back(
        sent in prop::collection::vec((0u64..5, 0u64..5, 0u8..3, 0u8..3, any::<bool>(), any::<bool>()), 1..60)
    ) {
        let mut ledger = member_at(1, 1);
        let mut answers: Vec<(StepKey, Content, StepOutcome)> = Vec::new();
        for (index, (epoch, token, step, content, ends, fails)) in sent.into_iter().enumerate() {
            let asked = header(epoch, token, &format!("s{step}"), &format!("c{content}"));
            let before = ledger.membership.clone().unwrap();
            let admission = ledger.admit(&asked, Claim::Act, None);
            let lower = asked.epoch < before.epoch || asked.token < before.token;
            prop_assert_eq!(
                lower,
                matches!(admission, Admission::Refuse(Refusal::StaleEpoch { .. } | Refusal::StaleToken { .. }))
            );
            match admission {
                Admission::Run => {
                    ledger.begin(&asked, "configure");
                    answers.retain(|(key, _, _)| *key != asked.key);
                    if ends && !fails {
                        let result = outcome(&index.to_string());
                        ledger.finish(&asked.key, asked.content(), result.clone());
                        answers.push((asked.key.clone(), asked.content(), result));
                    } else if ends {
                        ledger.fail(&asked.key, asked.content(), "no");
                    }
                }
                Admission::Answer(result) => {
                    prop_assert!(answers.contains(&(asked.key.clone(), asked.content(), result)));
                    ledger.accept(&asked);
                }
                Admission::Refuse(_) => {
                    prop_assert_eq!(ledger.membership.as_ref(), Some(&before));
                }
                Admission::Join => prop_assert!(false, "nothing runs"),
            }
            let after = ledger.membership.clone().unwrap();
            prop_assert!(after.epoch >= before.epoch && after.token >= before.token);
            // The file brings back the same ledger.
            let text = serde_json::to_vec(&ledger).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Ledger>(&text).unwrap(), &ledger);
        }
    }
}

fn open(directory: &Path) -> LedgerStore {
    LedgerStore::open(Arc::new(RealDisk), directory.to_owned(), None).unwrap()
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    assert_eq!(*store.read(), Ledger::default());
    store.update(|ledger| ledger.membership = Some(membership(3, 4))).await.unwrap();
    let secret = [("replication".to_owned(), secrecy::SecretString::from("hush"))].into();
    store.store_secrets(&secret).await.unwrap();
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.read().membership, Some(membership(3, 4)));
    let secrets = store.load_secrets().await.unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&secrets["replication"]), "hush");
    store.remove_secrets().await.unwrap();
    assert!(!directory.path().join(SECRETS_FILE).exists());
}

/// A disk that fails to write once told so.
struct FailingDisk(std::sync::atomic::AtomicBool);

impl Disk for FailingDisk {
    fn offload(&self, work: Box<dyn FnOnce() + Send>) {
        RealDisk.offload(work);
    }

    fn read(&self, path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        RealDisk.read(path)
    }
    fn write_durably(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        RealDisk.write_durably(path, content)
    }
    fn remove_durably(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove_durably(path)
    }
}

#[tokio::test]
async fn a_change_that_is_not_durable_is_not_visible() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(FailingDisk(false.into()));
    let store = LedgerStore::open(disk.clone(), directory.path().to_owned(), None).unwrap();
    store.update(|ledger| ledger.revision = Revision(1)).await.unwrap();
    disk.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let failed = store.update(|ledger| ledger.revision = Revision(2)).await;
    assert!(matches!(failed, Err(LedgerError::Io { doing: "write", .. })));
    assert_eq!(store.read().revision, Revision(1));
}

#[tokio::test]
async fn a_change_whose_caller_went_away_still_ends() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (started, wait_started) = std::sync::mpsc::channel();
    let (go_on, wait_go_on) = std::sync::mpsc::channel::<()>();
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .update(move |ledger| {
                    started.send(()).unwrap();
                    wait_go_on.recv().unwrap();
                    ledger.revision = Revision(5);
                })
                .await
        }
    });
    tokio::task::spawn_blocking(move || wait_started.recv().unwrap()).await.unwrap();
    writing.abort();
    go_on.send(()).unwrap();
    store.update(|ledger| assert_eq!(ledger.revision, Revision(5), "the first change was lost")).await.unwrap();
}

#[test]
fn a_missing_ledger_beside_data_is_quarantine() {
    let directory = tempfile::tempdir().unwrap();
    let data = Path::new("/somewhere/db/data");
    let store = LedgerStore::open(Arc::new(RealDisk), directory.path().to_owned(), Some(data)).unwrap();
    assert!(store.read().quarantine.as_ref().unwrap().contains("/somewhere/db/data"));
}

#[test]
fn a_ledger_of_a_newer_program_or_a_damaged_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let open = || LedgerStore::open(Arc::new(RealDisk), directory.path().to_owned(), None).map(|_| ());
    std::fs::write(&path, format!("{{\"format\":{},\"unknown\":true}}", FORMAT + 1)).unwrap();
    assert!(matches!(open(), Err(LedgerError::Newer { found, .. }) if found == FORMAT + 1));
    for damaged in ["", "{", "{}", "{\"format\":1,\"membership\":3}"] {
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(open(), Err(LedgerError::Damaged { .. })), "{damaged:?} was taken");
    }
    std::fs::write(&path, "{\"format\":1}").unwrap();
    open().unwrap();
}

/// Two versions of a ledger, as they were written: the older one and the newer one.
async fn two_versions(directory: &Path) -> (Vec<u8>, Vec<u8>) {
    let store = open(directory);
    let sent = header(3, 4, "promote", "a");
    let change = move |ledger: &mut Ledger| {
        ledger.membership = Some(membership(3, 4));
        ledger.begin(&sent, "promote");
        ledger.finish(&sent.key, sent.content(), outcome("done"));
    };
    store.update(change).await.unwrap();
    let older = std::fs::read(directory.join(FILE)).unwrap();
    store.update(|ledger| ledger.membership.as_mut().unwrap().raise_epoch(Epoch(12))).await.unwrap();
    (older, std::fs::read(directory.join(FILE)).unwrap())
}

#[tokio::test]
async fn a_ledger_that_was_cut_anywhere_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (older, whole) = two_versions(directory.path()).await;
    // What a crash in the middle of a write leaves beside it is not taken in its place.
    let beside = path.with_extension("new");
    std::fs::write(&beside, &older).unwrap();
    let data = Path::new("/somewhere/db/data");
    for length in 0..whole.len() {
        let cut = &whole[..length];
        // A file system that lost the last blocks may also show zeros in their place.
        let zeroed: Vec<u8> = cut.iter().copied().chain(std::iter::repeat_n(0, whole.len() - length)).collect();
        for content in [cut, &zeroed] {
            std::fs::write(&path, content).unwrap();
            for foreign in [None, Some(data)] {
                let opened = LedgerStore::open(Arc::new(RealDisk), directory.path().to_owned(), foreign);
                let refused = opened.expect_err(&format!("cut at {length} of {}", whole.len()));
                assert!(matches!(refused, LedgerError::Damaged { .. }), "cut at {length}: {refused}");
                let said = refused.to_string();
                for part in ["ledger.json", "nothing was changed", "put back a whole copy", "quarantine"] {
                    assert!(said.contains(part), "{part:?} is not in {said:?}");
                }
            }
            assert!(LedgerStore::peek(&RealDisk, directory.path()).is_err(), "cut at {length}: not even shown");
            assert_eq!(std::fs::read(&path).unwrap(), content, "cut at {length}: it is evidence, and stays");
        }
    }
    assert_eq!(std::fs::read(&beside).unwrap(), older, "nor was that touched");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(open(directory.path()).read().membership.as_ref().unwrap().epoch, Epoch(12));
}

#[tokio::test]
async fn secrets_that_were_cut_anywhere_are_refused_without_being_quoted() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.store_secrets(&[("replication".to_owned(), secrecy::SecretString::from("hush"))].into()).await.unwrap();
    let path = directory.path().join(SECRETS_FILE);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let refused = store.load_secrets().await.expect_err("it was taken");
        let said = format!("{refused} {refused:?}");
        assert!(matches!(refused, LedgerError::Damaged { .. }) && !said.contains("hush"), "cut at {length}: {said}");
    }
}

#[test]
fn times_in_a_ledger_that_no_lease_can_be_kept_by_are_not_used() {
    let usual = regent_common::lease::Timing::default();
    let timing =
        |heartbeat, ttl| Membership { heartbeat_millis: heartbeat, ttl_millis: ttl, ..membership(1, 1) }.timing();
    let fast = timing(Some(250), Some(1500));
    assert_eq!((fast.heartbeat.as_millis(), fast.ttl.as_millis()), (250, 1500));
    for (heartbeat, ttl) in [(Some(250), Some(749)), (Some(250), Some(0)), (Some(u64::MAX / 4), Some(1500))] {
        assert_eq!(timing(heartbeat, ttl), usual, "{heartbeat:?} and {ttl:?}");
    }
    assert_eq!(timing(Some(50), Some(u64::MAX)), usual, "longer than anybody is granted");
    assert_eq!((timing(None, None).heartbeat, timing(None, None).ttl), (usual.heartbeat, usual.ttl));
}

#[test]
fn digests_are_hexadecimal_in_text() {
    let digest = Digest::of(b"");
    assert_eq!(digest.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(Digest::try_from(digest.to_string()), Ok(digest));
    assert_eq!(Digest::from_bytes(digest.as_bytes()), Some(digest));
    for bad in ["", "zz", &"é".repeat(32), &"z".repeat(64)] {
        assert!(Digest::try_from(bad.to_owned()).is_err());
    }
    assert!(OperationRecord { operation: OperationId::from_parts(1, 1), steps: Default::default() }.steps.is_empty());
}
