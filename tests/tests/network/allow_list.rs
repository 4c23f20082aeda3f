//! The allow-list where it has to hold: real engines on machines of their own, and clients on other machines, by IPv4 and IPv6, by new
//! connections and by sessions that are open.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, request_id},
    cluster::{COORDINATOR, Fleet, run},
    folder::TestFolder,
    network::{HUB_ADDRESS, Knocking, Machine, Network},
    place::Site,
    process::program,
    wait,
    workload::{Login, now_nanos, postgres},
};
use tokio_postgres::{Client, Config, NoTls};

use crate::support::{PROFILE, SOON, inside};

const CLUSTER: &str = "db";
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PORT: u16 = 5432;
/// Time in which a connection is made, if it is; longer than the first retransmission.
const CONNECT: Duration = Duration::from_millis(1500);

/// A client's machine.
struct Clients(Arc<Machine>);

impl Clients {
    fn four(&self) -> String {
        self.0.address()
    }

    fn six(&self) -> String {
        self.0.address_v6()
    }

    fn connects(&self, machine: &Machine, family: fn(&Machine) -> String) -> bool {
        self.0.connect(engine(machine, family), CONNECT).is_ok()
    }

    /// A session with the engine on a machine.
    async fn session(&self, login: &Login, machine: &Machine, family: fn(&Machine) -> String) -> Result<Client> {
        session(login, self.0.connect(engine(machine, family), CONNECT)?).await
    }
}

fn engine(machine: &Machine, family: fn(&Machine) -> String) -> SocketAddr {
    SocketAddr::new(family(machine).parse().expect("machines have addresses"), PORT)
}

