//! A former primary that went its own way comes back without a person, and what it had of its own is reported.

use std::{fs, process::Command};

use nix::sys::signal::Signal;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::run,
    engines, process,
    workload::{checker::Stored, postgres},
};

use crate::support::{CLUSTER, SOON, Trio, how_it_was_started, write_by_hand};

/// Kills the primary's engine, then its agent before the engine is brought back; starts the engine by hand and writes to
/// it. Returns the old primary's member and node. `spoil` is done to the stopped data before the agent is back.
async fn diverge(trio: &mut Trio, spoil: impl FnOnce(&std::path::Path)) -> (String, String) {
    let cluster = trio.healthy().await;
    let old = cluster.primary.clone();
    let member = api::member(&cluster, &old).unwrap();
    let (node, pid) = (api::plain(&member.node).to_owned(), api::engine_pid(member).unwrap());
    let address = format!("127.0.0.1:{}", member.endpoint.as_ref().unwrap().port);
    let (command, data) = how_it_was_started(pid);
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
