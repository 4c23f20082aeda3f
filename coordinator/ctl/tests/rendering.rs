//! Golden files of what people see, from fixed messages and a fixed time.

mod fixtures;

use regent_common::error::{Reason, bad_field, refuse};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regentctl::{
    failure::{Call, Failure},
    output::{Format, json, operation, page, progress, table},
};
use tonic::Status;

use crate::fixtures::{
    at, credentials, degraded_cluster, healthy_cluster, node, node_beside_the_coordinator, node_without_gate, now,
    pair, partitioned_cluster, running_operation, warned_cluster,
};

#[test]
fn cluster_show_of_a_healthy_cluster() {
    insta::assert_snapshot!(page::cluster(&healthy_cluster(), None, now()));
}

#[test]
fn cluster_show_says_why_a_cluster_is_not_healthy() {
    insta::assert_snapshot!(page::cluster(&degraded_cluster(), Some(&running_operation()), now()));
}

#[test]
fn cluster_show_of_a_primary_that_serves_cut_off() {
    insta::assert_snapshot!(page::cluster(&partitioned_cluster(), None, now()));
}

#[test]
fn cluster_show_of_a_healthy_cluster_with_warnings() {
    insta::assert_snapshot!(page::cluster(&warned_cluster(), None, now()));
}

#[test]
fn cluster_show_of_a_pair() {
    let mut whole = wire::Cluster { serving: vec!["db1".into(), "db2".into()], ..pair() };
    whole.set_health(wire::Health::Healthy);
    let line = page::cluster(&whole, None, now());
    let line = line.lines().find(|line| line.starts_with("  writes")).unwrap().to_owned();
    insta::assert_snapshot!(format!(
        "{}\n{line}\n\n{}",
        page::cluster(&pair(), None, now()),
        table::clusters(&[whole], now())
    ));
}

#[test]
fn tls_is_shown_of_clusters_that_have_it_and_of_nodes_that_offer_it() {
    let page = page::cluster(&wire::Cluster { tls: true, ..healthy_cluster() }, None, now());
    let without = page::cluster(&healthy_cluster(), None, now());
    let more: Vec<_> = page.lines().filter(|line| !without.lines().any(|plain| plain == *line)).collect();
    assert_eq!(more, ["  tls         yes: the ports speak nothing else"]);
    let mut able = node();
    able.engines[0].connection_with_tls = Some(types::ConnectionFormat::default());
    let shown = page::node(&able, now());
    assert!(shown.contains("- examplesql 15.14 (TLS)\n"), "{shown}");
}

#[test]
fn an_allow_list_is_shown_with_what_it_means() {
    let list = wire::AllowList {
        ranges: (1..=7).map(|number| format!("192.0.2.{number}")).collect(),
        range_count: 7,
        remarks: vec!["the list names no IPv6 address: IPv6 is closed; add ::/0 to open it".into()],
        pending: vec!["db2: it is away, and is told when it returns".into()],
    };
    let cluster = wire::Cluster { allow_list: Some(list.clone()), ..healthy_cluster() };
    let shown = page::cluster(&cluster, None, now());
    let line = shown.lines().find(|line| line.contains("reached by")).unwrap();
    let empty = page::allow_list(&wire::AllowList::default());
    insta::assert_snapshot!(format!("{line}\n\n{}\n\n{empty}", page::allow_list(&list)));
}

#[test]
fn warnings_are_told_to_programs_too() {
    let cluster = json::object(&warned_cluster());
    assert_eq!(cluster["warnings"].as_array().map(Vec::len), Some(2), "{cluster}");
    assert_eq!(cluster["health"], "healthy");
    assert_eq!(json::object(&healthy_cluster())["warnings"].as_array().map(Vec::len), Some(0));
    let node = json::object(&node_beside_the_coordinator());
    assert!(node["warnings"][0].as_str().is_some_and(|said| said.contains("takes both at once")), "{node}");
}

#[test]
fn node_show_of_the_coordinators_machine() {
    insta::assert_snapshot!(page::node(&node_beside_the_coordinator(), now()));
}

#[test]
fn cluster_show_with_nothing_known() {
    insta::assert_snapshot!(page::cluster(
        &wire::Cluster { members: vec![wire::Member::default()], ..Default::default() },
        None,
        now()
    ));
}

#[test]
fn cluster_show_for_programs() {
    insta::assert_snapshot!(format!("{:#}", json::object(&degraded_cluster())));
}

#[test]
fn cluster_list() {
    insta::assert_snapshot!(table::clusters(&[degraded_cluster(), healthy_cluster()], now()));
}

#[test]
fn an_empty_list_has_its_header() {
    insta::assert_snapshot!(table::clusters(&[], now()));
}

#[test]
fn cluster_credentials() {
    insta::assert_snapshot!(page::credentials(&credentials()));
}

#[test]
fn node_list() {
    let spare = wire::Node { name: "nodes/spare".into(), ..Default::default() };
    let revoked = wire::Node { name: "nodes/old".into(), revoked: true, ..Default::default() };
    insta::assert_snapshot!(table::nodes(&[node(), node_without_gate(), spare, revoked], now()));
}

#[test]
fn node_show() {
    insta::assert_snapshot!(page::node(&node(), now()));
}

#[test]
fn node_show_of_a_host_without_a_gate() {
    insta::assert_snapshot!(page::node(&node_without_gate(), now()));
}

#[test]
fn operation_list() {
    insta::assert_snapshot!(table::operations(&[running_operation(), failed_operation()], now()));
}

#[test]
fn operation_show_while_it_runs() {
    insta::assert_snapshot!(operation::page(&running_operation(), now()));
}

#[test]
fn operation_show_after_it_failed() {
    insta::assert_snapshot!(operation::page(&failed_operation(), now()));
}

