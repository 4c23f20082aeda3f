//! Golden files of what is rendered, and what is refused.

use regent_common::{
    ids::{ClusterName, NodeName},
    topology::Endpoint,
};

use super::{
    access::{AdoptedRules, Applications, hba_conf, ident_conf},
    *,
};
use crate::engine::postgres::layout::{EngineUser, SHAPE};

fn layout() -> Layout {
    let cluster = ClusterName::new("pg-main").unwrap();
    let member = cluster.member(1);
    Layout::new("/srv/engines/pg-main".into(), EngineUser { name: None, uid: 0, gid: 0 }, cluster, member, &SHAPE)
}

fn member() -> MemberName {
    MemberName::new("pg-main1").unwrap()
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn postgresql_conf_is_rendered() {
    let (layout, section, member) = (layout(), Section::default(), member());
    let place = Place {
        layout: &layout,
        section: &section,
        member: &member,
        run_directory: Path::new("/run/regent/pg-main"),
        port: 5432,
    };
    let wanted = settings(&[("shared_buffers", "1GB"), ("Max_Connections", "300"), ("search_path", "it's \\ odd")]);
    insta::assert_snapshot!(postgresql_conf(&place, &wanted));
}

#[test]
fn access_rules_are_rendered() {
    let none = AdoptedRules::default();
    insta::assert_snapshot!(hba_conf(Applications::Admitted, &none) + &ident_conf("root", "postgres", &none));
}

#[test]
fn streams_and_slots_have_a_least_number_and_the_log_a_least_level() {
    let known = "wal_level\tpostmaster\tx\nmax_wal_senders\tpostmaster\tx\n";
    check_names(&settings(&[("wal_level", "logical"), ("max_wal_senders", "10")]), known).unwrap();
    for (name, value) in [("wal_level", "minimal"), ("max_wal_senders", "9")] {
        let refused = check_names(&settings(&[(name, value)]), known);
        assert!(
            matches!(&refused, Err(DriverError::InvalidSetting { name: named, .. }) if named == name),
            "{refused:?}"
        );
    }
}

#[test]
fn upstream_conf_is_rendered_and_read_back() {
    let upstream = Peer {
        member: MemberName::new("pg-main2").unwrap(),
        node: NodeName::new("n2").unwrap(),
        engine: Endpoint { host: "10.0.0.2".to_owned(), port: 5432 },
        agent_address: String::new(),
    };
    let text = upstream_conf(&layout(), &member(), Some(&upstream));
    assert_eq!(followed(&text), Some(upstream.member));
    insta::assert_snapshot!(text);
    let nobody = upstream_conf(&layout(), &member(), None);
    assert_eq!(nobody, "primary_conninfo = ''\nprimary_slot_name = ''\n");
    assert_eq!(followed(&nobody), None);
}

#[test]
fn the_password_file_escapes_its_separators() {
    assert_eq!(password_file(&"a:b\\c".into()), "*:*:*:regent_replicator:a\\:b\\\\c\n");
}

#[test]
fn settings_that_are_ours_or_unknown_are_refused() {
    let known = "work_mem\tuser\tx\nPort\tpostmaster\tx\nfsync\tsighup\tx\n";
    check_names(&settings(&[("work_mem", "64MB"), ("WORK_MEM", "1MB"), ("timescaledb.x", "1")]), known).unwrap();
    for name in ["port", "PORT", "fsync", "primary_conninfo", "recovery_target_lsn", "unknown", "", "a b", "x'y.z"] {
        let result = check_names(&settings(&[(name, "1")]), known);
        let refused = matches!(
            &result,
            Err(DriverError::InvalidSetting { name: named, .. } | DriverError::UnknownSetting { name: named, .. })
                if named == name
        );
        assert!(refused, "{name:?} was answered with {result:?}");
    }
    assert!(check_names(&settings(&[("work_mem", "1\nfsync = off")]), known).is_err(), "a second line came through");
}

#[test]
fn settings_of_the_source_are_stripped() {
    let source = "# Do not edit\nprimary_conninfo = 'host=x'\nPort=5433\nwork_mem = '4MB'\nrestore_command='cp'\n";
    assert_eq!(without_owned(source), "# Do not edit\nwork_mem = '4MB'\n");
}
