//! The README's commands for real machines, as they are written there: from empty machines to a cluster that a client writes to.

use anyhow::Context;
use regent_tests::{
    cluster::COORDINATOR,
    folder::TestFolder,
    scenario::NODES,
    vm::{CLIENT, Image, Installation, Systems},
};

use crate::{
    support::inside,
    typed::{Where, section, type_in},
};

/// Types everything; what the last command wrote.
fn follow(systems: &Systems) -> String {
    let coordinator = systems.system(COORDINATOR).unwrap();
    let mut tokens = Vec::new();
    let mut last = String::new();
    for (place, line) in section("README.md", "On real machines") {
        let line = line.replace("HOST", COORDINATOR);
        match place {
            Where::Coordinator if line.starts_with("regentctl token create") => {
                tokens = NODES.map(|_| type_in(coordinator, &line).unwrap()).to_vec();
            }
            Where::Coordinator => last = type_in(coordinator, &line).unwrap(),
            Where::Node => panic!("the README does the same on all nodes"),
            Where::EachNode => systems
                .on_each(&NODES, |system| {
                    let own = NODES.iter().position(|node| *node == system.name()).context("a node of the list")?;
                    let token = tokens.get(own).map_or("TOKEN", String::as_str);
                    type_in(system, &line.replace("TOKEN", token)).map(drop)
                })
                .unwrap(),
        }
    }
    last
}

/// A connection string of the cluster, by its name in what `cluster credentials` shows.
fn connection<'a>(shown: &'a str, name: &str) -> &'a str {
    let line = shown.lines().find_map(|line| line.strip_prefix(name)).expect("credentials show connection strings");
    line.trim()
}

#[test]
fn the_commands_of_the_readme_make_a_cluster_that_a_client_writes_to() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let systems = Installation::machines(&folder, Image::Empty).unwrap();
        let shown = follow(&systems);
        let client = systems.system(CLIENT).unwrap();
        client.run(&["apt-get", "install", "--yes", "--quiet", "postgresql-client-17"]).unwrap();
        let (primary, any) = (connection(&shown, "primary"), connection(&shown, "any"));
        let ask = |to: &str, statement: &str| {
            client.run(&["psql", "--no-psqlrc", "--tuples-only", "--no-align", to, "--command", statement])
        };
        ask(primary, "CREATE TABLE notes (note text)").unwrap();
        ask(primary, "INSERT INTO notes VALUES ('from a client')").unwrap();
        assert_eq!(ask(primary, "SELECT note FROM notes").unwrap(), "from a client");
        ask(any, "SELECT 1").unwrap();
        assert_eq!(ask(primary, "SELECT count(*) FROM pg_stat_replication").unwrap(), "2");

        // What the packages brought is there for who looks.
        let coordinator = systems.system(COORDINATOR).unwrap();
        coordinator.shell("regentctl cluster show main | grep -q 'healthy: every member is as it should be'").unwrap();
        for node in NODES {
            let system = systems.system(node).unwrap();
            system.shell("systemctl is-enabled regent-agent && systemctl is-active regent-engine-main").unwrap();
            let servers = system.run(&["pgrep", "--exact", "--count", "--parent", "1", "postgres"]).unwrap();
            assert_eq!(servers, "1", "engines on {node}");
        }
    });
}
