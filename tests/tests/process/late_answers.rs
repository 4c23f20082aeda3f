//! What the tests of the gate rely on, without Regent: an acknowledgement that the engine has sent into a closed port leaves
//! when the port opens again, however late, and the writers see it; with the sockets destroyed it never does. A test that
//! finds no late acknowledgement would otherwise prove nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use regent_tests::{
    cluster::run,
    engines::Plain,
    folder::TestFolder,
    network::{self, Machine, Network},
    place::Place,
    wait,
    workload::{Dialect, history::Outcome, now_nanos, postgres, writers::Writers},
};

const SOON: Duration = Duration::from_secs(30);
/// How long the transaction waits before it commits.
const WAIT: Duration = Duration::from_millis(1_500);
/// How long the port stays closed after the commit.
const CLOSED: Duration = Duration::from_millis(1_500);

const CLOSE: &str = "table inet shut {
    chain input { type filter hook input priority -10; tcp dport 5432 drop; }
    chain output { type filter hook output priority -10; tcp sport 5432 drop; }
}";

fn on(machine: &Machine, words: &[&str]) -> Result<String> {
    let mut command = machine.command(words[0])?;
    command.args(&words[1..]);
    run(command)
}

/// What became of a transaction that commits while its port is closed: when it was acknowledged, if it was.
async fn commit_into_a_closed_port(destroy_the_sockets: bool) -> (Option<u64>, u64) {
    let folder = TestFolder::new().unwrap();
    let network = Network::new(folder.path()).unwrap();
    let machine = network.machine("one").unwrap();
    let place = Place::Machine(Arc::clone(&machine));
    let mut engine = Plain::start_at(Dialect::Postgres, &folder, "plain", place).await.unwrap();
    engine.client.make_room(&engine.member).await.unwrap();
    let members = [engine.member.clone()];
    let mut writers = Writers::start(&folder.join("writers"), &engine.client, &members, false).unwrap();
    writers.acknowledged(0, 10, SOON).await.unwrap();
    writers.add_commit("commit", &engine.member, WAIT, &Place::Loopback).unwrap();
    let (own, _) = postgres::connect(&engine.client.login, &engine.member).await.unwrap();
    let count = |what: &'static str| {
        let own = &own;
        async move {
            let found: i64 = own.query_one(what, &[]).await?.get(0);
            ensure!(found == 1, "{found}");
            Ok(())
        }
    };
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait::until("the transaction", SOON, || count(asleep)).await.unwrap();
    let rules = folder.join("rules");
    std::fs::write(&rules, CLOSE).unwrap();
    on(&machine, &["nft", "-f", rules.to_str().unwrap()]).unwrap();
    let closed = now_nanos();
    // Nobody outside can ask the engine now; the transaction ends by itself.
    tokio::time::sleep(WAIT + CLOSED).await;
    if destroy_the_sockets {
        // Not `all`: that ends the listening one as well, and nobody could connect any more.
        on(&machine, &["ss", "--kill", "--tcp", "state", "connected", "sport", "=", ":5432"]).unwrap();
    }
    let opened = now_nanos();
    on(&machine, &["nft", "delete", "table", "inet", "shut"]).unwrap();
    writers.acknowledged(opened, 10, SOON).await.unwrap();
    let acknowledged = || {
        let history = writers.of("commit").unwrap();
        history.attempts.iter().find_map(|attempt| match attempt.outcome {
            Outcome::Acknowledged(at, _) => Some(at),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        })
    };
    // As long as the kernel would wait before it sends the answer again.
    let late =
        wait::until("a late answer", CLOSED * 4, || async { acknowledged().ok_or_else(|| anyhow::anyhow!("none")) });
    let late = late.await.ok();
    assert!(late.is_none_or(|at| at > closed), "it committed before the port was closed");
    let stored = engine.client.read_rows(&engine.member).await.unwrap();
    assert!(stored.contains_key(&("commit".to_owned(), 1)), "it committed");
    drop(writers.stop().await.unwrap());
    engine.kill().unwrap();
    (late, opened)
}

#[test]
fn an_answer_into_a_closed_port_comes_when_it_opens_and_is_seen() {
    network::inside(|| async {
        let (acknowledged, opened) = commit_into_a_closed_port(false).await;
        assert!(acknowledged.unwrap() > opened, "it came when the port opened");
    })
    .unwrap();
}

#[test]
fn an_answer_whose_socket_was_destroyed_never_comes() {
    network::inside(|| async {
        let (acknowledged, _) = commit_into_a_closed_port(true).await;
        assert_eq!(acknowledged, None);
    })
    .unwrap();
}
