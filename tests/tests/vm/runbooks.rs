//! The commands of the runbooks for machines, as they are written there.

use anyhow::ensure;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::COORDINATOR,
    folder::TestFolder,
    scenario::Rig,
    vm::{CLIENT, Installation},
    wait,
};

use crate::{
    support::{SOON, inside},
    typed::{Where, section, type_in},
};

/// The cluster that the runbooks speak of.
const CLUSTER: &str = "main";

/// Types what a section of a runbook says, with these words in place of its own, on the coordinator's machine and on `node`.
pub(crate) fn follow(installation: &Installation, runbook: &str, heading: &str, node: &str, words: &[(&str, &str)]) {
    let mut token = String::new();
    for (place, line) in section(&format!("deploy/runbooks/{runbook}"), heading) {
        let words = [&[("HOST", COORDINATOR), ("TOKEN", token.as_str())][..], words].concat();
        let line = words.iter().fold(line, |line, (word, meant)| line.replace(word, meant));
        let machine = match place {
            Where::Coordinator => COORDINATOR,
            Where::Node => node,
            Where::EachNode => panic!("runbooks are about one node"),
        };
        let said = type_in(installation.system(machine).unwrap(), &line).unwrap();
        if line.starts_with("regentctl token create") {
            token = said;
        }
    }
}

async fn healthy(installation: &mut Installation) {
    installation.reconnect().await.unwrap();
    installation.api.healthy(CLUSTER, SOON).await.unwrap();
}

#[test]
fn what_the_runbooks_say_is_what_works() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let mut installation = Installation::start(&folder).await.unwrap();
        let coordinator = installation.system(COORDINATOR).unwrap();
        let create = ["regentctl", "cluster", "create", CLUSTER, "--engine", "postgresql", "--replicas", "2"];
        coordinator.run(&create).unwrap();

        follow(&installation, "machines.md", "Install", "", &[]);
        type_in(installation.system(CLIENT).unwrap(), "apt-get install --yes ./regent-agent_*.deb").unwrap();
        follow(&installation, "machines.md", "Join one more machine", CLIENT, &[]);
        follow(&installation, "machines.md", "Upgrade", "n2", &[]);
        healthy(&mut installation).await;

        follow(&installation, "coordinator-backup.md", "Back up", "", &[]);
        follow(&installation, "coordinator-backup.md", "Restore, on the same machine or another one", "", &[]);
        installation.reconnect().await.unwrap();
        wait::until("all nodes at the restored coordinator", SOON, || async {
            let nodes = installation.api.all_nodes().await?;
            ensure!(nodes.len() == 4 && nodes.iter().all(|node| node.connected), "{nodes:?}");
            Ok(())
        })
        .await
        .unwrap();
        healthy(&mut installation).await;

        let replica = |cluster: &wire::Cluster| {
            let member = cluster.members.iter().find(|member| api::plain(&member.name) != cluster.primary).unwrap();
            (api::plain(&member.name).to_owned(), api::plain(&member.node).to_owned())
        };
        let (_, node) = replica(&installation.api.cluster(CLUSTER).await.unwrap());
        follow(&installation, "certificates.md", "Rotate by hand", &node, &[("NODE", &node)]);
        healthy(&mut installation).await;
        follow(&installation, "certificates.md", "Revoke a stolen node", "", &[("NODE", CLIENT)]);
        follow(&installation, "disk-full.md", "A disk is full", "n1", &[]);

        let (member, node) = replica(&installation.api.cluster(CLUSTER).await.unwrap());
        follow(&installation, "machines.md", "Uninstall", &node, &[("MEMBER", &member), ("NODE", &node)]);
        healthy(&mut installation).await;
        let gone = installation.system(&node).unwrap();
        assert_eq!(gone.shell("pgrep --list-full 'regent|postgres' || true").unwrap(), "");
        assert_eq!(gone.run(&["nft", "list", "tables"]).unwrap(), "");
        assert!(!gone.path("/etc/regent/agent.toml").exists());
    });
}

/// `systemd-analyze security` says how much of the machine a unit can reach, from 0 to 10; each unit says why it needs what it has.
#[test]
fn the_daemons_have_little_of_the_machine() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let systems = Installation::install(&folder).unwrap();
        for (machine, most) in [("n1", 5.5), (COORDINATOR, 2.5)] {
            let unit = regent_tests::vm::unit(machine);
            let analyse = format!("systemd-analyze security --no-pager {unit} | grep 'Overall exposure'");
            let said = systems.system(machine).unwrap().shell(&analyse).unwrap();
            let level: f64 = said.split_whitespace().find_map(|word| word.parse().ok()).expect("a level");
            assert!(level <= most, "{said}");
        }
    });
}
