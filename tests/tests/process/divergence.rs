//! A former primary that went its own way comes back without a person, and what it had of its own is reported.

use std::{fs, process::Command};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::run,
    engines, process, wait,
    workload::{checker::Stored, postgres},
};

use crate::support::{CLUSTER, SOON, Trio, as_superuser, how_it_was_started, write_by_hand};

/// Kills the primary's engine, then its agent before the engine is brought back; starts the engine by hand and writes to
/// it. Returns the old primary's member and node. `spoil` is done to the stopped data before the agent is back.
async fn diverge(trio: &mut Trio, spoil: impl FnOnce(&std::path::Path)) -> (String, String) {
    let cluster = trio.healthy().await;
    let old = cluster.primary.clone();
    let member = api::member(&cluster, &old).unwrap();
    let (node, pid) = (api::plain(&member.node).to_owned(), api::engine_pid(member).unwrap());
    let address = format!("127.0.0.1:{}", member.endpoint.as_ref().unwrap().port);
    let (mut command, data) = how_it_was_started(pid);
    // However many checkpoints it makes by hand, its log of before stays.
    command.extend(["-c".to_owned(), "wal_keep_size=1GB".to_owned()]);
    process::signal(pid, Signal::SIGKILL).unwrap();
    trio.api().other_primary(CLUSTER, &old, SOON).await.unwrap();
    trio.fleet.agent(&node).daemon().unwrap().kill().unwrap();
    assert!(!data.join("standby.signal").exists(), "the agent was quicker than this test: it follows already");
    assert!(regent_tests::folder::processes_in(&data).unwrap().is_empty(), "the engine was started again already");

    write_by_hand(trio, &node, &address, &command, &data).await;
    spoil(&data);
    trio.fleet.agent(&node).start().unwrap();
    (old, node)
}

/// Makes a checkpoint of which the end is written into a later file of the log than that with which recovery from it
/// begins. Returns the name of that.
async fn checkpoint_over_two_files(trio: &Trio, engine: u32) -> String {
    let files = "SELECT redo_wal_file, pg_walfile_name(checkpoint_lsn) FROM pg_control_checkpoint()";
    wait::until("a checkpoint over two files", SOON, || async {
        postgres::add_ballast(&trio.login, &trio.members[0], 1).await?;
        let backup = std::thread::spawn(move || as_superuser(engine, "SELECT pg_backup_start('slow', false)"));
        wait::until("its begin", SOON, || async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'CheckpointDone'";
            ensure!(as_superuser(engine, waits) == "1", "it has not begun");
            Ok(())
        })
        .await?;
        // A file of the log into which nothing was written yet is not left.
        postgres::add_ballast(&trio.login, &trio.members[0], 1).await?;
        as_superuser(engine, "SELECT pg_switch_wal()");
        tokio::task::spawn_blocking(|| backup.join()).await?.expect("psql does not panic");
        let files = as_superuser(engine, files);
        let (first, last) = files.split_once('|').context("two files")?;
        ensure!(first < last, "it is all in {first}");
        Ok(first.to_owned())
    })
    .await
    .unwrap()
}

fn by_hand(stored: &Stored) -> usize {
    stored.keys().filter(|(writer, _)| writer == "by hand").count()
}

async fn comes_back(trio: &mut Trio, old: &str, resolution: &str) {
    let cluster = trio.healthy().await;
    assert_ne!(cluster.primary, old);
    let report = cluster.divergence_reports.last().expect("what it had of its own is reported");
    assert_eq!(api::plain(&report.member), old);
    assert_eq!(report.resolution, resolution, "{report:?}");
    assert!(report.amount > 0 && report.lost.is_some() && !report.unit.is_empty(), "{report:?}");
    let request =
        wire::ListAuditRecordsRequest { cluster: format!("clusters/{CLUSTER}"), page_size: 1000, ..Default::default() };
    let records = trio.api().audit().list_audit_records(request).await.unwrap().into_inner().records;
    let told = records.iter().any(|r| format!("{} {}", r.action, r.detail).to_lowercase().contains("diverge"));
    assert!(told, "the audit has no word of it: {records:#?}");
    for member in &trio.members {
        let stored = postgres::read_rows(&trio.login, member).await.unwrap();
        assert_eq!(by_hand(&stored), 0, "rows written by hand are still on {member}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_primary_comes_back_by_rewind_and_by_clone_when_rewind_cannot() {
    let mut trio = Trio::start().await;
    let (old, _) = diverge(&mut trio, |_| {}).await;
    comes_back(&mut trio, &old, "rewound").await;

    // Without the log of where it parted nothing can be rewound.
    let (old, _) = diverge(&mut trio, |data| {
        let mut control = Command::new(engines::postgres_bin().unwrap().join("pg_controldata"));
        control.arg(data).env("LC_ALL", "C");
        let control = run(control).unwrap();
        let field = "Latest checkpoint's REDO WAL file:";
        let last = control.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned();
        let mut removed = 0;
        for entry in fs::read_dir(data.join("pg_wal")).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.len() == last.len() && name < last {
                fs::remove_file(entry.path()).unwrap();
                removed += 1;
            }
        }
        assert!(removed > 0, "there was log to remove before {last}");
    })
    .await;
    comes_back(&mut trio, &old, "cloned").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_primary_is_rewound_by_its_own_log_where_the_new_one_has_removed_it() {
    // A checkpoint takes three seconds.
    let settings = [("wal_keep_size", "0"), ("checkpoint_completion_target", "0.01")];
    let mut trio = Trio::start_with(&settings).await;
    let cluster = trio.healthy().await;
    let engines = trio.engine_pids().await;
    let primary = api::engine_pid(api::member(&cluster, &cluster.primary).unwrap()).unwrap();
    let first = checkpoint_over_two_files(&trio, primary).await;
    as_superuser(primary, "SELECT pg_switch_wal()");
    postgres::add_ballast(&trio.login, &trio.members[0], 1).await.unwrap();
    let has = |data: &std::path::Path| data.join("pg_wal").join(&first).exists();
    let (old, _) = diverge(&mut trio, |data| {
        // Every other engine forgets what only the dead one would still need.
        for pid in engines.iter().filter(|pid| **pid != primary) {
            let unused = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
            as_superuser(*pid, unused);
            as_superuser(*pid, "CHECKPOINT");
            let (_, theirs) = how_it_was_started(*pid);
            assert!(!has(&theirs), "{first} is still in {}", theirs.display());
        }
        assert!(has(data), "{first} is gone from {}", data.display());
    })
    .await;
    comes_back(&mut trio, &old, "rewound").await;
}