async fn session(login: &Login, stream: TcpStream) -> Result<Client> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let mut config = Config::new();
    config.user(&login.user).password(&login.password).dbname(&login.database);
    let (client, connection) = config.connect_raw(stream, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Whether a session is answered.
async fn lives(client: &Client) -> bool {
    tokio::time::timeout(CONNECT, client.simple_query("SELECT 1")).await.is_ok_and(|answer| answer.is_ok())
}

fn set(ranges: &[String]) -> wire::SetAllowListRequest {
    wire::SetAllowListRequest {
        name: format!("clusters/{CLUSTER}"),
        change: wire::AllowListChange::Set.into(),
        ranges: ranges.to_vec(),
        request_id: request_id(),
        ..Default::default()
    }
}

/// Asks for a change and waits until it is made.
async fn done(fleet: &Fleet, request: wire::SetAllowListRequest) -> Result<wire::Operation> {
    let begun = fleet.api.clusters().set_allow_list(request).await?.into_inner();
    fleet.api.succeed(&begun.name, SOON).await
}

fn nft(machine: &Machine, words: &[&str]) -> Result<String> {
    let mut command = machine.command("nft")?;
    command.args(words);
    run(command)
}

fn since(begun: u64) -> Duration {
    Duration::from_nanos(now_nanos() - begun)
}

/// Waits until the list is in force on every member.
async fn everywhere(fleet: &Fleet) -> Result<wire::AllowList> {
    wait::until("an allow-list that is in force everywhere", SOON, || async {
        let list = fleet.api.cluster(CLUSTER).await?.allow_list.context("a coordinator of this build says it")?;
        ensure!(list.pending.is_empty(), "{:?}", list.pending);
        Ok(list)
    })
    .await
}

#[test]
fn who_is_in_the_list_is_let_in_and_nobody_else_whatever_happens() {
    inside(|| async { story().await.unwrap() });
}

#[expect(clippy::print_stdout, reason = "how long a list takes is what a reader of this test wants to see")]
async fn story() -> Result<()> {
    let folder = TestFolder::new()?;
    let network = Network::new(folder.path())?;
    let (listed, other) = (Clients(network.machine("c1")?), Clients(network.machine("c2")?));
    let families: [fn(&Machine) -> String; 2] = [Machine::address, Machine::address_v6];
    let site = Site::Network(network.clone());
    let mut fleet = Fleet::start_at(&folder, &NODES, program("regent-coordinator")?, site).await?;
    let cluster = fleet.create_with(CLUSTER, "postgresql", &NODES[..2], PROFILE).await?;
    let login = fleet.api.login(CLUSTER).await?;
    let on = |node: &str| network.machine(node);
    let (first, second) = (on("n1")?, on("n2")?);
    ensure!(api::plain(&api::member(&cluster, &cluster.primary)?.node) == "n1", "the first node is the primary");
    postgres::create_table(&login, &format!("{}:{PORT}", first.address())).await?;
    let hub = HUB_ADDRESS.to_owned();

    // Somebody else's table on a member.
    nft(
        &first,
        &[
            "add table inet others; add chain inet others input { type filter hook input priority 0; }; add rule inet others input tcp dport 1 drop",
        ],
    )?;
    let others = || nft(&first, &["list", "table", "inet", "others"]);
    let before = others()?;

    // What would be cut is said, and nothing is changed.
    let mut kept = Vec::new();
    let mut doomed = Vec::new();
    for family in families {
        kept.push(listed.session(&login, &first, family).await?);
        doomed.push(other.session(&login, &first, family).await?);
        doomed.push(other.session(&login, &first, family).await?);
    }
    let wanted = vec![listed.four(), listed.six(), hub.clone()];
    let dry = wire::SetAllowListRequest { validate_only: true, ..set(&wanted) };
    let report = fleet.api.clusters().set_allow_list(dry).await?.into_inner().report.join("\n");
    for address in [other.four(), other.six()] {
        let cut = format!("{}: 2 connections of {address} would be cut", cluster.primary);
        ensure!(report.contains(&cut), "{cut:?} is not in {report}");
    }
    ensure!(!report.contains(&listed.four()) && !report.contains(&listed.six()), "{report}");
    for client in kept.iter().chain(&doomed) {
        ensure!(lives(client).await, "a dry run cut somebody");
    }

    // In force on all members, for both families, new connections and open ones.
    done(&fleet, set(&wanted)).await?;
    for machine in [&first, &second] {
        for family in families {
            ensure!(listed.connects(machine, family), "who is in the list is kept out of {}", family(machine));
            ensure!(!other.connects(machine, family), "somebody is let in to {}", family(machine));
        }
    }
    for client in &kept {
        ensure!(lives(client).await, "the session of a client that is in the list has died");
    }
    for client in &doomed {
        ensure!(!lives(client).await, "the session of a client that is not in the list lives");
    }
    ensure!(others()? == before, "another table was changed");

    // Members and the coordinator go on as before.
    let coordinator = Clients(network.machine(COORDINATOR)?);
    ensure!(coordinator.connects(&first, Machine::address), "the coordinator is kept out");
    let healthy = fleet.api.healthy(CLUSTER, SOON).await?;
    ensure!(healthy.members.iter().all(|member| member.connected), "{healthy:?}");
    kept[0].batch_execute(&format!("INSERT INTO {} VALUES ('allow', 1, 'x')", postgres::TABLE)).await?;
    let copy = format!("{}:{PORT}", second.address());
    wait::until("the row on the replica", SOON, || async {
        let rows = postgres::read_rows(&login, &copy).await?;
        ensure!(rows.len() == 1, "{} rows", rows.len());
        Ok(())
    })
    .await?;

    // A list of IPv4 alone closes IPv6, and says so.
    let remove = wire::SetAllowListRequest { change: wire::AllowListChange::Remove.into(), ..set(&[listed.six()]) };
    let told = done(&fleet, remove).await?.report.join("\n");
    ensure!(told.contains("IPv6 is closed"), "{told}");
    ensure!(lives(&kept[0]).await && !lives(&kept[1]).await, "a session of IPv6 outlives its address");
    ensure!(!listed.connects(&first, Machine::address_v6) && listed.connects(&first, Machine::address));

    // A member that is made is closed from its first packet on.
    let third = on("n3")?;
    let knocking = Knocking::start(other.0.clone(), engine(&third, Machine::address));
    let add = wire::AddMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        node: "n3".to_owned(),
        request_id: request_id(),
        ..Default::default()
    };
    let added = fleet.api.clusters().add_member(add).await?.into_inner();
    fleet.api.succeed(&added.name, SOON).await?;
    fleet.api.healthy(CLUSTER, SOON).await?;
    ensure!(listed.connects(&third, Machine::address), "the new member keeps everybody out");
    let (let_in, tried) = knocking.end();
    println!("a client that is not in the list knocked {tried} times at the new member");
    ensure!(let_in == 0 && tried > 10, "it was let in {let_in} times of {tried}");

    // An agent that is killed, somebody's flush, and an agent that starts again.
    let knocking = Knocking::start(other.0.clone(), engine(&first, Machine::address));
    nft(&first, &["flush", "ruleset"])?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.agent("n1").daemon()?.kill()?;
    fleet.agent("n1").start()?;
    fleet.connected(&["n1"]).await?;
    nft(&first, &["flush", "ruleset"])?;
    everywhere(&fleet).await?;
    let (let_in, tried) = knocking.end();
    ensure!(let_in == 0 && tried > 3, "it was let in {let_in} times of {tried}");
    ensure!(listed.connects(&first, Machine::address));

    // A replica that is away gets it when it returns; its machine comes up closed before the coordinator says anything. An agent that was
    // not back in time has cost its member the reign.
    let healthy = fleet.api.healthy(CLUSTER, SOON).await?;
    let is_replica = |member: &&wire::Member| api::plain(&member.name) != healthy.primary;
    let member = healthy.members.iter().rfind(is_replica).context("there are replicas")?;
    let (away, node) = (api::plain(&member.name).to_owned(), api::plain(&member.node).to_owned());
    let second = on(&node)?;
    fleet.power_off(&node)?;
    let narrow = vec![hub.clone(), "192.0.2.0/24".to_owned()];
    let told = done(&fleet, set(&narrow)).await?.report.join("\n");
    ensure!(told.contains(&format!("{away} does not know yet")), "{told}");
    let shown = fleet.api.cluster(CLUSTER).await?;
    let pending = shown.allow_list.context("it is said")?.pending;
    ensure!(pending.iter().any(|member| member.starts_with(&away)), "{pending:?}");
    let knocking = Knocking::start(other.0.clone(), engine(&second, Machine::address));
    fleet.power_on(&node)?;
    everywhere(&fleet).await?;
    fleet.api.healthy(CLUSTER, SOON).await?;
    let (let_in, tried) = knocking.end();
    ensure!(let_in == 0, "after its boot it was let in {let_in} times of {tried}");
    ensure!(!listed.connects(&second, Machine::address), "the member that was away has the old list");

    // A long list.
    let mut long = vec![hub.clone(), listed.four()];
    for number in 0..9_998_u32 {
        let mut range = String::new();
        write!(range, "{}/30", IpAddr::from((0x0b00_0000 + number * 8).to_be_bytes()))?;
        long.push(range);
    }
    let begun = now_nanos();
    done(&fleet, set(&long)).await?;
    let took = since(begun);
    let list = everywhere(&fleet).await?;
    println!(
        "{} ranges on three members: the operation took {took:?}, in force everywhere after {:?}",
        list.range_count,
        since(begun)
    );
    ensure!(list.range_count == 10_000, "{}", list.range_count);
    ensure!(listed.connects(&second, Machine::address) && !other.connects(&second, Machine::address));
    fleet.api.healthy(CLUSTER, SOON).await?;

    // Open again.
    let refused = fleet.api.clusters().set_allow_list(set(&[])).await;
    ensure!(refused.is_err_and(|status| status.message().contains("lets everybody in")));
    done(&fleet, wire::SetAllowListRequest { open_to_all: true, ..set(&[]) }).await?;
    ensure!(other.connects(&first, Machine::address) && other.connects(&second, Machine::address_v6));
    Ok(())
}
