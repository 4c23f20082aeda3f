//! The README's commands for real machines, as they are written there: from empty machines to a cluster that a client writes to.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use regent_tests::{
    cluster::COORDINATOR,
    folder::TestFolder,
    scenario::NODES,
    vm::{CLIENT, Image, Installation, PACKAGES, System, Systems},
};

use crate::support::inside;

/// Where commands of the README are typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Coordinator,
    EachNode,
}

/// The lines of the README's block with what a person types at each place, without what is said of them.
fn typed() -> Vec<(Where, String)> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, section) = readme.split_once("\n## On real machines\n").expect("the README says how it is installed");
    let block = section.split("```").nth(1).expect("the section has a block of commands");
    let mut place = None;
    let mut found = Vec::new();
    for line in block.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(said) = line.strip_prefix("# ") {
            place = Some(if said.contains("each database machine") {
                Where::EachNode
            } else {
                assert!(said.contains("coordinator's machine"), "where is this typed: {said}");
                Where::Coordinator
            });
            continue;
        }
        let command = line.split_once(" # ").map_or(line, |(command, _)| command).trim().to_owned();
        found.push((place.expect("the block begins with where it is typed"), command));
    }
    found
}

/// Types a line in the folder to which the packages were carried, and says yes to every question; what was written.
fn type_in(system: &System, line: &str) -> Result<String> {
    let mut command: Command = system.command("bash")?;
    command.args(["-euo", "pipefail", "-c", &format!("cd {PACKAGES} && {line}")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Few commands ask, and one that asks nothing may have ended.
    drop(child.stdin.take().context("stdin is a pipe")?.write_all(b"y\n"));
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(output.status.success(), "{line} on {}: {}\n{}", system.name(), text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Types everything; what the last command wrote.
fn follow(systems: &Systems) -> String {
    let coordinator = systems.system(COORDINATOR).unwrap();
    let mut tokens = Vec::new();
    let mut last = String::new();
    for (place, line) in typed() {
        let line = line.replace("HOST", COORDINATOR);
        match place {
            Where::Coordinator if line.starts_with("regentctl token create") => {
                tokens = NODES.map(|_| type_in(coordinator, &line).unwrap()).to_vec();
            }
            Where::Coordinator => last = type_in(coordinator, &line).unwrap(),
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