#[test]
fn operation_show_of_a_check() {
    let checked = wire::Operation {
        kind: "create_cluster".into(),
        validate_only: true,
        done: true,
        report: vec!["create member db-a1 on node a".into()],
        ..running_operation()
    };
    insta::assert_snapshot!(operation::page(&wire::Operation { steps: Vec::new(), ..checked }, now()));
}

#[test]
fn progress_has_one_line_per_change() {
    let mut story = String::new();
    let mut before: Option<wire::Operation> = None;
    for done in [0_u64, 1, 9, 10, 19, 55, 100] {
        let mut current = running_operation();
        let copying = current.steps[1].progress.as_mut().expect("the fixture's clone has progress");
        copying.bytes_done = done << 20;
        copying.bytes_total = 100 << 20;
        (copying.entries_done, copying.entries_total) = (0, 0);
        copying.eta_seconds = Some(100 - done);
        story.extend(progress::changes(before.as_ref(), &current, now()).into_iter().map(|line| line + "\n"));
        before = Some(current);
    }
    story.extend(progress::changes(before.as_ref(), &failed_operation(), now()).into_iter().map(|line| line + "\n"));
    insta::assert_snapshot!(story);
}

#[test]
fn a_copy_whose_size_is_not_known_is_told_by_its_entries() {
    let mut story = String::new();
    let mut before: Option<wire::Operation> = None;
    for done in [0_u64, 9, 10, 55, 100] {
        let mut current = running_operation();
        let copying = current.steps[1].progress.as_mut().expect("the fixture's clone has progress");
        (copying.bytes_done, copying.bytes_total) = (done << 20, 0);
        (copying.entries_done, copying.entries_total) = (done * 1000, 100_000);
        story.extend(progress::changes(before.as_ref(), &current, now()).into_iter().map(|line| line + "\n"));
        before = Some(current);
    }
    insta::assert_snapshot!(story);
}

#[test]
fn audit_and_events() {
    let record = wire::AuditRecord {
        id: "01J0000000000000000000000A".into(),
        time: at(-60),
        actor: "regent".into(),
        action: "NoFailover".into(),
        resource: "clusters/db".into(),
        outcome: "ok".into(),
        detail: "node b cannot be reached: nothing proves that its engine is dead".into(),
        ..Default::default()
    };
    let asked = wire::AuditRecord { actor: "ann".into(), source: "10.0.0.9:5012".into(), ..record.clone() };
    let event = wire::Event {
        id: "7".into(),
        time: at(-5),
        kind: "FAILOVER_SUCCEEDED".into(),
        cluster: "clusters/db".into(),
        resource: "clusters/db".into(),
        message: "db2 is the primary".into(),
        facts: [("epoch".to_owned(), "4".to_owned())].into(),
    };
    insta::assert_snapshot!(format!("{}\n{}", table::audit(&[record, asked]), table::event_line(&event)));
}

#[test]
fn engines_and_users() {
    let entry = wire::CatalogEntry {
        offer: node().engines.first().cloned(),
        nodes: vec!["nodes/a".into(), "nodes/b".into()],
        nodes_with_tls: vec!["nodes/b".into()],
    };
    let user = wire::User {
        name: "users/ann".into(),
        role: wire::UserRole::Operator.into(),
        create_time: at(-86_400),
        created_by: "admin".into(),
        certificate_expire_time: at(86_400 * 30),
        ..Default::default()
    };
    insta::assert_snapshot!(format!("{}\n{}", table::engines(&[entry]), table::users(&[user], now())));
}

#[test]
fn errors_say_what_happened_what_is_unchanged_and_what_to_do() {
    let reading = Call { action: "show cluster db".into(), coordinator: "127.0.0.1:7420".into(), request_id: None };
    let changing = Call {
        action: "create cluster db".into(),
        request_id: Some("01J0000000000000000000000R".into()),
        ..reading.clone()
    };
    let failures = [
        changing.failed(refuse(Reason::NodeInCluster, "node b belongs to cluster other")),
        changing.failed(refuse(
            Reason::NoTls,
            "node b does not offer TLS: write this\n[engine.examplesql.tls]\nca = \"/ca\"",
        )),
        changing.failed(bad_field("nodes", "node a is named twice")),
        changing.failed(refuse(Reason::RoleTooLow, "user ann has the role viewer; CreateCluster needs operator")),
        changing.failed(Status::internal("the store cannot be written")),
        changing.failed(Status::unavailable("connection refused")),
        changing.unconnected(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
        reading.failed(refuse(Reason::ClusterNotFound, "there is no cluster db")),
        reading.failed(Status::unavailable("connection refused")),
        Failure::Operation { operation: Box::new(failed_operation()) },
        Failure::Interrupted { operation: "operations/01J0000000000000000000000B".into() },
        Failure::Usage("the key \"zone\" is given twice".into()),
        Failure::Identity("none was given".into()),
    ];
    let mut text = String::new();
    for failure in failures {
        text.push_str(&format!("{}\n(exit {})\n\n", failure.render(Format::Table), failure.exit_code()));
    }
    text.push_str(&changing.failed(bad_field("nodes", "node a is named twice")).render(Format::Json));
    insta::assert_snapshot!(text);
}

fn failed_operation() -> wire::Operation {
    let mut operation = running_operation();
    operation.state = wire::OperationState::Failed.into();
    operation.done = true;
    operation.end_time = at(0);
    operation.error = "clone of db3: the disk of node c is full".into();
    operation.error_reason = Reason::DiskFull.as_str().into();
    operation.steps[0].state = wire::StepState::Undone.into();
    operation.steps[1].state = wire::StepState::Failed.into();
    operation.steps[1].end_time = at(0);
    operation.steps[1].error = "the disk of node c is full".into();
    operation
}
